/* s3_place.h - where a bucket is: the store's address, how requests name the bucket, and the keys
 * that sign them. Settings first, then the variables that AWS's tools read. */
#ifndef SL_S3_PLACE_H
#define SL_S3_PLACE_H

#include <pthread.h>
#include <sys/stat.h>

#include "common/conf.h"
#include "common/path.h"
#include "stages/serve/sigv4.h"

#define SL_S3_SCHEME "s3://"
#define SL_S3_PREFIX 512 /* bytes of what stands before every key, its NUL included */

/* One way to the bucket. */
typedef struct {
    char url[400];  /* scheme, host, port: https://BUCKET.s3.eu-west-1.amazonaws.com */
    char host[320]; /* as a request's Host says it */
    char path[80];  /* before "/KEY": "" or "/BUCKET" */
} sl_s3_way;

typedef struct {
    char name[SL_PATH];                    /* s3://BUCKET/PREFIX: what messages call it */
    char bucket[64], prefix[SL_S3_PREFIX]; /* prefix: "", or with a '/' at its end */
    char region[64], ca[SL_CONF_PATH];
    sl_s3_way way, link; /* the server's; clients' */
} sl_s3_place;

/* `where` is s3://BUCKET[/PREFIX]. Errors: SL_ARG, in one line what is wrong with it, or with a
 * setting. */
sl_code sl_s3_place_read(sl_s3_place *out, const char *where, const sl_conf_s3 *conf, sl_err *err);

/* Keys, of the environment or of a file, which is read again when it has changed. Any thread. */
typedef struct {
    pthread_mutex_t lock;
    char file[SL_CONF_PATH], profile[64]; /* "": of the environment */
    struct timespec changed;
    sl_sigv4_keys now;
} sl_s3_keys;

/* *k zeroed before, but its lock. Errors: SL_ARG there are none, or others can read the file;
 * SL_SYS. */
sl_code sl_s3_keys_open(sl_s3_keys *k, const sl_conf_s3 *conf, sl_err *err);
/* The keys as they are now, the caller's to wipe. A file that cannot be read any more leaves those
 * of before. */
void sl_s3_keys_get(sl_s3_keys *k, sl_sigv4_keys *out);
void sl_s3_keys_close(sl_s3_keys *k);

#endif
