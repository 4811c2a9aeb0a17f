/* blobs_body.c - the two places for jobs' files behind one interface, and names of files there. */
#include "stages/serve/blobs_body.h"

#include <stdio.h>
#include <string.h>

#include "stages/serve/s3_place.h"

static const char *file_of(char out[SL_BLOBS_FILE], const char *name, const char *version)
{
    snprintf(out, SL_BLOBS_FILE, "%s-%s", version, name);
    for (char *c = out; *c; c++)
        if (*c == '/') *c = '+'; /* of a folder in the job's */
    return out;
}

sl_code sl_blobs_open(sl_blobs *b, const char *where, const sl_conf *conf, sl_err *err)
{
    const bool store = !strncmp(where, SL_S3_SCHEME, strlen(SL_S3_SCHEME));
    b->bytes_per_s = conf->queue.spool_rate;
    b->body = store ? &sl_blobs_s3 : &sl_blobs_folder;
    sl_code rc = b->body->open(b, where, conf, err);
    if (rc) sl_blobs_close(b);
    return rc ? sl_context(err, rc, "--blobs") : SL_OK;
}

void sl_blobs_close(sl_blobs *b)
{
    if (b->body) b->body->close(b);
    *b = (sl_blobs){0};
}

sl_code sl_blobs_put(const sl_blobs *b, const char *id, const char *name, const char *version,
                     const char *from, uint64_t *bytes, sl_err *err)
{
    char file[SL_BLOBS_FILE];
    *bytes = 0;
    return b->body->put(b, id, file_of(file, name, version), from, bytes, err);
}

sl_code sl_blobs_settle(const sl_blobs *b, const char *id, sl_err *err)
{
    return b->body->settle ? b->body->settle(b, id, err) : SL_OK;
}

sl_code sl_blobs_get(const sl_blobs *b, const char *id, const char *name, const char *version,
                     uint64_t bytes, const char *to, sl_err *err)
{
    char file[SL_BLOBS_FILE];
    return b->body->get(b, id, file_of(file, name, version), bytes, to, err);
}

bool sl_blobs_path(char out[SL_PATH], const sl_blobs *b, const char *id, const char *name,
                   const char *version)
{
    char file[SL_BLOBS_FILE];
    return b->body->path(out, b, id, file_of(file, name, version));
}

sl_code sl_blobs_read(const sl_blobs *b, const sl_blobs_reading *r, sl_err *err)
{
    char file[SL_BLOBS_FILE];
    return b->body->read(b, file_of(file, r->name, r->version), r, err);
}

sl_code sl_blobs_link(char **url, const sl_blobs *b, const char *id, const char *name,
                      const char *version, int seconds, const char *type, const char *shown,
                      sl_err *err)
{
    char file[SL_BLOBS_FILE];
    *url = NULL;
    return b->body->link(url, b, id, file_of(file, name, version), seconds, type, shown, err);
}

void sl_blobs_drop(const sl_blobs *b, const char *id, const char *name, const char *version)
{
    char file[SL_BLOBS_FILE];
    b->body->drop(b, id, *version ? file_of(file, name, version) : "");
}

sl_code sl_blobs_remove(const sl_blobs *b, const char *id, sl_err *err)
{
    return *id ? b->body->remove(b, id, err) : SL_OK;
}

sl_code sl_blobs_mark(const sl_blobs *b, const char *id, sl_err *err)
{
    return b->body->mark(b, id, err);
}

void sl_blobs_unmark(const sl_blobs *b, const char *id)
{
    b->body->unmark(b, id);
}

void sl_blobs_each_marked(const sl_blobs *b, int64_t old_s,
                          void (*look)(void *self, const char *id), void *self)
{
    b->body->each_marked(b, old_s, look, self);
}

uint64_t sl_blobs_free(const sl_blobs *b)
{
    return b->body->free(b);
}
