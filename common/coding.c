/* coding.c - 8-bit floats by table, GGUF's blocks by their public layout. */
#include "common/coding.h"

#include <string.h>

#include "common/e4m3.h"
#include "common/tensor.h"

#define MOST 256 /* elements of a block */

static const struct {
    const char *tag;
    int elements, bytes, number;
} CODINGS[SL_CODING_COUNT] = {[SL_NOT_CODED] = {"", 1, 0, -1},
#define X(name, tag, elements, bytes, number) [SL_##name] = {tag, elements, bytes, number},
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

sl_coding sl_coding_of_number(int64_t number)
{
    for (int c = 1; c < SL_CODING_COUNT; c++)
        if (number >= 0 && CODINGS[c].number == number) return (sl_coding)c;
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

static float from_e4m3(unsigned code)
{
    return sl_from_e4m3((uint8_t)code);
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

/* ---- GGUF's blocks of 32: a scale, perhaps an offset, and codes of two halves ---- */

static float half_at(const unsigned char *p)
{
    return sl_from_f16((sl_f16)(p[0] | p[1] << 8));
}

/* Low and high four bits are elements j and j + 16. */
static void block_q4(float *y, const unsigned char *p, bool offset)
{
    const float d = half_at(p), m = offset ? half_at(p + 2) : 0;
    const unsigned char *q = p + (offset ? 4 : 2);
    for (int j = 0; j < 16; j++)
        for (int k = 0; k < 2; k++) {
            const int x = k ? q[j] >> 4 : q[j] & 15;
            y[j + 16 * k] = offset ? (float)x * d + m : (float)(x - 8) * d;
        }
}

/* As four bits, with the fifth of all elements in one word. */
static void block_q5(float *y, const unsigned char *p, bool offset)
{
    const float d = half_at(p), m = offset ? half_at(p + 2) : 0;
    const unsigned char *h = p + (offset ? 4 : 2), *q = h + 4;
    const uint32_t high = h[0] | (uint32_t)h[1] << 8 | (uint32_t)h[2] << 16 | (uint32_t)h[3] << 24;
    for (int j = 0; j < 16; j++)
        for (int k = 0; k < 2; k++) {
            const int x = (k ? q[j] >> 4 : q[j] & 15) | (int)(high >> (j + 16 * k) & 1) << 4;
            y[j + 16 * k] = offset ? (float)x * d + m : (float)(x - 16) * d;
        }
}

static void block_q8_0(float *y, const unsigned char *p)
{
    const float d = half_at(p);
    for (int j = 0; j < 32; j++) y[j] = (float)(int8_t)p[2 + j] * d;
}

/* ---- and of 256: scales of sub-blocks in few bits themselves ---- */

/* 16 scales and offsets of 4 bits, codes of 2 bits; 32 bytes hold 128 elements. */
static void block_q2_k(float *y, const unsigned char *p)
{
    const unsigned char *scales = p, *q = p + 16;
    const float d = half_at(p + 80), min = half_at(p + 82);
    for (int i = 0; i < 256; i++) {
        const int sc = scales[i / 16];
        const float dl = d * (float)(sc & 15), ml = min * (float)(sc >> 4);
        y[i] = dl * (float)(q[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) - ml;
    }
}

/* 16 scales of 6 bits, codes of 2 bits with a third in a mask. */
static void block_q3_k(float *y, const unsigned char *p)
{
    const unsigned char *mask = p, *q = p + 32, *s = p + 96;
    const float d = half_at(p + 108);
    for (int i = 0; i < 256; i++) {
        const int k = i / 16; /* 4 low bits in s[0..7], 2 high ones in s[8..11] */
        const int low = k < 8 ? s[k] & 15 : s[k - 8] >> 4, high = s[8 + k % 4] >> k / 4 * 2 & 3;
        const float dl = d * (float)((low | high << 4) - 32);
        const int code = q[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
        y[i] = dl * (float)(code - (mask[i % 32] >> i / 32 & 1 ? 0 : 4));
    }
}

/* Scale and offset, 6 bits each, of sub-block k of 8. */
static void scale_and_offset(const unsigned char *s, int k, int *scale, int *offset)
{
    *scale = k < 4 ? s[k] & 63 : (s[k + 4] & 15) | s[k - 4] >> 6 << 4;
    *offset = k < 4 ? s[k + 4] & 63 : s[k + 4] >> 4 | s[k] >> 6 << 4;
}

/* 8 sub-blocks of 32; two share their bytes. five: a fifth bit in 32 bytes before the codes. */
static void block_q45_k(float *y, const unsigned char *p, bool five)
{
    const float d = half_at(p), min = half_at(p + 2);
    const unsigned char *s = p + 4, *high = p + 16, *q = p + (five ? 48 : 16);
    for (int k = 0; k < 8; k++) {
        int scale, offset;
        scale_and_offset(s, k, &scale, &offset);
        const float dl = d * (float)scale, ml = min * (float)offset;
        for (int l = 0; l < 32; l++) {
            int x = k % 2 ? q[k / 2 * 32 + l] >> 4 : q[k / 2 * 32 + l] & 15;
            if (five) x |= (high[l] >> k & 1) << 4;
            y[32 * k + l] = dl * (float)x - ml;
        }
    }
}

/* 16 scales of 8 bits; 4 low bits of a code in 64 bytes a half, 2 high ones in 32. */
static void block_q6_k(float *y, const unsigned char *p)
{
    const float d = half_at(p + 208);
    for (int i = 0; i < 256; i++) {
        const int half = i / 128, k = i % 128 / 32, l = i % 32;
        const unsigned char *low = p + 64 * half, *high = p + 128 + 32 * half;
        const int x = (k < 2 ? low[l + 32 * k] & 15 : low[l + 32 * (k - 2)] >> 4) |
                      (high[l] >> 2 * k & 3) << 4;
        y[i] = d * (float)(int8_t)p[192 + i / 16] * (float)(x - 32);
    }
}

static void block(float *y, sl_coding c, const unsigned char *p)
{
    switch (c) {
    case SL_Q4_0: block_q4(y, p, false); return;
    case SL_Q4_1: block_q4(y, p, true); return;
    case SL_Q5_0: block_q5(y, p, false); return;
    case SL_Q5_1: block_q5(y, p, true); return;
    case SL_Q8_0: block_q8_0(y, p); return;
    case SL_Q2_K: block_q2_k(y, p); return;
    case SL_Q3_K: block_q3_k(y, p); return;
    case SL_Q4_K: block_q45_k(y, p, false); return;
    case SL_Q5_K: block_q45_k(y, p, true); return;
    case SL_Q6_K: block_q6_k(y, p); return;
    case SL_F8_E4M3:
    case SL_F8_E5M2:
    case SL_NOT_CODED:
    case SL_CODING_COUNT: return;
    }
}

void sl_decode(float *dst, sl_coding c, const void *src, int64_t first, int64_t n)
{
    const unsigned char *p = src;
    const int64_t size = sl_coding_block(c);
    float y[MOST];
    if (c == SL_F8_E4M3 || c == SL_F8_E5M2) {
        decode_f8(dst, p + first, n, c == SL_F8_E4M3 ? from_e4m3 : from_e5m2);
        return;
    }
    for (int64_t at = 0; at < n;) {
        const int64_t k = (first + at) / size, from = (first + at) % size;
        const int64_t m = n - at < size - from ? n - at : size - from;
        const unsigned char *b = p + k * sl_coding_bytes(c);
        if (m == size) block(dst + at, c, b);
        else {
            block(y, c, b);
            memcpy(dst + at, y + from, (size_t)m * sizeof *y);
        }
        at += m;
    }
}
