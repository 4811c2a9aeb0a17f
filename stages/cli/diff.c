/* diff.c - `sluice diff A B`: two dumps, or two files of tensors, held against each other in the
 * pipeline's order; the first that parts, and the stage that made it. */
#include "stages/cli/verbs.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/json.h"
#include "common/log.h"
#include "stages/cli/compare.h"
#include "stages/cli/dumped.h"
#include "stages/cli/terminal.h"
#include "stages/job/dump.h"

#define JOB_BYTES (4u << 20)
#define SHAPE 96

typedef struct {
    const char *path[2]; /* A, B */
    double tol;          /* of relative L2 */
    bool json;
    sl_dump dump[2];
    const sl_dumped **by_name; /* those of B */
    json_t *notes[2];          /* dump.json; NULL: there is none */
    json_t *jobs;              /* what the jobs were asked for that is not alike: {key: [A, B]} */
    /* what came of it */
    json_t *rows;
    const sl_dumped *first; /* NULL: none parts */
    int alike, parted, alone;
} comparison;

/* ---- jobs ---- */

/* What a job is asked for beside its numbers: not a difference that makes one. */
static bool is_told(const char *key)
{
    static const char *const OUTPUTS[] = {"output",     "preview",     "dump",
                                          "dump_steps", "dump_blocks", "dump_blocks_of"};
    for (size_t i = 0; i < sizeof OUTPUTS / sizeof *OUTPUTS; i++)
        if (!strcmp(key, OUTPUTS[i])) return false;
    return true;
}

/* A JSON file of a dump; NULL: it has none that can be read. */
static json_t *read_file(const char *dir, const char *file)
{
    char path[SL_PATH];
    json_t *root = NULL;
    if (sl_path_join(path, dir, file, NULL) || access(path, F_OK) ||
        sl_json_read(&root, path, JOB_BYTES, NULL))
        return NULL;
    return root;
}

static void compare_jobs(comparison *c)
{
    json_t *a = c->dump[0].folder ? read_file(c->path[0], "job.json") : NULL,
           *b = a ? read_file(c->path[1], "job.json") : NULL, *value;
    const char *key;
    json_object_foreach(a, key, value)
    {
        json_t *other = json_object_get(b, key);
        if (b && is_told(key) && !json_equal(value, other))
            json_object_set_new(
                c->jobs, key, json_pack("[O, o]", value, other ? json_incref(other) : json_null()));
    }
    json_decref(a);
    json_decref(b);
    for (int i = 0; i < 2 && c->dump[i].folder; i++)
        c->notes[i] = read_file(c->path[i], SL_DUMP_NOTE);
}

/* ---- tensors ---- */

static int by_name(const void *a, const void *b)
{
    const sl_dumped *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static const sl_dumped *find(const comparison *c, const sl_dumped *t)
{
    const sl_dumped **hit =
        bsearch(&t, c->by_name, (size_t)c->dump[1].count, sizeof(void *), by_name);
    return hit ? *hit : NULL;
}

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

/* Where element `at` of the entry lies, as a list of indices. */
static json_t *place_of(const sl_st_entry *e, int64_t at)
{
    const sl_tensor *t = sl_st_shape(e);
    int64_t index[SL_MAX_RANK];
    json_t *list = json_array();
    for (int i = t->rank - 1; i >= 0; i--) {
        index[i] = at % t->shape[i];
        at /= t->shape[i];
    }
    for (int i = 0; i < t->rank; i++) json_array_append_new(list, json_integer(index[i]));
    return list;
}

/* What is told of a tensor whatever it is held against. */
static json_t *new_row(const sl_dumped *t)
{
    const sl_tensor *shape = sl_st_shape(t->entry);
    json_t *row = json_object(), *sizes = json_array();
    for (int i = 0; i < shape->rank; i++)
        json_array_append_new(sizes, json_integer(shape->shape[i]));
    json_object_set_new(row, "name", json_string(t->name));
    json_object_set_new(row, "stage",
                        t->stage < SL_ROLE_COUNT ? json_string(sl_role_name((sl_role)t->stage))
                                                 : json_null());
    if (*t->filter) json_object_set_new(row, "filter", json_string(t->filter));
    json_object_set_new(row, "shape", sizes);
    json_object_set_new(row, "dtype", json_string(t->entry->dtype));
    return row;
}

static void add_difference(json_t *row, const sl_dumped *t, const sl_difference *d, bool parts)
{
    json_object_set_new(row, "same", json_boolean(d->same));
    json_object_set_new(row, "parts", json_boolean(parts));
    json_object_set_new(row, "rel_l2", number(d->rel_l2));
    json_object_set_new(row, "largest", number(d->largest));
    if (d->same) return;
    json_object_set_new(row, "at", place_of(t->entry, d->at));
    json_object_set_new(row, "a", number(d->of_a));
    json_object_set_new(row, "b", number(d->of_b));
    json_object_set_new(row, "psnr", number(d->psnr));
}

/* Both have the tensor. */
static sl_code compare_one(comparison *c, const sl_dumped *a, const sl_dumped *b, sl_err *err)
{
    sl_difference d;
    sl_err why = {0};
    json_t *row = new_row(a);
    const sl_code rc = sl_compare(&d, a->entry, b->entry, &why);
    if (rc && rc != SL_SHAPE) {
        json_decref(row);
        return sl_fail(err, rc, "%.200s: %.200s", a->name, why.msg);
    }
    const bool parts = rc || (!d.same && !(d.rel_l2 <= c->tol));
    if (!rc) add_difference(row, a, &d, parts);
    else json_object_set_new(row, "unlike", json_string(why.msg));
    json_array_append_new(c->rows, row);
    c->alike += !parts;
    c->parted += parts;
    if (parts && !c->first) c->first = a;
    return SL_OK;
}

static void tell_alone(comparison *c, const sl_dumped *t, const char *whose)
{
    json_t *row = new_row(t);
    json_object_set_new(row, "only_in", json_string(whose));
    json_array_append_new(c->rows, row);
    c->alone++;
}

/* The tensors of both in one order. */
static sl_code compare_all(comparison *c, sl_err *err)
{
    const sl_dump *a = &c->dump[0], *b = &c->dump[1];
    char *met = calloc((size_t)b->count + 1, 1);
    c->by_name = calloc((size_t)b->count + 1, sizeof(void *));
    sl_code rc = met && c->by_name ? SL_OK : sl_fail(err, SL_NOMEM, "no memory");
    for (int i = 0; i < b->count && !rc; i++) c->by_name[i] = &b->at[i];
    if (!rc) qsort(c->by_name, (size_t)b->count, sizeof(void *), by_name);
    for (int i = 0; i < a->count && !rc; i++) {
        const sl_dumped *other = find(c, &a->at[i]);
        if (other) met[other - b->at] = 1;
    }
    for (int i = 0, k = 0; (i < a->count || k < b->count) && !rc;) {
        if (k < b->count && met[k]) k++; /* it comes with A's */
        else if (i == a->count || (k < b->count && sl_dumped_order(&b->at[k], &a->at[i]) < 0))
            tell_alone(c, &b->at[k++], "B");
        else {
            const sl_dumped *t = &a->at[i++], *other = find(c, t);
            if (other) rc = compare_one(c, t, other, err);
            else tell_alone(c, t, "A");
        }
    }
    free(met);
    return rc;
}

/* ---- what is said ---- */

static const char *text_of(const json_t *row, const char *key)
{
    const char *text = json_string_value(json_object_get(row, key));
    return text ? text : "";
}

static void list_text(const json_t *list, char *out, size_t size)
{
    size_t n = (size_t)snprintf(out, size, "["), i;
    json_t *value;
    json_array_foreach(list, i, value)
    {
        if (n < size)
            n += (size_t)snprintf(out + n, size - n, "%s%lld", i ? ", " : "",
                                  (long long)json_integer_value(value));
    }
    if (n < size) snprintf(out + n, size - n, "]");
}

/* `none`: what a number that JSON has none for is. */
static const char *real_text(const json_t *row, const char *key, const char *format,
                             const char *none, char *out, size_t size)
{
    const json_t *value = json_object_get(row, key);
    if (json_is_number(value)) snprintf(out, size, format, json_number_value(value));
    else snprintf(out, size, "%s", none);
    return out;
}

static void print_row(const json_t *row, int width)
{
    char shape[SHAPE], at[SHAPE], rel[32], largest[32], psnr[32];
    list_text(json_object_get(row, "shape"), shape, sizeof shape);
    printf("%-8s %-*s %-20s ", text_of(row, "stage"), width, text_of(row, "name"), shape);
    if (*text_of(row, "only_in")) printf("only in %s\n", text_of(row, "only_in"));
    else if (*text_of(row, "unlike")) printf("%s\n", text_of(row, "unlike"));
    else if (json_is_true(json_object_get(row, "same"))) printf("same\n");
    else {
        list_text(json_object_get(row, "at"), at, sizeof at);
        printf("%-12s %-12s %-20s %s dB%s\n",
               real_text(row, "rel_l2", "%.3g", "inf", rel, sizeof rel),
               real_text(row, "largest", "%.3g", "inf", largest, sizeof largest), at,
               real_text(row, "psnr", "%.1f", "-inf", psnr, sizeof psnr),
               json_is_true(json_object_get(row, "parts")) ? "" : "  within --tol");
    }
}

static void print_jobs(const comparison *c)
{
    const char *key;
    json_t *both;
    json_object_foreach(c->jobs, key, both)
    {
        char *a = json_dumps(json_array_get(both, 0), JSON_ENCODE_ANY | JSON_COMPACT),
             *b = json_dumps(json_array_get(both, 1), JSON_ENCODE_ANY | JSON_COMPACT);
        printf("job      ");
        sl_print_text(stdout, key, 40);
        for (int i = 0; i < 2; i++) {
            printf("%s", i ? ", " : ": ");
            sl_print_text(stdout, i ? (b ? b : "?") : (a ? a : "?"), 60);
        }
        putchar('\n');
        free(a);
        free(b);
    }
}

/* A dump of a job that did not come to its end, and why. */
static void print_incomplete(const comparison *c)
{
    for (int i = 0; i < 2; i++)
        if (json_is_false(json_object_get(c->notes[i], "complete"))) {
            printf("dump     %c is not complete, its job is %s: ", 'A' + i,
                   text_of(c->notes[i], "end"));
            sl_print_text(stdout, text_of(c->notes[i], "message"), 0);
            putchar('\n');
        }
}

static void print_text(const comparison *c)
{
    char maker[80];
    size_t i;
    json_t *row;
    int width = 8;
    json_array_foreach(c->rows, i, row)
    {
        const int n = (int)strlen(text_of(row, "name"));
        if (n > width) width = n;
    }
    print_incomplete(c);
    print_jobs(c);
    printf("%-8s %-*s %-20s %-12s %-12s %-20s %s\n", "stage", width, "tensor", "shape",
           "relative L2", "largest", "at", "PSNR");
    json_array_foreach(c->rows, i, row)
    {
        print_row(row, width);
    }
    if (c->first && c->first->stage < SL_ROLE_COUNT)
        printf("the first that parts: %s, made by %s\n", c->first->name,
               sl_dumped_maker(c->first, maker, sizeof maker));
    else if (c->first) printf("the first that parts: %s\n", c->first->name);
    else if (c->alone) printf("none parts, %d are in one alone\n", c->alone);
    else printf("none parts\n");
}

static sl_code print_json(comparison *c, sl_err *err)
{
    char maker[80];
    json_t *root =
        json_pack("{s:[s, s], s:f, s:b, s:O, s:O, s:i, s:i, s:i}", "dumps", c->path[0], c->path[1],
                  "tol", c->tol, "parts", c->parted || c->alone, "jobs", c->jobs, "tensors",
                  c->rows, "alike", c->alike, "parted", c->parted, "in_one", c->alone);
    if (!root) return sl_fail(err, SL_NOMEM, "no memory");
    json_object_set_new(root, "complete",
                        json_pack("[O?, O?]", json_object_get(c->notes[0], "complete"),
                                  json_object_get(c->notes[1], "complete")));
    json_object_set_new(root, "first",
                        c->first ? json_pack("{s:s, s:s}", "name", c->first->name, "made_by",
                                             sl_dumped_maker(c->first, maker, sizeof maker))
                                 : json_null());
    const sl_code rc = sl_json_to_file(root, "-", err);
    json_decref(root);
    return rc;
}

/* ---- the command ---- */

static sl_code parse(comparison *c, int argc, char **argv, sl_err *err)
{
    static const struct option OPTIONS[] = {{"tol", 1, 0, 't'}, {"json", 0, 0, 'j'}, {0}};
    static const char usage[] = "diff wants two dumps, or two files of tensors: sluice diff A B "
                                "[--tol T] [--json]";
    char *end;
    int o;
    opterr = 0;
    optind = 1;
    while ((o = getopt_long(argc, argv, ":", OPTIONS, NULL)) >= 0) {
        if (o == 'j') c->json = true;
        else if (o == 't') {
            c->tol = strtod(optarg, &end);
            if (end == optarg || *end || !(c->tol >= 0) || !isfinite(c->tol))
                return sl_fail(err, SL_ARG, "--tol is \"%.60s\", want a relative L2 of 0 or more",
                               optarg);
        } else return sl_fail(err, SL_ARG, "%s", usage);
    }
    if (argc - optind != 2) return sl_fail(err, SL_ARG, "%s", usage);
    for (int i = 0; i < 2; i++) c->path[i] = argv[optind + i];
    return SL_OK;
}

static sl_code compare(comparison *c, sl_err *err)
{
    sl_code rc;
    c->jobs = json_object();
    c->rows = json_array();
    for (int i = 0; i < 2; i++)
        if ((rc = sl_dump_open(&c->dump[i], c->path[i], err))) return rc;
    if (c->dump[0].folder != c->dump[1].folder)
        return sl_fail(err, SL_ARG, "%.200s is a dump and %.200s is a file, want two of a kind",
                       c->path[!c->dump[0].folder], c->path[c->dump[0].folder]);
    compare_jobs(c);
    return compare_all(c, err);
}

int sl_cli_diff(int argc, char **argv)
{
    comparison c = {0};
    sl_err err = {0};
    int status = SL_EXIT_REFUSED;
    /* getopt looks from the second word on */
    if (!parse(&c, argc + 1, argv - 1, &err) && !compare(&c, &err)) {
        status = c.parted || c.alone ? SL_EXIT_FAILED : SL_EXIT_OK;
        if (!c.json) print_text(&c);
        else if (print_json(&c, &err)) status = SL_EXIT_FAILED;
    }
    if (err.code) sl_complain("%s", err.msg);
    for (int i = 0; i < 2; i++) {
        sl_dump_close(&c.dump[i]);
        json_decref(c.notes[i]);
    }
    free(c.by_name);
    json_decref(c.jobs);
    json_decref(c.rows);
    return status;
}
