/* taps.h - which tensors of the denoiser's forwards a dump keeps: --dump-blocks-of.
 *
 * Words, apart by spaces:
 *     steps=0,10-12      steps=all         (without: step 0)
 *     branches=cond,uncond                 (without: cond)
 *     blocks=0,3-5       blocks=all        (without: all)
 *     attention          of these blocks also what attention takes, and what each part adds */
#ifndef SL_TAPS_H
#define SL_TAPS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define SL_TAPS_MOST 1000 /* steps, and blocks */

typedef struct {
    uint64_t steps[SL_TAPS_MOST / 64 + 1], blocks[SL_TAPS_MOST / 64 + 1];
    bool branches[2]; /* cond, uncond */
    bool attention;
} sl_taps;

/* Errors: SL_ARG a word that is none of these, a step from `steps` on, a block from `blocks` on:
 * found and wanted. */
sl_code sl_taps_parse(sl_taps *t, const char *text, int steps, int blocks, sl_err *err);
bool sl_taps_step(const sl_taps *t, int step);
/* The tensor of a forward by its name: "block.3.attn1" is of block 3; one of no block is in. */
bool sl_taps_name(const sl_taps *t, const char *name);

#endif
