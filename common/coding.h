/* coding.h - numbers that a file stores in fewer bits than any sl_dtype has: 8-bit floats, and
 * GGUF's blocks. Decoding is exact float32 arithmetic, element by element. */
#ifndef SL_CODING_H
#define SL_CODING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* name, tag, elements of a block, bytes of a block, GGUF's number (-1: none)
 * Sources: F8 safetensors' README, OCP 8-bit floating point 1.0; the others ggml's
 * src/ggml-common.h (struct block_*) and src/ggml-quants.c (dequantize_row_*), with the order of
 * operations that is there and in gguf-py's quants.py. */
#define SL_CODINGS(X)                                                                              \
    X(F8_E4M3, "F8_E4M3", 1, 1, -1)                                                                \
    X(F8_E5M2, "F8_E5M2", 1, 1, -1)                                                                \
    X(Q4_0, "Q4_0", 32, 18, 2)                                                                     \
    X(Q4_1, "Q4_1", 32, 20, 3)                                                                     \
    X(Q5_0, "Q5_0", 32, 22, 6)                                                                     \
    X(Q5_1, "Q5_1", 32, 24, 7)                                                                     \
    X(Q8_0, "Q8_0", 32, 34, 8)                                                                     \
    X(Q2_K, "Q2_K", 256, 84, 10)                                                                   \
    X(Q3_K, "Q3_K", 256, 110, 11)                                                                  \
    X(Q4_K, "Q4_K", 256, 144, 12)                                                                  \
    X(Q5_K, "Q5_K", 256, 176, 13)                                                                  \
    X(Q6_K, "Q6_K", 256, 210, 14)

typedef enum {
    SL_NOT_CODED,
#define X(name, tag, elements, bytes, number) SL_##name,
    SL_CODINGS(X)
#undef X
        SL_CODING_COUNT
} sl_coding;

const char *sl_coding_tag(sl_coding c);
/* SL_NOT_CODED: no coding has this tag. */
sl_coding sl_coding_of_tag(const char *tag);
/* By GGUF's number; SL_NOT_CODED likewise. */
sl_coding sl_coding_of_number(int64_t number);
int sl_coding_block(sl_coding c); /* elements of a block: extents along rows are multiples of it */
int sl_coding_bytes(sl_coding c); /* bytes of a block */

/* Elements [first, first + n) of a run of blocks to float32. src may be unaligned. NaN where the
 * code says so. */
void sl_decode(float *dst, sl_coding c, const void *src, int64_t first, int64_t n);

#endif
