/* t_redis.h - a real Redis, started by the test: on a UNIX socket in a folder of its own, its
 * append-only file beside it.
 *
 * redis-server is looked for on the PATH; Debian has the same program in redis-tools, which starts
 * no service, as redis-check-rdb: it is whichever it is called as. */
#ifndef T_REDIS_H
#define T_REDIS_H

#include "tests/t.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "stages/serve/redis.h"

#define T_REDIS_ARGS 40

typedef struct {
    char dir[256], url[400], socket[300];
    pid_t pid;
    const char *more[T_REDIS_ARGS]; /* settings, as on its command line; ends with NULL */
} t_redis;

static inline bool t_redis_on_path(const char *name, char out[1024])
{
    const char *all = getenv("PATH");
    for (const char *at = all ? all : ""; *at;) {
        const size_t n = strcspn(at, ":");
        snprintf(out, 1024, "%.*s/%s", (int)n, at, name);
        if (!access(out, X_OK)) return true;
        at += n + (at[n] == ':');
    }
    return false;
}

/* false: there is no Redis on this machine. */
static inline bool t_redis_is_there(void)
{
    char program[1024];
    return t_redis_on_path("redis-server", program) || t_redis_on_path("redis-check-rdb", program);
}

static inline void t_redis_spawn(t_redis *r)
{
    char program[1024];
    const char *args[16 + T_REDIS_ARGS] = {
        "redis-server", "--port",        "0",     "--unixsocket", r->socket, "--dir",
        r->dir,         "--save",        "",      "--appendonly", "yes",     "--logfile",
        "redis.log",    "--appendfsync", "always"};
    int n = 15;
    for (int i = 0; r->more[i]; i++) args[n++] = r->more[i];
    if (!t_redis_on_path("redis-server", program)) t_redis_on_path("redis-check-rdb", program);
    fflush(NULL);
    r->pid = fork();
    if (!r->pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execv(program, (char *const *)args);
        _exit(127);
    }
    assert_true(r->pid > 0);
}

/* It answers, to whoever may. */
static inline void t_redis_wait(t_redis *r)
{
    sl_redis_at at;
    sl_err why = {0};
    const double until = 20;
    struct timespec t0, t;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    if (sl_redis_parse(&at, r->url, &why)) fail_msg("%s", why.msg);
    *at.password = 0;
    for (;;) {
        sl_redis *to = NULL;
        redisReply *reply = NULL;
        const char *const ping[] = {"PING"};
        sl_code rc = sl_redis_open(&to, &at, 1000, &why);
        if (rc == SL_OK) rc = sl_redis_ask(to, &reply, 1000, 1, ping, NULL, &why);
        const bool up = !rc && !(reply->type == REDIS_REPLY_ERROR && strstr(reply->str, "LOADING"));
        if (reply) freeReplyObject(reply);
        sl_redis_close(&to);
        if (up) return;
        clock_gettime(CLOCK_MONOTONIC, &t);
        if ((double)(t.tv_sec - t0.tv_sec) > until) fail_msg("redis-server: %s", why.msg);
        usleep(5000);
    }
}

static inline void t_redis_start(t_redis *r)
{
    t_redis_spawn(r);
    t_redis_wait(r);
}

static inline void t_redis_open(t_redis *r)
{
    *r = (t_redis){0};
    snprintf(r->dir, sizeof r->dir, "%s", t_tmpdir());
    snprintf(r->socket, sizeof r->socket, "%s/redis.sock", r->dir);
    snprintf(r->url, sizeof r->url, "unix://%s?db=3", r->socket);
    t_redis_start(r);
}

static inline void t_redis_end(t_redis *r, int signal)
{
    if (r->pid <= 0) return;
    kill(r->pid, SIGCONT);
    kill(r->pid, signal);
    waitpid(r->pid, NULL, 0);
    r->pid = 0;
}

static inline void t_redis_close(t_redis *r)
{
    t_redis_end(r, SIGKILL);
    t_rmdir(r->dir);
}

/* A command of its own, its answer as text: a status, a number, a string; "" none. Static. */
static inline const char *t_redis_say(t_redis *r, int n, const char *const *words)
{
    static char out[4096];
    sl_redis_at at;
    sl_redis *to;
    sl_err why = {0};
    redisReply *reply;
    if (sl_redis_parse(&at, r->url, &why) || sl_redis_open(&to, &at, 5000, &why) ||
        sl_redis_ask(to, &reply, 5000, n, words, NULL, &why))
        fail_msg("%s: %s", words[0], why.msg);
    if (reply->type == REDIS_REPLY_INTEGER) snprintf(out, sizeof out, "%lld", reply->integer);
    else snprintf(out, sizeof out, "%s", reply->str ? reply->str : "");
    freeReplyObject(reply);
    sl_redis_close(&to);
    return out;
}
#define T_REDIS(r, ...)                                                                            \
    t_redis_say((r), (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)),                \
                (const char *const[]){__VA_ARGS__})

#endif
