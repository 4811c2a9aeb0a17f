/* coding.h - numbers that a file stores in fewer bits than any sl_dtype has: 8-bit floats, and
 * GGUF's blocks. Decoding is exact float32 arithmetic, element by element. */
#ifndef SL_CODING_H
#define SL_CODING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* name, tag, elements of a block, bytes of a block, GGUF's number (-1: none)
 * Sources: F8 safetensors' README, OCP 8-bit floating point 1.0. */
#define SL_CODINGS(X)                                                                              \
    X(F8_E4M3, "F8_E4M3", 1, 1, -1)                                                                \
    X(F8_E5M2, "F8_E5M2", 1, 1, -1)

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
int sl_coding_block(sl_coding c); /* elements of a block: extents along rows are multiples of it */
int sl_coding_bytes(sl_coding c); /* bytes of a block */

/* Elements [first, first + n) of a run of blocks to float32. src may be unaligned. NaN where the
 * code says so. */
void sl_decode(float *dst, sl_coding c, const void *src, int64_t first, int64_t n);

#endif
