/* remote.c - calls to a server, one at a time on a multi handle of curl's: it keeps connections
 * for the next call, and its poll hears signals and deadlines too.
 *
 *   transfer    one exchange: headers and body as they come
 *   exchange    runs it; what curl and the status say becomes a code
 *   sl_remote_call, _get, _stream, _file    who tries again, and where the body goes */
#include "stages/cli/remote.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/log.h"
#include "common/path.h"
#include "common/temporary.h"
#include "stages/cli/curl.h"
#include "stages/job/files.h"
#include "stages/job/output.h"

#define WHOLE_S 600 /* longest exchange whose answer is kept in memory */
#define ERROR_BYTES ((size_t)64 << 10)
#define FILE_MAX ((uint64_t)1 << 40)
#define BACKOFF_MIN_S 0.25
#define BACKOFF_MAX_S 8.0

static const sl_curl *lib; /* once sl_remote_open has been called */

/* ---- where a server is ---- */

static bool is_loopback(const char *host)
{
    return !strcasecmp(host, "localhost") || !strncmp(host, "127.", 4) || !strcmp(host, "[::1]");
}

static sl_code use_url(sl_remote *r, const char *where, sl_err *err)
{
    CURLU *u = lib->curl_url();
    char *scheme = NULL, *host = NULL, *more = NULL, *whole = NULL;
    sl_code rc = SL_OK;
    if (!u) return sl_fail(err, SL_NOMEM, "no memory");
    if (lib->curl_url_set(u, CURLUPART_URL, where, CURLU_NON_SUPPORT_SCHEME) ||
        lib->curl_url_get(u, CURLUPART_SCHEME, &scheme, 0))
        rc = sl_fail(err, SL_ARG, "--server %.300s is no URL, want http://HOST:PORT", where);
    else if (strcmp(scheme, "http") && strcmp(scheme, "https"))
        rc = sl_fail(err, SL_ARG, "--server has scheme %.60s, want http or https", scheme);
    else if (lib->curl_url_get(u, CURLUPART_HOST, &host, 0))
        rc = sl_fail(err, SL_ARG, "--server %.300s has no host, want http://HOST:PORT", where);
    else if (!lib->curl_url_get(u, CURLUPART_USER, &more, 0) ||
             !lib->curl_url_get(u, CURLUPART_QUERY, &more, 0) ||
             !lib->curl_url_get(u, CURLUPART_FRAGMENT, &more, 0))
        rc = sl_fail(err, SL_ARG,
                     "--server %.300s has a user, a query or a fragment, want http://HOST:PORT "
                     "(tokens: --token-file)",
                     where);
    else if (lib->curl_url_get(u, CURLUPART_URL, &whole, 0) || strlen(whole) >= SL_PATH)
        rc = sl_fail(err, SL_ARG, "--server is longer than %d bytes", SL_PATH - 1);
    else {
        snprintf(r->url, sizeof r->url, "%s", whole);
        for (size_t n = strlen(r->url); n && r->url[n - 1] == '/';) r->url[--n] = 0;
        snprintf(r->name, sizeof r->name, "%s", r->url);
        r->direct = is_loopback(host);
        r->clear = !r->direct && !strcmp(scheme, "http");
    }
    lib->curl_free(scheme);
    lib->curl_free(host);
    lib->curl_free(more);
    lib->curl_free(whole);
    lib->curl_url_cleanup(u);
    return rc;
}

static sl_code use_path(sl_remote *r, const char *where, sl_err *err)
{
    struct stat st;
    sl_code rc = SL_OK;
    const bool there = !stat(where, &st);
    if (!there && strchr(where, ':') && !strchr(where, '/'))
        return sl_fail(err, SL_ARG, "--server %.200s is no file, want http://%.200s", where, where);
    if (there && !S_ISDIR(st.st_mode) && !S_ISSOCK(st.st_mode))
        return sl_fail(err, SL_ARG,
                       "--server %.300s is neither a state folder nor a socket, want one of "
                       "them or http://HOST:PORT",
                       where);
    const size_t n = strlen(where);
    if (there ? S_ISSOCK(st.st_mode) : sl_ends_with(where, ".sock")) {
        if (n >= SL_PATH) rc = sl_fail(err, SL_ARG, "--server is longer than %d bytes", SL_PATH);
        else snprintf(r->socket, sizeof r->socket, "%s", where);
    } else rc = sl_path_join(r->socket, where, "sluice.sock", err);
    if (!rc && strlen(r->socket) >= sizeof((struct sockaddr_un *)0)->sun_path)
        rc = sl_fail(err, SL_ARG, "--server: a socket's path has %zu bytes, want at most %zu",
                     strlen(r->socket), sizeof((struct sockaddr_un *)0)->sun_path - 1);
    snprintf(r->name, sizeof r->name, "%s", r->socket);
    snprintf(r->url, sizeof r->url, "http://localhost");
    r->direct = true;
    return rc;
}

/* A token is one word of visible ASCII: nothing else may stand in a header. */
static sl_code use_token(sl_remote *r, const char *text, size_t n, const char *from, sl_err *err)
{
    while (n && isspace((unsigned char)text[n - 1])) n--;
    while (n && isspace((unsigned char)*text)) text++, n--;
    if (!n) return sl_fail(err, SL_ARG, "%s is empty, want a token", from);
    if (n >= sizeof r->token)
        return sl_fail(err, SL_ARG, "%s has more than %zu bytes, want a token", from,
                       sizeof r->token - 1);
    for (size_t i = 0; i < n; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return sl_fail(err, SL_ARG, "%s is not one word of visible ASCII, want a token", from);
    memcpy(r->token, text, n);
    r->token[n] = 0;
    return SL_OK;
}

static sl_code read_token(sl_remote *r, const char *file, sl_err *err)
{
    char text[sizeof r->token + 64], from[SL_PATH + 16];
    struct stat st;
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    sl_code rc;
    if (fd < 0) return sl_fail_errno(err, errno, "--token-file %s", file);
    ssize_t n = fstat(fd, &st) ? -1 : 0;
    if (!n && !S_ISREG(st.st_mode))
        rc = sl_fail(err, SL_ARG, "--token-file %s is no regular file", file);
    else if (!n && (st.st_mode & 077))
        rc = sl_fail(err, SL_ARG, "--token-file %s has mode %04o, want 0600: others may read it",
                     file, (unsigned)st.st_mode & 07777);
    else if (n || (n = read(fd, text, sizeof text)) < 0)
        rc = sl_fail_errno(err, errno, "--token-file %s", file);
    else {
        snprintf(from, sizeof from, "--token-file %s", file);
        rc = use_token(r, text, (size_t)n, from, err);
    }
    close(fd);
    explicit_bzero(text, sizeof text);
    return rc;
}

sl_code sl_remote_open(sl_remote *r, const char *where, const char *token_file, const char *ca_file,
                       sl_err *err)
{
    char state[SL_PATH];
    const char *token = getenv("SLUICE_TOKEN");
    sl_code rc = SL_OK;
    *r = (sl_remote){
        .connect_s = SL_REMOTE_CONNECT_S, .idle_s = SL_REMOTE_IDLE_S, .interrupt_fd = -1};
    if ((rc = sl_curl_load(&lib, err))) return rc;
    if (lib->curl_global_init(CURL_GLOBAL_DEFAULT))
        return sl_fail(err, SL_SYS, "libcurl does not start");
    if (!(r->multi = lib->curl_multi_init())) return sl_fail(err, SL_NOMEM, "no memory");
    if (!*where && getenv("SLUICE_SERVER")) where = getenv("SLUICE_SERVER");
    if (!*where) {
        if ((rc = sl_state_dir(state, err))) return rc;
        where = state;
    }
    rc = strstr(where, "://") ? use_url(r, where, err) : use_path(r, where, err);
    if (rc) return rc;
    snprintf(r->ca_file, sizeof r->ca_file, "%s", ca_file);
    if (*ca_file && access(ca_file, R_OK)) {
        rc = sl_fail_errno(err, errno, "--ca-file %s", ca_file);
        err->code = SL_ARG;
        return SL_ARG;
    }
    if (*token_file) return read_token(r, token_file, err);
    return token && *token ? use_token(r, token, strlen(token), "SLUICE_TOKEN", err) : SL_OK;
}

void sl_remote_close(sl_remote *r)
{
    if (!r->multi) return;
    lib->curl_multi_cleanup(r->multi);
    lib->curl_global_cleanup();
    explicit_bzero(r->token, sizeof r->token);
    r->multi = NULL;
}

int sl_remote_exit(const sl_remote *r, sl_code code)
{
    switch (code) {
    case SL_OK: return SL_EXIT_OK;
    case SL_ARG: return SL_EXIT_REFUSED;
    case SL_BUSY: return r->status == 429 ? SL_EXIT_REFUSED : SL_EXIT_NO_SERVER;
    case SL_GONE:
    case SL_FORMAT: return SL_EXIT_NO_SERVER;
    case SL_TIMEOUT:
        return r->until_ns && sl_now_ns() >= r->until_ns ? SL_EXIT_TIMEOUT : SL_EXIT_NO_SERVER;
    default: return SL_EXIT_FAILED;
    }
}

bool sl_remote_passes(sl_code code)
{
    return code == SL_GONE || code == SL_BUSY || code == SL_TIMEOUT;
}

bool sl_remote_is_id(const char *id)
{
    size_t n = strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
    return n > 0 && n <= 64 && !id[n];
}

/* ---- waiting ---- */

static sl_code deadline(const sl_remote *r, sl_err *err)
{
    if (!r->until_ns || sl_now_ns() < r->until_ns) return SL_OK;
    return sl_fail(err, SL_TIMEOUT, "the time that --timeout gives has passed");
}

static int wait_ms(const sl_remote *r, int64_t until_ns)
{
    if (r->until_ns && r->until_ns < until_ns) until_ns = r->until_ns;
    int64_t ms = (until_ns - sl_now_ns()) / 1000000 + 1;
    return ms < 0 ? 0 : ms > 1000 ? 1000 : (int)ms;
}

sl_code sl_remote_sleep(sl_remote *r, double s, sl_err *err)
{
    const int64_t until = sl_now_ns() + (int64_t)(s * 1e9);
    sl_code rc;
    while (sl_now_ns() < until) {
        struct pollfd f = {r->interrupt_fd, POLLIN, 0};
        if ((rc = deadline(r, err))) return rc;
        if (poll(&f, 1, wait_ms(r, until)) > 0) return sl_fail(err, SL_CANCELLED, "interrupted");
    }
    return deadline(r, err);
}

/* ---- one exchange ---- */

typedef struct {
    sl_remote *r;
    CURL *curl;
    sl_remote_sink *sink; /* takes the body of a 2xx */
    void *ctx;
    sl_buffer error; /* the body of another answer */
    bool begun;
    sl_code rc; /* the sink's */
    sl_err said;
    char location[128], reason[64];
    bool ranged; /* Content-Range: bytes `from`-... */
    uint64_t from;
    double retry_after_s; /* < 0: not said */
    bool lost;            /* no answer was to be had, but a server was there */
} transfer;

/* The status and the type are known when the first byte of a body, or the end, comes. */
static void begin(transfer *t)
{
    const char *type = NULL;
    if (t->begun) return;
    t->begun = true;
    lib->curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &t->r->status);
    lib->curl_easy_getinfo(t->curl, CURLINFO_CONTENT_TYPE, &type);
    snprintf(t->r->type, sizeof t->r->type, "%s", type ? type : "");
    if (t->r->status) t->r->met = true;
}

static size_t on_body(char *bytes, size_t one, size_t n, void *ctx)
{
    transfer *t = ctx;
    n *= one;
    begin(t);
    if (t->r->status / 100 == 2) {
        t->rc = t->sink ? t->sink(t->ctx, bytes, n, &t->said) : SL_OK;
        return t->rc ? 0 : n;
    }
    /* a page that is too large says nothing more than its status */
    if (t->error.n + n <= ERROR_BYTES &&
        sl_buffer_add(&t->error, bytes, n, ERROR_BYTES, "answer", NULL))
        return 0;
    return n;
}

/* The value of a header, without space around it; false: the line is another header. */
static bool header(char *out, size_t size, const char *line, size_t n, const char *name)
{
    const size_t k = strlen(name);
    if (n <= k || strncasecmp(line, name, k) || line[k] != ':') return false;
    line += k + 1, n -= k + 1;
    while (n && isspace((unsigned char)*line)) line++, n--;
    while (n && isspace((unsigned char)line[n - 1])) n--;
    snprintf(out, size, "%.*s", (int)(n < size ? n : size - 1), line);
    return true;
}

static size_t on_header(char *line, size_t one, size_t n, void *ctx)
{
    transfer *t = ctx;
    char value[64];
    n *= one;
    if (n > 5 && !strncmp(line, "HTTP/", 5)) { /* another answer, as after 100 Continue */
        const char *space = memchr(line, ' ', n);
        const size_t at = space ? (size_t)(space - line) + 1 : n;
        *t->location = *t->r->etag = 0;
        t->ranged = false;
        snprintf(t->reason, sizeof t->reason, "%.*s", (int)(n - at), line + at);
        t->reason[strcspn(t->reason, "\r\n")] = 0;
    }
    header(t->location, sizeof t->location, line, n, "Location");
    header(t->r->etag, sizeof t->r->etag, line, n, "ETag");
    if (header(value, sizeof value, line, n, "Content-Range")) {
        unsigned long long from;
        t->ranged = sscanf(value, "bytes %llu-", &from) == 1;
        if (t->ranged) t->from = from;
    }
    return n;
}

/* What the transfer has moved so far: it stands still when this does. */
static uint64_t moved(CURL *curl)
{
    curl_off_t up = 0, down = 0;
    long headers = 0, sent = 0;
    lib->curl_easy_getinfo(curl, CURLINFO_SIZE_UPLOAD_T, &up);
    lib->curl_easy_getinfo(curl, CURLINFO_SIZE_DOWNLOAD_T, &down);
    lib->curl_easy_getinfo(curl, CURLINFO_HEADER_SIZE, &headers);
    lib->curl_easy_getinfo(curl, CURLINFO_REQUEST_SIZE, &sent);
    return (uint64_t)up + (uint64_t)down + (uint64_t)headers + (uint64_t)sent;
}

/* Run it to its end. Errors: curl's in *result; SL_CANCELLED, SL_TIMEOUT. */
static sl_code run(transfer *t, double whole_s, CURLcode *result, sl_err *err)
{
    sl_remote *r = t->r;
    const int64_t t0 = sl_now_ns(), idle_ns = (int64_t)r->idle_s * 1000000000;
    int64_t still_ns = t0;
    uint64_t before = 0;
    int running = 1, left;
    sl_code rc = SL_OK;
    CURLMsg *m;
    *result = CURLE_OK;
    while (!rc) {
        if (lib->curl_multi_perform(r->multi, &running))
            return sl_fail(err, SL_INTERNAL, "libcurl: a call failed");
        if (!running) break;
        struct curl_waitfd extra = {.fd = r->interrupt_fd, .events = CURL_WAIT_POLLIN};
        lib->curl_multi_poll(r->multi, &extra, r->interrupt_fd >= 0, wait_ms(r, INT64_MAX), NULL);
        const int64_t now = sl_now_ns();
        const uint64_t bytes = moved(t->curl);
        if (bytes != before) before = bytes, still_ns = now;
        if (extra.revents) rc = sl_fail(err, SL_CANCELLED, "interrupted");
        else if ((rc = deadline(r, err))) break;
        else if (now - still_ns > idle_ns)
            rc = sl_fail(err, SL_TIMEOUT, "%s: nothing moved for %d s", r->name, r->idle_s);
        else if (whole_s > 0 && (double)(now - t0) * 1e-9 > whole_s)
            rc = sl_fail(err, SL_TIMEOUT, "%s: no whole answer after %.0f s", r->name, whole_s);
    }
    while ((m = lib->curl_multi_info_read(r->multi, &left)))
        if (m->msg == CURLMSG_DONE) *result = m->data.result;
    return rc;
}

static sl_code failed_curl(transfer *t, CURLcode code, const char *detail, sl_err *err)
{
    const char *name = t->r->name;
    long why = 0;
    lib->curl_easy_getinfo(t->curl, CURLINFO_OS_ERRNO, &why);
    switch (code) {
    case CURLE_COULDNT_CONNECT:
        t->lost = t->r->met;
        if (*t->r->socket)
            return sl_fail(err, SL_GONE, "no server at %s: %s (sluice serve starts one)", name,
                           why ? strerror((int)why) : "cannot be connected to");
        return sl_fail(err, SL_GONE, "no server at %s: %s", name,
                       why ? strerror((int)why) : detail);
    case CURLE_OPERATION_TIMEDOUT:
        return sl_fail(err, SL_TIMEOUT, "%s: no connection after %d s", name, t->r->connect_s);
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
        t->lost = true;
        return sl_fail(err, SL_GONE, "%s: the connection was lost%s%s", name, why ? ": " : "",
                       why ? strerror((int)why) : "");
    case CURLE_READ_ERROR:
        return sl_fail(err, SL_SYS, "a file of the request could not be read: %s", detail);
    case CURLE_OUT_OF_MEMORY: return sl_fail(err, SL_NOMEM, "%s: no memory", name);
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY: return sl_fail(err, SL_GONE, "%s: %s", name, detail);
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
        return sl_fail(err, SL_GONE, "%s is not believed: %s (--ca-file names its certificate)",
                       name, detail);
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_BAD_CONTENT_ENCODING:
        return sl_fail(err, SL_FORMAT, "%s: no answer of a Sluice server: %s", name, detail);
    default: return sl_fail(err, SL_GONE, "%s: %s", name, detail);
    }
}

/* An answer that is none of 2xx: the server's words, in OpenAI's shape; else its status. */
static sl_code failed_status(const transfer *t, sl_err *err)
{
    const sl_remote *r = t->r;
    const long s = r->status;
    const sl_code code = s == 429 || s == 503  ? SL_BUSY
                         : s >= 300 && s < 500 ? SL_ARG
                         : s >= 500            ? SL_GONE
                                               : SL_FORMAT;
    json_t *root = json_loadb(sl_buffer_text(&t->error), t->error.n, 0, NULL);
    const char *message =
        json_string_value(json_object_get(json_object_get(root, "error"), "message"));
    if (s >= 300 && s < 400)
        sl_fail(err, code, "%s answers %.60s%s%s: not followed, want --server at its place",
                r->name, t->reason, *t->location ? ", at " : "", t->location);
    else if (message && *message) sl_fail(err, code, "%s", message);
    else
        sl_fail(err, code, "%s answers %.60s%s%.60s%s", r->name, t->reason, *r->type ? " (" : "",
                r->type, *r->type ? ")" : "");
    json_decref(root);
    sl_one_line(err);
    return code;
}

static bool add_header(struct curl_slist **list, const char *text)
{
    struct curl_slist *more = lib->curl_slist_append(*list, text);
    if (more) *list = more;
    return more != NULL;
}

/* Picture files say what they are, for servers that ask; the name of a file here is nobody's. */
static const char *type_of(const char *file)
{
    unsigned char b[12] = {0};
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd >= 0 ? read(fd, b, sizeof b) : -1;
    if (fd >= 0) close(fd);
    if (n >= 8 && !memcmp(b, "\x89PNG\r\n\x1a\n", 8)) return "image/png";
    if (n >= 3 && !memcmp(b, "\xff\xd8\xff", 3)) return "image/jpeg";
    if (n >= 12 && !memcmp(b, "RIFF", 4) && !memcmp(b + 8, "WEBP", 4)) return "image/webp";
    return "application/octet-stream";
}

static curl_mime *make_form(CURL *curl, const sl_remote_part *parts, int count)
{
    curl_mime *form = lib->curl_mime_init(curl);
    for (int i = 0; form && i < count; i++) {
        curl_mimepart *p = lib->curl_mime_addpart(form);
        bool bad = !p || lib->curl_mime_name(p, parts[i].name);
        if (!bad && parts[i].file)
            bad = lib->curl_mime_filedata(p, parts[i].file) ||
                  lib->curl_mime_filename(p, parts[i].name) ||
                  lib->curl_mime_type(p, type_of(parts[i].file));
        else if (!bad) bad = lib->curl_mime_data(p, parts[i].text, CURL_ZERO_TERMINATED);
        if (bad) {
            lib->curl_mime_free(form);
            return NULL;
        }
    }
    return form;
}

typedef struct {
    const char *method, *path, *accept, *key;
    const sl_remote_part *parts;
    int count;
    uint64_t from; /* of a file whose first bytes are here, with this ETag */
    const char *etag;
    double whole_s;
} request;

/* Method, address, who may be asked, and how long a connection takes. */
static void set_options(transfer *t, const request *q, const char *url, char *detail)
{
    CURL *c = t->curl;
    sl_remote *r = t->r;
    lib->curl_easy_setopt(c, CURLOPT_URL, url);
    lib->curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    lib->curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    lib->curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    lib->curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)r->connect_s);
    lib->curl_easy_setopt(c, CURLOPT_USERAGENT, "sluice");
    lib->curl_easy_setopt(c, CURLOPT_ERRORBUFFER, detail);
    lib->curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    lib->curl_easy_setopt(c, CURLOPT_WRITEDATA, t);
    lib->curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    lib->curl_easy_setopt(c, CURLOPT_HEADERDATA, t);
    if (r->direct)
        lib->curl_easy_setopt(c, CURLOPT_PROXY, ""); /* nobody between us and this machine */
    if (*r->socket) lib->curl_easy_setopt(c, CURLOPT_UNIX_SOCKET_PATH, r->socket);
    if (*r->ca_file) lib->curl_easy_setopt(c, CURLOPT_CAINFO, r->ca_file);
    if (!strcmp(q->method, "POST") && !q->count) {
        lib->curl_easy_setopt(c, CURLOPT_POST, 1L);
        lib->curl_easy_setopt(c, CURLOPT_POSTFIELDS, "");
    } else if (strcmp(q->method, "GET") && strcmp(q->method, "POST"))
        lib->curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, q->method);
}

static struct curl_slist *make_headers(const sl_remote *r, const request *q)
{
    struct curl_slist *list = NULL;
    char line[512];
    bool good = true;
    if (*r->token) {
        snprintf(line, sizeof line, "Authorization: Bearer %s", r->token);
        good = add_header(&list, line);
        explicit_bzero(line, sizeof line);
    }
    snprintf(line, sizeof line, "Accept: %s", q->accept);
    good = good && add_header(&list, line);
    if (q->key) {
        snprintf(line, sizeof line, "Idempotency-Key: %s", q->key);
        good = good && add_header(&list, line);
    }
    if (q->from) {
        snprintf(line, sizeof line, "Range: bytes=%llu-", (unsigned long long)q->from);
        good = good && add_header(&list, line);
        snprintf(line, sizeof line, "If-Range: %s", q->etag);
        good = good && add_header(&list, line);
    }
    if (good) return list;
    lib->curl_slist_free_all(list);
    return NULL;
}

static sl_code exchange(transfer *t, const request *q, sl_err *err)
{
    sl_remote *r = t->r;
    char url[2 * SL_PATH], detail[CURL_ERROR_SIZE] = "";
    struct curl_slist *headers = make_headers(r, q);
    curl_mime *form = NULL;
    CURLcode result = CURLE_OK;
    curl_off_t after = -1;
    sl_code rc = SL_NOMEM;
    r->status = 0;
    *r->type = 0;
    t->retry_after_s = -1;
    snprintf(url, sizeof url, "%s%s", r->url, q->path);
    if (!headers || !(t->curl = lib->curl_easy_init()) ||
        (q->count && !(form = make_form(t->curl, q->parts, q->count)))) {
        sl_fail(err, rc, "no memory");
        goto done;
    }
    set_options(t, q, url, detail);
    lib->curl_easy_setopt(t->curl, CURLOPT_HTTPHEADER, headers);
    if (form) lib->curl_easy_setopt(t->curl, CURLOPT_MIMEPOST, form);
    if (lib->curl_multi_add_handle(r->multi, t->curl)) {
        rc = sl_fail(err, SL_INTERNAL, "libcurl: no transfer");
        goto done;
    }
    rc = run(t, q->whole_s, &result, err);
    begin(t); /* an answer without a body */
    if (rc == SL_OK && t->rc) {
        if (err) *err = t->said;
        rc = t->rc;
    } else if (!rc && result) {
        rc = failed_curl(t, result, *detail ? detail : lib->curl_easy_strerror(result), err);
    } else if (!rc && r->status / 100 != 2) {
        lib->curl_easy_getinfo(t->curl, CURLINFO_RETRY_AFTER, &after);
        if (after > 0) t->retry_after_s = (double)after;
        rc = failed_status(t, err);
    }
    lib->curl_multi_remove_handle(r->multi, t->curl);
done:
    lib->curl_easy_cleanup(t->curl);
    lib->curl_mime_free(form);
    lib->curl_slist_free_all(headers);
    sl_buffer_free(&t->error);
    t->curl = NULL;
    return rc;
}

/* ---- again ---- */

typedef struct {
    int64_t until_ns;
    double wait_s;
} patience;

static patience patience_of(const sl_remote *r)
{
    return (patience){sl_now_ns() + (int64_t)(r->retry_s * 1e9), BACKOFF_MIN_S};
}

/* Wait before another try, if there is to be one: SL_OK. Else *err stays what it is, and its code
 * is the result; a signal or a deadline takes its place. */
static sl_code another_try(sl_remote *r, const transfer *t, patience *p, sl_err *err)
{
    const bool busy = err->code == SL_BUSY;
    double s = busy && t->retry_after_s > 0 ? t->retry_after_s : p->wait_s;
    if (!busy && !t->lost) return err->code;
    if (sl_now_ns() + (int64_t)(s * 1e9) > p->until_ns) {
        char said[400];
        snprintf(said, sizeof said, "%.399s", err->msg);
        if (busy && t->retry_after_s > 0)
            sl_fail(err, SL_BUSY, "%s (again in %.0f s; --retry-s waits)", said, s);
        return err->code;
    }
    if (!r->quiet) sl_complain("%s; trying again in %.*f s", err->msg, s < 1 ? 2 : 0, s);
    p->wait_s = fmin(p->wait_s * 2, BACKOFF_MAX_S);
    return sl_remote_sleep(r, s, err);
}

typedef struct {
    sl_buffer *to;
    size_t max;
    const char *name;
} keeper;

static sl_code keep(void *ctx, const char *bytes, size_t n, sl_err *err)
{
    keeper *k = ctx;
    return sl_buffer_add(k->to, bytes, n, k->max, k->name, err);
}

/* An exchange whose answer is kept; tried again where that changes nothing on the server. */
static sl_code ask(sl_remote *r, const request *q, size_t max, sl_buffer *out, sl_err *err)
{
    char what[SL_PATH + 32];
    keeper k = {out, max, what};
    patience p = patience_of(r);
    const bool again = !q->count || q->key;
    sl_err own = {0};
    sl_code rc;
    if (!err) err = &own;
    snprintf(what, sizeof what, "%s: the answer", r->name);
    while (true) {
        transfer t = {.r = r, .sink = keep, .ctx = &k};
        out->n = 0;
        if (!(rc = exchange(&t, q, err))) return SL_OK;
        if ((!again && rc != SL_BUSY) || (rc = another_try(r, &t, &p, err))) return rc;
    }
}

sl_code sl_remote_call(sl_remote *r, const char *method, const char *path,
                       const sl_remote_part *parts, int count, const char *key, json_t **out,
                       sl_err *err)
{
    request q = {.method = method,
                 .path = path,
                 .accept = "application/json",
                 .key = key,
                 .parts = parts,
                 .count = count,
                 .whole_s = WHOLE_S};
    sl_buffer body = {0};
    json_t *root = NULL;
    sl_code rc = ask(r, &q, SL_REMOTE_JSON_MAX, &body, err);
    if (!rc) rc = sl_json_parse(&root, sl_buffer_text(&body), body.n, r->name, err);
    if (!rc && out) *out = root;
    else json_decref(root);
    sl_buffer_free(&body);
    return rc;
}

sl_code sl_remote_get(sl_remote *r, const char *path, size_t max, sl_buffer *out, sl_err *err)
{
    request q = {.method = "GET", .path = path, .accept = "*/*", .whole_s = WHOLE_S};
    return ask(r, &q, max, out, err);
}

sl_code sl_remote_stream(sl_remote *r, const char *path, const char *accept, sl_remote_sink *sink,
                         void *ctx, sl_err *err)
{
    request q = {.method = "GET", .path = path, .accept = accept};
    transfer t = {.r = r, .sink = sink, .ctx = ctx};
    return exchange(&t, &q, err);
}

/* ---- into a file ---- */

typedef struct {
    transfer t; /* the newest exchange */
    int fd;
    bool begun;       /* this exchange's body has */
    uint64_t at, max; /* bytes that are there, and may be */
    const char *name;
} writer;

static sl_code write_all(int fd, const char *bytes, size_t n, const char *name, sl_err *err)
{
    while (n) {
        ssize_t k = write(fd, bytes, n);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return sl_fail_errno(err, errno, "%s", name);
        bytes += k, n -= (size_t)k;
    }
    return SL_OK;
}

static sl_code write_on(void *ctx, const char *bytes, size_t n, sl_err *err)
{
    writer *w = ctx;
    if (!w->begun && w->at) {
        /* the rest, or all of it once more */
        const bool rest = w->t.r->status == 206 && w->t.ranged && w->t.from == w->at;
        if (w->t.r->status == 206 && !rest)
            return sl_fail(err, SL_FORMAT, "%s: not the range that was asked for", w->t.r->name);
        if (!rest && (ftruncate(w->fd, 0) || lseek(w->fd, 0, SEEK_SET)))
            return sl_fail_errno(err, errno, "%s", w->name);
        if (!rest) w->at = 0;
    }
    w->begun = true;
    if (n > w->max - w->at)
        return sl_fail(err, SL_FORMAT, "%s: %s has more than %llu bytes", w->t.r->name, w->name,
                       (unsigned long long)w->max);
    w->at += n;
    return write_all(w->fd, bytes, n, w->name, err);
}

/* All bytes to fd, over as many connections as it takes. */
static sl_code receive(sl_remote *r, const char *path, writer *w, bool again, sl_err *err)
{
    char etag[sizeof r->etag] = "";
    patience p = patience_of(r);
    sl_code rc;
    while (true) {
        const uint64_t before = w->at;
        const bool resume = before && *etag && strncmp(etag, "W/", 2);
        request q = {.method = "GET",
                     .path = path,
                     .accept = "*/*",
                     .from = resume ? before : 0,
                     .etag = etag};
        w->t = (transfer){.r = r, .sink = write_on, .ctx = w};
        w->begun = false;
        if (!(rc = exchange(&w->t, &q, err))) return SL_OK;
        if (!w->begun && r->status == 416) { /* another file by now */
            if (ftruncate(w->fd, 0) || lseek(w->fd, 0, SEEK_SET))
                return sl_fail_errno(err, errno, "%s", w->name);
            w->at = 0;
            w->t.lost = true;
        }
        if (w->begun) snprintf(etag, sizeof etag, "%s", r->etag);
        if (rc == SL_TIMEOUT && r->met && !deadline(r, NULL)) w->t.lost = true;
        if (w->at > before) p = patience_of(r);
        if (!again || (rc = another_try(r, &w->t, &p, err))) return err->code;
    }
}

sl_code sl_remote_file(sl_remote *r, const char *path, const char *file, uint64_t want, sl_err *err)
{
    char *temporary = NULL, real[SL_PATH];
    sl_err own = {0};
    int stream = 1;
    if (!err) err = &own;
    /* a link is written through, /dev/stdout is no file to replace */
    snprintf(real, sizeof real, "%s", file);
    sl_code rc = strcmp(file, "-") ? sl_output_resolve(real, &stream, "output", err) : SL_OK;
    if (rc) return rc;
    const bool out = stream >= 0;
    file = out ? file : real;
    writer w = {.fd = stream, .max = want ? want : FILE_MAX, .name = out ? "stdout" : file};
    if (!out) {
        sl_temporary_sweep(file);
        rc = sl_temporary_make(&temporary, &w.fd, file, err);
        if (rc) return rc;
    }
    rc = receive(r, path, &w, !out, err);
    if (!rc && want && w.at != want)
        rc = sl_fail(err, SL_FORMAT, "%s: %s has %llu bytes, want %llu", r->name, w.name,
                     (unsigned long long)w.at, (unsigned long long)want);
    if (out) return rc;
    if (!rc && rename(temporary, file)) rc = sl_fail_errno(err, errno, "%s", file);
    if (close(w.fd) && !rc) rc = sl_fail_errno(err, errno, "%s", file);
    if (rc) unlink(temporary);
    free(temporary);
    return rc;
}
