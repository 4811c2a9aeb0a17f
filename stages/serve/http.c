/* http.c - connections, deadlines, limits, and the way of a request to its handler.
 *
 *   take (MHD's handler)   first call: head is there --> admit: route, token, size
 *                          calls with data          --> grow the body, or throw it away
 *                          last call                --> the handler
 * Deadlines are times of sl_now_ns in sl_http_connection, written by the connection's own thread
 * and read by the janitor under the lock of the list; a connection leaves the list before MHD
 * closes its socket, so shutdown() never meets another's. */
#include "stages/serve/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "stages/serve/relay.h"

#define THREADS 4 /* that answer TCP */
#define SECOND 1000000000ll
#define GRACE_S 30       /* to begin a body, and to read a small answer */
#define WORKERS 16       /* that wait for the disk */
#define HEAD_BYTES 32768 /* of a connection's memory: a request's head fits or is refused */
#define DRAIN_FACTOR 4   /* bodies of at most so many limits are read to their end before 413 */
#define BODY_NONE 65536  /* what a route that takes no body throws away */

struct sl_http_connection {
    sl_http_connection *next, *before;
    sl_http *http;
    int fd;
    bool local; /* over the UNIX socket */
    atomic_llong deadline_ns;
};

struct sl_http {
    sl_server *server;
    sl_route_find_fn *find;
    struct MHD_Daemon *tcp, *local;
    char url[300], socket_path[SL_PATH];
    bool local_made;
    bool tokens;
    pthread_mutex_t lock;
    sl_http_connection *first;
    int count;
    atomic_llong bodies; /* bytes of bodies that are being read */
    struct {
        pthread_mutex_t lock;
        pthread_cond_t wake;
        sl_ask *first, **last;
        bool closing;
        int count; /* threads */
        pthread_t threads[WORKERS];
    } work;
};

/* ---- connections ---- */

static void set_deadline(sl_http_connection *c, int64_t s)
{
    if (c) atomic_store(&c->deadline_ns, sl_now_ns() + s * SECOND);
}

static int header_s(sl_server *s)
{
    pthread_rwlock_rdlock(&s->settings);
    const int t = s->conf.serve.header_s;
    pthread_rwlock_unlock(&s->settings);
    return t;
}

static int body_rate(sl_server *s)
{
    pthread_rwlock_rdlock(&s->settings);
    const int t = s->conf.serve.body_rate;
    pthread_rwlock_unlock(&s->settings);
    return t;
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    sl_http *h = cls;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        sl_http_connection *c = calloc(1, sizeof *c);
        const union MHD_ConnectionInfo *fd =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        struct sockaddr_storage at;
        socklen_t n = sizeof at;
        *context = c;
        if (!c) return; /* it has no deadline, and its requests are refused */
        c->http = h;
        c->fd = fd ? (int)fd->connect_fd : -1;
        c->local = c->fd >= 0 && !getsockname(c->fd, (struct sockaddr *)&at, &n) &&
                   at.ss_family == AF_UNIX;
        set_deadline(c, header_s(h->server));
        pthread_mutex_lock(&h->lock);
        c->next = h->first;
        if (h->first) h->first->before = c;
        h->first = c;
        h->count++;
        pthread_mutex_unlock(&h->lock);
    } else if (*context) {
        sl_http_connection *c = *context;
        pthread_mutex_lock(&h->lock);
        if (c->before) c->before->next = c->next;
        else h->first = c->next;
        if (c->next) c->next->before = c->before;
        h->count--;
        pthread_mutex_unlock(&h->lock);
        free(c);
        *context = NULL;
    }
}

void sl_http_tick(sl_http *h)
{
    const int64_t now = sl_now_ns();
    pthread_mutex_lock(&h->lock);
    for (sl_http_connection *c = h->first; c; c = c->next)
        if (c->fd >= 0 && now > atomic_load(&c->deadline_ns)) shutdown(c->fd, SHUT_RDWR);
    pthread_mutex_unlock(&h->lock);
}

int sl_http_connections(sl_http *h)
{
    pthread_mutex_lock(&h->lock);
    const int n = h->count;
    pthread_mutex_unlock(&h->lock);
    return n;
}

void sl_ask_alive(sl_ask *a)
{
    set_deadline(a->connection, 2 * GRACE_S);
}

/* ---- answers ---- */

const char *sl_ask_header(const sl_ask *a, const char *name)
{
    return MHD_lookup_connection_value(a->mhd, MHD_HEADER_KIND, name);
}

const char *sl_ask_query(const sl_ask *a, const char *name)
{
    return MHD_lookup_connection_value(a->mhd, MHD_GET_ARGUMENT_KIND, name);
}

static void count_answer(sl_ask *a, int code)
{
    char labels[200];
    const char *path = a->route ? a->route->path : "", *method = a->route ? a->route->method : "";
    if (a->counted) return;
    a->counted = true;
    snprintf(labels, sizeof labels, "route=\"%s\",method=\"%s\",code=\"%d\"", path, method, code);
    sl_metrics_add(a->server->metrics, SL_METRIC_REQUESTS, labels, 1);
    snprintf(labels, sizeof labels, "route=\"%s\",method=\"%s\"", path, method);
    sl_metrics_observe(a->server->metrics, SL_METRIC_REQUEST_SECONDS, labels,
                       (double)(sl_now_ns() - a->t0_ns) * 1e-9);
}

void sl_answer_sized(sl_ask *a, int code, struct MHD_Response *r, uint64_t size)
{
    char retry[16];
    if (a->answered || !r) {
        if (r) MHD_destroy_response(r);
        return;
    }
    a->answered = true;
    a->code = code;
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    if (!MHD_get_response_header(r, "Cache-Control"))
        MHD_add_response_header(r, "Cache-Control", "no-store");
    snprintf(retry, sizeof retry, "%d", a->retry_s);
    if (a->retry_s) MHD_add_response_header(r, "Retry-After", retry);
    if (code == 401) MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    set_deadline(a->connection, GRACE_S + (int64_t)(size / (uint64_t)body_rate(a->server)));
    count_answer(a, code);
    if (a->working) {
        a->response = r;
        return;
    }
    a->queued = MHD_queue_response(a->mhd, (unsigned)code, r);
    MHD_destroy_response(r);
}

void sl_answer(sl_ask *a, int code, struct MHD_Response *r)
{
    sl_answer_sized(a, code, r, 0);
}

void sl_answer_text(sl_ask *a, int code, const char *type, char *text, size_t size)
{
    struct MHD_Response *r =
        text ? MHD_create_response_from_buffer(size, text, MHD_RESPMEM_MUST_FREE) : NULL;
    if (!r) free(text);
    else MHD_add_response_header(r, "Content-Type", type);
    sl_answer_sized(a, code, r, size);
}

void sl_answer_json(sl_ask *a, int code, json_t *body)
{
    char *text = body ? json_dumps(body, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(body);
    if (text) sl_answer_text(a, code, "application/json", text, strlen(text));
}

void sl_answer_static(sl_ask *a, const char *type, const void *bytes, size_t size,
                      const char *policy)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(size, (void *)bytes, MHD_RESPMEM_PERSISTENT);
    if (!r) return;
    MHD_add_response_header(r, "Content-Type", type);
    MHD_add_response_header(r, "Cache-Control", "no-cache");
    if (policy) MHD_add_response_header(r, "Content-Security-Policy", policy);
    MHD_add_response_header(r, "Referrer-Policy", "no-referrer");
    MHD_add_response_header(r, "X-Frame-Options", "DENY");
    sl_answer_sized(a, 200, r, size);
}

static const char *error_type(int code)
{
    switch (code) {
    case 401:
    case 403: return "authentication_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    default: return code >= 500 ? "server_error" : "invalid_request_error";
    }
}

static json_t *error_json(int code, const char *error_code, const char *param, const char *message)
{
    char clean[512];
    size_t n = 0;
    for (; n < sizeof clean - 1 && message[n]; n++)
        clean[n] = (unsigned char)message[n] < ' ' || message[n] == 127 ? ' ' : message[n];
    clean[n] = 0;
    json_t *text = json_string(clean);
    if (!text) { /* not UTF-8, or cut inside a character */
        for (size_t i = 0; i < n; i++)
            if ((unsigned char)clean[i] > 126) clean[i] = '?';
        text = json_string(clean);
    }
    return json_pack("{s:{s:o, s:s, s:s?, s:s}}", "error", "message", text, "type",
                     error_type(code), "param", param, "code", error_code);
}

void sl_answer_error(sl_ask *a, int code, const char *error_code, const char *param,
                     const char *fmt, ...)
{
    char message[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    if (a->route && !strcmp(a->route->path, "/v1/videos") && a->route->body) {
        char label[32];
        snprintf(label, sizeof label, "code=\"%d\"", code);
        sl_metrics_add(a->server->metrics, SL_METRIC_JOBS_REFUSED, label, 1);
    }
    sl_answer_json(a, code, error_json(code, error_code, param, message));
}

/* ---- admission: all that can be known of a request from its head ---- */

static void early(sl_ask *a, int code, const char *error_code, const char *message)
{
    if (a->early_code) return;
    a->early_code = code;
    a->early_name = error_code;
    snprintf(a->early, sizeof a->early, "%s", message);
}

static void answer_early(sl_ask *a)
{
    sl_answer_error(a, a->early_code, a->early_name, NULL, "%s", a->early);
}

static enum MHD_Result count_value(void *cls, enum MHD_ValueKind kind, const char *key,
                                   const char *value)
{
    int *n = cls;
    (void)kind, (void)value;
    n[0] += !strcasecmp(key, "Content-Length");
    n[1] += !strcasecmp(key, "Transfer-Encoding");
    n[2] += !strcasecmp(key, "Host");
    return MHD_YES;
}

/* Two parties might see two requests in it. */
static void refuse_doubtful(sl_ask *a)
{
    int n[3] = {0};
    const char *length = sl_ask_header(a, "Content-Length"),
               *coding = sl_ask_header(a, "Transfer-Encoding");
    MHD_get_connection_values(a->mhd, MHD_HEADER_KIND, count_value, n);
    if (n[0] > 1 || n[1] > 1 || n[2] > 1 || (n[0] && n[1]) ||
        (length && (!*length || strspn(length, "0123456789") != strlen(length))) ||
        (coding && strcasecmp(coding, "chunked")))
        early(a, 400, "bad_request",
              "the request's length can be understood in two ways, want one Content-Length or "
              "Transfer-Encoding: chunked");
}

static bool in_list(const char *list, const char *word, size_t n)
{
    while (*list) {
        const size_t m = strcspn(list, ", ");
        if (m == n && !strncasecmp(list, word, n)) return true;
        list += m;
        list += strspn(list, ", ");
    }
    return false;
}

/* "[::1]:80" has a host of 5 bytes, "localhost:80" of 9. */
static size_t host_length(const char *host)
{
    const char *end = *host == '[' ? strchr(host, ']') : NULL;
    return end ? (size_t)(end + 1 - host) : strcspn(host, ":");
}

/* A page elsewhere can send requests here through its reader's browser, under its own name for this
 * address too; it cannot hide its name. */
static void refuse_elsewhere(sl_ask *a)
{
    static const char LOOPBACK[] = "localhost,127.0.0.1,[::1]";
    const char *host = sl_ask_header(a, "Host"), *origin = sl_ask_header(a, "Origin"),
               *site = sl_ask_header(a, "Sec-Fetch-Site");
    const size_t n = host ? host_length(host) : 0;
    pthread_rwlock_rdlock(&a->server->settings);
    const bool known = !host || in_list(LOOPBACK, host, n) ||
                       in_list(a->server->conf.serve.hosts, host, n) ||
                       in_list(a->server->listen_host, host, n);
    pthread_rwlock_unlock(&a->server->settings);
    if (!known)
        early(a, 403, "wrong_host",
              "this server has no tokens and answers to the loopback's names and serve.hosts "
              "only: the request's Host is another");
    const char *page = origin ? strstr(origin, "://") : NULL;
    if ((origin && (!host || !page || strcasecmp(page + 3, host))) ||
        (!origin && site && !strcmp(site, "cross-site") && strcmp(a->route->method, "GET")))
        early(a, 403, "wrong_origin",
              "this server has no tokens and answers to its own page only: the request's Origin "
              "is another");
}

static void find_owner(sl_ask *a)
{
    const char *given = sl_ask_header(a, "Authorization");
    a->everyone = true;
    a->priority = SL_PRIORITY;
    if (a->connection->local) return;
    if (!a->http->tokens) {
        if (a->route->who == SL_ROUTE_TOKEN) refuse_elsewhere(a);
        return;
    }
    a->everyone = false;
    a->priority = 0;
    if (a->route->who == SL_ROUTE_OPEN) return;
    pthread_rwlock_rdlock(&a->server->settings);
    const sl_token *t = given && !strncasecmp(given, "Bearer ", 7)
                            ? sl_tokens_find(&a->server->tokens, given + 7 + strspn(given + 7, " "))
                            : NULL;
    if (t) {
        memcpy(a->owner, t->name, sizeof a->owner);
        a->priority = t->priority;
    }
    pthread_rwlock_unlock(&a->server->settings);
    if (!t)
        early(a, 401, "invalid_api_key",
              given ? "the token is not known here" : "no token, want Authorization: Bearer TOKEN");
}

static void admit_body(sl_ask *a)
{
    const char *length = sl_ask_header(a, "Content-Length");
    const unsigned long long size = length ? strtoull(length, NULL, 10) : 0;
    pthread_rwlock_rdlock(&a->server->settings);
    const unsigned long long most = a->route && a->route->body
                                        ? (unsigned long long)a->server->conf.serve.body_bytes
                                        : BODY_NONE;
    pthread_rwlock_unlock(&a->server->settings);
    char text[128];
    a->room = (size_t)most;
    if (size > most) {
        snprintf(text, sizeof text, "the request's body has %llu bytes, want at most %llu", size,
                 most);
        early(a, 413, "too_large", text);
    }
    set_deadline(a->connection, GRACE_S + (int64_t)(most / (unsigned)body_rate(a->server)));
}

static void admit(sl_ask *a, const char *url, const char *method)
{
    bool known = false;
    a->route = a->http->find(url, method, a->id, sizeof a->id, a->name, sizeof a->name, &known);
    if (!a->connection) early(a, 503, "overloaded", "no memory for another connection");
    else if (a->route) find_owner(a);
    else if (known) early(a, 405, "method_not_allowed", "this path has no such method");
    else early(a, 404, "not_found", "no such path: /openapi.json lists them");
    refuse_doubtful(a);
    if (a->connection) admit_body(a);
}

/* ---- workers ---- */

static void *be_worker(void *arg)
{
    sl_http *h = arg;
    for (;;) {
        pthread_mutex_lock(&h->work.lock);
        while (!h->work.first && !h->work.closing) pthread_cond_wait(&h->work.wake, &h->work.lock);
        sl_ask *a = h->work.first;
        if (a && !(h->work.first = a->next)) h->work.last = &h->work.first;
        pthread_mutex_unlock(&h->work.lock);
        if (!a) return NULL; /* closing, and nobody waits */
        a->route->handle(a);
        if (!a->answered) sl_answer_error(a, 500, "internal", NULL, "no memory for the answer");
        MHD_resume_connection(a->mhd);
    }
}

static void hand_on(sl_http *h, sl_ask *a)
{
    a->working = true;
    set_deadline(a->connection, 4 * GRACE_S);
    MHD_suspend_connection(a->mhd);
    pthread_mutex_lock(&h->work.lock);
    *h->work.last = a;
    h->work.last = &a->next;
    pthread_cond_signal(&h->work.wake);
    pthread_mutex_unlock(&h->work.lock);
}

static sl_code start_workers(sl_http *h, sl_err *err)
{
    pthread_mutex_init(&h->work.lock, NULL);
    pthread_cond_init(&h->work.wake, NULL);
    h->work.last = &h->work.first;
    while (h->work.count < WORKERS) {
        if (pthread_create(&h->work.threads[h->work.count], NULL, be_worker, h))
            return sl_fail(err, SL_SYS, "serve: no thread to be had");
        h->work.count++;
    }
    return SL_OK;
}

/* What they have is finished. */
static void stop_workers(sl_http *h)
{
    pthread_mutex_lock(&h->work.lock);
    h->work.closing = true;
    pthread_cond_broadcast(&h->work.wake);
    pthread_mutex_unlock(&h->work.lock);
    for (int i = 0; i < h->work.count; i++) pthread_join(h->work.threads[i], NULL);
    pthread_cond_destroy(&h->work.wake);
    pthread_mutex_destroy(&h->work.lock);
}

/* ---- the request's way ---- */

static void free_ask(sl_ask *a)
{
    if (a->body) atomic_fetch_sub(&a->http->bodies, (long long)a->room);
    if (a->response) MHD_destroy_response(a->response); /* its connection was lost */
    free(a->body);
    free(a);
}

static void take_data(sl_ask *a, const char *data, size_t n)
{
    if (!a->early_code && !a->route->body) a->discard = true;
    if (a->early_code || a->discard) return;
    if (a->size + n > a->room) {
        char text[128];
        snprintf(text, sizeof text, "the request's body has more than %zu bytes", a->room);
        early(a, 413, "too_large", text);
        return;
    }
    if (!a->body) {
        const char *length = sl_ask_header(a, "Content-Length");
        const size_t room = length ? (size_t)strtoull(length, NULL, 10) : a->room;
        pthread_rwlock_rdlock(&a->server->settings);
        const long long all = a->server->conf.serve.bodies_bytes;
        pthread_rwlock_unlock(&a->server->settings);
        if (room < a->room) a->room = room;
        if (atomic_fetch_add(&a->http->bodies, (long long)a->room) + (long long)a->room > all ||
            !(a->body = malloc(a->room + 1))) {
            atomic_fetch_sub(&a->http->bodies, (long long)a->room);
            a->retry_s = 2;
            early(a, 503, "overloaded", "too many requests are being read, come again in a moment");
            return;
        }
    }
    if (a->size + n > a->room) return; /* MHD gives no more than the length that was announced */
    memcpy(a->body + a->size, data, n);
    a->size += n;
    a->body[a->size] = 0;
}

/* The rest is too long to be read to its end for the sake of good manners. */
static bool is_hopeless(const sl_ask *a)
{
    const char *length = sl_ask_header(a, "Content-Length");
    pthread_rwlock_rdlock(&a->server->settings);
    const unsigned long long most = (unsigned long long)a->server->conf.serve.body_bytes;
    pthread_rwlock_unlock(&a->server->settings);
    return a->early_code && (sl_ask_header(a, "Transfer-Encoding") ||
                             (length && strtoull(length, NULL, 10) > DRAIN_FACTOR * most) ||
                             sl_ask_header(a, "Expect"));
}

static enum MHD_Result take(void *cls, struct MHD_Connection *mhd, const char *url,
                            const char *method, const char *version, const char *data, size_t *size,
                            void **context)
{
    sl_http *h = cls;
    sl_ask *a = *context;
    (void)version;
    if (!a) {
        const union MHD_ConnectionInfo *c =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        if (!(a = calloc(1, sizeof *a))) return MHD_NO;
        *context = a;
        a->server = h->server;
        a->http = h;
        a->mhd = mhd;
        a->connection = c ? c->socket_context : NULL;
        a->t0_ns = sl_now_ns();
        a->head = !strcmp(method, "HEAD");
        a->queued = MHD_NO;
        admit(a, url, method);
        if (!is_hopeless(a)) return MHD_YES;
        answer_early(a);
        return a->queued;
    }
    if (*size) {
        take_data(a, data, *size);
        a->thrown += a->early_code || a->discard ? *size : 0;
        *size = 0;
        return a->thrown > DRAIN_FACTOR * a->room ? MHD_NO : MHD_YES;
    }
    if (a->response) { /* a worker's */
        a->working = false;
        a->queued = MHD_queue_response(mhd, (unsigned)a->code, a->response);
        MHD_destroy_response(a->response);
        a->response = NULL;
        return a->queued;
    }
    if (a->answered) return MHD_YES;
    if (!a->early_code && a->route->slow) {
        hand_on(h, a);
        return MHD_YES;
    }
    if (a->early_code) answer_early(a);
    else a->route->handle(a);
    if (!a->answered) sl_answer_error(a, 500, "internal", NULL, "no memory for the answer");
    return a->queued;
}

static void completed(void *cls, struct MHD_Connection *mhd, void **context,
                      enum MHD_RequestTerminationCode why)
{
    sl_ask *a = *context;
    (void)cls, (void)mhd, (void)why;
    if (!a) return;
    set_deadline(a->connection, header_s(a->server));
    free_ask(a);
    *context = NULL;
}

/* ---- opening ---- */

static void quiet(void *arg, const char *fmt, va_list ap)
{
    char text[512];
    (void)arg;
    if (!sl_log_shows(SL_LOG_DEBUG)) return;
    vsnprintf(text, sizeof text, fmt, ap);
    sl_log(SL_LOG_DEBUG, "http: %s", text);
}

static struct MHD_Daemon *start(sl_http *h, int fd, int threads)
{
    const sl_conf *c = &h->server->conf;
    const unsigned flags =
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    return MHD_start_daemon(
        flags, 0, NULL, NULL, take, h, MHD_OPTION_EXTERNAL_LOGGER, quiet, NULL,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_THREAD_POOL_SIZE, (unsigned)threads,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)c->serve.connections,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)c->serve.connections_per_address,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEAD_BYTES, MHD_OPTION_CONNECTION_TIMEOUT, 0u,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_NOTIFY_COMPLETED, completed, NULL,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, h, MHD_OPTION_END);
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return (ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24) == 127;
    return a->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

/* HOST and PORT of "HOST:PORT". */
static sl_code split(const char *listen, char host[256], char port[16], sl_err *err)
{
    const char *colon = strrchr(listen, ':');
    const bool braces = *listen == '[';
    const size_t n = colon ? (size_t)(colon - listen) : 0;
    if (!colon || n >= 250 || strlen(colon + 1) > 5 || !colon[1] ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1) || atoi(colon + 1) > 65535 ||
        (braces && (n < 3 || listen[n - 1] != ']')))
        return sl_fail(err, SL_ARG, "--listen is \"%.100s\", want HOST:PORT, as 127.0.0.1:8080",
                       listen);
    memcpy(host, listen + braces, n - 2 * braces);
    host[n - 2 * braces] = 0;
    strcpy(port, colon + 1);
    return SL_OK;
}

static sl_code listen_tcp(sl_http *h, const char *listen_at, sl_err *err)
{
    char host[256], port[16];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *all = NULL;
    struct sockaddr_storage at;
    socklen_t n = sizeof at;
    int one = 1, fd = -1;
    sl_code rc = split(listen_at, host, port, err);
    if (rc) return rc;
    const int bad = getaddrinfo(*host ? host : NULL, port, &hints, &all);
    if (bad) return sl_fail(err, SL_ARG, "--listen %s: %s", listen_at, gai_strerror(bad));
    if (!h->tokens && !is_loopback(all->ai_addr))
        rc = sl_fail(err, SL_ARG,
                     "--listen %s is not the loopback: whoever reaches it could use the server, "
                     "want --tokens FILE",
                     listen_at);
    else if ((fd = socket(all->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) < 0 ||
             setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
             bind(fd, all->ai_addr, all->ai_addrlen) || listen(fd, 1024) ||
             getsockname(fd, (struct sockaddr *)&at, &n))
        rc = sl_fail_errno(err, errno, "--listen %s", listen_at);
    freeaddrinfo(all);
    if (!rc) {
        char numeric[INET6_ADDRSTRLEN] = "", name[INET6_ADDRSTRLEN + 2];
        const bool six = at.ss_family == AF_INET6;
        getnameinfo((struct sockaddr *)&at, n, numeric, sizeof numeric, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV);
        snprintf(name, sizeof name, six ? "[%s]" : "%s", numeric);
        snprintf(h->server->listen_host, sizeof h->server->listen_host, "%.120s,%s", host, name);
        snprintf(h->url, sizeof h->url, "http://%s:%s", name, port);
        if (!(h->tcp = start(h, fd, THREADS)))
            rc = sl_fail(err, SL_SYS, "--listen %s: HTTP cannot be started", listen_at);
    }
    if (rc && fd >= 0) close(fd);
    return rc;
}

static sl_code listen_local(sl_http *h, sl_err *err)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    sl_code rc = sl_path_join(h->socket_path, h->server->store.dir, "sluice.sock", err);
    if (rc) return rc;
    if (strlen(h->socket_path) >= sizeof at.sun_path)
        return sl_fail(err, SL_ARG,
                       "state folder %s is too long for a socket, want at most %zu "
                       "bytes",
                       h->server->store.dir, sizeof at.sun_path - 13);
    memcpy(at.sun_path, h->socket_path, strlen(h->socket_path) + 1);
    unlink(h->socket_path); /* a killed server's: the lock is ours */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask = umask(077);
    const bool bound = fd >= 0 && !bind(fd, (struct sockaddr *)&at, sizeof at) && !listen(fd, 128);
    umask(mask);
    if (!bound) rc = sl_fail_errno(err, errno, "%s", h->socket_path);
    h->local_made = bound;
    if (!rc && !(h->local = start(h, fd, 2)))
        rc = sl_fail(err, SL_SYS, "%s: HTTP cannot be started", h->socket_path);
    if (rc && fd >= 0) close(fd);
    return rc;
}

sl_code sl_http_open(sl_http **out, sl_server *s, sl_route_find_fn *find, const char *listen_at,
                     sl_err *err)
{
    sl_http *h = *out = calloc(1, sizeof *h);
    if (!h) return sl_fail(err, SL_NOMEM, "serve: no memory");
    h->server = s;
    h->find = find;
    h->tokens = s->tokens.count > 0;
    pthread_mutex_init(&h->lock, NULL);
    sl_code rc = start_workers(h, err);
    if (!rc) rc = listen_local(h, err);
    return rc ? rc : listen_tcp(h, listen_at, err);
}

const char *sl_http_url(const sl_http *h)
{
    return h->url;
}

void sl_http_close(sl_http **hp)
{
    sl_http *h = *hp;
    *hp = NULL;
    if (!h) return;
    if (h->local_made) unlink(h->socket_path);
    atomic_store(&h->server->closing, true);
    sl_events_tell(h->server->events, NULL, SL_EVENT_END);
    const int fds[] = {h->tcp ? MHD_quiesce_daemon(h->tcp) : -1,
                       h->local ? MHD_quiesce_daemon(h->local) : -1};
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0) shutdown(fds[i], SHUT_RDWR); /* no new connections */
    sl_relays_end(h->server->relays);                 /* no connection sleeps for one any more */
    stop_workers(h);
    if (h->tcp) MHD_stop_daemon(h->tcp);
    if (h->local) MHD_stop_daemon(h->local);
    for (int i = 0; i < 2; i++) /* MHD's threads may look at them until they end */
        if (fds[i] >= 0) close(fds[i]);
    pthread_mutex_destroy(&h->lock);
    free(h);
}
