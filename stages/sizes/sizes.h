/* sizes.h - what a job takes in each stage, in bytes: written once, for the stages, which
 * take it, and for `sluice plan`, which tells it.
 *
 * The arena's size is found by running the stage's own graph on the plan body of its
 * device (sl_ops_plan_of): no memory, no work, no numbers. `ops` is the device's table,
 * or already a plan body. Networks may have been made by a loader that only counts. The
 * denoiser's arena is in denoise.h. */
#ifndef SL_SIZES_H
#define SL_SIZES_H

#include "common/conf.h"
#include "common/job.h"
#include "common/lease.h"
#include "graphs/clip.h"
#include "graphs/umt5.h"
#include "graphs/vae.h"

/* What a process takes of a GPU beside weights, arena and slots. The context: what the
 * driver keeps for one process, with the code of the kernels, of cublasLt and of cuDNN
 * that it has used (loaded lazily). Measured on an H100, driver 580, as what nvidia-smi
 * shows of each stage of a 14B job beside weights, arena, slots, workspace and scratch. */
#define SL_GPU_CONTEXT_BYTES ((size_t)512 << 20)
#define SL_GPU_WORKSPACE_BYTES ((size_t)64 << 20) /* of cublasLt and cuDNN */
/* The most that an operation takes: attention's scores, and a result to be added. */
#define SL_GPU_SCRATCH_BYTES ((size_t)288 << 20)

typedef struct {
    size_t kept; /* what a job keeps from its beginning to its end: caches, tables, contexts */
    size_t peak; /* the whole arena, `kept` included */
} sl_arena;

/* Errors of all: SL_SHAPE, SL_ARG a shape that the network refuses; SL_NOMEM more than an
 * address space. */
sl_code sl_arena_text(sl_arena *out, const sl_ops *ops, const sl_umt5_config *c, const sl_umt5 *m,
                      sl_err *err);
/* The image stage's, with both results; clip NULL: a model that takes no tokens. */
sl_code sl_arena_image(sl_arena *out, const sl_ops *ops, const sl_model *model, const sl_clip *clip,
                       const sl_vae_encoder *vae, const sl_job *job, sl_err *err);
/* CLIP by itself, which is one of the image stage's two networks. */
sl_code sl_arena_clip(sl_arena *out, const sl_ops *ops, const sl_clip_config *c, const sl_clip *m,
                      sl_err *err);
/* The VAE's encoder by itself. last: there is a last picture too. */
sl_code sl_arena_condition(sl_arena *out, const sl_ops *ops, const sl_model *model,
                           const sl_vae_encoder *m, const sl_job *job, bool last, sl_err *err);
sl_code sl_arena_decode(sl_arena *out, const sl_ops *ops, const sl_model *model,
                        const sl_vae_decoder *m, const sl_job *job, sl_err *err);

#define SL_MAX_GPUS 64

/* Bit k of of[i]: cuda:i and cuda:k may write to each other's memory. */
typedef struct {
    uint64_t of[SL_MAX_GPUS];
} sl_gpu_maps;

/* Where the slots lie in which a stage on `device` receives a hand-over: there, if that is a
 * GPU and all senders work on it, or on others that can map it; else in host memory. Chunks always:
 * stages/seat/chunk.h fills no other slots. */
sl_pool_kind sl_slot_kind(const sl_conf *conf, sl_handover h, const char *device,
                          const sl_gpu_maps *maps);
/* Bytes of one slot for videos of up to so many pixels and frames. */
size_t sl_slot_bytes(const sl_model *model, sl_handover h, int64_t pixels, int frames);

#endif
