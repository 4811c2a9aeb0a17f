/* checkpoint.c - give every tensor of a file its place in a network.
 *
 * Pass 1 walks the entries: tensors with a place are renamed, what hangs beside a weight (scales,
 * ComfyUI's notes) is put aside. Pass 2 gives the scales to their weights. Then an 8-bit weight
 * that should have a scale and has none is looked for.
 * Sources: ComfyUI comfy/ops.py, comfy/quant_ops.py; ComfyUI-WanVideoWrapper
 * fp8_optimization.py; LightX2V tools/convert. */
#include "common/checkpoint.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "common/path.h"
#include "common/st_set.h"

#define RANGE 256 /* no weight is as large; codes of scaled weights reach 448 */

/* What hangs beside a module's weight. */
typedef enum { SCALE, INPUT_SCALE, NOTE } beside;

typedef struct {
    const sl_st_entry *e; /* of the old list */
    beside kind;
    int part;
    char weight[SL_NAME_BYTES + 8]; /* the weight that it belongs to */
} aside;

typedef struct {
    sl_st *st;
    sl_net net;
    sl_st_entry *entries; /* the new list */
    const char **was;     /* the entries' names in the file */
    int count, room;
    aside *asides;
    int aside_count;
    const char *marker; /* what says that the file's 8-bit weights have scales; NULL: nothing */
    sl_err *err;
} work;

static const char *path_of(const work *w, const sl_st_entry *e)
{
    return sl_st_path(w->st, e->shard);
}

/* ---- pass 1: names ---- */

static bool is_beside(const char *rest, beside *kind)
{
    static const struct {
        const char *rest;
        beside kind;
    } ALL[] = {{".scale_weight", SCALE},
               {".weight_scale", SCALE},
               {".scale_input", INPUT_SCALE},
               {".input_scale", INPUT_SCALE},
               {".comfy_quant", NOTE}};
    for (size_t i = 0; i < sizeof ALL / sizeof *ALL; i++)
        if (!strcmp(rest, ALL[i].rest)) {
            *kind = ALL[i].kind;
            return true;
        }
    return false;
}

/* One of `parts` equal runs of rows. */
static sl_code slice(const work *w, sl_st_entry *e, int part, int parts)
{
    sl_tensor *t = e->coding ? &e->coded : &e->t;
    char text[128];
    if (parts == 1 || !t->rank) return SL_OK;
    if (t->shape[0] % parts)
        return sl_fail(w->err, SL_FORMAT, "%s: %.*s has shape %s, want a multiple of %d rows",
                       path_of(w, e), SL_NAME_SHOWN, e->name, sl_shape_text(t, text, sizeof text),
                       parts);
    const size_t bytes = sl_st_stored(e) / (size_t)parts;
    t->shape[0] /= parts;
    t->data = (char *)t->data + bytes * (size_t)part;
    return SL_OK;
}

/* Take extents of 1 off the front until the rank is as wanted. */
static void squeeze(sl_tensor *t, int rank)
{
    int64_t shape[SL_MAX_RANK];
    int from = 0;
    while (rank && t->rank - from > rank && t->shape[from] == 1) from++;
    for (int i = from; i < t->rank; i++) shape[i - from] = t->shape[i];
    if (from) *t = sl_view(t->data, t->dtype, t->rank - from, shape);
}

static sl_code keep(work *w, const sl_st_entry *e, const sl_name *n)
{
    sl_st_entry *to = &w->entries[w->count];
    if (w->count == w->room)
        return sl_fail(w->err, SL_FORMAT, "%s: more tensors than its header has", path_of(w, e));
    *to = *e;
    w->was[w->count++] = e->name;
    if (!n) return SL_OK;
    sl_code rc = slice(w, to, n->part, n->parts);
    if (rc) return rc;
    squeeze(e->coding ? &to->coded : &to->t, n->rank);
    /* transformers has both of CLIP's names; a copy keeps what it finds */
    if (w->net == SL_NET_CLIP && n->naming == SL_NAMING_DIFFUSERS && !n->prefix) return SL_OK;
    const size_t size = strlen(n->module) + strlen(n->rest) + 1;
    char *name = sl_set_keep(w->st, size);
    if (!name) return sl_fail(w->err, SL_NOMEM, "%s: no memory for names", path_of(w, e));
    snprintf(name, size, "%s%s", n->module, n->rest);
    to->name = name;
    return SL_OK;
}

static void put_aside(work *w, const sl_st_entry *e, const sl_name *n, beside kind)
{
    aside *a = &w->asides[w->aside_count++];
    *a = (aside){.e = e, .kind = kind, .part = n->part};
    snprintf(a->weight, sizeof a->weight, "%s.weight", n->module);
}

static sl_code place(work *w, const sl_st_entry *e)
{
    sl_name n;
    beside kind;
    sl_code rc = SL_OK;
    if (!sl_names_find(w->net, e->name, 0, &n)) return keep(w, e, NULL);
    if (n.unneeded) {
        if (!strcmp(e->name + n.prefix, "scaled_fp8")) w->marker = "scaled_fp8";
        return SL_OK;
    }
    do {
        if (is_beside(n.rest, &kind)) put_aside(w, e, &n, kind);
        else rc = keep(w, e, &n);
    } while (!rc && n.part + 1 < n.parts && sl_names_find(w->net, e->name, n.part + 1, &n));
    return rc;
}

typedef struct {
    sl_st_entry e;
    const char *was;
} named;

static int by_place(const void *a, const void *b)
{
    return strcmp(((const named *)a)->e.name, ((const named *)b)->e.name);
}

/* Is a table that transformers' files may hold twice. */
static bool is_alias(const char *was)
{
    return sl_ends_with(was, "embed_tokens.weight");
}

static sl_code sort(work *w)
{
    named *all = malloc(((size_t)w->count + 1) * sizeof *all);
    sl_code rc = SL_OK;
    int n = 0;
    if (!all) return sl_fail(w->err, SL_NOMEM, "%s: no memory", sl_st_path(w->st, 0));
    for (int i = 0; i < w->count; i++) all[i] = (named){w->entries[i], w->was[i]};
    if (w->count) qsort(all, (size_t)w->count, sizeof *all, by_place);
    for (int i = 0; i < w->count && !rc; i++) {
        const bool again = n && !strcmp(w->entries[n - 1].name, all[i].e.name);
        if (again && is_alias(all[i].was)) continue;
        if (again && is_alias(w->was[n - 1])) n--;
        else if (again)
            rc = sl_fail(w->err, SL_FORMAT, "%s: %.*s and %.*s are both %.100s",
                         path_of(w, &all[i].e), 100, w->was[n - 1], 100, all[i].was, all[i].e.name);
        w->entries[n] = all[i].e;
        w->was[n++] = all[i].was;
    }
    w->count = n;
    free(all);
    return rc;
}

/* ---- pass 2: scales ---- */

static sl_st_entry *find(const work *w, const char *name)
{
    int lo = 0, hi = w->count;
    while (lo < hi) {
        const int mid = lo + (hi - lo) / 2, c = strcmp(w->entries[mid].name, name);
        if (!c) return &w->entries[mid];
        if (c < 0) lo = mid + 1;
        else hi = mid;
    }
    return NULL;
}

static bool is_known_format(const char *format)
{
    return !strcmp(format, "float8_e4m3fn") || !strcmp(format, "float8_e5m2");
}

static sl_code check_format(const work *w, const char *path, const char *module, const json_t *note)
{
    const char *format = json_string_value(json_object_get(note, "format"));
    if (format && is_known_format(format)) return SL_OK;
    return sl_fail(w->err, SL_FORMAT,
                   "%s: %.100s is quantised as %.40s, want float8_e4m3fn or float8_e5m2", path,
                   module, format ? format : "nothing that it says");
}

static sl_code read_note(work *w, const aside *a)
{
    json_t *note = NULL;
    const sl_tensor *t = &a->e->t;
    sl_code rc;
    w->marker = "comfy_quant";
    if (!t->rank || t->dtype != SL_U8)
        return sl_fail(w->err, SL_FORMAT, "%s: %.*s has dtype %s, want U8", path_of(w, a->e),
                       SL_NAME_SHOWN, a->e->name, a->e->dtype);
    if ((rc = sl_json_parse(&note, t->data, (size_t)sl_count(t), a->e->name, w->err)))
        return sl_context(w->err, rc, "%s", path_of(w, a->e));
    rc = check_format(w, path_of(w, a->e), a->weight, note);
    json_decref(note);
    return rc;
}

/* ComfyUI's list of quantised layers in the header. */
static sl_code read_metadata(work *w)
{
    const char *text = sl_st_metadata(w->st, "_quantization_metadata"), *module;
    json_t *root = NULL, *note;
    sl_code rc;
    if (!text) return SL_OK;
    const char *path = sl_st_path(w->st, 0);
    w->marker = "_quantization_metadata";
    if ((rc = sl_json_parse(&root, text, strlen(text), "_quantization_metadata", w->err)))
        return sl_context(w->err, rc, "%s", path);
    json_object_foreach(json_object_get(root, "layers"), module, note)
    {
        if ((rc = check_format(w, path, module, note))) break;
    }
    json_decref(root);
    return rc;
}

static sl_code give_scale(work *w, const aside *a)
{
    const char *path = path_of(w, a->e);
    sl_st_entry *e = find(w, a->weight);
    if (!e && !strncmp(a->weight, "vision_model.", 13)) e = find(w, a->weight + 13);
    const sl_tensor *t = &a->e->t;
    char text[128];
    if (a->kind == SCALE && !w->marker) w->marker = a->e->name;
    if (!e)
        return sl_fail(w->err, SL_FORMAT, "%s: %.*s has no weight beside it", path, SL_NAME_SHOWN,
                       a->e->name);
    if (a->kind == INPUT_SCALE) return SL_OK; /* of products in 8 bits, which are not made here */
    if (!e->coding)
        return sl_fail(w->err, SL_FORMAT,
                       "%s: %.*s is a scale for a weight of dtype %s, want F8_E4M3 or F8_E5M2",
                       path, SL_NAME_SHOWN, a->e->name, e->dtype);
    if (e->scale_count)
        return sl_fail(w->err, SL_FORMAT, "%s: %.*s is a second scale for %.100s", path,
                       SL_NAME_SHOWN, a->e->name, e->name);
    if (!t->rank || (t->dtype != SL_F32 && t->dtype != SL_BF16 && t->dtype != SL_F16))
        return sl_fail(w->err, SL_FORMAT, "%s: %.*s has dtype %s, want F32", path, SL_NAME_SHOWN,
                       a->e->name, a->e->dtype);
    const int64_t n = sl_count(t), rows = e->coded.shape[0];
    int64_t parts = 1; /* the rows of a tensor that holds several */
    while (n > 1 && parts < 3 && n != parts * rows) parts++;
    if (n != 1 && (n != parts * rows || t->shape[0] != n))
        return sl_fail(w->err, SL_FORMAT, "%s: %.*s has shape %s, want [] or [%lld, 1]", path,
                       SL_NAME_SHOWN, a->e->name, sl_shape_text(t, text, sizeof text),
                       (long long)rows);
    const int64_t keep_n = n == 1 ? 1 : rows;
    float *scales = sl_set_keep(w->st, (size_t)keep_n * sizeof *scales);
    if (!scales) return sl_fail(w->err, SL_NOMEM, "%s: no memory for scales", path);
    const char *from = t->data;
    if (n != 1) from += (int64_t)sl_dtype_size(t->dtype) * rows * a->part;
    sl_to_floats(scales, from, t->dtype, keep_n, NULL);
    for (int64_t i = 0; i < keep_n; i++)
        if (!(scales[i] > 0) || isinf(scales[i]))
            return sl_fail(w->err, SL_FORMAT, "%s: %.*s holds %g, want a finite scale above 0",
                           path, SL_NAME_SHOWN, a->e->name, (double)scales[i]);
    e->scales = scales;
    e->scale_count = keep_n;
    return SL_OK;
}

/* ---- 8-bit weights without a scale ---- */

static bool is_f8(const sl_st_entry *e)
{
    return e->coding == SL_F8_E4M3 || e->coding == SL_F8_E5M2;
}

static bool is_matrix(const sl_st_entry *e)
{
    return e->coded.rank >= 2 && sl_ends_with(e->name, ".weight");
}

/* The largest magnitude, NaN left out. */
static float largest(const sl_st_entry *e)
{
    float x[4096], most = 0;
    const int64_t n = sl_count(&e->coded);
    for (int64_t at = 0; at < n && most < RANGE; at += 4096) {
        const int64_t k = n - at < 4096 ? n - at : 4096;
        sl_st_floats(x, e, at, k);
        for (int64_t i = 0; i < k; i++)
            if (fabsf(x[i]) > most) most = fabsf(x[i]);
    }
    return most;
}

static sl_code check_scales(const work *w)
{
    bool looked = false;
    for (int i = 0; i < w->count; i++) {
        const sl_st_entry *e = &w->entries[i];
        if (!is_f8(e) || !is_matrix(e) || e->scale_count) continue;
        if (w->marker)
            return sl_fail(w->err, SL_FORMAT,
                           "%s: %.*s is %s without its scale, which %.60s says it has",
                           path_of(w, e), SL_NAME_SHOWN, w->was[i], e->dtype, w->marker);
        if (looked) continue;
        looked = true; /* one tells: scales are made so that the largest weight becomes 448 */
        const float most = largest(e);
        if (most >= RANGE)
            return sl_fail(w->err, SL_FORMAT,
                           "%s: %.*s is %s and holds %g, as scaled weights do, and the file has no "
                           "scales (scale_weight, weight_scale): it is not whole",
                           path_of(w, e), SL_NAME_SHOWN, w->was[i], e->dtype, (double)most);
    }
    return SL_OK;
}

/* ---- all of it ---- */

static sl_code adopt(work *w)
{
    const size_t n = (size_t)w->st->count;
    sl_code rc = SL_OK;
    w->room = (int)(3 * n); /* a tensor holds three at most */
    w->entries = malloc((3 * n + 1) * sizeof *w->entries);
    w->was = malloc((3 * n + 1) * sizeof *w->was);
    w->asides = malloc((3 * n + 1) * sizeof *w->asides);
    if (!w->entries || !w->was || !w->asides)
        return sl_fail(w->err, SL_NOMEM, "%s: no memory for %zu tensors", sl_st_path(w->st, 0), n);
    for (size_t i = 0; i < n && !rc; i++) rc = place(w, &w->st->entries[i]);
    if (!rc) rc = sort(w);
    if (!rc) rc = read_metadata(w);
    for (int i = 0; i < w->aside_count && !rc; i++)
        rc = w->asides[i].kind == NOTE ? read_note(w, &w->asides[i]) : give_scale(w, &w->asides[i]);
    return rc ? rc : check_scales(w);
}

sl_code sl_checkpoint_open(sl_st **out, sl_net net, const char *path, const char *stem, sl_err *err)
{
    work w = {.net = net, .err = err};
    sl_code rc = stem ? sl_st_open_dir(&w.st, path, stem, err) : sl_st_open_file(&w.st, path, err);
    *out = NULL;
    if (rc) return rc;
    if (!(rc = adopt(&w))) {
        free(w.st->entries);
        w.st->entries = w.entries;
        w.st->count = w.count;
        *out = w.st;
    } else {
        sl_one_line(err);
        free(w.entries);
        sl_st_close(&w.st);
    }
    free(w.was);
    free(w.asides);
    return rc;
}
