/* tensor.h - a typed, shaped view of memory that somebody else owns.
 *
 * Row-major, last index fastest. `pitch` is the distance, in elements, between
 * consecutive entries of the FIRST index; it equals the product of the other extents
 * unless the view is a block of columns of a wider matrix (sl_cols). Operations that
 * accept such views say so; all others require a dense tensor (sl_is_dense). The data may
 * lie in host or in device memory: the owner knows. */
#ifndef SL_TENSOR_H
#define SL_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

/* name, bytes an element, the tag that safetensors uses. Numbers travel in messages:
 * never reordered. */
#define SL_DTYPES(X)                                                                               \
    X(F32, 4, "F32")                                                                               \
    X(BF16, 2, "BF16") X(F16, 2, "F16") X(U8, 1, "U8") X(I64, 8, "I64") X(I32, 4, "I32")
/* Those and the codes of rows in 8 bits (kernels/ops.h, sl_eight), which in a file are a coding
 * (common/coding.h) and no dtype. */
#define SL_ALL_DTYPES(X) SL_DTYPES(X) X(E4M3, 1, "E4M3")

typedef enum {
#define X(name, bytes, tag) SL_##name,
    SL_ALL_DTYPES(X)
#undef X
        SL_DTYPE_COUNT
} sl_dtype;

#define SL_MAX_RANK 6

typedef struct {
    void *data;
    sl_dtype dtype;
    int rank; /* 1 .. SL_MAX_RANK; 0 marks an absent tensor */
    int64_t shape[SL_MAX_RANK];
    int64_t pitch; /* elements between consecutive entries of the first index */
} sl_tensor;

typedef uint16_t sl_bf16; /* the upper half of a float32 */
typedef uint16_t sl_f16;  /* IEEE binary16 */

size_t sl_dtype_size(sl_dtype dtype);
/* "F32"; "?" for a number that is no dtype */
const char *sl_dtype_tag(sl_dtype dtype);
bool sl_dtype_parse(const char *tag, sl_dtype *out); /* false: not a tag of SL_DTYPES */

/* A dense view of `data`. The shape is copied. rank 1 .. SL_MAX_RANK, extents >= 0
 * (asserted). */
sl_tensor sl_view(void *data, sl_dtype dtype, int rank, const int64_t *shape);
sl_tensor sl_view1(void *data, sl_dtype dtype, int64_t a);
sl_tensor sl_view2(void *data, sl_dtype dtype, int64_t a, int64_t b);
sl_tensor sl_view3(void *data, sl_dtype dtype, int64_t a, int64_t b, int64_t c);
sl_tensor sl_view4(void *data, sl_dtype dtype, int64_t a, int64_t b, int64_t c, int64_t d);

/* Sub-views; they share the data. Bounds are asserted. */
/* `count` entries of the first index, from `first` on. */
sl_tensor sl_rows(const sl_tensor *t, int64_t first, int64_t count);
/* `count` columns of a rank-2 tensor, from `first` on. */
sl_tensor sl_cols(const sl_tensor *t, int64_t first, int64_t count);
/* A dense t seen as [a, b]. */
sl_tensor sl_reshape2(const sl_tensor *t, int64_t a, int64_t b);

int64_t sl_count(const sl_tensor *t); /* elements */
size_t sl_bytes(const sl_tensor *t);  /* elements * size, dense */
bool sl_is_dense(const sl_tensor *t);
bool sl_same_shape(const sl_tensor *a, const sl_tensor *b);

/* "[16, 21, 60, 104]" into buf; returns buf. */
const char *sl_shape_text(const sl_tensor *t, char *buf, size_t size);

/* *bytes of a dense tensor of a shape from outside. Errors: SL_SHAPE a rank that is not 0
 * .. SL_MAX_RANK, a negative extent, or more bytes than fit in int64_t. */
sl_code sl_shape_bytes(sl_dtype dtype, int rank, const int64_t *shape, int64_t *bytes, sl_err *err);

/* Scalar conversions; to_* round to nearest even and keep NaN a NaN. */
float sl_from_bf16(sl_bf16 x);
sl_bf16 sl_to_bf16(float x);
float sl_from_f16(sl_f16 x);
sl_f16 sl_to_f16(float x);

/* n elements of a float dtype (F32, BF16, F16) in host memory to float32 and back.
 * Unaligned `src` is fine in sl_to_floats. Errors: SL_SHAPE for another dtype. */
sl_code sl_to_floats(float *dst, const void *src, sl_dtype dtype, int64_t n, sl_err *err);
sl_code sl_from_floats(void *dst, sl_dtype dtype, const float *src, int64_t n, sl_err *err);

/* Index of the first NaN or infinity in n host elements of a float dtype, or -1. */
int64_t sl_first_nonfinite(const void *src, sl_dtype dtype, int64_t n);

#endif
