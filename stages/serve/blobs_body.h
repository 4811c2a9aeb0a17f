/* blobs_body.h - what a place for jobs' files has to do; blobs.h says what each means. */
#ifndef SL_BLOBS_BODY_H
#define SL_BLOBS_BODY_H

#include "stages/serve/blobs.h"

#define SL_BLOBS_FILE 520 /* bytes of VERSION-NAME, its NUL included */
#define SL_BLOBS_WORD 32  /* hex digits of a place's word */

struct sl_blobs_body {
    sl_code (*open)(sl_blobs *b, const char *where, const sl_conf *conf, sl_err *err);
    void (*close)(sl_blobs *b);
    /* file: VERSION-NAME */
    sl_code (*put)(const sl_blobs *b, const char *id, const char *file, const char *from,
                   uint64_t *bytes, sl_err *err);
    sl_code (*settle)(const sl_blobs *b, const char *id, sl_err *err); /* NULL: put does it */
    sl_code (*get)(const sl_blobs *b, const char *id, const char *file, uint64_t bytes,
                   const char *to, sl_err *err);
    bool (*path)(char out[SL_PATH], const sl_blobs *b, const char *id, const char *file);
    sl_code (*read)(const sl_blobs *b, const char *file, const sl_blobs_reading *r, sl_err *err);
    sl_code (*link)(char **url, const sl_blobs *b, const char *id, const char *file, int seconds,
                    const char *type, const char *shown, sl_err *err);
    void (*drop)(const sl_blobs *b, const char *id, const char *file); /* "": the job has none */
    sl_code (*remove)(const sl_blobs *b, const char *id, sl_err *err);
    sl_code (*mark)(const sl_blobs *b, const char *id, sl_err *err);
    void (*unmark)(const sl_blobs *b, const char *id);
    void (*each_marked)(const sl_blobs *b, int64_t old_s, void (*look)(void *self, const char *id),
                        void *self);
    uint64_t (*free)(const sl_blobs *b);
};

extern const sl_blobs_body sl_blobs_folder, sl_blobs_s3;

#endif
