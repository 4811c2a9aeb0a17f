/* bench_serve.c - a server under load, on the loopback: latencies, its share of a core, its memory.
 *
 *   1  CLIENTS clients, a connection each; together they send JOBS jobs, RATE a second, each with a
 *      picture of 1 MB, and each client asks for one of its jobs every second. The pipeline is busy
 *      with them meanwhile (9 frames of 96 x 64, 4 steps of the tiny model).
 *   2  the same polling while others misbehave from another address: heads of a byte a second,
 *      bodies of 10 GB, connections that do nothing, damaged multipart, requests with two lengths
 *   3  READERS readers of event streams of a job that waits, and nothing else
 *   4  4 jobs of the demo model: through the server, by `sluice run --jobs`, and their denoising
 *      alone, in turn
 *   5  the server's memory over MEMORY_S seconds of small jobs that come and expire: with a small
 *      picture, then with one of 1 MB
 * All of them, or those that the arguments name (make bench K=serve PARTS="1 3"). Programs from
 * $SLUICE_BIN (default bin). The figures are of this machine, which also runs the clients. */
#include "tests/t_serve.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>

enum { CLIENTS = 100, JOBS = 1000, RATE = 20, READERS = 100, SAMPLES = 1 << 17, IDLE_S = 20 };
enum { BATCH = 4, ROUNDS = 3, MEMORY_S = 300, WINDOW = 8 };

static t_serve s;
static char picture[256]; /* "@FILE" */

typedef struct {
    atomic_int count;
    double at[SAMPLES];
} samples;
static samples posts, gets, hostile_gets;
static atomic_int refused, failed, accepted;
static atomic_bool over;

static void add(samples *x, double seconds)
{
    const int i = atomic_fetch_add(&x->count, 1);
    if (i < SAMPLES) x->at[i] = seconds;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(samples *x, double q)
{
    const int n = atomic_load(&x->count);
    if (!n) return NAN;
    qsort(x->at, (size_t)n, sizeof x->at[0], by_size);
    return x->at[(int)(q * (n - 1))] * 1e3;
}

static double print(const char *what, samples *x)
{
    const double p99 = quantile(x, 0.99);
    printf("  %-34s %6d   p50 %7.2f ms   p99 %7.2f ms   most %7.2f ms\n", what,
           atomic_load(&x->count), quantile(x, 0.5), p99, quantile(x, 1));
    return p99;
}

/* CPU seconds and resident bytes of the server's own process. */
static void usage(double *cpu, double *mb)
{
    unsigned long u = 0, k = 0;
    long pages = 0;
    FILE *f = fopen(t_format("/proc/%d/stat", (int)s.pid), "r");
    if (f &&
        fscanf(f, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &u, &k) != 2)
        u = k = 0;
    if (f) fclose(f);
    f = fopen(t_format("/proc/%d/statm", (int)s.pid), "r");
    if (f && fscanf(f, "%*d %ld", &pages) != 1) pages = 0;
    if (f) fclose(f);
    *cpu = (double)(u + k) / (double)sysconf(_SC_CLK_TCK);
    *mb = (double)pages * (double)sysconf(_SC_PAGESIZE) * 1e-6;
}

/* A PPM's worth of noise as PNG: pictures do not get smaller than this one's megabyte. */
static void make_picture(void)
{
    snprintf(picture, sizeof picture, "@%s/picture.png", s.base);
    if (system(t_format("head -c 1050000 /dev/urandom | ffmpeg -v error -f rawvideo -pix_fmt rgb24 "
                        "-s 700x500 -i - -frames:v 1 -y %s",
                        picture + 1)))
        fail_msg("no picture");
}

/* ---- clients ---- */

typedef struct {
    CURL *c;
    char id[64];
    int number;
} client;

static long go(client *k, const char *path, curl_mime *form, t_reply *r)
{
    long code = 0;
    memset(r, 0, sizeof *r);
    char url[256];
    snprintf(url, sizeof url, "%s%s", s.url, path);
    curl_easy_setopt(k->c, CURLOPT_URL, url);
    if (form) curl_easy_setopt(k->c, CURLOPT_MIMEPOST, form);
    else curl_easy_setopt(k->c, CURLOPT_HTTPGET, 1L);
    curl_easy_setopt(k->c, CURLOPT_WRITEDATA, r);
    if (!curl_easy_perform(k->c)) curl_easy_getinfo(k->c, CURLINFO_RESPONSE_CODE, &code);
    return code;
}

typedef struct {
    const char *size, *frames, *steps, *picture;
} work;

static void post_one(client *k, const work *w, int job)
{
    const char *const fields[][2] = {{"prompt", "a cat"},   {"size", w->size},
                                     {"frames", w->frames}, {"steps", w->steps},
                                     {"guidance", "1"},     {"input_reference", w->picture}};
    curl_mime *m = curl_mime_init(k->c);
    char seed[16];
    t_reply r;
    snprintf(seed, sizeof seed, "%d", job);
    for (int i = 0; i < 6; i++) t_form_add(m, fields[i][0], fields[i][1]);
    t_form_add(m, "seed", seed);
    const double t0 = t_seconds();
    const long code = go(k, "/v1/videos", m, &r);
    add(&posts, t_seconds() - t0);
    json_t *o = code == 200 ? json_loadb(r.body, r.size, 0, NULL) : NULL;
    const char *id = json_string_value(json_object_get(o, "id"));
    if (id) snprintf(k->id, sizeof k->id, "%s", id), atomic_fetch_add(&accepted, 1);
    else if (code == 429) atomic_fetch_add(&refused, 1);
    else atomic_fetch_add(&failed, 1);
    json_decref(o);
    t_reply_free(&r);
    curl_mime_free(m);
}

static void get_one(client *k, samples *to)
{
    char path[128];
    t_reply r;
    snprintf(path, sizeof path, "/v1/videos/%s", k->id);
    const double t0 = t_seconds();
    const long code = go(k, path, NULL, &r);
    add(to, t_seconds() - t0);
    if (code != 200) atomic_fetch_add(&failed, 1);
    t_reply_free(&r);
}

static void open_client(client *k)
{
    k->c = curl_easy_init();
    curl_easy_setopt(k->c, CURLOPT_TIMEOUT, 60L);
    curl_easy_setopt(k->c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(k->c, CURLOPT_PROXY, "");
    curl_easy_setopt(k->c, CURLOPT_WRITEFUNCTION, t_reply_body);
}

static void wait_until(double t)
{
    const double left = t - t_seconds();
    if (left > 0) usleep((useconds_t)(left * 1e6));
}

static double begun;
static samples *get_into = &gets;
static bool submitting = true;

static void *be_client(void *arg)
{
    const work w = {"96x64", "9", "4", picture};
    client *k = arg;
    const double own = (double)k->number / CLIENTS;
    open_client(k);
    for (int round = 0; !atomic_load(&over); round++) {
        /* every fifth second a job, each client in its own: CLIENTS / 5 = RATE a second */
        if (submitting && (round + k->number) % (CLIENTS / RATE) == 0) {
            const int job = round / (CLIENTS / RATE) * CLIENTS + k->number;
            if (job >= JOBS) break;
            wait_until(begun + round + own);
            post_one(k, &w, job);
        }
        wait_until(begun + round + 0.5 + own);
        if (*k->id) get_one(k, get_into);
    }
    curl_easy_cleanup(k->c);
    return NULL;
}

static client all[CLIENTS];

static void start_clients(pthread_t threads[CLIENTS])
{
    begun = t_seconds();
    atomic_store(&over, false);
    for (int i = 0; i < CLIENTS; i++) {
        all[i].number = i;
        if (pthread_create(&threads[i], NULL, be_client, &all[i])) fail_msg("no thread");
    }
}

static void join(pthread_t threads[CLIENTS])
{
    for (int i = 0; i < CLIENTS; i++) pthread_join(threads[i], NULL);
}

/* ---- misbehaviour, from 127.0.0.2 ---- */

static int dial_from_elsewhere(void)
{
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002)},
                       to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)atoi(strrchr(s.url, ':') + 1)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval t = {2, 0};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    if (bind(fd, (struct sockaddr *)&from, sizeof from) ||
        connect(fd, (struct sockaddr *)&to, sizeof to)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* A head of a byte a second. */
static void *be_slow(void *arg)
{
    int fd[50];
    (void)arg;
    for (int i = 0; i < 50; i++) fd[i] = dial_from_elsewhere();
    while (!atomic_load(&over)) {
        for (int i = 0; i < 50; i++)
            if (fd[i] < 0 || send(fd[i], "G", 1, MSG_NOSIGNAL) != 1) {
                if (fd[i] >= 0) close(fd[i]);
                fd[i] = dial_from_elsewhere();
            }
        sleep(1);
    }
    for (int i = 0; i < 50; i++)
        if (fd[i] >= 0) close(fd[i]);
    return NULL;
}

/* What is sent again and again on new connections; `endless` goes on with zeros. */
static void repeat(const char *head, bool endless)
{
    static const char zeros[65536];
    char answer[1024];
    while (!atomic_load(&over)) {
        int fd = dial_from_elsewhere();
        if (fd >= 0 && send(fd, head, strlen(head), MSG_NOSIGNAL) > 0) {
            for (int i = 0; endless && i < 256; i++)
                if (send(fd, zeros, sizeof zeros, MSG_NOSIGNAL) <= 0) break;
            if (recv(fd, answer, sizeof answer, 0) < 0) usleep(1000);
        }
        if (fd >= 0) close(fd);
        usleep(20000);
    }
}

static void *be_huge(void *arg)
{
    (void)arg;
    repeat("POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
           "Content-Length: 10737418240\r\n\r\n",
           true);
    return NULL;
}

static void *be_malformed(void *arg)
{
    (void)arg;
    repeat("POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; "
           "boundary=xx\r\nContent-Length: 60\r\n\r\n--xx\r\nContent-Disposition: form-data; "
           "name=\"pro--xx--xx--xx",
           false);
    return NULL;
}

static void *be_doubtful(void *arg)
{
    (void)arg;
    repeat("POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: "
           "chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
           false);
    return NULL;
}

/* As many connections as there may be, and more. */
static void *be_many(void *arg)
{
    enum { MANY = 10000 };
    int *fd = calloc(MANY, sizeof *fd);
    (void)arg;
    for (int i = 0; fd && i < MANY && !atomic_load(&over); i++) {
        fd[i] = dial_from_elsewhere();
        if (fd[i] < 0) usleep(1000);
    }
    while (!atomic_load(&over)) usleep(100000);
    for (int i = 0; fd && i < MANY; i++)
        if (fd[i] > 0) close(fd[i]);
    free(fd);
    return NULL;
}

/* ---- the parts ---- */

static void under_load(void)
{
    pthread_t threads[CLIENTS];
    double cpu0, cpu1, mb0, mb1;
    usage(&cpu0, &mb0);
    const double t0 = t_seconds();
    start_clients(threads);
    join(threads);
    usage(&cpu1, &mb1);
    const double took = t_seconds() - t0;
    printf("1  %d clients, %d jobs with a picture of 1 MB, %d a second, pipeline busy (%.0f s)\n",
           CLIENTS, JOBS, RATE, took);
    print("POST (goal: p99 60 ms)", &posts);
    print("GET (goal: p99 10 ms)", &gets);
    printf("  accepted %d, 429 %d, failed %d; server %.1f %% of a core, %.1f MB then %.1f MB\n",
           atomic_load(&accepted), atomic_load(&refused), atomic_load(&failed),
           100 * (cpu1 - cpu0) / took, mb0, mb1);
}

static void poll_for(double seconds, samples *to)
{
    pthread_t threads[CLIENTS];
    submitting = false;
    get_into = to;
    start_clients(threads);
    sleep((unsigned)seconds);
    atomic_store(&over, true);
    join(threads);
}

static void among_hostile(void)
{
    void *(*const kinds[])(void *) = {be_slow,      be_huge,     be_huge,
                                      be_malformed, be_doubtful, be_many};
    pthread_t bad[6], good[CLIENTS];
    static samples calm;
    poll_for(10, &calm);
    submitting = false;
    get_into = &hostile_gets;
    atomic_store(&over, false);
    for (int i = 0; i < 6; i++) pthread_create(&bad[i], NULL, kinds[i], NULL);
    sleep(2);
    start_clients(good);
    sleep(20);
    atomic_store(&over, true);
    join(good);
    for (int i = 0; i < 6; i++) pthread_join(bad[i], NULL);
    printf("2  %d clients that poll, without and with others that misbehave\n", CLIENTS);
    const double a = print("GET, calm", &calm), b = print("GET, beside them", &hostile_gets);
    printf("  p99 %.2f times as long (goal: at most twice)\n", b / a);
}

static size_t drop(char *data, size_t one, size_t n, void *self)
{
    (void)data, (void)one, (void)self;
    return n;
}

static void idle_readers(void)
{
    CURLM *multi = curl_multi_init();
    CURL *c[READERS];
    int running = 0;
    double cpu0, cpu1, mb;
    /* of a job that waits behind a long one (serve.ahead = 1): main's */
    for (int i = 0; i < READERS; i++) {
        c[i] = curl_easy_init();
        curl_easy_setopt(c[i], CURLOPT_URL, t_format("%s/v1/videos/%s/events", s.url, all[0].id));
        curl_easy_setopt(c[i], CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(c[i], CURLOPT_PROXY, "");
        curl_easy_setopt(c[i], CURLOPT_WRITEFUNCTION, drop);
        curl_multi_add_handle(multi, c[i]);
    }
    for (const double until = t_seconds() + 2; t_seconds() < until;) {
        curl_multi_perform(multi, &running);
        curl_multi_poll(multi, NULL, 0, 50, NULL);
    }
    usage(&cpu0, &mb);
    const double t0 = t_seconds();
    while (t_seconds() < t0 + IDLE_S) {
        curl_multi_perform(multi, &running);
        curl_multi_poll(multi, NULL, 0, 500, NULL);
    }
    usage(&cpu1, &mb);
    printf(
        "3  %d readers of event streams, nothing happens: %d still read; server %.2f %% of a core "
        "(goal: below 5), %.1f MB\n",
        READERS, running, 100 * (cpu1 - cpu0) / IDLE_S, mb);
    for (int i = 0; i < READERS; i++) {
        curl_multi_remove_handle(multi, c[i]);
        curl_easy_cleanup(c[i]);
    }
    curl_multi_cleanup(multi);
}

/* ---- throughput ---- */

/* Seconds of steps that a report tells. */
static double steps_of(const json_t *report)
{
    json_t *step;
    double sum = 0;
    size_t i;
    json_array_foreach(json_object_get(report, "steps"), i, step) sum +=
        json_number_value(json_object_get(step, "seconds"));
    return sum;
}

/* `count` jobs of the demo model by one `sluice run`: seconds of the program, of all steps. */
static double run_here(int count, double *steps)
{
    char name[240];
    *steps = 0;
    snprintf(name, sizeof name, "%s/jobs.jsonl", s.base);
    FILE *f = fopen(name, "w");
    assert_non_null(f);
    for (int i = 0; i < count; i++)
        fprintf(f, "{\"output\": \"%s/%d.mp4\", \"json\": \"%s/%d.json\"}\n", s.base, i, s.base, i);
    fclose(f);
    const double t0 = t_seconds();
    assert_int_equal(system(t_format("%s/sluice run --model models/demo --conf %s --prompt 'pan "
                                     "left' --image " T_IMAGE " --seed 1 --jobs %s --quiet",
                                     t_bin(), s.conf, name)),
                     0);
    const double took = t_seconds() - t0;
    for (int i = 0; i < count; i++) {
        json_t *report = json_load_file(t_format("%s/%d.json", s.base, i), 0, NULL);
        *steps += steps_of(report);
        json_decref(report);
    }
    return took;
}

/* The same through the server, from the first POST to the last end. */
static double run_there(int count, double *steps)
{
    const char *const fields[] = {"prompt", "pan left", "input_reference", "@" T_IMAGE, "seed",
                                  "1",      NULL};
    char ids[BATCH][64];
    t_reply r;
    *steps = 0;
    const double t0 = t_seconds();
    for (int i = 0; i < count; i++) {
        t_post(&r, &s, fields, NULL);
        snprintf(ids[i], sizeof ids[i], "%s", t_reply_text(&r, "id"));
        t_reply_free(&r);
    }
    for (int i = 0; i < count; i++) t_wait(&s, ids[i]);
    const double took = t_seconds() - t0;
    for (int i = 0; i < count; i++) {
        t_http(&r, &s, "GET", t_format("/v1/videos/%s/report", ids[i]));
        json_t *report = t_reply_json(&r);
        *steps += steps_of(report);
        json_decref(report);
        t_reply_free(&r);
    }
    return took;
}

/* A server that waits beside a run takes nothing of it (part 3). */
static void throughput(void)
{
    static samples alone, here, there, here_steps, there_steps;
    double steps;
    if (access("models/demo/model_index.json", R_OK)) return;
    t_serve_conf(&s, "run: { log = \"warn\"; };\n");
    t_serve_start(&s, "models/demo", NULL);
    run_there(1, &steps); /* warms up */
    for (int i = 0; i < ROUNDS; i++) {
        run_here(1, &steps);
        add(&alone, steps * BATCH);
        add(&here, run_here(BATCH, &steps));
        add(&here_steps, steps);
        add(&there, run_there(BATCH, &steps));
        add(&there_steps, steps);
    }
    assert_int_equal(t_serve_stop(&s), 0);
    const double a = quantile(&alone, 0.5) / 1e3, h = quantile(&here, 0.5) / 1e3,
                 t = quantile(&there, 0.5) / 1e3;
    printf("4  %d jobs of the demo model, medians of %d\n", BATCH, ROUNDS);
    printf("  denoising alone (%d times the steps of one job by itself) %7.2f s\n", BATCH, a);
    printf("  sluice run --jobs, start and loading too  %7.2f s  %+.1f %%  steps %7.2f s\n", h,
           100 * (h / a - 1), quantile(&here_steps, 0.5) / 1e3);
    printf("  server, first POST to last end            %7.2f s  %+.1f %%  steps %7.2f s\n", t,
           100 * (t / a - 1), quantile(&there_steps, 0.5) / 1e3);
}

/* ---- memory ---- */

/* Its job has ended, and its video is fetched. */
static bool is_through(client *k)
{
    char path[128];
    t_reply r;
    snprintf(path, sizeof path, "/v1/videos/%s", k->id);
    if (go(k, path, NULL, &r) != 200) fail_msg("%s: %s", path, r.body ? r.body : "no answer");
    const char *status = t_reply_text(&r, "status");
    const bool done = !strcmp(status, "completed");
    if (!strcmp(status, "failed")) fail_msg("%s", r.body);
    t_reply_free(&r);
    if (!done) return false;
    strcat(path, "/content");
    if (go(k, path, NULL, &r) != 200) atomic_fetch_add(&failed, 1);
    t_reply_free(&r);
    return true;
}

static void small_jobs(const char *what, const char *reference)
{
    const work w = {"32x32", "1", "1", reference};
    client window[WINDOW] = {0};
    double cpu, mb, next = 0;
    int jobs = 0;
    printf("  %s: MB after so many jobs:", what);
    for (int i = 0; i < WINDOW; i++) open_client(&window[i]);
    const double t0 = t_seconds();
    for (; t_seconds() < t0 + MEMORY_S; jobs++) {
        client *k = &window[jobs % WINDOW];
        while (*k->id && !is_through(k)) usleep(5000);
        post_one(k, &w, jobs);
        if (t_seconds() < t0 + next) continue;
        usage(&cpu, &mb);
        printf(" %d: %.1f", jobs, mb);
        fflush(stdout);
        next += MEMORY_S / 10.0;
    }
    for (int i = 0; i < WINDOW; i++) {
        while (!is_through(&window[i])) usleep(5000);
        curl_easy_cleanup(window[i].c);
    }
    sleep(10); /* the last expire */
    usage(&cpu, &mb);
    printf(" %d: %.1f\n", jobs, mb);
}

static void memory(void)
{
    t_serve_conf(&s, "run: { log = \"warn\"; };\nserve: { keep_s = 1; };\n");
    t_serve_start(&s, T_MODEL, NULL);
    printf("5  the server's resident memory, %d s each\n", MEMORY_S);
    small_jobs("a small picture", "@" T_IMAGE);
    small_jobs("one of 1 MB", picture);
    assert_int_equal(t_serve_stop(&s), 0);
}

/* ---- */

static void load_and_hostile(bool hostile)
{
    t_serve_conf(&s, "run: { log = \"warn\"; };\nserve: { queue = 5000; };\n");
    t_serve_start(&s, T_MODEL, NULL);
    under_load();
    if (hostile) among_hostile();
    assert_int_equal(t_serve_stop(&s), 0);
}

static void waiting_readers(void)
{
    t_reply r;
    t_serve_conf(&s, "run: { log = \"warn\"; };\nserve: { ahead = 1; };\n");
    t_serve_start(&s, T_MODEL, NULL);
    snprintf(all[1].id, sizeof all[1].id, "%s", t_submit(&s, "1", "1000"));
    snprintf(all[0].id, sizeof all[0].id, "%s", t_submit(&s, "2", "1"));
    idle_readers();
    for (int i = 1; i >= 0; i--) {
        t_http(&r, &s, "DELETE", t_format("/v1/videos/%s", all[i].id));
        t_reply_free(&r);
    }
    assert_int_equal(t_serve_stop(&s), 0);
}

int main(int argc, char **argv)
{
    struct rlimit files;
    bool part[6] = {0};
    for (int i = 1; i < argc; i++) {
        const int n = atoi(argv[i]);
        if (n < 1 || n > 5) {
            fprintf(stderr, "bench_serve: part is %s, want 1 to 5\n", argv[i]);
            return 2;
        }
        part[n] = true;
    }
    for (int i = 1; i < 6 && argc < 2; i++) part[i] = true;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    t_serve_open(&s);
    make_picture();
    if (part[1] || part[2]) load_and_hostile(part[2]); /* 2 polls jobs of 1 */
    if (part[3]) waiting_readers();
    if (part[4]) throughput();
    if (part[5]) memory();
    t_serve_close(&s);
    return 0;
}
