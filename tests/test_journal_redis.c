/* test_journal_redis.c - the server's queue on Redis: the cases of every body, on a real Redis.
 * Servers that stop and come back, and a Redis that dies, are tests/test_fleet_queue.c's.
 * run: waits. takes: 24 s. */
#include "tests/t_journal_cases.h"
#include "tests/t_redis.h"

#include <arpa/inet.h>
#include <sys/socket.h>

#include <curl/curl.h>

static t_redis redis;

static void redis_open_named(sl_journal **out, const char *name)
{
    const sl_journal_shared at = {
        .url = redis.url, .name = name, .model = "demo", .lease_ms = 20000};
    T_OK(sl_journal_open_shared(out, &at, &err));
}

static void redis_make(void)
{
    T_REDIS(&redis, "FLUSHALL");
    redis_open_named(&j, "here");
}

static void redis_drop(void)
{
    sl_journal_close(&j);
}

static void redis_empty(void)
{
    redis_drop();
    redis_make();
}

static void redis_reopen(void)
{
    sl_journal_close(&j);
    redis_open_named(&j, "here");
}

static int64_t redis_rows(const char *state)
{
    if (state) return atoll(T_REDIS(&redis, "HGET", "sluice:count", state));
    return atoll(T_REDIS(&redis, "EVAL", "return #redis.call('KEYS', 'sluice:job:*')", "0"));
}

static int64_t redis_text_bytes(const char *id)
{
    char key[100];
    snprintf(key, sizeof key, "sluice:job:%s", id);
    return atoll(T_REDIS(&redis, "HSTRLEN", key, "request")) +
           atoll(T_REDIS(&redis, "HSTRLEN", key, "message"));
}

/* The denoiser's state is in the shared folder; a preview does not count. */
static void redis_kept(const char *id)
{
    char version[32], was[SL_JOURNAL_FILE];
    sl_journal_job got;
    T_OK(sl_journal_get(j, id, NULL, &got, &err));
    snprintf(version, sizeof version, "%lld.1", (long long)got.fence);
    T_OK(sl_journal_file(j, id, "preview.png", version, 9, was, &err));
    sl_journal_job_free(&got);
    T_OK(sl_journal_get(j, id, NULL, &got, &err));
    assert_true(got.deaths > 0);
    sl_journal_job_free(&got);
    T_OK(sl_journal_file(j, id, "state.safetensors", version, 9, was, &err));
}

static const t_journal_body t_on_redis = {redis_make, redis_empty,      redis_reopen, redis_drop,
                                          redis_rows, redis_text_bytes, redis_kept};

/* ---- nothing is left of jobs that are forgotten ---- */

static void test_forgotten_whole(void **state)
{
    char id[SL_JOURNAL_ID];
    sl_journal_state before;
    (void)state;
    for (int i = 0; i < 40; i++) {
        char name[8], same[SL_JOURNAL_ID];
        snprintf(name, sizeof name, "j%d", i);
        sl_journal_job job = named(name, i % 3 ? "ann" : "", i % 2 - 1);
        job.files = (char[]){"image.input 0.1 77\njob.json 0.2 5\n"};
        T_OK(sl_journal_submit(j, &job, i % 4 ? name : "", NULL, same, &err));
    }
    for (int i = 0; i < 20; i++) {
        sl_journal_job got;
        T_OK(sl_journal_claim(j, 1, &got, &err));
        if (i % 2) T_OK(sl_journal_release(j, got.id, &err));
        else finish(got.id, SL_JOURNAL_COMPLETED, 10, 2);
        sl_journal_job_free(&got);
    }
    for (int i = 0; i < 40; i++) {
        char name[8];
        snprintf(name, sizeof name, "j%d", i);
        T_OK(sl_journal_cancel(j, name, NULL, 2, &before, &err));
        T_OK(sl_journal_remove(j, name, NULL, 2, &err));
    }
    T_CODE(sl_journal_expire(j, 0, 0, 100, 200, id, &err), SL_BUSY);
    /* counters and the servers are all that there is */
    assert_string_equal(
        T_REDIS(&redis, "EVAL",
                "local k = redis.call('KEYS', '*') table.sort(k) return table.concat(k, ' ')", "0"),
        "sluice:bytes sluice:claims sluice:model sluice:schema sluice:seq sluice:servers "
        "sluice:store");
    assert_string_equal(T_REDIS(&redis, "GET", "sluice:bytes"), "0");
}

/* ---- files ---- */

static void test_files(void **state)
{
    char same[SL_JOURNAL_ID], version[SL_JOURNAL_FILE], was[SL_JOURNAL_FILE];
    sl_journal_job job = named("a", "ann", 0), got;
    uint64_t bytes;
    (void)state;
    job.files = (char[]){"image.input 0.1 77\njob.json 0.2 5\n"};
    T_OK(sl_journal_submit(j, &job, "", NULL, same, &err));
    T_CODE(sl_journal_file(j, "a", "text.safetensors", "1.1", 9, was, &err), SL_GONE);
    claims("a");
    T_OK(sl_journal_file(j, "a", "text.safetensors", "1.1", 9, was, &err));
    assert_string_equal(was, "");
    T_OK(sl_journal_file(j, "a", "text.safetensors", "1.2", 10, was, &err));
    assert_string_equal(was, "1.1");
    T_CODE(sl_journal_file(j, "a", "text.safetensors", "0.9", 10, was, &err), SL_GONE);
    T_OK(sl_journal_file(j, "a", "image.input", "", 0, was, &err));
    assert_string_equal(was, "0.1");
    T_CODE(sl_journal_file(j, "a", "a b", "1.1", 9, was, &err), SL_ARG);
    T_CODE(sl_journal_file(j, "a", "", "1.1", 9, was, &err), SL_ARG);
    T_OK(sl_journal_get(j, "a", NULL, &got, &err));
    assert_true(sl_journal_find_file(&got, "text.safetensors", version, &bytes));
    assert_string_equal(version, "1.2");
    assert_int_equal(bytes, 10);
    assert_true(sl_journal_find_file(&got, "job.json", version, &bytes));
    assert_false(sl_journal_find_file(&got, "image.input", version, &bytes));
    assert_false(sl_journal_find_file(&got, "text", version, &bytes));
    assert_string_equal(got.server, "here");
    assert_int_equal(got.fence, 1);
    sl_journal_job_free(&got);
    finish("a", SL_JOURNAL_COMPLETED, 1, 1);
    T_CODE(sl_journal_file(j, "a", "video.mp4", "1.3", 9, was, &err), SL_GONE);
    T_OK(sl_journal_file(j, "a", "text.safetensors", "", 0, was, &err)); /* may still go */
    assert_string_equal(was, "1.2");
}

static void test_files_at_once(void **state)
{
    char same[SL_JOURNAL_ID], version[SL_JOURNAL_FILE];
    sl_journal_job job = named("a", "ann", 0), got;
    uint64_t bytes;
    sl_journal_change some[] = {{.name = "state.safetensors", .version = "1.3", .bytes = 3},
                                {.name = "preview.png", .version = "1.4", .bytes = 4},
                                {.name = "job.json", .version = ""}},
                      late[] = {{.name = "video.mp4", .version = "1.5", .bytes = 5},
                                {.name = "preview.png", .version = "0.6", .bytes = 6}},
                      many[SL_JOURNAL_CHANGES + 1] = {0};
    (void)state;
    job.files = (char[]){"job.json 0.2 5\n"};
    T_OK(sl_journal_submit(j, &job, "", NULL, same, &err));
    claims("a");
    T_OK(sl_journal_files(j, "a", 3, some, &err));
    assert_string_equal(some[0].was, "");
    assert_string_equal(some[2].was, "0.2");
    T_OK(sl_journal_files(j, "a", 2, some, &err)); /* said twice */
    assert_string_equal(some[0].was, "1.3");
    assert_string_equal(some[1].was, "1.4");
    T_OK(sl_journal_files(j, "a", 0, NULL, &err));
    /* one of another claim: none of them */
    T_CODE(sl_journal_files(j, "a", 2, late, &err), SL_GONE);
    many[0] = some[0];
    for (int i = 1; i <= SL_JOURNAL_CHANGES; i++) many[i] = many[0];
    T_CODE(sl_journal_files(j, "a", SL_JOURNAL_CHANGES + 1, many, &err), SL_ARG);
    T_OK(sl_journal_files(j, "a", SL_JOURNAL_CHANGES, many, &err));
    finish("a", SL_JOURNAL_COMPLETED, 1, 1);
    /* behind the end files go, and none comes beside them */
    late[1].version = "";
    T_CODE(sl_journal_files(j, "a", 2, late, &err), SL_GONE);
    T_OK(sl_journal_files(j, "a", 1, &late[1], &err));
    T_OK(sl_journal_get(j, "a", NULL, &got, &err));
    assert_true(sl_journal_find_file(&got, "state.safetensors", version, &bytes));
    assert_string_equal(version, "1.3");
    assert_false(sl_journal_find_file(&got, "preview.png", version, &bytes));
    assert_false(sl_journal_find_file(&got, "video.mp4", version, &bytes));
    assert_false(sl_journal_find_file(&got, "job.json", version, &bytes));
    sl_journal_job_free(&got);
}

static void test_show(void **state)
{
    sl_journal_job got;
    (void)state;
    submit("a", "", 0);
    claims("a");
    T_OK(sl_journal_show(j, "a", 0.25, "denoise 3 12", &err));
    T_CODE(sl_journal_show(j, "a", 0.25, "a\nb", &err), SL_ARG);
    T_OK(sl_journal_get(j, "a", NULL, &got, &err));
    assert_string_equal(got.live, "denoise 3 12");
    assert_true(got.progress == 0.25);
    sl_journal_job_free(&got);
    finish("a", SL_JOURNAL_COMPLETED, 1, 1);
    T_OK(sl_journal_get(j, "a", NULL, &got, &err));
    assert_string_equal(got.live, "");
    sl_journal_job_free(&got);
}

/* ---- rows that no journal writes ---- */

static void test_bad_rows(void **state)
{
    static const struct {
        const char *field, *value, *says;
    } CASES[] = {
        {"state", "done", "job a: state is \"done\", want a word of the schema"},
        {"priority", "2147483648", "job a: priority is \"2147483648\", want a number"},
        {"priority", "1x", "job a: priority is"},
        {"created_s", "-1", "job a: created_s is"},
        {"started_s", "", "job a: started_s is"},
        {"ended_s", "99999999999999999999", "job a: ended_s is"},
        {"progress", "1.5", "job a: progress is \"1.5\", want a number from 0 to 1"},
        {"progress", "nan", "job a: progress is"},
        {"cancel_asked", "2", "job a: cancel_asked is"},
        {"attempts", "-1", "job a: attempts is"},
        {"code", "EV\nIL", "job a: code is \"EV?IL\", want a word"},
        {"bytes", "1125899906842625", "job a: bytes is"},
        {"fence", "-1", "job a: fence is"},
        {"f:x", "1.1", "job a: f:x is \"1.1\", want a version and bytes"},
        {"f:x y", "1.1 9", "job a: f:x y is"},
        {"id", "../etc", "job ?: id is \"../etc\", want an id"},
    };
    sl_journal_job jobs[2], got;
    int count;
    bool more;
    (void)state;
    submit("b", "", 0);
    submit("a", "", 0);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char was[4096];
        snprintf(was, sizeof was, "%s", T_REDIS(&redis, "HGET", "sluice:job:a", CASES[i].field));
        T_REDIS(&redis, "HSET", "sluice:job:a", CASES[i].field, CASES[i].value);
        T_CODE(sl_journal_get(j, "a", NULL, &got, &err), SL_FORMAT);
        T_SAYS(err.msg, CASES[i].says);
        assert_null(strchr(err.msg, '\n'));
        assert_null(got.request);
        T_CODE(sl_journal_list(j, NULL, "", 2, false, jobs, &count, &more, &err), SL_FORMAT);
        assert_true(!count && !more);
        T_OK(sl_journal_get(j, "b", NULL, &got, &err)); /* others do not suffer */
        sl_journal_job_free(&got);
        if (*was) T_REDIS(&redis, "HSET", "sluice:job:a", CASES[i].field, was);
        else T_REDIS(&redis, "HDEL", "sluice:job:a", CASES[i].field);
    }
    T_REDIS(&redis, "HDEL", "sluice:job:a", "request");
    T_CODE(sl_journal_get(j, "a", NULL, &got, &err), SL_FORMAT);
    T_SAYS(err.msg, "job a: it has no request");
    /* a key of another kind; a row that is gone though it waits */
    T_REDIS(&redis, "DEL", "sluice:job:b");
    T_CODE(sl_journal_claim(j, 1, &got, &err), SL_FORMAT);
    T_SAYS(err.msg, "job b waits, and has no row that does");
    T_REDIS(&redis, "SET", "sluice:job:b", "x");
    T_CODE(sl_journal_get(j, "b", NULL, &got, &err), SL_FORMAT);
    T_SAYS(err.msg, "damaged, or another program's: ");
    assert_null(strchr(err.msg, '\n'));
}

/* ---- who is let in, and where ---- */

static void open_fails(const char *url, sl_code want, const char *says)
{
    const sl_journal_shared at = {.url = url, .name = "x", .model = "demo", .lease_ms = 1000};
    sl_journal *other;
    err = (sl_err){0};
    T_CODE(sl_journal_open_shared(&other, &at, &err), want);
    assert_null(other);
    assert_null(strchr(err.msg, '\n'));
    assert_null(strstr(err.msg, "secret"));
    T_SAYS(err.msg, says);
}

static void test_addresses(void **state)
{
    static const char *const BAD[] = {"",
                                      "redis:",
                                      "http://host",
                                      "redis://",
                                      "redis://:1",
                                      "redis://h:0",
                                      "redis://h:65536",
                                      "redis://h:x",
                                      "redis://h/x",
                                      "redis://h/100000",
                                      "redis://secret@h",
                                      "redis://a:@h",
                                      "redis://a:se%zzcret@h",
                                      "redis://h?ca=x",
                                      "rediss://h?ca=",
                                      "rediss://h?what=x",
                                      "unix://",
                                      "unix://x",
                                      "unix:///x?db=",
                                      "unix:///x?ca=y",
                                      "redis://[::1",
                                      "redis://[::1]x",
                                      "redis://a b"};
    sl_redis_at at;
    (void)state;
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        if (sl_redis_parse(&at, BAD[i], &err) != SL_ARG) fail_msg("\"%s\" is taken", BAD[i]);
        T_SAYS(err.msg, "a queue's address is one of redis://");
        assert_null(strstr(err.msg, "secret"));
    }
    T_OK(sl_redis_parse(&at, "redis://h", &err));
    assert_true(at.port == 6379 && !at.db && !at.tls);
    T_OK(sl_redis_parse(&at, "redis://ann:s%40c%3aret@[::1]:7/12", &err));
    assert_string_equal(at.user, "ann");
    assert_string_equal(at.password, "s@c:ret");
    assert_string_equal(at.host, "[::1]");
    assert_true(at.port == 7 && at.db == 12);
    assert_string_equal(at.shown, "redis://[::1]:7/12");
    T_OK(sl_redis_parse(&at, "rediss://:secret@h:1/2?ca=/c%20a&cert=/c&key=/k", &err));
    assert_true(at.tls && !*at.user);
    assert_string_equal(at.ca, "/c a");
    assert_string_equal(at.shown, "rediss://h:1/2");
    T_OK(sl_redis_parse(&at, "unix://:secret@/x/y?db=7", &err));
    assert_string_equal(at.path, "/x/y");
    assert_string_equal(at.shown, "unix:///x/y?db=7");
}

static void test_let_in(void **state)
{
    char url[500];
    bool safe;
    (void)state;
    T_SAYS(sl_journal_promise(j, &safe), "is Redis ");
    T_SAYS(sl_journal_promise(j, &safe), "appendfsync always: what was accepted is on its disk");
    assert_true(safe);
    T_REDIS(&redis, "CONFIG", "SET", "appendfsync", "everysec");
    reopen();
    T_SAYS(sl_journal_promise(j, &safe), "a crash of its machine may lose the last two seconds");
    T_REDIS(&redis, "CONFIG", "SET", "appendonly", "no");
    reopen();
    T_SAYS(sl_journal_promise(j, &safe), "appendonly is no: what was accepted since");
    assert_false(safe);
    T_REDIS(&redis, "CONFIG", "SET", "appendonly", "yes");
    T_REDIS(&redis, "CONFIG", "SET", "appendfsync", "always");

    T_REDIS(&redis, "CONFIG", "SET", "maxmemory", "100mb");
    T_REDIS(&redis, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru");
    open_fails(redis.url, SL_ARG, "maxmemory-policy is allkeys-lru, want noeviction");
    T_REDIS(&redis, "CONFIG", "SET", "maxmemory-policy", "noeviction");
    T_REDIS(&redis, "CONFIG", "SET", "maxmemory", "1");
    char same[SL_JOURNAL_ID];
    sl_journal_job job = named("full", "", 0);
    T_CODE(sl_journal_submit(j, &job, "", NULL, same, &err), SL_SYS);
    T_SAYS(err.msg, SL_JOURNAL_DISK_FULL ": Redis has no memory left");
    T_REDIS(&redis, "CONFIG", "SET", "maxmemory", "0");
    submit("full", "", 0);

    /* users: one that may do what is needed, one that may not, and nobody */
    T_REDIS(&redis, "ACL", "SETUSER", "ann", "reset", "on", ">secret", "~sluice:*",
            "&sluice:events:*", "+@all", "-@admin", "-@dangerous", "+info");
    T_REDIS(&redis, "ACL", "SETUSER", "bob", "reset", "on", ">secret", "~other:*", "+@all");
    snprintf(url, sizeof url, "unix://bob:secret@%s?db=3", redis.socket);
    open_fails(url, SL_SYS, "does not permit it");
    snprintf(url, sizeof url, "unix://bob:secretx@%s?db=3", redis.socket);
    open_fails(url, SL_ARG, "WRONGPASS");
    snprintf(url, sizeof url, "unix://ann:secret@%s?db=99", redis.socket);
    open_fails(url, SL_ARG, "SELECT: ERR DB index is out of range");
    snprintf(url, sizeof url, "unix://ann:secret@%s?db=3", redis.socket);
    sl_journal *other;
    const sl_journal_shared at = {.url = url, .name = "ann", .model = "demo", .lease_ms = 1000};
    T_OK(sl_journal_open_shared(&other, &at, &err));
    T_SAYS(sl_journal_promise(other, &safe), "appendfsync is not told");
    T_OK(sl_journal_claim(other, 1, &job, &err));
    sl_journal_job_free(&job);
    T_OK(sl_journal_finish(other, "full", SL_JOURNAL_COMPLETED, SL_OK, "", 0, 1, &err));
    sl_journal_close(&other);

    /* nobody there, nobody who is Redis, a replica, another model's, a newer version's */
    snprintf(url, sizeof url, "unix://%s/none", redis.dir);
    open_fails(url, SL_SYS, "queue unix://");
    open_fails("redis://127.0.0.1:1/0", SL_SYS, "queue redis://127.0.0.1:1/0: ");
    T_REDIS(&redis, "REPLICAOF", "127.0.0.1", "1");
    open_fails(redis.url, SL_ARG, "is a replica, want its primary");
    T_REDIS(&redis, "REPLICAOF", "NO", "ONE");
    submit("waits", "", 0);
    const sl_journal_shared another = {
        .url = redis.url, .name = "x", .model = "wan", .lease_ms = 1000};
    T_CODE(sl_journal_open_shared(&other, &another, &err), SL_ARG);
    T_SAYS(err.msg, "has jobs for model \"demo\", this server's is \"wan\"");
    const sl_journal_shared elsewhere = {
        .url = redis.url, .name = "x", .model = "demo", .store = "other", .lease_ms = 1000};
    T_CODE(sl_journal_open_shared(&other, &elsewhere, &err), SL_ARG);
    T_SAYS(err.msg, "has jobs whose files are in another shared folder");
    T_REDIS(&redis, "SET", "sluice:schema", "7");
    open_fails(redis.url, SL_FORMAT, "of version 7, want at most 2: a newer sluice wrote it");
}

/* ---- TLS ---- */

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    close(fd);
    return ntohs(a.sin_port);
}

/* Both ends show a certificate of the test's own authority. */
static void test_tls(void **state)
{
    char command[2000], port[16], url[900], program[1024];
    t_redis secure = {0};
    (void)state;
    if (!t_redis_on_path("openssl", program)) skip();
    snprintf(secure.dir, sizeof secure.dir, "%s", t_tmpdir());
    snprintf(command, sizeof command,
             "cd %s && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
             "-keyout key.pem -out cert.pem -days 2 -subj /CN=localhost -addext "
             "subjectAltName=DNS:localhost,IP:127.0.0.1 2>err",
             secure.dir);
    assert_int_equal(system(command), 0);
    snprintf(secure.socket, sizeof secure.socket, "%s/redis.sock", secure.dir);
    snprintf(secure.url, sizeof secure.url, "unix://%s", secure.socket);
    snprintf(port, sizeof port, "%d", free_port());
    const char *const more[] = {"--tls-port",     port,      "--tls-cert-file",    "cert.pem",
                                "--tls-key-file", "key.pem", "--tls-ca-cert-file", "cert.pem",
                                "--requirepass",  "secret"};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) secure.more[i] = more[i];
    t_redis_start(&secure);
    snprintf(url, sizeof url,
             "rediss://:secret@127.0.0.1:%s/0?ca=%s/cert.pem&cert=%s/cert.pem&key=%s/key.pem", port,
             secure.dir, secure.dir, secure.dir);
    sl_journal *other;
    const sl_journal_shared at = {.url = url, .name = "x", .model = "demo", .lease_ms = 1000};
    T_OK(sl_journal_open_shared(&other, &at, &err));
    /* a request of many packets, there and back */
    char *big = calloc(1, SL_JOURNAL_REQUEST), same[SL_JOURNAL_ID];
    memset(big, 'x', SL_JOURNAL_REQUEST - 1);
    sl_journal_job job = named("big", "", 0), got;
    job.request = big;
    T_OK(sl_journal_submit(other, &job, "", NULL, same, &err));
    T_OK(sl_journal_get(other, "big", NULL, &got, &err));
    assert_string_equal(got.request, big);
    sl_journal_job_free(&got);
    free(big);
    sl_journal_close(&other);
    /* an authority that nobody knows; no TLS where there is some */
    snprintf(url, sizeof url, "rediss://:secret@127.0.0.1:%s/0", port);
    open_fails(url, SL_SYS, "certificate");
    snprintf(url, sizeof url, "redis://:secret@127.0.0.1:%s/0", port);
    open_fails(url, SL_SYS, "queue redis://127.0.0.1:");
    t_redis_close(&secure);
}

static int make_redis(void **state)
{
    (void)state;
    t_redis_open(&redis);
    return 0;
}

static int end_redis(void **state)
{
    (void)state;
    t_redis_close(&redis);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        JOURNAL_CASES,
        WITH_JOURNAL(test_forgotten_whole),
        WITH_JOURNAL(test_files),
        WITH_JOURNAL(test_files_at_once),
        WITH_JOURNAL(test_show),
        WITH_JOURNAL(test_bad_rows),
        WITH_JOURNAL(test_addresses),
        WITH_JOURNAL(test_let_in),
        cmocka_unit_test(test_tls),
    };
    curl_global_init(CURL_GLOBAL_DEFAULT);
    body = &t_on_redis;
    if (!t_redis_is_there()) {
        printf("[  SKIPPED ] no redis-server on this machine\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, make_redis, end_redis);
}
