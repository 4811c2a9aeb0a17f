/* merge.c - LoRA merged into a network's weights, and taken off again. */
#include "graphs/merge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/err.h"
#include "common/json.h"

/* One change and the weight that it is for. */
typedef struct {
    int place;
    const sl_lora_change *change;
    float factor; /* strength * s */
    int order;    /* of files, then of changes */
} step;

typedef struct {
    step *steps; /* by place, then in order */
    int count;
    sl_merge_sizes sizes;
} recipe;

/* A weight of the network. */
typedef struct {
    sl_tensor base; /* as it was loaded; host memory alone */
    void *own;      /* its float32 memory; NULL: it has none */
    bool touched;   /* not the checkpoint's, where sets are merged in place */
} weight;

struct sl_merge {
    sl_loader *l;
    sl_ctx *ctx;
    weight *weights; /* one a place of the loader */
    int count;
};

/* ---- which weights ---- */

/* One shape but for extents of 1. */
static bool same_numbers(const sl_tensor *a, const sl_tensor *b)
{
    int i = 0, k = 0;
    for (;;) {
        while (i < a->rank && a->shape[i] == 1) i++;
        while (k < b->rank && b->shape[k] == 1) k++;
        if (i == a->rank || k == b->rank) return i == a->rank && k == b->rank;
        if (a->shape[i++] != b->shape[k++]) return false;
    }
}

/* [N, K]: a weight as a matrix. */
static sl_tensor as_matrix(const sl_tensor *t)
{
    const int64_t n = t->shape[0];
    return sl_reshape2(t, n, n ? sl_count(t) / n : 0);
}

static sl_code fits(const sl_lora *f, const sl_lora_change *c, const sl_tensor *want, sl_err *err)
{
    char found[96], wanted[96];
    const sl_tensor m = as_matrix(want);
    if (!c->up.rank) {
        if (same_numbers(&c->down, want)) return SL_OK;
        return sl_lora_wrong(f, err, SL_SHAPE, "%.200s has shape %s, %.150s wants %s", c->name,
                             sl_shape_text(&c->down, found, sizeof found), c->target,
                             sl_shape_text(want, wanted, sizeof wanted));
    }
    if (c->up.shape[0] == m.shape[0] && c->down.shape[1] == m.shape[1]) return SL_OK;
    return sl_lora_wrong(f, err, SL_SHAPE,
                         "the factors of %.150s make [%lld, %lld], the model has %s", c->target,
                         (long long)c->up.shape[0], (long long)c->down.shape[1],
                         sl_shape_text(want, wanted, sizeof wanted));
}

static int by_place(const void *a, const void *b)
{
    const step *x = a, *y = b;
    return x->place != y->place ? (x->place < y->place ? -1 : 1) : x->order - y->order;
}

static size_t rounded(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* What merging one weight takes of the arena: factors, and its sum. */
static size_t arena_of(const recipe *r, int first, int n, const sl_tensor *t)
{
    size_t most = 0;
    for (int i = first; i < first + n; i++) {
        const sl_lora_change *c = r->steps[i].change;
        const size_t bytes =
            (c->up.rank ? rounded(sl_bytes(&c->up)) : 0) + rounded(sl_bytes(&c->down));
        if (bytes > most) most = bytes;
    }
    return most + rounded((size_t)sl_count(t) * sizeof(float));
}

static sl_code leave_out(recipe *r, const sl_lora *f, const char *name, int tensors, bool lenient,
                         sl_err *err)
{
    if (!lenient)
        return sl_lora_wrong(
            f, err, SL_ARG,
            "%.200s has no place in this model (--lora-lenient leaves such tensors out)", name);
    if (!r->sizes.left_out) r->sizes.left = name;
    r->sizes.left_out += tensors;
    return SL_OK;
}

/* One file's changes. */
static sl_code add_file(recipe *r, const sl_loader *l, const sl_lora *f, double strength,
                        bool lenient, sl_err *err)
{
    const int before = r->count;
    const sl_lora_change *c;
    const char *stray;
    sl_code rc = SL_OK;
    for (int i = 0; (stray = sl_lora_stray(f, i)) && !rc; i++)
        rc = leave_out(r, f, stray, 1, lenient, err);
    for (int i = 0; (c = sl_lora_at(f, i)) && !rc; i++) {
        const int place = sl_loader_find(l, c->target);
        if (place < 0) {
            rc = leave_out(r, f, c->name, c->up.rank ? 2 : 1, lenient, err);
            continue;
        }
        if ((rc = fits(f, c, sl_loader_place(l, place)->out, err))) break;
        r->steps[r->count] = (step){place, c, (float)strength * c->scale, r->count};
        r->count++;
    }
    if (!rc && r->count == before)
        rc = sl_lora_wrong(f, err, SL_ARG, "none of its tensors has a place in this model");
    return rc;
}

static sl_code make_recipe(recipe *r, const sl_loader *l, const sl_lora *const loras[],
                           const double strength[], int n, bool lenient, sl_err *err)
{
    size_t room = 1;
    sl_code rc = SL_OK;
    *r = (recipe){0};
    for (int i = 0; i < n; i++)
        for (int k = 0; sl_lora_at(loras[i], k); k++) room++;
    if (!(r->steps = calloc(room, sizeof *r->steps)))
        return sl_fail(err, SL_NOMEM, "LoRA: no memory for %zu changes", room);
    for (int i = 0; i < n && !rc; i++)
        rc = add_file(r, l, loras[i], strength ? strength[i] : 1, lenient, err);
    qsort(r->steps, (size_t)r->count, sizeof *r->steps, by_place);
    for (int i = 0, k; i < r->count; i = k) {
        const sl_tensor *t = sl_loader_place(l, r->steps[i].place)->out;
        for (k = i; k < r->count && r->steps[k].place == r->steps[i].place; k++) {
        }
        const size_t arena = arena_of(r, i, k - i, t);
        r->sizes.tensors++;
        if (!sl_loader_place(l, r->steps[i].place)->scale)
            r->sizes.host_bytes += rounded((size_t)sl_count(t) * sizeof(float));
        if (arena > r->sizes.arena_bytes) r->sizes.arena_bytes = arena;
    }
    return rc;
}

sl_code sl_merge_check(const sl_loader *l, const sl_lora *const loras[], int n, bool lenient,
                       sl_merge_sizes *out, sl_err *err)
{
    recipe r;
    sl_code rc = make_recipe(&r, l, loras, NULL, n, lenient, err);
    *out = r.sizes;
    free(r.steps);
    return rc;
}

/* ---- opening ---- */

sl_code sl_merge_open(sl_merge **out, sl_loader *l, sl_ctx *ctx, sl_err *err)
{
    sl_merge *m = *out = calloc(1, sizeof *m);
    if (m) {
        m->l = l;
        m->ctx = ctx;
        while (sl_loader_place(l, m->count)) m->count++;
        m->weights = calloc((size_t)m->count + 1, sizeof *m->weights);
    }
    if (m && m->weights) return SL_OK;
    free(m);
    *out = NULL;
    return sl_fail(err, SL_NOMEM, "LoRA: no memory");
}

/* In host memory: the weight is as it was loaded. */
static void restore(sl_merge *m, int i)
{
    weight *w = &m->weights[i];
    if (!w->own) return;
    *sl_loader_place(m->l, i)->out = w->base;
    sl_device_free(m->ctx, w->own);
    w->own = NULL;
}

void sl_merge_close(sl_merge **mp)
{
    sl_merge *m = *mp;
    *mp = NULL;
    if (!m) return;
    for (int i = 0; i < m->count; i++) restore(m, i);
    free(m->weights);
    free(m);
}

/* ---- merging ---- */

/* A factor in the arena, as [rows, cols]. */
static sl_tensor upload(sl_ctx *ctx, const sl_tensor *t, int64_t rows, int64_t cols)
{
    const sl_tensor y = sl_new2(ctx, t->dtype, rows, cols);
    sl_upload(ctx, &y, t->data);
    return y;
}

/* y = x + the sum of the n changes from `s` on; `sum` F32 takes what is not rounded yet, and may be
 * x or y if that is F32. */
static void add_changes(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *sum,
                        const step *s, int n)
{
    for (int i = 0; i < n; i++) {
        const sl_lora_change *c = s[i].change;
        const size_t mark = sl_mark(ctx);
        sl_tensor up = {0}, down;
        if (c->up.rank) {
            up = upload(ctx, &c->up, c->up.shape[0], c->up.shape[1]);
            down = upload(ctx, &c->down, c->down.shape[0], c->down.shape[1]);
        } else down = upload(ctx, &c->down, y->shape[0], y->shape[1]);
        sl_low_rank_add(ctx, i == n - 1 ? y : sum, i ? sum : x, up.rank ? &up : NULL, &down,
                        s[i].factor);
        sl_release(ctx, mark);
    }
}

/* In host memory: float32 beside the mapped weight. */
static void merge_on_host(sl_merge *m, int place, const step *s, int n)
{
    weight *w = &m->weights[place];
    sl_tensor *out = sl_loader_place(m->l, place)->out;
    sl_tensor merged = sl_view(NULL, SL_F32, out->rank, out->shape);
    w->base = *out;
    if (!(merged.data = w->own = sl_device_alloc(m->ctx, rounded(sl_bytes(&merged))))) return;
    const sl_tensor x = as_matrix(&w->base), y = as_matrix(&merged);
    add_changes(m->ctx, &y, &x, &y, s, n);
    *out = merged;
}

/* True: a set is merged in the weight's own memory. Else, in host memory, beside it. */
static bool is_in_place(const sl_merge *m, int place)
{
    return !m->ctx->ops->host_memory || sl_loader_place(m->l, place)->scale;
}

/* In place, from the checkpoint's numbers, which lie there already where the device keeps them all.
 * In 8 bits the sum is quantised once. */
static sl_code merge_in_place(sl_merge *m, int place, const step *s, int n, sl_merge_figures *f,
                              sl_err *err)
{
    sl_ctx *ctx = m->ctx;
    const sl_weight_place *p = sl_loader_place(m->l, place);
    const size_t mark = sl_mark(ctx);
    const sl_tensor out = as_matrix(p->out), sum = sl_new2(ctx, SL_F32, out.shape[0], out.shape[1]),
                    y = p->scale ? sum : out;
    sl_code rc = SL_OK;
    if (!p->exact && sl_ok(ctx)) {
        rc = sl_loader_reload(m->l, 1, &place, &sum, err);
        f->bytes_read += p->stored_bytes;
    }
    if (!rc) add_changes(ctx, &y, p->exact ? &y : &sum, &sum, s, n);
    if (!rc && p->scale) sl_quantise_rows(ctx, &(sl_eight){out, *p->scale}, &sum);
    sl_release(ctx, mark);
    return rc;
}

/* Of weights that are merged in place: what the last set has touched is the checkpoint's again, but
 * for what the next one merges from the files anyway. */
static sl_code reload_touched(sl_merge *m, const recipe *r, sl_merge_figures *f, sl_err *err)
{
    int n = 0, *which = calloc((size_t)m->count + 1, sizeof *which);
    sl_tensor *to = calloc((size_t)m->count + 1, sizeof *to);
    sl_code rc = which && to ? SL_OK : sl_fail(err, SL_NOMEM, "LoRA: no memory");
    for (int i = 0, k = 0; i < m->count && !rc; i++) {
        const sl_weight_place *p = sl_loader_place(m->l, i);
        while (k < r->count && r->steps[k].place < i) k++;
        if (!m->weights[i].touched) continue;
        f->restored++;
        if (!p->exact && k < r->count && r->steps[k].place == i) continue;
        which[n] = i;
        to[n] = *p->out;
        f->bytes_read += p->stored_bytes;
        n++;
    }
    if (!rc && n) rc = sl_loader_reload(m->l, n, which, to, err);
    for (int i = 0; i < n && !rc; i++) m->weights[which[i]].touched = false;
    free(which);
    free(to);
    return rc;
}

static sl_code merge_all(sl_merge *m, const recipe *r, sl_merge_figures *f, sl_err *err)
{
    for (int i = 0; i < m->count; i++) f->restored += m->weights[i].own != NULL;
    for (int i = 0; i < m->count; i++) restore(m, i);
    sl_code rc = reload_touched(m, r, f, err);
    if (!rc && r->count) rc = sl_ctx_reserve(m->ctx, r->sizes.arena_bytes, err);
    for (int i = 0, k; i < r->count && !rc && sl_ok(m->ctx); i = k) {
        const int place = r->steps[i].place;
        for (k = i; k < r->count && r->steps[k].place == place; k++) {
        }
        f->tensors++;
        m->weights[place].touched = is_in_place(m, place);
        if (m->weights[place].touched) rc = merge_in_place(m, place, &r->steps[i], k - i, f, err);
        else merge_on_host(m, place, &r->steps[i], k - i);
    }
    if (!rc) sl_sync(m->ctx);
    else sl_ctx_error(m->ctx, NULL); /* ctx heard of the same fault: it is not the next switch's */
    return rc || sl_ok(m->ctx) ? rc : sl_ctx_error(m->ctx, err);
}

sl_code sl_merge_use(sl_merge *m, const sl_lora *const loras[], const double strength[], int n,
                     bool lenient, sl_merge_figures *figures, sl_err *err)
{
    const int64_t t0 = sl_now_ns();
    recipe r;
    sl_code rc = make_recipe(&r, m->l, loras, strength, n, lenient, err);
    *figures = (sl_merge_figures){0};
    if (!rc) rc = merge_all(m, &r, figures, err);
    figures->seconds = (double)(sl_now_ns() - t0) * 1e-9;
    free(r.steps);
    return rc;
}
