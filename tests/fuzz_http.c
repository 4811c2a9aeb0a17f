/* fuzz_http.c - any bytes over a connection to the real server: its HTTP, its handlers, its journal
 * and its folders. Whatever comes, the connection ends, GET /health is answered after it, and each
 * job's folder has a row and each row a folder.
 *
 * The first byte picks the server (without tokens, with them) and the socket (TCP, UNIX); the rest
 * is what is sent. Bytes below ' ' stand for what a mutation hardly finds (see expand). There is no
 * pipeline: jobs stay queued, and one has ended. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <libavutil/base64.h>

#include "common/clock.h"
#include "common/log.h"
#include "stages/job/defaults.h"
#include "stages/job/files.h"
#include "stages/serve/http.h"
#include "stages/serve/routes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MODEL "tests/golden/tiny-i2v/model"
#define PICTURE "tests/golden/pictures/palette2bit.png"
#define TOKEN "0123456789abcdef0123456789abcdef"
#define WAIT_MS 10000 /* for anything: what takes longer hangs */
#define FIRST_MS 10   /* for an input's answer to begin: what comes later is not looked at */
#define MORE_MS 3     /* for more of it */
#define MOST_ROWS 8   /* then the state begins anew */

typedef struct {
    sl_server server;
    sl_http *http;
    char queued[SL_JOURNAL_ID], ended[SL_JOURNAL_ID];
} target;

static target targets[2];
static char folder[64];
static char picture[1024], picture64[2048];
static size_t picture_bytes;

static void must(sl_code rc, const sl_err *err)
{
    if (!rc) return;
    fprintf(stderr, "fuzz_http: %s\n", err->msg);
    abort();
}

/* ---- two servers ---- */

static void close_all(void)
{
    for (int i = 0; i < 2; i++) {
        sl_server *s = &targets[i].server;
        sl_http_close(&targets[i].http);
        sl_server_close(s);
    }
    sl_remove_tree(folder);
}

static void settle(sl_conf *c)
{
    sl_conf_defaults(c);
    c->serve.queue = 6;
    c->serve.queue_per_token = 4;
    c->serve.body_bytes = 16384;
    c->serve.bodies_bytes = 262144;
    c->serve.reserve_bytes = 0;
    c->limits.prompt_bytes = 2000;
}

static void open_target(target *t, bool tokens)
{
    sl_server *s = &t->server;
    sl_err err = {0};
    char dir[96], path[SL_PATH];
    snprintf(dir, sizeof dir, "%s/%d", folder, tokens);
    sl_server_init(s);
    s->lanes = 1;
    settle(&s->conf);
    if (tokens) {
        s->tokens.at = calloc(1, sizeof *s->tokens.at);
        if (!s->tokens.at) abort();
        s->tokens.count = 1;
        strcpy(s->tokens.at->name, "ana");
        strcpy(s->tokens.at->token, TOKEN);
    }
    must(sl_absolute_path(path, MODEL, &err), &err);
    must(sl_model_open(&s->model, path, &err), &err);
    must(sl_request_read_defaults(&s->defaults, s->model.dir, &err), &err);
    strcpy(s->name, "model");
    must(sl_server_open(s, &err), &err);
    must(sl_server_open_state(s, dir, &(sl_server_shares){0}, 0, &err), &err);
    atomic_store(&s->began, true);
    must(sl_http_open(&t->http, s, sl_route_find, "127.0.0.1:0", &err), &err);
}

static void open_all(void)
{
    FILE *f = fopen(PICTURE, "r");
    if (!f) abort();
    picture_bytes = fread(picture, 1, sizeof picture, f);
    fclose(f);
    av_base64_encode(picture64, sizeof picture64, (uint8_t *)picture, (int)picture_bytes);
    signal(SIGPIPE, SIG_IGN);
    sl_log_open("fuzz", SL_LOG_ERROR);
    /* in memory where there is some: files are written and synced often */
    snprintf(folder, sizeof folder, "%s/fuzz-http-%d",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm", (int)getpid());
    if (mkdir(folder, 0700)) abort();
    for (int i = 0; i < 2; i++) open_target(&targets[i], i);
    atexit(close_all);
}

/* ---- their jobs ---- */

static void add_job(target *t, char id[SL_JOURNAL_ID], bool ended)
{
    static const char *const FILES[] = {"video.mp4",        "report.json", "trace.json",
                                        "log.jsonl",        "preview.png", "job.json",
                                        "noise.safetensors"};
    static unsigned number;
    sl_server *s = &t->server;
    sl_err err = {0};
    sl_journal_job job = {.created_s = 1}, claimed;
    sl_request asked = {0};
    char same[SL_JOURNAL_ID];
    snprintf(id, SL_JOURNAL_ID, "video_%032x", ++number);
    strcpy(job.id, id);
    if (s->tokens.count) strcpy(job.owner, s->tokens.at->name);
    must(sl_job_init(&asked.spec, &err), &err);
    asked.spec.dump = ended;
    job.request = sl_video_request(s, &asked, NULL);
    sl_job_free(&asked.spec);
    must(sl_store_make(&s->store, id, &err), &err);
    for (size_t i = 0; ended && i < sizeof FILES / sizeof *FILES; i++)
        must(sl_store_write(&s->store, id, FILES[i], picture64, 100 * i, &err), &err);
    must(sl_journal_submit(s->journal, &job, "", NULL, same, &err), &err);
    free(job.request);
    if (!ended) return;
    must(sl_journal_claim(s->journal, 2, &claimed, &err), &err);
    sl_journal_job_free(&claimed);
    must(sl_journal_finish(s->journal, id, SL_JOURNAL_COMPLETED, SL_OK, "", 10, 3, &err), &err);
}

typedef struct {
    char ids[64][SL_JOURNAL_ID];
    int count;
} rows;

static void read_rows(target *t, rows *all)
{
    sl_journal_job jobs[64];
    sl_err err = {0};
    bool more;
    must(sl_journal_list(t->server.journal, NULL, "", 64, false, jobs, &all->count, &more, &err),
         &err);
    if (more) abort();
    for (int i = 0; i < all->count; i++) {
        json_t *o = sl_video_json(&t->server, &jobs[i]);
        if (!o) abort();
        json_decref(o);
        strcpy(all->ids[i], jobs[i].id);
        sl_journal_job_free(&jobs[i]);
    }
}

static void empty(target *t)
{
    sl_server *s = &t->server;
    sl_err err = {0};
    sl_journal_state before;
    char id[SL_JOURNAL_ID];
    rows all;
    read_rows(t, &all);
    for (int i = 0; i < all.count; i++) {
        must(sl_journal_cancel(s->journal, all.ids[i], NULL, 1, &before, &err), &err);
        must(sl_journal_remove(s->journal, all.ids[i], NULL, 1, &err), &err);
        sl_store_remove(&s->store, all.ids[i]);
    }
    if (sl_journal_expire(s->journal, 0, 0, INT64_MAX, 1, id, &err) != SL_BUSY) abort();
}

static void has_row(void *self, const char *id)
{
    target *t = self;
    if (sl_journal_knows(t->server.journal, id)) return;
    fprintf(stderr, "fuzz_http: folder %s has no row\n", id);
    abort();
}

static void check_state(target *t)
{
    sl_journal_counts n;
    char path[SL_PATH];
    sl_err err = {0};
    rows all;
    read_rows(t, &all);
    for (int i = 0; i < all.count; i++) {
        must(sl_store_path(path, &t->server.store, all.ids[i], "", &err), &err);
        if (!access(path, F_OK)) continue;
        fprintf(stderr, "fuzz_http: row %s has no folder\n", all.ids[i]);
        abort();
    }
    sl_store_each(&t->server.store, has_row, t);
    must(sl_journal_count(t->server.journal, &n, &err), &err);
    if (n.jobs[SL_JOURNAL_QUEUED] > t->server.conf.serve.queue) abort();
    if (all.count > MOST_ROWS) empty(t);
    if (!sl_journal_knows(t->server.journal, t->ended)) {
        empty(t); /* for the claim */
        add_job(t, t->ended, true);
    }
    if (!sl_journal_knows(t->server.journal, t->queued)) add_job(t, t->queued, false);
}

/* ---- what is sent ---- */

typedef struct {
    char *at;
    size_t size, room;
} text;

static void put(text *to, const void *bytes, size_t size)
{
    if (to->size + size > to->room) {
        to->room = 2 * (to->size + size) + 4096;
        if (!(to->at = realloc(to->at, to->room))) abort();
    }
    memcpy(to->at + to->size, bytes, size);
    to->size += size;
}

static void puts_to(text *to, const char *s)
{
    put(to, s, strlen(s));
}

static void expand(target *t, text *to, const uint8_t *data, size_t size);

/* The body as chunks, as long as the bytes \16 are apart. */
static void put_chunks(target *t, text *to, const uint8_t *data, size_t size)
{
    char line[32];
    puts_to(to, "Transfer-Encoding: chunked\r\n\r\n");
    while (size) {
        const uint8_t *cut = memchr(data, 14, size);
        const size_t n = cut ? (size_t)(cut - data) : size;
        text piece = {0};
        expand(t, &piece, data, n);
        snprintf(line, sizeof line, "%zx\r\n", piece.size);
        if (piece.size) {
            puts_to(to, line);
            put(to, piece.at, piece.size);
            puts_to(to, "\r\n");
        }
        free(piece.at);
        data += n + !!cut;
        size -= n + !!cut;
    }
    puts_to(to, "0\r\n\r\n");
}

static void put_body(target *t, text *to, const uint8_t *data, size_t size)
{
    char line[48];
    text body = {0};
    expand(t, &body, data, size);
    snprintf(line, sizeof line, "Content-Length: %zu\r\n\r\n", body.size);
    puts_to(to, line);
    if (body.size) put(to, body.at, body.size);
    free(body.at);
}

/*  \1 \2  ids of the job that waits, of the one that has ended
 *  \3     the end of a request's first line, and its host      \4 a token
 *  \5 \6  types: JSON, multipart with the boundary "bb"
 *  \7     the rest up to \b is a body, its length before it    \17 likewise, in chunks
 *  \20 \21 a picture's bytes, in base64   \22 the beginning of a part   \23 an empty line */
static void expand(target *t, text *to, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        const uint8_t *end = memchr(data + i + 1, '\b', size - i - 1);
        const size_t n = end ? (size_t)(end - data) - i - 1 : size - i - 1;
        switch (data[i]) {
        case 1: puts_to(to, t->queued); break;
        case 2: puts_to(to, t->ended); break;
        case 3: puts_to(to, " HTTP/1.1\r\nHost: localhost\r\n"); break;
        case 4: puts_to(to, "Authorization: Bearer " TOKEN "\r\n"); break;
        case 5: puts_to(to, "Content-Type: application/json\r\n"); break;
        case 6: puts_to(to, "Content-Type: multipart/form-data; boundary=bb\r\n"); break;
        case 7:
            put_body(t, to, data + i + 1, n);
            i += n + !!end;
            break;
        case 15:
            put_chunks(t, to, data + i + 1, n);
            i += n + !!end;
            break;
        case 16: put(to, picture, picture_bytes); break;
        case 17: puts_to(to, picture64); break;
        case 18: puts_to(to, "--bb\r\nContent-Disposition: form-data; name="); break;
        case 19: puts_to(to, "\r\n\r\n"); break;
        default: put(to, &data[i], 1);
        }
    }
}

/* ---- the connection ---- */

static int connect_local(target *t)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%s/sluice.sock", t->server.store.dir);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&at, sizeof at)) abort();
    return fd;
}

/* From another address every thousand times: a port rests for a minute after a connection. */
static int connect_tcp(target *t)
{
    static uint32_t count;
    const struct linger reset = {1, 0};
    const int one = 1;
    struct sockaddr_in to = {.sin_family = AF_INET}, from = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)atoi(strrchr(sl_http_url(t->http), ':') + 1));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + count++ / 1000 % 65536);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&from, sizeof from) ||
        connect(fd, (struct sockaddr *)&to, sizeof to)) {
        perror("fuzz_http: connect");
        abort();
    }
    return fd;
}

static int connect_to(target *t, bool local)
{
    const int fd = local ? connect_local(t) : connect_tcp(t);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

/* Send it, and read the answers, their beginning in answer[room]: to their end, or until nothing
 * more comes. (libmicrohttpd may miss that a client has only stopped to send, until the deadline;
 * and a stream of events has no end.) */
static void exchange(int fd, const char *bytes, size_t size, char *answer, size_t room,
                     int first_ms)
{
    char got[8192];
    size_t sent = 0, kept = 0;
    *answer = 0;
    for (;;) {
        struct pollfd p = {fd, (short)(POLLIN | (sent < size ? POLLOUT : 0)), 0};
        if (!poll(&p, 1, sent < size ? WAIT_MS : kept ? MORE_MS : first_ms)) {
            if (sent == size) return;
            fprintf(stderr, "fuzz_http: nothing is read of a request in %d ms\n", WAIT_MS);
            abort();
        }
        if (p.revents & POLLOUT) {
            ssize_t n = send(fd, bytes + sent, size - sent, MSG_NOSIGNAL);
            if (n > 0) sent += (size_t)n;
            else if (errno != EAGAIN) sent = size; /* the server does not want more */
            if (sent == size) shutdown(fd, SHUT_WR);
        }
        if (!(p.revents & (POLLIN | POLLHUP | POLLERR))) continue;
        ssize_t n = recv(fd, got, sizeof got, 0);
        if (n < 0 && errno == EAGAIN) continue;
        if (n <= 0) return;
        if (kept < room - 1) {
            const size_t more = (size_t)n < room - 1 - kept ? (size_t)n : room - 1 - kept;
            memcpy(answer + kept, got, more);
            answer[kept += more] = 0;
        }
        if (memmem(got, (size_t)n, "text/event-stream", 17)) return;
    }
}

static void is_well(target *t, bool local)
{
    static const char ASK[] =
        "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    char answer[512];
    int fd = connect_to(t, local);
    exchange(fd, ASK, sizeof ASK - 1, answer, sizeof answer, WAIT_MS);
    close(fd);
    if (strncmp(answer, "HTTP/1.1 200 ", 13) || !strstr(answer, "{\"status\":\"ok\"}")) {
        fprintf(stderr, "fuzz_http: GET /health: %s\n", answer);
        abort();
    }
}

/* All connections are over; streams find out when they have something to tell. */
static void quiet(target *t)
{
    const int64_t until = sl_now_ns() + WAIT_MS * 1000000ll;
    while (sl_http_connections(t->http)) {
        sl_events_tell(t->server.events, NULL, SL_EVENT_ALIVE);
        sl_http_tick(t->http);
        usleep(50);
        if (sl_now_ns() < until) continue;
        fprintf(stderr, "fuzz_http: %d connections do not end\n", sl_http_connections(t->http));
        abort();
    }
}

/* A good job is taken: nothing has used up what the server may hold. */
static void takes_jobs(target *t)
{
    static const char JOB[] =
        "POST /v1/videos\3\4\5\7{\"prompt\":\"a\",\"size\":\"32x32\",\"frames\":1,"
        "\"steps\":1,\"input_reference\":\"data:image/png;base64,\21\"}";
    char answer[512];
    text job = {0};
    empty(t);
    expand(t, &job, (const uint8_t *)JOB, sizeof JOB - 1);
    int fd = connect_to(t, false);
    exchange(fd, job.at, job.size, answer, sizeof answer, WAIT_MS);
    close(fd);
    free(job.at);
    quiet(t);
    if (strncmp(answer, "HTTP/1.1 200 ", 13)) {
        fprintf(stderr, "fuzz_http: POST /v1/videos: %s\n", answer);
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static unsigned runs;
    char answer[8192];
    text all = {0};
    if (size < 2) return 0;
    if (!*folder) open_all();
    target *t = &targets[*data & 1];
    const bool local = *data & 2;
    if (runs++ % 512 < 2) takes_jobs(&targets[runs & 1]);
    for (int i = 0; i < 2; i++) check_state(&targets[i]);
    expand(t, &all, data + 1, size - 1);
    int fd = connect_to(t, local);
    exchange(fd, all.at, all.size, answer, sizeof answer, FIRST_MS);
    if (getenv("FUZZ_SHOW")) printf("---- %.*s\n==== %s\n", (int)all.size, all.at, answer);
    close(fd);
    /* but a picture of the video, which is none */
    if (strstr(answer, "HTTP/1.1 500 ") && !memmem(all.at, all.size, "variant", 7)) {
        fprintf(stderr, "fuzz_http: %s\n", answer);
        abort();
    }
    free(all.at);
    is_well(t, local);
    quiet(t);
    check_state(t);
    return 0;
}
