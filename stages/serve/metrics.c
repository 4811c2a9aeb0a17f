/* metrics.c - series in a table, printed by name. */
#include "stages/serve/metrics.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SERIES 4096
#define LABELS 256

typedef enum { COUNTER, GAUGE, HISTOGRAM } type;

static const struct {
    const char *name;
    type type;
    const char *help;
} ROWS[] = {
#define X(NAME, name, type, help) {name, type, help},
    SL_METRICS(X)
#undef X
};
static const char *const TYPES[] = {"counter", "gauge", "histogram"};

/* Upper bounds: answers take milliseconds, jobs take minutes. */
static const double BOUNDS[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                0.5,   1,      2.5,   5,    10,    30,   60,  120,
                                300,   600,    1800,  3600, 14400, 86400};
#define BOUND_COUNT ((int)(sizeof BOUNDS / sizeof *BOUNDS))

typedef struct {
    sl_metric which;
    char labels[LABELS];
    double value;                /* a histogram's sum */
    unsigned long long *buckets; /* a histogram's: BOUND_COUNT and one for all */
} series;

struct sl_metrics {
    pthread_mutex_t lock;
    int count;
    series at[SERIES];
};

sl_code sl_metrics_open(sl_metrics **out, sl_err *err)
{
    sl_metrics *m = *out = calloc(1, sizeof *m);
    if (!m) return sl_fail(err, SL_NOMEM, "serve: no memory");
    pthread_mutex_init(&m->lock, NULL);
    return SL_OK;
}

void sl_metrics_close(sl_metrics **mp)
{
    sl_metrics *m = *mp;
    *mp = NULL;
    if (!m) return;
    for (int i = 0; i < m->count; i++) free(m->at[i].buckets);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

void sl_metrics_escape(char *out, size_t size, const char *value)
{
    size_t n = 0;
    for (; *value && n + 3 < size; value++) {
        if (*value == '"' || *value == '\\') out[n++] = '\\';
        out[n++] = (unsigned char)*value < ' ' ? ' ' : *value;
    }
    out[n] = 0;
}

static series *find(sl_metrics *m, sl_metric which, const char *labels)
{
    for (int i = 0; i < m->count; i++)
        if (m->at[i].which == which && !strcmp(m->at[i].labels, labels)) return &m->at[i];
    if (m->count == SERIES || strlen(labels) >= LABELS) return NULL;
    series *s = &m->at[m->count];
    *s = (series){.which = which};
    memcpy(s->labels, labels, strlen(labels) + 1);
    if (ROWS[which].type == HISTOGRAM &&
        !(s->buckets = calloc((size_t)BOUND_COUNT + 1, sizeof *s->buckets)))
        return NULL;
    m->count++;
    return s;
}

void sl_metrics_add(sl_metrics *m, sl_metric which, const char *labels, double by)
{
    pthread_mutex_lock(&m->lock);
    series *s = find(m, which, labels);
    if (s) s->value += by;
    pthread_mutex_unlock(&m->lock);
}

void sl_metrics_set(sl_metrics *m, sl_metric which, const char *labels, double value)
{
    pthread_mutex_lock(&m->lock);
    series *s = find(m, which, labels);
    if (s) s->value = value;
    pthread_mutex_unlock(&m->lock);
}

void sl_metrics_forget(sl_metrics *m, sl_metric which)
{
    int kept = 0;
    pthread_mutex_lock(&m->lock);
    for (int i = 0; i < m->count; i++)
        if (m->at[i].which == which) free(m->at[i].buckets);
        else m->at[kept++] = m->at[i];
    m->count = kept;
    pthread_mutex_unlock(&m->lock);
}

void sl_metrics_observe(sl_metrics *m, sl_metric which, const char *labels, double value)
{
    pthread_mutex_lock(&m->lock);
    series *s = find(m, which, labels);
    if (s) {
        int b = 0;
        while (b < BOUND_COUNT && value > BOUNDS[b]) b++;
        s->buckets[b]++;
        s->value += value;
    }
    pthread_mutex_unlock(&m->lock);
}

static void print_series(const series *s, FILE *to)
{
    const char *name = ROWS[s->which].name, *comma = *s->labels ? "," : "";
    unsigned long long sum = 0;
    if (ROWS[s->which].type != HISTOGRAM) {
        if (*s->labels) fprintf(to, "%s{%s} %.17g\n", name, s->labels, s->value);
        else fprintf(to, "%s %.17g\n", name, s->value);
        return;
    }
    for (int b = 0; b <= BOUND_COUNT; b++) {
        sum += s->buckets[b];
        if (b < BOUND_COUNT)
            fprintf(to, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, s->labels, comma, BOUNDS[b], sum);
        else fprintf(to, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, s->labels, comma, sum);
    }
    if (*s->labels) {
        fprintf(to, "%s_sum{%s} %.17g\n", name, s->labels, s->value);
        fprintf(to, "%s_count{%s} %llu\n", name, s->labels, sum);
    } else fprintf(to, "%s_sum %.17g\n%s_count %llu\n", name, s->value, name, sum);
}

char *sl_metrics_print(sl_metrics *m, size_t *size)
{
    char *text = NULL;
    FILE *to = open_memstream(&text, size);
    if (!to) return NULL;
    pthread_mutex_lock(&m->lock);
    for (int k = 0; k < SL_METRIC_COUNT; k++) {
        bool any = false;
        for (int i = 0; i < m->count; i++) {
            if (m->at[i].which != (sl_metric)k) continue;
            if (!any)
                fprintf(to, "# HELP %s %s\n# TYPE %s %s\n", ROWS[k].name, ROWS[k].help,
                        ROWS[k].name, TYPES[ROWS[k].type]);
            any = true;
            print_series(&m->at[i], to);
        }
    }
    pthread_mutex_unlock(&m->lock);
    if (fclose(to)) {
        free(text);
        return NULL;
    }
    return text;
}
