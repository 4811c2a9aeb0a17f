/* vmath.h - exponentials and activations as straight-line code, so that loops over them
 * vectorise.
 *
 * All take and give float32, pass NaN on, and are tested against libm in double
 * (tests/test_ops_matrix.c). */
#ifndef SL_VMATH_H
#define SL_VMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* 16 floats side by side; gcc and clang split them where registers are narrower. Loads
 * and stores may be unaligned. Never passed by value: that would tie the calling
 * convention to the instruction set. */
typedef float sl_v16 __attribute__((vector_size(64), aligned(4), may_alias));

/* a * b + c in one rounding where the machine has that, in two elsewhere. */
static inline float sl_fma(float a, float b, float c)
{
#ifdef __FP_FAST_FMAF
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* exp(x), at most 2 units in the last place off; 0 below -103.98, infinity above 88.73. x
 * = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for exp(r), then two exact scalings by
 * about 2^(n/2), so that results near both ends of the range come out right. */
static inline float sl_expf(float x)
{
    /* 1.5 * 2^23: adding it rounds to an integer, found in the low bits */
    const float magic = 12582912.0f;
    x = x < -105.0f ? -105.0f : x;
    x = x > 89.0f ? 89.0f : x;
    float shifted = sl_fma(x, 1.44269504f, magic);
    float n = shifted - magic;
    float r = sl_fma(n, -0.693359375f, x);
    r = sl_fma(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f; /* Cephes expf */
    p = sl_fma(p, r, 1.3981999507e-3f);
    p = sl_fma(p, r, 8.3334519073e-3f);
    p = sl_fma(p, r, 4.1665795894e-2f);
    p = sl_fma(p, r, 1.6666665459e-1f);
    p = sl_fma(p, r, 5.0000001201e-1f);
    p = sl_fma(p, r * r, r) + 1.0f;
    int32_t bits, half;
    memcpy(&bits, &shifted, 4);
    bits = (int32_t)((uint32_t)bits - 0x4b400000u);
    half = bits >> 1;
    uint32_t ua = (uint32_t)(half + 127) << 23, ub = (uint32_t)(bits - half + 127) << 23;
    float a, b;
    memcpy(&a, &ua, 4);
    memcpy(&b, &ub, 4);
    return p * a * b;
}

static inline float sl_siluf(float x)
{
    return x / (1.0f + sl_expf(-x));
}

/* 0.5 x (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3); since (1 + tanh u) / 2 = 1 / (1
 * + exp(-2u)), without cancellation. */
static inline float sl_gelu_tanhf(float x)
{
    float u2 = 1.5957691216057308f * (x + 0.044715f * x * x * x);
    return x / (1.0f + sl_expf(-u2));
}

/* erf(x), about 1 unit in the last place off: a polynomial near zero, 1 - exp(polynomial)
 * further out; both are computed, so that the loop around has no branch. Coefficients
 * after N. Juffa. */
static inline float sl_erff(float x)
{
    float t = fabsf(x), s = x * x;
    float r = sl_fma(-1.72853470e-5f, t, 3.83197126e-4f),
          u = sl_fma(-3.88396438e-3f, t, 2.42546219e-2f);
    r = sl_fma(r, s, u);
    r = sl_fma(r, t, -1.06777877e-1f);
    r = sl_fma(r, t, -6.34846687e-1f);
    r = sl_fma(r, t, -1.28717512e-1f);
    r = sl_fma(r, t, -t);
    float far = copysignf(1.0f - sl_expf(r), x);
    float p = -5.96761703e-4f;
    p = sl_fma(p, s, 4.99119423e-3f);
    p = sl_fma(p, s, -2.67681349e-2f);
    p = sl_fma(p, s, 1.12819925e-1f);
    p = sl_fma(p, s, -3.76125336e-1f);
    p = sl_fma(p, s, 1.28379166e-1f);
    float near = sl_fma(p, x, x);
    return t > 0.927734375f ? far : near;
}

/* 0.5 x (1 + erf(x / sqrt 2)). */
static inline float sl_gelu_erff(float x)
{
    return 0.5f * x * (1.0f + sl_erff(x * 0.70710678118654752f));
}

#endif
