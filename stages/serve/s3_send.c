/* s3_send.c - a file to an object: in one request, or in parts that the store joins. */
#include "stages/serve/s3_object.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE (1 << 20)    /* bytes that are hashed at a time */
#define PARTS 10000        /* of an object, at most */
#define JOIN_SILENCE_S 120 /* the store puts them together */

typedef struct {
    sl_s3 *s;
    const char *key;
    int fd;
    uint64_t size;
    int64_t rate;
    char noted[SL_SHA256_HEX + 40]; /* the header with the whole file's digest */
    char upload[1600];              /* uploadId=..., escaped */
} sending;

static sl_code digest_of(char hex[SL_SHA256_HEX], int fd, off_t at, uint64_t size, sl_err *err)
{
    char *piece = malloc(PIECE);
    unsigned char digest[SL_SHA256];
    sl_sha256 h;
    sl_code rc = piece ? SL_OK : sl_fail(err, SL_NOMEM, "no memory to send a file");
    sl_sha256_begin(&h);
    while (!rc && size) {
        const ssize_t n = pread(fd, piece, size < PIECE ? size : PIECE, at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            rc = n ? sl_fail_errno(err, errno, "read")
                   : sl_fail(err, SL_SYS, "the file that is sent has become shorter");
        else {
            sl_sha256_add(&h, piece, (size_t)n);
            at += n;
            size -= (uint64_t)n;
        }
    }
    sl_sha256_end(&h, digest);
    sl_sha256_to_hex(hex, digest);
    free(piece);
    return rc;
}

static sl_code send_whole(const sending *f, const char *digest, sl_err *err)
{
    const sl_s3_ask ask = {.method = "PUT",
                           .key = f->key,
                           .headers = {f->noted},
                           .fd = f->fd,
                           .size = f->size,
                           .digest = digest,
                           .rate = f->rate};
    sl_s3_reply r;
    sl_code rc = sl_s3_do(f->s, &ask, &r, err);
    sl_s3_reply_free(&r);
    return rc;
}

/* ---- in parts ---- */

static sl_code begin_parts(sending *f, sl_err *err)
{
    const sl_s3_ask ask = {
        .method = "POST", .key = f->key, .query = "uploads=", .headers = {f->noted}};
    sl_s3_reply r;
    char id[1024], *escaped = NULL;
    size_t size = 0;
    sl_code rc = sl_s3_do(f->s, &ask, &r, err);
    if (!rc && !sl_s3_xml_get((sl_s3_text){r.body, r.size}, "UploadId", id, sizeof id))
        rc = sl_fail(err, SL_SYS, "%s: an upload in parts has no UploadId", sl_s3_at(f->s)->name);
    FILE *to = rc ? NULL : open_memstream(&escaped, &size);
    if (to) {
        sl_sigv4_escape(to, id, false);
        fclose(to);
    }
    if (!rc && (!escaped || size + 10 > sizeof f->upload))
        rc = sl_fail(err, SL_SYS, "%s: an UploadId of %zu bytes", sl_s3_at(f->s)->name, size);
    if (!rc) snprintf(f->upload, sizeof f->upload, "uploadId=%s", escaped);
    free(escaped);
    sl_s3_reply_free(&r);
    return rc;
}

/* Part `number`, from 1; what is said of it when they are joined goes to `list`. */
static sl_code send_part(const sending *f, int number, off_t at, uint64_t size, FILE *list,
                         sl_err *err)
{
    char query[sizeof f->upload + 32], digest[SL_SHA256_HEX];
    sl_code rc = digest_of(digest, f->fd, at, size, err);
    if (rc) return rc;
    snprintf(query, sizeof query, "partNumber=%d&%s", number, f->upload);
    const sl_s3_ask ask = {.method = "PUT",
                           .key = f->key,
                           .query = query,
                           .fd = f->fd,
                           .at = at,
                           .size = size,
                           .digest = digest,
                           .rate = f->rate};
    sl_s3_reply r;
    rc = sl_s3_do(f->s, &ask, &r, err);
    if (!rc && (!*r.etag || strpbrk(r.etag, "<>&")))
        rc = sl_fail(err, SL_SYS, "%s: part %d has no ETag", sl_s3_at(f->s)->name, number);
    if (!rc)
        fprintf(list, "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", number, r.etag);
    sl_s3_reply_free(&r);
    return rc;
}

static sl_code send_parts(const sending *f, FILE *list, sl_err *err)
{
    const uint64_t part = (uint64_t)sl_s3_part_bytes(f->s);
    sl_code rc = SL_OK;
    int number = 1;
    for (uint64_t at = 0; at < f->size && !rc; at += part, number++)
        rc = send_part(f, number, (off_t)at, f->size - at < part ? f->size - at : part, list, err);
    return rc;
}

/* The object is there, and is this file. */
static sl_code look_whole(const sending *f, sl_err *err)
{
    const sl_s3_ask ask = {.method = "HEAD", .key = f->key};
    sl_s3_reply r;
    sl_code rc = sl_s3_do(f->s, &ask, &r, err);
    if (rc == SL_GONE || (!rc && (r.all != f->size || !strstr(f->noted, r.sha256) || !*r.sha256)))
        rc = sl_fail(err, SL_SYS, "%s/%s: its parts were not joined", sl_s3_at(f->s)->name, f->key);
    sl_s3_reply_free(&r);
    return rc;
}

/* An error may come with 200, for the store answers while it works; and an upload that was joined
 * by a try whose answer was lost is not there any more: the object itself tells. */
static sl_code join_parts(const sending *f, const char *list, size_t size, sl_err *err)
{
    const sl_s3_ask ask = {.method = "POST",
                           .key = f->key,
                           .query = f->upload,
                           .bytes = list,
                           .size = size,
                           .silence_s = JOIN_SILENCE_S};
    sl_s3_reply r;
    sl_s3_text error;
    sl_code rc = sl_s3_do(f->s, &ask, &r, err);
    sl_s3_text body = {r.body, r.size};
    if (!rc && sl_s3_xml_next(&body, "Error", &error)) {
        char code[64];
        sl_s3_xml_get(error, "Code", code, sizeof code);
        rc = sl_fail(err, SL_SYS, "%s/%s: its parts were not joined: %s", sl_s3_at(f->s)->name,
                     f->key, code);
    }
    sl_s3_reply_free(&r);
    return rc && rc != SL_GONE ? rc : look_whole(f, err);
}

static void remove_parts(const sending *f)
{
    const sl_s3_ask ask = {.method = "DELETE", .key = f->key, .query = f->upload};
    sl_s3_reply r;
    sl_s3_do(f->s, &ask, &r, NULL); /* else sl_s3_sweep does it */
    sl_s3_reply_free(&r);
}

static sl_code send_in_parts(sending *f, sl_err *err)
{
    char *list = NULL;
    size_t size = 0;
    sl_code rc = begin_parts(f, err);
    if (rc) return rc;
    FILE *to = open_memstream(&list, &size);
    if (!to) rc = sl_fail(err, SL_NOMEM, "no memory to send a file");
    if (to) {
        fputs("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">", to);
        rc = send_parts(f, to, err);
        fputs("</CompleteMultipartUpload>", to);
        if (fclose(to) && !rc) rc = sl_fail(err, SL_NOMEM, "no memory to send a file");
    }
    if (!rc) rc = join_parts(f, list, size, err);
    if (rc) remove_parts(f);
    free(list);
    return rc;
}

sl_code sl_s3_put(sl_s3 *s, const char *key, const char *from, int64_t rate, uint64_t *bytes,
                  sl_err *err)
{
    char digest[SL_SHA256_HEX];
    struct stat st;
    *bytes = 0;
    const int fd = open(from, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? sl_fail(err, SL_GONE, "there is no %s", from)
                               : sl_fail_errno(err, errno, "%s", from);
    sl_code rc = fstat(fd, &st) ? sl_fail_errno(err, errno, "%s", from) : SL_OK;
    sending f = {.s = s, .key = key, .fd = fd, .size = rc ? 0 : (uint64_t)st.st_size, .rate = rate};
    const uint64_t part = (uint64_t)sl_s3_part_bytes(s);
    if (!rc && f.size > part * PARTS)
        rc = sl_fail(err, SL_ARG, "%s has %llu bytes, want at most %llu (s3.part_bytes times %d)",
                     from, (unsigned long long)f.size, (unsigned long long)(part * PARTS), PARTS);
    if (!rc) rc = digest_of(digest, fd, 0, f.size, err);
    if (!rc) {
        snprintf(f.noted, sizeof f.noted, SL_S3_SENT_SHA256 ": %s", digest);
        rc = f.size > part ? send_in_parts(&f, err) : send_whole(&f, digest, err);
    }
    if (!rc) *bytes = f.size;
    /* "there is no such upload" is no word about the file */
    if (rc == SL_GONE) rc = SL_SYS;
    close(fd);
    return rc;
}
