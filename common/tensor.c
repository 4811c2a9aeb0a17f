/* tensor.c - typed, shaped views and the conversions between float formats. */
#include "common/tensor.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const size_t SIZES[] = {
#define X(name, bytes, tag) bytes,
    SL_ALL_DTYPES(X)
#undef X
};
static const char *const TAGS[] = {
#define X(name, bytes, tag) tag,
    SL_ALL_DTYPES(X)
#undef X
};

size_t sl_dtype_size(sl_dtype dtype)
{
    return (unsigned)dtype < SL_DTYPE_COUNT ? SIZES[dtype] : 0;
}

const char *sl_dtype_tag(sl_dtype dtype)
{
    return (unsigned)dtype < SL_DTYPE_COUNT ? TAGS[dtype] : "?";
}

bool sl_dtype_parse(const char *tag, sl_dtype *out)
{
    for (int i = 0; i < SL_E4M3; i++)
        if (!strcmp(tag, TAGS[i])) {
            *out = (sl_dtype)i;
            return true;
        }
    return false;
}

sl_tensor sl_view(void *data, sl_dtype dtype, int rank, const int64_t *shape)
{
    sl_tensor t = {.data = data, .dtype = dtype, .rank = rank, .pitch = 1};
    assert(rank >= 1 && rank <= SL_MAX_RANK);
    for (int i = 0; i < rank; i++) {
        assert(shape[i] >= 0);
        t.shape[i] = shape[i];
        if (i) t.pitch *= shape[i];
    }
    return t;
}

sl_tensor sl_view1(void *data, sl_dtype dtype, int64_t a)
{
    return sl_view(data, dtype, 1, (int64_t[]){a});
}

sl_tensor sl_view2(void *data, sl_dtype dtype, int64_t a, int64_t b)
{
    return sl_view(data, dtype, 2, (int64_t[]){a, b});
}

sl_tensor sl_view3(void *data, sl_dtype dtype, int64_t a, int64_t b, int64_t c)
{
    return sl_view(data, dtype, 3, (int64_t[]){a, b, c});
}

sl_tensor sl_view4(void *data, sl_dtype dtype, int64_t a, int64_t b, int64_t c, int64_t d)
{
    return sl_view(data, dtype, 4, (int64_t[]){a, b, c, d});
}

/* data + elements, keeping NULL (a planned tensor has no memory yet). */
static void *advance(const sl_tensor *t, int64_t elements)
{
    return t->data ? (char *)t->data + elements * (int64_t)sl_dtype_size(t->dtype) : NULL;
}

sl_tensor sl_rows(const sl_tensor *t, int64_t first, int64_t count)
{
    sl_tensor v = *t;
    assert(t->rank >= 1 && first >= 0 && count >= 0 && first + count <= t->shape[0]);
    v.data = advance(t, first * t->pitch);
    v.shape[0] = count;
    return v;
}

sl_tensor sl_cols(const sl_tensor *t, int64_t first, int64_t count)
{
    sl_tensor v = *t;
    assert(t->rank == 2 && first >= 0 && count >= 0 && first + count <= t->shape[1]);
    v.data = advance(t, first);
    v.shape[1] = count;
    return v;
}

sl_tensor sl_reshape2(const sl_tensor *t, int64_t a, int64_t b)
{
    assert(sl_is_dense(t) && sl_count(t) == a * b);
    return sl_view2(t->data, t->dtype, a, b);
}

int64_t sl_count(const sl_tensor *t)
{
    int64_t n = t->rank ? 1 : 0;
    for (int i = 0; i < t->rank; i++) n *= t->shape[i];
    return n;
}

size_t sl_bytes(const sl_tensor *t)
{
    return (size_t)sl_count(t) * sl_dtype_size(t->dtype);
}

bool sl_is_dense(const sl_tensor *t)
{
    int64_t n = 1;
    for (int i = 1; i < t->rank; i++) n *= t->shape[i];
    return t->pitch == n || t->shape[0] <= 1;
}

bool sl_same_shape(const sl_tensor *a, const sl_tensor *b)
{
    if (a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->shape[i] != b->shape[i]) return false;
    return true;
}

const char *sl_shape_text(const sl_tensor *t, char *buf, size_t size)
{
    size_t at = 0;
    int n = snprintf(buf, size, "[");
    for (int i = 0; i < t->rank && n >= 0; i++) {
        at += (size_t)n;
        if (at >= size) return buf;
        n = snprintf(buf + at, size - at, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    }
    at += n > 0 ? (size_t)n : 0;
    if (at < size) snprintf(buf + at, size - at, "]");
    return buf;
}

sl_code sl_shape_bytes(sl_dtype dtype, int rank, const int64_t *shape, int64_t *bytes, sl_err *err)
{
    int64_t n = (int64_t)sl_dtype_size(dtype);
    if (rank < 0 || rank > SL_MAX_RANK)
        return sl_fail(err, SL_SHAPE, "tensor has %d dimensions, want 0 to %d", rank, SL_MAX_RANK);
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0)
            return sl_fail(err, SL_SHAPE, "tensor extent %lld is negative", (long long)shape[i]);
        if (__builtin_mul_overflow(n, shape[i], &n))
            return sl_fail(err, SL_SHAPE, "tensor is larger than 2^63 bytes");
    }
    *bytes = n;
    return SL_OK;
}

float sl_from_bf16(sl_bf16 x)
{
    uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

sl_bf16 sl_to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    uint32_t nan = (u >> 16) | 0x40, nearest = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
    /* both, then one: loops of it become vectors */
    return (sl_bf16)((u & 0x7fffffffu) > 0x7f800000u ? nan : nearest);
}

float sl_from_f16(sl_f16 h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 0x3ff, u;
    float f;
    if (e == 0) { /* zero or subnormal: m * 2^-24 */
        f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    u = sign | (e == 31 ? 0x7f800000u : (e + 112) << 23) | m << 13;
    memcpy(&f, &u, 4);
    return f;
}

sl_f16 sl_to_f16(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return sign | 0x7e00;  /* NaN */
    if (u >= 0x477ff000u) return sign | 0x7c00; /* rounds past 65504 */
    if (u < 0x38800000u) {                      /* subnormal: round |x| * 2^24 to an integer */
        float a;
        memcpy(&a, &u, 4);
        return sign | (uint16_t)lrintf(a * 0x1p24f);
    }
    u += 0xfffu + (u >> 13 & 1);
    return sign | (uint16_t)((u >> 13) - (112u << 10));
}

sl_code sl_to_floats(float *dst, const void *src, sl_dtype dtype, int64_t n, sl_err *err)
{
    const char *s = src;
    uint16_t h;
    switch (dtype) {
    case SL_F32: memcpy(dst, src, (size_t)n * 4); return SL_OK;
    case SL_BF16:
        for (int64_t i = 0; i < n; i++) memcpy(&h, s + 2 * i, 2), dst[i] = sl_from_bf16(h);
        return SL_OK;
    case SL_F16:
        for (int64_t i = 0; i < n; i++) memcpy(&h, s + 2 * i, 2), dst[i] = sl_from_f16(h);
        return SL_OK;
    default:
        return sl_fail(err, SL_SHAPE, "dtype %s found, want F32, BF16 or F16", sl_dtype_tag(dtype));
    }
}

sl_code sl_from_floats(void *dst, sl_dtype dtype, const float *src, int64_t n, sl_err *err)
{
    uint16_t *d = dst;
    switch (dtype) {
    case SL_F32: memcpy(dst, src, (size_t)n * 4); return SL_OK;
    case SL_BF16:
        for (int64_t i = 0; i < n; i++) d[i] = sl_to_bf16(src[i]);
        return SL_OK;
    case SL_F16:
        for (int64_t i = 0; i < n; i++) d[i] = sl_to_f16(src[i]);
        return SL_OK;
    default:
        return sl_fail(err, SL_SHAPE, "dtype %s found, want F32, BF16 or F16", sl_dtype_tag(dtype));
    }
}

int64_t sl_first_nonfinite(const void *src, sl_dtype dtype, int64_t n)
{
    const char *s = src;
    uint32_t mask = dtype == SL_F32 ? 0x7f800000u : dtype == SL_BF16 ? 0x7f80u : 0x7c00u;
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = 0;
        if (dtype == SL_F32) memcpy(&u, s + 4 * i, 4);
        else if (dtype == SL_BF16 || dtype == SL_F16) memcpy(&u, s + 2 * i, 2);
        else return -1;
        if ((u & mask) == mask) return i;
    }
    return -1;
}
