/* ops.c - the front of every operation: shapes, dtypes and aliasing are checked here once
 * for all bodies. */
#include "kernels/ops.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define ARENA_ALIGN 256

/* ---- context and memory ---- */

sl_code sl_ctx_open(sl_ctx *ctx, const sl_ops *ops, size_t arena_bytes, sl_err *err)
{
    sl_code rc;
    memset(ctx, 0, sizeof *ctx);
    ctx->ops = ops;
    if (ops->plan) {
        ctx->arena_bytes = SIZE_MAX;
        return SL_OK;
    }
    if (ops->open && (rc = ops->open(ctx, err))) {
        sl_ctx_close(ctx);
        return rc;
    }
    if (arena_bytes && (rc = sl_ctx_reserve(ctx, arena_bytes, err))) {
        sl_ctx_close(ctx);
        return rc;
    }
    return SL_OK;
}

void sl_ctx_close(sl_ctx *ctx)
{
    if (ctx->ops && !ctx->ops->plan) {
        if (ctx->arena) ctx->ops->free(ctx, ctx->arena);
        if (ctx->ops->close) ctx->ops->close(ctx);
    }
    memset(ctx, 0, sizeof *ctx);
}

sl_code sl_ctx_reserve(sl_ctx *ctx, size_t bytes, sl_err *err)
{
    if (ctx->ops->plan || bytes <= ctx->arena_bytes) return SL_OK;
    if (ctx->arena_used)
        return sl_fail(err, SL_INTERNAL, "arena: cannot grow to %zu bytes while %zu are in use",
                       bytes, ctx->arena_used);
    if (ctx->arena) ctx->ops->free(ctx, ctx->arena);
    ctx->arena_bytes = 0;
    ctx->arena = bytes <= PTRDIFF_MAX ? ctx->ops->alloc(ctx, bytes) : NULL;
    if (!ctx->arena && ctx->err.code) { /* the body knows more: how much is free */
        sl_code rc = ctx->err.code;
        if (err) *err = ctx->err;
        memset(&ctx->err, 0, sizeof ctx->err);
        return sl_context(err, rc, "arena");
    }
    if (!ctx->arena)
        return sl_fail(err, SL_NOMEM, "arena: no memory for %zu bytes on %s", bytes,
                       ctx->ops->name);
    ctx->arena_bytes = bytes;
    return SL_OK;
}

/* Another thread sets the flag, at any time. */
static bool asked_to_stop(const sl_ctx *ctx)
{
    return ctx->cancel && __atomic_load_n(ctx->cancel, __ATOMIC_RELAXED);
}

bool sl_ok(const sl_ctx *ctx)
{
    return ctx->err.code == SL_OK && !asked_to_stop(ctx);
}

bool sl_cancelled(sl_ctx *ctx)
{
    if (!asked_to_stop(ctx)) return false;
    sl_ctx_fail(ctx, SL_CANCELLED, "cancelled");
    return true;
}

sl_code sl_ctx_error(sl_ctx *ctx, sl_err *err)
{
    sl_cancelled(ctx); /* so that whoever stopped at a false sl_ok gets the reason */
    sl_code rc = ctx->err.code;
    if (err) *err = ctx->err;
    memset(&ctx->err, 0, sizeof ctx->err);
    ctx->arena_used = 0;
    return rc;
}

void sl_ctx_fail(sl_ctx *ctx, sl_code code, const char *fmt, ...)
{
    va_list ap;
    if (ctx->err.code != SL_OK) return;
    va_start(ap, fmt);
    vsnprintf(ctx->err.msg, sizeof ctx->err.msg, fmt, ap);
    va_end(ap);
    ctx->err.code = code;
}

sl_tensor sl_new(sl_ctx *ctx, sl_dtype dtype, int rank, const int64_t *shape)
{
    sl_tensor t = sl_view(NULL, dtype, rank, shape);
    sl_err err;
    int64_t bytes;
    if (ctx->err.code != SL_OK) return t;
    if (sl_shape_bytes(dtype, rank, shape, &bytes, &err)) {
        sl_ctx_fail(ctx, err.code, "%s", err.msg);
        return t;
    }
    size_t need = (size_t)bytes;
    /* only while planning: an arena is never that large */
    if (need > SIZE_MAX / 2 - ARENA_ALIGN - ctx->arena_used) {
        sl_ctx_fail(ctx, SL_NOMEM, "arena: %zu bytes in use and %zu more do not fit in memory",
                    ctx->arena_used, need);
        return t;
    }
    size_t end = ctx->arena_used + (need + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    if (end > ctx->arena_bytes && ctx->arena_used + need > ctx->arena_bytes) {
        char text[128];
        sl_ctx_fail(ctx, SL_NOMEM, "arena: %s %s needs %zu bytes, %zu of %zu are in use",
                    sl_dtype_tag(dtype), sl_shape_text(&t, text, sizeof text), need,
                    ctx->arena_used, ctx->arena_bytes);
        return t;
    }
    if (!ctx->ops->plan && need) t.data = ctx->arena + ctx->arena_used;
    ctx->arena_used = end;
    if (end > ctx->arena_peak) ctx->arena_peak = end;
    return t;
}

sl_tensor sl_new1(sl_ctx *ctx, sl_dtype dtype, int64_t a)
{
    return sl_new(ctx, dtype, 1, (int64_t[]){a});
}

sl_tensor sl_new2(sl_ctx *ctx, sl_dtype dtype, int64_t a, int64_t b)
{
    return sl_new(ctx, dtype, 2, (int64_t[]){a, b});
}

sl_tensor sl_new4(sl_ctx *ctx, sl_dtype dtype, int64_t a, int64_t b, int64_t c, int64_t d)
{
    return sl_new(ctx, dtype, 4, (int64_t[]){a, b, c, d});
}

sl_eight sl_new_eight(sl_ctx *ctx, int64_t rows, int64_t d)
{
    const sl_tensor codes = sl_new2(ctx, SL_E4M3, rows, d);
    return (sl_eight){codes, sl_new1(ctx, SL_F32, rows)};
}

sl_eight sl_eight_rows(const sl_eight *e, int64_t first, int64_t count)
{
    return (sl_eight){sl_rows(&e->codes, first, count), sl_rows(&e->scale, first, count)};
}

sl_keys_eight sl_new_keys_eight(sl_ctx *ctx, int64_t rows, int64_t width, int heads)
{
    const int64_t blocks = (rows + SL_EIGHT_KEYS - 1) / SL_EIGHT_KEYS, all = blocks * SL_EIGHT_KEYS;
    sl_keys_eight y = {.rows = rows};
    y.k = sl_new2(ctx, SL_U8, all, width);
    y.v = sl_new2(ctx, SL_E4M3, all, width);
    y.k_scale = sl_new2(ctx, SL_F32, heads, blocks);
    y.k_mean = sl_new1(ctx, SL_F32, width);
    y.v_mean = sl_new1(ctx, SL_F32, width);
    y.v_scale = sl_new1(ctx, SL_F32, width);
    return y;
}

sl_queries_eight sl_new_queries_eight(sl_ctx *ctx, int64_t rows, int64_t width, int heads)
{
    const sl_tensor codes = sl_new2(ctx, SL_U8, rows, width);
    return (sl_queries_eight){codes, sl_new2(ctx, SL_F32, rows, heads)};
}

sl_queries_eight sl_queries_eight_rows(const sl_queries_eight *q, int64_t first, int64_t count)
{
    return (sl_queries_eight){sl_rows(&q->codes, first, count), sl_rows(&q->scale, first, count)};
}

size_t sl_mark(const sl_ctx *ctx)
{
    return ctx->arena_used;
}

void sl_release(sl_ctx *ctx, size_t mark)
{
    if (mark < ctx->arena_used) ctx->arena_used = mark;
}

sl_dtype sl_act(const sl_ctx *ctx)
{
    return ctx->ops->act;
}

void *sl_device_alloc(sl_ctx *ctx, size_t bytes)
{
    if (ctx->err.code != SL_OK || ctx->ops->plan) return NULL;
    void *p = bytes <= PTRDIFF_MAX ? ctx->ops->alloc(ctx, bytes) : NULL;
    if (!p) sl_ctx_fail(ctx, SL_NOMEM, "no memory for %zu bytes on %s", bytes, ctx->ops->name);
    return p;
}

void sl_device_free(sl_ctx *ctx, void *p)
{
    if (p && !ctx->ops->plan) ctx->ops->free(ctx, p);
}

/* ---- checks ---- */

#define BIT(dtype) (1u << (dtype))
#define FLOATS (BIT(SL_F32) | BIT(SL_BF16) | BIT(SL_F16))
#define ANY ((1u << SL_DTYPE_COUNT) - 1)
#define ACT BIT(ctx->ops->act)
#define VECTOR (ACT | BIT(SL_F32))
#define ANY_RANK 0

typedef enum { DENSE, PITCHED } layout;

/* True: the operation may start; no error so far, nobody cancelled. */
static bool may_begin(sl_ctx *ctx)
{
    return ctx->err.code == SL_OK && !sl_cancelled(ctx);
}

static bool refuse_dtype(sl_ctx *ctx, const char *op, const char *arg, sl_dtype found,
                         unsigned wanted)
{
    char list[64] = "";
    for (int i = 0; i < SL_DTYPE_COUNT; i++)
        if (wanted & BIT(i)) {
            size_t at = strlen(list);
            snprintf(list + at, sizeof list - at, "%s%s", at ? " or " : "",
                     sl_dtype_tag((sl_dtype)i));
        }
    sl_ctx_fail(ctx, SL_SHAPE, "%s: %s is %s, want %s", op, arg, sl_dtype_tag(found), list);
    return false;
}

/* ---- predicates. Each is false only when ctx has failed with its message ---- */

/* True: t is there, has this rank (ANY_RANK: whatever), one of these dtypes, this layout,
 * and data unless planning. */
static bool is_tensor(sl_ctx *ctx, const char *op, const char *arg, const sl_tensor *t, int rank,
                      unsigned dtypes, layout lay)
{
    if (!t || t->rank < 1 || t->rank > SL_MAX_RANK) {
        sl_ctx_fail(ctx, SL_SHAPE, "%s: %s is absent", op, arg);
        return false;
    }
    if (rank && t->rank != rank) {
        char text[128];
        sl_ctx_fail(ctx, SL_SHAPE, "%s: %s is %s, want %d extents", op, arg,
                    sl_shape_text(t, text, sizeof text), rank);
        return false;
    }
    if (!(dtypes & BIT(t->dtype))) return refuse_dtype(ctx, op, arg, t->dtype, dtypes);
    int64_t row = 1;
    for (int i = 1; i < t->rank; i++) row *= t->shape[i];
    if (lay == DENSE && !sl_is_dense(t)) {
        sl_ctx_fail(ctx, SL_SHAPE, "%s: %s has rows of %lld at a pitch of %lld, want dense", op,
                    arg, (long long)row, (long long)t->pitch);
        return false;
    }
    if (t->shape[0] > 1 && t->pitch < row) {
        sl_ctx_fail(ctx, SL_SHAPE, "%s: %s has rows of %lld at a pitch of %lld: they overlap", op,
                    arg, (long long)row, (long long)t->pitch);
        return false;
    }
    if (!t->data && !ctx->ops->plan && sl_count(t) > 0) {
        sl_ctx_fail(ctx, SL_ARG, "%s: %s has no data", op, arg);
        return false;
    }
    return true;
}

static bool has_extents(sl_ctx *ctx, const char *op, const char *arg, const sl_tensor *t, int rank,
                        const int64_t *want)
{
    sl_tensor w = {.rank = rank};
    for (int i = 0; i < rank; i++) w.shape[i] = want[i];
    if (sl_same_shape(t, &w)) return true;
    char found[128], wanted[128];
    sl_ctx_fail(ctx, SL_SHAPE, "%s: %s is %s, want %s", op, arg,
                sl_shape_text(t, found, sizeof found), sl_shape_text(&w, wanted, sizeof wanted));
    return false;
}
#define HAS_EXTENTS(op, arg, t, ...)                                                               \
    has_extents(ctx, op, arg, t, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),        \
                (int64_t[]){__VA_ARGS__})

static bool is_like(sl_ctx *ctx, const char *op, const char *arg, const sl_tensor *t,
                    const sl_tensor *as)
{
    return has_extents(ctx, op, arg, t, as->rank, as->shape);
}

/* True: `found` lies in lo .. hi; `what` is "heads", "x's extent 1" and the like. */
static bool is_in_range(sl_ctx *ctx, const char *op, const char *what, int64_t found, int64_t lo,
                        int64_t hi)
{
    if (found >= lo && found <= hi) return true;
    if (hi == INT64_MAX)
        sl_ctx_fail(ctx, SL_SHAPE, "%s: %s is %lld, want at least %lld", op, what, (long long)found,
                    (long long)lo);
    else
        sl_ctx_fail(ctx, SL_SHAPE, "%s: %s is %lld, want %lld to %lld", op, what, (long long)found,
                    (long long)lo, (long long)hi);
    return false;
}

static bool is_multiple(sl_ctx *ctx, const char *op, const char *what, int64_t found, int64_t by)
{
    if (found % by == 0) return true;
    sl_ctx_fail(ctx, SL_SHAPE, "%s: %s is %lld, want a multiple of %lld", op, what,
                (long long)found, (long long)by);
    return false;
}

/* Bytes from the first element to the end of the last. */
static uintptr_t span(const sl_tensor *t)
{
    int64_t row = 1;
    for (int i = 1; i < t->rank; i++) row *= t->shape[i];
    return sl_count(t) ? (uintptr_t)((t->shape[0] - 1) * t->pitch + row) * sl_dtype_size(t->dtype)
                       : 0;
}

/* True: two tensors share a byte. Blocks of different columns of one matrix do not. */
static bool overlaps(const sl_tensor *a, const sl_tensor *b)
{
    uintptr_t pa = (uintptr_t)a->data, pb = (uintptr_t)b->data;
    if (!pa || !pb || !span(a) || !span(b)) return false;
    if (pa + span(a) <= pb || pb + span(b) <= pa) return false;
    size_t size = sl_dtype_size(a->dtype);
    if (a->rank == 2 && b->rank == 2 && a->dtype == b->dtype && a->pitch == b->pitch &&
        a->pitch > 0) {
        uintptr_t pitch = (uintptr_t)a->pitch * size;
        /* b's first column, seen from a's */
        uintptr_t from = pb >= pa ? (pb - pa) % pitch : (pitch - (pa - pb) % pitch) % pitch;
        return from < (uintptr_t)a->shape[1] * size || from + (uintptr_t)b->shape[1] * size > pitch;
    }
    return true;
}

static bool is_apart(sl_ctx *ctx, const char *op, const char *out, const sl_tensor *y,
                     const char *in, const sl_tensor *x)
{
    if (!x || !overlaps(y, x)) return true;
    sl_ctx_fail(ctx, SL_ARG, "%s: %s overlaps %s", op, out, in);
    return false;
}

/* True: y is x, or the two share nothing. */
static bool is_same_or_apart(sl_ctx *ctx, const char *op, const char *out, const sl_tensor *y,
                             const char *in, const sl_tensor *x)
{
    if (y->data == x->data && y->dtype == x->dtype &&
        (y->pitch == x->pitch || (sl_is_dense(y) && sl_is_dense(x))))
        return true;
    if (!overlaps(y, x)) return true;
    sl_ctx_fail(ctx, SL_ARG, "%s: %s overlaps %s without being it", op, out, in);
    return false;
}

/* Calls the body, unless planning. */
#define BODY(op_, ...)                                                                             \
    do {                                                                                           \
        if (ctx->ops->plan) break;                                                                 \
        if (ctx->ops->op_) ctx->ops->op_(__VA_ARGS__);                                             \
        else sl_ctx_fail(ctx, SL_INTERNAL, "%s: %s does not have it", #op_, ctx->ops->name);       \
    } while (0)

/* Before an operation that waits on the host: the stream may wait for a rank that has died. */
static bool may_wait(sl_ctx *ctx)
{
    if (ctx->settle && !ctx->ops->plan) ctx->settle(ctx);
    return sl_ok(ctx);
}

/* ---- movement and elementwise ---- */

void sl_upload(sl_ctx *ctx, const sl_tensor *dst, const void *host)
{
    if (!may_begin(ctx) || !is_tensor(ctx, "upload", "dst", dst, ANY_RANK, ANY, DENSE)) return;
    if (may_wait(ctx)) BODY(upload, ctx, dst, host);
}

void sl_download(sl_ctx *ctx, void *host, const sl_tensor *src)
{
    if (!may_begin(ctx) || !is_tensor(ctx, "download", "src", src, ANY_RANK, ANY, DENSE)) return;
    if (may_wait(ctx)) BODY(download, ctx, host, src);
}

void sl_sync(sl_ctx *ctx)
{
    if (!may_begin(ctx)) return;
    if (may_wait(ctx)) BODY(sync, ctx);
}

void sl_tap(sl_ctx *ctx, const char *name, const sl_tensor *t)
{
    if (ctx->tap && !ctx->ops->plan && may_begin(ctx)) ctx->tap(ctx->tap_user, ctx, name, t);
}

void sl_zero(sl_ctx *ctx, const sl_tensor *y)
{
    if (!may_begin(ctx) || !is_tensor(ctx, "zero", "y", y, ANY_RANK, ANY, DENSE)) return;
    BODY(zero, ctx, y);
}

void sl_copy(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    static const char op[] = "copy";
    if (!may_begin(ctx) ||
        !is_tensor(ctx, op, "x", x, ANY_RANK, ANY, x && x->rank == 2 ? PITCHED : DENSE))
        return;
    if (!is_tensor(ctx, op, "y", y, x->rank, FLOATS & BIT(x->dtype) ? FLOATS : BIT(x->dtype),
                   x->rank == 2 ? PITCHED : DENSE))
        return;
    if (!is_like(ctx, op, "y", y, x) || !is_same_or_apart(ctx, op, "y", y, "x", x)) return;
    BODY(copy, ctx, y, x);
}

static bool add_checked(sl_ctx *ctx, const char *op, const sl_tensor *y, const sl_tensor *a,
                        const sl_tensor *b)
{
    return may_begin(ctx) && is_tensor(ctx, op, "y", y, ANY_RANK, VECTOR, DENSE) &&
           is_tensor(ctx, op, "a", a, y->rank, VECTOR, DENSE) &&
           is_tensor(ctx, op, "b", b, y->rank, VECTOR, DENSE) && is_like(ctx, op, "a", a, y) &&
           is_like(ctx, op, "b", b, y) && is_same_or_apart(ctx, op, "y", y, "a", a) &&
           is_same_or_apart(ctx, op, "y", y, "b", b);
}

void sl_add(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b)
{
    if (add_checked(ctx, "add", y, a, b)) BODY(add, ctx, y, a, b);
}

void sl_sub(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b)
{
    if (add_checked(ctx, "sub", y, a, b)) BODY(sub, ctx, y, a, b);
}

void sl_silu(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    static const char op[] = "silu";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "x", x, ANY_RANK, VECTOR, DENSE) ||
        !is_tensor(ctx, op, "y", y, x->rank, VECTOR, DENSE) || !is_like(ctx, op, "y", y, x) ||
        !is_same_or_apart(ctx, op, "y", y, "x", x))
        return;
    BODY(silu, ctx, y, x);
}

void sl_geglu(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b)
{
    static const char op[] = "geglu";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "a", a, ANY_RANK, ACT, DENSE) ||
        !is_tensor(ctx, op, "b", b, a->rank, ACT, DENSE) ||
        !is_tensor(ctx, op, "y", y, a->rank, ACT, DENSE) || !is_like(ctx, op, "b", b, a) ||
        !is_like(ctx, op, "y", y, a) || !is_same_or_apart(ctx, op, "y", y, "a", a) ||
        !is_same_or_apart(ctx, op, "y", y, "b", b))
        return;
    BODY(geglu, ctx, y, a, b);
}

void sl_embed(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *table, const int32_t *ids)
{
    static const char op[] = "embed";
    if (!may_begin(ctx) ||
        !is_tensor(ctx, op, "table", table, 2, ctx->ops->stored_matrices ? FLOATS : VECTOR,
                   DENSE) ||
        !is_tensor(ctx, op, "y", y, 2, ACT, DENSE) ||
        !HAS_EXTENTS(op, "y", y, y->shape[0], table->shape[1]) ||
        !is_apart(ctx, op, "y", y, "table", table))
        return;
    for (int64_t i = 0; !ctx->ops->plan && i < y->shape[0]; i++)
        if (ids[i] < 0 || ids[i] >= table->shape[0]) {
            sl_ctx_fail(ctx, SL_ARG, "embed: id %d at position %lld, want 0 to %lld", (int)ids[i],
                        (long long)i, (long long)table->shape[0] - 1);
            return;
        }
    BODY(embed, ctx, y, table, ids);
}

/* ---- matrices ---- */

/* y of x w^T + b; `arg` is what the caller calls x. */
static bool linear_checked(sl_ctx *ctx, const char *op, const char *arg, const sl_tensor *y,
                           const sl_tensor *x, const sl_tensor *w, const sl_tensor *b)
{
    char columns[16];
    snprintf(columns, sizeof columns, "%s's columns", arg);
    if (!may_begin(ctx) || !is_tensor(ctx, op, arg, x, 2, VECTOR, PITCHED)) return false;
    unsigned matrix = ctx->ops->stored_matrices ? FLOATS : BIT(x->dtype);
    return is_tensor(ctx, op, "y", y, 2, BIT(x->dtype), PITCHED) &&
           is_tensor(ctx, op, "w", w, 2, matrix, DENSE) &&
           is_in_range(ctx, op, columns, x->shape[1], 1, INT64_MAX) &&
           HAS_EXTENTS(op, "w", w, w->shape[0], x->shape[1]) &&
           HAS_EXTENTS(op, "y", y, x->shape[0], w->shape[0]) &&
           (!b || (is_tensor(ctx, op, "b", b, 1, VECTOR, DENSE) &&
                   HAS_EXTENTS(op, "b", b, w->shape[0]))) &&
           is_apart(ctx, op, "y", y, arg, x) && is_apart(ctx, op, "y", y, "w", w) &&
           is_apart(ctx, op, "y", y, "b", b);
}

void sl_linear(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
               const sl_tensor *b, sl_activation activation)
{
    static const char op[] = "linear";
    if (!linear_checked(ctx, op, "x", y, x, w, b) ||
        !is_in_range(ctx, op, "activation", activation, SL_ACT_NONE, SL_ACT_SILU))
        return;
    BODY(linear, ctx, y, x, w, b, activation);
}

void sl_low_rank_add(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *up,
                     const sl_tensor *down, float scale)
{
    static const char op[] = "low_rank_add";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "y", y, 2, VECTOR, DENSE) ||
        !is_tensor(ctx, op, "x", x, 2, ctx->ops->stored_matrices ? FLOATS : VECTOR, DENSE) ||
        !is_like(ctx, op, "x", x, y) || !is_tensor(ctx, op, "down", down, 2, FLOATS, DENSE))
        return;
    const int64_t r = up ? down->shape[0] : 0;
    if (up ? !is_tensor(ctx, op, "up", up, 2, BIT(down->dtype), DENSE) ||
                 !has_extents(ctx, op, "up", up, 2, (int64_t[]){y->shape[0], r}) ||
                 !has_extents(ctx, op, "down", down, 2, (int64_t[]){r, y->shape[1]}) ||
                 !is_in_range(ctx, op, "the rank", r, 1, INT32_MAX)
           : !is_like(ctx, op, "down", down, y))
        return;
    if (!is_same_or_apart(ctx, op, "y", y, "x", x) || !is_apart(ctx, op, "y", y, "up", up) ||
        !is_apart(ctx, op, "y", y, "down", down))
        return;
    BODY(low_rank_add, ctx, y, x, up, down, scale);
}

/* x and y [N, d] of one of these dtypes, d >= 1; y is x or apart. */
static bool rows_checked(sl_ctx *ctx, const char *op, const sl_tensor *y, const sl_tensor *x,
                         unsigned dtypes, layout lay)
{
    return may_begin(ctx) && is_tensor(ctx, op, "x", x, 2, dtypes, lay) &&
           is_tensor(ctx, op, "y", y, 2, BIT(x->dtype), lay) && is_like(ctx, op, "y", y, x) &&
           is_in_range(ctx, op, "x's columns", x->shape[1], 1, INT64_MAX) &&
           is_same_or_apart(ctx, op, "y", y, "x", x);
}

/* True: v is a vector over the columns of x. */
static bool is_vector(sl_ctx *ctx, const char *op, const char *arg, const sl_tensor *v,
                      const sl_tensor *x, unsigned dtypes)
{
    return is_tensor(ctx, op, arg, v, 1, dtypes, DENSE) && HAS_EXTENTS(op, arg, v, x->shape[1]);
}

void sl_layernorm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                  const sl_tensor *b, float eps)
{
    static const char op[] = "layernorm";
    if (!rows_checked(ctx, op, y, x, VECTOR, DENSE)) return;
    if ((w || b) &&
        (!is_vector(ctx, op, "w", w, x, VECTOR) || !is_vector(ctx, op, "b", b, x, VECTOR)))
        return;
    BODY(layernorm, ctx, y, x, w, b, eps);
}

void sl_layernorm_modulate(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                           const sl_tensor *scale, const sl_tensor *shift, float eps)
{
    static const char op[] = "layernorm_modulate";
    if (!rows_checked(ctx, op, y, x, ACT, DENSE) ||
        !is_vector(ctx, op, "scale", scale, x, BIT(SL_F32)) ||
        !is_vector(ctx, op, "shift", shift, x, BIT(SL_F32)))
        return;
    BODY(layernorm_modulate, ctx, y, x, scale, shift, eps);
}

void sl_rmsnorm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w, float eps)
{
    static const char op[] = "rmsnorm";
    if (!rows_checked(ctx, op, y, x, ACT, PITCHED) || !is_vector(ctx, op, "w", w, x, VECTOR))
        return;
    BODY(rmsnorm, ctx, y, x, w, eps);
}

/* The norm's weights, and the rotation of x's rows. */
static bool rope_checked(sl_ctx *ctx, const char *op, const sl_tensor *x, const sl_tensor *w,
                         const sl_tensor *cos, const sl_tensor *sin, int heads)
{
    return is_vector(ctx, op, "w", w, x, VECTOR) &&
           is_in_range(ctx, op, "heads", heads, 1, INT64_MAX) &&
           is_multiple(ctx, op, "x's columns", x->shape[1], 2 * (int64_t)heads) &&
           is_tensor(ctx, op, "cos", cos, 2, BIT(SL_F32), DENSE) &&
           is_tensor(ctx, op, "sin", sin, 2, BIT(SL_F32), DENSE) &&
           HAS_EXTENTS(op, "cos", cos, x->shape[0], x->shape[1] / heads / 2) &&
           HAS_EXTENTS(op, "sin", sin, x->shape[0], x->shape[1] / heads / 2);
}

void sl_rmsnorm_rope(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                     float eps, const sl_tensor *cos, const sl_tensor *sin, int heads)
{
    static const char op[] = "rmsnorm_rope";
    if (rows_checked(ctx, op, y, x, ACT, PITCHED) && rope_checked(ctx, op, x, w, cos, sin, heads))
        BODY(rmsnorm_rope, ctx, y, x, w, eps, cos, sin, heads);
}

void sl_gated_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *gate)
{
    static const char op[] = "gated_add";
    if (!rows_checked(ctx, op, y, x, ACT, DENSE) ||
        !is_vector(ctx, op, "gate", gate, x, BIT(SL_F32)))
        return;
    BODY(gated_add, ctx, x, y, gate);
}

/* The residual stream x, the branch y that is added to it, and its gate or NULL. */
static bool branch_checked(sl_ctx *ctx, const char *op, const sl_tensor *x, const sl_tensor *y,
                           const sl_tensor *gate)
{
    return rows_checked(ctx, op, y, x, ACT, DENSE) &&
           (!gate || is_vector(ctx, op, "gate", gate, x, BIT(SL_F32))) &&
           is_apart(ctx, op, "x", x, "y", y);
}

/* x += y * gate */
static void add_branch(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *gate)
{
    if (gate) sl_gated_add(ctx, x, y, gate);
    else sl_add(ctx, x, x, y);
}

bool sl_linear_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *a,
                   const sl_tensor *w, const sl_tensor *b, const sl_tensor *gate)
{
    static const char op[] = "linear_add";
    if (!linear_checked(ctx, op, "a", y, a, w, b) || !branch_checked(ctx, op, x, y, gate) ||
        !is_apart(ctx, op, "x", x, "a", a) || !is_apart(ctx, op, "x", x, "w", w))
        return false;
    if (!ctx->ops->plan && ctx->ops->linear_add && ctx->ops->linear_add(ctx, x, y, a, w, b, gate))
        return true;
    sl_linear(ctx, y, a, w, b, SL_ACT_NONE);
    add_branch(ctx, x, y, gate);
    return false;
}

/* What both attentions check: all but the bias. name: of k, of v, of k's rows. */
static bool attention_checked(sl_ctx *ctx, const char *op, const sl_tensor *o, const sl_tensor *q,
                              const sl_tensor *k, const sl_tensor *v, int heads,
                              const char *const name[3])
{
    if (!may_begin(ctx) || !is_tensor(ctx, op, "q", q, 2, VECTOR, PITCHED)) return false;
    const unsigned dtype = BIT(q->dtype);
    const int64_t d = q->shape[1];
    return is_tensor(ctx, op, name[0], k, 2, dtype, PITCHED) &&
           is_tensor(ctx, op, name[1], v, 2, dtype, PITCHED) &&
           is_tensor(ctx, op, "o", o, 2, dtype, PITCHED) &&
           is_in_range(ctx, op, "heads", heads, 1, INT64_MAX) &&
           is_in_range(ctx, op, "q's columns", d, 1, INT64_MAX) &&
           is_multiple(ctx, op, "q's columns", d, heads) &&
           is_in_range(ctx, op, name[2], k->shape[0], 1, INT64_MAX) &&
           HAS_EXTENTS(op, name[0], k, k->shape[0], d) &&
           HAS_EXTENTS(op, name[1], v, k->shape[0], d) && is_like(ctx, op, "o", o, q) &&
           is_apart(ctx, op, "o", o, "q", q) && is_apart(ctx, op, "o", o, name[0], k) &&
           is_apart(ctx, op, "o", o, name[1], v);
}

void sl_attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                  const sl_tensor *v, int heads, float scale, const sl_tensor *bias,
                  bool accumulate)
{
    static const char op[] = "attention", *const name[] = {"k", "v", "k's rows"};
    if (!attention_checked(ctx, op, o, q, k, v, heads, name)) return;
    if (bias && (!is_tensor(ctx, op, "bias", bias, 2, BIT(SL_F32), DENSE) ||
                 !HAS_EXTENTS(op, "bias", bias, heads, q->shape[0] + k->shape[0] - 1) ||
                 !is_apart(ctx, op, "o", o, "bias", bias)))
        return;
    BODY(attention, ctx, o, q, k, v, heads, scale, bias, accumulate);
}

bool sl_attention_two(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k1,
                      const sl_tensor *v1, const sl_tensor *k2, const sl_tensor *v2, int heads,
                      float scale)
{
    static const char op[] = "attention_two";
    static const char *const first[] = {"k1", "v1", "k1's rows"}, *const second[] = {"k2", "v2",
                                                                                     "k2's rows"};
    if (!attention_checked(ctx, op, o, q, k1, v1, heads, first) ||
        !attention_checked(ctx, op, o, q, k2, v2, heads, second))
        return false;
    if (!ctx->ops->plan && ctx->ops->attention_two &&
        ctx->ops->attention_two(ctx, o, q, k1, v1, k2, v2, heads, scale))
        return true;
    sl_attention(ctx, o, q, k1, v1, heads, scale, NULL, false);
    sl_attention(ctx, o, q, k2, v2, heads, scale, NULL, true);
    return false;
}

/* The parts of `rows` rows; done is cleared. */
static bool parts_checked(sl_ctx *ctx, const char *op, int64_t rows, int parts,
                          const int64_t *first, int last, sl_done *done)
{
    if (!is_in_range(ctx, op, "parts", parts, 1, INT64_MAX) ||
        !is_in_range(ctx, op, "last", last, 0, parts - 1) ||
        !is_in_range(ctx, op, "the first part's first row", first[0], 0, 0) ||
        !is_in_range(ctx, op, "the end of the last part", first[parts], rows, rows))
        return false;
    for (int i = 0; i < parts; i++) {
        if (!is_in_range(ctx, op, "the end of a part", first[i + 1], first[i], rows)) return false;
        done[i] = (sl_done){0};
    }
    return true;
}

bool sl_attention_parts(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                        const sl_tensor *v, int heads, float scale, int parts, const int64_t *first,
                        int last, sl_done *done)
{
    static const char op[] = "attention_parts", *const name[] = {"k", "v", "k's rows"};
    if (!attention_checked(ctx, op, o, q, k, v, heads, name) ||
        !parts_checked(ctx, op, q->shape[0], parts, first, last, done))
        return false;
    if (!ctx->ops->plan && ctx->ops->attention_parts &&
        ctx->ops->attention_parts(ctx, o, q, k, v, heads, scale, parts, first, last, done))
        return true;
    sl_attention(ctx, o, q, k, v, heads, scale, NULL, false);
    return false;
}

/* Codes of keys [N, d] of so many heads. */
static bool keys_checked(sl_ctx *ctx, const char *op, const sl_keys_eight *y, int64_t d, int heads)
{
    const int64_t blocks = (y->rows + SL_EIGHT_KEYS - 1) / SL_EIGHT_KEYS,
                  all = blocks * SL_EIGHT_KEYS;
    const struct {
        const char *name;
        const sl_tensor *t;
    } of_columns[] = {
        {"k's means", &y->k_mean}, {"v's means", &y->v_mean}, {"v's scales", &y->v_scale}};
    if (!is_in_range(ctx, op, "heads", heads, 1, INT64_MAX) ||
        !is_multiple(ctx, op, "the columns", d, heads) ||
        !is_in_range(ctx, op, "the keys", y->rows, 1, INT64_MAX) ||
        !is_tensor(ctx, op, "k's codes", &y->k, 2, BIT(SL_U8), DENSE) ||
        !HAS_EXTENTS(op, "k's codes", &y->k, all, d) ||
        !is_tensor(ctx, op, "v's codes", &y->v, 2, BIT(SL_E4M3), DENSE) ||
        !HAS_EXTENTS(op, "v's codes", &y->v, all, d) ||
        !is_tensor(ctx, op, "k's scales", &y->k_scale, 2, BIT(SL_F32), DENSE) ||
        !HAS_EXTENTS(op, "k's scales", &y->k_scale, heads, blocks))
        return false;
    for (size_t i = 0; i < sizeof of_columns / sizeof *of_columns; i++)
        if (!is_tensor(ctx, op, of_columns[i].name, of_columns[i].t, 1, BIT(SL_F32), DENSE) ||
            !HAS_EXTENTS(op, of_columns[i].name, of_columns[i].t, d))
            return false;
    const int width = ctx->ops->eight_width;
    return !width || is_in_range(ctx, op, "the columns of a head", d / heads, width, width);
}

void sl_code_keys(sl_ctx *ctx, const sl_keys_eight *y, const sl_tensor *k, const sl_tensor *v,
                  int heads)
{
    static const char op[] = "code_keys";
    if (may_begin(ctx) && is_tensor(ctx, op, "k", k, 2, ACT, PITCHED) &&
        is_tensor(ctx, op, "v", v, 2, ACT, PITCHED) && is_like(ctx, op, "v", v, k) &&
        keys_checked(ctx, op, y, k->shape[1], heads) &&
        is_in_range(ctx, op, "k's rows", k->shape[0], y->rows, y->rows))
        BODY(code_keys, ctx, y, k, v, heads);
}

/* Codes of queries [n, d] of so many heads. */
static bool queries_checked(sl_ctx *ctx, const char *op, const sl_queries_eight *y, int64_t n,
                            int64_t d, int heads)
{
    const int width = ctx->ops->eight_width;
    return is_in_range(ctx, op, "heads", heads, 1, INT64_MAX) &&
           is_multiple(ctx, op, "the columns", d, heads) &&
           is_tensor(ctx, op, "q's codes", &y->codes, 2, BIT(SL_U8), DENSE) &&
           HAS_EXTENTS(op, "q's codes", &y->codes, n, d) &&
           is_tensor(ctx, op, "q's scales", &y->scale, 2, BIT(SL_F32), DENSE) &&
           HAS_EXTENTS(op, "q's scales", &y->scale, n, heads) &&
           (!width || is_in_range(ctx, op, "the columns of a head", d / heads, width, width));
}

void sl_code_queries(sl_ctx *ctx, const sl_queries_eight *y, const sl_tensor *q, int heads,
                     float scale)
{
    static const char op[] = "code_queries";
    if (may_begin(ctx) && is_tensor(ctx, op, "q", q, 2, ACT, PITCHED) &&
        queries_checked(ctx, op, y, q->shape[0], q->shape[1], heads) &&
        is_apart(ctx, op, "y", &y->codes, "q", q))
        BODY(code_queries, ctx, y, q, heads, scale);
}

bool sl_rmsnorm_rope_queries(sl_ctx *ctx, const sl_queries_eight *y, const sl_tensor *x,
                             const sl_tensor *w, float eps, const sl_tensor *cos,
                             const sl_tensor *sin, int heads, float scale)
{
    static const char op[] = "rmsnorm_rope_queries";
    if (!rows_checked(ctx, op, x, x, ACT, PITCHED) ||
        !rope_checked(ctx, op, x, w, cos, sin, heads) ||
        !queries_checked(ctx, op, y, x->shape[0], x->shape[1], heads) ||
        !is_apart(ctx, op, "y", &y->codes, "x", x))
        return false;
    if (!ctx->ops->plan && ctx->ops->rmsnorm_rope_queries &&
        ctx->ops->rmsnorm_rope_queries(ctx, y, x, w, eps, cos, sin, heads, scale))
        return true;
    sl_rmsnorm_rope(ctx, x, x, w, eps, cos, sin, heads);
    sl_code_queries(ctx, y, x, heads, scale);
    return false;
}

void sl_attention_eight(sl_ctx *ctx, const sl_tensor *o, const sl_queries_eight *q,
                        const sl_keys_eight *keys, int heads, int parts, const int64_t *first,
                        int last, sl_done *done)
{
    static const char op[] = "attention_eight";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "o", o, 2, ACT, PITCHED) ||
        !queries_checked(ctx, op, q, o->shape[0], o->shape[1], heads) ||
        !keys_checked(ctx, op, keys, o->shape[1], heads) ||
        (done && !parts_checked(ctx, op, o->shape[0], parts, first, last, done)))
        return;
    BODY(attention_eight, ctx, o, q, keys, heads, parts, first, last, done);
}

/* ---- rows in 8 bits ---- */

/* e is [rows, d], both of its tensors there. */
static bool is_eight(sl_ctx *ctx, const char *op, const char *arg, const sl_eight *e, int64_t rows,
                     int64_t d)
{
    char scales[32];
    snprintf(scales, sizeof scales, "%s's scales", arg);
    return is_tensor(ctx, op, arg, &e->codes, 2, BIT(SL_E4M3), DENSE) &&
           HAS_EXTENTS(op, arg, &e->codes, rows, d) &&
           is_tensor(ctx, op, scales, &e->scale, 1, BIT(SL_F32), DENSE) &&
           HAS_EXTENTS(op, scales, &e->scale, rows);
}

static bool is_apart_eight(sl_ctx *ctx, const char *op, const char *out, const sl_eight *y,
                           const char *in, const sl_tensor *x)
{
    return is_apart(ctx, op, out, &y->codes, in, x) && is_apart(ctx, op, out, &y->scale, in, x);
}

/* y becomes rows in 8 bits of x. */
static bool eight_checked(sl_ctx *ctx, const char *op, const sl_eight *y, const sl_tensor *x,
                          unsigned dtypes, layout lay)
{
    return may_begin(ctx) && is_tensor(ctx, op, "x", x, 2, dtypes, lay) &&
           is_in_range(ctx, op, "x's columns", x->shape[1], 1, INT64_MAX) &&
           is_eight(ctx, op, "y", y, x->shape[0], x->shape[1]) &&
           is_apart_eight(ctx, op, "y", y, "x", x);
}

void sl_quantise_rows(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x)
{
    if (eight_checked(ctx, "quantise_rows", y, x, VECTOR, PITCHED)) BODY(quantise_rows, ctx, y, x);
}

void sl_gelu_eight(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x)
{
    if (eight_checked(ctx, "gelu_eight", y, x, ACT, DENSE)) BODY(gelu_eight, ctx, y, x);
}

void sl_layernorm_eight(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x, const sl_tensor *w,
                        const sl_tensor *b, float eps)
{
    static const char op[] = "layernorm_eight";
    if (!eight_checked(ctx, op, y, x, ACT, DENSE) ||
        ((w || b) &&
         (!is_vector(ctx, op, "w", w, x, VECTOR) || !is_vector(ctx, op, "b", b, x, VECTOR))))
        return;
    BODY(layernorm_eight, ctx, y, x, w, b, eps);
}

void sl_layernorm_modulate_eight(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x,
                                 const sl_tensor *scale, const sl_tensor *shift, float eps)
{
    static const char op[] = "layernorm_modulate_eight";
    if (!eight_checked(ctx, op, y, x, ACT, DENSE) ||
        !is_vector(ctx, op, "scale", scale, x, BIT(SL_F32)) ||
        !is_vector(ctx, op, "shift", shift, x, BIT(SL_F32)))
        return;
    BODY(layernorm_modulate_eight, ctx, y, x, scale, shift, eps);
}

/* y of x w^T + b in 8 bits; `arg` is what the caller calls x. */
static bool linear_eight_checked(sl_ctx *ctx, const char *op, const char *arg, const sl_tensor *y,
                                 const sl_eight *x, const sl_eight *w, const sl_tensor *b)
{
    const int64_t rows = x->codes.shape[0], k = x->codes.shape[1], cols = w->codes.shape[0];
    return may_begin(ctx) && is_eight(ctx, op, arg, x, rows, k) &&
           is_in_range(ctx, op, "the columns", k, 1, INT64_MAX) &&
           is_eight(ctx, op, "w", w, cols, k) && is_tensor(ctx, op, "y", y, 2, ACT, PITCHED) &&
           HAS_EXTENTS(op, "y", y, rows, cols) &&
           (!b ||
            (is_tensor(ctx, op, "b", b, 1, VECTOR, DENSE) && HAS_EXTENTS(op, "b", b, cols))) &&
           is_apart_eight(ctx, op, arg, x, "y", y) && is_apart_eight(ctx, op, "w", w, "y", y) &&
           is_apart(ctx, op, "y", y, "b", b);
}

void sl_linear_eight(sl_ctx *ctx, const sl_tensor *y, const sl_eight *x, const sl_eight *w,
                     const sl_tensor *b)
{
    if (linear_eight_checked(ctx, "linear_eight", "x", y, x, w, b))
        BODY(linear_eight, ctx, y, x, w, b);
}

bool sl_linear_add_eight(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_eight *a,
                         const sl_eight *w, const sl_tensor *b, const sl_tensor *gate)
{
    static const char op[] = "linear_add_eight";
    if (!linear_eight_checked(ctx, op, "a", y, a, w, b) || !branch_checked(ctx, op, x, y, gate) ||
        !is_apart_eight(ctx, op, "a", a, "x", x) || !is_apart_eight(ctx, op, "w", w, "x", x) ||
        !is_apart(ctx, op, "x", x, "b", b))
        return false;
    if (!ctx->ops->plan && ctx->ops->linear_add_eight &&
        ctx->ops->linear_add_eight(ctx, x, y, a, w, b, gate))
        return true;
    sl_linear_eight(ctx, y, a, w, b);
    add_branch(ctx, x, y, gate);
    return false;
}

/* ---- DiT's edges and the sampler ---- */

void sl_patchify(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *latents,
                 const sl_tensor *condition)
{
    static const char op[] = "patchify";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "latents", latents, 4, BIT(SL_F32), DENSE) ||
        !is_tensor(ctx, op, "y", y, 2, ACT, DENSE))
        return;
    const int64_t *s = latents->shape;
    int64_t channels = s[0];
    if (condition) {
        if (!is_tensor(ctx, op, "condition", condition, 4, BIT(SL_F32), DENSE) ||
            !HAS_EXTENTS(op, "condition", condition, condition->shape[0], s[1], s[2], s[3]))
            return;
        channels += condition->shape[0];
    }
    if (!is_multiple(ctx, op, "the latents' height", s[2], 2) ||
        !is_multiple(ctx, op, "the latents' width", s[3], 2) ||
        !HAS_EXTENTS(op, "y", y, s[1] * (s[2] / 2) * (s[3] / 2), channels * 4) ||
        !is_apart(ctx, op, "y", y, "latents", latents) ||
        !is_apart(ctx, op, "y", y, "condition", condition))
        return;
    BODY(patchify, ctx, y, latents, condition);
}

void sl_unpatchify(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    static const char op[] = "unpatchify";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "y", y, 4, VECTOR, DENSE) ||
        !is_tensor(ctx, op, "x", x, 2, ACT, DENSE))
        return;
    const int64_t *s = y->shape;
    if (!is_multiple(ctx, op, "y's height", s[2], 2) ||
        !is_multiple(ctx, op, "y's width", s[3], 2) ||
        !HAS_EXTENTS(op, "x", x, s[1] * (s[2] / 2) * (s[3] / 2), s[0] * 4) ||
        !is_apart(ctx, op, "y", y, "x", x))
        return;
    BODY(unpatchify, ctx, y, x);
}

void sl_guidance(sl_ctx *ctx, const sl_tensor *v, const sl_tensor *cond, const sl_tensor *uncond,
                 float g)
{
    static const char op[] = "guidance";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "cond", cond, ANY_RANK, VECTOR, DENSE) ||
        !is_tensor(ctx, op, "uncond", uncond, cond->rank, BIT(cond->dtype), DENSE) ||
        !is_tensor(ctx, op, "v", v, cond->rank, BIT(cond->dtype), DENSE) ||
        !is_like(ctx, op, "uncond", uncond, cond) || !is_like(ctx, op, "v", v, cond) ||
        !is_same_or_apart(ctx, op, "v", v, "cond", cond) ||
        !is_same_or_apart(ctx, op, "v", v, "uncond", uncond))
        return;
    BODY(guidance, ctx, v, cond, uncond, g);
}

void sl_flow_x0(sl_ctx *ctx, const sl_tensor *x0, const sl_tensor *x, const sl_tensor *v,
                float sigma)
{
    static const char op[] = "flow_x0";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "x", x, ANY_RANK, BIT(SL_F32), DENSE) ||
        !is_tensor(ctx, op, "x0", x0, x->rank, BIT(SL_F32), DENSE) ||
        !is_tensor(ctx, op, "v", v, x->rank, FLOATS, DENSE) || !is_like(ctx, op, "x0", x0, x) ||
        !is_like(ctx, op, "v", v, x) || !is_same_or_apart(ctx, op, "x0", x0, "x", x) ||
        !is_same_or_apart(ctx, op, "x0", x0, "v", v))
        return;
    BODY(flow_x0, ctx, x0, x, v, sigma);
}

void sl_lincomb(sl_ctx *ctx, const sl_tensor *y, int n, const sl_tensor *const x[], const float a[])
{
    static const char op[] = "lincomb";
    if (!may_begin(ctx) || !is_in_range(ctx, op, "n", n, 1, 4) ||
        !is_tensor(ctx, op, "y", y, ANY_RANK, BIT(SL_F32), DENSE))
        return;
    for (int i = 0; i < n; i++) {
        char arg[] = "x[0]";
        arg[2] = (char)('0' + i);
        if (!is_tensor(ctx, op, arg, x[i], y->rank, BIT(SL_F32), DENSE) ||
            !is_like(ctx, op, arg, x[i], y) || !is_same_or_apart(ctx, op, "y", y, arg, x[i]))
            return;
    }
    BODY(lincomb, ctx, y, n, x, a);
}

void sl_mean_abs(sl_ctx *ctx, float out[2], const sl_tensor *prev, const sl_tensor *r)
{
    static const char op[] = "mean_abs";
    out[0] = out[1] = 0; /* what a caller reads after an error or in a plan */
    if (!may_begin(ctx) || !is_tensor(ctx, op, "prev", prev, ANY_RANK, ACT, DENSE) ||
        !is_tensor(ctx, op, "r", r, prev->rank, ACT, DENSE) || !is_like(ctx, op, "r", r, prev) ||
        !is_in_range(ctx, op, "prev's number of elements", sl_count(prev), 1, INT64_MAX))
        return;
    if (may_wait(ctx)) BODY(mean_abs, ctx, out, prev, r);
}

void sl_abs_rows(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *prev, const sl_tensor *r)
{
    static const char op[] = "abs_rows";
    const sl_tensor want = sl_view2(NULL, SL_F32, prev->shape[0], 2);
    if (!may_begin(ctx) || !is_tensor(ctx, op, "prev", prev, 2, ACT, DENSE) ||
        !is_tensor(ctx, op, "r", r, 2, ACT, DENSE) || !is_like(ctx, op, "r", r, prev) ||
        !is_tensor(ctx, op, "y", y, 2, BIT(SL_F32), DENSE) || !is_like(ctx, op, "y", y, &want))
        return;
    if (sl_count(prev)) BODY(abs_rows, ctx, y, prev, r);
}

void sl_sum_rows(sl_ctx *ctx, double out[2], const sl_tensor *y)
{
    static const char op[] = "sum_rows";
    out[0] = out[1] = 0;
    if (!may_begin(ctx) || !is_tensor(ctx, op, "y", y, 2, BIT(SL_F32), DENSE) ||
        !is_in_range(ctx, op, "y's columns", y->shape[1], 2, 2))
        return;
    if (y->shape[0] && may_wait(ctx)) BODY(sum_rows, ctx, out, y);
}

/* ---- VAE ---- */

static bool conv_fits(sl_ctx *ctx, const char *op, const sl_conv *c)
{
    return is_in_range(ctx, op, "kt", c->kt, 1, INT64_MAX) &&
           is_in_range(ctx, op, "kh", c->kh, 1, INT64_MAX) &&
           is_in_range(ctx, op, "kw", c->kw, 1, INT64_MAX) &&
           is_in_range(ctx, op, "stride_t", c->stride_t, 1, 2) &&
           is_in_range(ctx, op, "stride_hw", c->stride_hw, 1, 2) &&
           is_in_range(ctx, op, "pad", c->pad, 0, INT64_MAX) &&
           is_in_range(ctx, op, "pad_end", c->pad_end, 0, INT64_MAX) &&
           is_in_range(ctx, op, "upsample", c->upsample, 0, 1) &&
           (c->stride_t == 1 || is_in_range(ctx, op, "kt (with stride_t 2)", c->kt, 3, 3));
}

void sl_conv3d(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *history,
               const sl_tensor *w, const sl_tensor *b, const sl_tensor *residual,
               const sl_conv *conv)
{
    static const char op[] = "conv3d";
    if (!may_begin(ctx) || !conv_fits(ctx, op, conv) ||
        !is_tensor(ctx, op, "x", x, 4, ACT, DENSE) || !is_tensor(ctx, op, "y", y, 4, ACT, DENSE) ||
        !is_tensor(ctx, op, "w", w, 5, VECTOR, DENSE))
        return;
    int64_t frames = x->shape[0], height = x->shape[1], width = x->shape[2], ci = x->shape[3],
            co = w->shape[0];
    int64_t grow = conv->upsample ? 2 : 1, edge = 2 * (int64_t)conv->pad + conv->pad_end;
    if (!HAS_EXTENTS(op, "w", w, co, ci, conv->kt, conv->kh, conv->kw)) return;
    if (!is_in_range(ctx, op, "x's channels", ci, 1, INT64_MAX) ||
        !is_in_range(ctx, op, "w's output channels", co, 1, INT64_MAX) ||
        !is_in_range(ctx, op, "the padded height", height * grow + edge, conv->kh, INT64_MAX) ||
        !is_in_range(ctx, op, "the padded width", width * grow + edge, conv->kw, INT64_MAX) ||
        !is_multiple(ctx, op, "x's frames", frames, conv->stride_t) ||
        !HAS_EXTENTS(op, "y", y, frames / conv->stride_t,
                     (height * grow + edge - conv->kh) / conv->stride_hw + 1,
                     (width * grow + edge - conv->kw) / conv->stride_hw + 1, co))
        return;
    if ((history || conv->stride_t == 2) &&
        (!is_tensor(ctx, op, "history", history, 4, ACT, DENSE) ||
         !HAS_EXTENTS(op, "history", history, conv->stride_t == 2 ? 1 : conv->kt - 1, height, width,
                      ci)))
        return;
    if (!is_tensor(ctx, op, "b", b, 1, VECTOR, DENSE) || !HAS_EXTENTS(op, "b", b, co)) return;
    if (residual && (!is_tensor(ctx, op, "residual", residual, 4, ACT, DENSE) ||
                     !is_like(ctx, op, "residual", residual, y) ||
                     !is_same_or_apart(ctx, op, "y", y, "residual", residual)))
        return;
    if (!is_apart(ctx, op, "y", y, "x", x) || !is_apart(ctx, op, "y", y, "history", history) ||
        !is_apart(ctx, op, "y", y, "b", b))
        return;
    BODY(conv3d, ctx, y, x, history, w, b, residual, conv);
}

void sl_conv_history(sl_ctx *ctx, const sl_tensor *history, const sl_tensor *x)
{
    static const char op[] = "conv_history";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "x", x, 4, ACT, DENSE) ||
        !is_tensor(ctx, op, "history", history, 4, ACT, DENSE) ||
        !HAS_EXTENTS(op, "history", history, history->shape[0], x->shape[1], x->shape[2],
                     x->shape[3]) ||
        !is_apart(ctx, op, "history", history, "x", x))
        return;
    BODY(conv_history, ctx, history, x);
}

void sl_vae_norm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *gamma,
                 bool silu)
{
    static const char op[] = "vae_norm";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "x", x, 4, ACT, DENSE) ||
        !is_tensor(ctx, op, "y", y, 4, ACT, DENSE) || !is_like(ctx, op, "y", y, x) ||
        !is_same_or_apart(ctx, op, "y", y, "x", x) ||
        !is_tensor(ctx, op, "gamma", gamma, 1, VECTOR, DENSE) ||
        !HAS_EXTENTS(op, "gamma", gamma, x->shape[3]))
        return;
    BODY(vae_norm, ctx, y, x, gamma, silu);
}

void sl_time_shuffle(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    static const char op[] = "time_shuffle";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "x", x, 4, ACT, DENSE) ||
        !is_tensor(ctx, op, "y", y, 4, ACT, DENSE) ||
        !is_multiple(ctx, op, "x's channels", x->shape[3], 2) ||
        !HAS_EXTENTS(op, "y", y, 2 * x->shape[0], x->shape[1], x->shape[2], x->shape[3] / 2) ||
        !is_apart(ctx, op, "y", y, "x", x))
        return;
    BODY(time_shuffle, ctx, y, x);
}

void sl_avg_down(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, int time)
{
    static const char op[] = "avg_down";
    if (!may_begin(ctx) || !is_in_range(ctx, op, "time", time, 1, 2) ||
        !is_tensor(ctx, op, "x", x, 4, ACT, DENSE) || !is_tensor(ctx, op, "y", y, 4, ACT, DENSE) ||
        !is_multiple(ctx, op, "x's height", x->shape[1], 2) ||
        !is_multiple(ctx, op, "x's width", x->shape[2], 2) ||
        !is_in_range(ctx, op, "y's channels", y->shape[3], 1, INT64_MAX) ||
        !is_multiple(ctx, op, "x's numbers a pixel of y", x->shape[3] * time * 4, y->shape[3]) ||
        !HAS_EXTENTS(op, "y", y, (x->shape[0] + time - 1) / time, x->shape[1] / 2, x->shape[2] / 2,
                     y->shape[3]) ||
        !is_apart(ctx, op, "y", y, "x", x))
        return;
    BODY(avg_down, ctx, y, x, time);
}

void sl_dup_up(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, int time)
{
    static const char op[] = "dup_up";
    if (!may_begin(ctx) || !is_in_range(ctx, op, "time", time, 1, 2) ||
        !is_tensor(ctx, op, "x", x, 4, ACT, DENSE) || !is_tensor(ctx, op, "y", y, 4, ACT, DENSE) ||
        !is_in_range(ctx, op, "x's channels", x->shape[3], 1, INT64_MAX) ||
        !is_multiple(ctx, op, "y's numbers a pixel of x", y->shape[3] * time * 4, x->shape[3]))
        return;
    const int64_t all = time * x->shape[0], less = y->shape[0] == all - 1 && time == 2;
    if (!HAS_EXTENTS(op, "y", y, all - less, 2 * x->shape[1], 2 * x->shape[2], y->shape[3]) ||
        !is_apart(ctx, op, "y", y, "x", x))
        return;
    BODY(dup_up, ctx, y, x, time);
}

void sl_pixel_shuffle(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    static const char op[] = "pixel_shuffle";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "x", x, 4, ACT, DENSE) ||
        !is_tensor(ctx, op, "y", y, 4, ACT, DENSE) ||
        !is_multiple(ctx, op, "x's channels", x->shape[3], 4) ||
        !HAS_EXTENTS(op, "y", y, x->shape[0], 2 * x->shape[1], 2 * x->shape[2], x->shape[3] / 4) ||
        !is_apart(ctx, op, "y", y, "x", x))
        return;
    BODY(pixel_shuffle, ctx, y, x);
}

void sl_to_channels_last(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const float *mul,
                         const float *add)
{
    static const char op[] = "to_channels_last";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "x", x, 4, BIT(SL_F32), DENSE) ||
        !is_tensor(ctx, op, "y", y, 4, ACT, DENSE) ||
        !HAS_EXTENTS(op, "y", y, x->shape[1], x->shape[2], x->shape[3], x->shape[0]) ||
        !is_apart(ctx, op, "y", y, "x", x))
        return;
    BODY(to_channels_last, ctx, y, x, mul, add);
}

void sl_to_channels_first(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const float *mul,
                          const float *add)
{
    static const char op[] = "to_channels_first";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "x", x, 4, ACT, DENSE) ||
        !is_tensor(ctx, op, "y", y, 4, BIT(SL_F32), DENSE) ||
        !HAS_EXTENTS(op, "y", y, y->shape[0], x->shape[0], x->shape[1], x->shape[2]) ||
        !is_in_range(ctx, op, "x's channels", x->shape[3], y->shape[0], INT64_MAX) ||
        !is_apart(ctx, op, "y", y, "x", x))
        return;
    BODY(to_channels_first, ctx, y, x, mul, add);
}

void sl_frames_rgb8(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    static const char op[] = "frames_rgb8";
    if (!may_begin(ctx) || !is_tensor(ctx, op, "x", x, 4, ACT, DENSE) ||
        !is_tensor(ctx, op, "y", y, 4, BIT(SL_U8), DENSE) ||
        !HAS_EXTENTS(op, "x", x, x->shape[0], x->shape[1], x->shape[2], 3) ||
        !is_like(ctx, op, "y", y, x) || !is_apart(ctx, op, "y", y, "x", x))
        return;
    BODY(frames_rgb8, ctx, y, x);
}
