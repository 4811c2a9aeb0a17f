/* unigram.c - tokenizer.json to a sentencepiece model.
 *
 * Both hold the same: pieces with scores, and the normaliser's table (`precompiled_charsmap`, in
 * base64 there). The rest of tokenizer.json must be what makes a T5 tokenizer: white space split,
 * U+2581 before each word.
 * Sources: sentencepiece src/sentencepiece_model.proto for field numbers; huggingface/tokenizers
 * models/unigram; transformers tokenization_t5.py. */
#include "common/unigram.h"

#include <jansson.h>

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base64.h"
#include "common/json.h"

#define FILE_MAX (100 << 20) /* bytes; UMT5's has 17 million */
#define PIECES_MAX (1 << 24)

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, UNUSED = 5, BYTE = 6 }; /* SentencePiece.Type */

typedef struct {
    unsigned char *at;
    size_t count, room;
    bool full; /* no memory */
} bytes;

/* ---- protocol buffers ---- */

static void put(bytes *b, const void *p, size_t n)
{
    if (b->full) return;
    if (b->count + n > b->room) {
        const size_t room = 2 * (b->count + n) + 1024;
        unsigned char *more = realloc(b->at, room);
        if (!more) {
            b->full = true;
            return;
        }
        b->at = more;
        b->room = room;
    }
    memcpy(b->at + b->count, p, n);
    b->count += n;
}

static void put_varint(bytes *b, uint64_t x)
{
    do {
        const unsigned char c = (unsigned char)((x & 127) | (x > 127 ? 128 : 0));
        put(b, &c, 1);
    } while (x >>= 7);
}

static void put_number(bytes *b, int field, uint64_t x)
{
    put_varint(b, (uint64_t)field << 3);
    put_varint(b, x);
}

static void put_float(bytes *b, int field, float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    put_varint(b, (uint64_t)field << 3 | 5);
    for (int i = 0; i < 4; i++) put(b, &(unsigned char){(unsigned char)(u >> 8 * i)}, 1);
}

static void put_bytes(bytes *b, int field, const void *p, size_t n)
{
    put_varint(b, (uint64_t)field << 3 | 2);
    put_varint(b, n);
    put(b, p, n);
}

/* ---- what tokenizer.json must be ---- */

static const char *type_of(const json_t *o)
{
    const char *s = json_string_value(json_object_get(o, "type"));
    return s ? s : "nothing";
}

static sl_code wrong(sl_err *err, const char *name, const char *what, const char *found,
                     const char *want)
{
    return sl_fail(err, SL_FORMAT, "tokenizer: %s: %s is %.60s, want %s", name, what, found, want);
}

/* The pre-tokenizer puts U+2581 before words, by itself or behind a split at white space. */
static bool is_metaspace(const json_t *pre)
{
    if (!strcmp(type_of(pre), "Metaspace")) return true;
    const json_t *list = json_object_get(pre, "pretokenizers");
    const size_t n = json_array_size(list);
    if (strcmp(type_of(pre), "Sequence") || !n) return false;
    return !strcmp(type_of(json_array_get(list, n - 1)), "Metaspace") &&
           (n == 1 || (n == 2 && !strcmp(type_of(json_array_get(list, 0)), "WhitespaceSplit")));
}

/* `Precompiled`, alone or in a sequence whose others only fold white space. */
static const json_t *find_map(const json_t *normalizer)
{
    const json_t *list = json_object_get(normalizer, "normalizers"), *found = NULL, *v;
    size_t i;
    if (!strcmp(type_of(normalizer), "Precompiled"))
        return json_object_get(normalizer, "precompiled_charsmap");
    json_array_foreach((json_t *)(uintptr_t)list, i, v)
    {
        if (!strcmp(type_of(v), "Precompiled")) found = json_object_get(v, "precompiled_charsmap");
        else if (strcmp(type_of(v), "Strip") && strcmp(type_of(v), "Replace")) return NULL;
    }
    return found;
}

/* False: not base64. */
static bool decode(bytes *b, const char *s, size_t n)
{
    uint8_t *out = malloc(n + 3);
    size_t size = 0;
    const bool good = out && n % 4 == 0 && sl_base64_decode(out, &size, s, n);
    if (!out) b->full = true;
    put(b, out, good ? size : 0);
    free(out);
    return good || !out;
}

/* ---- pieces ---- */

typedef struct {
    const char *name;
    const json_t *vocab;
    bool *special; /* by id */
    int unk;
    bool fallback;
} model;

static const char *piece_at(const model *m, size_t i)
{
    return json_string_value(json_array_get(json_array_get(m->vocab, i), 0));
}

static bool is_byte(const char *piece)
{
    unsigned x;
    int n = 0;
    return sscanf(piece, "<0x%2x>%n", &x, &n) == 1 && n == 6 && !piece[6];
}

static int kind_of(const model *m, size_t i, const char *piece)
{
    if ((int)i == m->unk) return UNKNOWN;
    if (!strncmp(piece, "<extra_id_", 10)) return UNUSED; /* spiece.model has none of them */
    if (m->special[i]) return CONTROL;
    if (is_byte(piece)) return m->fallback ? BYTE : UNUSED;
    return NORMAL;
}

static sl_code put_pieces(bytes *b, const model *m, sl_err *err)
{
    const size_t n = json_array_size(m->vocab);
    bytes piece = {0};
    for (size_t i = 0; i < n; i++) {
        const json_t *pair = json_array_get(m->vocab, i), *score = json_array_get(pair, 1);
        const char *text = piece_at(m, i);
        if (json_array_size(pair) != 2 || !text || !json_is_number(score)) {
            free(piece.at);
            return sl_fail(err, SL_FORMAT, "tokenizer: %s: piece %zu is no [text, score]", m->name,
                           i);
        }
        piece.count = 0;
        put_bytes(&piece, 1, text, strlen(text));
        put_float(&piece, 2, (float)json_number_value(score));
        put_number(&piece, 3, (uint64_t)kind_of(m, i, text));
        put_bytes(b, 1, piece.at, piece.count);
        b->full |= piece.full;
    }
    free(piece.at);
    return SL_OK;
}

static int find_piece(const model *m, const char *want)
{
    for (size_t i = 0; i < json_array_size(m->vocab); i++)
        if (piece_at(m, i) && !strcmp(piece_at(m, i), want)) return (int)i;
    return -1;
}

/* Which ids the file adds as special; one beyond the vocabulary is none of the model's. */
static void find_specials(const model *m, const json_t *added)
{
    const json_t *v;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)added, i, v)
    {
        const json_int_t id = json_integer_value(json_object_get(v, "id"));
        if (json_is_true(json_object_get(v, "special")) && id >= 0 &&
            (size_t)id < json_array_size(m->vocab))
            m->special[id] = true;
    }
}

/* Trainer and normaliser, with the fields that loading reads. */
static sl_code put_specs(bytes *b, const model *m, const json_t *map, sl_err *err)
{
    const int eos = find_piece(m, "</s>"), pad = find_piece(m, "<pad>"), bos = find_piece(m, "<s>");
    bytes trainer = {0}, normalizer = {0}, table = {0};
    put_number(&trainer, 3, 1); /* UNIGRAM */
    put_number(&trainer, 35, m->fallback);
    put_number(&trainer, 40, (uint64_t)(int64_t)m->unk);
    put_number(&trainer, 41, (uint64_t)(int64_t)bos);
    put_number(&trainer, 42, (uint64_t)(int64_t)eos);
    put_number(&trainer, 43, (uint64_t)(int64_t)pad);
    put_bytes(&trainer, 45, piece_at(m, (size_t)m->unk), strlen(piece_at(m, (size_t)m->unk)));
    put_bytes(&trainer, 48, "<pad>", 5);
    const bool good = decode(&table, json_string_value(map), json_string_length(map));
    put_bytes(&normalizer, 2, table.at ? table.at : (unsigned char *)"", table.count);
    put_number(&normalizer, 3, 1); /* a space before the text, none doubled, all as U+2581 */
    put_number(&normalizer, 4, 1);
    put_number(&normalizer, 5, 1);
    put_bytes(b, 2, trainer.at, trainer.count);
    put_bytes(b, 3, normalizer.at, normalizer.count);
    b->full |= trainer.full || normalizer.full || table.full;
    free(trainer.at);
    free(normalizer.at);
    free(table.at);
    return good ? SL_OK
                : sl_fail(err, SL_FORMAT, "tokenizer: %s: precompiled_charsmap is no base64",
                          m->name);
}

static sl_code convert(bytes *b, const json_t *root, const char *name, sl_err *err)
{
    const json_t *u = json_object_get(root, "model"), *pre = json_object_get(root, "pre_tokenizer");
    const json_t *map = find_map(json_object_get(root, "normalizer")), *unk;
    model m = {.name = name, .vocab = json_object_get(u, "vocab")};
    const size_t n = json_array_size(m.vocab);
    sl_code rc;
    /* "type" is left out by some writers */
    if (json_object_get(u, "type") && strcmp(type_of(u), "Unigram"))
        return wrong(err, name, "model", type_of(u), "Unigram, as T5 has it");
    if (!n || n > PIECES_MAX)
        return sl_fail(err, SL_FORMAT, "tokenizer: %s: has %zu pieces, want 1 to %d", name, n,
                       PIECES_MAX);
    if (!is_metaspace(pre)) return wrong(err, name, "pre_tokenizer", type_of(pre), "Metaspace");
    if (!json_is_string(map))
        return wrong(err, name, "normalizer", type_of(json_object_get(root, "normalizer")),
                     "Precompiled with its precompiled_charsmap");
    unk = json_object_get(u, "unk_id");
    /* transformers 5 writes 2 whatever the pieces are */
    if ((m.unk = find_piece(&m, "<unk>")) < 0)
        m.unk = json_is_integer(unk) && json_integer_value(unk) >= 0 &&
                        json_integer_value(unk) < (json_int_t)n
                    ? (int)json_integer_value(unk)
                    : -1;
    if (m.unk < 0 || !piece_at(&m, (size_t)m.unk))
        return sl_fail(err, SL_FORMAT, "tokenizer: %s: has no piece for what is unknown", name);
    m.fallback = json_is_true(json_object_get(u, "byte_fallback"));
    if (!(m.special = calloc(n, sizeof *m.special)))
        return sl_fail(err, SL_NOMEM, "tokenizer: no memory for %s", name);
    find_specials(&m, json_object_get(root, "added_tokens"));
    if (!(rc = put_pieces(b, &m, err))) rc = put_specs(b, &m, map, err);
    if (!rc && b->full) rc = sl_fail(err, SL_NOMEM, "tokenizer: no memory for %s", name);
    free(m.special);
    return rc;
}

static sl_code finish(unsigned char **out, size_t *length, json_t *root, const char *name,
                      sl_err *err)
{
    bytes b = {0};
    sl_code rc = convert(&b, root, name, err);
    json_decref(root);
    *out = NULL;
    if (rc) {
        free(b.at);
        sl_one_line(err);
        return rc;
    }
    *out = b.at;
    *length = b.count;
    return SL_OK;
}

sl_code sl_unigram_model(unsigned char **out, size_t *length, const char *path, sl_err *err)
{
    json_t *root;
    sl_code rc = sl_json_read(&root, path, FILE_MAX, err);
    *out = NULL;
    return rc ? sl_context(err, rc, "tokenizer") : finish(out, length, root, path, err);
}

sl_code sl_unigram_parse(unsigned char **out, size_t *length, const char *text, size_t text_length,
                         const char *name, sl_err *err)
{
    json_t *root;
    sl_code rc = sl_json_parse(&root, text, text_length, name, err);
    *out = NULL;
    return rc ? rc : finish(out, length, root, name, err);
}
