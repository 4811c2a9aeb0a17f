/* safetensors.c - read and write tensor files: header checks, shards behind an index, a
 * writer that leaves whole files only. */
#include "common/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/found.h"
#include "common/json.h"
#include "common/log.h"
#include "common/path.h"
#include "common/st_set.h"
#include "common/temporary.h"

#define SHARDS_MAX 4096

/* Tags of the format that SL_DTYPES lacks, and their bits an element. */
static const struct {
    const char *tag;
    int bits;
} FOREIGN[] = {
    {"BOOL", 8},    {"I8", 8},      {"U16", 16},        {"I16", 16},
    {"U32", 32},    {"U64", 64},    {"F64", 64},        {"C64", 64},
    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"F8_E5M2", 8},
    {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
};
static const char KNOWN_TAGS[] =
#define X(name, bytes, tag) tag " "
    SL_DTYPES(X)
#undef X
        "BOOL I8 U16 I16 U32 U64 F64 C64 F4 F6_* F8_*";

/* ---- one header ---- */

typedef struct {
    uint64_t begin, end;
    const char *name;
} extent;

static int by_begin(const void *a, const void *b)
{
    const extent *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

bool sl_set_bytes(int bits, int rank, const int64_t *shape, uint64_t *out)
{
    uint64_t n = (uint64_t)bits;
    bool empty = false;
    for (int i = 0; i < rank; i++) {
        empty |= !shape[i];
        if (__builtin_mul_overflow(n, (uint64_t)(shape[i] ? shape[i] : 1), &n)) return false;
    }
    if (empty) n = 0;
    *out = n / 8;
    return n % 8 == 0;
}

int sl_set_foreign_bits(const char *tag)
{
    for (size_t i = 0; i < sizeof FOREIGN / sizeof FOREIGN[0]; i++)
        if (!strcmp(tag, FOREIGN[i].tag)) return FOREIGN[i].bits;
    return 0;
}

/* One "name": {"dtype", "shape", "data_offsets"} of a header whose data section is
 * `data`, data_size bytes. */
static sl_code parse_entry(sl_st_entry *e, extent *x, const char *path, const char *name,
                           const json_t *v, const unsigned char *data, uint64_t data_size,
                           sl_err *err)
{
    const json_t *shape = json_object_get(v, "shape"),
                 *offsets = json_object_get(v, "data_offsets");
    const char *tag = json_string_value(json_object_get(v, "dtype"));
    int64_t dims[SL_MAX_RANK] = {0}, at[2];
    uint64_t want;
    sl_dtype dtype = SL_F32;
    size_t rank = json_array_size(shape);

    if (!tag)
        return sl_fail(err, SL_FORMAT, "%s: %.*s has no \"dtype\" string", path, SL_NAME_SHOWN,
                       name);
    bool ours = sl_dtype_parse(tag, &dtype);
    int bits = ours ? 8 * (int)sl_dtype_size(dtype) : sl_set_foreign_bits(tag);
    if (!bits)
        return sl_fail(err, SL_FORMAT, "%s: %.*s has dtype \"%.20s\", want one of %s", path,
                       SL_NAME_SHOWN, name, tag, KNOWN_TAGS);
    if (!json_is_array(shape))
        return sl_fail(err, SL_FORMAT, "%s: %.*s has no \"shape\" list", path, SL_NAME_SHOWN, name);
    if (rank > SL_MAX_RANK)
        return sl_fail(err, SL_FORMAT, "%s: %.*s has %zu dimensions, want at most %d", path,
                       SL_NAME_SHOWN, name, rank, SL_MAX_RANK);
    for (size_t i = 0; i < rank; i++) {
        const json_t *d = json_array_get(shape, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return sl_fail(err, SL_FORMAT, "%s: %.*s: extent %zu of its shape is no integer >= 0",
                           path, SL_NAME_SHOWN, name, i);
        dims[i] = json_integer_value(d);
    }
    if (json_array_size(offsets) != 2)
        return sl_fail(err, SL_FORMAT, "%s: %.*s has no \"data_offsets\" pair", path, SL_NAME_SHOWN,
                       name);
    for (size_t i = 0; i < 2; i++) {
        const json_t *o = json_array_get(offsets, i);
        if (!json_is_integer(o))
            return sl_fail(err, SL_FORMAT, "%s: %.*s: data offset is no integer", path,
                           SL_NAME_SHOWN, name);
        at[i] = json_integer_value(o);
    }
    if (at[0] < 0 || at[1] < at[0] || (uint64_t)at[1] > data_size)
        return sl_fail(err, SL_FORMAT,
                       "%s: %.*s has data offsets [%lld, %lld], want them in order and within the "
                       "file's %llu bytes of data",
                       path, SL_NAME_SHOWN, name, (long long)at[0], (long long)at[1],
                       (unsigned long long)data_size);
    if (!sl_set_bytes(bits, (int)rank, dims, &want) || want != (uint64_t)(at[1] - at[0])) {
        char text[128];
        sl_shape_text(&(sl_tensor){.rank = (int)rank,
                                   .shape = {dims[0], dims[1], dims[2], dims[3], dims[4], dims[5]}},
                      text, sizeof text);
        return sl_fail(err, SL_FORMAT,
                       "%s: %.*s has %lld bytes of data, which is not what %s %s takes", path,
                       SL_NAME_SHOWN, name, (long long)(at[1] - at[0]), tag, text);
    }
    *x = (extent){(uint64_t)at[0], (uint64_t)at[1], name};
    *e = (sl_st_entry){.name = name, .dtype = tag};
    if (ours) {
        if (rank == 0) dims[rank++] = 1;
        /* read-only, by contract */
        e->t = sl_view((void *)(uintptr_t)(data + at[0]), dtype, (int)rank, dims);
    } else if ((e->coding = sl_coding_of_tag(tag))) {
        if (rank == 0) dims[rank++] = 1;
        e->coded = sl_view((void *)(uintptr_t)(data + at[0]), SL_F32, (int)rank, dims);
    }
    return SL_OK;
}

/* The tensors must fill the data section from its first byte to its last, one after the
 * other. */
static sl_code check_extents(extent *x, size_t n, uint64_t data_size, const char *path, sl_err *err)
{
    uint64_t end = 0;
    if (n) qsort(x, n, sizeof *x, by_begin);
    for (size_t i = 0; i < n; i++) {
        if (x[i].begin < end)
            return sl_fail(err, SL_FORMAT, "%s: %.*s and %.*s overlap", path, SL_NAME_SHOWN,
                           x[i - 1].name, SL_NAME_SHOWN, x[i].name);
        if (x[i].begin > end)
            return sl_fail(err, SL_FORMAT, "%s: %llu bytes before %.*s belong to no tensor", path,
                           (unsigned long long)(x[i].begin - end), SL_NAME_SHOWN, x[i].name);
        end = x[i].end;
    }
    if (end != data_size)
        return sl_fail(err, SL_FORMAT, "%s: has %llu bytes of data, its tensors take %llu", path,
                       (unsigned long long)data_size, (unsigned long long)end);
    return SL_OK;
}

static sl_code check_metadata(const json_t *meta, const char *path, sl_err *err)
{
    const char *key;
    json_t *v;
    if (!json_is_object(meta))
        return sl_fail(err, SL_FORMAT, "%s: __metadata__ is no object", path);
    json_object_foreach((json_t *)(uintptr_t)meta, key, v) if (!json_is_string(v)) return sl_fail(
        err, SL_FORMAT, "%s: __metadata__ %.*s is no string", path, SL_NAME_SHOWN, key);
    return SL_OK;
}

/* Append the tensors of one whole file in memory, shard number k of st, whose header is
 * kept in the shard. */
static sl_code parse_safetensors(sl_st *st, int k, const unsigned char *bytes, size_t length,
                                 const char *path, sl_err *err)
{
    uint64_t header = 0;
    extent *x = NULL;
    size_t n = 0;
    const char *key;
    json_t *v;
    sl_code rc;

    if (length < 8)
        return sl_fail(err, SL_FORMAT, "%s: has %zu bytes, want at least 8", path, length);
    header = sl_little(bytes, 8);
    if (header > length - 8 || header > SL_HEADER_MAX) {
        const char *kind = sl_found_kind(bytes, length);
        if (kind) return sl_fail(err, SL_FORMAT, "%s: is %s", path, kind);
        return sl_fail(
            err, SL_FORMAT,
            "%s: header length is %llu, want at most %zu (not a safetensors file, or cut short)",
            path, (unsigned long long)header,
            length - 8 < SL_HEADER_MAX ? length - 8 : (size_t)SL_HEADER_MAX);
    }
    if (!header || bytes[8] != '{')
        return sl_fail(err, SL_FORMAT, "%s: header does not start with '{'", path);
    if ((rc = sl_json_parse(&st->shards[k].header, (const char *)bytes + 8, (size_t)header, path,
                            err)))
        return rc;

    size_t most = json_object_size(st->shards[k].header);
    if ((rc = sl_set_room(st, most, path, err))) return rc;
    if (!(x = malloc((most + 1) * sizeof *x))) {
        rc = sl_fail(err, SL_NOMEM, "%s: no memory for %zu tensors", path, most);
        goto done;
    }
    json_object_foreach(st->shards[k].header, key, v)
    {
        if (!strcmp(key, "__metadata__")) {
            if ((rc = check_metadata(v, path, err))) goto done;
            continue;
        }
        if ((rc = parse_entry(&st->entries[st->count], &x[n], path, key, v, bytes + 8 + header,
                              length - 8 - header, err)))
            goto done;
        st->entries[st->count++].shard = k;
        n++;
    }
    rc = check_extents(x, n, length - 8 - header, path, err);
done:
    free(x);
    return rc;
}

/* A file is what its first bytes say, whatever its name. */
static sl_code parse_file(sl_st *st, int k, const unsigned char *bytes, size_t length,
                          const char *path, sl_err *err)
{
    if (sl_pth_is(bytes, length)) return sl_pth_parse(st, k, bytes, length, path, err);
    if (sl_gguf_is(bytes, length)) return sl_gguf_parse(st, k, bytes, length, path, err);
    return parse_safetensors(st, k, bytes, length, path, err);
}

/* ---- files ---- */

sl_code sl_set_room(sl_st *st, size_t more, const char *path, sl_err *err)
{
    if (more > SL_TENSORS_MAX - (size_t)st->count)
        return sl_fail(err, SL_FORMAT, "%s: more than %d tensors", path, SL_TENSORS_MAX);
    sl_st_entry *p = realloc(st->entries, ((size_t)st->count + more + 1) * sizeof *p);
    if (!p) return sl_fail(err, SL_NOMEM, "%s: no memory for %zu tensors", path, more);
    st->entries = p;
    return SL_OK;
}

void *sl_set_keep(sl_st *st, size_t bytes)
{
    void **more = realloc(st->owned, ((size_t)st->owned_count + 1) * sizeof *more);
    if (!more) return NULL;
    st->owned = more;
    void *p = calloc(1, bytes ? bytes : 1);
    if (p) st->owned[st->owned_count++] = p;
    return p;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const sl_st_entry *)a)->name, ((const sl_st_entry *)b)->name);
}

static sl_st *new_set(int shards)
{
    sl_st *st = calloc(1, sizeof *st);
    if (st && !(st->shards = calloc((size_t)(shards ? shards : 1), sizeof *st->shards))) {
        free(st);
        return NULL;
    }
    return st;
}

/* Map `path` (taken over) as the next shard and read its header. `missing`: set when
 * there is no such file. */
static sl_code add_shard(sl_st *st, char *path, bool *missing, sl_err *err)
{
    sl_st_shard *s = &st->shards[st->shard_count++];
    struct stat info;
    sl_code rc;
    s->path = path;
    /* O_NONBLOCK: a FIFO must not hold us up */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    *missing = fd < 0 && errno == ENOENT;
    if (*missing && !lstat(path, &info))
        return sl_fail(err, SL_SYS,
                       "%s: is a link to what is not there: the download was cut short", path);
    if (fd < 0) return sl_fail_errno(err, errno, "%s: cannot be opened", path);
    if (fstat(fd, &info)) rc = sl_fail_errno(err, errno, "%s: cannot be read", path);
    else if (!S_ISREG(info.st_mode)) rc = sl_fail(err, SL_SYS, "%s: is no regular file", path);
    else if (info.st_size < 8)
        rc = sl_fail(err, SL_FORMAT, "%s: has %lld bytes, want at least 8", path,
                     (long long)info.st_size);
    else {
        s->bytes = (size_t)info.st_size;
        s->map = mmap(NULL, s->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (s->map == MAP_FAILED) {
            rc = sl_fail_errno(err, errno, "%s: cannot be mapped", path);
            s->map = NULL;
        } else rc = parse_file(st, st->shard_count - 1, s->map, s->bytes, path, err);
    }
    close(fd);
    return rc;
}

/* Sort by name; no name may be there twice. */
static sl_code sort_entries(sl_st *st, sl_err *err)
{
    if (st->count) qsort(st->entries, (size_t)st->count, sizeof *st->entries, by_name);
    for (int i = 1; i < st->count; i++) {
        const sl_st_entry *a = &st->entries[i - 1], *b = &st->entries[i];
        if (!strcmp(a->name, b->name))
            return sl_fail(err, SL_FORMAT, "%s: %.*s is also in %s", sl_st_path(st, b->shard),
                           SL_NAME_SHOWN, b->name, sl_st_path(st, a->shard));
    }
    return SL_OK;
}

static sl_code give(sl_st **out, sl_st *st, sl_code rc, sl_err *err)
{
    if (rc) {
        sl_one_line(err);
        sl_st_close(&st);
    }
    *out = st;
    return rc;
}

sl_code sl_st_open_file(sl_st **out, const char *path, sl_err *err)
{
    sl_st *st = new_set(1);
    char *copy = strdup(path);
    bool missing;
    sl_code rc;
    if (!st || !copy) {
        free(copy);
        return give(out, st, sl_fail(err, SL_NOMEM, "%s: no memory", path), err);
    }
    rc = add_shard(st, copy, &missing, err);
    if (!rc) rc = sort_entries(st, err);
    return give(out, st, rc, err);
}

static int by_string(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct shard names of an index, sorted; they point into `index`. *names is the
 * caller's to free. */
static sl_code shard_names(const json_t *index, const char *path, const char ***names,
                           size_t *count, sl_err *err)
{
    const json_t *map = json_object_get(index, "weight_map");
    size_t n = 0, unique = 0;
    const char *key;
    json_t *v;
    *names = NULL;
    *count = 0;
    if (!json_is_object(map))
        return sl_fail(err, SL_FORMAT, "%s: has no \"weight_map\" object", path);
    if (!(*names = malloc((json_object_size(map) + 1) * sizeof **names)))
        return sl_fail(err, SL_NOMEM, "%s: no memory", path);
    json_object_foreach((json_t *)(uintptr_t)map, key, v)
    {
        const char *file = json_string_value(v);
        if (!file)
            return sl_fail(err, SL_FORMAT, "%s: weight_map: %.*s names no file", path,
                           SL_NAME_SHOWN, key);
        if (!*file || *file == '.' || strchr(file, '/') || strlen(file) > NAME_MAX)
            return sl_fail(err, SL_FORMAT,
                           "%s: weight_map: %.*s lies in \"%.60s\", want the plain name of a file "
                           "in this folder",
                           path, SL_NAME_SHOWN, key, file);
        (*names)[n++] = file;
    }
    if (n) qsort(*names, n, sizeof **names, by_string);
    for (size_t i = 0; i < n; i++)
        if (!i || strcmp((*names)[i], (*names)[i - 1])) (*names)[unique++] = (*names)[i];
    *count = unique;
    if (unique > SHARDS_MAX)
        return sl_fail(err, SL_FORMAT, "%s: names %zu files, want at most %d", path, unique,
                       SHARDS_MAX);
    return SL_OK;
}

/* Each tensor lies in the shard that the index gives for it. A name that no shard has is left over
 * from another file: if the network wants it, that is told then. */
static sl_code check_index(const sl_st *st, const json_t *index, const char *const *names,
                           const char *path, sl_err *err)
{
    const char *key, *extra = NULL;
    json_t *v;
    int extras = 0;
    json_object_foreach(json_object_get(index, "weight_map"), key, v)
    {
        const sl_st_entry *e = sl_st_find(st, key);
        if (!e) {
            if (!extras++) extra = key;
        } else if (strcmp(names[e->shard], json_string_value(v)))
            return sl_fail(err, SL_FORMAT, "%s: %.60s holds no %.*s, which the index says it does",
                           path, json_string_value(v), SL_NAME_SHOWN, key);
    }
    if (extras)
        sl_log(SL_LOG_WARN, "%s: names %d tensor%s that no file holds: %.*s%s", path, extras,
               extras == 1 ? "" : "s", SL_NAME_SHOWN, extra, extras > 1 ? " ..." : "");
    return SL_OK;
}

static sl_code open_sharded(sl_st **out, const char *dir, const char *index_path, sl_err *err)
{
    sl_st *st = NULL;
    json_t *index = NULL;
    const char **names = NULL;
    size_t n = 0;
    sl_code rc;
    if ((rc = sl_json_read(&index, index_path, SL_HEADER_MAX, err))) goto done;
    if ((rc = shard_names(index, index_path, &names, &n, err))) goto done;
    if (!(st = new_set((int)n))) rc = sl_fail(err, SL_NOMEM, "%s: no memory", index_path);
    for (size_t i = 0; i < n && !rc; i++) {
        char *path;
        bool missing;
        if (asprintf(&path, "%s/%s", dir, names[i]) < 0)
            rc = sl_fail(err, SL_NOMEM, "%s: no memory", index_path);
        else if ((rc = add_shard(st, path, &missing, err)) && missing)
            rc = sl_fail(err, SL_FORMAT, "%s: names %.100s, which is not there", index_path,
                         names[i]);
    }
    if (!rc) rc = sort_entries(st, err);
    if (!rc) rc = check_index(st, index, names, index_path, err);
done:
    free(names);
    json_decref(index);
    return give(out, st, rc, err);
}

/* Neither a file nor an index: what is there instead? */
static sl_code nothing_there(const char *dir, const char *stem, sl_err *err)
{
    char found[400];
    if (sl_found_weights(dir, stem, found, sizeof found))
        return sl_fail(err, SL_SYS,
                       "%s: holds %s, want %s.safetensors or %s.safetensors.index.json", dir, found,
                       stem, stem);
    return sl_fail(err, SL_SYS, "%s: holds neither %s.safetensors nor %s.safetensors.index.json",
                   dir, stem, stem);
}

sl_code sl_st_open_dir(sl_st **out, const char *dir, const char *stem, sl_err *err)
{
    char *single = NULL, *index = NULL;
    sl_code rc;
    *out = NULL;
    if (asprintf(&single, "%s/%s.safetensors", dir, stem) < 0) single = NULL;
    if (asprintf(&index, "%s/%s.safetensors.index.json", dir, stem) < 0) index = NULL;
    if (!single || !index) rc = sl_fail(err, SL_NOMEM, "%s: no memory", dir);
    else if (sl_path_there(index))
        rc = open_sharded(out, dir, index, err); /* before a stale file */
    else if (sl_path_there(single)) rc = sl_st_open_file(out, single, err);
    else rc = nothing_there(dir, stem, err);
    free(single);
    free(index);
    return rc;
}

void sl_st_close(sl_st **pst)
{
    sl_st *st = *pst;
    *pst = NULL;
    if (!st) return;
    for (int i = 0; i < st->shard_count; i++) {
        if (st->shards[i].map) munmap(st->shards[i].map, st->shards[i].bytes);
        json_decref(st->shards[i].header);
        free(st->shards[i].path);
    }
    for (int i = 0; i < st->owned_count; i++) free(st->owned[i]);
    free(st->owned);
    free(st->shards);
    free(st->entries);
    free(st);
}

sl_code sl_st_parse(const void *bytes, size_t length, sl_err *err)
{
    sl_st *st = new_set(1);
    if (!st) return sl_fail(err, SL_NOMEM, "memory: no memory");
    st->shard_count = 1;
    sl_code rc = parse_file(st, 0, bytes, length, "memory", err);
    if (!rc) rc = sort_entries(st, err);
    if (rc) sl_one_line(err);
    sl_st_close(&st);
    return rc;
}

sl_code sl_st_parse_index(const void *bytes, size_t length, sl_err *err)
{
    json_t *index = NULL;
    const char **names = NULL;
    size_t n;
    sl_code rc = sl_json_parse(&index, bytes, length, "memory", err);
    if (!rc) rc = shard_names(index, "memory", &names, &n, err);
    if (rc) sl_one_line(err);
    free(names);
    json_decref(index);
    return rc;
}

/* ---- looking up ---- */

int sl_st_size(const sl_st *st)
{
    return st->count;
}

const sl_st_entry *sl_st_at(const sl_st *st, int i)
{
    return i >= 0 && i < st->count ? &st->entries[i] : NULL;
}

const sl_st_entry *sl_st_find(const sl_st *st, const char *name)
{
    sl_st_entry key = {.name = name};
    return st->count ? bsearch(&key, st->entries, (size_t)st->count, sizeof key, by_name) : NULL;
}

int sl_st_shards(const sl_st *st)
{
    return st->shard_count;
}

const char *sl_st_path(const sl_st *st, int i)
{
    return i >= 0 && i < st->shard_count && st->shards[i].path ? st->shards[i].path : "memory";
}

int64_t sl_st_offset(const sl_st *st, const sl_st_entry *e)
{
    return (const char *)e->t.data - (const char *)st->shards[e->shard].map;
}

const sl_tensor *sl_st_shape(const sl_st_entry *e)
{
    return e->coding ? &e->coded : &e->t;
}

void sl_st_floats(float *dst, const sl_st_entry *e, int64_t first, int64_t n)
{
    if (!e->coding) {
        sl_to_floats(dst, (const char *)e->t.data + first * (int64_t)sl_dtype_size(e->t.dtype),
                     e->t.dtype, n, NULL);
        return;
    }
    sl_decode(dst, e->coding, e->coded.data, first, n);
    const int64_t row = e->scale_count > 1 ? sl_count(&e->coded) / e->scale_count : INT64_MAX;
    for (int64_t i = 0; e->scale_count && i < n;) {
        const float scale = e->scales[(first + i) / row];
        const int64_t left = row - (first + i) % row, end = n - i < left ? n : i + left;
        for (; i < end; i++) dst[i] *= scale;
    }
}

size_t sl_st_stored(const sl_st_entry *e)
{
    if (!e->coding) return e->t.rank ? sl_bytes(&e->t) : 0;
    return (size_t)(sl_count(&e->coded) / sl_coding_block(e->coding)) *
           (size_t)sl_coding_bytes(e->coding);
}

const char *sl_st_metadata(const sl_st *st, const char *key)
{
    if (!st->shard_count) return NULL;
    return json_string_value(
        json_object_get(json_object_get(st->shards[0].header, "__metadata__"), key));
}

sl_code sl_st_want(const sl_st *st, const char *name, sl_dtype dtype, int rank,
                   const int64_t *shape, sl_tensor *out, sl_err *err)
{
    const sl_st_entry *e = sl_st_find(st, name);
    char found[160], want[160];
    size_t at = 0;
    bool same;
    *out = (sl_tensor){0};
    if (!e) return sl_fail(err, SL_SHAPE, "%s: holds no tensor %s", sl_st_path(st, 0), name);
    if (strcmp(e->dtype, sl_dtype_tag(dtype)))
        return sl_fail(err, SL_SHAPE, "%s: %s has dtype %s, want %s", sl_st_path(st, e->shard),
                       name, e->dtype, sl_dtype_tag(dtype));
    same = e->t.rank == rank;
    for (int i = 0; i < rank && same; i++) same = shape[i] < 0 || shape[i] == e->t.shape[i];
    if (same) {
        *out = e->t;
        return SL_OK;
    }
    at += (size_t)snprintf(want, sizeof want, "[");
    for (int i = 0; i < rank && at < sizeof want - 24; i++)
        at += (size_t)(shape[i] < 0 ? snprintf(want + at, sizeof want - at, "%sany", i ? ", " : "")
                                    : snprintf(want + at, sizeof want - at, "%s%lld", i ? ", " : "",
                                               (long long)shape[i]));
    snprintf(want + at, sizeof want - at, "]");
    return sl_fail(err, SL_SHAPE, "%s: %s has shape %s, want %s", sl_st_path(st, e->shard), name,
                   sl_shape_text(&e->t, found, sizeof found), want);
}

/* ---- writing ---- */

typedef struct {
    uint64_t begin, end;
} range;

typedef struct {
    char *name;
    uint64_t at, bytes; /* place in the data section */
    range *done;        /* what has been written: sorted, apart from each other */
    int done_count;
} slot;

struct sl_st_writer {
    char *path, *temporary;
    int fd;
    bool created;     /* the temporary is there */
    uint64_t data_at; /* file offset of the data section; 0: header not written yet */
    uint64_t data_bytes;
    size_t align; /* of the data section in the file */
    json_t *header;
    slot *slots;
    int count;
};

sl_code sl_stw_open(sl_st_writer **out, const char *path, sl_err *err)
{
    sl_code rc;
    sl_st_writer *w = calloc(1, sizeof *w);
    *out = NULL;
    if (!w) return sl_fail(err, SL_NOMEM, "%s: no memory for a writer", path);
    w->fd = -1;
    w->align = 8;
    w->path = strdup(path);
    w->header = json_object();
    rc = sl_temporary_make(&w->temporary, &w->fd, path, err);
    w->created = w->fd >= 0;
    if (!w->path || !w->header) rc = sl_fail(err, SL_NOMEM, "%s: no memory for a writer", path);
    if (rc) sl_stw_abandon(&w);
    *out = w;
    return rc;
}

static slot *find_slot(const sl_st_writer *w, const char *name)
{
    for (int i = 0; i < w->count; i++)
        if (!strcmp(w->slots[i].name, name)) return &w->slots[i];
    return NULL;
}

sl_code sl_stw_declare(sl_st_writer *w, const char *name, sl_dtype dtype, int rank,
                       const int64_t *shape, sl_err *err)
{
    int64_t bytes;
    uint64_t end;
    sl_code rc;
    if (w->data_at)
        return sl_fail(err, SL_ARG, "%s: %s is declared after data has been written", w->path,
                       name);
    if (!*name || !strcmp(name, "__metadata__"))
        return sl_fail(err, SL_ARG, "%s: a tensor cannot be named \"%s\"", w->path, name);
    if (json_object_get(w->header, name))
        return sl_fail(err, SL_ARG, "%s: %s is declared twice", w->path, name);
    if ((rc = sl_shape_bytes(dtype, rank, shape, &bytes, err)))
        return sl_context(err, rc, "%s: %s", w->path, name);
    if (__builtin_add_overflow(w->data_bytes, (uint64_t)bytes, &end) || end > INT64_MAX)
        return sl_fail(err, SL_SHAPE, "%s: is larger than 2^63 bytes with %s", w->path, name);

    slot *more = realloc(w->slots, ((size_t)w->count + 1) * sizeof *more);
    if (more) w->slots = more;
    char *copy = strdup(name);
    json_t *extents = json_array(), *entry = NULL;
    for (int i = 0; i < rank; i++) json_array_append_new(extents, json_integer(shape[i]));
    entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", sl_dtype_tag(dtype), "shape", extents,
                      "data_offsets", (json_int_t)w->data_bytes, (json_int_t)end);
    if (!more || !copy || !entry || json_object_set_new(w->header, name, entry)) {
        free(copy);
        return sl_fail(err, SL_ARG, "%s: \"%s\" is not UTF-8, or no memory", w->path, name);
    }
    w->slots[w->count++] = (slot){.name = copy, .at = w->data_bytes, .bytes = (uint64_t)bytes};
    w->data_bytes = end;
    return SL_OK;
}

sl_code sl_stw_metadata(sl_st_writer *w, const char *key, const char *value, sl_err *err)
{
    json_t *meta = json_object_get(w->header, "__metadata__");
    if (w->data_at)
        return sl_fail(err, SL_ARG, "%s: metadata %s comes after data has been written", w->path,
                       key);
    if (!meta) {
        json_object_set_new(w->header, "__metadata__", json_object());
        meta = json_object_get(w->header, "__metadata__");
    }
    if (json_object_set_new(meta, key, json_string(value)))
        return sl_fail(err, SL_ARG, "%s: metadata %s is not UTF-8, or no memory", w->path, key);
    return SL_OK;
}

sl_code sl_stw_notes(sl_st_writer *w, int n, const sl_st_note notes[], sl_err *err)
{
    sl_code rc = SL_OK;
    for (int i = 0; i < n && !rc; i++) rc = sl_stw_metadata(w, notes[i].key, notes[i].value, err);
    return rc;
}

void sl_stw_align(sl_st_writer *w, size_t align)
{
    w->align = align;
}

static sl_code write_all(sl_st_writer *w, const void *data, size_t length, uint64_t at, sl_err *err)
{
    const char *p = data;
    while (length) {
        ssize_t n = pwrite(w->fd, p, length, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return sl_fail_errno(err, n ? errno : ENOSPC, "%s: cannot be written", w->path);
        p += n;
        at += (uint64_t)n;
        length -= (size_t)n;
    }
    return SL_OK;
}

/* The header as it is now; one that is there already keeps its length, and must fit into it. */
static sl_code write_header(sl_st_writer *w, sl_err *err)
{
    char *text = json_dumps(w->header, JSON_COMPACT); /* in the order of declaration */
    size_t n = text ? strlen(text) : 0, padded = (8 + n + w->align - 1) / w->align * w->align - 8;
    if (w->data_at) padded = w->data_at - 8;
    unsigned char *block = calloc(1, 8 + padded);
    sl_code rc;
    if (!text || !block) rc = sl_fail(err, SL_NOMEM, "%s: no memory for its header", w->path);
    else if (padded > SL_HEADER_MAX)
        rc = sl_fail(err, SL_ARG, "%s: header has %zu bytes, want at most %d", w->path, padded,
                     SL_HEADER_MAX);
    else {
        for (int i = 0; i < 8; i++) block[i] = (unsigned char)((uint64_t)padded >> 8 * i);
        memset(block + 8, ' ', padded);
        memcpy(block + 8, text, n);
        if (!(rc = write_all(w, block, 8 + padded, 0, err))) w->data_at = 8 + padded;
    }
    free(block);
    free(text);
    return rc;
}

/* Note [begin, end) as written: it swallows the ranges that it touches. */
static bool note_written(slot *s, uint64_t begin, uint64_t end)
{
    int first = 0, last;
    while (first < s->done_count && s->done[first].end < begin) first++;
    for (last = first; last < s->done_count && s->done[last].begin <= end; last++) {
        if (s->done[last].begin < begin) begin = s->done[last].begin;
        if (s->done[last].end > end) end = s->done[last].end;
    }
    if (first == last) {
        range *more = realloc(s->done, ((size_t)s->done_count + 1) * sizeof *more);
        if (!more) return false;
        s->done = more;
    }
    memmove(s->done + first + 1, s->done + last, (size_t)(s->done_count - last) * sizeof *s->done);
    s->done[first] = (range){begin, end};
    s->done_count += 1 - (last - first);
    return true;
}

sl_code sl_stw_write(sl_st_writer *w, const char *name, const void *data, size_t offset,
                     size_t length, sl_err *err)
{
    slot *s = find_slot(w, name);
    sl_code rc;
    if (!s) return sl_fail(err, SL_ARG, "%s: %s was not declared", w->path, name);
    if (offset > s->bytes || length > s->bytes - offset)
        return sl_fail(err, SL_ARG, "%s: %s: bytes %zu to %zu given, want at most %llu", w->path,
                       name, offset, offset + length, (unsigned long long)s->bytes);
    if (!w->data_at && (rc = write_header(w, err))) return rc;
    if (!length) return SL_OK;
    if ((rc = write_all(w, data, length, w->data_at + s->at + offset, err))) return rc;
    if (!note_written(s, offset, offset + length))
        return sl_fail(err, SL_NOMEM, "%s: no memory for %s", w->path, name);
    return SL_OK;
}

sl_code sl_stw_cut(sl_st_writer *w, const char *name, int64_t entries, sl_err *err)
{
    slot *s = find_slot(w, name);
    json_t *entry = json_object_get(w->header, name), *shape = json_object_get(entry, "shape");
    const int64_t there = json_integer_value(json_array_get(shape, 0));
    sl_code rc = SL_OK;
    if (!s || s != &w->slots[w->count - 1] || entries < 0 || entries > there || !there)
        return sl_fail(err, SL_ARG, "%s: %s is to be cut to %lld entries of %lld", w->path, name,
                       (long long)entries, (long long)there);
    const uint64_t bytes = s->bytes / (uint64_t)there * (uint64_t)entries;
    json_array_set_new(shape, 0, json_integer(entries));
    json_array_set_new(json_object_get(entry, "data_offsets"), 1,
                       json_integer((json_int_t)(s->at + bytes)));
    s->bytes = bytes;
    w->data_bytes = s->at + bytes;
    if (w->data_at) rc = write_header(w, err);
    if (!rc && w->data_at && ftruncate(w->fd, (off_t)(w->data_at + w->data_bytes)))
        rc = sl_fail_errno(err, errno, "%s: cannot be cut", w->path);
    while (s->done_count && s->done[s->done_count - 1].begin >= bytes) s->done_count--;
    if (s->done_count && s->done[s->done_count - 1].end > bytes)
        s->done[s->done_count - 1].end = bytes;
    return rc;
}

sl_code sl_stw_finish(sl_st_writer **pw, sl_err *err)
{
    sl_st_writer *w = *pw;
    sl_code rc = w->data_at ? SL_OK : write_header(w, err);
    for (int i = 0; i < w->count && !rc; i++) {
        const slot *s = &w->slots[i];
        uint64_t gap = s->done_count && !s->done[0].begin ? s->done[0].end : 0;
        if (gap != s->bytes)
            rc = sl_fail(err, SL_FORMAT, "%s: %s lacks bytes from %llu of %llu on", w->path,
                         s->name, (unsigned long long)gap, (unsigned long long)s->bytes);
    }
    if (!rc && fsync(w->fd)) rc = sl_fail_errno(err, errno, "%s: cannot be written", w->path);
    if (!rc) {
        int fd = w->fd;
        w->fd = -1;
        if (close(fd)) rc = sl_fail_errno(err, errno, "%s: cannot be written", w->path);
    }
    if (!rc && rename(w->temporary, w->path))
        rc = sl_fail_errno(err, errno, "%s: cannot be renamed to from %s", w->path, w->temporary);
    if (!rc) {
        free(w->temporary);
        w->temporary = NULL; /* it is the file now */
    }
    sl_stw_abandon(pw);
    return rc;
}

void sl_stw_abandon(sl_st_writer **pw)
{
    sl_st_writer *w = *pw;
    *pw = NULL;
    if (!w) return;
    if (w->fd >= 0) close(w->fd);
    if (w->temporary && w->created) unlink(w->temporary);
    for (int i = 0; i < w->count; i++) {
        free(w->slots[i].name);
        free(w->slots[i].done);
    }
    free(w->slots);
    free(w->temporary);
    free(w->path);
    json_decref(w->header);
    free(w);
}

sl_code sl_st_save(const char *path, int n, const char *const names[], const sl_tensor tensors[],
                   sl_err *err)
{
    return sl_st_save_noted(path, n, names, tensors, 0, NULL, err);
}

sl_code sl_st_save_noted(const char *path, int n, const char *const names[],
                         const sl_tensor tensors[], int note_count, const sl_st_note notes[],
                         sl_err *err)
{
    sl_st_writer *w;
    sl_code rc = sl_stw_open(&w, path, err);
    if (!rc) rc = sl_stw_notes(w, note_count, notes, err);
    for (int i = 0; i < n && !rc; i++) {
        if (!sl_is_dense(&tensors[i]))
            rc = sl_fail(err, SL_ARG, "%s: %s is not dense", path, names[i]);
        else
            rc = sl_stw_declare(w, names[i], tensors[i].dtype, tensors[i].rank, tensors[i].shape,
                                err);
    }
    for (int i = 0; i < n && !rc; i++)
        rc = sl_stw_write(w, names[i], tensors[i].data, 0, sl_bytes(&tensors[i]), err);
    if (!rc) return sl_stw_finish(&w, err);
    sl_stw_abandon(&w);
    return rc;
}
