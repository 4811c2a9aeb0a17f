/* compare.c - two tensors of files held against each other, number by number. */
#include "stages/cli/compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define AT_ONCE 4096 /* numbers */

typedef struct {
    double a[AT_ONCE], b[AT_ONCE];
    float floats[AT_ONCE];
    double squares, squares_a, peak; /* sums so far; the largest |a| */
} comparison;

/* Integers [first, first + n) of an entry, which may be unaligned. */
static void integers(double *to, const sl_tensor *t, int64_t first, int64_t n)
{
    const size_t size = sl_dtype_size(t->dtype);
    const char *from = (const char *)t->data + (size_t)first * size;
    for (int64_t i = 0; i < n; i++, from += size) {
        int64_t wide = 0;
        int32_t narrow = 0;
        if (t->dtype == SL_I64) memcpy(&wide, from, sizeof wide);
        else if (t->dtype == SL_I32) memcpy(&narrow, from, sizeof narrow);
        to[i] = t->dtype == SL_U8 ? *(const uint8_t *)from : (double)wide + narrow;
    }
}

static bool is_integer(const sl_st_entry *e)
{
    return e->t.rank && (e->t.dtype == SL_U8 || e->t.dtype == SL_I32 || e->t.dtype == SL_I64);
}

static void numbers(comparison *c, double *to, const sl_st_entry *e, int64_t first, int64_t n)
{
    if (is_integer(e)) {
        integers(to, &e->t, first, n);
        return;
    }
    sl_st_floats(c->floats, e, first, n);
    for (int64_t i = 0; i < n; i++) to[i] = c->floats[i];
}

/* Numbers [first, first + n), which lie in c. */
static void add(sl_difference *d, comparison *c, int64_t first, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const double a = c->a[i], b = c->b[i];
        if (isfinite(a)) c->squares_a += a * a, c->peak = fmax(c->peak, fabs(a));
        if (a == b || (isnan(a) && isnan(b))) continue;
        const double far = isfinite(a) && isfinite(b) ? fabs(a - b) : INFINITY;
        c->squares += far * far;
        if (!d->same && far <= d->largest) continue;
        d->same = false;
        d->largest = far;
        d->at = first + i;
        d->of_a = a;
        d->of_b = b;
    }
}

static bool same_bytes(const sl_st_entry *a, const sl_st_entry *b)
{
    return a->t.rank && b->t.rank && a->t.dtype == b->t.dtype &&
           !memcmp(a->t.data, b->t.data, sl_bytes(&a->t));
}

static sl_code fits(const sl_st_entry *a, const sl_st_entry *b, sl_err *err)
{
    const sl_tensor *of_a = sl_st_shape(a), *of_b = sl_st_shape(b);
    char left[96], right[96];
    if (!of_a->rank || !of_b->rank)
        return sl_fail(err, SL_SHAPE, "dtype %s is not read here",
                       of_a->rank ? b->dtype : a->dtype);
    if (!sl_same_shape(of_a, of_b))
        return sl_fail(err, SL_SHAPE, "shapes %s and %s", sl_shape_text(of_a, left, sizeof left),
                       sl_shape_text(of_b, right, sizeof right));
    return SL_OK;
}

sl_code sl_compare(sl_difference *out, const sl_st_entry *a, const sl_st_entry *b, sl_err *err)
{
    *out = (sl_difference){.same = true, .at = -1, .psnr = INFINITY};
    sl_code rc = fits(a, b, err);
    if (rc || same_bytes(a, b)) return rc;
    comparison *c = calloc(1, sizeof *c);
    if (!c) return sl_fail(err, SL_NOMEM, "no memory");
    const int64_t n = sl_count(sl_st_shape(a));
    for (int64_t first = 0; first < n; first += AT_ONCE) {
        const int64_t some = n - first < AT_ONCE ? n - first : AT_ONCE;
        numbers(c, c->a, a, first, some);
        numbers(c, c->b, b, first, some);
        add(out, c, first, some);
    }
    if (!out->same) {
        const bool bytes = is_integer(a) && a->t.dtype == SL_U8;
        out->rel_l2 = sqrt(c->squares) / (c->squares_a > 0 ? sqrt(c->squares_a) : 1);
        out->psnr = 20 * log10(bytes ? 255 : c->peak) - 10 * log10(c->squares / (double)n);
    }
    free(c);
    return SL_OK;
}
