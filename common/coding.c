/* coding.c - 8-bit floats by table, GGUF's blocks by their public layout. */
#include "common/coding.h"

#include <math.h>
#include <string.h>

#include "common/tensor.h"

static const struct {
    const char *tag;
    int elements, bytes;
} CODINGS[SL_CODING_COUNT] = {[SL_NOT_CODED] = {"", 1, 0},
#define X(name, tag, elements, bytes, number) [SL_##name] = {tag, elements, bytes},
                              SL_CODINGS(X)
#undef X
};

const char *sl_coding_tag(sl_coding c)
{
    return CODINGS[c].tag;
}

sl_coding sl_coding_of_tag(const char *tag)
{
    for (int c = 1; c < SL_CODING_COUNT; c++)
        if (!strcmp(tag, CODINGS[c].tag)) return (sl_coding)c;
    return SL_NOT_CODED;
}

int sl_coding_block(sl_coding c)
{
    return CODINGS[c].elements;
}

int sl_coding_bytes(sl_coding c)
{
    return CODINGS[c].bytes;
}

/* ---- 8-bit floats: sign, 4 or 5 bits of exponent, the rest mantissa ---- */

/* Bias 7, no infinities, NaN only where all bits but the sign are set. */
static float from_e4m3(unsigned code)
{
    const int e = code >> 3 & 15, m = code & 7;
    const float x = (code & 127) == 127 ? NAN
                    : e                 ? ldexpf((float)(8 + m), e - 10)
                                        : ldexpf((float)m, -9);
    return code & 128 ? -x : x;
}

/* The upper half of an IEEE binary16. */
static float from_e5m2(unsigned code)
{
    return sl_from_f16((sl_f16)(code << 8));
}

static void decode_f8(float *dst, const unsigned char *src, int64_t n, float (*from)(unsigned))
{
    float table[256];
    for (unsigned i = 0; i < 256; i++) table[i] = from(i);
    for (int64_t i = 0; i < n; i++) dst[i] = table[src[i]];
}

/* ---- ---- */

void sl_decode(float *dst, sl_coding c, const void *src, int64_t first, int64_t n)
{
    const unsigned char *p = src;
    switch (c) {
    case SL_F8_E4M3: decode_f8(dst, p + first, n, from_e4m3); return;
    case SL_F8_E5M2: decode_f8(dst, p + first, n, from_e5m2); return;
    case SL_NOT_CODED:
    case SL_CODING_COUNT: break;
    }
}
