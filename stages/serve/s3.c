/* s3.c - requests to an S3-compatible store.
 *
 *   sl_s3_do --> sl_s3_once: sign (sigv4) --> libcurl --> read the head, then take or body
 *        ^            |
 *        '-- wait <---'  5xx, 429, no answer
 * `lock` guards the idle connections. */
#include "stages/serve/s3.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <unistd.h>

#include <curl/curl.h>

#include "common/clock.h"

#define IDLE 16 /* connections that are kept */
#define CONNECT_MS 3000L
#define SILENCE_S 10
#define AWAY_SILENCE_S 3 /* of a store that is away */
#define SLOW 1000        /* bytes a second: less is silence */
#define WAIT_MS 50
#define WAIT_MOST_MS 2000
#define STEP_MS 100          /* between two looks at whether somebody waits still */
#define BODY_MOST (8u << 20) /* of an answer that is read as a whole */
#define EMPTY_SHA256 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

struct sl_s3 {
    sl_s3_place at;
    sl_s3_keys keys;
    int64_t part_bytes;
    int try_s;
    atomic_bool away;
    pthread_mutex_t lock;
    CURL *idle[IDLE];
    int idle_count;
};

sl_code sl_s3_open(sl_s3 **out, const char *where, const sl_conf_s3 *conf, sl_err *err)
{
    sl_s3 *s = *out = calloc(1, sizeof *s);
    sl_code rc;
    if (!s) return sl_fail(err, SL_NOMEM, "no memory");
    pthread_mutex_init(&s->lock, NULL);
    s->part_bytes = conf->part_bytes;
    s->try_s = conf->try_s;
    pthread_mutex_init(&s->keys.lock, NULL);
    if ((rc = sl_s3_place_read(&s->at, where, conf, err)) ||
        (rc = sl_s3_keys_open(&s->keys, conf, err)))
        sl_s3_close(out);
    return rc;
}

void sl_s3_close(sl_s3 **out)
{
    sl_s3 *s = *out;
    *out = NULL;
    if (!s) return;
    for (int i = 0; i < s->idle_count; i++) curl_easy_cleanup(s->idle[i]);
    pthread_mutex_destroy(&s->lock);
    sl_s3_keys_close(&s->keys);
    free(s);
}

const sl_s3_place *sl_s3_at(const sl_s3 *s)
{
    return &s->at;
}

int64_t sl_s3_part_bytes(const sl_s3 *s)
{
    return s->part_bytes;
}

void sl_s3_reply_free(sl_s3_reply *r)
{
    free(r->body);
    *r = (sl_s3_reply){0};
}

/* ---- connections ---- */

static CURL *take_handle(sl_s3 *s)
{
    CURL *c = NULL;
    pthread_mutex_lock(&s->lock);
    if (s->idle_count) c = s->idle[--s->idle_count];
    pthread_mutex_unlock(&s->lock);
    return c ? c : curl_easy_init();
}

static void give_handle(sl_s3 *s, CURL *c)
{
    curl_easy_reset(c); /* its connection stays open */
    pthread_mutex_lock(&s->lock);
    const bool kept = s->idle_count < IDLE;
    if (kept) s->idle[s->idle_count++] = c;
    pthread_mutex_unlock(&s->lock);
    if (!kept) curl_easy_cleanup(c);
}

/* ---- one request's way through libcurl ---- */

typedef struct {
    const sl_s3_ask *ask;
    sl_s3_reply *reply;
    CURL *curl;
    uint64_t sent;
    bool bad_file, refused, too_much;
} way;

static size_t send_body(char *to, size_t one, size_t n, void *self)
{
    way *w = self;
    const sl_s3_ask *a = w->ask;
    const uint64_t left = a->size - w->sent;
    if ((n *= one) > left) n = (size_t)left;
    if (a->bytes) memcpy(to, (const char *)a->bytes + w->sent, n);
    else if (n) {
        const ssize_t got = pread(a->fd, to, n, a->at + (off_t)w->sent);
        if (got <= 0) {
            w->bad_file = true;
            return CURL_READFUNC_ABORT;
        }
        n = (size_t)got;
    }
    w->sent += n;
    return n;
}

static int seek_body(void *self, curl_off_t to, int from)
{
    way *w = self;
    if (from != SEEK_SET) return CURL_SEEKFUNC_CANTSEEK;
    w->sent = (uint64_t)to;
    return CURL_SEEKFUNC_OK;
}

/* The value of header NAME in a line, without white space around it. false: it is another's. */
static bool header_is(const char *line, size_t n, const char *name, char *out, size_t room)
{
    const size_t m = strlen(name);
    if (n <= m || strncasecmp(line, name, m) || line[m] != ':') return false;
    const char *at = line + m + 1, *end = line + n;
    while (at < end && (*at == ' ' || *at == '\t')) at++;
    while (end > at && (unsigned char)end[-1] <= ' ') end--;
    snprintf(out, room, "%.*s", (int)(end - at), at);
    return true;
}

static size_t take_header(char *line, size_t one, size_t n, void *self)
{
    sl_s3_reply *r = ((way *)self)->reply;
    char text[128];
    n *= one;
    if (n > 5 && !strncmp(line, "HTTP/", 5)) { /* another answer than "100 Continue" */
        *r->etag = *r->sha256 = *r->region = 0;
        r->all = 0;
    } else if (header_is(line, n, "etag", r->etag, sizeof r->etag) ||
               header_is(line, n, SL_S3_SENT_SHA256, r->sha256, sizeof r->sha256) ||
               header_is(line, n, "x-amz-bucket-region", r->region, sizeof r->region)) {
    } else if (header_is(line, n, "content-range", text, sizeof text)) {
        const char *slash = strchr(text, '/');
        r->all = slash ? strtoull(slash + 1, NULL, 10) : 0;
    } else if (header_is(line, n, "content-length", text, sizeof text) && !r->all)
        r->all = strtoull(text, NULL, 10);
    return n;
}

static size_t take_body(char *bytes, size_t one, size_t n, void *self)
{
    way *w = self;
    sl_s3_reply *r = w->reply;
    n *= one;
    if (!r->code) curl_easy_getinfo(w->curl, CURLINFO_RESPONSE_CODE, &r->code);
    if (w->ask->take && r->code / 100 == 2) {
        w->refused = !w->ask->take(w->ask->self, r, bytes, n);
        return w->refused ? 0 : n;
    }
    char *more = r->size + n > BODY_MOST ? NULL : realloc(r->body, r->size + n + 1);
    w->too_much = !more;
    if (!more) return 0;
    r->body = more;
    memcpy(r->body + r->size, bytes, n);
    r->body[r->size += n] = 0;
    return n;
}

static int look_over(void *self, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    way *w = self;
    (void)a, (void)b, (void)c, (void)d;
    w->refused |= w->ask->over(w->ask->self);
    return w->refused;
}

static char *path_of(const sl_s3 *s, const sl_s3_way *to, const char *key)
{
    char *path = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&path, &size);
    if (!f) return NULL;
    fputs(to->path, f);
    if (key || !*to->path) fputc('/', f);
    if (key) {
        sl_sigv4_escape(f, s->at.prefix, true);
        sl_sigv4_escape(f, key, true);
    }
    if (!fclose(f)) return path;
    free(path);
    return NULL;
}

static bool add_lines(struct curl_slist **list, char *lines)
{
    char *save = NULL;
    for (char *line = strtok_r(lines, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        struct curl_slist *more = curl_slist_append(*list, line);
        if (!more) return false;
        *list = more;
    }
    return true;
}

/* The request's headers, signed; *list is the caller's. */
static sl_code sign(struct curl_slist **list, sl_s3 *s, const sl_s3_ask *a, const char *path,
                    sl_err *err)
{
    const char *headers[SL_S3_HEADERS + 3];
    char digest[SL_SHA256_HEX] = EMPTY_SHA256, with_digest[SL_SHA256_HEX + 32], host[340];
    char *lines = NULL, *more = NULL;
    sl_sigv4_keys keys;
    int n = 0;
    if (a->digest) snprintf(digest, sizeof digest, "%s", a->digest);
    else if (a->size) sl_sha256_hex(digest, a->bytes, a->size);
    snprintf(with_digest, sizeof with_digest, "x-amz-content-sha256: %s", digest);
    for (; n < SL_S3_HEADERS && a->headers[n]; n++) headers[n] = a->headers[n];
    headers[n++] = with_digest;
    headers[n] = NULL;
    sl_s3_keys_get(&s->keys, &keys);
    const sl_sigv4_ask ask = {.method = a->method,
                              .host = s->at.way.host,
                              .path = path,
                              .query = a->query ? a->query : "",
                              .headers = headers,
                              .payload = digest,
                              .region = s->at.region,
                              .service = "s3",
                              .now = time(NULL)};
    sl_code rc = sl_sigv4_sign(&lines, &keys, &ask, err);
    explicit_bzero(&keys, sizeof keys);
    if (rc) return rc;
    snprintf(host, sizeof host, "Host: %s", s->at.way.host);
    bool good = add_lines(list, host) && add_lines(list, lines) &&
                add_lines(list, (char[]){"Expect:"}) && add_lines(list, (char[]){"Content-Type:"});
    for (int i = 0; i < n && good; i++) {
        good = (more = strdup(headers[i])) && add_lines(list, more);
        free(more);
    }
    explicit_bzero(lines, strlen(lines));
    free(lines);
    return good ? SL_OK : sl_fail(err, SL_NOMEM, "no memory for a request");
}

static void set_up(CURL *c, const sl_s3 *s, const sl_s3_ask *a, way *w, const char *url,
                   struct curl_slist *list)
{
    const bool away = atomic_load(&s->away);
    const long silence = a->silence_s ? a->silence_s : away ? AWAY_SILENCE_S : SILENCE_S;
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, list);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "sluice");
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, away ? CONNECT_MS / 2 : CONNECT_MS);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT,
                     a->rate && a->rate < 2 * SLOW ? (long)(a->rate / 2) + 1 : (long)SLOW);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, silence);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, w);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, w);
    if (*s->at.ca) curl_easy_setopt(c, CURLOPT_CAINFO, s->at.ca);
    if (a->over) {
        curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, look_over);
        curl_easy_setopt(c, CURLOPT_XFERINFODATA, w);
    }
    if (!strcmp(a->method, "HEAD")) curl_easy_setopt(c, CURLOPT_NOBODY, 1L);
    else if (!strcmp(a->method, "PUT") || !strcmp(a->method, "POST")) {
        curl_easy_setopt(c, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(c, CURLOPT_READFUNCTION, send_body);
        curl_easy_setopt(c, CURLOPT_READDATA, w);
        curl_easy_setopt(c, CURLOPT_SEEKFUNCTION, seek_body);
        curl_easy_setopt(c, CURLOPT_SEEKDATA, w);
        curl_easy_setopt(c, CURLOPT_INFILESIZE_LARGE, (curl_off_t)a->size);
        if (a->rate) curl_easy_setopt(c, CURLOPT_MAX_SEND_SPEED_LARGE, (curl_off_t)a->rate);
    }
    if (strcmp(a->method, "HEAD")) curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, a->method);
}

/* ---- what came of it ---- */

/* Of libcurl's errors those that another try may mend. */
static bool may_pass(CURLcode code)
{
    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_PARTIAL_FILE:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_WEIRD_SERVER_REPLY: return true;
    default: return false;
    }
}

static sl_code no_answer(const sl_s3 *s, const way *w, CURLcode code, bool *again, sl_err *err)
{
    *again = may_pass(code) && !w->bad_file && !w->refused;
    if (w->refused) return sl_fail(err, SL_CANCELLED, "%s: nobody wants it", s->at.name);
    if (w->bad_file)
        return sl_fail(err, SL_SYS, "%s: the file that is sent has become shorter", s->at.name);
    if (w->too_much)
        return sl_fail(err, SL_SYS, "%s: an answer has more than %u bytes", s->at.name, BODY_MOST);
    return sl_fail(err, SL_SYS, "%s: %s", s->at.name, curl_easy_strerror(code));
}

static sl_code code_of(const sl_s3_reply *r)
{
    if (r->code == 404) return strcmp(r->error, "NoSuchBucket") ? SL_GONE : SL_SYS;
    return r->code == 409 || r->code == 412 ? SL_BUSY : SL_SYS;
}

/* An answer other than 2xx, in one line. */
static sl_code refusal(const sl_s3 *s, sl_s3_reply *r, bool *again, sl_err *err)
{
    char message[200], region[64];
    const sl_s3_text body = {r->body, r->size};
    sl_s3_xml_get(body, "Code", r->error, sizeof r->error);
    sl_s3_xml_get(body, "Message", message, sizeof message);
    if (!*r->region && sl_s3_xml_get(body, "Region", region, sizeof region))
        snprintf(r->region, sizeof r->region, "%s", region);
    for (char *c = message; *c; c++)
        if (*c < ' ' || *c > '~') *c = ' ';
    for (char *c = r->error; *c; c++)
        if (*c < ' ' || *c > '~') *c = ' ';
    *again = r->code >= 500 || r->code == 429 || r->code == 408 ||
             !strcmp(r->error, "RequestTimeout") || !strcmp(r->error, "OperationAborted") ||
             !strcmp(r->error, "ConditionalRequestConflict");
    const bool elsewhere = *r->region && strcmp(r->region, s->at.region) && r->code != 404;
    return sl_fail(err, code_of(r), "%s: HTTP %ld%s%s%s%s%s%s", s->at.name, r->code,
                   *r->error ? " " : "", r->error, *message ? ": " : "", message,
                   elsewhere ? "; the bucket is in region " : "", elsewhere ? r->region : "");
}

static sl_code perform(sl_s3 *s, const sl_s3_ask *a, sl_s3_reply *r, const char *path, bool *again,
                       sl_err *err)
{
    struct curl_slist *list = NULL;
    char *url = NULL;
    way w = {.ask = a, .reply = r};
    sl_code rc = sign(&list, s, a, path, err);
    if (!rc && asprintf(&url, "%s%s%s%s", s->at.way.url, path, a->query ? "?" : "",
                        a->query ? a->query : "") < 0)
        rc = sl_fail(err, SL_NOMEM, "no memory for a request");
    if (!rc && !(w.curl = take_handle(s))) rc = sl_fail(err, SL_NOMEM, "no memory for a request");
    if (!rc) {
        set_up(w.curl, s, a, &w, url, list);
        const CURLcode bad = curl_easy_perform(w.curl);
        curl_easy_getinfo(w.curl, CURLINFO_RESPONSE_CODE, &r->code);
        if (bad) rc = no_answer(s, &w, bad, again, err);
        else if (r->code / 100 != 2) rc = refusal(s, r, again, err);
        give_handle(s, w.curl);
    }
    free(url);
    curl_slist_free_all(list);
    return rc;
}

sl_code sl_s3_once(sl_s3 *s, const sl_s3_ask *a, sl_s3_reply *r, bool *again, sl_err *err)
{
    char *path = path_of(s, &s->at.way, a->key);
    *r = (sl_s3_reply){0};
    *again = false;
    if (!path) return sl_fail(err, SL_NOMEM, "no memory for a request");
    sl_code rc = perform(s, a, r, path, again, err);
    if (r->code && !*again) atomic_store(&s->away, false);
    free(path);
    return rc;
}

/* ---- again ---- */

/* 0 to `most`, any of them as likely. */
static int64_t random_ms(int64_t most)
{
    uint32_t r = 0;
    if (getrandom(&r, sizeof r, 0) != sizeof r) r = (uint32_t)sl_now_ns();
    return (int64_t)((uint64_t)r * (uint64_t)(most + 1) >> 32);
}

bool sl_s3_wait(sl_s3 *s, sl_s3_tries *t, const sl_s3_ask *a)
{
    const int64_t now = sl_now_ns();
    const int64_t most = t->count < 6 ? WAIT_MS << t->count : WAIT_MOST_MS;
    const int64_t until = now + random_ms(most < WAIT_MOST_MS ? most : WAIT_MOST_MS) * 1000000;
    if (!t->until_ns) t->until_ns = now + s->try_s * 1000000000ll;
    t->count++;
    if (until > t->until_ns || atomic_load(&s->away)) {
        atomic_store(&s->away, true);
        return false;
    }
    for (int64_t left; (left = until - sl_now_ns()) > 0;) {
        const int64_t step = left < STEP_MS * 1000000 ? left : STEP_MS * 1000000;
        nanosleep(&(struct timespec){0, step}, NULL);
        if (a->over && a->over(a->self)) return false;
    }
    return true;
}

sl_code sl_s3_do(sl_s3 *s, const sl_s3_ask *a, sl_s3_reply *r, sl_err *err)
{
    sl_s3_tries tries = {sl_now_ns() + s->try_s * 1000000000ll, 0};
    for (;;) {
        bool again;
        sl_code rc = sl_s3_once(s, a, r, &again, err);
        if (!rc || !again || !sl_s3_wait(s, &tries, a)) return rc;
        sl_s3_reply_free(r);
    }
}

/* ---- links ---- */

static char *link_query(const char *type, const char *name)
{
    char *query = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&query, &size);
    if (!f) return NULL;
    fputs("response-content-type=", f);
    sl_sigv4_escape(f, type, false);
    if (name) {
        fputs("&response-content-disposition=inline%3B%20filename%3D%22", f);
        sl_sigv4_escape(f, name, false);
        fputs("%22", f);
    }
    if (!fclose(f)) return query;
    free(query);
    return NULL;
}

sl_code sl_s3_link(char **url, sl_s3 *s, const char *key, int seconds, const char *type,
                   const char *name, sl_err *err)
{
    char *path = path_of(s, &s->at.link, key), *asked = link_query(type, name), *query = NULL;
    sl_sigv4_keys keys;
    sl_code rc = path && asked ? SL_OK : sl_fail(err, SL_NOMEM, "no memory for a link");
    *url = NULL;
    sl_s3_keys_get(&s->keys, &keys);
    if (!rc) {
        const sl_sigv4_ask ask = {.method = "GET",
                                  .host = s->at.link.host,
                                  .path = path,
                                  .query = asked,
                                  .payload = SL_SIGV4_UNSIGNED,
                                  .region = s->at.region,
                                  .service = "s3",
                                  .now = time(NULL)};
        rc = sl_sigv4_link(&query, &keys, &ask, seconds, err);
    }
    explicit_bzero(&keys, sizeof keys);
    if (!rc && asprintf(url, "%s%s?%s", s->at.link.url, path, query) < 0) {
        *url = NULL;
        rc = sl_fail(err, SL_NOMEM, "no memory for a link");
    }
    free(path);
    free(asked);
    free(query);
    return rc;
}
