/* weights.h - one list of tensors per network, used five ways.
 *
 * A network's load function names each tensor once, with its shape, through sl_weight().
 * The loader behind it
 *   - reads a checkpoint component (sl_loader_file): checks dtype and shape, keeps or
 *     converts into what the device wants;
 *   - only counts bytes (sl_loader_plan), for `sluice plan`;
 *   - fills with random numbers of the right scale (sl_loader_random), for benchmarks at
 *     sizes whose weights are not here;
 *   - collects what is missing, misshapen or left over (sl_loader_inspect), for `sluice
 *     inspect`;
 *   - and tells of each as it is asked for (sl_loader_watch), for `sluice pack`.
 * Errors are sticky in the loader: the first is returned by sl_loader_finish, with the
 * tensor's name and both shapes.
 * In host memory (ops.h: host_memory, stored_matrices) matrices whose bytes are aligned stay
 * mapped as stored (F32, BF16, F16): nothing is copied, and processes share the page cache;
 * vectors become F32; convolutions are packed.
 * On a device matrices and vectors get the dtype of its activations (BF16) but for those
 * asked for in F32, and nothing is there before sl_loader_finish: it takes one allocation of
 * exactly what was asked for (each tensor at a multiple of 256 bytes), reads the files
 * through the plug-in's loader, or has random numbers made on the device, and sets the
 * data of the tensors where sl_weight left them. Matrices in 8 bits are read in float32 or bf16
 * into memory that is given back, a part of them at a time, and quantised there. Ranks of a team
 * can share the reading (sl_loader_share), but for what a file holds coded (FP8, GGUF): that each
 * makes itself.
 * The loader owns all of it: it outlives the network. After an error sl_weight still
 * gives shapes, with NULL data. */
#ifndef SL_WEIGHTS_H
#define SL_WEIGHTS_H

#include "common/safetensors.h"
#include "kernels/comm.h"

typedef struct sl_loader sl_loader;

/* What a tensor is for, which decides its form on a device.
 *   MATRIX       [N, K] of a linear layer, or an embedding table: the device's matrix dtype
 *   VECTOR       bias, norm weight: the device's activation dtype (F32 on the CPU)
 *   FLOAT        F32 everywhere (spec 2.1's fp32 list, VAE gammas, tables)
 *   CONV         [Co,Ci,kt,kh,kw], or rank 4 [Co,Ci,kh,kw] seen as kt = 1; packed for
 *                sl_conv3d
 *   MATRIX_F32   of a network in float32 everywhere (CLIP, spec 2.5): as MATRIX on the CPU,
 *                F32 on a device */
typedef enum { SL_W_MATRIX, SL_W_VECTOR, SL_W_FLOAT, SL_W_CONV, SL_W_MATRIX_F32 } sl_weight_kind;

/* Component `dir` with safetensors stem `stem`; memory through `ctx`, which must outlive
 * the loader. `label` ("transformer") is put before messages. *out is the caller's to
 * close, after the network is no longer used. */
sl_code sl_loader_file(sl_loader **out, sl_ctx *ctx, const char *dir, const char *stem,
                       const char *label, sl_err *err);
/* Likewise from a set that is open, taken over even if it fails: *st becomes NULL. */
sl_code sl_loader_set(sl_loader **out, sl_ctx *ctx, sl_st **st, const char *label, sl_err *err);
/* A loader that counts what the device of ctx->ops would take; without a checkpoint,
 * matrices count as random ones. */
sl_code sl_loader_plan(sl_loader **out, sl_ctx *ctx, const char *label, sl_err *err);
/* A loader of random numbers. A tensor's numbers depend on `seed`, its name and shape
 * alone, on every device: uniform with deviation 1/sqrt(K) for matrices and convolutions,
 * near 1 for norm weights and gammas, near 0 for biases. SL_W_MATRIX has the activations'
 * dtype. */
sl_code sl_loader_random(sl_loader **out, sl_ctx *ctx, uint64_t seed, const char *label,
                         sl_err *err);
/* Elements [first, first + n) of the same numbers for tensor `name` of t's shape, as
 * `dtype` (F32, BF16, F16) in host memory. */
void sl_weight_random(void *dst, sl_dtype dtype, uint64_t seed, const char *name,
                      const sl_tensor *t, int64_t first, int64_t n);
/* A loader that takes no device memory and has findings instead of errors for single
 * tensors. */
sl_code sl_loader_inspect(sl_loader **out, sl_ctx *ctx, const char *dir, const char *stem,
                          const char *label, sl_err *err);
sl_code sl_loader_inspect_set(sl_loader **out, sl_ctx *ctx, sl_st **st, const char *label,
                              sl_err *err);
void sl_loader_close(sl_loader **l);

/* From now on call fn for each tensor that a network asks for and the checkpoint holds as
 * it should, in that order. `stored` is as in the file: a mapped view, which lives as
 * long as the loader; so do the name and `from`, which sl_st_floats reads. A coded tensor's
 * `stored` is F32 and has no data. Without a checkpoint (planning, random) fn is called for
 * each tensor: `stored` is F32 and has no data, `from` is NULL, the name lives until fn
 * returns. */
typedef void sl_weight_fn(void *user, const char *name, const sl_tensor *stored,
                          const sl_st_entry *from);
void sl_loader_watch(sl_loader *l, sl_weight_fn *fn, void *user);
/* The tensors that nobody asked for, skipped ones among them, likewise, in the order of
 * names: what a copy must keep so that other programs can read it. `stored` has rank 0 if
 * its dtype is no sl_dtype. */
void sl_loader_rest(const sl_loader *l, sl_weight_fn *fn, void *user);

/* Want tensor `name` (a printf format) of this shape. *out: the tensor in device form,
 * data owned by the loader (NULL when planning or inspecting; on a device until
 * sl_loader_finish, which sets out->data: *out stays where it is until then). A
 * convolution of rank 4 comes out with rank 5. Errors (kept): SL_SHAPE missing,
 * misshapen, no float; SL_NOMEM. */
void sl_weight(sl_loader *l, sl_tensor *out, sl_weight_kind kind, int rank, const int64_t *shape,
               const char *name, ...) __attribute__((format(printf, 6, 7)));
/* Want matrix `name` [n, k] in 8 bits, a scale a row (kernels/ops.h): quantised once, from the
 * checkpoint's numbers in float32, or taken as it is from one in F8_E4M3, which has a scale a row,
 * one a tensor or none. Memory of its own on every device. *out and errors as of sl_weight. */
void sl_weight_eight(sl_loader *l, sl_eight *out, int64_t n, int64_t k, const char *name, ...)
    __attribute__((format(printf, 5, 6)));
/* A tensor that the checkpoint may hold and nobody needs (attn2.norm_added_q): not
 * reported as left over. */
void sl_weight_skip(sl_loader *l, const char *name, ...) __attribute__((format(printf, 2, 3)));

/* ---- the tensors that were asked for ---- */

/* A matrix or a vector, in the order asked for; convolutions have none. The loader's, but for the
 * network's own *out. */
typedef struct {
    char *name;
    sl_tensor *out;      /* the network's tensor, where sl_weight left it; in 8 bits the codes, */
    sl_tensor *scale;    /* and their scales; NULL: not in 8 bits */
    size_t stored_bytes; /* of the checkpoint; 0: random */
    bool exact;          /* *out holds the checkpoint's numbers without a rounding */
} sl_weight_place;
/* NULL past the last. Valid until the next sl_weight. */
const sl_weight_place *sl_loader_place(const sl_loader *l, int i);
/* Which one has this name; -1: none. */
int sl_loader_find(const sl_loader *l, const char *name);
/* After sl_loader_finish: bring the numbers of n places from the checkpoint once more, into to[i],
 * dense device memory of the place's number of elements, F32 or BF16 (rounded once), or *out of a
 * place in 8 bits, whose scales come with it; waits. On a device, and in host memory for places in
 * 8 bits. Errors: as sl_loader_finish. */
sl_code sl_loader_reload(sl_loader *l, int n, const int which[], const sl_tensor to[], sl_err *err);

/* True: the checkpoint holds a tensor of this name; so too when planning and for random
 * weights. For networks whose names differ with the version that wrote them (CLIP's
 * "vision_model." prefix). Marks nothing as used. */
bool sl_loader_has(const sl_loader *l, const char *name);

/* Before sl_loader_finish: the members of `team` read what they all ask for together, each byte
 * once, and pass it on from device to device (graphs/team_load.h). Every member makes the same
 * calls of sl_weight and sl_loader_finish, with the same checkpoint and a window of the same size,
 * at least 64 KiB a member; comm outlives sl_loader_finish, which begins `lane` unless it has
 * begun with this team's key: one attempt may load several networks. The caller ends it
 * (sl_comm_end) when all is loaded, and what ctx then says of another member's end does not matter
 * here. A member that fails or is lost ends the attempt and does not fail the others: they read
 * themselves what has not come, and log a warning. Not shared: convolutions and coded tensors
 * (F8), which come from the host; random weights; what stays mapped or is converted in host
 * memory, on the CPU. A NULL team, or one of 1: as without this call. */
void sl_loader_share(sl_loader *l, sl_comm *comm, sl_lane lane, const sl_team *team);

/* Bring what was asked for onto the device. The first error, or SL_OK; the context's
 * *cancel ends it with SL_CANCELLED. Tensors of the file that nobody asked for are not an
 * error; see sl_loader_unused. */
sl_code sl_loader_finish(sl_loader *l, sl_err *err);
/* How many tensors of the file nobody asked for; inspect lists them. */
int sl_loader_unused(const sl_loader *l);
/* Device memory taken (or planned), mapped weights counted. */
size_t sl_loader_bytes(const sl_loader *l);
/* Of sl_loader_bytes, what stays mapped from the file and is no memory of this process (on
 * the CPU). When planning without a checkpoint: what would, if it held the activations'
 * dtype. */
size_t sl_loader_mapped(const sl_loader *l);
int64_t sl_loader_parameters(const sl_loader *l);
/* What sl_loader_finish read from files onto a device, and how long it took, its
 * allocation included; zeros where weights stay mapped. */
void sl_loader_figures(const sl_loader *l, uint64_t *bytes_read, double *seconds);
/* What of it was shared. ranks 1: nothing. */
typedef struct {
    int ranks;
    uint64_t received, sent; /* bytes of weights, from device to device */
    int64_t waited_ns;       /* for the other members and their bytes */
    bool ended;              /* before all was there: the rest was read here */
} sl_loader_sharing;
sl_loader_sharing sl_loader_shared(const sl_loader *l);

/* inspect, after sl_loader_finish: the findings, one line each ("missing
 * blocks.0.attn1.to_q.weight [256, 256]", "misshapen NAME [3], want [4]", "unusable NAME
 * F64, want F32, BF16 or F16", "unexpected NAME [5120]"); NULL past the last. */
const char *sl_loader_finding(const sl_loader *l, int i);
/* Read every weight that was asked for and name the first, in the order of names, that
 * holds a NaN or infinity: SL_NUMERIC "transformer: blocks.1.ffn.net.2.weight has NaN at
 * [3, 17]"; SL_OK if all are finite. Reads the whole checkpoint. */
sl_code sl_loader_check_finite(sl_loader *l, sl_err *err);

#endif
