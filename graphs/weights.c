/* weights.c - the four loaders behind sl_weight: from a checkpoint, counting only,
 * random, and inspecting. */
#include "graphs/weights.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/json.h"
#include "common/log.h"
#include "common/trace.h"
#include "graphs/team_load.h"
#include "kernels/plugin.h"

/* device memory for small tensors is taken in pieces of this size */
#define SLAB ((size_t)1 << 20)
#define ALIGN 256
#define STAGE ((int64_t)8 << 20) /* elements converted on the host before one upload */
/* Bytes of matrices that lie on a device while they become 8 bits, or the largest one's: before
 * there is an arena. A plug-in's load has a start of its own, so it gets more at a time. */
#define EIGHT_STAGE ((size_t)512 << 20)
#define EIGHT_STAGE_PLUGIN ((size_t)2 << 30)
#define BLOCK 4096 /* elements that one thread converts at a time */
#define NAME_BYTES 256

typedef enum { FROM_FILE, PLAN, RANDOM, INSPECT } loader_mode;
enum { UNSEEN, WANTED, SKIPPED }; /* what became of a checkpoint's tensor */

/* Where a tensor's numbers come from: host memory, or a random sequence centre + spread *
 * (-1 .. 1). */
typedef struct {
    const void *data;         /* NULL: coded or random */
    const sl_st_entry *coded; /* NULL: data or random */
    sl_dtype dtype;
    uint64_t seed;
    float centre, spread;
} source;

/* A tensor that sl_loader_finish will bring onto the device. */
typedef struct {
    sl_tensor *out;   /* the caller's; its data is set in the end */
    sl_tensor *scale; /* likewise of a matrix in 8 bits; NULL: of another */
    sl_tensor t;      /* as it will be there; in 8 bits the codes */
    size_t at;        /* its place in the allocation, and */
    char *dst;        /* in memory */
    bool conv;
    source from;
    const sl_st_entry *entry; /* NULL: random */
    char *name;
} pending;

/* What sl_loader_place gives, and what it takes to read it again. */
typedef struct {
    sl_weight_place of;
    const sl_st_entry *entry;
    source from;
} asked;

struct sl_loader {
    loader_mode mode;
    sl_ctx *ctx;
    char label[64];
    sl_st *st;           /* the checkpoint; NULL for PLAN and RANDOM */
    unsigned char *seen; /* one of the enum above per entry of st */
    int *fds; /* a descriptor a file, in order of shards; -1: no tensor of it was read yet. NULL:
               * none was at all */
    uint64_t seed;
    sl_err err;    /* the first error */
    void **blocks; /* device memory taken */
    int block_count;
    char *slab; /* the last slab: NULL when nothing is really taken */
    size_t slab_left;
    void *stage; /* STAGE elements of up to 4 bytes, host */
    size_t bytes, mapped;
    int64_t parameters;
    pending *wants; /* on a device, until sl_loader_finish */
    int want_count, want_room;
    size_t want_bytes;
    asked *places;
    int place_count, place_room;
    int *by_name; /* indices of places, sorted by sl_loader_finish */
    uint64_t bytes_read;
    int64_t load_ns;
    sl_comm *comm; /* with whom the reading is shared; team.size below 2: with nobody */
    sl_lane lane;
    sl_team team;
    sl_loader_sharing shared;
    sl_weight_fn *watch; /* may be NULL */
    void *watch_user;
    char **findings;
    int finding_count;
    bool finished; /* the left-over tensors are among the findings */
};

/* ---- opening and closing ---- */

static sl_code open_loader(sl_loader **out, loader_mode mode, sl_ctx *ctx, const char *dir,
                           const char *stem, const char *label, sl_err *err)
{
    sl_loader *l = calloc(1, sizeof *l);
    sl_code rc = SL_OK;
    *out = NULL;
    if (!l) return sl_fail(err, SL_NOMEM, "%s: no memory for a loader", label);
    l->mode = mode;
    l->ctx = ctx;
    l->shared.ranks = 1;
    snprintf(l->label, sizeof l->label, "%s", label);
    if (dir && (rc = sl_st_open_dir(&l->st, dir, stem, err))) sl_context(err, rc, "%s", label);
    if (!rc && l->st && !(l->seen = calloc(1, (size_t)sl_st_size(l->st) + 1)))
        rc = sl_fail(err, SL_NOMEM, "%s: no memory for a loader", label);
    if (rc) sl_loader_close(&l);
    *out = l;
    return rc;
}

sl_code sl_loader_file(sl_loader **out, sl_ctx *ctx, const char *dir, const char *stem,
                       const char *label, sl_err *err)
{
    return open_loader(out, FROM_FILE, ctx, dir, stem, label, err);
}

static sl_code open_set(sl_loader **out, loader_mode mode, sl_ctx *ctx, sl_st **st,
                        const char *label, sl_err *err)
{
    sl_st *set = *st;
    *st = NULL;
    sl_code rc = open_loader(out, mode, ctx, NULL, NULL, label, err);
    if (rc) {
        sl_st_close(&set);
        return rc;
    }
    (*out)->st = set;
    if (((*out)->seen = calloc(1, (size_t)sl_st_size(set) + 1))) return SL_OK;
    sl_loader_close(out);
    return sl_fail(err, SL_NOMEM, "%s: no memory for a loader", label);
}

sl_code sl_loader_set(sl_loader **out, sl_ctx *ctx, sl_st **st, const char *label, sl_err *err)
{
    return open_set(out, FROM_FILE, ctx, st, label, err);
}

sl_code sl_loader_inspect_set(sl_loader **out, sl_ctx *ctx, sl_st **st, const char *label,
                              sl_err *err)
{
    return open_set(out, INSPECT, ctx, st, label, err);
}

sl_code sl_loader_plan(sl_loader **out, sl_ctx *ctx, const char *label, sl_err *err)
{
    return open_loader(out, PLAN, ctx, NULL, NULL, label, err);
}

sl_code sl_loader_random(sl_loader **out, sl_ctx *ctx, uint64_t seed, const char *label,
                         sl_err *err)
{
    sl_code rc = open_loader(out, RANDOM, ctx, NULL, NULL, label, err);
    if (!rc) (*out)->seed = seed;
    return rc;
}

sl_code sl_loader_inspect(sl_loader **out, sl_ctx *ctx, const char *dir, const char *stem,
                          const char *label, sl_err *err)
{
    return open_loader(out, INSPECT, ctx, dir, stem, label, err);
}

static void forget_wants(sl_loader *l)
{
    for (int i = 0; i < l->want_count; i++) free(l->wants[i].name);
    l->want_count = 0;
    l->want_bytes = 0;
}

static void close_files(sl_loader *l)
{
    for (int i = 0; l->fds && i < sl_st_shards(l->st); i++)
        if (l->fds[i] >= 0) close(l->fds[i]);
    free(l->fds);
    l->fds = NULL;
}

void sl_loader_close(sl_loader **pl)
{
    sl_loader *l = *pl;
    *pl = NULL;
    if (!l) return;
    for (int i = 0; i < l->block_count; i++) sl_device_free(l->ctx, l->blocks[i]);
    for (int i = 0; i < l->finding_count; i++) free(l->findings[i]);
    forget_wants(l);
    for (int i = 0; i < l->place_count; i++) free(l->places[i].of.name);
    free(l->places);
    free(l->by_name);
    free(l->wants);
    free(l->blocks);
    free(l->findings);
    free(l->stage);
    free(l->seen);
    close_files(l);
    sl_st_close(&l->st);
    free(l);
}

/* ---- errors and findings ---- */

static void fail(sl_loader *l, sl_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void fail(sl_loader *l, sl_code code, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    if (l->err.code) return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    sl_fail(&l->err, code, "%s: %s", l->label, text);
    sl_one_line(&l->err);
}

/* Take an error of the context over, so that it is told once, with the tensor's name. */
static void take_error(sl_loader *l, const char *name)
{
    sl_err e;
    if (sl_ok(l->ctx)) return;
    if (sl_ctx_error(l->ctx, &e)) fail(l, e.code, "%s: %s", name, e.msg);
}

static void finding(sl_loader *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void finding(sl_loader *l, const char *fmt, ...)
{
    char *text;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    char **more = realloc(l->findings, ((size_t)l->finding_count + 1) * sizeof *more);
    if (more) l->findings = more;
    if (n < 0 || !more) {
        if (n >= 0) free(text);
        fail(l, SL_NOMEM, "no memory for findings");
        return;
    }
    for (char *p = text; *p; p++) /* names come from files: one line stays one line */
        if ((unsigned char)*p < 32) *p = '?';
    l->findings[l->finding_count++] = text;
}

/* ---- device memory ---- */

/* True: nothing is read or taken, only shapes and sizes matter. */
static bool is_dry(const sl_loader *l)
{
    return l->mode == PLAN || l->mode == INSPECT || l->ctx->ops->plan;
}

/* True: device memory is host memory, so that what is mapped needs no copy. */
static bool is_on_host(const sl_loader *l)
{
    return l->ctx->ops->host_memory;
}

static void *new_block(sl_loader *l, size_t bytes)
{
    void **more, *p;
    if (!(more = realloc(l->blocks, ((size_t)l->block_count + 1) * sizeof *more))) {
        fail(l, SL_NOMEM, "no memory for its list of blocks");
        return NULL;
    }
    l->blocks = more;
    if ((p = sl_device_alloc(l->ctx, bytes))) l->blocks[l->block_count++] = p;
    return p;
}

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* `bytes` of host memory, 256-byte aligned; small ones share slabs. NULL when dry or
 * after an error. */
static void *take(sl_loader *l, size_t bytes)
{
    char *p;
    bytes = aligned(bytes);
    if (bytes > SLAB / 4) {
        l->bytes += bytes;
        return is_dry(l) ? NULL : new_block(l, bytes);
    }
    if (bytes > l->slab_left) {
        l->slab = is_dry(l) ? NULL : new_block(l, SLAB);
        l->slab_left = SLAB;
        l->bytes += SLAB;
    }
    p = l->slab;
    if (p) l->slab += bytes;
    l->slab_left -= bytes;
    return p;
}

/* Note `bytes` for *out (and *scale, unless it is NULL) on the device; sl_loader_finish takes and
 * fills them. */
static void take_later(sl_loader *l, sl_tensor *out, sl_tensor *scale, size_t bytes, bool conv,
                       const source *s, const sl_st_entry *entry, const char *name)
{
    l->bytes += aligned(bytes);
    if (is_dry(l)) return;
    if (l->want_count == l->want_room) {
        int room = l->want_room ? 2 * l->want_room : 256;
        pending *more = realloc(l->wants, (size_t)room * sizeof *more);
        if (!more) {
            fail(l, SL_NOMEM, "no memory for its list of tensors");
            return;
        }
        l->wants = more;
        l->want_room = room;
    }
    char *copy = strdup(name);
    if (!copy) {
        fail(l, SL_NOMEM, "no memory for its list of tensors");
        return;
    }
    l->wants[l->want_count++] = (pending){.out = out,
                                          .scale = scale,
                                          .t = *out,
                                          .at = l->want_bytes,
                                          .conv = conv,
                                          .from = *s,
                                          .entry = entry,
                                          .name = copy};
    l->want_bytes += aligned(bytes);
}

/* ---- numbers ---- */

static uint64_t mix(uint64_t x) /* splitmix64 */
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Elements [first, first + n) of a source as float32. */
static void produce(float *dst, const source *s, int64_t first, int64_t n)
{
    if (s->data) {
        sl_to_floats(dst, (const char *)s->data + first * (int64_t)sl_dtype_size(s->dtype),
                     s->dtype, n, NULL);
        return;
    }
    if (s->coded) {
        sl_st_floats(dst, s->coded, first, n);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        dst[i] =
            s->centre +
            s->spread * ((float)(int32_t)(mix(s->seed + (uint64_t)(first + i)) >> 32) * 0x1p-31f);
}

/* The same as dtype, in host memory. */
static void convert(void *dst, sl_dtype dtype, const source *s, int64_t first, int64_t n)
{
    int64_t blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        float x[BLOCK];
        int64_t k = n - b * BLOCK < BLOCK ? n - b * BLOCK : BLOCK;
        produce(x, s, first + b * BLOCK, k);
        sl_from_floats((char *)dst + b * BLOCK * (int64_t)sl_dtype_size(dtype), dtype, x, k, NULL);
    }
}

/* Fill a dense device tensor: straight from the mapping where the dtypes agree, else
 * through the host's stage. */
static void put(sl_loader *l, const sl_tensor *dst, const source *s)
{
    int64_t n = sl_count(dst);
    if (s->data && s->dtype == dst->dtype) {
        sl_upload(l->ctx, dst, s->data);
        return;
    }
    if (!l->stage && !(l->stage = malloc((size_t)STAGE * sizeof(float)))) {
        fail(l, SL_NOMEM, "no memory for a stage of %zu bytes", (size_t)STAGE * sizeof(float));
        return;
    }
    for (int64_t at = 0; at < n && sl_ok(l->ctx); at += STAGE) {
        int64_t k = n - at < STAGE ? n - at : STAGE;
        sl_tensor part =
            sl_view1((char *)dst->data + at * (int64_t)sl_dtype_size(dst->dtype), dst->dtype, k);
        convert(l->stage, dst->dtype, s, at, k);
        sl_upload(l->ctx, &part, l->stage);
        sl_sync(l->ctx); /* the stage is filled anew next */
    }
}

/* Pack a convolution's numbers at dst, device memory of packed_conv_bytes. */
static void put_conv(sl_loader *l, void *dst, const int64_t shape[5], const source *s)
{
    sl_tensor t = sl_view(NULL, SL_F32, 5, shape);
    float *host = malloc(sl_bytes(&t));
    if (!host) {
        fail(l, SL_NOMEM, "no memory for %zu bytes of a convolution", sl_bytes(&t));
        return;
    }
    convert(host, SL_F32, s, 0, sl_count(&t));
    l->ctx->ops->pack_conv(l->ctx, dst, host, shape);
    sl_sync(l->ctx);
    free(host);
}

/* ---- matrices in 8 bits ---- */

/* Codes and scales of [n, k], one after the other from `at` on (NULL: nowhere yet). */
static sl_eight eight_at(void *at, const int64_t shape[2])
{
    sl_eight e = {sl_view(at, SL_E4M3, 2, shape), sl_view1(NULL, SL_F32, shape[0])};
    if (at) e.scale.data = (char *)at + aligned(sl_bytes(&e.codes));
    return e;
}

static size_t eight_bytes(const sl_eight *e)
{
    return aligned(sl_bytes(&e->codes)) + aligned(sl_bytes(&e->scale));
}

/* The checkpoint holds the very codes: a scale for all is one a row. */
static bool has_codes(const source *s)
{
    return s->coded && s->coded->coding == SL_F8_E4M3;
}

static void put_codes(sl_loader *l, const sl_eight *e, const sl_st_entry *from)
{
    const int64_t n = e->scale.shape[0];
    float *scales = malloc((size_t)n * sizeof *scales + 1);
    if (!scales) {
        fail(l, SL_NOMEM, "no memory for %lld scales", (long long)n);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        scales[i] = from->scale_count ? from->scales[from->scale_count > 1 ? i : 0] : 1;
    sl_upload(l->ctx, &e->codes, from->coded.data);
    sl_upload(l->ctx, &e->scale, scales);
    sl_sync(l->ctx);
    free(scales);
}

/* In host memory: as many rows at a time as the stage holds. */
static void put_eight(sl_loader *l, const sl_eight *e, const source *s)
{
    const int64_t n = e->codes.shape[0], k = e->codes.shape[1],
                  at_once = k < STAGE ? STAGE / (k ? k : 1) : 1;
    if (has_codes(s)) {
        put_codes(l, e, s->coded);
        return;
    }
    float *floats = malloc((size_t)((n < at_once ? n : at_once) * k) * sizeof *floats + 1);
    if (!floats) fail(l, SL_NOMEM, "no memory for rows of %lld numbers", (long long)k);
    for (int64_t at = 0, rows; floats && at < n && sl_ok(l->ctx); at += rows) {
        rows = n - at < at_once ? n - at : at_once;
        const sl_tensor x = sl_view2(floats, SL_F32, rows, k);
        const sl_eight to = sl_eight_rows(e, at, rows);
        convert(floats, SL_F32, s, at * k, rows * k);
        sl_quantise_rows(l->ctx, &to, &x);
    }
    free(floats);
}

/* ---- one tensor ---- */

/* "....norm2.weight", "...layer_norm.weight", "...norm1.gamma" */
static bool is_norm(const char *name)
{
    const char *dot = strrchr(name, '.');
    if (!dot) return false;
    if (!strcmp(dot, ".gamma")) return true;
    if (strcmp(dot, ".weight")) return false;
    const char *part = dot;
    while (part > name && part[-1] != '.') part--;
    const char *norm = strstr(part, "norm");
    return norm && norm < dot;
}

static source random_source(uint64_t seed, const sl_tensor *t, const char *name)
{
    int64_t k = 1;
    for (const char *p = name; *p; p++) seed = mix(seed ^ (unsigned char)*p);
    for (int i = 1; i < t->rank; i++) k *= t->shape[i];
    if (is_norm(name)) return (source){.seed = seed, .centre = 1, .spread = 0.1f};
    if (t->rank == 1) return (source){.seed = seed, .spread = 0.02f};
    /* deviation 1/sqrt(k) */
    return (source){.seed = seed, .spread = (float)sqrt(3.0 / (double)(k > 0 ? k : 1))};
}

void sl_weight_random(void *dst, sl_dtype dtype, uint64_t seed, const char *name,
                      const sl_tensor *t, int64_t first, int64_t n)
{
    source s = random_source(seed, t, name);
    convert(dst, dtype, &s, first, n);
}

/* The checkpoint's tensor of this name, right in shape and dtype; NULL with an error or a
 * finding. */
static const sl_st_entry *look_up(sl_loader *l, const sl_tensor *want, const char *name)
{
    char a[128], b[128];
    const sl_st_entry *e = sl_st_find(l->st, name);
    sl_shape_text(want, b, sizeof b);
    if (!e) {
        if (l->mode == INSPECT) finding(l, "missing %s %s", name, b);
        else fail(l, SL_SHAPE, "%s is missing, want %s in %s", name, b, sl_st_path(l->st, 0));
        return NULL;
    }
    const sl_tensor *t = sl_st_shape(e);
    l->seen[e - sl_st_at(l->st, 0)] = WANTED;
    if (t->rank == 0 || (t->dtype != SL_F32 && t->dtype != SL_BF16 && t->dtype != SL_F16)) {
        if (l->mode == INSPECT) finding(l, "unusable %s %s, want F32, BF16 or F16", name, e->dtype);
        else
            fail(l, SL_SHAPE, "%s has dtype %s, want F32, BF16 or F16 (%s)", name, e->dtype,
                 sl_st_path(l->st, e->shard));
        return NULL;
    }
    if (!sl_same_shape(t, want)) {
        sl_shape_text(t, a, sizeof a);
        if (l->mode == INSPECT) finding(l, "misshapen %s %s, want %s", name, a, b);
        else
            fail(l, SL_SHAPE, "%s has shape %s, want %s (%s)", name, a, b,
                 sl_st_path(l->st, e->shard));
        return NULL;
    }
    return e;
}

static void conv_weight(sl_loader *l, sl_tensor *out, const source *s, const sl_st_entry *entry,
                        const char *name)
{
    const sl_ops *ops = l->ctx->ops;
    int64_t five[5] = {out->shape[0], out->shape[1], 1, out->shape[out->rank - 2],
                       out->shape[out->rank - 1]};
    if (out->rank == 5) five[2] = out->shape[2];
    *out = sl_view(NULL, ops->act, 5, five);
    size_t bytes = ops->packed_conv_bytes ? ops->packed_conv_bytes(l->ctx, five) : sl_bytes(out);
    if (!is_on_host(l)) take_later(l, out, NULL, bytes, true, s, entry, name);
    else if ((out->data = take(l, bytes))) put_conv(l, out->data, five, s);
}

static bool is_matrix(sl_weight_kind kind)
{
    return kind == SL_W_MATRIX || kind == SL_W_MATRIX_F32;
}

/* True: the tensor may stay where the file is mapped. Matrices as stored; large F32 tables
 * as well. */
static bool stays_mapped(const sl_tensor *t, sl_weight_kind kind, const source *s)
{
    if (s->coded || (uintptr_t)s->data % sl_dtype_size(s->dtype)) return false;
    return is_matrix(kind) || (kind == SL_W_FLOAT && s->dtype == SL_F32 && sl_bytes(t) > SLAB / 4);
}

static void plain_weight(sl_loader *l, sl_tensor *out, sl_weight_kind kind, const source *s,
                         const sl_st_entry *entry, const char *name)
{
    sl_dtype dtype = kind == SL_W_FLOAT || kind == SL_W_MATRIX_F32 ? SL_F32 : l->ctx->ops->act;
    if (is_matrix(kind) && l->st && l->ctx->ops->stored_matrices) dtype = s->dtype;
    *out = sl_view(NULL, dtype, out->rank, out->shape);
    if (!is_on_host(l)) {
        take_later(l, out, NULL, sl_bytes(out), false, s, entry, name);
        return;
    }
    bool mapped = stays_mapped(out, kind, s);
    if (mapped && (l->st || l->mode == PLAN)) l->mapped += sl_bytes(out);
    if (mapped && l->st) {
        l->bytes += sl_bytes(out);
        if (!is_dry(l)) out->data = (void *)(uintptr_t)s->data; /* read-only, as all weights */
        return;
    }
    out->data = take(l, sl_bytes(out));
    if (out->data) put(l, out, s);
}

/* Remember what was asked for; scale NULL: not in 8 bits. */
static void add_place(sl_loader *l, sl_tensor *out, sl_tensor *scale, const source *s,
                      const sl_st_entry *entry, const char *name)
{
    if (l->place_count == l->place_room) {
        const int room = l->place_room ? 2 * l->place_room : 256;
        asked *more = realloc(l->places, (size_t)room * sizeof *more);
        if (!more) {
            fail(l, SL_NOMEM, "no memory for its list of tensors");
            return;
        }
        l->places = more;
        l->place_room = room;
    }
    char *copy = strdup(name);
    if (!copy) {
        fail(l, SL_NOMEM, "no memory for its list of tensors");
        return;
    }
    free(l->by_name);
    l->by_name = NULL;
    l->places[l->place_count++] = (asked){
        .of = {.name = copy,
               .out = out,
               .scale = scale,
               .stored_bytes = entry ? sl_st_stored(entry) : 0,
               .exact = !scale && (!entry || out->dtype == SL_F32 || out->dtype == s->dtype)},
        .entry = entry,
        .from = *s};
}

static void tell(sl_weight_fn *fn, void *user, const sl_st_entry *e)
{
    sl_tensor stored = *sl_st_shape(e);
    if (e->coding) stored.data = NULL;
    fn(user, e->name, &stored, e);
}

/* A weight's name from a caller's format; false: too long, an error is kept. */
__attribute__((format(printf, 3, 0))) static bool name_of(sl_loader *l, char name[NAME_BYTES],
                                                          const char *fmt, va_list ap)
{
    const int length = vsnprintf(name, NAME_BYTES, fmt, ap);
    if (length >= 0 && length < NAME_BYTES) return true;
    fail(l, SL_INTERNAL, "a weight's name has %d characters, want at most %d", length,
         NAME_BYTES - 1);
    return false;
}

/* Where the numbers of `want` come from, told to who watches; *entry: of a checkpoint. false: from
 * nowhere, which is an error or a finding. */
static bool find_source(sl_loader *l, source *s, const sl_st_entry **entry, const sl_tensor *want,
                        const char *name)
{
    *entry = NULL;
    *s = (source){.dtype = l->ctx->ops->act};
    if (l->st) {
        if (!(*entry = look_up(l, want, name))) return false;
        if ((*entry)->coding) *s = (source){.coded = *entry, .dtype = SL_F32};
        else *s = (source){.data = (*entry)->t.data, .dtype = (*entry)->t.dtype};
        if (l->watch) tell(l->watch, l->watch_user, *entry);
        return true;
    }
    const sl_tensor stored = sl_view(NULL, SL_F32, want->rank, want->shape);
    if (l->watch) l->watch(l->watch_user, name, &stored, NULL);
    if (l->mode == RANDOM) *s = random_source(l->seed, want, name);
    return true;
}

void sl_weight(sl_loader *l, sl_tensor *out, sl_weight_kind kind, int rank, const int64_t *shape,
               const char *fmt, ...)
{
    char name[NAME_BYTES];
    const sl_st_entry *entry;
    source s;
    int64_t bytes;
    sl_err e;
    va_list ap;
    va_start(ap, fmt);
    const bool named = name_of(l, name, fmt, ap);
    va_end(ap);
    *out = (sl_tensor){0};
    if (!named) return;
    if (rank < 1 || (kind == SL_W_CONV && rank != 4 && rank != 5)) {
        fail(l, SL_INTERNAL, "%s is asked for with %d dimensions", name, rank);
        return;
    }
    if (sl_shape_bytes(SL_F32, rank, shape, &bytes, &e)) {
        fail(l, e.code, "%s: %s", name, e.msg);
        return;
    }
    *out = sl_view(NULL, l->ctx->ops->act, rank, shape);
    l->parameters += sl_count(out);
    if (l->err.code || !find_source(l, &s, &entry, out, name)) return;
    if (kind == SL_W_CONV) conv_weight(l, out, &s, entry, name);
    else plain_weight(l, out, kind, &s, entry, name);
    if (kind != SL_W_CONV) add_place(l, out, NULL, &s, entry, name);
    take_error(l, name);
    if (l->err.code) out->data = NULL;
}

void sl_weight_eight(sl_loader *l, sl_eight *out, int64_t n, int64_t k, const char *fmt, ...)
{
    const int64_t shape[] = {n, k};
    char name[NAME_BYTES];
    const sl_st_entry *entry;
    source s;
    int64_t bytes;
    sl_err e;
    va_list ap;
    va_start(ap, fmt);
    const bool named = name_of(l, name, fmt, ap);
    va_end(ap);
    *out = (sl_eight){0};
    if (!named) return;
    if (sl_shape_bytes(SL_F32, 2, shape, &bytes, &e)) {
        fail(l, e.code, "%s: %s", name, e.msg);
        return;
    }
    *out = eight_at(NULL, shape);
    l->parameters += n * k;
    if (l->err.code || !find_source(l, &s, &entry, &out->codes, name)) return;
    if (!is_on_host(l)) {
        take_later(l, &out->codes, &out->scale, eight_bytes(out), false, &s, entry, name);
    } else {
        *out = eight_at(take(l, eight_bytes(out)), shape);
        if (out->codes.data) put_eight(l, out, &s);
    }
    add_place(l, &out->codes, &out->scale, &s, entry, name);
    take_error(l, name);
    if (l->err.code) out->codes.data = out->scale.data = NULL;
}

void sl_weight_skip(sl_loader *l, const char *fmt, ...)
{
    char name[NAME_BYTES];
    va_list ap;
    if (!l->st) return;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    const sl_st_entry *e = sl_st_find(l->st, name);
    if (e) l->seen[e - sl_st_at(l->st, 0)] = SKIPPED;
}

void sl_loader_watch(sl_loader *l, sl_weight_fn *fn, void *user)
{
    l->watch = fn;
    l->watch_user = user;
}

void sl_loader_rest(const sl_loader *l, sl_weight_fn *fn, void *user)
{
    for (int i = 0; l->st && i < sl_st_size(l->st); i++) {
        const sl_st_entry *e = sl_st_at(l->st, i);
        if (l->seen[i] != WANTED) tell(fn, user, e);
    }
}

bool sl_loader_has(const sl_loader *l, const char *name)
{
    return !l->st || sl_st_find(l->st, name);
}

/* ---- onto a device ---- */

/* The plug-in whose own table the context has; NULL: another table (one that a benchmark or
 * a test made from it, too), which reads, converts and uploads through host memory. */
static const sl_plugin *plugin_of(const sl_loader *l)
{
    const sl_plugin *p = l->ctx->ops->plugin;
    return p && p->ops == l->ctx->ops ? p : NULL;
}

typedef struct {
    const pending *want;
} place;

/* What sl_loader_finish reads at once: matrices and vectors. */
typedef struct {
    sl_loader *l;
    place *order;          /* in the order of the files */
    sl_load_piece *pieces; /* theirs */
    int n;
    void *raw; /* without a plug-in: STAGE elements of up to 4 bytes */
} reading;

static int in_files(const void *a, const void *b)
{
    const pending *x = ((const place *)a)->want, *y = ((const place *)b)->want;
    if (x->entry->shard != y->entry->shard) return x->entry->shard < y->entry->shard ? -1 : 1;
    /* a file is mapped as a whole */
    const uintptr_t px = (uintptr_t)x->entry->t.data, py = (uintptr_t)y->entry->t.data;
    if (px != py) return px < py ? -1 : 1;
    return x->dst < y->dst ? -1 : x->dst > y->dst;
}

/* They stay open: what is read again is of the very files that are mapped, and a switch of LoRA
 * reads tensor by tensor. */
static sl_code open_files(const reading *r, sl_err *err)
{
    sl_loader *l = r->l;
    const int shards = sl_st_shards(l->st);
    if (!l->fds) {
        if (!(l->fds = malloc(((size_t)shards + 1) * sizeof *l->fds)))
            return sl_fail(err, SL_NOMEM, "no memory for %d files", shards);
        for (int i = 0; i < shards; i++) l->fds[i] = -1;
    }
    for (int i = 0; i < r->n; i++) {
        const int shard = r->order[i].want->entry->shard;
        const char *path = sl_st_path(l->st, shard);
        if (l->fds[shard] < 0 && (l->fds[shard] = open(path, O_RDONLY | O_CLOEXEC)) < 0)
            return sl_fail_errno(err, errno, "%s: cannot be opened", path);
    }
    return SL_OK;
}

static void close_reading(reading *r)
{
    free(r->raw);
    free(r->pieces);
    free(r->order);
}

/* *r is the caller's, to close. */
static sl_code open_reading(reading *r, sl_loader *l, const pending *wants, int n, sl_err *err)
{
    *r = (reading){.l = l,
                   .order = malloc(((size_t)n + 1) * sizeof *r->order),
                   .pieces = malloc(((size_t)n + 1) * sizeof *r->pieces)};
    if (!r->order || !r->pieces) return sl_fail(err, SL_NOMEM, "no memory for %d pieces", n);
    for (int i = 0; i < n; i++)
        if (wants[i].entry && !wants[i].conv && !wants[i].scale && !wants[i].from.coded)
            r->order[r->n++].want = &wants[i];
    qsort(r->order, (size_t)r->n, sizeof *r->order, in_files);
    sl_code rc = open_files(r, err);
    for (int i = 0; i < r->n && !rc; i++) {
        const pending *w = r->order[i].want;
        r->pieces[i] = (sl_load_piece){.fd = l->fds[w->entry->shard],
                                       .offset = sl_st_offset(l->st, w->entry),
                                       .count = sl_count(&w->t),
                                       .from = w->entry->t.dtype,
                                       .to = w->t.dtype,
                                       .dst = w->dst};
    }
    return rc;
}

static const char *path_of(const reading *r, int fd)
{
    int i = 0;
    while (i + 1 < sl_st_shards(r->l->st) && r->l->fds[i] != fd) i++;
    return sl_st_path(r->l->st, i);
}

/* One piece through host memory: read, convert, upload, STAGE elements at a time. */
static sl_code read_piece(const reading *r, const sl_load_piece *p, sl_err *err)
{
    sl_loader *l = r->l;
    const int64_t size = (int64_t)sl_dtype_size(p->from);
    for (int64_t at = 0; at < p->count && sl_ok(l->ctx); at += STAGE) {
        int64_t n = p->count - at < STAGE ? p->count - at : STAGE, from = p->offset + at * size;
        if (l->comm) sl_comm_beat(l->comm);
        for (int64_t got = 0; got < n * size;) {
            ssize_t k = pread(p->fd, (char *)r->raw + got, (size_t)(n * size - got), from + got);
            if (k < 0 && errno == EINTR) continue;
            if (k < 0) return sl_fail_errno(err, errno, "%s: cannot be read", path_of(r, p->fd));
            if (!k)
                return sl_fail(
                    err, SL_FORMAT,
                    "%s ends at byte %lld, want bytes %lld to %lld: the file was cut short",
                    path_of(r, p->fd), (long long)(from + got), (long long)from,
                    (long long)(from + n * size));
            got += k;
        }
        sl_tensor part = sl_view1((char *)p->dst + at * (int64_t)sl_dtype_size(p->to), p->to, n);
        put(l, &part, &(source){.data = r->raw, .dtype = p->from});
        sl_sync(l->ctx);
    }
    return SL_OK;
}

/* sl_team_read_fn, on a device without a plug-in. */
static sl_code read_on_host(void *user, const sl_load_piece *pieces, int n, sl_err *err)
{
    reading *r = user;
    sl_code rc = SL_OK;
    if (!r->raw && !(r->raw = malloc((size_t)STAGE * sizeof(float))))
        return sl_fail(err, SL_NOMEM, "no memory for a stage of %zu bytes",
                       (size_t)STAGE * sizeof(float));
    for (int i = 0; i < n && !rc; i++) rc = read_piece(r, &pieces[i], err);
    if (!rc && r->l->err.code) {
        *err = r->l->err;
        rc = err->code;
    }
    return rc || sl_ok(r->l->ctx) ? rc : sl_ctx_error(r->l->ctx, err);
}

/* Of names and files: ranks with the same number ask for the same bytes. */
static uint64_t list_of(const reading *r)
{
    uint64_t h = 0;
    struct stat st;
    for (int i = 0; i < r->n; i++)
        for (const char *p = r->order[i].want->name; *p; p++) h = mix(h ^ (unsigned char)*p);
    for (int i = 0; i < sl_st_shards(r->l->st); i++) {
        if (r->l->fds[i] < 0 || fstat(r->l->fds[i], &st)) continue;
        h = mix(h ^ (uint64_t)i);
        h = mix(h ^ (uint64_t)st.st_size);
        h = mix(h ^ (uint64_t)st.st_mtim.tv_sec);
        h = mix(h ^ (uint64_t)st.st_mtim.tv_nsec);
    }
    return h;
}

static sl_code read_as_team(reading *r, const sl_plugin *plugin, sl_err *err)
{
    sl_loader *l = r->l;
    sl_team_load_figures f;
    const sl_team_load t = {.ctx = l->ctx,
                            .comm = l->comm,
                            .lane = l->lane,
                            .team = &l->team,
                            .plugin = plugin,
                            .read = read_on_host,
                            .user = r,
                            .list = list_of(r)};
    sl_code rc = sl_team_load_run(&t, r->pieces, r->n, &f, err);
    if (!rc && f.ended.code) /* once a loader */
        sl_log(SL_LOG_WARN,
               "%s: %d ranks no longer share loading: %s; %.2f GB read here, %.2f GB "
               "from others",
               l->label, l->team.size, f.ended.msg, (double)f.read * 1e-9,
               (double)f.received * 1e-9);
    l->bytes_read += f.read;
    l->shared.ranks = l->team.size;
    l->shared.received += f.received;
    l->shared.sent += f.sent;
    l->shared.waited_ns += f.waited_ns;
    l->shared.ended |= f.ended.code != SL_OK;
    return rc;
}

/* Matrices and vectors of the checkpoint, by this rank or with its team. */
static sl_code load_plain(sl_loader *l, const sl_plugin *plugin, const pending *wants, int n,
                          bool shares, sl_err *err)
{
    reading r;
    sl_code rc = open_reading(&r, l, wants, n, err);
    for (int i = 0; i < n; i++) {
        const pending *w = &wants[i];
        if (w->entry && !w->scale && (w->conv || w->from.coded || !shares))
            l->bytes_read += sl_st_stored(w->entry);
    }
    if (!rc && shares) rc = read_as_team(&r, plugin, err);
    else if (!rc && r.n)
        rc = plugin ? plugin->load(r.pieces, r.n, 0, l->ctx->cancel, NULL, err)
                    : read_on_host(&r, r.pieces, r.n, err);
    close_reading(&r);
    return rc;
}

static void make_random(sl_loader *l, const sl_plugin *plugin, const pending *w)
{
    sl_tensor t = w->t;
    t.data = w->dst;
    if (plugin && plugin->random)
        plugin->random(l->ctx, t.data, t.dtype, sl_count(&t), w->from.centre, w->from.spread,
                       w->from.seed);
    else put(l, &t, &w->from);
}

static void put_coded(sl_loader *l, const pending *w)
{
    sl_tensor t = w->t;
    t.data = w->dst;
    put(l, &t, &w->from);
}

static bool shares(const sl_loader *l)
{
    return l->team.size > 1 && !l->shared.ended;
}

/* Matrices on their way to 8 bits, as many as the stage holds. */
typedef struct {
    sl_loader *l;
    const sl_plugin *plugin;
    bool shared;
    pending *staged;      /* in the stage, in the dtype in which they are read */
    const pending **what; /* and what they become */
    int n;
    char *stage; /* device memory */
    size_t room, used;
} eights;

/* What it is quantised from, without a rounding. */
static sl_dtype staged_dtype(const sl_loader *l, const pending *w)
{
    return w->entry && w->from.dtype == l->ctx->ops->act ? w->from.dtype : SL_F32;
}

static size_t staged_bytes(const sl_loader *l, const pending *w)
{
    return aligned((size_t)sl_count(&w->t) * sl_dtype_size(staged_dtype(l, w)));
}

/* Read what is in the stage and quantise it. */
static sl_code quantise_staged(eights *q, sl_err *err)
{
    sl_loader *l = q->l;
    sl_code rc = SL_OK;
    if (l->st) rc = load_plain(l, q->plugin, q->staged, q->n, q->shared && shares(l), err);
    for (int i = 0; i < q->n && !rc; i++) {
        const pending *w = &q->staged[i];
        sl_tensor x = w->t;
        x.data = w->dst;
        if (!w->entry) make_random(l, q->plugin, w);
        else if (w->from.coded) put(l, &x, &w->from);
        const sl_eight to = eight_at(q->what[i]->dst, x.shape);
        sl_quantise_rows(l->ctx, &to, &x);
    }
    sl_sync(l->ctx); /* the stage is filled anew next */
    q->n = 0;
    q->used = 0;
    return rc;
}

static sl_code add_eight(eights *q, const pending *w, sl_err *err)
{
    sl_code rc = SL_OK;
    if (q->used + staged_bytes(q->l, w) > q->room && (rc = quantise_staged(q, err))) return rc;
    pending *p = &q->staged[q->n];
    *p = *w;
    p->scale = NULL;
    p->t.dtype = staged_dtype(q->l, w);
    p->dst = q->stage + q->used;
    q->what[q->n++] = w;
    q->used += staged_bytes(q->l, w);
    return SL_OK;
}

/* Of n wants those in 8 bits, onto the device, w->dst of each. Errors of the device are ctx's. */
static sl_code load_eights(sl_loader *l, const sl_plugin *plugin, const pending *wants, int n,
                           bool shared, sl_err *err)
{
    eights q = {.l = l, .plugin = plugin, .shared = shared};
    size_t all = 0, largest = 0;
    sl_code rc = SL_OK;
    for (int i = 0; i < n; i++) {
        if (!wants[i].scale || has_codes(&wants[i].from)) continue;
        all += staged_bytes(l, &wants[i]);
        if (staged_bytes(l, &wants[i]) > largest) largest = staged_bytes(l, &wants[i]);
    }
    q.room = plugin ? EIGHT_STAGE_PLUGIN : EIGHT_STAGE;
    if (largest > q.room) q.room = largest;
    if (all < q.room) q.room = all;
    q.staged = malloc(((size_t)n + 1) * sizeof *q.staged);
    q.what = malloc(((size_t)n + 1) * sizeof(pending *));
    if (!q.staged || !q.what) rc = sl_fail(err, SL_NOMEM, "no memory for %d matrices", n);
    if (!rc && q.room) q.stage = sl_device_alloc(l->ctx, q.room);
    for (int i = 0; i < n && !rc && sl_ok(l->ctx); i++) {
        const pending *w = &wants[i];
        if (!w->scale) continue;
        const sl_eight to = eight_at(w->dst, w->t.shape);
        if (!has_codes(&w->from)) rc = add_eight(&q, w, err);
        else put_codes(l, &to, w->from.coded), l->bytes_read += sl_st_stored(w->entry);
    }
    if (!rc && q.n && sl_ok(l->ctx)) rc = quantise_staged(&q, err);
    sl_device_free(l->ctx, q.stage);
    free(q.what);
    free(q.staged);
    return rc;
}

/* Take the allocation, fill it, and tell the tensors where they lie. */
static void place_wants(sl_loader *l)
{
    const sl_plugin *plugin = plugin_of(l);
    const int64_t t0 = sl_now_ns();
    sl_err why;
    bool queued = false;
    char *base = l->want_bytes ? new_block(l, l->want_bytes) : NULL;
    take_error(l, "weights");
    for (int i = 0; i < l->want_count && base; i++) l->wants[i].dst = base + l->wants[i].at;
    if (l->st && base && !l->err.code &&
        load_plain(l, plugin, l->wants, l->want_count, shares(l), &why))
        fail(l, why.code, "%s", why.msg);
    if (base && !l->err.code && load_eights(l, plugin, l->wants, l->want_count, true, &why))
        fail(l, why.code, "%s", why.msg);
    take_error(l, "weights");
    for (int i = 0; i < l->want_count && base && !l->err.code; i++) {
        const pending *w = &l->wants[i];
        if (w->scale) continue;
        if (w->conv) put_conv(l, w->dst, w->t.shape, &w->from);
        else if (!w->entry) make_random(l, plugin, w);
        else if (w->from.coded) put_coded(l, w);
        queued |= w->conv || !w->entry || w->from.coded;
        take_error(l, w->name);
    }
    /* what was read is there; with a team ctx might tell of a member that has failed since */
    if (queued) sl_sync(l->ctx);
    take_error(l, "weights");
    for (int i = 0; i < l->want_count && base && !l->err.code; i++) {
        const pending *w = &l->wants[i];
        w->out->data = w->dst;
        if (w->scale) w->scale->data = eight_at(w->dst, w->t.shape).scale.data;
    }
    l->load_ns += sl_now_ns() - t0;
    forget_wants(l);
}

/* ---- once more ---- */

const sl_weight_place *sl_loader_place(const sl_loader *l, int i)
{
    return i >= 0 && i < l->place_count ? &l->places[i].of : NULL;
}

static int by_place_name(const void *a, const void *b, void *user)
{
    const sl_loader *l = user;
    return strcmp(l->places[*(const int *)a].of.name, l->places[*(const int *)b].of.name);
}

/* Without the index names are looked for one by one. */
static void sort_places(sl_loader *l)
{
    if (l->by_name || !(l->by_name = malloc(((size_t)l->place_count + 1) * sizeof(int)))) return;
    for (int i = 0; i < l->place_count; i++) l->by_name[i] = i;
    qsort_r(l->by_name, (size_t)l->place_count, sizeof(int), by_place_name, l);
}

int sl_loader_find(const sl_loader *l, const char *name)
{
    int lo = 0, hi = l->by_name ? l->place_count - 1 : -1;
    for (int i = 0; i < l->place_count && !l->by_name; i++)
        if (!strcmp(l->places[i].of.name, name)) return i;
    while (lo <= hi) {
        const int mid = (lo + hi) / 2, order = strcmp(name, l->places[l->by_name[mid]].of.name);
        if (!order) return l->by_name[mid];
        if (order < 0) hi = mid - 1;
        else lo = mid + 1;
    }
    return -1;
}

sl_code sl_loader_reload(sl_loader *l, int n, const int which[], const sl_tensor to[], sl_err *err)
{
    const sl_plugin *plugin = plugin_of(l);
    pending *wants = calloc((size_t)n + 1, sizeof *wants);
    sl_code rc = wants ? SL_OK : sl_fail(err, SL_NOMEM, "%s: no memory to load again", l->label);
    for (int i = 0; i < n && !rc; i++) {
        const asked *p = &l->places[which[i]];
        wants[i] = (pending){
            .t = to[i], .dst = to[i].data, .from = p->from, .entry = p->entry, .name = p->of.name};
        if (to[i].dtype == SL_E4M3) wants[i].scale = p->of.scale;
    }
    if (!rc) sl_sync(l->ctx); /* what still reads the old numbers */
    if (!rc && l->st && (rc = load_plain(l, plugin, wants, n, false, err)))
        sl_context(err, rc, "%s", l->label);
    if (!rc) rc = load_eights(l, plugin, wants, n, false, err);
    for (int i = 0; i < n && !rc; i++)
        if (wants[i].scale) continue;
        else if (!wants[i].entry) make_random(l, plugin, &wants[i]);
        else if (wants[i].from.coded) put_coded(l, &wants[i]);
    if (!rc) sl_sync(l->ctx);
    if (!rc && l->err.code) { /* of put(), which has no other way to say it */
        *err = l->err;
        rc = err->code;
        l->err = (sl_err){0}; /* this call's, not the next one's */
    }
    free(wants);
    free(l->stage);
    l->stage = NULL;
    return rc || sl_ok(l->ctx) ? rc : sl_ctx_error(l->ctx, err);
}

/* ---- the result ---- */

sl_code sl_loader_finish(sl_loader *l, sl_err *err)
{
    char text[128];
    if (l->want_count && !l->err.code) place_wants(l);
    /* the others need not wait for this rank */
    if (l->err.code && l->team.size > 1 && l->mode == FROM_FILE && !is_on_host(l))
        sl_comm_abort(l->comm, &l->team);
    if (l->mode == INSPECT && !l->err.code && !l->finished)
        for (int i = 0; i < sl_st_size(l->st); i++) {
            const sl_st_entry *e = sl_st_at(l->st, i);
            if (l->seen[i] != UNSEEN) continue;
            if (sl_st_shape(e)->rank)
                finding(l, "unexpected %s %s", e->name,
                        sl_shape_text(sl_st_shape(e), text, sizeof text));
            else finding(l, "unexpected %s of dtype %s", e->name, e->dtype);
        }
    l->finished = true;
    sort_places(l);
    free(l->stage);
    l->stage = NULL;
    if (err && l->err.code) *err = l->err;
    return l->err.code;
}

void sl_loader_share(sl_loader *l, sl_comm *comm, sl_lane lane, const sl_team *team)
{
    l->comm = comm;
    l->lane = lane;
    l->team = team && comm ? *team : (sl_team){0};
}

int sl_loader_unused(const sl_loader *l)
{
    int n = 0;
    for (int i = 0; l->st && i < sl_st_size(l->st); i++) n += l->seen[i] == UNSEEN;
    return n;
}

size_t sl_loader_bytes(const sl_loader *l)
{
    return l->bytes;
}

size_t sl_loader_mapped(const sl_loader *l)
{
    return l->mapped;
}

int64_t sl_loader_parameters(const sl_loader *l)
{
    return l->parameters;
}

void sl_loader_figures(const sl_loader *l, uint64_t *bytes_read, double *seconds)
{
    *bytes_read = l->bytes_read;
    *seconds = l->bytes_read ? (double)l->load_ns * 1e-9 : 0;
}

sl_loader_sharing sl_loader_shared(const sl_loader *l)
{
    return l->shared;
}

const char *sl_loader_finding(const sl_loader *l, int i)
{
    return i >= 0 && i < l->finding_count ? l->findings[i] : NULL;
}

/* "[3, 17]" of element `at`. */
static const char *index_text(const sl_tensor *t, int64_t at, char *buf, size_t size)
{
    sl_tensor index = *t;
    for (int i = t->rank - 1; i >= 0; i--) {
        index.shape[i] = at % t->shape[i];
        at /= t->shape[i];
    }
    return sl_shape_text(&index, buf, size);
}

/* Index of the first NaN or infinity of an entry, or -1. */
static int64_t first_nonfinite(const sl_st_entry *e)
{
    const int64_t n = sl_count(sl_st_shape(e));
    float x[BLOCK];
    if (!sl_st_shape(e)->rank) return -1;
    if (!e->coding) return sl_first_nonfinite(e->t.data, e->t.dtype, n);
    for (int64_t at = 0; at < n; at += BLOCK) {
        const int64_t k = n - at < BLOCK ? n - at : BLOCK;
        sl_st_floats(x, e, at, k);
        const int64_t bad = sl_first_nonfinite(x, SL_F32, k);
        if (bad >= 0) return at + bad;
    }
    return -1;
}

sl_code sl_loader_check_finite(sl_loader *l, sl_err *err)
{
    char text[128];
    for (int i = 0; l->st && i < sl_st_size(l->st); i++) {
        const sl_st_entry *e = sl_st_at(l->st, i);
        const int64_t at = l->seen[i] == WANTED ? first_nonfinite(e) : -1;
        float x;
        if (at < 0) continue;
        sl_st_floats(&x, e, at, 1);
        return sl_fail(err, SL_NUMERIC, "%s: %s has %s at %s", l->label, e->name,
                       isnan(x) ? "NaN" : "infinity",
                       index_text(sl_st_shape(e), at, text, sizeof text));
    }
    return SL_OK;
}
