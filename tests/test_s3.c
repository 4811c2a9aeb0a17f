/* test_s3.c - what is known of a store before it is asked: addresses, keys, and its XML.
 * run: waits */
#include "tests/t.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>

#include "stages/serve/s3.h"

static sl_err err;
static sl_conf conf;

static void fresh(void)
{
    static const char *const ALL[] = {"AWS_ACCESS_KEY_ID",
                                      "AWS_SECRET_ACCESS_KEY",
                                      "AWS_SESSION_TOKEN",
                                      "AWS_PROFILE",
                                      "AWS_REGION",
                                      "AWS_DEFAULT_REGION",
                                      "AWS_ENDPOINT_URL",
                                      "AWS_ENDPOINT_URL_S3",
                                      "AWS_SHARED_CREDENTIALS_FILE",
                                      "AWS_CA_BUNDLE"};
    for (size_t i = 0; i < sizeof ALL / sizeof *ALL; i++) unsetenv(ALL[i]);
    setenv("HOME", "/nonexistent", 1);
    sl_conf_defaults(&conf);
    err = (sl_err){0};
}

/* ---- addresses ---- */

static void addresses(void **state)
{
    static const struct {
        const char *where, *endpoint, *addressing, *region, *url, *path, *prefix, *name;
    } CASES[] = {
        {"s3://bucket", "", "auto", "", "https://bucket.s3.us-east-1.amazonaws.com", "", "",
         "s3://bucket"},
        {"s3://bucket/a/b/", "", "auto", "eu-west-1", "https://bucket.s3.eu-west-1.amazonaws.com",
         "", "a/b/", "s3://bucket/a/b"},
        {"s3://my.bucket/", "", "auto", "", "https://s3.us-east-1.amazonaws.com", "/my.bucket", "",
         "s3://my.bucket"},
        {"s3://bucket", "http://minio:9000", "auto", "", "http://minio:9000", "/bucket", "",
         "s3://bucket"},
        {"s3://bucket", "http://minio:9000/", "virtual", "", "http://bucket.minio:9000", "", "",
         "s3://bucket"},
        {"s3://bucket", "", "path", "", "https://s3.us-east-1.amazonaws.com", "/bucket", "",
         "s3://bucket"},
        {"s3://bucket", "https://store.example:443", "auto", "", "https://store.example", "/bucket",
         "", "s3://bucket"},
        {"s3://bucket", "", "auto", "cn-north-1", "https://bucket.s3.cn-north-1.amazonaws.com.cn",
         "", "", "s3://bucket"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        sl_s3_place p;
        fresh();
        snprintf(conf.s3.endpoint, sizeof conf.s3.endpoint, "%s", CASES[i].endpoint);
        snprintf(conf.s3.addressing, sizeof conf.s3.addressing, "%s", CASES[i].addressing);
        snprintf(conf.s3.region, sizeof conf.s3.region, "%s", CASES[i].region);
        T_OK(sl_s3_place_read(&p, CASES[i].where, &conf.s3, &err));
        assert_string_equal(p.way.url, CASES[i].url);
        assert_string_equal(p.way.path, CASES[i].path);
        assert_string_equal(p.prefix, CASES[i].prefix);
        assert_string_equal(p.name, CASES[i].name);
        assert_string_equal(p.way.host, strstr(p.way.url, "://") + 3);
        assert_string_equal(p.link.url, p.way.url);
    }
}

static void of_the_environment(void **state)
{
    sl_s3_place p;
    (void)state;
    fresh();
    setenv("AWS_ENDPOINT_URL", "http://one:1", 1);
    setenv("AWS_ENDPOINT_URL_S3", "http://two:2", 1);
    setenv("AWS_REGION", "eu-north-1", 1);
    snprintf(conf.s3.link_endpoint, sizeof conf.s3.link_endpoint, "https://outside.example");
    T_OK(sl_s3_place_read(&p, "s3://bucket/x", &conf.s3, &err));
    assert_string_equal(p.way.url, "http://two:2");
    assert_string_equal(p.link.url, "https://outside.example");
    assert_string_equal(p.region, "eu-north-1");
    snprintf(conf.s3.endpoint, sizeof conf.s3.endpoint, "http://three:3"); /* a setting is first */
    T_OK(sl_s3_place_read(&p, "s3://bucket/x", &conf.s3, &err));
    assert_string_equal(p.way.url, "http://three:3");
}

static void no_addresses(void **state)
{
    static const struct {
        const char *where, *endpoint, *says;
    } CASES[] = {
        {"s3://", "", "\"\" is no bucket's name, want 3 to 63 of a-z"},
        {"s3://ab", "", "\"ab\" is no bucket's name"},
        {"s3://Bucket", "", "\"Bucket\" is no bucket's name"},
        {"s3://-bucket", "", "\"-bucket\" is no bucket's name"},
        {"s3://bucket/a//b", "", "has a part that is empty, . or .."},
        {"s3://bucket/../b", "", "has a part that is empty, . or .."},
        {"s3://bucket/a b", "", "the prefix has byte 0x20, want visible ASCII"},
        {"s3://bucket", "ftp://x", "the store's endpoint is no address of one"},
        {"s3://bucket", "http://user:word@x", "the store's endpoint is no address of one"},
        {"s3://bucket", "http://x/path", "the store's endpoint is no address of one"},
        {"s3://bucket", "minio", "the store's endpoint is no address of one"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        sl_s3_place p;
        fresh();
        snprintf(conf.s3.endpoint, sizeof conf.s3.endpoint, "%s", CASES[i].endpoint);
        assert_int_equal(sl_s3_place_read(&p, CASES[i].where, &conf.s3, &err), SL_ARG);
        if (!strstr(err.msg, CASES[i].says))
            fail_msg("\"%s\" lacks \"%s\"", err.msg, CASES[i].says);
        assert_null(strstr(err.msg, "word"));
    }
}

/* ---- keys ---- */

static const char *keys_file(const char *dir, const char *text, mode_t mode)
{
    static char path[300];
    snprintf(path, sizeof path, "%s/keys", dir);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(chmod(path, mode), 0);
    return path;
}

static sl_code open_keys(sl_s3_keys *k, sl_sigv4_keys *out)
{
    *k = (sl_s3_keys){0};
    pthread_mutex_init(&k->lock, NULL);
    sl_code rc = sl_s3_keys_open(k, &conf.s3, &err);
    if (!rc) sl_s3_keys_get(k, out);
    return rc;
}

static void keys(void **state)
{
    static const char TWO[] = "# of tests\n[default]\naws_access_key_id = ONE\n"
                              "aws_secret_access_key=first/secret\n[other]\n"
                              "aws_access_key_id = TWO\naws_secret_access_key = second+secret \n"
                              "aws_session_token = a==\n";
    sl_s3_keys k;
    sl_sigv4_keys now;
    const char *dir = t_tmpdir();
    (void)state;
    fresh();
    assert_int_equal(open_keys(&k, &now), SL_ARG);
    assert_non_null(strstr(err.msg, "no keys for the store, want AWS_ACCESS_KEY_ID and"));
    setenv("AWS_ACCESS_KEY_ID", "ENV", 1);
    setenv("AWS_SECRET_ACCESS_KEY", "env secret", 1);
    assert_int_equal(open_keys(&k, &now), SL_ARG);
    assert_null(strstr(err.msg, "env secret"));
    setenv("AWS_SECRET_ACCESS_KEY", "env-secret", 1);
    T_OK(open_keys(&k, &now));
    assert_string_equal(now.id, "ENV");
    /* a file that a setting names is first */
    snprintf(conf.s3.credentials, sizeof conf.s3.credentials, "%s", keys_file(dir, TWO, 0644));
    assert_int_equal(open_keys(&k, &now), SL_ARG);
    assert_non_null(strstr(err.msg, "has mode 0644, want 0600"));
    keys_file(dir, TWO, 0600);
    T_OK(open_keys(&k, &now));
    assert_string_equal(now.id, "ONE");
    assert_string_equal(now.secret, "first/secret");
    assert_string_equal(now.token, "");
    setenv("AWS_PROFILE", "other", 1);
    T_OK(open_keys(&k, &now));
    assert_string_equal(now.id, "TWO");
    assert_string_equal(now.secret, "second+secret");
    assert_string_equal(now.token, "a==");
    setenv("AWS_PROFILE", "third", 1);
    assert_int_equal(open_keys(&k, &now), SL_ARG);
    assert_non_null(strstr(err.msg, "of [third]"));
    t_rmdir(dir);
}

/* Keys that end after a while are written anew; a file that is no good leaves those of before. */
static void keys_that_change(void **state)
{
    sl_s3_keys k;
    sl_sigv4_keys now;
    const char *dir = t_tmpdir();
    (void)state;
    fresh();
    snprintf(conf.s3.credentials, sizeof conf.s3.credentials, "%s",
             keys_file(dir, "[default]\naws_access_key_id=A\naws_secret_access_key=s1\n", 0600));
    T_OK(open_keys(&k, &now));
    assert_string_equal(now.id, "A");
    usleep(20000);
    keys_file(dir, "[default]\naws_access_key_id=B\naws_secret_access_key=s2\n", 0600);
    sl_s3_keys_get(&k, &now);
    assert_string_equal(now.id, "B");
    usleep(20000);
    keys_file(dir, "nothing\n", 0600);
    sl_s3_keys_get(&k, &now);
    assert_string_equal(now.id, "B");
    sl_s3_keys_close(&k);
    t_rmdir(dir);
}

/* ---- XML ---- */

static void xml(void **state)
{
    static const char TEXT[] =
        "<?xml version=\"1.0\"?><List xmlns=\"x\"><Contents><Key>a&amp;b&lt;&#65;&#x42;</Key>"
        "</Contents><ContentsOther>no</ContentsOther><Contents a='1'><Key>second</Key></Contents>"
        "<Truncated>true</Truncated><Open>";
    sl_s3_text all = {TEXT, strlen(TEXT)}, one;
    char out[16];
    (void)state;
    assert_true(sl_s3_xml_next(&all, "Contents", &one));
    assert_true(sl_s3_xml_get(one, "Key", out, sizeof out));
    assert_string_equal(out, "a&b<AB");
    assert_true(sl_s3_xml_next(&all, "Contents", &one));
    assert_true(sl_s3_xml_get(one, "Key", out, sizeof out));
    assert_string_equal(out, "second");
    assert_false(sl_s3_xml_next(&all, "Contents", &one));
    assert_true(sl_s3_xml_get(all, "Truncated", out, sizeof out));
    assert_string_equal(out, "true");
    assert_false(sl_s3_xml_get(all, "Open", out, sizeof out)); /* without its end */
    assert_string_equal(out, "");
    assert_false(sl_s3_xml_get(all, "Truncated", out, 4)); /* does not fit */
    assert_false(sl_s3_xml_get((sl_s3_text){NULL, 0}, "Key", out, sizeof out));
    static const char ODD[] = "<Key>&;&#;&#xzz;&#0;&#1114112;&unknown;&</Key>";
    char plain[64];
    assert_true(sl_s3_xml_get((sl_s3_text){ODD, strlen(ODD)}, "Key", plain, sizeof plain));
    assert_string_equal(plain, "&;&#;&#xzz;&#0;&#1114112;&unknown;&");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses),        cmocka_unit_test(of_the_environment),
        cmocka_unit_test(no_addresses),     cmocka_unit_test(keys),
        cmocka_unit_test(keys_that_change), cmocka_unit_test(xml),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
