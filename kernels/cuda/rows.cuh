/* rows.cuh - what kernels that work row by row share: rows of bf16 held in registers, sums over
 * them (norm.cu's), rows of any kind, vectors over the columns. */
#ifndef SL_ROWS_CUH
#define SL_ROWS_CUH

#include "kernels/cuda/device.cuh"

enum {
    ROW_THREADS = 128,
    ROW_WARPS = ROW_THREADS / 32,
    PLAIN_THREADS = 256,
    PLAIN_WARPS = PLAIN_THREADS / 32,
    MAX_VECTORS = 5
};

/* ---- rows in registers ---- */

/* Rows row .. row + R - 1 of x into v; zeros beyond the last row and the last column.
 * `nv` vectors a row. */
template <int NV, int R>
__device__ __forceinline__ void load_rows(uint4 (&v)[R][NV], const bf16 *x, int64_t pitch,
                                          int64_t row, int64_t rows, int nv)
{
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int j = 0; j < NV; j++) {
            int i = j * ROW_THREADS + (int)threadIdx.x;
            v[r][j] = make_uint4(0, 0, 0, 0);
            if (i < nv && row + r < rows) v[r][j] = *(const uint4 *)(x + (row + r) * pitch + i * 8);
        }
}

/* Sums over each row of (x - mean)^2, in every thread. */
template <int NV, int R>
__device__ __forceinline__ void row_squares(float (&sum)[R], const uint4 (&v)[R][NV],
                                            const float (&mean)[R], int nv,
                                            float (&shared)[R][ROW_WARPS])
{
#pragma unroll
    for (int r = 0; r < R; r++) {
        sum[r] = 0;
#pragma unroll
        for (int j = 0; j < NV; j++)
            if (j * ROW_THREADS + (int)threadIdx.x < nv) {
                float f[8];
                unpack8(f, v[r][j]);
#pragma unroll
                for (int k = 0; k < 8; k++) sum[r] += (f[k] - mean[r]) * (f[k] - mean[r]);
            }
    }
    block_sums<ROW_WARPS>(sum, shared);
}

/* ---- any row ---- */

/* A vector over the columns: F32 or BF16, or absent. */
struct columns {
    const void *data;
    bool floats;
};

static inline columns columns_of(const sl_tensor *t)
{
    columns v = {t ? t->data : NULL, t && t->dtype == SL_F32};
    return v;
}

__device__ __forceinline__ float at(columns v, int64_t c)
{
    return v.floats ? ((const float *)v.data)[c] : to_float(((const bf16 *)v.data)[c]);
}

/* A block's sum of (x - mean)^2, or of x where `plain`, over one row. */
template <class T>
__device__ float row_sum(const T *x, int64_t d, float mean, bool plain,
                         float (&shared)[1][PLAIN_WARPS])
{
    float sum[1] = {0};
    for (int64_t c = threadIdx.x; c < d; c += PLAIN_THREADS) {
        float e = to_float(x[c]) - mean;
        sum[0] += plain ? e : e * e;
    }
    block_sums<PLAIN_WARPS>(sum, shared);
    return sum[0];
}

#endif
