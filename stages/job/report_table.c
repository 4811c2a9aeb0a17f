/* report_table.c - the table of a report. */
#include "stages/job/report_table.h"

#include <ctype.h>
#include <string.h>

#include "common/json.h"
#include "common/pipeline.h"
#include "common/precision.h"

static long long integer(const json_t *o, const char *key)
{
    return (long long)json_integer_value(json_object_get(o, key));
}

/* A text in one line of a terminal. */
static const char *clean(char *out, size_t size, const char *t)
{
    snprintf(out, size, "%s", t ? t : "");
    for (char *c = out; *c; c++)
        if (iscntrl((unsigned char)*c)) *c = '?';
    return out;
}

static const char *text(char out[256], const json_t *o, const char *key)
{
    return clean(out, 256, json_string_value(json_object_get(o, key)));
}

static void print_stages(const json_t *report, FILE *to)
{
    json_t *stages = json_object_get(report, "stages"), *s;
    const char *name;
    const size_t ranks = json_array_size(json_object_get(report, "ranks"));
    char device[256], stage[SL_FILTER_NAME];
    int width = 8;
    json_object_foreach(stages, name, s)
    {
        const int n = (int)strlen(clean(stage, sizeof stage, name));
        if (n > width) width = n;
    }
    fprintf(to, "  %-*s %-7s %9s %9s %9s %9s %9s %9s %10s\n", width, "stage", "device", "loading",
            "queued", "turn", "computing", "waiting", "handover", "host MB");
    json_object_foreach(stages, name, s)
    {
        text(device, s, "device");
        if (sl_role_has_teams((sl_role)sl_role_by_name(name)) && ranks > 1)
            snprintf(device, sizeof device, "%zu ranks", ranks);
        fprintf(to, "  %-*s %-7s %9.3f %9.3f %9.3f %9.3f %9.3f %9.3f %10.1f\n", width,
                clean(stage, sizeof stage, name), device, sl_json_number_of(s, "loading"),
                sl_json_number_of(s, "queued"), sl_json_number_of(s, "turn"),
                sl_json_number_of(s, "computing"), sl_json_number_of(s, "waiting"),
                sl_json_number_of(s, "handing_over"), sl_json_number_of(s, "peak_bytes") * 1e-6);
    }
}

static void print_ranks(const json_t *ranks, FILE *to)
{
    size_t i;
    const json_t *k;
    if (!json_array_size(ranks)) return;
    fprintf(to, "  %-8s %-7s %9s %9s %9s %9s %9s %9s %9s %10s\n", "rank", "device", "attempts",
            "steps", "rows %", "computing", "exchange", "waiting", "sent GB", "GPU MB");
    json_array_foreach(ranks, i, k)
    {
        char gpu[24] = "-", device[256];
        if (sl_json_number_of(k, "device_bytes") > 0)
            snprintf(gpu, sizeof gpu, "%.1f", sl_json_number_of(k, "device_bytes") * 1e-6);
        fprintf(to, "  %-8lld %-7s %9lld %9lld %9.2f %9.3f %9.3f %9.3f %9.3f %10s\n",
                integer(k, "instance"), text(device, k, "device"), integer(k, "attempts"),
                integer(k, "steps"), sl_json_number_of(k, "rows") * 100,
                sl_json_number_of(k, "computing"), sl_json_number_of(k, "exchange"),
                sl_json_number_of(k, "waiting"), sl_json_number_of(k, "sent_bytes") * 1e-9, gpu);
    }
}

void sl_report_print_json(const json_t *r, const char *name, FILE *to)
{
    const json_t *steps = json_object_get(r, "steps"), *step;
    const double total = sl_json_number_of(r, "total"),
                 unaccounted = sl_json_number_of(r, "unaccounted");
    const long long restarts = integer(r, "restarts");
    int hits = 0, forwards = 0;
    size_t i;
    char status[256], message[256], seed[256], output[256], precision[256];
    json_array_foreach(steps, i, step)
    {
        static const char *const BRANCHES[] = {"cond", "uncond"};
        for (int b = 0; b < 2; b++) {
            const json_t *computed =
                json_object_get(json_object_get(step, BRANCHES[b]), "computed");
            forwards += json_is_boolean(computed);
            hits += json_is_false(computed);
        }
    }
    if (strcmp(text(status, r, "status"), "done")) {
        fprintf(to, "%s: %s\n", status, text(message, r, "message"));
        return;
    }
    fprintf(to, "\n%s  %lldx%lld, %lld frames at %g fps, %lld steps, seed %s",
            name ? name : text(output, r, "output"), integer(r, "width"), integer(r, "height"),
            integer(r, "frames"), sl_json_number_of(r, "fps"), integer(r, "step_count"),
            text(seed, r, "seed"));
    if (json_is_string(json_object_get(r, "output")))
        fprintf(to, ", %.2f MB", sl_json_number_of(r, "output_bytes") * 1e-6);
    fprintf(to, "\n");
    print_stages(r, to);
    print_ranks(json_object_get(r, "ranks"), to);
    fprintf(to, "  total %.3f s, unaccounted %.3f s (%.2f %%)", total, unaccounted,
            total > 0 ? 100 * unaccounted / total : 0);
    if (*text(precision, r, "precision") && strcmp(precision, sl_precision_name(SL_PRECISION_BF16)))
        fprintf(to, "; %s", precision);
    if (sl_json_number_of(r, "fbcache") > 0)
        fprintf(to, "; cache skipped %d of %d forwards", hits, forwards);
    if (restarts) fprintf(to, "; %lld restart%s", restarts, restarts == 1 ? "" : "s");
    fprintf(to, "\n");
}
