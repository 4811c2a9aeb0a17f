/* gguf.c - read tensors from a GGUF file, versions 2 and 3.
 *
 * A header of keys with typed values, a list of tensors (name, extents with the fastest first,
 * type, offset), then their data, aligned. ComfyUI's writers flatten what has more than four
 * extents and keep the shape under comfy.gguf.orig_shape.NAME. Sources: ggml docs/gguf.md;
 * city96/ComfyUI-GGUF loader.py, tools/convert.py. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/st_set.h"

#define KEYS_MAX 100000
#define SHAPE_KEY "comfy.gguf.orig_shape."

enum { T_U32 = 4, T_I32 = 5, T_STRING = 8, T_ARRAY = 9 }; /* of values, where they matter */

/* Bytes of a value by its type; 0: it is a string, an array, or nothing known. */
static const int VALUE_BYTES[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

typedef struct {
    const unsigned char *at; /* n integers of 4 bytes */
    uint64_t n;
    const unsigned char *name;
    uint64_t name_length;
} shape_key;

typedef struct {
    const char *path;
    const unsigned char *begin, *p, *end;
    json_t *metadata;
    uint64_t alignment;
    shape_key *shapes;
    size_t shape_count;
    sl_err *err;
} reader;

static sl_code cut(const reader *r, const char *what)
{
    return sl_fail(r->err, SL_FORMAT, "%s: ends within %s, at byte %td", r->path, what,
                   r->p - r->begin);
}

/* False: the file ends before. */
static bool number(reader *r, int n, uint64_t *out)
{
    if (r->end - r->p < n) return false;
    *out = sl_little(r->p, n);
    r->p += n;
    return true;
}

static bool text(reader *r, const unsigned char **at, uint64_t *n)
{
    if (!number(r, 8, n) || *n > (uint64_t)(r->end - r->p)) return false;
    *at = r->p;
    r->p += *n;
    return true;
}

bool sl_gguf_is(const unsigned char *bytes, size_t length)
{
    return length >= 4 && !memcmp(bytes, "GGUF", 4);
}

/* ---- keys ---- */

static bool skip_array(reader *r, uint64_t *type, uint64_t *n, const unsigned char **at)
{
    const unsigned char *s;
    uint64_t k;
    if (!number(r, 4, type) || !number(r, 8, n)) return false;
    *at = r->p;
    if (*type == T_STRING) {
        for (uint64_t i = 0; i < *n; i++)
            if (!text(r, &s, &k)) return false;
        return true;
    }
    const uint64_t size =
        *type < sizeof VALUE_BYTES / sizeof *VALUE_BYTES ? (uint64_t)VALUE_BYTES[*type] : 0;
    if (!size || *n > (uint64_t)(r->end - r->p) / size) return false;
    r->p += *n * size;
    return true;
}

static bool is_key(const unsigned char *key, uint64_t n, const char *want)
{
    return n == strlen(want) && !memcmp(key, want, n);
}

static sl_code note_shape(reader *r, const unsigned char *key, uint64_t n, uint64_t type,
                          const unsigned char *at, uint64_t count)
{
    const size_t head = sizeof SHAPE_KEY - 1;
    if (n <= head || memcmp(key, SHAPE_KEY, head)) return SL_OK;
    if (type != T_U32 && type != T_I32)
        return sl_fail(r->err, SL_FORMAT, "%s: %.*s is no list of 32-bit integers", r->path,
                       n < 100 ? (int)n : 100, key);
    shape_key *more = realloc(r->shapes, (r->shape_count + 1) * sizeof *more);
    if (!more) return sl_fail(r->err, SL_NOMEM, "%s: no memory", r->path);
    r->shapes = more;
    r->shapes[r->shape_count++] = (shape_key){at, count, key + head, n - head};
    return SL_OK;
}

static sl_code read_key(reader *r)
{
    const unsigned char *key, *s;
    uint64_t n, type, k, count, element;
    if (!text(r, &key, &n) || !number(r, 4, &type)) return cut(r, "its keys");
    if (type == T_STRING) {
        if (!text(r, &s, &k)) return cut(r, "its keys");
        char name[80];
        if (n < sizeof name && k < 4096) {
            snprintf(name, sizeof name, "%.*s", (int)n, key);
            json_object_set_new(r->metadata, name, json_stringn((const char *)s, (size_t)k));
        }
        return SL_OK;
    }
    if (type == T_ARRAY) {
        if (!skip_array(r, &element, &count, &s))
            return cut(r, "a list, or it is of an unknown type,");
        return note_shape(r, key, n, element, s, count);
    }
    if (type >= sizeof VALUE_BYTES / sizeof *VALUE_BYTES)
        return sl_fail(r->err, SL_FORMAT, "%s: %.*s has type %" PRIu64 ", which GGUF does not know",
                       r->path, n < 100 ? (int)n : 100, key, type);
    if (!number(r, VALUE_BYTES[type], &k)) return cut(r, "its keys");
    if (is_key(key, n, "general.alignment")) r->alignment = k;
    return SL_OK;
}

/* ---- tensors ---- */

typedef struct {
    sl_dtype dtype;
    sl_coding coding;
    const char *tag;
} kind;

static bool find_kind(kind *out, uint64_t type)
{
    static const struct {
        uint64_t type;
        sl_dtype dtype;
    } PLAIN[] = {{0, SL_F32}, {1, SL_F16}, {30, SL_BF16}, {26, SL_I32}, {27, SL_I64}};
    *out = (kind){.coding = sl_coding_of_number(type < 1000 ? (int64_t)type : -1)};
    if (out->coding) {
        out->tag = sl_coding_tag(out->coding);
        return true;
    }
    for (size_t i = 0; i < sizeof PLAIN / sizeof *PLAIN; i++)
        if (PLAIN[i].type == type) {
            out->dtype = PLAIN[i].dtype;
            out->tag = sl_dtype_tag(out->dtype);
            return true;
        }
    return false;
}

/* The shape that a tensor had before it was flattened. */
static sl_code unflatten(const reader *r, const char *name, int *rank, int64_t shape[SL_MAX_RANK])
{
    for (size_t i = 0; i < r->shape_count; i++) {
        const shape_key *s = &r->shapes[i];
        int64_t extents[SL_MAX_RANK], was = 1, is = 1;
        if (s->name_length != strlen(name) || memcmp(s->name, name, s->name_length)) continue;
        bool good = s->n >= 1 && s->n <= SL_MAX_RANK;
        for (uint64_t k = 0; k < s->n && good; k++) {
            extents[k] = (int64_t)sl_little(s->at + 4 * k, 4);
            good = !__builtin_mul_overflow(is, extents[k], &is);
        }
        for (int k = 0; k < *rank; k++) was *= shape[k];
        if (!good || was != is)
            return sl_fail(r->err, SL_FORMAT,
                           "%s: %.*s has %lld elements, which its original shape has not", r->path,
                           SL_NAME_SHOWN, name, (long long)was);
        *rank = (int)s->n;
        memcpy(shape, extents, (size_t)s->n * sizeof *shape);
    }
    return SL_OK;
}

/* One of the list; its data is found when the list's end is. */
static sl_code read_tensor(reader *r, sl_st *st, int k, uint64_t *offset)
{
    const unsigned char *name;
    uint64_t n, rank = 0, type = 0;
    sl_st_entry *e = &st->entries[st->count];
    int64_t shape[SL_MAX_RANK] = {0};
    kind what;
    if (!text(r, &name, &n) || !number(r, 4, &rank)) return cut(r, "its list of tensors");
    if (!n || memchr(name, 0, n))
        return sl_fail(r->err, SL_FORMAT, "%s: a tensor has no name, or one with a NUL", r->path);
    char *copy = sl_set_keep(st, (size_t)n + 1);
    if (!copy) return sl_fail(r->err, SL_NOMEM, "%s: no memory for names", r->path);
    memcpy(copy, name, n);
    if (rank > SL_MAX_RANK)
        return sl_fail(r->err, SL_FORMAT, "%s: %.*s has %" PRIu64 " dimensions, want at most %d",
                       r->path, SL_NAME_SHOWN, copy, rank, SL_MAX_RANK);
    for (uint64_t i = 0; i < rank; i++) {
        uint64_t x;
        if (!number(r, 8, &x)) return cut(r, "its list of tensors");
        if (x > INT64_MAX)
            return sl_fail(r->err, SL_FORMAT, "%s: %.*s has an extent of %" PRIu64, r->path,
                           SL_NAME_SHOWN, copy, x);
        shape[rank - 1 - i] = (int64_t)x; /* the fastest comes first */
    }
    if (!number(r, 4, &type) || !number(r, 8, offset)) return cut(r, "its list of tensors");
    if (!find_kind(&what, type))
        return sl_fail(r->err, SL_FORMAT,
                       "%s: %.*s has type %" PRIu64
                       ", want F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, "
                       "Q8_0 or Q2_K to Q6_K",
                       r->path, SL_NAME_SHOWN, copy, type);
    if (!rank) shape[rank++] = 1;
    if (shape[rank - 1] % sl_coding_block(what.coding))
        return sl_fail(r->err, SL_FORMAT, "%s: %.*s has rows of %lld, want a multiple of %d (%s)",
                       r->path, SL_NAME_SHOWN, copy, (long long)shape[rank - 1],
                       sl_coding_block(what.coding), what.tag);
    int ranks = (int)rank;
    uint64_t bytes;
    if (!sl_set_bytes(64, ranks, shape, &bytes)) /* no code is larger */
        return sl_fail(r->err, SL_FORMAT, "%s: %.*s is too large", r->path, SL_NAME_SHOWN, copy);
    *e = (sl_st_entry){.name = copy, .dtype = what.tag, .shard = k, .coding = what.coding};
    sl_code rc = unflatten(r, copy, &ranks, shape);
    if (rc) return rc;
    *(what.coding ? &e->coded : &e->t) =
        sl_view(NULL, what.coding ? SL_F32 : what.dtype, ranks, shape);
    st->count++;
    return SL_OK;
}

static sl_code place_tensor(const reader *r, sl_st_entry *e, uint64_t data, uint64_t offset)
{
    const uint64_t length = (uint64_t)(r->end - r->begin), bytes = sl_st_stored(e);
    if (offset % r->alignment || data > length || offset > length - data ||
        bytes > length - data - offset)
        return sl_fail(
            r->err, SL_FORMAT,
            "%s: %.*s takes %" PRIu64 " bytes from byte %" PRIu64 " of the data on, which "
            "has %" PRIu64,
            r->path, SL_NAME_SHOWN, e->name, bytes, offset, data > length ? 0 : length - data);
    /* read-only, by contract */
    (e->coding ? &e->coded : &e->t)->data = (void *)(uintptr_t)(r->begin + data + offset);
    return SL_OK;
}

static sl_code read_all(reader *r, sl_st *st, int k)
{
    uint64_t version = 0, tensors = 0, keys = 0, *offsets = NULL;
    const int first = st->count;
    sl_code rc = SL_OK;
    r->p += 4;
    if (!number(r, 4, &version) || !number(r, 8, &tensors) || !number(r, 8, &keys))
        return cut(r, "its header");
    if (version != 2 && version != 3)
        return sl_fail(r->err, SL_FORMAT, "%s: is GGUF version %" PRIu64 ", want 2 or 3", r->path,
                       version);
    /* a tensor takes 24 bytes of the list at least, a key 12 */
    if (keys > KEYS_MAX || tensors > (uint64_t)(r->end - r->p) / 24)
        return sl_fail(r->err, SL_FORMAT,
                       "%s: says it has %" PRIu64 " keys and %" PRIu64 " tensors in %td bytes",
                       r->path, keys, tensors, r->end - r->begin);
    for (uint64_t i = 0; i < keys && !rc; i++) rc = read_key(r);
    if (rc || (rc = sl_set_room(st, (size_t)tensors, r->path, r->err))) return rc;
    if (!r->alignment || r->alignment > 1 << 20 || r->alignment & (r->alignment - 1))
        return sl_fail(r->err, SL_FORMAT,
                       "%s: general.alignment is %" PRIu64 ", want a power of two", r->path,
                       r->alignment);
    if (!(offsets = malloc(((size_t)tensors + 1) * sizeof *offsets)))
        return sl_fail(r->err, SL_NOMEM, "%s: no memory for %" PRIu64 " tensors", r->path, tensors);
    for (uint64_t i = 0; i < tensors && !rc; i++) rc = read_tensor(r, st, k, &offsets[i]);
    const uint64_t at = (uint64_t)(r->p - r->begin),
                   data = (at + r->alignment - 1) / r->alignment * r->alignment;
    for (uint64_t i = 0; i < tensors && !rc; i++)
        rc = place_tensor(r, &st->entries[first + (int)i], data, offsets[i]);
    free(offsets);
    return rc;
}

sl_code sl_gguf_parse(sl_st *st, int k, const unsigned char *bytes, size_t length, const char *path,
                      sl_err *err)
{
    reader r = {.path = path,
                .begin = bytes,
                .p = bytes,
                .end = bytes + length,
                .metadata = json_object(),
                .alignment = 32,
                .err = err};
    sl_code rc = r.metadata ? read_all(&r, st, k) : sl_fail(err, SL_NOMEM, "%s: no memory", path);
    free(r.shapes);
    if (!rc) st->shards[k].header = json_pack("{s:o}", "__metadata__", r.metadata);
    else json_decref(r.metadata);
    return rc;
}
