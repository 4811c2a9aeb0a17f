/* trace.c - spans: collecting them, their sums and their union. */
#include "common/trace.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t a, b;
} interval;

static const char *const NAMES[] = {
#define X(name, text, meaning) text,
    SL_SPAN_KINDS(X)
#undef X
};

const char *sl_span_kind_name(uint32_t kind)
{
    return kind < SL_SPAN_KIND_COUNT ? NAMES[kind] : "?";
}

sl_span sl_span_make(uint64_t job, const char *stage, sl_span_kind kind, int64_t t0_ns,
                     int64_t t1_ns)
{
    sl_span s = {.job = job, .t0_ns = t0_ns, .t1_ns = t1_ns, .kind = kind};
    snprintf(s.stage, sizeof s.stage, "%s", stage);
    return s;
}

sl_code sl_trace_add(sl_trace *t, const sl_span *span, sl_err *err)
{
    if (span->kind >= SL_SPAN_KIND_COUNT)
        return sl_fail(err, SL_ARG, "trace: span of kind %u, want 0 to %d", span->kind,
                       SL_SPAN_KIND_COUNT - 1);
    if (span->t1_ns < span->t0_ns)
        return sl_fail(err, SL_ARG, "trace: %s span ends at %lld ns, before its start at %lld ns",
                       NAMES[span->kind], (long long)span->t1_ns, (long long)span->t0_ns);
    if (t->count == t->capacity) {
        size_t capacity = t->capacity ? 2 * t->capacity : 64;
        sl_span *spans = realloc(t->spans, capacity * sizeof *spans);
        if (!spans) return sl_fail(err, SL_NOMEM, "trace: no memory for %zu spans", capacity);
        t->spans = spans;
        t->capacity = capacity;
    }
    t->spans[t->count] = *span;
    t->spans[t->count++].stage[SL_SPAN_STAGE - 1] = 0;
    return SL_OK;
}

void sl_trace_free(sl_trace *t)
{
    free(t->spans);
    *t = (sl_trace){0};
}

/* The part of a span that counts; false when none does. */
static bool counts(const sl_span *s, uint64_t job, const char *stage, int64_t a, int64_t b,
                   interval *out)
{
    if (s->job != job || (stage && strncmp(s->stage, stage, SL_SPAN_STAGE))) return false;
    out->a = s->t0_ns > a ? s->t0_ns : a;
    out->b = s->t1_ns < b ? s->t1_ns : b;
    return out->a < out->b;
}

static int by_start(const void *x, const void *y)
{
    const interval *p = x, *q = y;
    return (p->a > q->a) - (p->a < q->a);
}

int64_t sl_span_covered_ns(const sl_span *spans, size_t count, uint64_t job, const char *stage,
                           int64_t a_ns, int64_t b_ns)
{
    interval *in = malloc((count ? count : 1) * sizeof *in);
    size_t n = 0;
    int64_t covered = 0, end = a_ns;
    if (!in) return -1;
    for (size_t i = 0; i < count; i++)
        if (counts(&spans[i], job, stage, a_ns, b_ns, &in[n])) n++;
    qsort(in, n, sizeof *in, by_start);
    for (size_t i = 0; i < n; i++) {
        if (in[i].b <= end) continue;
        covered += in[i].b - (in[i].a > end ? in[i].a : end);
        end = in[i].b;
    }
    free(in);
    return covered;
}

void sl_span_sums_ns(const sl_span *spans, size_t count, uint64_t job, const char *stage,
                     int64_t a_ns, int64_t b_ns, int64_t sums[SL_SPAN_KIND_COUNT])
{
    memset(sums, 0, SL_SPAN_KIND_COUNT * sizeof *sums);
    for (size_t i = 0; i < count; i++) {
        interval part;
        if (spans[i].kind < SL_SPAN_KIND_COUNT && counts(&spans[i], job, stage, a_ns, b_ns, &part))
            sums[spans[i].kind] += part.b - part.a;
    }
}
