/* test_fleet_differ.c - servers at one queue that are not alike, and a job that kills its servers:
 * real processes, a real Redis, SIGKILL. takes: 15 s. limit: 300 s. run: waits */
#include "tests/t_redis.h"
#include "tests/t_serve.h"

#include <stdatomic.h>

#define SERVERS 3
#define RETRIES 2
#define KILLER "666" /* the seed of the job that kills whoever runs it */

static t_redis redis;
static t_serve servers[SERVERS]; /* the front end, workers */
static bool up[SERVERS];
static char blobs[300], bare[400];

/* ---- servers ---- */

static void start_server(int i)
{
    static const char *more[SERVERS][8];
    const char *const words[] = {"--queue", redis.url, "--blobs",
                                 blobs,     "--role",  i ? "worker" : "front"};
    memcpy(more[i], words, sizeof words);
    t_serve_start(&servers[i], i ? T_MODEL : bare, more[i]);
    up[i] = true;
}

static void conf_of(int i, const char *more)
{
    t_serve_conf(&servers[i],
                 t_format("queue: { lease_s = 1; spool_s = 0; };\nserve: { retries = %d; };\n%s%s",
                          RETRIES, i ? "" : "model: { random = 1; };\n", more));
}

static int open_all(void **state)
{
    (void)state;
    t_redis_open(&redis);
    snprintf(blobs, sizeof blobs, "%s/blobs", redis.dir);
    snprintf(bare, sizeof bare, "%s/bare%s", redis.dir, strrchr(T_MODEL, '/'));
    assert_int_equal(system(t_format("mkdir -p '%s' && cp -r '%s/.' '%s' && "
                                     "find '%s' -name '*.safetensors' -delete",
                                     bare, T_MODEL, bare, bare)),
                     0);
    for (int i = 0; i < SERVERS; i++) {
        t_serve_open(&servers[i]);
        up[i] = false;
    }
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    for (int i = 0; i < SERVERS; i++)
        if (up[i]) kill(servers[i].pid, SIGTERM);
    for (int i = 0; i < SERVERS; i++) {
        if (up[i]) assert_int_equal(t_serve_wait(&servers[i]), 0);
        t_serve_close(&servers[i]);
    }
    t_redis_close(&redis);
    t_serve_no_children();
    return 0;
}

static void kill_server(int i)
{
    kill(-servers[i].pid, SIGKILL);
    assert_int_equal(t_serve_wait(&servers[i]), 128 + SIGKILL);
    up[i] = false;
}

static bool logged(int i, const char *text)
{
    size_t size;
    char *log = t_read(servers[i].log, &size);
    const bool found = log && memmem(log, size, text, strlen(text));
    free(log);
    return found;
}

static void comes_to_be_logged(int i, const char *text)
{
    const double until = t_seconds() + 30;
    while (!logged(i, text)) {
        if (t_seconds() > until) {
            t_serve_show_log(&servers[i]);
            fail_msg("server %d does not say \"%s\"", i, text);
        }
        usleep(50000);
    }
}

/* ---- jobs ---- */

/* The answer's code; *id of an accepted job. */
static long post(const t_serve *s, const char *size, const char *seed, const char *lora,
                 char id[64], t_reply *r)
{
    const char *const fields[] = {"prompt",
                                  "a cat",
                                  "input_reference",
                                  "@" T_IMAGE,
                                  "size",
                                  size,
                                  "frames",
                                  "9",
                                  "steps",
                                  "4",
                                  "seed",
                                  seed,
                                  lora ? "lora" : NULL,
                                  lora,
                                  NULL};
    t_post(r, s, fields, NULL);
    *id = 0;
    if (r->code == 200) snprintf(id, 64, "%s", t_reply_text(r, "id"));
    return r->code;
}

static void accepted(const t_serve *s, const char *size, const char *seed, const char *lora,
                     char id[64])
{
    t_reply r;
    if (post(s, size, seed, lora, id, &r) != 200) fail_msg("HTTP %ld %s", r.code, r.body);
    t_reply_free(&r);
}

static const char *field_of(const t_serve *s, const char *id, const char *name)
{
    t_reply r;
    t_http(&r, s, "GET", t_format("/v1/videos/%s", id));
    assert_int_equal(r.code, 200);
    const char *value = t_reply_text(&r, name);
    t_reply_free(&r);
    return value;
}

static void becomes(const char *id, const char *name, const char *want)
{
    const double until = t_seconds() + 30;
    while (strcmp(field_of(&servers[0], id, name), want)) {
        if (t_seconds() > until)
            fail_msg("%s of %s is %s, want %s", name, id, field_of(&servers[0], id, name), want);
        usleep(20000);
    }
}

static double metric(const char *name)
{
    t_reply r;
    t_http(&r, &servers[0], "GET", "/metrics");
    assert_int_equal(r.code, 200);
    const char *at = strstr(r.body, t_format("\n%s ", name));
    const double x = at ? strtod(at + strlen(name) + 2, NULL) : -1;
    t_reply_free(&r);
    return x;
}

/* What /v1/fleet says of a server; the caller's. */
static json_t *told_of(int i)
{
    t_reply r;
    char name[128];
    FILE *f = fopen(t_format("%s/server", servers[i].state), "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%127s", name), 1);
    fclose(f);
    t_http(&r, &servers[0], "GET", "/v1/fleet");
    assert_int_equal(r.code, 200);
    json_t *fleet = t_reply_json(&r), *found = NULL, *one;
    size_t k;
    t_reply_free(&r);
    assert_string_equal(json_string_value(json_object_get(fleet, "object")), "fleet");
    json_array_foreach(json_object_get(fleet, "data"), k, one)
    {
        if (!strcmp(json_string_value(json_object_get(one, "name")), name))
            found = json_incref(one);
    }
    json_decref(fleet);
    return found;
}

static char *content(const t_serve *s, const char *id, size_t *size)
{
    t_reply r;
    t_http(&r, s, "GET", t_format("/v1/videos/%s/content", id));
    assert_int_equal(r.code, 200);
    *size = r.size;
    return r.body;
}

/* ---- sizes ---- */

static void a_small_and_a_large_worker(void **state)
{
    char small[64], large[64];
    (void)state;
    conf_of(0, "");
    conf_of(1, "limits: { pixels = 6144; frames = 9; };\n");
    conf_of(2, "");
    start_server(0);
    accepted(&servers[0], "128x64", "1", NULL, large);
    accepted(&servers[0], "96x64", "2", NULL, small);
    becomes(small, "waiting_for", "no worker is up");
    start_server(1);
    assert_string_equal(t_wait(&servers[0], small), "completed");
    const char *why = "no worker that is up takes it: 8192 pixels a frame, want at most 6144";
    becomes(large, "waiting_for", why);
    assert_string_equal(field_of(&servers[0], large, "status"), "queued");
    assert_string_equal(field_of(&servers[0], large, "queue_position"), "0");
    assert_string_equal(field_of(&servers[0], large, "eta_seconds"), "null");
    assert_true(metric("sluice_queue_stuck_jobs") == 1);
    comes_to_be_logged(0, why);
    json_t *one = told_of(1);
    assert_non_null(one);
    assert_true(json_is_true(json_object_get(one, "up")));
    assert_int_equal(json_integer_value(json_object_get(one, "pixels")), 6144);
    assert_string_equal(json_string_value(json_object_get(one, "role")), "worker");
    assert_string_equal(json_string_value(json_array_get(json_object_get(one, "devices"), 0)),
                        "cpu");
    json_decref(one);
    start_server(2);
    assert_string_equal(t_wait(&servers[0], large), "completed");
    assert_true(metric("sluice_queue_stuck_jobs") == 0);
    comes_to_be_logged(0, "every job that waits is taken by some server again");
    /* one that died is told of as silent, for ten leases */
    kill_server(2);
    const double until = t_seconds() + 20;
    for (bool silent = false; !silent;) {
        one = told_of(2);
        if (!one) fail_msg("the server that died is not told of");
        silent = json_is_false(json_object_get(one, "up"));
        json_decref(one);
        if (t_seconds() > until) fail_msg("the server that died is up");
        usleep(50000);
    }
    assert_true(metric("sluice_fleet_servers") == 2);
}

/* ---- LoRA ---- */

/* The front end has a server's settings but not its LoRA. */
static void a_lora_that_one_worker_has(void **state)
{
    char id[64], plain[64], alone[64];
    char *lora = realpath("tests/golden/lora-i2v/a-peft.safetensors", NULL);
    t_reply r;
    t_serve one;
    size_t size, other_size;
    (void)state;
    char with[600];
    snprintf(with, sizeof with, "lora: ( { name = \"soft\"; file = \"%s\"; strength = 0.5; } );\n",
             lora);
    conf_of(0, "");
    conf_of(1, "");
    conf_of(2, with);
    start_server(0);
    start_server(1);
    /* nobody has ever offered it: a wrong name */
    assert_int_equal(post(&servers[0], "96x64", "1", "soft", id, &r), 400);
    assert_string_equal(t_reply_text(&r, "error.param"), "lora");
    t_reply_free(&r);
    start_server(2);
    const double until = t_seconds() + 20;
    while (post(&servers[0], "96x64", "1", "soft:0.7", id, &r) != 200) {
        t_reply_free(&r);
        if (t_seconds() > until) fail_msg("the LoRA of a worker is not known to the front end");
        usleep(100000);
    }
    assert_string_equal(t_reply_text(&r, "lora"), "soft:0.7");
    t_reply_free(&r);
    assert_string_equal(t_wait(&servers[0], id), "completed");
    json_t *told = told_of(2);
    assert_string_equal(json_string_value(json_object_get(told, "lora_loaded")), "soft");
    json_decref(told);
    /* its worker is away: that is certain of no wrong name */
    kill_server(2);
    accepted(&servers[0], "96x64", "1", "soft", alone);
    accepted(&servers[0], "96x64", "1", NULL, plain);
    assert_string_equal(t_wait(&servers[0], plain), "completed"); /* by the other */
    becomes(alone, "waiting_for", "no worker that is up takes it: none has LoRA soft");
    assert_int_equal(post(&servers[0], "96x64", "1", "hard", plain, &r), 400);
    t_reply_free(&r);
    start_server(2);
    assert_string_equal(t_wait(&servers[0], alone), "completed");
    /* the bytes of a server that has it all */
    t_serve_open(&one);
    t_serve_conf(&one, with);
    t_serve_start(&one, T_MODEL, NULL);
    accepted(&one, "96x64", "1", "soft:0.7", plain);
    assert_string_equal(t_wait(&one, plain), "completed");
    char *want = content(&one, plain, &size), *got = content(&servers[0], id, &other_size);
    assert_int_equal(size, other_size);
    assert_memory_equal(want, got, size);
    free(want);
    free(got);
    assert_int_equal(t_serve_stop(&one), 0);
    t_serve_close(&one);
    free(lora);
}

/* ---- a job that kills ---- */

static const char *deadly(void)
{
    return t_format("stages: ( { name = \"text\"; }, { name = \"image\"; }, { name = \"denoise\"; "
                    "}, { name = \"decode\"; program = \"%s\"; args = [\"--kill-at\", \"" KILLER
                    "\"]; }, { name = \"mux\"; } );\n",
                    t_helper("helper_decode_flat"));
}

/* As systemd, Slurm or Kubernetes would: what has died is started again. *deaths counts. */
static bool revive(int i, int *deaths)
{
    int status;
    if (waitpid(servers[i].pid, &status, WNOHANG) != servers[i].pid) return false;
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    ++*deaths;
    return true;
}

static void check_given_up(const t_serve *s, const char *id, int deaths)
{
    assert_string_equal(field_of(s, id, "status"), "failed");
    assert_string_equal(field_of(s, id, "error.code"), "server_lost");
    assert_string_equal(field_of(s, id, "error.message"),
                        t_format("%d times its server died while it ran, and no step was kept "
                                 "between: it is not tried again (serve.retries)",
                                 RETRIES + 1));
    assert_int_equal(atoi(field_of(s, id, "attempts")), deaths);
    assert_true(deaths > RETRIES);
}

static void a_job_kills_its_workers(void **state)
{
    char killer[64], others[4][64];
    int deaths = 0;
    (void)state;
    conf_of(0, "");
    conf_of(1, deadly());
    conf_of(2, deadly());
    for (int i = 0; i < SERVERS; i++) start_server(i);
    accepted(&servers[0], "96x64", KILLER, NULL, killer);
    for (int i = 0; i < 4; i++) accepted(&servers[0], "96x64", t_format("%d", i), NULL, others[i]);
    const double until = t_seconds() + 200;
    while (strcmp(t_status(&servers[0], killer), "server_lost")) {
        if (t_seconds() > until)
            fail_msg("it is %s after %d deaths", t_status(&servers[0], killer), deaths);
        for (int i = 1; i < SERVERS; i++)
            if (revive(i, &deaths)) start_server(i);
        usleep(50000);
    }
    for (int i = 1; i < SERVERS; i++)
        if (revive(i, &deaths)) start_server(i);
    check_given_up(&servers[0], killer, deaths);
    assert_true(metric("sluice_fleet_given_up_total") == 1);
    for (int i = 0; i < 4; i++) assert_string_equal(t_wait(&servers[0], others[i]), "completed");
    print_message("%d servers died with it\n", deaths);
}

/* The same on one machine, whose queue is a file. */
static void a_job_kills_its_server(void **state)
{
    char killer[64], others[2][64];
    int deaths = 0;
    t_serve *s = &servers[0];
    (void)state;
    t_serve_open(s);
    up[0] = true;
    t_serve_conf(s, t_format("serve: { retries = %d; };\n%s", RETRIES, deadly()));
    t_serve_start(s, T_MODEL, NULL);
    accepted(s, "96x64", KILLER, NULL, killer);
    for (int i = 0; i < 2; i++) accepted(s, "96x64", t_format("%d", i), NULL, others[i]);
    const double until = t_seconds() + 200;
    for (;;) {
        if (t_seconds() > until) fail_msg("nothing came of it after %d deaths", deaths);
        if (revive(0, &deaths)) {
            t_serve_start(s, T_MODEL, NULL);
            if (!strcmp(t_status(s, killer), "server_lost")) break;
        }
        usleep(50000);
    }
    check_given_up(s, killer, deaths);
    for (int i = 0; i < 2; i++) assert_string_equal(t_wait(s, others[i]), "completed");
    assert_true(access(t_format("%s/jobs/%s/job.json", s->state, killer), F_OK) == 0);
    print_message("it died %d times with it\n", deaths);
    assert_int_equal(t_serve_stop(s), 0);
    t_serve_close(s);
    up[0] = false;
}

#define WITH_FLEET(test) cmocka_unit_test_setup_teardown(test, open_all, close_all)

int main(void)
{
    const struct CMUnitTest fleet[] = {
        WITH_FLEET(a_small_and_a_large_worker),
        WITH_FLEET(a_lora_that_one_worker_has),
        WITH_FLEET(a_job_kills_its_workers),
    };
    const struct CMUnitTest alone[] = {cmocka_unit_test(a_job_kills_its_server)};
    curl_global_init(CURL_GLOBAL_DEFAULT);
    signal(SIGPIPE, SIG_IGN);
    const int failed = cmocka_run_group_tests(alone, NULL, NULL);
    if (!t_redis_is_there()) {
        printf("[  SKIPPED ] no redis-server on this machine\n");
        return failed;
    }
    return failed + cmocka_run_group_tests(fleet, NULL, NULL);
}
