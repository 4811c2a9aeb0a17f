/* test_blobs.c - the files that servers share: the same cases on a folder and on a real HTTP server
 * that speaks S3 (where tests/s3.sh has made one: make test-clients and test-fleet do), then what
 * only a store has: faults, parts, links, checksums. limit: 300 s
 * run: waits */
#include "tests/t_s3.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>

#include "common/err.h"
#include "stages/serve/blobs.h"
#include "stages/serve/s3_object.h"

#define PART 5242880

static t_s3 store;
static char *base; /* a folder of this test */
static sl_err err;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- a place, of either kind ---- */

typedef struct {
    bool s3;
    const char *name;
} kind;

static const kind FOLDER = {false, "folder"}, S3 = {true, "s3"};

static const char *where(const kind *k, const char *name)
{
    static char out[4][500];
    static int next;
    char *o = out[next++ % 4];
    if (k->s3) snprintf(o, 500, "s3://" T_S3_BUCKET "/%s", name);
    else snprintf(o, 500, "%s/%s", base, name);
    return o;
}

static sl_conf *settings(void)
{
    static sl_conf c;
    sl_conf_defaults(&c);
    c.s3.part_bytes = PART;
    c.s3.try_s = 3;
    return &c;
}

static void open_at(sl_blobs *b, const kind *k, const char *name)
{
    *b = (sl_blobs){0};
    T_OK(sl_blobs_open(b, where(k, name), settings(), &err));
}

static const char *path_of(const char *name)
{
    static char out[4][500];
    static int next;
    char *o = out[next++ % 4];
    snprintf(o, 500, "%s/%s", base, name);
    return o;
}

/* A file of n bytes that do not repeat soon. */
static const char *make(const char *name, size_t n, unsigned seed)
{
    const char *path = path_of(name);
    FILE *f = fopen(path, "we");
    uint64_t x = seed * 2654435761u + 1;
    assert_non_null(f);
    for (size_t i = 0; i < n; i++) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        fputc((int)(x >> 56), f);
    }
    assert_int_equal(fclose(f), 0);
    return path;
}

static void same_file(const char *a, const char *b)
{
    char command[1100];
    snprintf(command, sizeof command, "cmp '%s' '%s'", a, b);
    if (system(command)) fail_msg("%s and %s differ", a, b);
}

static void put(const sl_blobs *b, const char *id, const char *name, const char *version,
                const char *from)
{
    uint64_t bytes;
    struct stat st;
    T_OK(sl_blobs_put(b, id, name, version, from, &bytes, &err));
    assert_int_equal(stat(from, &st), 0);
    assert_int_equal(bytes, st.st_size);
}

/* ---- both kinds ---- */

static void put_and_get(void **state)
{
    static const struct {
        const char *name;
        size_t bytes;
    } FILES[] = {{"job.json", 1},
                 {"empty", 0},
                 {"blocks/after.0+1 ~x.safetensors", 1000},
                 {"image.input", PART},
                 {"frames.safetensors", 2 * PART + 7}};
    sl_blobs b;
    open_at(&b, *state, "put");
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        const char *from = make("from", FILES[i].bytes, (unsigned)i), *to = path_of("to");
        put(&b, "job_1", FILES[i].name, "3.1", from);
        T_OK(sl_blobs_get(&b, "job_1", FILES[i].name, "3.1", FILES[i].bytes, to, &err));
        same_file(from, to);
        assert_int_equal(unlink(to), 0);
    }
    sl_blobs_close(&b);
}

static void versions_stand_side_by_side(void **state)
{
    sl_blobs b;
    open_at(&b, *state, "versions");
    const char *one = make("one", 500, 1), *two = make("two", 500, 2), *to = path_of("to");
    put(&b, "job", "state", "1.1", one);
    put(&b, "job", "state", "2.1", two);
    T_OK(sl_blobs_get(&b, "job", "state", "1.1", 500, to, &err));
    same_file(one, to);
    sl_blobs_drop(&b, "job", "state", "1.1");
    sl_blobs_drop(&b, "job", "state", "1.1"); /* it may be gone */
    assert_int_equal(sl_blobs_get(&b, "job", "state", "1.1", 500, to, &err), SL_GONE);
    T_OK(sl_blobs_get(&b, "job", "state", "2.1", 500, to, &err));
    same_file(two, to);
    sl_blobs_close(&b);
}

static void what_is_not_there(void **state)
{
    sl_blobs b;
    uint64_t bytes;
    open_at(&b, *state, "missing");
    const char *to = path_of("never");
    assert_int_equal(sl_blobs_put(&b, "job", "x", "1", path_of("none"), &bytes, &err), SL_GONE);
    assert_int_equal(bytes, 0);
    assert_int_equal(sl_blobs_get(&b, "job", "x", "1", 5, to, &err), SL_GONE);
    put(&b, "job", "x", "1", make("from", 100, 1));
    assert_int_equal(sl_blobs_get(&b, "job", "x", "1", 99, to, &err), SL_GONE);
    assert_int_equal(sl_blobs_get(&b, "job", "x", "1", 101, to, &err), SL_GONE);
    assert_non_null(strstr(err.msg, "has 100 bytes, want 101"));
    assert_int_not_equal(access(to, F_OK), 0);
    sl_blobs_close(&b);
}

typedef struct {
    char ids[8][64];
    int count;
} shown;

static void show(void *self, const char *id)
{
    shown *s = self;
    if (s->count < 8) snprintf(s->ids[s->count], sizeof s->ids[0], "%s", id);
    s->count++;
}

static void marks(void **state)
{
    sl_blobs b;
    shown all = {0}, old = {0}, none = {0};
    open_at(&b, *state, "marks");
    T_OK(sl_blobs_mark(&b, "job_a", &err));
    put(&b, "job_a", "job.json", "0.1", make("from", 10, 1));
    sl_blobs_each_marked(&b, 3600, show, &old);
    assert_int_equal(old.count, 0);
    sl_blobs_each_marked(&b, -2, show, &all);
    assert_int_equal(all.count, 1);
    assert_string_equal(all.ids[0], "job_a");
    sl_blobs_unmark(&b, "job_a");
    sl_blobs_each_marked(&b, -2, show, &none);
    assert_int_equal(none.count, 0);
    T_OK(sl_blobs_get(&b, "job_a", "job.json", "0.1", 10, path_of("to"), &err));
    sl_blobs_close(&b);
}

static void all_of_a_job_goes(void **state)
{
    sl_blobs b;
    shown none = {0};
    open_at(&b, *state, "remove");
    const char *from = make("from", 10, 1), *to = path_of("to");
    T_OK(sl_blobs_mark(&b, "job", &err));
    put(&b, "job", "a", "1", from);
    put(&b, "job", "b/c", "2", from);
    put(&b, "job2", "a", "1", from); /* whose name begins likewise */
    T_OK(sl_blobs_remove(&b, "job", &err));
    T_OK(sl_blobs_remove(&b, "job", &err));
    assert_int_equal(sl_blobs_get(&b, "job", "a", "1", 10, to, &err), SL_GONE);
    assert_int_equal(sl_blobs_get(&b, "job", "b/c", "2", 10, to, &err), SL_GONE);
    T_OK(sl_blobs_get(&b, "job2", "a", "1", 10, to, &err));
    sl_blobs_each_marked(&b, -2, show, &none);
    assert_int_equal(none.count, 0);
    sl_blobs_close(&b);
}

typedef struct {
    char *bytes;
    size_t size, most;
    bool over;
} gathered;

static bool gather(void *self, const char *bytes, size_t n)
{
    gathered *g = self;
    g->bytes = realloc(g->bytes, g->size + n);
    assert_non_null(g->bytes);
    memcpy(g->bytes + g->size, bytes, n);
    g->size += n;
    return g->size < g->most;
}

static bool is_over(void *self)
{
    return ((gathered *)self)->over;
}

static sl_code read_range(const sl_blobs *b, gathered *g, uint64_t all, uint64_t from,
                          uint64_t size)
{
    const sl_blobs_reading r = {.id = "job",
                                .name = "video.mp4",
                                .version = "1.9",
                                .all = all,
                                .from = from,
                                .size = size,
                                .take = gather,
                                .over = is_over,
                                .self = g};
    free(g->bytes);
    g->bytes = NULL;
    g->size = 0;
    return sl_blobs_read(b, &r, &err);
}

static void ranges(void **state)
{
    static const uint64_t AT[][2] = {{0, 3000000}, {0, 1}, {2999999, 1}, {12345, 100000}};
    sl_blobs b;
    gathered g = {.most = SIZE_MAX};
    open_at(&b, *state, "ranges");
    const char *from = make("from", 3000000, 5);
    FILE *f = fopen(from, "re");
    char *want = malloc(3000000);
    assert_int_equal(fread(want, 1, 3000000, f), 3000000);
    fclose(f);
    put(&b, "job", "video.mp4", "1.9", from);
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        T_OK(read_range(&b, &g, 3000000, AT[i][0], AT[i][1]));
        assert_int_equal(g.size, AT[i][1]);
        assert_memory_equal(g.bytes, want + AT[i][0], g.size);
    }
    assert_int_equal(read_range(&b, &g, 3000001, 5, 10), SL_GONE); /* another size */
    assert_int_equal(g.size, 0);
    g.most = 5000; /* whoever reads has enough */
    assert_int_equal(read_range(&b, &g, 3000000, 0, 3000000), SL_CANCELLED);
    g.most = SIZE_MAX;
    g.over = true;
    assert_int_equal(read_range(&b, &g, 3000000, 0, 3000000), SL_CANCELLED);
    free(g.bytes);
    free(want);
    sl_blobs_close(&b);
}

static void no_faster_than_the_rate(void **state)
{
    sl_blobs b;
    open_at(&b, *state, "rate");
    b.bytes_per_s = 1000000;
    const char *from = make("from", 2500000, 1);
    const double t0 = seconds();
    put(&b, "job", "x", "1", from);
    const double took = seconds() - t0;
    if (!(took > 1.5 && took < 20)) fail_msg("2.5 MB at 1 MB/s took %.2f s", took);
    sl_blobs_close(&b);
}

/* The store is stopped, the folder renamed. */
static void go_away(const kind *k, const char *name, bool away)
{
    char from[520], to[540];
    if (k->s3) {
        kill(store.pid, away ? SIGSTOP : SIGCONT);
        return;
    }
    snprintf(from, sizeof from, "%s", where(k, name));
    snprintf(to, sizeof to, "%s.away", from);
    assert_int_equal(away ? rename(from, to) : rename(to, from), 0);
}

static void away_and_back(void **state)
{
    const kind *k = *state;
    sl_blobs b;
    uint64_t bytes;
    open_at(&b, k, "away");
    const char *from = make("from", 100, 1), *to = path_of("to");
    put(&b, "job", "x", "1", from);
    go_away(k, "away", true);
    assert_int_equal(sl_blobs_put(&b, "job", "x", "2", from, &bytes, &err), SL_SYS);
    const double t0 = seconds();
    assert_int_equal(sl_blobs_put(&b, "job", "x", "3", from, &bytes, &err), SL_SYS);
    assert_int_equal(sl_blobs_get(&b, "job", "x", "1", 100, to, &err), SL_SYS);
    assert_int_equal(sl_blobs_mark(&b, "job3", &err), SL_SYS);
    assert_int_equal(sl_blobs_remove(&b, "job", &err), SL_SYS);
    if (seconds() - t0 > 30) fail_msg("known to be away, and asked for %.1f s", seconds() - t0);
    go_away(k, "away", false);
    put(&b, "job", "x", "2", from);
    T_OK(sl_blobs_get(&b, "job", "x", "1", 100, to, &err));
    same_file(from, to);
    sl_blobs_close(&b);
}

/* Under the same name: without a word, and with another's. */
static void another_place_is_away(void **state)
{
    static const char WORD[] = "0123456789abcdef0123456789abcdef";
    const kind *k = *state;
    char copy[600];
    sl_blobs b, again;
    uint64_t bytes;
    open_at(&b, k, "other");
    const char *from = make("from", 100, 1);
    put(&b, "job", "x", "1", from);
    for (int empty = 0; empty < 2; empty++) {
        if (k->s3) {
            sl_s3 *s;
            T_OK(sl_s3_open(&s, where(k, "other"), &settings()->s3, &err));
            if (empty) T_OK(sl_s3_delete(s, "store", &err));
            else T_OK(sl_s3_put_text(s, "store", WORD, 32, false, &err));
            sl_s3_close(&s);
        } else {
            snprintf(copy, sizeof copy, "%s/store", where(k, "other"));
            FILE *f = fopen(copy, "we");
            fputs(WORD, f);
            fclose(f);
            if (empty) unlink(copy);
        }
        assert_int_equal(sl_blobs_get(&b, "job", "y", "1", 5, path_of("to"), &err), SL_SYS);
        assert_non_null(strstr(err.msg, "is not there"));
        assert_int_equal(sl_blobs_put(&b, "job", "x", "2", from, &bytes, &err), SL_SYS);
    }
    open_at(&again, k, "other"); /* a new one, with a word of its own */
    assert_string_not_equal(again.word, b.word);
    sl_blobs_close(&again);
    sl_blobs_close(&b);
}

typedef struct {
    sl_blobs b;
    char at[500];
    const sl_conf *conf;
} opening;

static void *open_one(void *arg)
{
    opening *o = arg;
    sl_err why = {0};
    if (sl_blobs_open(&o->b, o->at, o->conf, &why)) fprintf(stderr, "%s\n", why.msg);
    return NULL;
}

static void servers_that_begin_together_see_one_word(void **state)
{
    opening all[6] = {0};
    pthread_t threads[6];
    const sl_conf *conf = settings();
    for (int i = 0; i < 6; i++) {
        all[i].conf = conf;
        snprintf(all[i].at, sizeof all[i].at, "%s", where(*state, "together"));
        assert_int_equal(pthread_create(&threads[i], NULL, open_one, &all[i]), 0);
    }
    for (int i = 0; i < 6; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(strlen(all[i].b.word), 32);
        assert_string_equal(all[i].b.word, all[0].b.word);
    }
    for (int i = 0; i < 6; i++) sl_blobs_close(&all[i].b);
}

/* ---- a store alone ---- */

static void faults_that_pass(void **state)
{
    static const char *const NAMES[] = {"busy", "closed"};
    sl_blobs b;
    open_at(&b, *state, "faults");
    const char *small = make("small", 1000, 1), *large = make("large", 2 * PART + 9, 2),
               *to = path_of("to");
    for (int i = 0; i < 2; i++) {
        t_s3_fault(&store, NAMES[i], 3, 0);
        put(&b, "job", "small", "1", small);
        t_s3_fault(&store, NAMES[i], 2, 1); /* of the parts */
        put(&b, "job", "large", "1", large);
        t_s3_fault(&store, NAMES[i], 1, 4); /* of what joins them */
        put(&b, "job", "large", "1", large);
        t_s3_fault(&store, NAMES[i], 2, 0);
        T_OK(sl_blobs_get(&b, "job", "small", "1", 1000, to, &err));
        same_file(small, to);
    }
    t_s3_fault(&store, "closed", 0, 0);
    sl_blobs_close(&b);
}

/* A connection that breaks goes on from where it was, not from the beginning. */
static void a_download_resumes(void **state)
{
    sl_blobs b;
    open_at(&b, *state, "resume");
    const char *large = make("large", 4000000, 3), *to = path_of("to");
    put(&b, "job", "x", "1", large);
    t_s3_seen(&store, "");
    t_s3_fault(&store, "cut", 3, 0);
    T_OK(sl_blobs_get(&b, "job", "x", "1", 4000000, to, &err));
    same_file(large, to);
    assert_int_equal(t_s3_seen(&store, "/job/1-x bytes="), 3);
    sl_blobs_close(&b);
}

static void change_object(const char *what, const char *key, int n)
{
    char words[600];
    snprintf(words, sizeof words, "%s/%s/%d", what, key, n);
    free(t_s3_control(&store, words));
}

static void a_truncated_object_is_not_taken_for_whole(void **state)
{
    sl_blobs b;
    gathered g = {.most = SIZE_MAX};
    open_at(&b, *state, "whole");
    const char *from = make("from", 300000, 1), *to = path_of("not-whole");
    put(&b, "job", "video.mp4", "1.9", from);
    change_object("flip", "whole/job/1.9-video.mp4", 299999);
    assert_int_equal(sl_blobs_get(&b, "job", "video.mp4", "1.9", 300000, to, &err), SL_GONE);
    assert_non_null(strstr(err.msg, "has other bytes than were sent"));
    assert_int_equal(read_range(&b, &g, 300000, 0, 300000), SL_GONE);
    assert_true(g.size < 300000); /* a client does not get the last of them */
    change_object("cut", "whole/job/1.9-video.mp4", 299999);
    assert_int_equal(sl_blobs_get(&b, "job", "video.mp4", "1.9", 300000, to, &err), SL_GONE);
    assert_non_null(strstr(err.msg, "has 299999 bytes, want 300000"));
    assert_int_not_equal(access(to, F_OK), 0);
    free(g.bytes);
    sl_blobs_close(&b);
}

/* Parts that will not be joined cost money until somebody removes them. */
static void parts_of_a_failure_are_removed(void **state)
{
    sl_blobs b;
    uint64_t bytes;
    shown none = {0};
    open_at(&b, *state, "parts");
    put(&b, "job", "first", "1", make("small", 10, 1)); /* the word has been looked at */
    const char *large = make("large", 2 * PART + 9, 2);
    t_s3_seen(&store, "");
    t_s3_fault(&store, "refused", 1, 2);
    assert_int_equal(sl_blobs_put(&b, "job", "large", "1", large, &bytes, &err), SL_SYS);
    assert_non_null(strstr(err.msg, "HTTP 400"));
    assert_int_equal(t_s3_seen(&store, "DELETE /" T_S3_BUCKET "/parts/job/1-large?uploadId="), 1);
    /* the store is away meanwhile: the sweep removes them */
    t_s3_fault(&store, "busy", 100000, 3);
    assert_int_equal(sl_blobs_put(&b, "job", "large", "2", large, &bytes, &err), SL_SYS);
    t_s3_fault(&store, "busy", 0, 0);
    t_s3_seen(&store, "");
    sl_blobs_each_marked(&b, 3600, show, &none);
    assert_int_equal(t_s3_seen(&store, "DELETE /" T_S3_BUCKET "/parts/job/2-large?uploadId="), 1);
    sl_blobs_each_marked(&b, 3600, show, &none);
    assert_int_equal(t_s3_seen(&store, "DELETE"), 0);
    assert_int_equal(none.count, 0);
    sl_blobs_close(&b);
}

static void links(void **state)
{
    sl_blobs b;
    char *url, *text, type[64], other[2000];
    long code;
    size_t size;
    open_at(&b, *state, "links");
    put(&b, "job", "video.mp4", "1.1", make("from", 1000, 1));
    T_OK(sl_blobs_link(&url, &b, "job", "video.mp4", "1.1", 60, "video/mp4", "job.mp4", &err));
    assert_null(strstr(url, store.secret));
    text = t_s3_get(url, NULL, &code, type, &size);
    assert_int_equal(code, 200);
    assert_int_equal(size, 1000);
    assert_string_equal(type, "video/mp4");
    free(text);
    text = t_s3_get(url, "10-19", &code, type, &size);
    assert_int_equal(code, 206);
    assert_int_equal(size, 10);
    free(text);
    snprintf(other, sizeof other, "%s", url);
    memcpy(strstr(other, "1.1-video"), "1.2", 3); /* another file: not what was signed */
    free(t_s3_get(other, NULL, &code, type, &size));
    assert_int_equal(code, 403);
    free(url);
    sl_blobs_close(&b);
}

static void more_than_a_page(void **state)
{
    sl_blobs b;
    shown all = {0};
    open_at(&b, *state, "pages");
    change_object("many", "pages/new/job_", 1500);
    change_object("many", "pages/job/1.", 1100);
    sl_blobs_each_marked(&b, -2, show, &all);
    assert_int_equal(all.count, 1500);
    t_s3_seen(&store, "");
    T_OK(sl_blobs_remove(&b, "job", &err));
    assert_int_equal(t_s3_seen(&store, "DELETE /" T_S3_BUCKET "/pages/job/"), 1100);
    sl_blobs_close(&b);
}

/* One line that says what is wrong, and no secret. */
static void refused_places(void **state)
{
    static const struct {
        const char *place, *secret, *endpoint, *says;
    } CASES[] = {
        {"s3://no-such-bucket/x", NULL, NULL, "s3://no-such-bucket/x: HTTP 404 NoSuchBucket: "},
        {"s3://" T_S3_BUCKET "/x", "another-secret", NULL, "HTTP 403 SignatureDoesNotMatch: "},
        {"s3://" T_S3_BUCKET "/x", NULL, "http://127.0.0.1:1",
         "the store at http://127.0.0.1:1: s3://" T_S3_BUCKET "/x: "},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        sl_blobs b = {0};
        sl_conf *c = settings();
        c->s3.try_s = 1;
        if (CASES[i].secret) setenv("AWS_SECRET_ACCESS_KEY", CASES[i].secret, 1);
        if (CASES[i].endpoint)
            snprintf(c->s3.endpoint, sizeof c->s3.endpoint, "%s", CASES[i].endpoint);
        const sl_code rc = sl_blobs_open(&b, CASES[i].place, c, &err);
        t_s3_environment(&store);
        assert_int_not_equal(rc, SL_OK);
        if (strncmp(err.msg, "--blobs: ", 9) || !strstr(err.msg, CASES[i].says))
            fail_msg("\"%s\" lacks \"%s\"", err.msg, CASES[i].says);
        assert_null(strstr(err.msg, store.secret));
        assert_null(strstr(err.msg, "another-secret"));
        assert_null(strstr(err.msg, store.key));
        assert_null(strchr(err.msg, '\n'));
        assert_int_equal(*b.dir, 0);
    }
}

#define BOTH(test)                                                                                 \
    {#test " (folder)", test, NULL, NULL, (void *)&FOLDER},                                        \
    {                                                                                              \
#test " (s3)", test, NULL, NULL, (void *)&S3                                               \
    }
#define STORE(test)                                                                                \
    {                                                                                              \
#test, test, NULL, NULL, (void *)&S3                                                       \
    }

int main(void)
{
    const struct CMUnitTest all[] = {
        BOTH(put_and_get),
        BOTH(versions_stand_side_by_side),
        BOTH(what_is_not_there),
        BOTH(marks),
        BOTH(all_of_a_job_goes),
        BOTH(ranges),
        BOTH(no_faster_than_the_rate),
        BOTH(away_and_back),
        BOTH(another_place_is_away),
        BOTH(servers_that_begin_together_see_one_word),
        STORE(faults_that_pass),
        STORE(a_download_resumes),
        STORE(a_truncated_object_is_not_taken_for_whole),
        STORE(parts_of_a_failure_are_removed),
        STORE(links),
        STORE(more_than_a_page),
        STORE(refused_places),
    };
    struct CMUnitTest some[sizeof all / sizeof *all];
    size_t count = 0;
    int failed = 0;
    base = strdup(t_tmpdir());
    curl_global_init(CURL_GLOBAL_DEFAULT);
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].initial_state == &FOLDER) some[count++] = all[i];
    const bool has_store = t_s3_is_there();
    if (has_store) {
        t_s3_open(&store);
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            if (all[i].initial_state == &S3) some[count++] = all[i];
    } else printf("[  SKIPPED ] no S3 server on this machine: tests/s3.sh makes one\n");
    failed = _cmocka_run_group_tests("blobs", some, count, NULL, NULL);
    if (has_store) t_s3_close(&store);
    t_rmdir(base);
    free(base);
    return failed;
}
