/* download.c - files as answers: ETag, conditions, ranges. */
#include "stages/serve/download.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stages/serve/relay.h"

#define RETRY_S 5
#define PIECE 65536 /* bytes that MHD asks a relay for at a time */

/* What of a file is answered. */
typedef struct {
    int code; /* 200, 206; 304, 412, 416: nothing of it */
    uint64_t all, from, size;
    char tag[80];
} choice;

/* "bytes=A-B", "bytes=A-", "bytes=-N" of a file. 1: *from, *size; 0: none that counts; -1: it
 * begins behind the end. */
static int range_of(const char *text, uint64_t all, uint64_t *from, uint64_t *size)
{
    unsigned long long a = 0, b = 0;
    char *end;
    if (!text || strncmp(text, "bytes=", 6) || strchr(text, ',')) return 0;
    text += 6;
    if (*text == '-') {
        if (text[1] < '0' || text[1] > '9') return 0;
        b = strtoull(text + 1, &end, 10);
        if (*end) return 0;
        if (!b || !all) return -1;
        *size = b < all ? b : all;
        *from = all - *size;
        return 1;
    }
    if (*text < '0' || *text > '9') return 0;
    a = strtoull(text, &end, 10);
    if (*end != '-') return 0;
    text = end + 1;
    if (*text) {
        if (*text < '0' || *text > '9') return 0;
        b = strtoull(text, &end, 10);
        if (*end || b < a) return 0;
    } else b = UINT64_MAX;
    if (a >= all) return -1;
    *from = a;
    *size = (b < all ? b + 1 : all) - a;
    return 1;
}

/* One of a list of tags, weak or not, or "*". */
static bool has_tag(const char *list, const char *tag)
{
    const char *at = list ? strstr(list, tag) : NULL;
    return list && (at || !strcmp(list, "*"));
}

/* ch->all and tag are set. */
static void choose(choice *ch, const sl_ask *a)
{
    const char *if_range = sl_ask_header(a, "If-Range"), *if_match = sl_ask_header(a, "If-Match");
    ch->code = 200;
    ch->from = 0;
    ch->size = ch->all;
    if (has_tag(sl_ask_header(a, "If-None-Match"), ch->tag)) ch->code = 304;
    else if (if_match && !has_tag(if_match, ch->tag)) ch->code = 412;
    else if (!if_range || !strcmp(if_range, ch->tag)) {
        const int r = range_of(sl_ask_header(a, "Range"), ch->all, &ch->from, &ch->size);
        if (r) ch->code = r > 0 ? 206 : 416;
    }
}

static bool has_bytes(const choice *ch)
{
    return ch->code == 200 || ch->code == 206;
}

/* `r` is taken over; NULL: no memory for it. */
static void answer(sl_ask *a, const choice *ch, struct MHD_Response *r, const char *type,
                   const char *name)
{
    char text[300];
    if (!r) return;
    MHD_add_response_header(r, "ETag", ch->tag);
    MHD_add_response_header(r, "Accept-Ranges", "bytes");
    MHD_add_response_header(r, "Cache-Control", "private, no-cache");
    if (ch->code < 300) MHD_add_response_header(r, "Content-Type", type);
    if (name && ch->code < 300) {
        snprintf(text, sizeof text, "inline; filename=\"%s\"", name);
        MHD_add_response_header(r, "Content-Disposition", text);
    }
    if (ch->code == 206)
        snprintf(text, sizeof text, "bytes %llu-%llu/%llu", (unsigned long long)ch->from,
                 (unsigned long long)(ch->from + ch->size - 1), (unsigned long long)ch->all);
    else snprintf(text, sizeof text, "bytes */%llu", (unsigned long long)ch->all);
    if (ch->code == 206 || ch->code == 416) MHD_add_response_header(r, "Content-Range", text);
    sl_answer_sized(a, ch->code, r, ch->code < 300 ? ch->size : 0);
}

static struct MHD_Response *empty(void)
{
    return MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
}

void sl_answer_file(sl_ask *a, const char *path, const char *type, const char *name,
                    const char *missing)
{
    struct stat st;
    choice ch;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        if (fd >= 0) close(fd);
        sl_answer_error(a, 404, "not_found", NULL, "%s", missing);
        return;
    }
    ch.all = (uint64_t)st.st_size;
    snprintf(ch.tag, sizeof ch.tag, "\"%llx-%llx\"", (unsigned long long)st.st_size,
             (unsigned long long)st.st_mtim.tv_sec * 1000000000ull +
                 (unsigned long long)st.st_mtim.tv_nsec);
    choose(&ch, a);
    struct MHD_Response *r =
        has_bytes(&ch) ? MHD_create_response_from_fd_at_offset64(ch.size, fd, ch.from) : empty();
    if (!r || !has_bytes(&ch)) close(fd);
    answer(a, &ch, r, type, name);
}

/* ---- from a store ---- */

static ssize_t of_a_head(void *cls, uint64_t pos, char *buf, size_t max)
{
    (void)cls, (void)pos, (void)buf, (void)max;
    return MHD_CONTENT_READER_END_WITH_ERROR; /* nobody reads it */
}

static void refuse(sl_ask *a, sl_code rc, const sl_err *err, const char *missing)
{
    if (rc == SL_GONE) {
        sl_answer_error(a, 404, "not_found", NULL, "%s", missing);
        return;
    }
    a->retry_s = RETRY_S;
    if (rc == SL_BUSY) sl_answer_error(a, 503, "overloaded", NULL, "%s", err->msg);
    else sl_answer_error(a, 503, "away", NULL, "the store of files does not answer as it should");
}

void sl_answer_place(sl_ask *a, const sl_server_place *at, const char *type, const char *name,
                     const char *missing)
{
    choice ch = {.all = at->bytes};
    sl_relay *relay = NULL;
    sl_err err = {0};
    if (*at->path) {
        sl_answer_file(a, at->path, type, name, missing);
        return;
    }
    snprintf(ch.tag, sizeof ch.tag, "\"%.40s-%llx\"", at->version, (unsigned long long)at->bytes);
    choose(&ch, a);
    if (!has_bytes(&ch) || !ch.size) answer(a, &ch, empty(), type, name);
    else if (a->head)
        answer(a, &ch, MHD_create_response_from_callback(ch.size, PIECE, of_a_head, NULL, NULL),
               type, name);
    else {
        const sl_relay_what what = {at->id, at->name, at->version, at->bytes, ch.from, ch.size};
        sl_code rc = sl_relay_open(&relay, a->server->relays, a->mhd, &what, &err);
        if (rc) {
            refuse(a, rc, &err, missing);
            return;
        }
        struct MHD_Response *r =
            MHD_create_response_from_callback(ch.size, PIECE, sl_relay_more, relay, sl_relay_leave);
        if (!r) sl_relay_leave(relay);
        answer(a, &ch, r, type, name);
    }
}

sl_code sl_answer_link(sl_ask *a, const sl_server_place *at, const char *type, const char *name,
                       sl_err *err)
{
    char *url;
    const sl_server *s = a->server;
    if (*at->path) return sl_fail(err, SL_ARG, "there are no links to this machine's files");
    sl_code rc = sl_blobs_link(&url, &s->blobs, at->id, at->name, at->version, s->conf.s3.link_s,
                               type, name, err);
    struct MHD_Response *r = rc ? NULL : empty();
    if (!rc && !r) rc = sl_fail(err, SL_NOMEM, "no memory for the answer");
    if (!rc) {
        MHD_add_response_header(r, "Location", url);
        sl_answer(a, 302, r);
    }
    free(url);
    return rc;
}
