/* st_set.h - what the readers of tensor files share: safetensors.c, pth.c and gguf.c fill the one
 * sl_st that common/safetensors.h shows, checkpoint.c renames its entries. Nobody else includes
 * this. */
#ifndef SL_ST_SET_H
#define SL_ST_SET_H

#include <jansson.h>

#include "common/safetensors.h"

#define SL_HEADER_MAX 100000000 /* bytes of a header or a pickle */
#define SL_TENSORS_MAX 10000000 /* of a whole set, so that counts fit in int */
#define SL_NAME_SHOWN 150       /* characters of a name in a message */

typedef struct {
    char *path;
    void *map; /* NULL: not ours */
    size_t bytes;
    json_t *header; /* names and tags of the entries may point into it; "__metadata__" is the
                     * file's own */
} sl_st_shard;

struct sl_st {
    sl_st_shard *shards;
    int shard_count;
    sl_st_entry *entries;
    int count;
    void **owned; /* what else the entries point into */
    int owned_count;
};

/* Room for `more` entries behind st->entries[st->count - 1]. Errors: SL_FORMAT above
 * SL_TENSORS_MAX; SL_NOMEM. */
sl_code sl_set_room(sl_st *st, size_t more, const char *path, sl_err *err);
/* calloc(1, bytes) that lives as long as the set; NULL: no memory. */
void *sl_set_keep(sl_st *st, size_t bytes);
/* Bits of an element by its safetensors tag, for tags that SL_DTYPES lacks; 0: none. */
int sl_set_foreign_bits(const char *tag);
/* Bytes of an element type times a shape; false if they are no whole number or do not fit. An
 * extent of 0 counts as 1 when looking for overflow, so that strides fit too. */
bool sl_set_bytes(int bits, int rank, const int64_t *shape, uint64_t *out);

/* An unsigned number of n bytes, the lowest first. */
static inline uint64_t sl_little(const unsigned char *p, int n)
{
    uint64_t x = 0;
    while (n--) x = x << 8 | p[n];
    return x;
}

/* Append the tensors of one whole file in memory, shard number k of st. Entries need not be sorted.
 * Errors: SL_FORMAT, SL_NOMEM. */
sl_code sl_pth_parse(sl_st *st, int k, const unsigned char *bytes, size_t length, const char *path,
                     sl_err *err);
sl_code sl_gguf_parse(sl_st *st, int k, const unsigned char *bytes, size_t length, const char *path,
                      sl_err *err);
/* True: the file begins as one of this kind does. */
bool sl_gguf_is(const unsigned char *bytes, size_t length);
bool sl_pth_is(const unsigned char *bytes, size_t length);

#endif
