/* json.h - JSON through jansson, with errors that name file, key, value found and value
 * wanted.
 *
 * Duplicate keys, invalid UTF-8 and NUL characters are refused. Messages stay on one line
 * whatever the file holds. */
#ifndef SL_JSON_H
#define SL_JSON_H

#include <jansson.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

/* An object from text. `name` stands for the file in messages. *out is the caller's to
 * json_decref.
 * Errors: SL_FORMAT "NAME:3:17: what is wrong"; SL_NOMEM. */
sl_code sl_json_parse(json_t **out, const char *text, size_t length, const char *name, sl_err *err);
/* An object from a regular file of at most max_bytes. Errors: SL_SYS cannot be read;
 * SL_FORMAT larger, or as above. */
sl_code sl_json_read(json_t **out, const char *path, size_t max_bytes, sl_err *err);
/* Write root as a file, by jansson's JSON_... flags. root is taken over; NULL says that there was
 * no memory for it. `what` stands before the path in messages. Errors: SL_SYS, SL_NOMEM; a regular
 * file that is not whole is removed. */
sl_code sl_json_write(json_t *root, const char *path, size_t flags, const char *what, sl_err *err);
/* As json_loadb, but a byte-order mark is skipped, and an integer that jansson's 64 bits with a
 * sign do not hold (a seed, as some programs make them) becomes a text of its digits. */
json_t *sl_json_load(const char *text, size_t length, size_t flags, json_error_t *e);

/* sl_json_parse by sl_json_load: long integers become texts. */
sl_code sl_json_parse_long(json_t **out, const char *text, size_t length, const char *name,
                           sl_err *err);

/* An integer where x is whole: a rate of 16 stays 16. */
json_t *sl_json_number(double x);
/* The number of this key, 0 if it has none. */
double sl_json_number_of(const json_t *o, const char *key);

/* Replace control characters in the message (names from files may hold line breaks). NULL
 * is fine. */
void sl_one_line(sl_err *err);

/* Reading typed values: the first failure is kept in `code` and *err, later calls return
 * their defaults. */
typedef struct {
    const json_t *object;
    const char *file; /* put before messages */
    sl_err *err;
    sl_code code;
} sl_json_reader;

bool sl_json_has(const sl_json_reader *r, const char *key); /* there, and not null */
/* `otherwise` if the key is absent; a null is refused like any other wrong type (ask
 * sl_json_has first where null is fine). */
int sl_json_int(sl_json_reader *r, const char *key, int otherwise, int lo, int hi);
/* An integer is fine, too. */
double sl_json_real(sl_json_reader *r, const char *key, double otherwise, double lo, double hi);
bool sl_json_bool(sl_json_reader *r, const char *key, bool otherwise);
/* The string is the object's. */
const char *sl_json_string(sl_json_reader *r, const char *key, const char *otherwise);
/* The array of exactly n values under `key`, or NULL if it is absent or wrong. `what`
 * names the values ("numbers"). */
const json_t *sl_json_array(sl_json_reader *r, const char *key, size_t n, const char *what);
/* Fail with SL_FORMAT "FILE: KEY is VALUE, want ...", once; "is absent" where it is. */
void sl_json_fail(sl_json_reader *r, const char *key, const char *want_fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
