/* test_serve_kill.c - SIGKILL at random moments, of stages, dispatcher, server, all at once;
 * and a
 * disk that fills: every job that was accepted ends once, with the bytes of an undisturbed
 * server.
 * takes: 11 s. limit: 400 s
 *
 * SLUICE_SOAK=1 makes it 100 kills over 50 jobs from 8 clients; SLUICE_KILLS=few makes it 6
 * over 6.
 * SLUICE_SEED repeats a run's kills, as far as time does. */
#include "tests/t_made.h"

#include <sys/mount.h>

#define JOBS_MOST 64
#define CLIENTS_MOST 8

static t_serve s;
static int jobs = 12, kills = 20, clients = 2;

/* ---- processes ---- */

static void comm_of(pid_t pid, char out[64])
{
    FILE *f = fopen(t_format("/proc/%d/comm", (int)pid), "r");
    out[0] = 0;
    if (!f) return;
    if (!fgets(out, 64, f)) out[0] = 0;
    out[strcspn(out, "\n")] = 0;
    fclose(f);
}

static pid_t parent_of(pid_t pid)
{
    FILE *f = fopen(t_format("/proc/%d/stat", (int)pid), "r");
    int parent = 0;
    if (!f) return 0;
    if (fscanf(f, "%*d (%*[^)]) %*c %d", &parent) != 1) parent = 0;
    fclose(f);
    return parent;
}

/* Is it the server, or does it come of it? */
static bool is_of_server(pid_t pid)
{
    for (int depth = 0; pid > 1 && depth < 8; depth++, pid = parent_of(pid))
        if (pid == s.pid) return true;
    return false;
}

/* A process of the server whose name begins so; 0: none now. */
static pid_t find(const char *name)
{
    DIR *d = opendir("/proc");
    struct dirent *e;
    pid_t found = 0;
    while (!found && (e = readdir(d))) {
        char comm[64];
        const pid_t pid = atoi(e->d_name);
        if (pid < 2) continue;
        comm_of(pid, comm);
        if (!strncmp(comm, name, 15) && is_of_server(pid)) found = pid;
    }
    closedir(d);
    return found;
}

static void kill_everything(void)
{
    pid_t all[64];
    int n = 0;
    DIR *d = opendir("/proc");
    struct dirent *e;
    while ((e = readdir(d)) && n < 64) {
        const pid_t pid = atoi(e->d_name);
        if (pid > 1 && is_of_server(pid)) all[n++] = pid;
    }
    closedir(d);
    for (int i = 0; i < n; i++) kill(all[i], SIGKILL);
}

static void start_again(void)
{
    assert_int_equal(t_serve_wait(&s), 128 + SIGKILL);
    t_serve_start(&s, T_MODEL, NULL);
}

static void kill_one(int which)
{
    static const char *const NAMES[] = {"sluice-text",   "sluice-image", "sluice-denoise",
                                        "sluice-decode", "sluice-mux",   "sluice-dispatch"};
    if (which < 6) {
        const pid_t pid = find(NAMES[which]);
        if (pid) kill(pid, SIGKILL);
    } else {
        if (which == 6) kill(s.pid, SIGKILL);
        else kill_everything();
        start_again();
    }
}

/* ---- clients ---- */

static t_made wanted[JOBS_MOST], got[JOBS_MOST];
static pthread_mutex_t url_lock = PTHREAD_MUTEX_INITIALIZER; /* s.url changes with each start */

/* One request to the server as it is now. The answer's code; 0: nobody answered. */
static long request(const char *method, const char *path, int form, const char *key, t_reply *r)
{
    char url[256];
    CURL *c = curl_easy_init();
    pthread_mutex_lock(&url_lock);
    snprintf(url, sizeof url, "%s%s", s.url, path);
    pthread_mutex_unlock(&url_lock);
    return t_made_request(c, method, url, form < 0 ? NULL : t_made_form(c, form, "4", "9"), key, r);
}

/* Submit job i until it is accepted, under a key of its own: an answer that was lost is no second
 * job. */
static void submit_one(t_made *out, int i)
{
    char key[32];
    const double until = t_seconds() + T_SERVE_S;
    snprintf(key, sizeof key, "job-%d", i);
    for (;;) {
        t_reply r;
        const long code = request("POST", "/v1/videos", i, key, &r);
        json_t *o = code == 200 ? json_loadb(r.body, r.size, 0, NULL) : NULL;
        const char *id = json_string_value(json_object_get(o, "id"));
        if (id) snprintf(out->id, sizeof out->id, "%s", id);
        const bool refused = code && code != 200 && code != 503 && code != 507 && code != 429;
        if (refused) fprintf(stderr, "job %d: HTTP %ld %s\n", i, code, r.body ? r.body : "");
        json_decref(o);
        t_reply_free(&r);
        if (*out->id || refused || t_seconds() > until) return;
        usleep(100000);
    }
}

typedef struct {
    t_made *into;
    int first;
} client;

static void *submit_all(void *arg)
{
    const client *c = arg;
    for (int i = c->first; i < jobs; i += clients) {
        submit_one(&c->into[i], i);
        usleep(50000);
    }
    return NULL;
}

/* Wait for the end of job i; "completed", or what else. */
static const char *end_of(t_made *m)
{
    static char status[64];
    const double until = t_seconds() + T_SERVE_S;
    for (;;) {
        t_reply r;
        const long code = request("GET", t_format("/v1/videos/%s", m->id), -1, NULL, &r);
        snprintf(status, sizeof status, "HTTP %ld", code);
        if (code == 200) snprintf(status, sizeof status, "%.60s", t_reply_text(&r, "status"));
        if (!strcmp(status, "failed"))
            snprintf(status, sizeof status, "%.63s", t_reply_text(&r, "error.message"));
        t_reply_free(&r);
        const bool open_still = !strcmp(status, "queued") || !strcmp(status, "in_progress");
        if (!open_still || t_seconds() > until) return status;
        usleep(30000);
    }
}

static void fetch(t_made *m)
{
    t_reply r;
    assert_int_equal(request("GET", t_format("/v1/videos/%s/content", m->id), -1, NULL, &r), 200);
    m->size = r.size;
    m->hash = t_made_hash(r.body, r.size);
    t_reply_free(&r);
}

/* Every job ended as it should, once; nothing is left of what it took. */
static void check_all(t_made *all)
{
    t_reply r;
    for (int i = 0; i < jobs; i++) {
        if (!*all[i].id) fail_msg("job %d was never accepted", i);
        const char *status = end_of(&all[i]);
        if (strcmp(status, "completed")) {
            t_serve_show_log(&s);
            fail_msg("job %d (%s): %s", i, all[i].id, status);
        }
        fetch(&all[i]);
    }
    int listed = 0;
    char after[80] = "";
    for (bool more = true; more;) {
        assert_int_equal(
            request("GET", t_format("/v1/videos?limit=100&order=asc%s", after), -1, NULL, &r), 200);
        json_t *o = t_reply_json(&r);
        listed += (int)json_array_size(json_object_get(o, "data"));
        more = json_is_true(json_object_get(o, "has_more"));
        snprintf(after, sizeof after, "&after=%s",
                 json_string_value(json_object_get(o, "last_id")));
        json_decref(o);
        t_reply_free(&r);
    }
    assert_int_equal(listed, jobs); /* none twice */
}

static void nothing_is_left(void)
{
    assert_int_equal(t_serve_stop(&s), 0);
    t_serve_no_children();
    assert_int_equal(t_count_files("/dev/shm", "sluice"), 0);
    /* hand-overs, states, temporaries: all gone; the socket too */
    if (!system(t_format("find %s/jobs \\( -name '*.safetensors' -o -name '*.tmp*' -o -name "
                         "'*.input' \\) | grep .",
                         s.state)))
        fail_msg("left behind in %s/jobs", s.state);
    assert_int_not_equal(access(t_format("%s/run", s.state), F_OK), 0);
    assert_int_not_equal(access(t_format("%s/sluice.sock", s.state), F_OK), 0);
    assert_int_equal(
        system(t_format("sqlite3 %s/journal.db 'PRAGMA integrity_check' | grep -qx ok", s.state)),
        0);
}

static void run_clients(t_made *into, pthread_t threads[CLIENTS_MOST])
{
    static client all[CLIENTS_MOST];
    for (int i = 0; i < clients; i++) {
        all[i] = (client){into, i};
        assert_int_equal(pthread_create(&threads[i], NULL, submit_all, &all[i]), 0);
    }
}

/* ---- tests ---- */

static void undisturbed(void **state)
{
    (void)state;
    pthread_t threads[CLIENTS_MOST];
    t_serve_open(&s);
    t_serve_conf(&s, "");
    t_serve_start(&s, T_MODEL, NULL);
    run_clients(wanted, threads);
    for (int i = 0; i < clients; i++) pthread_join(threads[i], NULL);
    check_all(wanted);
    nothing_is_left();
    t_serve_close(&s);
}

static void same_as_undisturbed(void)
{
    for (int i = 0; i < jobs; i++)
        if (got[i].size != wanted[i].size || got[i].hash != wanted[i].hash)
            fail_msg("job %d has other bytes than that of an undisturbed server", i);
}

static void killed_at_random_moments(void **state)
{
    (void)state;
    pthread_t threads[CLIENTS_MOST];
    fprintf(stderr, "SLUICE_SEED=%u\n", t_made_seed);
    memset(got, 0, sizeof got);
    t_serve_open(&s);
    t_serve_conf(&s, "serve: { retries = 0; };\n"); /* kills are this test's, not the jobs' */
    t_serve_start(&s, T_MODEL, NULL);
    run_clients(got, threads);
    for (int i = 0; i < kills; i++) {
        usleep((useconds_t)(t_made_part() * 400000));
        pthread_mutex_lock(&url_lock);
        kill_one(i < 8 ? i : (int)(t_made_part() * 8));
        pthread_mutex_unlock(&url_lock);
    }
    for (int i = 0; i < clients; i++) pthread_join(threads[i], NULL);
    check_all(got);
    same_as_undisturbed();
    nothing_is_left();
    t_serve_close(&s);
}

/* A disk of its own for the state, of a few MB; false: this user cannot have one. */
static bool mount_small(void)
{
    assert_int_equal(mkdir(s.state, 0700), 0);
    return !mount("tmpfs", s.state, "tmpfs", 0, "size=8m,mode=700");
}

static void fill_disk(const char *path)
{
    static char zeros[65536];
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    for (size_t n = sizeof zeros; n; n /= 2)
        while (write(fd, zeros, n) == (ssize_t)n) {
        }
    close(fd);
}

static void a_disk_that_fills_loses_nothing(void **state)
{
    (void)state;
    pthread_t threads[CLIENTS_MOST];
    char filler[300];
    t_reply r;
    memset(got, 0, sizeof got);
    t_serve_open(&s);
    t_serve_conf(&s, "serve: { reserve_bytes = 1048576; };\n");
    if (!mount_small()) {
        t_serve_close(&s);
        print_message("no right to mount a small disk: not tested\n");
        skip();
    }
    snprintf(filler, sizeof filler, "%s/filler", s.state);
    t_serve_start(&s, T_MODEL, NULL);
    run_clients(got, threads);
    for (int full = 0; full < 3; full++) {
        usleep((useconds_t)(t_made_part() * 500000));
        fill_disk(filler);
        const long code = request("POST", "/v1/videos", 0, NULL, &r);
        t_reply_free(&r);
        if (code != 507) fail_msg("HTTP %ld from a server whose disk is full, want 507", code);
        usleep(300000);
        if (full == 1) { /* and the server dies meanwhile; it may not start before there is room */
            pthread_mutex_lock(&url_lock);
            kill_everything();
            assert_int_equal(t_serve_wait(&s), 128 + SIGKILL);
            unlink(filler);
            t_serve_start(&s, T_MODEL, NULL);
            pthread_mutex_unlock(&url_lock);
        }
        unlink(filler);
    }
    for (int i = 0; i < clients; i++) pthread_join(threads[i], NULL);
    check_all(got);
    same_as_undisturbed();
    nothing_is_left();
    umount(s.state);
    t_serve_close(&s);
}

int main(void)
{
    const char *few = getenv("SLUICE_KILLS"), *given = getenv("SLUICE_SEED");
    if (getenv("SLUICE_SOAK")) jobs = 50, kills = 100, clients = 8;
    else if (few && !strcmp(few, "few")) jobs = 6, kills = 6;
    t_made_seed = given ? (unsigned)atoi(given) : (unsigned)time(NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(undisturbed),
        cmocka_unit_test(killed_at_random_moments),
        cmocka_unit_test(a_disk_that_fills_loses_nothing),
    };
    curl_global_init(CURL_GLOBAL_DEFAULT);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
