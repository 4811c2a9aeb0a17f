/* t_pth.h - writes zips and the pickles in them, as torch.save does and as it never would. */
#ifndef T_PTH_H
#define T_PTH_H

#include "tests/t.h"

typedef struct {
    unsigned char *bytes;
    size_t count, room;
} t_bytes;

static inline void t_add(t_bytes *b, const void *p, size_t n)
{
    if (b->count + n > b->room) {
        b->room = 2 * (b->count + n) + 256;
        b->bytes = realloc(b->bytes, b->room);
        assert_non_null(b->bytes);
    }
    if (n) memcpy(b->bytes + b->count, p, n);
    b->count += n;
}

static inline void t_little(t_bytes *b, uint64_t x, int n)
{
    for (int i = 0; i < n; i++, x >>= 8) {
        const unsigned char c = (unsigned char)x;
        t_add(b, &c, 1);
    }
}

/* Change n bytes that are there. */
static inline void t_patch(t_bytes *b, size_t at, uint64_t x, int n)
{
    assert_true(at + (size_t)n <= b->count);
    for (int i = 0; i < n; i++) b->bytes[at + (size_t)i] = (unsigned char)(x >> 8 * i);
}

/* ---- a zip of stored entries ---- */

#define T_ZIP_MEMBERS 512
typedef struct {
    t_bytes b;
    struct {
        char name[128];
        size_t header, bytes;
    } at[T_ZIP_MEMBERS];
    int count;
    bool zip64;            /* 64-bit sizes and places, as PyTorch writes above 4 GiB */
    size_t directory, end; /* where they begin, after t_zip_end */
} t_zip;

/* Like PyTorch's: a data descriptor behind the data and data at a multiple of 64. */
static inline void t_zip_add(t_zip *z, const char *name, const void *data, size_t n)
{
    t_bytes *b = &z->b;
    const size_t names = strlen(name), pad = 64 - (b->count + 30 + names + 4) % 64;
    assert_true(z->count < T_ZIP_MEMBERS && names < sizeof z->at[0].name);
    snprintf(z->at[z->count].name, sizeof z->at[0].name, "%s", name);
    z->at[z->count].header = b->count;
    z->at[z->count++].bytes = n;
    t_add(b, "PK\3\4\0\0\10\10\0\0\0\0\0\0", 14); /* flags 0x808: descriptor, UTF-8 */
    t_little(b, 0, 12);
    t_little(b, names, 2);
    t_little(b, pad + 4, 2);
    t_add(b, name, names);
    t_add(b, "FB", 2);
    t_little(b, pad, 2);
    for (size_t i = 0; i < pad; i++) t_add(b, "Z", 1);
    t_add(b, data, n);
    t_add(b, "PK\7\10\0\0\0\0", 8);
    t_little(b, n, 4);
    t_little(b, n, 4);
}

static inline void t_zip_end(t_zip *z)
{
    t_bytes *b = &z->b;
    z->directory = b->count;
    for (int i = 0; i < z->count; i++) {
        const size_t names = strlen(z->at[i].name);
        t_add(b, "PK\1\2\0\0\0\0\10\10\0\0\0\0\0\0\0\0\0\0", 20);
        t_little(b, z->zip64 ? 0xffffffff : z->at[i].bytes, 4);
        t_little(b, z->zip64 ? 0xffffffff : z->at[i].bytes, 4);
        t_little(b, names, 2);
        t_little(b, z->zip64 ? 28 : 0, 2);
        t_little(b, 0, 10);
        t_little(b, z->zip64 ? 0xffffffff : z->at[i].header, 4);
        t_add(b, z->at[i].name, names);
        if (!z->zip64) continue;
        t_add(b, "\1\0\30\0", 4);
        t_little(b, z->at[i].bytes, 8);
        t_little(b, z->at[i].bytes, 8);
        t_little(b, z->at[i].header, 8);
    }
    const size_t size = b->count - z->directory;
    z->end = b->count;
    if (z->zip64) {
        t_add(b, "PK\6\6", 4);
        t_little(b, 44, 8);
        t_little(b, 0, 12);
        t_little(b, (uint64_t)z->count, 8);
        t_little(b, (uint64_t)z->count, 8);
        t_little(b, size, 8);
        t_little(b, z->directory, 8);
        t_add(b, "PK\6\7\0\0\0\0", 8);
        t_little(b, z->end, 8);
        t_little(b, 1, 4);
        z->end = b->count;
    }
    t_add(b, "PK\5\6\0\0\0\0", 8);
    t_little(b, z->zip64 ? 0xffff : (uint64_t)z->count, 2);
    t_little(b, z->zip64 ? 0xffff : (uint64_t)z->count, 2);
    t_little(b, z->zip64 ? 0xffffffff : size, 4);
    t_little(b, z->zip64 ? 0xffffffff : z->directory, 4);
    t_little(b, 0, 2);
}

/* ---- a pickle of protocol 2 ---- */

static inline void t_pkl_text(t_bytes *p, const char *s)
{
    t_add(p, "X", 1);
    t_little(p, strlen(s), 4);
    t_add(p, s, strlen(s));
}

static inline void t_pkl_int(t_bytes *p, int64_t x)
{
    if (x >= 0 && x < 256) t_add(p, "K", 1), t_little(p, (uint64_t)x, 1);
    else if (x >= 0 && x < 65536) t_add(p, "M", 1), t_little(p, (uint64_t)x, 2);
    else if (x == (int32_t)x) t_add(p, "J", 1), t_little(p, (uint64_t)x, 4);
    else t_add(p, "\x8a\x08", 2), t_little(p, (uint64_t)x, 8);
}

/* What a tensor says of itself; the test tells lies through it. */
typedef struct {
    const char *name, *type, *key; /* type: "FloatStorage" */
    int64_t elements, offset;
    int rank;
    int64_t shape[SL_MAX_RANK], stride[SL_MAX_RANK];
} t_pkl_tensor;

/* A dense tensor that is its whole storage. */
static inline t_pkl_tensor t_pkl_dense(const char *name, const char *type, const char *key,
                                       int rank, const int64_t *shape)
{
    t_pkl_tensor t = {.name = name, .type = type, .key = key, .elements = 1, .rank = rank};
    for (int i = rank - 1; i >= 0; i--) {
        t.shape[i] = shape[i];
        t.stride[i] = t.elements;
        t.elements *= shape[i];
    }
    return t;
}

#define T_PKL_DICT "ccollections\nOrderedDict\n)R"
static inline void t_pkl_begin(t_bytes *p)
{
    t_add(p, "\x80\x02" T_PKL_DICT "(", 2 + sizeof T_PKL_DICT);
}

static inline void t_pkl_put(t_bytes *p, const t_pkl_tensor *t)
{
    t_pkl_text(p, t->name);
    t_add(p, "ctorch._utils\n_rebuild_tensor_v2\n((", 35);
    t_pkl_text(p, "storage");
    t_add(p, "ctorch\n", 7);
    t_add(p, t->type, strlen(t->type));
    t_add(p, "\n", 1);
    t_pkl_text(p, t->key);
    t_pkl_text(p, "cpu");
    t_pkl_int(p, t->elements);
    t_add(p, "tQ", 2);
    t_pkl_int(p, t->offset);
    t_add(p, "(", 1);
    for (int i = 0; i < t->rank; i++) t_pkl_int(p, t->shape[i]);
    t_add(p, "t(", 2);
    for (int i = 0; i < t->rank; i++) t_pkl_int(p, t->stride[i]);
    t_add(p, "t\x89" T_PKL_DICT "tR", 2 + sizeof T_PKL_DICT - 1 + 2);
}

static inline void t_pkl_end(t_bytes *p)
{
    t_add(p, "u.", 2);
}

#endif
