/* merge.h - LoRA merged into a network's weights, and taken off again.
 *
 * A weight becomes the checkpoint's numbers plus the sum of w s U D and of the differences
 * (common/lora.h), in float32, rounded once to what the device keeps. It is never subtracted: what
 * the next set does not touch comes from the checkpoint again.
 *   in host memory   a touched tensor gets float32 memory of its own; the mapped one stays as it
 *                    was, and taking off is a pointer; but for matrices in 8 bits, as on a device
 *   on a device      in the weights' own memory; tensors that the last set has touched are read
 *                    from the files once more, all in one go, and are then the next set's to touch.
 *                    What the device keeps rounded (F32 or F8 files in bf16; 8 bits) is read when
 *                    it is merged, one by one; in 8 bits the sum is quantised once
 * So a switch takes at most what reading the touched tensors takes, and as much again for factors
 * and arithmetic; without a set before it, of a checkpoint in the device's dtype, nothing is read
 * but the factors.
 * Every rank of a team does this by itself, before the attempt begins. One thread, ctx's. */
#ifndef SL_MERGE_H
#define SL_MERGE_H

#include "common/lora.h"
#include "graphs/weights.h"

typedef struct sl_merge sl_merge;

/* For the weights of a network that has been loaded through `l`, with `ctx`: both outlive *out, and
 * so does the network, whose tensors change their data. *out is the caller's to close. Errors:
 * SL_NOMEM. */
sl_code sl_merge_open(sl_merge **out, sl_loader *l, sl_ctx *ctx, sl_err *err);
void sl_merge_close(sl_merge **m); /* the network is of no use any more; NULL is fine */

/* What a set needs. */
typedef struct {
    int tensors;        /* touched */
    size_t host_bytes;  /* their float32 memory where weights lie in host memory */
    size_t arena_bytes; /* ctx's arena while merging */
    int left_out;       /* the files' tensors without a place, */
    const char *left;   /* of which this is the first; the file's */
} sl_merge_sizes;

/* Do the files fit the network that `l` has been asked for (any loader: one that only inspects,
 * too)? lenient: tensors of the files that have no place are left out and counted. Errors, one
 * line: SL_ARG a tensor without a place; no tensor with one; SL_SHAPE, naming file, tensor, found
 * and wanted. */
sl_code sl_merge_check(const sl_loader *l, const sl_lora *const loras[], int n, bool lenient,
                       sl_merge_sizes *out, sl_err *err);

typedef struct {
    int tensors;         /* touched now */
    int restored;        /* that the last set had touched */
    uint64_t bytes_read; /* of the checkpoint */
    double seconds;
} sl_merge_figures;

/* From now on the weights are the checkpoint's with these n files, strength[i] times each; n 0: as
 * they are. The files may be closed afterwards. ctx's arena is empty. Errors: as sl_merge_check;
 * SL_CANCELLED, SL_NOMEM, SL_CUDA, SL_SYS: then the weights are of no set, and the next call brings
 * them in order whatever it asks for. */
sl_code sl_merge_use(sl_merge *m, const sl_lora *const loras[], const double strength[], int n,
                     bool lenient, sl_merge_figures *figures, sl_err *err);

#endif
