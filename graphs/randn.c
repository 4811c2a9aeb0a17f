/* randn.c - torch's CPU normal numbers: mt19937, then Box-Muller in the order in which
 * torch draws. */
#include "graphs/randn.h"

#include <math.h>

/* The 32-bit Mersenne Twister, seeded as std::mt19937. */
void sl_rng_seed(sl_rng *t, uint64_t seed)
{
    t->s[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < 624; i++)
        t->s[i] = 1812433253u * (t->s[i - 1] ^ t->s[i - 1] >> 30) + i;
    t->at = 624;
}

static uint32_t next(sl_rng *t)
{
    if (t->at == 624) {
        for (int i = 0; i < 624; i++) {
            uint32_t y = (t->s[i] & 0x80000000u) | (t->s[(i + 1) % 624] & 0x7fffffffu);
            t->s[i] = t->s[(i + 397) % 624] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
        }
        t->at = 0;
    }
    uint32_t y = t->s[t->at++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

/* Uniform in [0, 1): 24 bits of one draw, and 53 bits of two (the first is the upper
 * half). */
static float uniform_float(sl_rng *t)
{
    return (float)(next(t) & 0xffffff) * 0x1p-24f;
}

static double uniform_double(sl_rng *t)
{
    uint64_t hi = next(t);
    return (double)((hi << 32 | next(t)) & 0x1fffffffffffff) * 0x1p-53;
}

/* normal_fill_16: the first eight uniforms give radii, the last eight angles; cosines
 * first, then sines. */
static void normal_16(float *x)
{
    for (int j = 0; j < 8; j++) {
        float radius = sqrtf(-2 * logf(1 - x[j]));
        float theta = 2.0f * (float)M_PI * x[j + 8];
        x[j] = radius * cosf(theta);
        x[j + 8] = radius * sinf(theta);
    }
}

/* Below 16 numbers torch draws one at a time, in double, and keeps each second one for
 * the next call. */
static void normal_few(float *out, int64_t n, sl_rng *t)
{
    for (int64_t i = 0; i < n; i += 2) {
        double u1 = uniform_double(t), u2 = uniform_double(t);
        double radius = sqrt(-2 * log1p(-u2)), theta = 2 * M_PI * u1;
        out[i] = (float)(radius * cos(theta));
        if (i + 1 < n) out[i + 1] = (float)(radius * sin(theta));
    }
}

void sl_rng_normal(sl_rng *t, float *out, int64_t n)
{
    if (n < 16) {
        normal_few(out, n, t);
        return;
    }
    for (int64_t i = 0; i < n; i++) out[i] = uniform_float(t);
    for (int64_t i = 0; i + 16 <= n; i += 16) normal_16(out + i);
    if (n % 16) { /* the last 16 once more, from fresh uniforms */
        for (int64_t i = n - 16; i < n; i++) out[i] = uniform_float(t);
        normal_16(out + n - 16);
    }
}

void sl_randn(float *out, int64_t n, uint64_t seed)
{
    sl_rng t;
    sl_rng_seed(&t, seed);
    sl_rng_normal(&t, out, n);
}
