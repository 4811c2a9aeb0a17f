/* pth.c - read tensors from a .pth as torch.save has written it since PyTorch 1.6.
 *
 * Such a file is a zip whose entries are stored, in one folder of any name: FOLDER/data.pkl, a
 * pickle of protocol 2 that makes a dict of tensors, and FOLDER/data/K, the raw little-endian bytes
 * of storage K. A pickle is a program. Only the opcodes that torch.save needs for such a dict are
 * followed here, and they do no more than build the list of tensors: a GLOBAL is looked up among
 * the names in GLOBALS and never called. Everything else is refused with its place.
 * Sources: PKWARE APPNOTE.TXT 6.3 (4.3 and 4.5, zip64); CPython Lib/pickletools.py; PyTorch
 * torch/serialization.py (_save) and torch/_utils.py (_rebuild_tensor_v2). */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/st_set.h"

#define MEMBERS_MAX 1000000 /* of a zip */
#define VALUES_MAX 50000000 /* on the stack, in tuples, in the memo */

/* ---- the zip ---- */

typedef struct {
    const char *name; /* in the directory; no NUL at its end */
    size_t name_length;
    uint64_t at, bytes; /* its data in the file */
    uint64_t header;    /* its local header */
} member;

typedef struct {
    const char *path;
    const unsigned char *bytes;
    size_t length;
    member *members; /* by name */
    size_t count;
    sl_err *err;
} archive;

static int by_member(const void *a, const void *b)
{
    const member *x = a, *y = b;
    const size_t n = x->name_length < y->name_length ? x->name_length : y->name_length;
    const int c = n ? memcmp(x->name, y->name, n) : 0;
    return c ? c : (x->name_length > y->name_length) - (x->name_length < y->name_length);
}

static const member *find_member(const archive *z, const char *name, size_t length)
{
    const member key = {.name = name, .name_length = length};
    return bsearch(&key, z->members, z->count, sizeof key, by_member);
}

bool sl_pth_is(const unsigned char *bytes, size_t length)
{
    return length >= 4 && (!memcmp(bytes, "PK\3\4", 4) || !memcmp(bytes, "PK\5\6", 4));
}

/* Where the directory lies. Errors: no end record, or one that lies. */
static sl_code find_directory(const archive *z, uint64_t *at, uint64_t *size, uint64_t *count)
{
    const size_t farthest = z->length < 22 + 65535 ? z->length : 22 + 65535;
    size_t back = 22;
    while (back <= farthest && memcmp(z->bytes + z->length - back, "PK\5\6", 4)) back++;
    if (back > farthest)
        return sl_fail(z->err, SL_FORMAT,
                       "%s: is a zip without its directory at the end: it was cut short", z->path);
    const unsigned char *end = z->bytes + z->length - back;
    const uint64_t end_at = z->length - back;
    *count = sl_little(end + 10, 2);
    *size = sl_little(end + 12, 4);
    *at = sl_little(end + 16, 4);
    uint64_t limit = end_at;
    if (*count == 0xffff || *size == 0xffffffff || *at == 0xffffffff) {
        const unsigned char *locator = end - 20;
        const uint64_t far = end_at >= 20 ? sl_little(locator + 8, 8) : 0;
        if (end_at < 20 || memcmp(locator, "PK\6\7", 4) || end_at < 76 || far > end_at - 76 ||
            memcmp(z->bytes + far, "PK\6\6", 4))
            return sl_fail(z->err, SL_FORMAT, "%s: its zip64 end record is not where it must be",
                           z->path);
        *count = sl_little(z->bytes + far + 32, 8);
        *size = sl_little(z->bytes + far + 40, 8);
        *at = sl_little(z->bytes + far + 48, 8);
        limit = far;
    }
    if (*at > limit || *size > limit - *at)
        return sl_fail(z->err, SL_FORMAT,
                       "%s: its zip directory takes bytes %" PRIu64 " to %" PRIu64
                       ", want them before byte %" PRIu64,
                       z->path, *at, *at + *size, limit);
    if (*count > MEMBERS_MAX || *count > *size / 46)
        return sl_fail(z->err, SL_FORMAT,
                       "%s: its zip directory of %" PRIu64 " bytes says it has %" PRIu64 " entries",
                       z->path, *size, *count);
    return SL_OK;
}

/* The 64-bit values of an entry whose 32-bit ones are full. */
static bool read_zip64(const unsigned char *extra, size_t length, uint64_t *plain, uint64_t *packed,
                       uint64_t *header)
{
    uint64_t *want[3];
    int n = 0;
    if (*plain == 0xffffffff) want[n++] = plain;
    if (*packed == 0xffffffff) want[n++] = packed;
    if (*header == 0xffffffff) want[n++] = header;
    if (!n) return true;
    for (size_t i = 0; i + 4 <= length;) {
        const size_t size = (size_t)sl_little(extra + i + 2, 2);
        if (size > length - i - 4) return false;
        if (sl_little(extra + i, 2) == 1) {
            if (size < 8 * (size_t)n) return false;
            for (int k = 0; k < n; k++) *want[k] = sl_little(extra + i + 4 + 8 * k, 8);
            return true;
        }
        i += 4 + size;
    }
    return false;
}

/* One record of the directory and the header that it points to; *used: its bytes. */
static sl_code read_member(const archive *z, uint64_t directory, const unsigned char *p,
                           size_t left, member *m, size_t *used)
{
    if (left < 46 || memcmp(p, "PK\1\2", 4))
        return sl_fail(z->err, SL_FORMAT, "%s: its zip directory is damaged at byte %td", z->path,
                       p - z->bytes);
    const size_t names = (size_t)sl_little(p + 28, 2), extras = (size_t)sl_little(p + 30, 2);
    uint64_t packed = sl_little(p + 20, 4), plain = sl_little(p + 24, 4),
             header = sl_little(p + 42, 4);
    *used = 46 + names + extras + (size_t)sl_little(p + 32, 2);
    if (*used > left)
        return sl_fail(z->err, SL_FORMAT, "%s: its zip directory is damaged at byte %td", z->path,
                       p - z->bytes);
    *m = (member){.name = (const char *)p + 46, .name_length = names};
    const int shown = names < SL_NAME_SHOWN ? (int)names : SL_NAME_SHOWN;
    if (!read_zip64(p + 46 + names, extras, &plain, &packed, &header))
        return sl_fail(z->err, SL_FORMAT, "%s: %.*s lacks its zip64 sizes", z->path, shown,
                       m->name);
    if (sl_little(p + 8, 2) & 1)
        return sl_fail(z->err, SL_FORMAT, "%s: %.*s is encrypted", z->path, shown, m->name);
    if (sl_little(p + 10, 2) || plain != packed)
        return sl_fail(z->err, SL_FORMAT,
                       "%s: %.*s is compressed (method %d), want it stored, as torch.save does",
                       z->path, shown, m->name, (int)sl_little(p + 10, 2));
    if (directory < 30 || header > directory - 30 || memcmp(z->bytes + header, "PK\3\4", 4))
        return sl_fail(z->err, SL_FORMAT,
                       "%s: %.*s should begin at byte %" PRIu64 ", where no zip entry begins",
                       z->path, shown, m->name, header);
    const uint64_t skip =
        30 + sl_little(z->bytes + header + 26, 2) + sl_little(z->bytes + header + 28, 2);
    if (sl_little(z->bytes + header + 26, 2) != names || skip > directory - header ||
        memcmp(z->bytes + header + 30, m->name, names))
        return sl_fail(z->err, SL_FORMAT,
                       "%s: %.*s should begin at byte %" PRIu64 ", where another entry begins",
                       z->path, shown, m->name, header);
    if (sl_little(z->bytes + header + 8, 2))
        return sl_fail(z->err, SL_FORMAT,
                       "%s: %.*s is compressed (method %d), want it stored, as torch.save does",
                       z->path, shown, m->name, (int)sl_little(z->bytes + header + 8, 2));
    m->header = header;
    m->at = header + skip;
    m->bytes = plain;
    if (plain > directory - m->at)
        return sl_fail(z->err, SL_FORMAT,
                       "%s: %.*s has %" PRIu64 " bytes from byte %" PRIu64
                       " on, want them before the directory at byte %" PRIu64,
                       z->path, shown, m->name, plain, m->at, directory);
    return SL_OK;
}

typedef struct {
    const member *of;
} place;

static int by_place(const void *a, const void *b)
{
    const member *x = ((const place *)a)->of, *y = ((const place *)b)->of;
    return (x->header > y->header) - (x->header < y->header);
}

/* No entry may lie in another. */
static sl_code check_places(const archive *z)
{
    place *order = malloc((z->count + 1) * sizeof *order);
    sl_code rc = SL_OK;
    if (!order) return sl_fail(z->err, SL_NOMEM, "%s: no memory", z->path);
    for (size_t i = 0; i < z->count; i++) order[i].of = &z->members[i];
    if (z->count) qsort(order, z->count, sizeof *order, by_place);
    for (size_t i = 1; i < z->count && !rc; i++) {
        const member *a = order[i - 1].of, *b = order[i].of;
        if (a->at + a->bytes > b->header)
            rc = sl_fail(z->err, SL_FORMAT, "%s: zip entries %.*s and %.*s overlap", z->path,
                         a->name_length < 100 ? (int)a->name_length : 100, a->name,
                         b->name_length < 100 ? (int)b->name_length : 100, b->name);
    }
    free(order);
    return rc;
}

/* z->members is the caller's to free. */
static sl_code read_directory(archive *z)
{
    uint64_t at = 0, size = 0, count = 0;
    sl_code rc = find_directory(z, &at, &size, &count);
    if (rc) return rc;
    if (!(z->members = calloc((size_t)count + 1, sizeof *z->members)))
        return sl_fail(z->err, SL_NOMEM, "%s: no memory for %" PRIu64 " zip entries", z->path,
                       count);
    for (uint64_t left = size; z->count < count;) {
        size_t used = 0;
        if ((rc = read_member(z, at, z->bytes + at + (size - left), (size_t)left,
                              &z->members[z->count], &used)))
            return rc;
        left -= used;
        z->count++;
    }
    if ((rc = check_places(z))) return rc;
    if (z->count) qsort(z->members, z->count, sizeof *z->members, by_member);
    return SL_OK;
}

/* ---- the pickle's values ---- */

typedef enum {
    V_MARK,
    V_NONE,
    V_BOOL,
    V_INT,
    V_TEXT,
    V_TUPLE,
    V_DICT,
    V_GLOBAL,
    V_STORAGE,
    V_TENSOR
} kind;

/* The globals that a dict of tensors needs. */
static const struct {
    const char *module, *name;
    const char *tag; /* of a storage, by safetensors' tags; NULL: a function */
} GLOBALS[] = {
    {"collections", "OrderedDict", NULL}, {"torch._utils", "_rebuild_tensor_v2", NULL},
    {"torch", "FloatStorage", "F32"},     {"torch", "BFloat16Storage", "BF16"},
    {"torch", "HalfStorage", "F16"},      {"torch", "DoubleStorage", "F64"},
    {"torch", "LongStorage", "I64"},      {"torch", "IntStorage", "I32"},
    {"torch", "ShortStorage", "I16"},     {"torch", "CharStorage", "I8"},
    {"torch", "ByteStorage", "U8"},       {"torch", "BoolStorage", "BOOL"},
};
enum { ORDERED_DICT, REBUILD_TENSOR };

typedef struct {
    kind kind;
    union {
        int64_t n;        /* BOOL, INT; GLOBAL: its index; STORAGE, TENSOR, DICT: which */
        const char *text; /* TEXT: no NUL at its end */
        size_t first;     /* TUPLE: its first item */
    };
    size_t length; /* TEXT: bytes; TUPLE: items */
} value;

typedef struct {
    value *at;
    size_t count, room;
} values;

typedef struct {
    const char *tag;
    const member *data;
    uint64_t elements;
} storage;

typedef struct {
    size_t storage;
    uint64_t offset;
    int rank;
    int64_t shape[SL_MAX_RANK];
} tensor;

typedef struct {
    int64_t dict;
    value key, item;
} pair;

typedef struct {
    archive *z;
    const member *pkl;
    const unsigned char *p, *end, *begin;
    values stack, memo, items; /* items: of tuples, in runs */
    storage *storages;
    size_t storage_count;
    tensor *tensors;
    size_t tensor_count;
    pair *pairs;
    size_t pair_count, pair_room;
    int64_t dicts;
} machine;

static sl_code wrong(machine *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static sl_code wrong(machine *m, const char *fmt, ...)
{
    char text[300];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return sl_fail(m->z->err, SL_FORMAT, "%s: data.pkl, byte %td: %s", m->z->path, m->p - m->begin,
                   text);
}

static sl_code no_memory(machine *m)
{
    return sl_fail(m->z->err, SL_NOMEM, "%s: no memory for its pickle", m->z->path);
}

static sl_code push(machine *m, values *v, value x)
{
    if (v->count == v->room) {
        const size_t room = v->room ? 2 * v->room : 256;
        value *more = room <= VALUES_MAX ? realloc(v->at, room * sizeof *more) : NULL;
        if (!more) return no_memory(m);
        v->at = more;
        v->room = room;
    }
    v->at[v->count++] = x;
    return SL_OK;
}

/* The n topmost values, taken off; NULL: fewer are there, or a MARK is among them. */
static const value *pop(machine *m, size_t n)
{
    if (m->stack.count < n) return NULL;
    for (size_t i = m->stack.count - n; i < m->stack.count; i++)
        if (m->stack.at[i].kind == V_MARK) return NULL;
    m->stack.count -= n;
    return m->stack.at + m->stack.count;
}

/* The values above the last MARK, taken off with it. */
static const value *pop_mark(machine *m, size_t *n)
{
    size_t i = m->stack.count;
    while (i && m->stack.at[i - 1].kind != V_MARK) i--;
    if (!i) return NULL;
    *n = m->stack.count - i;
    m->stack.count = i - 1;
    return m->stack.at + i;
}

static sl_code make_tuple(machine *m, const value *from, size_t n)
{
    const value t = {.kind = V_TUPLE, .first = m->items.count, .length = n};
    sl_code rc = from ? SL_OK : wrong(m, "a tuple of values that are not there");
    /* from points into the stack, which does not move here */
    for (size_t i = 0; i < n && !rc; i++) rc = push(m, &m->items, from[i]);
    return rc ? rc : push(m, &m->stack, t);
}

static bool is_text(const value *v, const char *want)
{
    return v->kind == V_TEXT && v->length == strlen(want) && !memcmp(v->text, want, v->length);
}

/* ("storage", FloatStorage, "K", "cpu", elements) */
static sl_code make_storage(machine *m)
{
    const value *v = pop(m, 1);
    if (!v || v->kind != V_TUPLE || v->length != 5)
        return wrong(m, "a persistent id that is no tuple of 5");
    const value *t = m->items.at + v->first;
    if (!is_text(&t[0], "storage") || t[1].kind != V_GLOBAL || !GLOBALS[t[1].n].tag ||
        t[2].kind != V_TEXT || t[3].kind != V_TEXT || t[4].kind != V_INT || t[4].n < 0)
        return wrong(m, "a persistent id that is not (\"storage\", type, key, place, elements)");
    char name[600];
    const char *slash = memchr(m->pkl->name, '/', m->pkl->name_length);
    const int folder = (int)(slash - m->pkl->name);
    const int n = t[2].length < 64 ? snprintf(name, sizeof name, "%.*s/data/%.*s", folder,
                                              m->pkl->name, (int)t[2].length, t[2].text)
                                   : -1;
    const member *data = n > 0 && n < (int)sizeof name ? find_member(m->z, name, (size_t)n) : NULL;
    if (!data)
        return wrong(m, "storage %.*s has no entry in the zip",
                     t[2].length < 64 ? (int)t[2].length : 64, t[2].text);
    const char *tag = GLOBALS[t[1].n].tag;
    sl_dtype dtype;
    const int bits =
        sl_dtype_parse(tag, &dtype) ? 8 * (int)sl_dtype_size(dtype) : sl_set_foreign_bits(tag);
    uint64_t bytes;
    if (!sl_set_bytes(bits, 1, &t[4].n, &bytes) || bytes != data->bytes)
        return wrong(m,
                     "storage %.*s has %" PRIu64 " bytes in the zip, which is not what %lld of %s "
                     "take",
                     (int)t[2].length, t[2].text, data->bytes, (long long)t[4].n, tag);
    storage *more = realloc(m->storages, (m->storage_count + 1) * sizeof *more);
    if (!more) return no_memory(m);
    m->storages = more;
    m->storages[m->storage_count] = (storage){tag, data, (uint64_t)t[4].n};
    return push(m, &m->stack, (value){.kind = V_STORAGE, .n = (int64_t)m->storage_count++});
}

/* (storage, offset, shape, stride, requires_grad, hooks [, metadata]) */
static sl_code make_tensor(machine *m, const value *arguments)
{
    const bool filled = arguments->length == 6 || arguments->length == 7;
    const value *a = filled ? m->items.at + arguments->first : NULL;
    if (!a || a[0].kind != V_STORAGE || a[1].kind != V_INT || a[2].kind != V_TUPLE ||
        a[3].kind != V_TUPLE || a[2].length != a[3].length)
        return wrong(m, "a tensor that is not (storage, offset, shape, stride, ...)");
    if (a[2].length > SL_MAX_RANK)
        return wrong(m, "a tensor of %zu dimensions, want at most %d", a[2].length, SL_MAX_RANK);
    const storage *s = &m->storages[a[0].n];
    tensor t = {.storage = (size_t)a[0].n, .rank = (int)a[2].length};
    uint64_t count;
    for (int i = 0; i < t.rank; i++) {
        const value *extent = &m->items.at[a[2].first + (size_t)i];
        if (extent->kind != V_INT || extent->n < 0)
            return wrong(m, "a tensor's extent %d is no integer >= 0", i);
        t.shape[i] = extent->n;
    }
    int64_t stride = 1;
    bool fits = sl_set_bytes(8, t.rank, t.shape, &count);
    for (int i = t.rank - 1; i >= 0 && fits && count; i--) {
        const value *given = &m->items.at[a[3].first + (size_t)i];
        if (given->kind != V_INT || (t.shape[i] != 1 && given->n != stride))
            return wrong(m, "a tensor's stride %d is not %lld: it is not contiguous", i,
                         (long long)stride);
        stride *= t.shape[i];
    }
    if (!fits || a[1].n < 0 || (uint64_t)a[1].n > s->elements ||
        count > s->elements - (uint64_t)a[1].n)
        return wrong(m, "a tensor takes elements %lld to %lld of a storage that has %" PRIu64,
                     (long long)a[1].n, fits ? (long long)((uint64_t)a[1].n + count) : -1ll,
                     s->elements);
    t.offset = (uint64_t)a[1].n;
    tensor *more = realloc(m->tensors, (m->tensor_count + 1) * sizeof *more);
    if (!more) return no_memory(m);
    m->tensors = more;
    m->tensors[m->tensor_count] = t;
    return push(m, &m->stack, (value){.kind = V_TENSOR, .n = (int64_t)m->tensor_count++});
}

static sl_code reduce(machine *m)
{
    const value *v = pop(m, 2);
    if (!v || v[0].kind != V_GLOBAL || v[1].kind != V_TUPLE)
        return wrong(m, "a call that is no known function with a tuple");
    if (v[0].n == ORDERED_DICT && v[1].length == 0)
        return push(m, &m->stack, (value){.kind = V_DICT, .n = m->dicts++});
    if (v[0].n == REBUILD_TENSOR) return make_tensor(m, &v[1]);
    return wrong(m, "a call of %s.%s, which is not done", GLOBALS[v[0].n].module,
                 GLOBALS[v[0].n].name);
}

/* n values, key and item in turn, into the dict that is on top of the stack. */
static sl_code set_items(machine *m, const value *v, size_t n)
{
    if (!v || n % 2 || !m->stack.count || m->stack.at[m->stack.count - 1].kind != V_DICT)
        return wrong(m, "items for what is no dict");
    const int64_t dict = m->stack.at[m->stack.count - 1].n;
    for (size_t i = 0; i < n; i += 2) {
        if (m->pair_count == m->pair_room) {
            const size_t room = m->pair_room ? 2 * m->pair_room : 256;
            pair *more = room <= VALUES_MAX ? realloc(m->pairs, room * sizeof *more) : NULL;
            if (!more) return no_memory(m);
            m->pairs = more;
            m->pair_room = room;
        }
        m->pairs[m->pair_count++] = (pair){dict, v[i], v[i + 1]};
    }
    return SL_OK;
}

/* ---- the pickle's opcodes ---- */

/* n more bytes; NULL: the pickle ends before. */
static const unsigned char *take(machine *m, size_t n)
{
    const unsigned char *p = m->p;
    if (n > (size_t)(m->end - m->p)) return NULL;
    m->p += n;
    return p;
}

/* A line of GLOBAL, without its newline. */
static const unsigned char *take_line(machine *m, size_t *n)
{
    const unsigned char *p = m->p, *newline = memchr(p, '\n', (size_t)(m->end - p));
    if (!newline) return NULL;
    *n = (size_t)(newline - p);
    m->p = newline + 1;
    return p;
}

static sl_code global(machine *m)
{
    size_t a = 0, b = 0;
    const unsigned char *module = take_line(m, &a), *name = module ? take_line(m, &b) : NULL;
    if (!name) return wrong(m, "ends within a name");
    for (size_t i = 0; i < sizeof GLOBALS / sizeof *GLOBALS; i++)
        if (strlen(GLOBALS[i].module) == a && !memcmp(GLOBALS[i].module, module, a) &&
            strlen(GLOBALS[i].name) == b && !memcmp(GLOBALS[i].name, name, b))
            return push(m, &m->stack, (value){.kind = V_GLOBAL, .n = (int64_t)i});
    return wrong(m,
                 "asks for %.*s.%.*s, want nothing but tensors: this pickle may run any code and "
                 "is not followed",
                 a < 60 ? (int)a : 60, (const char *)module, b < 60 ? (int)b : 60,
                 (const char *)name);
}

static sl_code text(machine *m, size_t n)
{
    const unsigned char *p = take(m, n);
    if (!p) return wrong(m, "ends within a text");
    return push(m, &m->stack, (value){.kind = V_TEXT, .text = (const char *)p, .length = n});
}

static sl_code integer(machine *m, int bytes, bool is_signed)
{
    const unsigned char *p = take(m, (size_t)bytes);
    if (!p) return wrong(m, "ends within a number");
    uint64_t x = sl_little(p, bytes);
    if (is_signed && bytes && bytes < 8 && p[bytes - 1] & 0x80) x |= ~0ull << 8 * bytes;
    return push(m, &m->stack, (value){.kind = V_INT, .n = (int64_t)x});
}

static sl_code remember(machine *m, int bytes)
{
    const unsigned char *p = take(m, (size_t)bytes);
    const uint64_t at = p ? sl_little(p, bytes) : 0;
    if (!p) return wrong(m, "ends within a number");
    if (!m->stack.count) return wrong(m, "remembers what is not there");
    /* torch.save counts up */
    if (at > m->memo.count) return wrong(m, "remembers value %" PRIu64 " out of order", at);
    const value v = m->stack.at[m->stack.count - 1];
    if (v.kind == V_MARK) return wrong(m, "remembers a mark");
    if (at < m->memo.count) {
        m->memo.at[at] = v;
        return SL_OK;
    }
    return push(m, &m->memo, v);
}

static sl_code recall(machine *m, int bytes)
{
    const unsigned char *p = take(m, (size_t)bytes);
    const uint64_t at = p ? sl_little(p, bytes) : 0;
    if (!p) return wrong(m, "ends within a number");
    if (at >= m->memo.count) return wrong(m, "recalls value %" PRIu64 ", which is not there", at);
    return push(m, &m->stack, m->memo.at[at]);
}

/* An OrderedDict's attributes (`_metadata` of a module's state): of no use. */
static sl_code build(machine *m)
{
    const value *v = pop(m, 1);
    if (!v || v->kind != V_DICT || !m->stack.count ||
        m->stack.at[m->stack.count - 1].kind != V_DICT)
        return wrong(m, "attributes that are no dict, or for what is no dict");
    return SL_OK;
}

static sl_code put_items(machine *m, bool marked)
{
    size_t n = 2;
    const value *v = marked ? pop_mark(m, &n) : pop(m, 2);
    return set_items(m, v, n);
}

/* One opcode; *stop: it was the last. */
static sl_code step(machine *m, bool *stop)
{
    const unsigned char *p = take(m, 1), *q;
    size_t n = 0;
    const value *v;
    if (!p) return wrong(m, "ends without STOP");
    switch (*p) {
    case 0x80: /* PROTO */
        if (!(q = take(m, 1))) return wrong(m, "ends within its protocol");
        return *q == 2 ? SL_OK : wrong(m, "has protocol %d, want 2, as torch.save writes", *q);
    case '.': /* STOP */ *stop = true; return SL_OK;
    case '(': /* MARK */ return push(m, &m->stack, (value){.kind = V_MARK});
    case 'N': /* NONE */ return push(m, &m->stack, (value){.kind = V_NONE});
    case 0x88: /* NEWTRUE, NEWFALSE */
    case 0x89: return push(m, &m->stack, (value){.kind = V_BOOL, .n = *p == 0x88});
    case 'K': /* BININT1 */ return integer(m, 1, false);
    case 'M': /* BININT2 */ return integer(m, 2, false);
    case 'J': /* BININT */ return integer(m, 4, true);
    case 0x8a: /* LONG1 */
        if (!(q = take(m, 1))) return wrong(m, "ends within a number");
        return *q <= 8 ? integer(m, *q, true) : wrong(m, "has an integer of %d bytes", *q);
    case 'X': /* BINUNICODE */
        if (!(q = take(m, 4))) return wrong(m, "ends within a text");
        return text(m, (size_t)sl_little(q, 4));
    case 'q': /* BINPUT, LONG_BINPUT */ return remember(m, 1);
    case 'r': return remember(m, 4);
    case 'h': /* BINGET, LONG_BINGET */ return recall(m, 1);
    case 'j': return recall(m, 4);
    case ')': /* EMPTY_TUPLE, TUPLE, TUPLE1 ... */
        return push(m, &m->stack, (value){.kind = V_TUPLE, .first = m->items.count});
    case 't': v = pop_mark(m, &n); return make_tuple(m, v, n);
    case 0x85:
    case 0x86:
    case 0x87: v = pop(m, *p - 0x84u); return make_tuple(m, v, *p - 0x84u);
    case '}': /* EMPTY_DICT */ return push(m, &m->stack, (value){.kind = V_DICT, .n = m->dicts++});
    case 's': /* SETITEM, SETITEMS */ return put_items(m, false);
    case 'u': return put_items(m, true);
    case 'c': /* GLOBAL */ return global(m);
    case 'R': /* REDUCE */ return reduce(m);
    case 'b': /* BUILD */ return build(m);
    case 'Q': /* BINPERSID */ return make_storage(m);
    default: break;
    }
    m->p--;
    return wrong(m, "has opcode 0x%02x, which no plain file of tensors needs: not followed", *p);
}

/* ---- the tensors ---- */

/* The pairs of the dict that the pickle makes, as entries. */
static sl_code collect(machine *m, sl_st *st, int k)
{
    const value top = m->stack.at[m->stack.count - 1];
    size_t names = 0, n = 0;
    sl_code rc;
    for (size_t i = 0; i < m->pair_count; i++) {
        const pair *p = &m->pairs[i];
        if (p->dict != top.n) continue;
        if (p->key.kind != V_TEXT || !p->key.length || memchr(p->key.text, 0, p->key.length))
            return wrong(m, "a tensor's name is no text");
        if (p->item.kind != V_TENSOR)
            return wrong(m, "%.*s is no tensor, want a flat dict of tensors",
                         p->key.length < SL_NAME_SHOWN ? (int)p->key.length : SL_NAME_SHOWN,
                         p->key.text);
        names += p->key.length + 1;
        n++;
    }
    /* a name takes its bytes and more of the pickle; a repeated one costs it a few bytes alone */
    if (names > m->pkl->bytes) return wrong(m, "its dict has one name many times");
    if ((rc = sl_set_room(st, n, m->z->path, m->z->err))) return rc;
    char *name = sl_set_keep(st, names);
    if (!name) return no_memory(m);
    for (size_t i = 0; i < m->pair_count; i++) {
        const pair *p = &m->pairs[i];
        if (p->dict != top.n) continue;
        const tensor *t = &m->tensors[p->item.n];
        const storage *s = &m->storages[t->storage];
        sl_st_entry *e = &st->entries[st->count++];
        sl_dtype dtype;
        memcpy(name, p->key.text, p->key.length); /* behind it the block holds 0 */
        *e = (sl_st_entry){.name = name, .dtype = s->tag, .shard = k};
        name += p->key.length + 1;
        if (!sl_dtype_parse(s->tag, &dtype)) continue;
        const unsigned char *data = m->z->bytes + s->data->at + t->offset * sl_dtype_size(dtype);
        /* read-only, by contract */
        e->t = sl_view((void *)(uintptr_t)data, dtype, t->rank ? t->rank : 1,
                       t->rank ? t->shape : (const int64_t[]){1});
    }
    return SL_OK;
}

static sl_code run(machine *m, sl_st *st, int k)
{
    sl_code rc = SL_OK;
    bool stop = false;
    while (!rc && !stop) rc = step(m, &stop);
    if (rc) return rc;
    if (m->stack.count != 1 || m->stack.at[0].kind != V_DICT)
        return wrong(m, "makes no dict, want a dict of tensors");
    return collect(m, st, k);
}

/* FOLDER/data.pkl, of which there is one. */
static sl_code find_pickle(const archive *z, const member **out)
{
    static const char END[] = "/data.pkl";
    *out = NULL;
    for (size_t i = 0; i < z->count; i++) {
        const member *m = &z->members[i];
        const char *slash = memchr(m->name, '/', m->name_length);
        if (!slash || m->name_length - (size_t)(slash - m->name) != sizeof END - 1 ||
            memcmp(slash, END, sizeof END - 1))
            continue;
        if (*out) return sl_fail(z->err, SL_FORMAT, "%s: holds two data.pkl", z->path);
        *out = m;
    }
    if (!*out)
        return sl_fail(z->err, SL_FORMAT,
                       "%s: is a zip without FOLDER/data.pkl, want what torch.save writes",
                       z->path);
    if ((*out)->bytes > SL_HEADER_MAX)
        return sl_fail(z->err, SL_FORMAT, "%s: data.pkl has %" PRIu64 " bytes, want at most %d",
                       z->path, (*out)->bytes, SL_HEADER_MAX);
    return SL_OK;
}

static sl_code check_byte_order(const archive *z, const member *pkl)
{
    char name[600];
    const char *slash = memchr(pkl->name, '/', pkl->name_length);
    const int n =
        snprintf(name, sizeof name, "%.*s/byteorder", (int)(slash - pkl->name), pkl->name);
    const member *m = n < (int)sizeof name ? find_member(z, name, (size_t)n) : NULL;
    if (m && (m->bytes != 6 || memcmp(z->bytes + m->at, "little", 6)))
        return sl_fail(z->err, SL_FORMAT, "%s: its byte order is not little", z->path);
    return SL_OK;
}

sl_code sl_pth_parse(sl_st *st, int k, const unsigned char *bytes, size_t length, const char *path,
                     sl_err *err)
{
    archive z = {.path = path, .bytes = bytes, .length = length, .err = err};
    machine m = {.z = &z};
    sl_code rc;
    if (!(rc = read_directory(&z)) && !(rc = find_pickle(&z, &m.pkl)) &&
        !(rc = check_byte_order(&z, m.pkl))) {
        m.begin = m.p = bytes + m.pkl->at;
        m.end = m.p + m.pkl->bytes;
        rc = run(&m, st, k);
    }
    free(m.stack.at);
    free(m.memo.at);
    free(m.items.at);
    free(m.storages);
    free(m.tensors);
    free(m.pairs);
    free(z.members);
    return rc;
}
