/* test_fleet_store.c - what clients get of jobs whose files are in an S3 server: through a front
 * end and by links; large files. Skipped where tests/s3.sh has made none. limit: 400 s */
#include "tests/t_fleet.h"

/* A job that has been made, its id. */
static void make_one(t_made *m)
{
    memset(m, 0, sizeof *m);
    submit_one(m, 0);
    assert_string_equal(t_wait(&servers[0], m->id), "completed");
}

static void get_part(t_reply *r, const char *path, const char *header, long code, size_t size)
{
    t_http_all(r, servers[0].url, "GET", path, NULL, NULL, NULL, header);
    if (r->code != code || r->size != size)
        fail_msg("%s, %s: HTTP %ld, %zu bytes, want %ld, %zu", path, header, r->code, r->size, code,
                 size);
}

/* What a client is sent through the front end: whole, ranges, nothing that it has already; 503
 * while the store is away. */
static void content_through_the_server(const t_made *m)
{
    const char *path = t_format("/v1/videos/%s/content", m->id);
    char tag[128], video[200];
    t_reply r, whole;
    snprintf(video, sizeof video, "%s", path);
    t_http(&whole, &servers[0], "GET", video);
    assert_int_equal(whole.code, 200);
    const char *at = strstr(whole.headers, "ETag: ");
    assert_non_null(at);
    snprintf(tag, sizeof tag, "If-None-Match: %.*s", (int)strcspn(at + 6, "\r\n"), at + 6);
    get_part(&r, video, "Range: bytes=100-299", 206, 200);
    assert_memory_equal(r.body, whole.body + 100, 200);
    assert_non_null(strstr(r.headers, t_format("Content-Range: bytes 100-299/%zu", whole.size)));
    t_reply_free(&r);
    get_part(&r, video, "Range: bytes=-7", 206, 7);
    assert_memory_equal(r.body, whole.body + whole.size - 7, 7);
    t_reply_free(&r);
    get_part(&r, video, tag, 304, 0);
    t_reply_free(&r);
    t_http(&r, &servers[0], "HEAD", video);
    assert_int_equal(r.code, 200);
    assert_non_null(strstr(r.headers, t_format("Content-Length: %zu", whole.size)));
    t_reply_free(&r);
    t_s3_fault(&store, "cut", 2, 0); /* goes on from where it was */
    t_http(&r, &servers[0], "GET", video);
    assert_int_equal(r.size, whole.size);
    assert_memory_equal(r.body, whole.body, whole.size);
    t_reply_free(&r);
    t_s3_fault(&store, "busy", 1000000, 0);
    t_http(&r, &servers[0], "GET", video);
    assert_int_equal(r.code, 503);
    assert_non_null(strstr(r.headers, "Retry-After: "));
    t_reply_free(&r);
    assert_int_equal(request("POST", "/v1/videos", 1, NULL, &r), 503);
    assert_string_equal(t_reply_text(&r, "error.code"), "away");
    t_reply_free(&r);
    t_s3_fault(&store, "busy", 0, 0);
    t_reply_free(&whole);
}

/* The link gives the same bytes, and is no link to anything else. */
static void content_by_a_link(const t_made *m)
{
    t_reply r, whole;
    char url[2000], type[64];
    long code;
    size_t size;
    const char *path = t_format("/v1/videos/%s/content", m->id);
    t_http(&r, &servers[0], "GET", path);
    assert_int_equal(r.code, 302);
    assert_int_equal(r.size, 0);
    const char *at = strstr(r.headers, "Location: ");
    assert_non_null(at);
    snprintf(url, sizeof url, "%.*s", (int)strcspn(at + 10, "\r\n"), at + 10);
    t_reply_free(&r);
    char *video = t_s3_get(url, NULL, &code, type, &size);
    assert_int_equal(code, 200);
    assert_string_equal(type, "video/mp4");
    t_http(&r, &servers[0], "HEAD", path);
    assert_int_equal(r.code, 200);
    assert_non_null(strstr(r.headers, t_format("Content-Length: %zu", size)));
    t_reply_free(&r);
    front_conf = "";
    kill_host(0);
    conf_of(0);
    start_server(0, true);
    t_http(&whole, &servers[0], "GET", path);
    assert_int_equal(whole.size, size);
    assert_memory_equal(whole.body, video, size);
    t_reply_free(&whole);
    free(video);
}

static void content_of_a_store(void **state)
{
    t_made m;
    t_reply r;
    (void)state;
    fronts = workers = 1;
    front_conf = "s3: { content = \"redirect\"; try_s = 1; };\n";
    open_fleet();
    make_one(&m);
    content_by_a_link(&m);
    content_through_the_server(&m);
    /* files of a job that is removed while the store is away go when it is back */
    t_s3_fault(&store, "busy", 1000000, 0);
    assert_int_equal(request("DELETE", t_format("/v1/videos/%s", m.id), -1, NULL, &r), 200);
    t_reply_free(&r);
    t_s3_fault(&store, "busy", 0, 0);
    const double until = t_seconds() + 90;
    while (has_files_of(m.id) && t_seconds() < until) usleep(200000);
    assert_false(has_files_of(m.id));
    close_fleet();
}

typedef struct {
    char path[200];
    long bytes_per_s; /* 0: as fast as it comes */
    size_t leaves;    /* after so many; 0: stays */
    t_reply r;
} reader;

static size_t read_some(char *data, size_t one, size_t n, void *self)
{
    reader *to = self;
    if (to->leaves && to->r.size > to->leaves) return 0;
    return t_reply_body(data, one, n, &to->r);
}

static void *read_one(void *arg)
{
    reader *to = arg;
    CURL *c = curl_easy_init();
    char url[400];
    snprintf(url, sizeof url, "%s%s", servers[0].url, to->path);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 60L);
    curl_easy_setopt(c, CURLOPT_BUFFERSIZE, 8192L);
    curl_easy_setopt(c, CURLOPT_MAX_RECV_SPEED_LARGE, (curl_off_t)to->bytes_per_s);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, read_some);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, to);
    if (!curl_easy_perform(c)) curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &to->r.code);
    curl_easy_cleanup(c);
    return NULL;
}

/* A file of more than the server's memory for it, to clients that are fast, slow, and gone in the
 * middle, over connections to the store that break; then the server ends while one reads. */
static void large_files_of_a_store(void **state)
{
    enum { READERS = 9 };
    const char *const fields[] = {
        "prompt", "a cat", "input_reference", "@" T_IMAGE, "size", "160x96",
        "frames", "33",    "steps",           "1",         "dump", "true",
        NULL};
    static reader all[READERS];
    pthread_t threads[READERS];
    t_reply r;
    char id[64];
    (void)state;
    fronts = workers = 1;
    open_fleet();
    t_post(&r, &servers[0], fields, NULL);
    assert_int_equal(r.code, 200);
    snprintf(id, sizeof id, "%s", t_reply_text(&r, "id"));
    t_reply_free(&r);
    assert_string_equal(t_wait(&servers[0], id), "completed");
    memset(all, 0, sizeof all);
    for (int i = 0; i < READERS; i++) {
        snprintf(all[i].path, sizeof all[i].path, "/v1/videos/%s/dump/frames.safetensors", id);
        all[i].bytes_per_s = i % 3 == 1 ? 400000 : 0;
        all[i].leaves = i % 3 == 2 ? 300000 : 0;
    }
    read_one(&all[0]);
    assert_int_equal(all[0].r.code, 200);
    assert_true(all[0].r.size > 1000000);
    t_s3_fault(&store, "cut", 4, 2);
    for (int i = 1; i < READERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_one, &all[i]), 0);
    for (int i = 1; i < READERS; i++) pthread_join(threads[i], NULL);
    t_s3_fault(&store, "cut", 0, 0);
    for (int i = 1; i < READERS; i++) {
        if (!all[i].leaves) assert_int_equal(all[i].r.size, all[0].r.size);
        assert_memory_equal(all[i].r.body, all[0].r.body, all[i].r.size);
        t_reply_free(&all[i].r);
    }
    for (size_t at = 0; at < all[0].r.size; at += 700001) {
        const size_t left = all[0].r.size - at, n = left < 700001 ? left : 700001;
        get_part(&r, all[0].path, t_format("Range: bytes=%zu-%zu", at, at + n - 1), 206, n);
        assert_memory_equal(r.body, all[0].r.body + at, n);
        t_reply_free(&r);
    }
    all[1].bytes_per_s = 100000;
    assert_int_equal(pthread_create(&threads[1], NULL, read_one, &all[1]), 0);
    usleep(500000);
    assert_int_equal(t_serve_stop(&servers[0]), 0);
    pthread_join(threads[1], NULL);
    start_server(0, true);
    t_reply_free(&all[1].r);
    t_reply_free(&all[0].r);
    close_fleet();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(content_of_a_store),
        cmocka_unit_test(large_files_of_a_store),
    };
    if (!t_redis_is_there() || !t_s3_is_there()) {
        printf("[  SKIPPED ] no redis-server on this machine, or no S3 server (tests/s3.sh)\n");
        return 0;
    }
    on_s3 = true;
    curl_global_init(CURL_GLOBAL_DEFAULT);
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
