/* conf_keys.h - what the files of common/conf*.c share: the keys of a configuration, their
 * defaults, and what is said of them. Nobody else includes it. */
#ifndef SL_CONF_KEYS_H
#define SL_CONF_KEYS_H

#include <stdbool.h>

#include "common/conf.h"

typedef enum {
    SL_KEY_INT,
    SL_KEY_INT64,
    SL_KEY_FLOAT,
    SL_KEY_TEXT,
    SL_KEY_WORD,
    SL_KEY_WORDS,
    SL_KEY_PROGRAM,
    SL_KEY_DEVICE,
    SL_KEY_DEVICES,
    SL_KEY_TEAM,
    SL_KEY_ARGS
} sl_key_type;

/* Where a value goes, what it may be and what it means. Numbers use lo, hi and number;
 * the others use text. */
typedef struct {
    const char *path; /* group.key; a key of a stage or a LoRA has no group */
    sl_key_type type;
    size_t at;   /* offset in the struct that the table is of; DEVICES, ARGS: no use of it */
    size_t size; /* TEXT, WORDS: bytes there */
    double lo, hi, number;
    const char *text;  /* default */
    const char *words; /* separated by '|'; WORD stores the index in this list, WORDS the word */
    const char *unit;  /* "" for none */
    const char *what;
} sl_key;

/* A table of keys; `at` is found by name for a setting, and printed in this order. */
typedef struct {
    const sl_key *at;
    int count;
} sl_keys;
extern const sl_keys SL_CONF_KEYS, /* group.key, of sl_conf */
    SL_CONF_STAGE_KEYS,            /* of sl_conf_stage; the first is `name` */
    SL_CONF_FILTER_KEYS,           /* of sl_conf_filter; the first is `on` */
    SL_CONF_LORA_KEYS;             /* of sl_conf_lora */

bool sl_key_is_number(const sl_key *k);
/* The key means something for stages of this role. */
bool sl_key_is_of_role(const sl_key *k, sl_role role);

/* Place of a word in a list "|error|warn"; -1: it is none of them. */
int sl_key_word(const char *words, const char *word);
void sl_key_word_at(const char *words, int index, char *out, size_t size);

/* Put a value, which has been checked, where the key says in *base. */
void sl_key_store_number(const sl_key *k, void *base, double v);
void sl_key_store_text(const sl_key *k, void *base, const char *text);

void sl_conf_lora_defaults(sl_conf_lora *l);
void sl_conf_stage_defaults(sl_conf_stage *s, sl_role role);
/* `is.on` stays. */
void sl_conf_filter_defaults(sl_conf_filter *f);

/* What may stand there: "an integer from 1 to 4097". Returns out. */
const char *sl_key_values(const sl_key *k, char *out, size_t size);
/* What it means: "most frames of a video; default 81", with the unit where there is one. */
const char *sl_key_meaning(const sl_key *k, char *out, size_t size);

#endif
