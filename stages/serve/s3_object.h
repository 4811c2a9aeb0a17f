/* s3_object.h - files to objects of an S3-compatible store and back, whole or not at all.
 *
 * Each object carries the SHA-256 of the file that was sent; what comes back in whole is held
 * against it and against the size that the caller knows. A file larger than `s3.part_bytes` is sent
 * in parts, which the store joins at the end; a failure removes those that were sent. A key is what
 * stands behind the place's prefix. Errors are those of s3.h. Any thread. */
#ifndef SL_S3_OBJECT_H
#define SL_S3_OBJECT_H

#include "stages/serve/s3.h"

/* `size` bytes from memory. fresh: SL_BUSY where there is such an object; a store that does not
 * know this condition (501) is told without. */
sl_code sl_s3_put_text(sl_s3 *s, const char *key, const void *bytes, size_t size, bool fresh,
                       sl_err *err);
/* An object of at most room - 1 bytes, with a NUL behind it. Errors: also SL_FORMAT it has
 * more. */
sl_code sl_s3_get_text(sl_s3 *s, const char *key, char *out, size_t room, sl_err *err);

/* The file as it is, no faster than `rate` bytes a second (0: no limit). Errors: also SL_GONE there
 * is no such file. */
sl_code sl_s3_put(sl_s3 *s, const char *key, const char *from, int64_t rate, uint64_t *bytes,
                  sl_err *err);

/* `size` bytes from `from` on of an object that has `all` of them, handed to `take` in order; a
 * connection that breaks is made again from where it was. Errors: also SL_GONE the object has
 * another size or other bytes (then `take` has not had the last of them); SL_CANCELLED. */
typedef struct {
    const char *key;
    uint64_t all, from, size;
    bool (*take)(void *self, const char *bytes, size_t n); /* false ends it */
    bool (*over)(void *self);                              /* as of sl_s3_ask */
    void *self;
} sl_s3_reading;
sl_code sl_s3_read(sl_s3 *s, const sl_s3_reading *r, sl_err *err);

/* It may be gone. */
sl_code sl_s3_delete(sl_s3 *s, const char *key, sl_err *err);
/* All objects whose keys begin so are shown to `look`, `key` as it is here; when: seconds since
 * 1970 at which it was written. */
sl_code sl_s3_each(sl_s3 *s, const char *begin,
                   void (*look)(void *self, const char *key, time_t when), void *self, sl_err *err);
/* Parts of files that were never joined, of a server that died meanwhile: those that are so old
 * go. */
sl_code sl_s3_sweep(sl_s3 *s, int64_t old_s, sl_err *err);

#endif
