/* test_mover.c - a job's files on their way between its folder and the shared one: when, how many
 * at once, and which not. A real Redis, a real folder. run: waits. takes: 4 s. */
#include "tests/t_redis.h"
#include "tests/t_run.h"

#include <sys/eventfd.h>
#include <sys/stat.h>

#include <curl/curl.h>

#include "stages/serve/mover.h"

static t_redis redis;
static sl_err err;
static sl_journal *j;
static sl_blobs blobs;
static sl_store store = {.lock = -1, .copies = true};
static sl_conf conf;
static sl_mover *mover;
static int wake;

/* ---- short forms ---- */

static const char *in_job(const char *name)
{
    return t_format("%s/a/%s", store.jobs, name);
}

/* Whole when it is there, as stages write theirs. */
static void write_file(const char *name, const char *text)
{
    const char *to = in_job(name), *temporary = t_format("%s.tmp", to);
    t_write(temporary, text);
    assert_int_equal(rename(temporary, to), 0);
}

/* Which version of a file the queue knows of job a; "": none. */
static const char *version_of(const char *name)
{
    static char version[SL_JOURNAL_FILE];
    sl_journal_job job;
    uint64_t bytes;
    T_OK(sl_journal_get(j, "a", NULL, &job, &err));
    if (!sl_journal_find_file(&job, name, version, &bytes)) *version = 0;
    sl_journal_job_free(&job);
    return version;
}

static uint64_t wait_done(int slot)
{
    sl_code rc;
    uint64_t bytes;
    for (int i = 0; i < 2000; i++) {
        if (sl_mover_done(mover, slot, &rc, &bytes, &err)) {
            T_OK(rc);
            return bytes;
        }
        usleep(5000);
    }
    fail_msg("the mover is not through within 10 s");
    return 0;
}

static void wait_free(int slot)
{
    for (int i = 0; i < 2000 && !sl_mover_is_free(mover, slot); i++) usleep(5000);
    assert_true(sl_mover_is_free(mover, slot));
}

static long calls(void)
{
    const char *info = T_REDIS(&redis, "INFO", "commandstats"),
               *at = strstr(info, "cmdstat_evalsha:calls=");
    return at ? atol(at + strlen("cmdstat_evalsha:calls=")) : 0;
}

/* Job a is claimed, and its files are in its folder. */
static void open_mover(int spool_s)
{
    char same[SL_JOURNAL_ID];
    uint64_t bytes;
    static char request[] = "{}";
    sl_journal_job job = {.id = "a", .request = request, .files = (char[]){"job.json 0.1 4\n"}},
                   claimed;
    t_redis_open(&redis);
    const sl_journal_shared at = {
        .url = redis.url, .name = "here", .model = "demo", .lease_ms = 20000};
    T_OK(sl_journal_open_shared(&j, &at, &err));
    conf.queue.spool_rate = 0;
    T_OK(sl_blobs_open(&blobs, t_format("%s/blobs", redis.dir), &conf, &err));
    snprintf(store.jobs, sizeof store.jobs, "%.200s/jobs", redis.dir);
    assert_int_equal(mkdir(store.jobs, 0700), 0);
    t_write(t_format("%s/asked", redis.dir), "asks");
    T_OK(sl_blobs_put(&blobs, "a", "job.json", "0.1", t_format("%s/asked", redis.dir), &bytes,
                      &err));
    T_OK(sl_blobs_settle(&blobs, "a", &err));
    T_OK(sl_journal_submit(j, &job, "", NULL, same, &err));
    T_OK(sl_journal_claim(j, 1000, &claimed, &err));
    wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    T_OK(sl_mover_open(&mover, &(sl_mover_ends){j, &blobs, &store, spool_s, wake}, &err));
    sl_mover_fetch(mover, 0, &claimed);
    wait_done(0);
    sl_journal_job_free(&claimed);
    assert_int_equal(access(in_job("job.json"), F_OK), 0);
}

static void close_mover(void)
{
    sl_mover_close(&mover);
    sl_blobs_close(&blobs);
    sl_journal_close(&j);
    close(wake);
    t_redis_close(&redis);
}

/* ---- tests ---- */

static void each_as_it_comes(void **state)
{
    (void)state;
    open_mover(0);
    sl_mover_watch(mover, 0);
    write_file("text.safetensors", "1");
    for (int i = 0; i < 2000 && !*version_of("text.safetensors"); i++) usleep(5000);
    assert_string_equal(version_of("text.safetensors"), "1.1");
    write_file("state.safetensors", "2");
    for (int i = 0; i < 2000 && !*version_of("state.safetensors"); i++) usleep(5000);
    assert_string_equal(version_of("state.safetensors"), "1.2");
    close_mover();
}

/* Of a run that is shorter than spool_s nothing goes before its end; then all of it, at once. */
static void nothing_before_its_time(void **state)
{
    (void)state;
    open_mover(3600);
    sl_mover_watch(mover, 0);
    write_file("text.safetensors", "1");
    write_file("state.safetensors", "22");
    write_file("preview.png", "333");
    usleep(500000); /* three looks */
    assert_string_equal(version_of("state.safetensors"), "");
    assert_string_equal(version_of("text.safetensors"), "");
    const long before = calls();
    sl_mover_send(mover, 0, false); /* the job goes back to the queue */
    wait_done(0);
    assert_int_equal(calls(), before + 1);
    assert_string_equal(version_of("state.safetensors"), "1.1");
    assert_string_equal(version_of("preview.png"), "1.3");
    close_mover();
}

/* What was asked for is written anew by who runs the job, for folders of its own: others have it
 * as it was. What the end leaves unsent goes, with one call. */
static void the_end_of_a_job(void **state)
{
    (void)state;
    open_mover(0);
    write_file("job.json", "mine, longer");
    sl_mover_own(mover, 0);
    sl_mover_watch(mover, 0);
    write_file("text.safetensors", "1");
    write_file("image.safetensors", "1");
    for (int i = 0; i < 2000 && !*version_of("image.safetensors"); i++) usleep(5000);
    unlink(in_job("text.safetensors"));
    unlink(in_job("image.safetensors"));
    write_file("video.mp4", "55555");
    write_file("report.json", "666666");
    sl_mover_send(mover, 0, true);
    assert_int_equal(wait_done(0), 4 + 5 + 6);
    assert_string_equal(version_of("job.json"), "0.1");
    assert_true(*version_of("video.mp4") && *version_of("report.json"));
    assert_true(*version_of("text.safetensors")); /* until the end is noted */
    const long before = calls();
    sl_mover_drop(mover, 0);
    wait_free(0);
    assert_int_equal(calls(), before + 1);
    assert_string_equal(version_of("text.safetensors"), "");
    assert_string_equal(version_of("image.safetensors"), "");
    assert_int_equal(system(t_format("test \"$(ls '%s/a' | wc -l)\" = 3 && ! test -e '%s/a'",
                                     blobs.dir, store.jobs)),
                     0);
    close_mover();
}

/* A server that ends leaves nothing of what was told to go just before. */
static void what_goes_is_gone_when_it_closes(void **state)
{
    (void)state;
    for (int way = 0; way < 2; way++) {
        open_mover(0);
        sl_mover_watch(mover, 0);
        write_file("text.safetensors", "1");
        for (int i = 0; i < 2000 && !*version_of("text.safetensors"); i++) usleep(5000);
        unlink(in_job("text.safetensors"));
        sl_mover_send(mover, 0, true);
        wait_done(0);
        if (way) sl_mover_drop(mover, 0);
        else sl_mover_clear(mover, 0);
        sl_mover_close(&mover);
        assert_int_equal(access(t_format("%s/a", store.jobs), F_OK), -1);
        assert_string_equal(version_of("text.safetensors"), way ? "" : "1.1");
        close_mover();
    }
}

/* More files than one call tells of. */
static void many_files(void **state)
{
    (void)state;
    open_mover(0);
    sl_mover_watch(mover, 0);
    assert_int_equal(mkdir(in_job("blocks"), 0700), 0);
    for (int i = 0; i < 2 * SL_JOURNAL_CHANGES + 1; i++) write_file(t_format("blocks/%d", i), "12");
    const long before = calls();
    sl_mover_send(mover, 0, true);
    assert_int_equal(wait_done(0), 4 + 2 * (2 * SL_JOURNAL_CHANGES + 1));
    assert_int_equal(calls(), before + 3);
    for (int i = 0; i < 2 * SL_JOURNAL_CHANGES + 1; i++)
        if (!*version_of(t_format("blocks/%d", i))) fail_msg("blocks/%d was not told", i);
    close_mover();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_as_it_comes), cmocka_unit_test(nothing_before_its_time),
        cmocka_unit_test(the_end_of_a_job), cmocka_unit_test(what_goes_is_gone_when_it_closes),
        cmocka_unit_test(many_files),
    };
    curl_global_init(CURL_GLOBAL_DEFAULT);
    if (!t_redis_is_there()) {
        printf("[  SKIPPED ] no redis-server on this machine\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
