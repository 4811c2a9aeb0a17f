/* randn.c - torch's CPU normal numbers: mt19937, then Box-Muller in the order in which
 * torch draws. */
#include "graphs/randn.h"

#include <math.h>
#include <string.h>

/* The 32-bit Mersenne Twister, seeded as std::mt19937. */
void sl_rng_seed(sl_rng *t, uint64_t seed)
{
    t->s[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < 624; i++)
        t->s[i] = 1812433253u * (t->s[i - 1] ^ t->s[i - 1] >> 30) + i;
    t->at = 624;
    t->has_spare = false;
}

/* All 624 numbers of the state anew; none needs one that is made less than 227 places before it. */
static void twist(uint32_t s[624])
{
#define TWIST(i, next, other)                                                                      \
    do {                                                                                           \
        const uint32_t y = (s[i] & 0x80000000u) | (s[next] & 0x7fffffffu);                         \
        s[i] = s[other] ^ y >> 1 ^ (-(y & 1) & 0x9908b0dfu);                                       \
    } while (0)
    for (int i = 0; i < 227; i++) TWIST(i, i + 1, i + 397);
    for (int i = 227; i < 623; i++) TWIST(i, i + 1, i - 227);
    TWIST(623, 0, 396);
#undef TWIST
}

static uint32_t tempered(uint32_t y)
{
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

static uint32_t next(sl_rng *t)
{
    if (t->at == 624) {
        twist(t->s);
        t->at = 0;
    }
    return tempered(t->s[t->at++]);
}

/* Uniform in [0, 1): 24 bits of a draw each. */
static void uniform_floats(sl_rng *t, float *out, int64_t n)
{
    while (n) {
        if (t->at == 624) {
            twist(t->s);
            t->at = 0;
        }
        const int some = n < 624 - t->at ? (int)n : 624 - t->at;
        const uint32_t *s = t->s + t->at;
        for (int i = 0; i < some; i++)
            out[i] = (float)(int32_t)(tempered(s[i]) & 0xffffff) * 0x1p-24f;
        t->at += some, out += some, n -= some;
    }
}

/* Uniform in [0, 1): 53 bits of two draws, the first the upper half. */
static double uniform_double(sl_rng *t)
{
    uint64_t hi = next(t);
    return (double)((hi << 32 | next(t)) & 0x1fffffffffffff) * 0x1p-53;
}

/* ---- torch's logarithm, sine and cosine ----
 *
 * Those of Cephes (logf.c, sinf.c), as torch's vectors of eight evaluate them: where its compiler
 * joins a product and a sum, fmaf does here, so every number has torch's bits. */

static inline float polynomial(const float *p, int n, float x)
{
    float y = p[0];
    for (int i = 1; i < n; i++) y = fmaf(y, x, p[i]);
    return y;
}

/* ln x, 0 < x <= 1, by x = m 2^e with m in [sqrt(1/2), sqrt(2)). */
static inline float torch_log(float x)
{
    static const float P[9] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                               -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                               2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    uint32_t bits;
    float m;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t half = (bits & 0x7fffff) | 0x3f000000;
    memcpy(&m, &half, sizeof m); /* [1/2, 1) */
    const bool low = m < 0.707106781186547524f;
    const float e = (float)((int)(bits >> 23) - 126 - low);
    m = m - 1 + (low ? m : 0);
    const float z = m * m;
    float y = fmaf(polynomial(P, 9, m) * m, z, e * -2.12194440e-4f);
    y = fmaf(z, -0.5f, y);
    return fmaf(e, 0.693359375f, m + y);
}

typedef struct {
    float sine, cosine;
} direction;

/* x >= 0, by the distance to the nearest multiple of pi/2, in three parts. */
static inline direction torch_sincos(float x)
{
    static const float S[3] = {-1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f},
                       C[3] = {2.443315711809948e-5f, -1.388731625493765e-3f,
                               4.166664568298827e-2f};
    const int octant = ((int)(x * 1.27323954473516f) + 1) & ~1; /* 4 / pi */
    const float j = (float)octant;
    x = fmaf(j, -0.78515625f, x);
    x = fmaf(j, -2.4187564849853515625e-4f, x);
    x = fmaf(j, -3.77489497744594108e-8f, x);
    const float z = x * x, half = z * 0.5f;
    const float even = fmaf(polynomial(C, 3, z) * z, z, -half) + 1,
                odd = fmaf(polynomial(S, 3, z) * z, x, x);
    const float s = octant & 2 ? even : odd, c = octant & 2 ? odd : even;
    return (direction){octant & 4 ? -s : s, (octant + 2) & 4 ? -c : c};
}

/* normal_fill_16: the first eight uniforms give radii, the last eight angles; cosines
 * first, then sines. Torch adds a mean of 0, which makes -0 a 0. A vector of eight at once. */
static void normal_16(float *x)
{
    for (int j = 0; j < 8; j++) {
        const direction d = torch_sincos(2.0f * (float)M_PI * x[j + 8]);
        const float radius = sqrtf(-2 * torch_log(1 - x[j]));
        x[j] = radius * d.cosine + 0.0f;
        x[j + 8] = radius * d.sine + 0.0f;
    }
}

/* Below 16 numbers torch draws one at a time, in double, and keeps each second one for
 * the next time. */
static void normal_few(float *out, int64_t n, sl_rng *t)
{
    for (int64_t i = 0; i < n; i++) {
        if (t->has_spare) {
            out[i] = (float)t->spare;
            t->has_spare = false;
            continue;
        }
        double u1 = uniform_double(t), u2 = uniform_double(t);
        double radius = sqrt(-2 * log1p(-u2)), theta = 2 * M_PI * u1;
        out[i] = (float)(radius * cos(theta) + 0.0);
        t->spare = radius * sin(theta) + 0.0;
        t->has_spare = true;
    }
}

void sl_rng_normal(sl_rng *t, float *out, int64_t n)
{
    if (n < 16) {
        normal_few(out, n, t);
        return;
    }
    uniform_floats(t, out, n);
    for (int64_t i = 0; i + 16 <= n; i += 16) normal_16(out + i);
    if (n % 16) { /* the last 16 once more, from fresh uniforms */
        uniform_floats(t, out + n - 16, 16);
        normal_16(out + n - 16);
    }
}

void sl_randn(float *out, int64_t n, uint64_t seed)
{
    sl_rng t;
    sl_rng_seed(&t, seed);
    sl_rng_normal(&t, out, n);
}
