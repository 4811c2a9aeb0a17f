/* network.h - what the computing stages share around a network: open its weights, read a
 * job and its inputs, the loop, name bad weights. */
#ifndef SL_NETWORK_H
#define SL_NETWORK_H

#include "graphs/weights.h"
#include "stages/stage.h"

/* Weights of component `name` of the stage's checkpoint (safetensors stem `stem`), or
 * random ones (model.random), through ctx. *out is the caller's to close. */
sl_code sl_network_open(sl_loader **out, const sl_stage *st, sl_ctx *ctx, const char *name,
                        const char *stem, sl_err *err);

/* A result is not finite: say so, and if a weight of these loaders (NULL ends the list)
 * is the reason, name that weight instead. SL_NUMERIC. */
sl_code sl_network_blame(sl_loader *const loaders[], const sl_err *found, sl_err *err);

/* Read DIR/job.json of a JOB message. The job is the caller's to free. */
sl_code sl_network_job(const sl_msg_job *msg, sl_job *job, sl_err *err);

/* The loop of a stage that works on one job at a time, until it is drained: for each JOB,
 * job.json is read and `work` runs; an error is answered with FAILED, and slots that the
 * JOB's tickets name in `first` and `second` (pools, or NULL) are freed if they were not
 * opened. *err gets why it ended: drained, or an error of the device, after which its
 * context is of no use: the dispatcher starts another process. */
typedef sl_code sl_work_fn(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err);
void sl_network_serve(sl_stage *st, sl_work_fn *work, void *self, sl_pool *first, sl_pool *second,
                      sl_err *err);

/* Host copy of tensor `name`, float32, of exactly this shape, from an opened lease or,
 * when it is NULL, from an opened file. *out is malloc'd. */
sl_code sl_network_input(float **out, const sl_lease *lease, const sl_st *file, const char *name,
                         int rank, const int64_t *shape, sl_err *err);

/* An input of a job, where it was found. */
typedef struct {
    float *host; /* malloc'd, float32, finite; or NULL */
    /* a view into a slot of device memory, until the lease is dropped; rank 0: it is on
     * the host */
    sl_tensor device;
} sl_input;
/* As sl_network_input; from an opened lease of a pool of device memory, whose sender has
 * checked what it sent, it stays there. The caller frees out->host. */
sl_code sl_network_receive(sl_input *out, const sl_pool *pool, const sl_lease *lease,
                           const sl_st *file, const char *name, int rank, const int64_t *shape,
                           sl_err *err);
/* t (F32 or act dtype, dense, the input's shape, on ctx's device) = the input. Queued on
 * ctx's stream; in->host may be freed at once. */
void sl_network_place(sl_ctx *ctx, const sl_tensor *t, const sl_input *in);
/* What orders work on slots of `pool` for open and drop: ctx's stream if they are device
 * memory; NULL: the host has finished with them. */
cudaStream_t sl_network_stream(const sl_ctx *ctx, const sl_pool *pool);

/* Upload host float32 values, sl_count(t) of them, as t (F32 or act dtype). */
void sl_network_upload(sl_ctx *ctx, const sl_tensor *t, const float *values);

#endif
