/* s3.h - one request to an S3-compatible store: signed, sent, its answer read, made again while
 * that may help.
 *
 * An answer of 5xx or 429, a connection that fails or is silent for 10 s: the request is made again
 * after a random wait of up to 50 ms, 100 ms ... 2 s, until `s3.try_s` have passed. From then on
 * the store is AWAY: each request tries once and fails, until one is answered. Messages name the
 * bucket, never keys, signatures or links. Any thread; each request has a connection to itself, and
 * leaves it to the next. */
#ifndef SL_S3_H
#define SL_S3_H

#include <stdatomic.h>

#include "common/sha256.h"
#include "stages/serve/s3_place.h"
#include "stages/serve/s3_xml.h"

#define SL_S3_SENT_SHA256 "x-amz-meta-sha256" /* of the whole file, noted with each object */
#define SL_S3_HEADERS 6

typedef struct sl_s3 sl_s3;

/* What was answered. */
typedef struct {
    long code;     /* of HTTP; 0: no answer */
    char etag[96]; /* with its quotation marks; "": none */
    char sha256[SL_SHA256_HEX];
    char region[64];
    uint64_t all;   /* bytes of the whole object, where the head says it */
    char *body;     /* what nobody took: of an error, or of a request without `take` */
    size_t size;    /* of it; there is a NUL behind it */
    char error[64]; /* the store's word for an error, as "NoSuchKey"; "": none */
} sl_s3_reply;

typedef struct {
    const char *method;
    const char *key;                        /* behind the prefix; NULL: the bucket itself */
    const char *query;                      /* escaped; NULL: none */
    const char *headers[SL_S3_HEADERS + 1]; /* "name: value", names in lower case; ends with NULL */
    /* what is sent: */
    const void *bytes; /* NULL: `size` bytes of the file fd, from `at` on */
    int fd;
    off_t at;
    uint64_t size;
    const char *digest; /* hex SHA-256 of it; NULL: of `bytes` */
    int64_t rate;       /* bytes a second, at most; 0: as fast as it goes */
    /* what comes: an object's bytes, where it is answered 2xx; false ends it. NULL: it is put into
     * the reply's body */
    bool (*take)(void *self, const sl_s3_reply *r, const char *bytes, size_t n);
    bool (*over)(void *self); /* true: nobody wants the answer any more; NULL: somebody does */
    void *self;
    int silence_s; /* that is borne; 0: 10 */
} sl_s3_ask;

/* Errors: SL_ARG a mistake in `where`, settings or keys. Asks the store nothing. */
sl_code sl_s3_open(sl_s3 **out, const char *where, const sl_conf_s3 *conf, sl_err *err);
void sl_s3_close(sl_s3 **s); /* NULL is fine */
const sl_s3_place *sl_s3_at(const sl_s3 *s);
int64_t sl_s3_part_bytes(const sl_s3 *s);

/* Ask once, or until it is answered. *again: another try may help. *r is the caller's to free,
 * after an error too. Errors: SL_GONE 404, but where the bucket is missing; SL_BUSY 409, 412: a
 * condition of the request does not hold; SL_CANCELLED take or over ended it; SL_SYS all else. */
sl_code sl_s3_once(sl_s3 *s, const sl_s3_ask *a, sl_s3_reply *r, bool *again, sl_err *err);
sl_code sl_s3_do(sl_s3 *s, const sl_s3_ask *a, sl_s3_reply *r, sl_err *err);
void sl_s3_reply_free(sl_s3_reply *r);

/* Between two tries of whoever calls sl_s3_once: waits. false: they are over. *t zeroed before. */
typedef struct {
    int64_t until_ns;
    int count;
} sl_s3_tries;
bool sl_s3_wait(sl_s3 *s, sl_s3_tries *t, const sl_s3_ask *a);

/* A link to an object that is good for so many seconds; type and name: as it is to be shown. *url
 * is the caller's to free. Asks the store nothing. */
sl_code sl_s3_link(char **url, sl_s3 *s, const char *key, int seconds, const char *type,
                   const char *name, sl_err *err);

#endif
