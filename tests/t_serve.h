/* t_serve.h - a real `sluice serve` and real HTTP to it.
 *
 * The server has a private folder, listens on a free port of the loopback, and is a child of the
 * test, which adopts orphans: after a stop "no child is left" says that no process of it is. */
#ifndef T_SERVE_H
#define T_SERVE_H

#include "tests/t_run.h"

#include <curl/curl.h>
#include <jansson.h>
#include <sched.h>

#define T_SERVE_S 120 /* a server that takes longer for anything hangs */
#define T_SERVE_ARGS 32

typedef struct {
    char base[200], state[240], conf[240], tokens[240], log[240];
    char url[128];
    pid_t pid;
    int out; /* its standard output; -1: closed */
    int net; /* network namespace that it is started in (t_hosts.h); -1: the test's */
    const char *listen;
    char line[512];
} t_serve;

typedef struct {
    long code;
    char *body; /* with a NUL behind it */
    size_t size;
    char headers[8192];
} t_reply;

/* ---- the process ---- */

static inline void t_serve_open(t_serve *s)
{
    memset(s, 0, sizeof *s);
    const char *dir = t_tmpdir();
    assert_true(strlen(dir) < sizeof s->base);
    strcpy(s->base, dir);
    snprintf(s->state, sizeof s->state, "%.199s/state", s->base);
    snprintf(s->conf, sizeof s->conf, "%.199s/serve.cfg", s->base);
    snprintf(s->tokens, sizeof s->tokens, "%.199s/tokens", s->base);
    snprintf(s->log, sizeof s->log, "%.199s/log", s->base);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    s->out = s->net = -1;
    s->listen = "127.0.0.1:0";
}

static inline void t_serve_conf(const t_serve *s, const char *more)
{
    t_write(
        s->conf,
        t_format("video: { preset = \"veryfast\"; threads = 2; };\ndenoise: { state_every = 2; };\n"
                 "supervise: { backoff_ms = 5; heartbeat_ms = 100; };\n%s",
                 more));
}

/* Start it; `more` ends with NULL. */
static inline void t_serve_spawn(t_serve *s, const char *model, const char *const *more)
{
    int out[2];
    const char *args[T_SERVE_ARGS] = {"sluice", "serve",   "--model", model,      "--conf",
                                      s->conf,  "--state", s->state,  "--listen", s->listen};
    int n = 10;
    while (more && *more) args[n++] = *more++;
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    s->pid = fork();
    if (s->pid == 0) {
        char program[1024];
        snprintf(program, sizeof program, "%s/sluice", t_bin());
        int null = open("/dev/null", O_RDWR),
            log = open(s->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        dup2(null, 0);
        dup2(out[1], 1);
        dup2(log, 2);
        setpgid(0, 0);
        if (s->net >= 0 && setns(s->net, CLONE_NEWNET)) _exit(126);
        execv(program, (char *const *)args);
        _exit(127);
    }
    assert_true(s->pid > 0);
    close(out[1]);
    if (s->out >= 0) close(s->out);
    s->out = out[0];
}

/* Its line, or its end. false: it ended. */
static inline bool t_serve_ready(t_serve *s)
{
    size_t n = 0;
    const double until = t_seconds() + T_SERVE_S;
    s->line[0] = 0;
    while (n < sizeof s->line - 1 && t_seconds() < until) {
        struct pollfd p = {s->out, POLLIN, 0};
        if (poll(&p, 1, 1000) < 1) continue;
        ssize_t got = read(s->out, s->line + n, 1);
        if (got <= 0) return false;
        if (s->line[n] == '\n') {
            s->line[n] = 0;
            const char *at = strstr(s->line, "http://");
            assert_non_null(at);
            snprintf(s->url, sizeof s->url, "%.*s", (int)strcspn(at, " "), at);
            return true;
        }
        s->line[++n] = 0;
    }
    fail_msg("the server said nothing in %d s", T_SERVE_S);
    return false;
}

static inline void t_serve_show_log(const t_serve *s)
{
    char cmd[512];
    snprintf(cmd, sizeof cmd, "tail -n 40 '%s' >&2", s->log);
    if (system(cmd)) fprintf(stderr, "(no log)\n");
}

static inline void t_serve_start(t_serve *s, const char *model, const char *const *more)
{
    t_serve_spawn(s, model, more);
    if (!t_serve_ready(s)) {
        t_serve_show_log(s);
        fail_msg("the server did not start");
    }
}

/* Wait for its end; the exit status, 128 + a signal's number. */
static inline int t_serve_wait(t_serve *s)
{
    int status = 0;
    const double until = t_seconds() + T_SERVE_S;
    pid_t got;
    while (!(got = waitpid(s->pid, &status, WNOHANG)) && t_seconds() < until) usleep(5000);
    if (!got) {
        t_serve_show_log(s);
        kill(-s->pid, SIGKILL);
        kill(s->pid, SIGKILL);
        fail_msg("the server did not end in %d s", T_SERVE_S);
    }
    s->pid = 0;
    if (s->out >= 0) close(s->out);
    s->out = -1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static inline int t_serve_stop(t_serve *s)
{
    kill(s->pid, SIGTERM);
    return t_serve_wait(s);
}

/* All processes of it are gone; orphans are collected. */
static inline void t_serve_no_children(void)
{
    const double until = t_seconds() + 20;
    pid_t got;
    while ((got = waitpid(-1, NULL, WNOHANG)) >= 0 && t_seconds() < until)
        if (!got) usleep(5000);
    if (got >= 0) fail_msg("processes of the server are left after 20 s");
}

static inline void t_serve_close(t_serve *s)
{
    if (s->pid > 0) {
        kill(s->pid, SIGKILL);
        t_serve_wait(s);
        t_serve_no_children();
    }
    t_rmdir(s->base);
}

/* ---- HTTP ---- */

static inline size_t t_reply_body(char *data, size_t one, size_t n, void *self)
{
    t_reply *r = self;
    (void)one;
    char *more = realloc(r->body, r->size + n + 1);
    if (!more) return 0;
    memcpy(more + r->size, data, n);
    r->body = more;
    r->body[r->size += n] = 0;
    return n;
}

static inline size_t t_reply_header(char *data, size_t one, size_t n, void *self)
{
    t_reply *r = self;
    const size_t used = strlen(r->headers);
    (void)one;
    if (used + n < sizeof r->headers) memcpy(r->headers + used, data, n), r->headers[used + n] = 0;
    return n;
}

static inline void t_reply_free(t_reply *r)
{
    free(r->body);
    memset(r, 0, sizeof *r);
}

/* One request. type: of the body, NULL for none; mime: a form instead (taken over); header: one
 * more line, or NULL. r->code 0: no answer. */
static inline void t_http_all(t_reply *r, const char *base, const char *method, const char *path,
                              const char *type, const char *body, curl_mime *(*mime)(CURL *),
                              const char *header)
{
    CURL *c = curl_easy_init();
    struct curl_slist *list = NULL;
    curl_mime *form = mime ? mime(c) : NULL;
    memset(r, 0, sizeof *r);
    curl_easy_setopt(c, CURLOPT_URL, t_format("%s%s", base, path));
    curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, (long)T_SERVE_S);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, t_reply_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, r);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, t_reply_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, r);
    if (!strcmp(method, "HEAD")) curl_easy_setopt(c, CURLOPT_NOBODY, 1L);
    if (form) curl_easy_setopt(c, CURLOPT_MIMEPOST, form);
    else if (body) {
        list = curl_slist_append(list, t_format("Content-Type: %s", type ? type : ""));
        curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE, (long)strlen(body));
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, body);
    }
    if (form) curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
    if (header) list = curl_slist_append(list, header);
    if (list) curl_easy_setopt(c, CURLOPT_HTTPHEADER, list);
    if (!curl_easy_perform(c)) curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &r->code);
    curl_slist_free_all(list);
    curl_mime_free(form);
    curl_easy_cleanup(c);
}

static inline void t_http(t_reply *r, const t_serve *s, const char *method, const char *path)
{
    t_http_all(r, s->url, method, path, NULL, NULL, NULL, NULL);
}

/* The body as JSON; the caller's. */
static inline json_t *t_reply_json(const t_reply *r)
{
    json_error_t e;
    json_t *o = json_loadb(r->body ? r->body : "", r->size, 0, &e);
    if (!o) fail_msg("HTTP %ld, and no JSON: %.300s", r->code, r->body ? r->body : "");
    return o;
}

/* A text of the body, as JSON: "status", "error.code". */
static inline const char *t_reply_text(const t_reply *r, const char *path)
{
    static char out[8][600];
    static int next;
    char *o = out[next++ % 8];
    json_t *root = t_reply_json(r), *at = root;
    char names[128];
    snprintf(names, sizeof names, "%s", path);
    for (char *name = strtok(names, "."); name; name = strtok(NULL, "."))
        at = json_object_get(at, name);
    if (json_is_string(at)) snprintf(o, sizeof out[0], "%s", json_string_value(at));
    else {
        char *text = at ? json_dumps(at, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
        snprintf(o, sizeof out[0], "%s", text ? text : "(absent)");
        free(text);
    }
    json_decref(root);
    return o;
}

/* ---- jobs ---- */

/* What the next form holds: names and values; a value that begins with '@' is a file. */
static const char *const *t_form_fields;

/* One more field; a value that begins with '@' is a file. */
static inline void t_form_add(curl_mime *m, const char *name, const char *value)
{
    curl_mimepart *p = curl_mime_addpart(m);
    curl_mime_name(p, name);
    if (*value == '@') curl_mime_filedata(p, value + 1);
    else curl_mime_data(p, value, CURL_ZERO_TERMINATED);
}

static inline curl_mime *t_form_make(CURL *c)
{
    curl_mime *m = curl_mime_init(c);
    for (const char *const *f = t_form_fields; *f; f += 2) t_form_add(m, f[0], f[1]);
    return m;
}

/* fields end with NULL. */
static inline void t_post(t_reply *r, const t_serve *s, const char *const *fields,
                          const char *header)
{
    t_form_fields = fields;
    t_http_all(r, s->url, "POST", "/v1/videos", NULL, NULL, t_form_make, header);
}

/* A job of the tiny model that ends as it should; its id in one of eight static buffers. */
static inline const char *t_submit(const t_serve *s, const char *seed, const char *steps)
{
    static char ids[8][64];
    static int next;
    char *id = ids[next++ % 8];
    t_reply r;
    const char *const fields[] = {
        "prompt", "a cat", "input_reference", "@" T_IMAGE, "size", "48x32",
        "frames", "9",     "steps",           steps,       "seed", seed,
        NULL};
    t_post(&r, s, fields, NULL);
    if (r.code != 200) fail_msg("POST: HTTP %ld %s", r.code, r.body ? r.body : "(no answer)");
    snprintf(id, 64, "%s", t_reply_text(&r, "id"));
    t_reply_free(&r);
    return id;
}

/* The job's status, or "error.code" if it failed. */
static inline const char *t_status(const t_serve *s, const char *id)
{
    t_reply r;
    t_http(&r, s, "GET", t_format("/v1/videos/%s", id));
    const char *status = r.code == 200 ? t_reply_text(&r, "status") : t_format("HTTP %ld", r.code);
    if (!strcmp(status, "failed")) status = t_reply_text(&r, "error.code");
    t_reply_free(&r);
    return status;
}

/* Wait until it has ended; how. */
static inline const char *t_wait(const t_serve *s, const char *id)
{
    const double until = t_seconds() + T_SERVE_S;
    for (;;) {
        const char *status = t_status(s, id);
        if (strcmp(status, "queued") && strcmp(status, "in_progress")) return status;
        if (t_seconds() > until) {
            t_serve_show_log(s);
            fail_msg("%s is %s after %d s", id, status, T_SERVE_S);
        }
        usleep(20000);
    }
}

#endif
