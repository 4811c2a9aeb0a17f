/* e4m3.h - 8-bit floats with 4 bits of exponent and 3 of mantissa (OCP 8-bit floating point 1.0):
 * bias 7, no infinities, NaN only where all bits but the sign are set, largest 448, smallest 2^-9.
 * Straight-line code, so that loops over it become vectors. */
#ifndef SL_E4M3_H
#define SL_E4M3_H

#include <stdint.h>
#include <string.h>

#define SL_E4M3_MOST 448.0f

/* Exact: the 7 bits in place of a float32's, times 2^120. */
static inline float sl_from_e4m3(uint8_t code)
{
    uint32_t u = (code & 0x7fu) << 20;
    float x;
    memcpy(&x, &u, 4);
    x *= 0x1p120f;
    memcpy(&u, &x, 4);
    u |= (code & 0x7f) == 0x7f ? 0x7fc00000u : 0;
    u |= (code & 0x80u) << 24;
    memcpy(&x, &u, 4);
    return x;
}

/* To nearest even; above 448 and infinity are 448; NaN is 0x7f. As cvt.rn.satfinite of a GPU. */
static inline uint8_t sl_to_e4m3(float x)
{
    uint32_t u, a, small;
    memcpy(&u, &x, 4);
    const uint32_t sign = u >> 24 & 0x80, nan = (u & 0x7fffffffu) > 0x7f800000u;
    a = u & 0x7fffffffu;
    a = a > 0x43e00000u ? 0x43e00000u : a; /* 448 */
    /* below 2^-6: the sum's last place is 2^-9 */
    float rounded;
    memcpy(&rounded, &a, 4);
    rounded += 0x1p14f;
    memcpy(&small, &rounded, 4);
    small -= 0x46800000u;
    const uint32_t large = (a + 0x7ffffu + (a >> 20 & 1)) >> 20;
    const uint32_t code = a < 0x3c800000u ? small : large - (120u << 3);
    return (uint8_t)(nan ? 0x7f : sign | code);
}

#endif
