/* low_rank.c - y = x + scale * up down, of a LoRA's factors: a product of few columns, by OpenBLAS,
 * rows by rows of y, each thread its own. */
#include "kernels/cpu/cpu.h"

#include <string.h>

#include <cblas.h>

enum { ROWS = 32 }; /* of y that a thread makes at a time */

/* Row r of y from x, as float32. */
static void take_row(float *y, const sl_tensor *x, int64_t r, int64_t k)
{
    const char *from = (const char *)x->data + (size_t)(r * k) * sl_dtype_size(x->dtype);
    if ((const void *)y != (const void *)from) sl_cpu_to_floats(y, from, x->dtype, k);
}

void sl_cpu_low_rank_add(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *up,
                         const sl_tensor *down, float scale)
{
    const int64_t n = y->shape[0], k = y->shape[1], r = up ? up->shape[1] : 1;
    float *out = y->data;
    /* the second factor once, the first and a difference by rows */
    float *wide = sl_cpu_scratch(SL_SCRATCH_PANEL, (size_t)(up ? r * k : 1) * sizeof *wide);
    bool failed = !wide;
    if (wide && up) sl_cpu_to_floats(wide, down->data, down->dtype, r * k);
#pragma omp parallel if (n * k > 32768)
    {
        sl_cpu_alone();
        const size_t room = (size_t)(up ? ROWS * r : k);
        float *part = wide ? sl_cpu_scratch(SL_SCRATCH_SUMS, room * sizeof *part) : NULL;
        if (!part) {
#pragma omp atomic write
            failed = true;
        }
#pragma omp for schedule(static)
        for (int64_t at = 0; at < n; at += ROWS) {
            const int64_t rows = n - at < ROWS ? n - at : ROWS;
            if (!part) continue;
            for (int64_t i = at; i < at + rows; i++) {
                float *row = out + i * k;
                take_row(row, x, i, k);
                if (up) continue;
                sl_cpu_to_floats(
                    part, (const char *)down->data + (size_t)(i * k) * sl_dtype_size(down->dtype),
                    down->dtype, k);
                for (int64_t c = 0; c < k; c++) row[c] += scale * part[c];
            }
            if (!up) continue;
            sl_cpu_to_floats(part,
                             (const char *)up->data + (size_t)(at * r) * sl_dtype_size(up->dtype),
                             up->dtype, rows * r);
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)k, (int)r, scale,
                        part, (int)r, wide, (int)k, 1, out + at * k, (int)k);
        }
    }
    if (failed)
        sl_ctx_fail(ctx, SL_NOMEM, "low_rank_add: no memory for %lld factors", (long long)r);
}
