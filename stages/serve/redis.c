/* redis.c - one connection to Redis (or Valkey). */
#include "stages/serve/redis.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <curl/curl.h>

#include "common/clock.h"

struct sl_redis {
    CURL *curl;
    curl_socket_t socket;
    redisReader *reader;
};

/* ---- addresses ---- */

static int hex(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* `n` bytes of an address, %XX decoded. false: too long, or no such character. */
static bool decode(char *to, size_t room, const char *from, size_t n)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++, k++) {
        int c = (unsigned char)from[i];
        if (c == '%') {
            const int high = i + 2 < n ? hex(from[i + 1]) : -1,
                      low = i + 2 < n ? hex(from[i + 2]) : -1;
            if (high < 0 || low < 0) return false;
            c = high * 16 + low;
            i += 2;
        }
        if (!c || k + 1 >= room) return false;
        to[k] = (char)c;
    }
    to[k] = 0;
    return true;
}

static bool number(int *out, const char *from, size_t n, int most)
{
    if (!n || n > 5 || strspn(from, "0123456789") < n) return false;
    *out = atoi(from);
    return *out <= most;
}

static bool parse_who(sl_redis_at *out, const char *from, size_t n)
{
    const char *colon = memchr(from, ':', n);
    if (!colon) return false;
    const size_t user = (size_t)(colon - from);
    return decode(out->user, sizeof out->user, from, user) &&
           decode(out->password, sizeof out->password, colon + 1, n - user - 1) && *out->password;
}

static bool parse_host(sl_redis_at *out, const char *from, size_t n)
{
    const char *end = from + n, *colon = NULL;
    if (n && *from == '[') { /* IPv6; curl wants the brackets, too */
        const char *close = memchr(from, ']', n);
        if (!close || (close + 1 < end && close[1] != ':')) return false;
        if (close + 1 < end) colon = close + 1;
    } else colon = memchr(from, ':', n);
    if (colon && (!number(&out->port, colon + 1, (size_t)(end - colon - 1), 65535) || !out->port))
        return false;
    const size_t host = (size_t)((colon ? colon : end) - from);
    if (!host || host >= sizeof out->host) return false;
    memcpy(out->host, from, host);
    return strcspn(out->host, " /?#@\\\"'<>") == host;
}

static bool parse_query(sl_redis_at *out, const char *q, bool local)
{
    while (*q) {
        const size_t n = strcspn(q, "&"), name = strcspn(q, "=");
        const char *value = q + name + 1;
        const size_t bytes = name < n ? n - name - 1 : 0;
        char *file = !strncmp(q, "ca=", 3)     ? out->ca
                     : !strncmp(q, "cert=", 5) ? out->cert
                     : !strncmp(q, "key=", 4)  ? out->key
                                               : NULL;
        if (file && out->tls) {
            if (!bytes || !decode(file, sizeof out->ca, value, bytes)) return false;
        } else if (!local || strncmp(q, "db=", 3) || !number(&out->db, value, bytes, 99999))
            return false;
        q += n + (q[n] == '&');
    }
    return true;
}

static bool parse(sl_redis_at *out, const char *url)
{
    bool local = false;
    size_t scheme = 0;
    *out = (sl_redis_at){.port = 6379};
    if (!strncmp(url, "redis://", 8)) scheme = 8;
    else if (!strncmp(url, "rediss://", 9)) scheme = 9, out->tls = true;
    else if (!strncmp(url, "unix://", 7)) scheme = 7, local = true;
    else return false;
    const char *at = url + scheme, *query = at + strcspn(at, "?");
    const char *who = NULL; /* up to the last @ before the path */
    for (const char *c = at; c < query && (*c != '/'); c++)
        if (*c == '@') who = c;
    if (who && !parse_who(out, at, (size_t)(who - at))) return false;
    if (who) at = who + 1;
    if (local) {
        if (*at != '/' || !decode(out->path, sizeof out->path, at, (size_t)(query - at)))
            return false;
    } else {
        const size_t host = strcspn(at, "/?");
        if (!parse_host(out, at, host)) return false;
        at += host;
        if (*at == '/' && query > at + 1 &&
            !number(&out->db, at + 1, (size_t)(query - at - 1), 99999))
            return false;
    }
    return !*query || parse_query(out, query + 1, local);
}

sl_code sl_redis_parse(sl_redis_at *out, const char *url, sl_err *err)
{
    if (!parse(out, url)) {
        memset(out, 0, sizeof *out);
        return sl_fail(err, SL_ARG, "a queue's address is one of %s", SL_REDIS_URLS);
    }
    if (*out->path) snprintf(out->shown, sizeof out->shown, "unix://%s?db=%d", out->path, out->db);
    else
        snprintf(out->shown, sizeof out->shown, "%s://%s:%d/%d", out->tls ? "rediss" : "redis",
                 out->host, out->port, out->db);
    return SL_OK;
}

/* ---- the way there ---- */

static curl_socket_t not_inherited(void *self, curlsocktype purpose, struct curl_sockaddr *a)
{
    (void)self, (void)purpose;
    return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

static void set_way(CURL *c, const sl_redis_at *at, int wait_ms, char why[CURL_ERROR_SIZE])
{
    char url[300];
    snprintf(url, sizeof url, "http%s://%s:%d", at->tls ? "s" : "",
             *at->path ? "localhost" : at->host, *at->path ? 80 : at->port);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_CONNECT_ONLY, 1L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)wait_ms);
    curl_easy_setopt(c, CURLOPT_SSL_ENABLE_ALPN, 0L); /* what comes is not HTTP */
    curl_easy_setopt(c, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(c, CURLOPT_OPENSOCKETFUNCTION, not_inherited);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, why);
    if (*at->path) curl_easy_setopt(c, CURLOPT_UNIX_SOCKET_PATH, at->path);
    if (*at->ca) curl_easy_setopt(c, CURLOPT_CAINFO, at->ca);
    if (*at->cert) curl_easy_setopt(c, CURLOPT_SSLCERT, at->cert);
    if (*at->key) curl_easy_setopt(c, CURLOPT_SSLKEY, at->key);
}

static sl_code reach(sl_redis *r, const sl_redis_at *at, int wait_ms, sl_err *err)
{
    char why[CURL_ERROR_SIZE] = "";
    if (!(r->curl = curl_easy_init()) || !(r->reader = redisReaderCreate()))
        return sl_fail(err, SL_NOMEM, "no memory for a connection");
    set_way(r->curl, at, wait_ms, why);
    const CURLcode rc = curl_easy_perform(r->curl);
    curl_easy_setopt(r->curl, CURLOPT_ERRORBUFFER, NULL);
    if (rc == CURLE_OPERATION_TIMEDOUT)
        return sl_fail(err, SL_TIMEOUT, "no connection within %d ms", wait_ms);
    if (rc == CURLE_COULDNT_CONNECT && *at->path) /* curl tells of a host and a port */
        return sl_fail(err, SL_SYS, "nobody listens there");
    if (rc || curl_easy_getinfo(r->curl, CURLINFO_ACTIVESOCKET, &r->socket) ||
        r->socket == CURL_SOCKET_BAD)
        return sl_fail(err, SL_SYS, "%s", *why ? why : curl_easy_strerror(rc));
    return SL_OK;
}

static int left_ms(int64_t until_ns)
{
    const int64_t left = (until_ns - sl_now_ns() + 999999) / 1000000;
    return left < 0 ? 0 : (int)left;
}

static sl_code wait_for(sl_redis *r, short what, int64_t until_ns, sl_err *err)
{
    struct pollfd p = {r->socket, what, 0};
    const int n = poll(&p, 1, left_ms(until_ns));
    if (n < 0 && errno != EINTR) return sl_fail_errno(err, errno, "poll");
    if (n == 0 && !left_ms(until_ns)) return sl_fail(err, SL_TIMEOUT, "no answer in time");
    return SL_OK;
}

static sl_code send_all(sl_redis *r, const char *bytes, size_t size, int64_t until_ns, sl_err *err)
{
    while (size) {
        size_t n = 0;
        const CURLcode rc = curl_easy_send(r->curl, bytes, size, &n);
        bytes += n;
        size -= n;
        if (rc && rc != CURLE_AGAIN)
            return sl_fail(err, SL_SYS, "the connection is lost: %s", curl_easy_strerror(rc));
        if (rc) {
            const sl_code waited = wait_for(r, POLLOUT, until_ns, err);
            if (waited) return waited;
        }
    }
    return SL_OK;
}

static sl_code receive(sl_redis *r, redisReply **out, int64_t until_ns, sl_err *err)
{
    char bytes[16384];
    for (;;) {
        void *reply = NULL;
        size_t n = 0;
        if (redisReaderGetReply(r->reader, &reply) != REDIS_OK)
            return sl_fail(err, SL_SYS, "what answers is no Redis: %s", r->reader->errstr);
        if ((*out = reply)) return SL_OK;
        const CURLcode rc = curl_easy_recv(r->curl, bytes, sizeof bytes, &n);
        if (rc == CURLE_AGAIN) {
            const sl_code waited = wait_for(r, POLLIN, until_ns, err);
            if (waited) return waited;
        } else if (rc || !n)
            return sl_fail(err, SL_SYS, "the connection is lost: %s",
                           rc ? curl_easy_strerror(rc) : "closed by the other end");
        else if (redisReaderFeed(r->reader, bytes, n) != REDIS_OK)
            return sl_fail(err, SL_NOMEM, "no memory for an answer");
    }
}

sl_code sl_redis_ask(sl_redis *r, redisReply **out, int wait_ms, int n, const char *const *words,
                     const size_t *sizes, sl_err *err)
{
    const int64_t until_ns = sl_now_ns() + wait_ms * 1000000ll;
    char *command = NULL;
    *out = NULL;
    const long long bytes = redisFormatCommandArgv(&command, n, (const char **)words, sizes);
    if (bytes < 0) return sl_fail(err, SL_NOMEM, "no memory for a command");
    sl_code rc = send_all(r, command, (size_t)bytes, until_ns, err);
    redisFreeCommand(command);
    return rc ? rc : receive(r, out, until_ns, err);
}

sl_code sl_redis_hear(sl_redis *r, redisReply **out, int wait_ms, sl_err *err)
{
    *out = NULL;
    sl_code rc = receive(r, out, sl_now_ns() + wait_ms * 1000000ll, err);
    return rc == SL_TIMEOUT ? sl_fail(err, SL_BUSY, "nothing came") : rc;
}

/* ---- open, close ---- */

/* A command that must answer with a status. */
static sl_code must(sl_redis *r, int wait_ms, int n, const char *const *words, sl_err *err)
{
    redisReply *reply;
    sl_code rc = sl_redis_ask(r, &reply, wait_ms, n, words, NULL, err);
    if (rc) return rc;
    if (reply->type == REDIS_REPLY_ERROR)
        rc = sl_fail(err, strncmp(reply->str, "LOADING", 7) ? SL_ARG : SL_SYS, "%s: %.180s",
                     words[0], reply->str);
    freeReplyObject(reply);
    return rc;
}

sl_code sl_redis_open(sl_redis **out, const sl_redis_at *at, int wait_ms, sl_err *err)
{
    const int64_t until_ns = sl_now_ns() + wait_ms * 1000000ll;
    char db[16];
    *out = NULL;
    sl_redis *r = calloc(1, sizeof *r);
    if (!r) return sl_fail(err, SL_NOMEM, "no memory for a connection");
    const char *const named[] = {"AUTH", at->user, at->password},
                      *const alone[] = {"AUTH", at->password}, *const select[] = {"SELECT", db};
    snprintf(db, sizeof db, "%d", at->db);
    sl_code rc = reach(r, at, wait_ms, err);
    if (!rc && *at->password)
        rc = *at->user ? must(r, left_ms(until_ns), 3, named, err)
                       : must(r, left_ms(until_ns), 2, alone, err);
    if (!rc && at->db) rc = must(r, left_ms(until_ns), 2, select, err);
    if (rc) sl_redis_close(&r);
    *out = r;
    return rc;
}

void sl_redis_close(sl_redis **r)
{
    if (!*r) return;
    if ((*r)->curl) curl_easy_cleanup((*r)->curl);
    if ((*r)->reader) redisReaderFree((*r)->reader);
    free(*r);
    *r = NULL;
}
