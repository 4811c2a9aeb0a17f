/* compare.h - two tensors of files held against each other, number by number. */
#ifndef SL_CLI_COMPARE_H
#define SL_CLI_COMPARE_H

#include "common/safetensors.h"

/* b against a, in double. A number that is NaN or infinite in one of them alone is infinitely far
 * from the other's. */
typedef struct {
    bool same;      /* every number is equal; NaN equals NaN */
    double rel_l2;  /* ||a - b|| / ||a||; of an a of zeros ||b|| */
    double largest; /* difference of two numbers, without its sign */
    int64_t at;     /* where that is, the first of its size: index of the dense tensor; -1 same */
    double of_a, of_b; /* the two numbers there */
    double psnr;       /* dB; of U8 against 255, else against the largest |a|; INFINITY: same */
} sl_difference;

/* Entries of any sl_dtype or coding; their dtypes may differ. Errors: SL_SHAPE their shapes
 * differ, or one has a dtype whose numbers are not read here; SL_NOMEM. */
sl_code sl_compare(sl_difference *out, const sl_st_entry *a, const sl_st_entry *b, sl_err *err);

#endif
