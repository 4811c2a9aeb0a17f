/* taps.h - tensors of chosen forwards into files, for --dump-blocks: blocks/NAME.safetensors of the
 * job's folder, NAME as graphs call it ("block.3.attn1"), behind "step.K." of another step than 0
 * and "uncond." of that branch. */
#ifndef SL_DENOISE_TAPS_H
#define SL_DENOISE_TAPS_H

#include "common/origin.h"
#include "common/taps.h"
#include "kernels/ops.h"

#define SL_TAP_NAME 96
#define SL_TAP_PIECES 4 /* tensors that come in pieces at a time */

/* A tensor whose rows come piece by piece. */
typedef struct {
    char name[SL_TAP_NAME];
    sl_st_writer *file; /* NULL: free */
    int64_t rows, of;   /* so far, in all */
} tap_piece;

typedef struct {
    char dir[SL_PATH]; /* "": nothing is kept */
    sl_taps which;
    char prefix[32]; /* of the forward that runs */
    const sl_origin *origin;
    tap_piece pieces[SL_TAP_PIECES];
} denoise_taps;

/* What the job asks for, into dir/blocks, which is made; nothing where it asks for none. *t is
 * zeroed, origin outlives it. Errors: SL_SYS; what sl_taps_parse says. */
sl_code sl_denoise_taps_open(denoise_taps *t, const sl_job *job, int blocks, const char *dir,
                             const sl_origin *origin, sl_err *err);
/* Let ctx tap the forward of this step and branch (step -1: what is made once a job), if it is
 * wanted; else nothing. */
void sl_denoise_taps_at(denoise_taps *t, sl_ctx *ctx, int step, int branch);
void sl_denoise_taps_off(sl_ctx *ctx);
/* The tap itself, for who plans one. */
sl_tap_fn sl_denoise_tap;
/* Files that are not whole go. */
void sl_denoise_taps_close(denoise_taps *t);

#endif
