/* test_remote.c - the client's connection to a server that misbehaves: cut, silent, endless, rude
 * or redirected answers, busy ones, and what is done about them. takes: 10 s. limit: 240 s.
 * run: waits
 *
 * The server is a thread of the test with a plain socket: each connection plays the next act of a
 * script. The good ways are tested with the real server (test_client.c). */
#include "tests/t.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "common/clock.h"
#include "stages/cli/follow.h"
#include "stages/cli/remote.h"
#include "stages/cli/sse.h"
#include "stages/cli/terminal.h"

#define ACTS 16

/* What one connection gets: bytes, then an end. */
typedef struct {
    const char *text; /* NULL: nothing */
    enum { CLOSE, RESET, HANG, FLOOD } then;
    bool slowly; /* a byte at a time */
} act;

typedef struct {
    int listener, port;
    pthread_t thread;
    act acts[ACTS];
    int count;
    /* what came, per connection */
    int served;
    char requests[ACTS][20000];
    int open[ACTS];
    volatile bool stop;
} script;

/* Headers, and as much of a body as they announce. */
static void read_request(int fd, char *to, size_t room)
{
    size_t n = 0;
    while (n < room - 1) {
        struct pollfd p = {fd, POLLIN, 0};
        if (poll(&p, 1, 5000) < 1) break;
        ssize_t k = read(fd, to + n, room - 1 - n);
        if (k <= 0) break;
        n += (size_t)k;
        to[n] = 0;
        const char *end = strstr(to, "\r\n\r\n"), *length = strcasestr(to, "content-length:");
        if (!end) continue;
        if (strcasestr(to, "expect: 100") && n == (size_t)(end + 4 - to))
            if (write(fd, "HTTP/1.1 100 Continue\r\n\r\n", 25) != 25) break;
        if (!length || n >= (size_t)(end + 4 - to) + (size_t)atoi(length + 15)) break;
    }
    to[n] = 0;
}

static void play(script *s, int fd, const act *a)
{
    static char zeros[65536];
    const char *t = a->text ? a->text : "";
    size_t n = strlen(t);
    for (size_t i = 0; i < n;) {
        ssize_t k = send(fd, t + i, a->slowly ? 1 : n - i, MSG_NOSIGNAL);
        if (k <= 0) return;
        i += (size_t)k;
        if (a->slowly) usleep(200);
    }
    memset(zeros, 'x', sizeof zeros);
    while (a->then == FLOOD && !s->stop && send(fd, zeros, sizeof zeros, MSG_NOSIGNAL) > 0)
        continue;
}

static void *serve(void *arg)
{
    script *s = arg;
    while (!s->stop && s->served < s->count) {
        struct pollfd p = {s->listener, POLLIN, 0};
        if (poll(&p, 1, 20) < 1) continue;
        int fd = accept(s->listener, NULL, NULL), i = s->served;
        const act *a = &s->acts[i];
        if (fd < 0) continue;
        read_request(fd, s->requests[i], sizeof s->requests[i]);
        s->open[i] = fd;
        s->served++;
        play(s, fd, a);
        if (a->then == HANG) continue; /* closed at the end */
        if (a->then == RESET) {
            struct linger l = {1, 0};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
        }
        close(fd);
        s->open[i] = -1;
    }
    return NULL;
}

/* Start a server with these acts, the last of which has no end, and connect to it. */
static script *begin(sl_remote *r, const act *acts, int count)
{
    script *s = calloc(1, sizeof *s);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof at;
    char url[64];
    sl_err err = {0};
    assert_non_null(s);
    s->count = count;
    memcpy(s->acts, acts, (size_t)count * sizeof *acts);
    for (int i = 0; i < ACTS; i++) s->open[i] = -1;
    s->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(s->listener, 16), 0);
    assert_int_equal(getsockname(s->listener, (struct sockaddr *)&at, &size), 0);
    s->port = ntohs(at.sin_port);
    assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
    snprintf(url, sizeof url, "http://127.0.0.1:%d/", s->port);
    T_OK(sl_remote_open(r, url, "", "", &err));
    r->quiet = true;
    r->retry_s = 20;
    return s;
}

/* Every act was played, and the client asked for no more. */
static void end(script *s, sl_remote *r)
{
    sl_remote_close(r);
    s->stop = true;
    pthread_join(s->thread, NULL);
    for (int i = 0; i < ACTS; i++)
        if (s->open[i] >= 0) close(s->open[i]);
    assert_int_equal(s->served, s->count);
    struct pollfd p = {s->listener, POLLIN, 0};
    poll(&p, 1, 0);
    assert_false(p.revents & POLLIN);
    close(s->listener);
    free(s);
}

#define BEGIN(...)                                                                                 \
    const act acts_[] = {__VA_ARGS__};                                                             \
    sl_remote r;                                                                                   \
    sl_err err = {0};                                                                              \
    script *s = begin(&r, acts_, (int)(sizeof acts_ / sizeof *acts_))
#define JSON_HEAD "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
#define OK_ACT                                                                                     \
    {                                                                                              \
        JSON_HEAD "Content-Length: 12\r\nConnection: close\r\n\r\n{\"yes\":true}", CLOSE, 0        \
    }
#define BUSY(code, more)                                                                           \
    {                                                                                              \
        "HTTP/1.1 " code "\r\n" more "Content-Type: application/json\r\nConnection: close\r\n\r\n" \
        "{\"error\":{\"message\":\"the queue is full\",\"type\":\"rate_limit_error\"}}",           \
            CLOSE, 0                                                                               \
    }

static sl_code ask(sl_remote *r, sl_err *err)
{
    json_t *o = NULL;
    sl_code rc = sl_remote_call(r, "GET", "/v1/x", NULL, 0, NULL, &o, err);
    if (!rc) assert_true(json_is_true(json_object_get(o, "yes")));
    json_decref(o);
    return rc;
}

/* ---- calls ---- */

static void an_answer(void **state)
{
    (void)state;
    BEGIN(OK_ACT);
    snprintf(r.token, sizeof r.token, "secret-1");
    T_OK(ask(&r, &err));
    assert_int_equal(r.status, 200);
    T_SAYS(s->requests[0], "GET /v1/x HTTP/1.1\r\n");
    T_SAYS(s->requests[0], "Authorization: Bearer secret-1\r\n");
    end(s, &r);
}

static void an_answer_byte_by_byte(void **state)
{
    (void)state;
    BEGIN({JSON_HEAD "Content-Length: 12\r\nConnection: close\r\n\r\n{\"yes\":true}", CLOSE, true});
    T_OK(ask(&r, &err));
    end(s, &r);
}

static void a_body_that_is_cut(void **state)
{
    (void)state;
    BEGIN({JSON_HEAD "Content-Length: 100\r\n\r\n{\"yes\":", CLOSE, 0}, OK_ACT);
    T_OK(ask(&r, &err));
    end(s, &r);
}

static void a_body_that_is_cut_and_no_patience(void **state)
{
    (void)state;
    BEGIN({JSON_HEAD "Content-Length: 100\r\n\r\n{\"yes\":", CLOSE, 0});
    r.retry_s = 0;
    T_CODE(ask(&r, &err), SL_GONE);
    T_SAYS(err.msg, "the connection was lost");
    assert_int_equal(sl_remote_exit(&r, SL_GONE), SL_EXIT_NO_SERVER);
    end(s, &r);
}

static void a_connection_that_is_reset(void **state)
{
    (void)state;
    BEGIN({NULL, RESET, 0}, {NULL, CLOSE, 0}, OK_ACT);
    T_OK(ask(&r, &err));
    end(s, &r);
}

static void no_server(void **state)
{
    (void)state;
    BEGIN(OK_ACT);
    T_OK(ask(&r, &err));
    close(s->listener);
    s->listener = socket(AF_INET, SOCK_STREAM, 0); /* of nobody */
    r.retry_s = 0;
    T_CODE(ask(&r, &err), SL_GONE);
    T_SAYS(err.msg, "no server at http://127.0.0.1:");
    T_SAYS(err.msg, "Connection refused");
    end(s, &r);
}

static void a_server_that_was_never_there_is_not_waited_for(void **state)
{
    sl_remote r;
    sl_err err = {0};
    (void)state;
    T_OK(sl_remote_open(&r, "http://127.0.0.1:1", "", "", &err));
    r.retry_s = 1e6;
    T_CODE(ask(&r, &err), SL_GONE);
    sl_remote_close(&r);
}

static void a_silent_server(void **state)
{
    (void)state;
    BEGIN({JSON_HEAD "Content-Length: 12\r\n\r\n{\"yes", HANG, 0});
    r.idle_s = 1;
    T_CODE(ask(&r, &err), SL_TIMEOUT);
    T_SAYS(err.msg, "nothing moved for 1 s");
    assert_int_equal(sl_remote_exit(&r, SL_TIMEOUT), SL_EXIT_NO_SERVER);
    end(s, &r);
}

static void a_deadline(void **state)
{
    (void)state;
    BEGIN({NULL, HANG, 0});
    r.until_ns = sl_now_ns() + 300000000;
    T_CODE(ask(&r, &err), SL_TIMEOUT);
    T_SAYS(err.msg, "--timeout");
    assert_int_equal(sl_remote_exit(&r, SL_TIMEOUT), SL_EXIT_TIMEOUT);
    end(s, &r);
}

static void an_interrupt(void **state)
{
    (void)state;
    BEGIN({NULL, HANG, 0});
    const uint64_t one = 1;
    r.interrupt_fd = eventfd(0, EFD_CLOEXEC);
    assert_int_equal(write(r.interrupt_fd, &one, 8), 8);
    /* the server has the request before the client looks at its signals */
    sl_code rc = ask(&r, &err);
    assert_int_equal(rc, SL_CANCELLED);
    for (int i = 0; i < 500 && !s->served; i++) usleep(10000);
    close(r.interrupt_fd);
    end(s, &r);
}

static void endless_answers(void **state)
{
    (void)state;
    BEGIN({"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n", FLOOD, 0},
          {"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\nContent-Length: 200000\r\nConnection: "
           "close\r\n\r\n",
           FLOOD, 0},
          {"HTTP/1.1 200 OK\r\nX: ", FLOOD, 0});
    sl_buffer b = {0};
    T_CODE(sl_remote_get(&r, "/x", 1 << 20, &b, &err), SL_FORMAT);
    T_SAYS(err.msg, "the answer has more than 1048576 bytes");
    assert_true(b.n <= 1 << 20);
    r.retry_s = 0;
    T_CODE(sl_remote_get(&r, "/x", 1 << 20, &b, &err), SL_GONE);
    T_SAYS(err.msg, "answers 500 Oh (text/plain)");
    assert_true(sl_remote_get(&r, "/x", 1 << 20, &b, &err) != SL_OK); /* a header without end */
    sl_buffer_free(&b);
    end(s, &r);
}

static void pages_that_are_no_json(void **state)
{
    (void)state;
    BEGIN({"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nConnection: "
           "close\r\n\r\n<html>\r\n\r\nno",
           CLOSE, 0},
          {"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: "
           "close\r\n\r\n<html>",
           CLOSE, 0},
          {"SSH-2.0-OpenSSH_9\r\n", CLOSE, 0});
    T_CODE(ask(&r, &err), SL_GONE);
    T_SAYS(err.msg, "answers 502 Bad Gateway (text/html)");
    T_CODE(ask(&r, &err), SL_FORMAT);
    r.retry_s = 0;
    assert_true(ask(&r, &err) != SL_OK);
    end(s, &r);
}

static void the_servers_words(void **state)
{
    (void)state;
    BEGIN({"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
           "{\"error\":{\"message\":\"width is 7,\\nwant \\u001b[31m16\",\"x\":1}}",
           CLOSE, 0},
          {"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", CLOSE, 0},
          {"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n"
           "{\"error\":\"a string\"}",
           CLOSE, 0});
    T_CODE(ask(&r, &err), SL_ARG);
    assert_string_equal(err.msg, "width is 7,?want ?[31m16");
    assert_int_equal(sl_remote_exit(&r, SL_ARG), SL_EXIT_REFUSED);
    T_CODE(ask(&r, &err), SL_ARG);
    T_SAYS(err.msg, "answers 401 Unauthorized");
    T_CODE(ask(&r, &err), SL_ARG);
    T_SAYS(err.msg, "answers 404 Not Found");
    end(s, &r);
}

static void a_redirect_gets_no_token(void **state)
{
    (void)state;
    script *other;
    const act none[] = {OK_ACT};
    sl_remote r2;
    char redirect[256];
    other = begin(&r2, none, 1);
    snprintf(redirect, sizeof redirect,
             "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/v1/x\r\nContent-Length: "
             "0\r\nConnection: close\r\n\r\n",
             other->port);
    BEGIN({redirect, CLOSE, 0});
    snprintf(r.token, sizeof r.token, "secret-2");
    T_CODE(ask(&r, &err), SL_ARG);
    T_SAYS(err.msg, "answers 302 Found, at http://127.0.0.1:");
    T_SAYS(err.msg, "not followed");
    assert_int_equal(other->served, 0);
    T_OK(ask(&r2, &err)); /* its only connection is this one */
    assert_null(strstr(other->requests[0], "secret-2"));
    end(s, &r);
    end(other, &r2);
}

static void a_busy_server_is_asked_again(void **state)
{
    (void)state;
    BEGIN(BUSY("429 Too Many Requests", "Retry-After: 1\r\n"), BUSY("503 Service Unavailable", ""),
          OK_ACT);
    const int64_t t0 = sl_now_ns();
    T_OK(ask(&r, &err));
    assert_true(sl_now_ns() - t0 >= 1000000000); /* not before it said */
    end(s, &r);
}

static void a_busy_server_and_no_patience(void **state)
{
    (void)state;
    BEGIN(BUSY("429 Too Many Requests", "Retry-After: 7\r\n"),
          BUSY("503 Service Unavailable", "Retry-After: 7\r\n"));
    r.retry_s = 0;
    T_CODE(ask(&r, &err), SL_BUSY);
    assert_string_equal(err.msg, "the queue is full (again in 7 s; --retry-s waits)");
    assert_int_equal(sl_remote_exit(&r, SL_BUSY), SL_EXIT_REFUSED);
    r.retry_s = 5; /* it would be too early */
    T_CODE(ask(&r, &err), SL_BUSY);
    assert_int_equal(sl_remote_exit(&r, SL_BUSY), SL_EXIT_NO_SERVER);
    end(s, &r);
}

/* ---- forms ---- */

static void a_form_is_sent_again_only_with_a_key(void **state)
{
    (void)state;
    const sl_remote_part parts[] = {{"prompt", "a; \"b\"\r\n--c", NULL},
                                    {"input_reference", NULL,
                                     "tests/golden/tiny-i2v/"
                                     "i2v-96x64x9.png"}};
    BEGIN({NULL, CLOSE, 0}, OK_ACT, {NULL, CLOSE, 0});
    json_t *o = NULL;
    T_OK(sl_remote_call(&r, "POST", "/v1/videos", parts, 2, "key-1", &o, &err));
    json_decref(o);
    for (int i = 0; i < 2; i++) {
        T_SAYS(s->requests[i], "POST /v1/videos HTTP/1.1\r\n");
        T_SAYS(s->requests[i], "Idempotency-Key: key-1\r\n");
        T_SAYS(s->requests[i], "name=\"prompt\"\r\n\r\na; \"b\"\r\n--c\r\n");
        T_SAYS(s->requests[i], "name=\"input_reference\"; filename=\"input_reference\"\r\n");
        T_SAYS(s->requests[i], "Content-Type: image/png\r\n");
    }
    T_CODE(sl_remote_call(&r, "POST", "/v1/videos", parts, 1, NULL, &o, &err), SL_GONE);
    end(s, &r);
}

static void a_file_that_is_gone(void **state)
{
    (void)state;
    BEGIN(OK_ACT);
    const sl_remote_part part = {"noise", NULL, "tests/no-such-file"};
    assert_true(sl_remote_call(&r, "POST", "/v1/videos", &part, 1, NULL, NULL, &err) != SL_OK);
    T_OK(ask(&r, &err));
    end(s, &r);
}

/* ---- files ---- */

static char file[300];

static void check_file(const char *want)
{
    char got[64] = "";
    FILE *f = fopen(file, "rb");
    if (!want) {
        assert_null(f);
        return;
    }
    assert_non_null(f);
    got[fread(got, 1, sizeof got - 1, f)] = 0;
    fclose(f);
    assert_string_equal(got, want);
}

static void check_no_temporaries(void)
{
    char dir[300], command[700];
    snprintf(dir, sizeof dir, "%s", file);
    *strrchr(dir, '/') = 0;
    snprintf(command, sizeof command, "test -z \"$(ls '%s' | grep -F .tmp-)\"", dir);
    assert_int_equal(system(command), 0);
}

static int make_dir(void **state)
{
    *state = strdup(t_tmpdir());
    snprintf(file, sizeof file, "%s/video.mp4", (char *)*state);
    return 0;
}

static int remove_dir(void **state)
{
    t_rmdir(*state);
    free(*state);
    return 0;
}

#define CUT                                                                                        \
    {                                                                                              \
        "HTTP/1.1 200 OK\r\nETag: \"e1\"\r\nContent-Length: 10\r\n\r\n01234", CLOSE, 0             \
    }

static void a_file_is_taken_up_where_it_was_cut(void **state)
{
    (void)state;
    BEGIN(CUT,
          {"HTTP/1.1 206 Partial Content\r\nETag: \"e1\"\r\nContent-Range: bytes "
           "5-9/10\r\nContent-Length: 5\r\nConnection: close\r\n\r\n567",
           CLOSE, 0},
          {"HTTP/1.1 206 Partial Content\r\nETag: \"e1\"\r\nContent-Range: bytes "
           "8-9/10\r\nContent-Length: 2\r\nConnection: close\r\n\r\n89",
           CLOSE, 0});
    T_OK(sl_remote_file(&r, "/v", file, 10, &err));
    check_file("0123456789");
    check_no_temporaries();
    assert_null(strstr(s->requests[0], "Range"));
    T_SAYS(s->requests[1], "Range: bytes=5-\r\nIf-Range: \"e1\"\r\n");
    T_SAYS(s->requests[2], "Range: bytes=8-\r\n");
    end(s, &r);
}

static void a_file_that_is_another_by_now_begins_anew(void **state)
{
    (void)state;
    BEGIN(CUT,
          {"HTTP/1.1 200 OK\r\nETag: \"e2\"\r\nContent-Length: 4\r\nConnection: close\r\n\r\nabcd",
           CLOSE, 0});
    T_OK(sl_remote_file(&r, "/v", file, 0, &err));
    check_file("abcd");
    end(s, &r);
}

static void a_range_that_nobody_asked_for(void **state)
{
    (void)state;
    BEGIN(CUT, {"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 4-9/10\r\nContent-Length: "
                "6\r\nConnection: close\r\n\r\n456789",
                CLOSE, 0});
    T_CODE(sl_remote_file(&r, "/v", file, 10, &err), SL_FORMAT);
    check_file(NULL);
    check_no_temporaries();
    end(s, &r);
}

static void a_file_of_another_size(void **state)
{
    (void)state;
    BEGIN({"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nshort", CLOSE, 0},
          {"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", FLOOD, 0});
    T_CODE(sl_remote_file(&r, "/v", file, 10, &err), SL_FORMAT);
    T_SAYS(err.msg, "has 5 bytes, want 10");
    T_CODE(sl_remote_file(&r, "/v", file, 1000000, &err), SL_FORMAT);
    T_SAYS(err.msg, "has more than 1000000 bytes");
    check_file(NULL);
    check_no_temporaries();
    end(s, &r);
}

static void a_file_that_cannot_be_written(void **state)
{
    (void)state;
    BEGIN({"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nabcd", CLOSE, 0});
    T_CODE(sl_remote_file(&r, "/v", "/nowhere/at/all", 0, &err), SL_SYS);
    T_OK(sl_remote_file(&r, "/v", file, 0, &err));
    end(s, &r);
}

/* ---- events ---- */

#define VIDEO(status, more) "{\"id\":\"video_1\",\"status\":\"" status "\",\"progress\":1" more "}"
#define OBJECT(status)                                                                             \
    {                                                                                              \
        JSON_HEAD "Connection: close\r\n\r\n" VIDEO(status, ""), CLOSE, 0                          \
    }
#define EVENTS "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"

static sl_code follow(sl_remote *r, sl_err *err)
{
    sl_progress p = {.quiet = true};
    json_t *video = NULL;
    sl_code rc = sl_follow(r, &p, 1, "video_1", &video, err);
    if (!rc) assert_string_equal(json_string_value(json_object_get(video, "status")), "completed");
    json_decref(video);
    return rc;
}

static void a_stream_to_its_end(void **state)
{
    (void)state;
    /* the connection stays: the last state is the end */
    BEGIN(OBJECT("queued"),
          {EVENTS ": hello\n\nevent: state\r\ndata: " VIDEO(
               "in_progress", "") "\r\n\r\n"
                                  "event: step\ndata: {\"stage\":\"denoise\",\n"
                                  "data: \"step\":1,\"steps\":2,\"seconds\":0.1}\n\n"
                                  "event: step\ndata: rubbish\n\nevent: unheard\ndata: of\n\n"
                                  "event: state\rdata: " VIDEO("completed", "") "\r\r",
           HANG, true});
    T_OK(follow(&r, &err));
    T_SAYS(s->requests[0], "GET /v1/videos/video_1 HTTP/1.1\r\n");
    T_SAYS(s->requests[1], "GET /v1/videos/video_1/events HTTP/1.1\r\n");
    end(s, &r);
}

static void a_stream_that_is_lost_is_taken_up_again(void **state)
{
    (void)state;
    BEGIN(OBJECT("queued"),
          {EVENTS "event: state\ndata: " VIDEO("in_progress", "") "\n\n", RESET, 0},
          {NULL, RESET, 0}, BUSY("503 Service Unavailable", ""), OBJECT("in_progress"),
          {EVENTS "event: state\ndata: " VIDEO("completed", "") "\n\n", CLOSE, 0});
    T_OK(follow(&r, &err));
    end(s, &r);
}

static void where_events_do_not_come_questions_do(void **state)
{
    (void)state;
    BEGIN(
        OBJECT("queued"),
        {"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>", CLOSE, 0},
        OBJECT("queued"),
        {"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", CLOSE, 0},
        OBJECT("in_progress"), OBJECT("completed"));
    T_OK(follow(&r, &err));
    end(s, &r);
}

static void a_job_that_is_not_there(void **state)
{
    (void)state;
    BEGIN({"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n"
           "{\"error\":{\"message\":\"there is no such\"}}",
           CLOSE, 0});
    T_CODE(follow(&r, &err), SL_ARG);
    end(s, &r);
}

static void objects_that_are_none(void **state)
{
    (void)state;
    BEGIN({JSON_HEAD "Connection: close\r\n\r\n{\"id\":\"../x\",\"status\":\"queued\"}", CLOSE, 0},
          {JSON_HEAD "Connection: close\r\n\r\n{\"id\":\"video_1\",\"status\":\"asleep\"}", CLOSE,
           0});
    T_CODE(follow(&r, &err), SL_FORMAT);
    T_SAYS(err.msg, "id is \"../x\"");
    T_CODE(follow(&r, &err), SL_FORMAT);
    T_SAYS(err.msg, "status is \"asleep\"");
    end(s, &r);
}

/* ---- where a server is ---- */

static void places(void **state)
{
    const char *dir = *state;
    char path[400], text[100];
    sl_remote r;
    sl_err err = {0};
#define WHERE(place, code, ...)                                                                    \
    do {                                                                                           \
        T_CODE(sl_remote_open(&r, place, "", "", &err), code);                                     \
        const char *says_[] = {__VA_ARGS__};                                                       \
        for (size_t i_ = 0; i_ < sizeof says_ / sizeof *says_; i_++) T_SAYS(err.msg, says_[i_]);   \
        sl_remote_close(&r);                                                                       \
    } while (0)
    WHERE("ftp://x", SL_ARG, "scheme ftp", "want http or https");
    WHERE("file:///etc/passwd", SL_ARG, "scheme file");
    WHERE("http://me:secret@host", SL_ARG, "--token-file");
    WHERE("http://host/?a", SL_ARG, "query");
    WHERE("http://[", SL_ARG, "is no URL");
    WHERE("127.0.0.1:80", SL_ARG, "want http://127.0.0.1:80");
    WHERE("README.md", SL_ARG, "neither a state folder nor a socket");
    T_OK(sl_remote_open(&r, "https://Host:9/under//", "", "", &err));
    assert_string_equal(r.url, "https://Host:9/under");
    assert_false(r.direct || r.clear);
    sl_remote_close(&r);
    T_OK(sl_remote_open(&r, "http://example.org", "", "", &err));
    assert_true(r.clear && !r.direct);
    sl_remote_close(&r);
    T_OK(sl_remote_open(&r, dir, "", "", &err));
    snprintf(path, sizeof path, "%s/sluice.sock", dir);
    assert_string_equal(r.socket, path);
    r.retry_s = 0;
    T_CODE(ask(&r, &err), SL_GONE);
    snprintf(text, sizeof text, "No such file or directory (sluice serve starts one)");
    T_SAYS(err.msg, text);
    sl_remote_close(&r);
    memset(path, 'a', 200);
    snprintf(path + 200, 10, "/b.sock");
    WHERE(path, SL_ARG, "a socket's path has 207 bytes, want at most 107");
    /* by the environment */
    setenv("SLUICE_SERVER", "http://a.b:1", 1);
    T_OK(sl_remote_open(&r, "", "", "", &err));
    assert_string_equal(r.url, "http://a.b:1");
    sl_remote_close(&r);
    unsetenv("SLUICE_SERVER");
    setenv("XDG_STATE_HOME", "/state", 1);
    T_OK(sl_remote_open(&r, "", "", "", &err));
    assert_string_equal(r.socket, "/state/sluice/sluice.sock");
    sl_remote_close(&r);
    unsetenv("XDG_STATE_HOME");
}

static void a_socket(void **state)
{
    const char *dir = *state;
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    (void)snprintf(at.sun_path, sizeof at.sun_path, "%s/sluice.sock", dir);
    BEGIN(OK_ACT);
    sl_remote_close(&r);
    close(s->listener);
    s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(s->listener, 4), 0);
    setenv("http_proxy", "http://127.0.0.1:1", 1); /* nobody's business */
    T_OK(sl_remote_open(&r, dir, "", "", &err));
    T_OK(ask(&r, &err));
    unsetenv("http_proxy");
    end(s, &r);
}

static void write_token(const char *path, const char *text, mode_t mode)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(chmod(path, mode), 0);
}

static void token_files(void **state)
{
    char path[400];
    sl_remote r;
    sl_err err = {0};
    snprintf(path, sizeof path, "%s/token", (char *)*state);
#define TOKEN(text, mode, code, says)                                                              \
    do {                                                                                           \
        write_token(path, text, mode);                                                             \
        T_CODE(sl_remote_open(&r, "http://h", path, "", &err), code);                              \
        if (code) T_SAYS(err.msg, says);                                                           \
        else assert_string_equal(r.token, says);                                                   \
        sl_remote_close(&r);                                                                       \
    } while (0)
    TOKEN("abc\n", 0600, SL_OK, "abc");
    TOKEN("  abc.def~x \r\n", 0400, SL_OK, "abc.def~x");
    TOKEN("abc", 0640, SL_ARG, "has mode 0640, want 0600: others may read it");
    TOKEN("abc", 0604, SL_ARG, "want 0600");
    TOKEN(" \n", 0600, SL_ARG, "is empty, want a token");
    TOKEN("two words", 0600, SL_ARG, "one word of visible ASCII");
    TOKEN("line\r\nX-Injected: 1", 0600, SL_ARG, "one word of visible ASCII");
    TOKEN("\xc3\xa9", 0600, SL_ARG, "one word of visible ASCII");
    char large[400];
    memset(large, 'a', sizeof large - 1);
    large[399] = 0;
    TOKEN(large, 0600, SL_ARG, "has more than 255 bytes");
    T_CODE(sl_remote_open(&r, "http://h", "/nowhere/token", "", &err), SL_SYS);
    sl_remote_close(&r);
    T_CODE(sl_remote_open(&r, "http://h", "/dev/null", "", &err), SL_ARG);
    T_SAYS(err.msg, "is no regular file");
    sl_remote_close(&r);
    setenv("SLUICE_TOKEN", "from-here", 1);
    T_OK(sl_remote_open(&r, "http://h", "", "", &err));
    assert_string_equal(r.token, "from-here");
    sl_remote_close(&r);
    assert_string_equal(r.token, "");
    setenv("SLUICE_TOKEN", "a b", 1);
    T_CODE(sl_remote_open(&r, "http://h", "", "", &err), SL_ARG);
    T_SAYS(err.msg, "SLUICE_TOKEN");
    sl_remote_close(&r);
    unsetenv("SLUICE_TOKEN");
}

/* ---- events, taken apart ---- */

typedef struct {
    char text[400];
} heard;

static void hear(void *ctx, const char *event, const char *data, size_t n)
{
    heard *h = ctx;
    assert_int_equal(strlen(data), n);
    snprintf(h->text + strlen(h->text), sizeof h->text - strlen(h->text), "[%s|%s]", event, data);
}

/* However the bytes are cut, the events are the same. */
static void events(void **state)
{
    static const struct {
        const char *in, *out;
    } CASES[] = {
        {"data: a\n\n", "[message|a]"},
        {"\xEF\xBB\xBF"
         "data:a\n\n",
         "[message|a]"},
        {"data:  a\n\n", "[message| a]"},
        {"event: x\r\ndata: 1\r\ndata: 2\r\n\r\n", "[x|1\n2]"},
        {"event: x\rdata: 1\r\rdata: 2\r\r", "[x|1][message|2]"},
        {": comment\n\n:\n\ndata\n\n", "[message|]"},
        {"event: lost\n\ndata: a\n\n", "[message|a]"},
        {"id: 7\nretry: 1\nfoo: bar\nnocolon\ndata: a:b\n\n", "[message|a:b]"},
        {"data: unfinished\n", ""},
        {"data: a\n\n\n\ndata: b\n\n", "[message|a][message|b]"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const size_t n = strlen(CASES[i].in);
        for (size_t cut = 0; cut <= n; cut++) {
            sl_sse s = {0};
            heard h = {""};
            sl_err err = {0};
            T_OK(sl_sse_feed(&s, CASES[i].in, cut, hear, &h, &err));
            T_OK(sl_sse_feed(&s, CASES[i].in + cut, n - cut, hear, &h, &err));
            assert_string_equal(h.text, CASES[i].out);
            sl_sse_free(&s);
        }
    }
}

static void events_without_end(void **state)
{
    sl_sse s = {0};
    heard h = {""};
    sl_err err = {0};
    char piece[4096];
    sl_code rc = SL_OK;
    (void)state;
    memset(piece, 'a', sizeof piece);
    for (int i = 0; i < 1000 && !rc; i++) rc = sl_sse_feed(&s, piece, sizeof piece, hear, &h, &err);
    assert_int_equal(rc, SL_FORMAT);
    T_SAYS(err.msg, "an event's line has more than 1048576 bytes");
    sl_sse_free(&s);
    memcpy(piece, "data: ", 6);
    piece[4095] = '\n';
    rc = SL_OK;
    for (int i = 0; i < 1000 && !rc; i++) rc = sl_sse_feed(&s, piece, sizeof piece, hear, &h, &err);
    assert_int_equal(rc, SL_FORMAT);
    T_SAYS(err.msg, "an event has more than 1048576 bytes");
    sl_sse_free(&s);
}

/* ---- texts on terminals ---- */

static void texts(void **state)
{
    static const struct {
        const char *text;
        int columns;
        const char *want;
    } CASES[] = {
        {"abc", 0, "abc"},
        {"abcdef", 6, "abcdef"},
        {"abcdef", 5, "ab..."},
        {"a\x1b[31mb\nc\x7f", 0, "a?[31mb?c?"},
        {"\xe2\x80\xae"
         "evil",
         0, "?evil"}, /* turns the direction */
        {"\xc2\x9b"
         "1m",
         0, "?1m"},                                                     /* CSI in one byte */
        {"\xe7\x8c\xab\xe7\x8c\xab\xe7\x8c\xab", 5, "\xe7\x8c\xab..."}, /* two columns each */
        {"e\xcc\x81", 1, "e\xcc\x81"},                                  /* an accent has none */
        {"\xff", 0, "?"},
        {"abcdef", 2, ".."},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char *got = NULL;
        size_t n;
        FILE *f = open_memstream(&got, &n);
        sl_print_text(f, CASES[i].text, CASES[i].columns);
        fclose(f);
        assert_string_equal(got, CASES[i].want);
        free(got);
    }
    char s[16];
    sl_format_seconds(s, 0.4);
    assert_string_equal(s, "0 s");
    sl_format_seconds(s, 3600);
    assert_string_equal(s, "60 min");
    sl_format_seconds(s, NAN);
    assert_string_equal(s, "-");
    sl_format_bytes(s, 1234567);
    assert_string_equal(s, "1.23 MB");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer),
        cmocka_unit_test(an_answer_byte_by_byte),
        cmocka_unit_test(a_body_that_is_cut),
        cmocka_unit_test(a_body_that_is_cut_and_no_patience),
        cmocka_unit_test(a_connection_that_is_reset),
        cmocka_unit_test(no_server),
        cmocka_unit_test(a_server_that_was_never_there_is_not_waited_for),
        cmocka_unit_test(a_silent_server),
        cmocka_unit_test(a_deadline),
        cmocka_unit_test(an_interrupt),
        cmocka_unit_test(endless_answers),
        cmocka_unit_test(pages_that_are_no_json),
        cmocka_unit_test(the_servers_words),
        cmocka_unit_test(a_redirect_gets_no_token),
        cmocka_unit_test(a_busy_server_is_asked_again),
        cmocka_unit_test(a_busy_server_and_no_patience),
        cmocka_unit_test(a_form_is_sent_again_only_with_a_key),
        cmocka_unit_test(a_file_that_is_gone),
        cmocka_unit_test_setup_teardown(a_file_is_taken_up_where_it_was_cut, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(a_file_that_is_another_by_now_begins_anew, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(a_range_that_nobody_asked_for, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(a_file_of_another_size, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(a_file_that_cannot_be_written, make_dir, remove_dir),
        cmocka_unit_test(a_stream_to_its_end),
        cmocka_unit_test(a_stream_that_is_lost_is_taken_up_again),
        cmocka_unit_test(where_events_do_not_come_questions_do),
        cmocka_unit_test(a_job_that_is_not_there),
        cmocka_unit_test(objects_that_are_none),
        cmocka_unit_test_setup_teardown(places, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(a_socket, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(token_files, make_dir, remove_dir),
        cmocka_unit_test(events),
        cmocka_unit_test(events_without_end),
        cmocka_unit_test(texts),
    };
    unsetenv("SLUICE_SERVER");
    unsetenv("SLUICE_TOKEN");
    unsetenv("http_proxy");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
