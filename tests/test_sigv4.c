/* test_sigv4.c - SHA-256 and HMAC by the published values of FIPS 180-4 and RFC 4231, signatures by
 * AWS's published examples: of S3's guide, and of its Signature Version 4 test suite. */
#include "tests/t.h"

#include "common/sha256.h"
#include "stages/serve/sigv4.h"

static void sha256_published(void **state)
{
    static const struct {
        const char *text, *is;
    } CASES[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrl"
         "mnopqrsmnopqrstnopqrstu",
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
    };
    char hex[SL_SHA256_HEX];
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        sl_sha256_hex(hex, CASES[i].text, strlen(CASES[i].text));
        assert_string_equal(hex, CASES[i].is);
    }
}

/* A million letters, in pieces of every size from 0 to 200. */
static void sha256_in_pieces(void **state)
{
    char letters[200], hex[SL_SHA256_HEX];
    unsigned char digest[SL_SHA256];
    sl_sha256 h;
    (void)state;
    memset(letters, 'a', sizeof letters);
    sl_sha256_begin(&h);
    for (size_t left = 1000000, n = 0; left; n = (n + 1) % 201) {
        const size_t piece = n < left ? n : left;
        sl_sha256_add(&h, letters, piece);
        left -= piece;
    }
    sl_sha256_end(&h, digest);
    sl_sha256_to_hex(hex, digest);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

/* RFC 4231, cases 2 and 6: a short key, and one that is longer than a block. */
static void hmac_published(void **state)
{
    unsigned char digest[SL_SHA256], longer[131];
    char hex[SL_SHA256_HEX];
    static const char WHAT[] = "what do ya want for nothing?",
                      LARGE[] = "Test Using Larger Than Block-Size Key - Hash Key First";
    (void)state;
    sl_hmac_sha256(digest, "Jefe", 4, WHAT, strlen(WHAT));
    sl_sha256_to_hex(hex, digest);
    assert_string_equal(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    memset(longer, 0xaa, sizeof longer);
    sl_hmac_sha256(digest, longer, sizeof longer, LARGE, strlen(LARGE));
    sl_sha256_to_hex(hex, digest);
    assert_string_equal(hex, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

/* ---- signatures ---- */

static const sl_sigv4_keys S3 = {"AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
                                 ""};
static const sl_sigv4_keys SUITE = {"AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", ""};
#define EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define PUT_BODY "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"

/* docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html */
static void requests_of_the_guide(void **state)
{
    static const struct {
        const char *method, *path, *query, *payload, *headers[4], *signature;
    } CASES[] = {
        {"GET",
         "/test.txt",
         "",
         EMPTY,
         {"range: bytes=0-9", "x-amz-content-sha256: " EMPTY},
         "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
        {"PUT",
         "/test%24file.text",
         "",
         PUT_BODY,
         {"date: Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class: REDUCED_REDUNDANCY",
          "x-amz-content-sha256: " PUT_BODY},
         "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
        {"GET",
         "/",
         "lifecycle",
         EMPTY,
         {"x-amz-content-sha256: " EMPTY},
         "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
        {"GET",
         "/",
         "prefix=J&max-keys=2",
         EMPTY,
         {"x-amz-content-sha256: " EMPTY},
         "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
    };
    sl_err err = {0};
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const sl_sigv4_ask ask = {CASES[i].method,  "examplebucket.s3.amazonaws.com",
                                  CASES[i].path,    CASES[i].query,
                                  CASES[i].headers, CASES[i].payload,
                                  "us-east-1",      "s3",
                                  1369353600}; /* 2013-05-24 */
        char *lines = NULL;
        T_OK(sl_sigv4_sign(&lines, &S3, &ask, &err));
        if (!strstr(lines, CASES[i].signature)) fail_msg("case %zu: %s", i, lines);
        assert_non_null(strstr(lines, "x-amz-date: 20130524T000000Z\n"));
        free(lines);
    }
}

/* docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html */
static void link_of_the_guide(void **state)
{
    const sl_sigv4_ask ask = {"GET",       "examplebucket.s3.amazonaws.com",
                              "/test.txt", "",
                              NULL,        SL_SIGV4_UNSIGNED,
                              "us-east-1", "s3",
                              1369353600};
    char *query = NULL;
    sl_err err = {0};
    (void)state;
    T_OK(sl_sigv4_link(&query, &S3, &ask, 86400, &err));
    assert_string_equal(
        query, "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524"
               "%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&"
               "X-Amz-SignedHeaders=host&X-Amz-Signature="
               "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404");
    free(query);
}

/* get-vanilla, -query-order-key-case, -query-unreserved, get-utf8, get-header-value-trim and
 * post-header-key-sort of the test suite. */
static void requests_of_the_suite(void **state)
{
#define UNRESERVED "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    static const struct {
        const char *method, *path, *query, *headers[4], *signature;
    } CASES[] = {
        {"GET",
         "/",
         "",
         {NULL},
         "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
        {"GET",
         "/",
         "Param2=value2&Param1=value1",
         {NULL},
         "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
        {"GET",
         "/",
         UNRESERVED "=" UNRESERVED,
         {NULL},
         "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197"},
        {"GET",
         "/%E1%88%B4",
         "",
         {NULL},
         "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
        {"GET",
         "/",
         "",
         {"my-header1: value1 ", "my-header2: \"a   b   c\" "},
         "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
        {"POST",
         "/",
         "",
         {"my-header1:value1"},
         "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"},
    };
    sl_err err = {0};
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const sl_sigv4_ask ask = {CASES[i].method,  "example.amazonaws.com",
                                  CASES[i].path,    CASES[i].query,
                                  CASES[i].headers, EMPTY,
                                  "us-east-1",      "service",
                                  1440938160};
        char *lines = NULL;
        T_OK(sl_sigv4_sign(&lines, &SUITE, &ask, &err));
        if (!strstr(lines, CASES[i].signature)) fail_msg("case %zu: %s", i, lines);
        free(lines);
    }
}

static void keys_that_end(void **state)
{
    static const sl_sigv4_keys K = {"ID", "SECRET", "a/token+with=signs"};
    const sl_sigv4_ask ask = {"GET", "h", "/", "", NULL, EMPTY, "r", "s3", 0};
    char *lines = NULL, *query = NULL;
    sl_err err = {0};
    (void)state;
    T_OK(sl_sigv4_sign(&lines, &K, &ask, &err));
    assert_non_null(strstr(lines, "\nx-amz-security-token: a/token+with=signs\n"));
    assert_non_null(strstr(lines, "SignedHeaders=host;x-amz-date;x-amz-security-token,"));
    T_OK(sl_sigv4_link(&query, &K, &ask, 60, &err));
    assert_non_null(strstr(query, "&X-Amz-Security-Token=a%2Ftoken%2Bwith%3Dsigns&"));
    assert_null(strstr(lines, "SECRET"));
    assert_null(strstr(query, "SECRET"));
    free(lines);
    free(query);
}

static void escaped(void **state)
{
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);
    (void)state;
    assert_non_null(to);
    sl_sigv4_escape(to, "a/b+c d~é%", true);
    fputc(' ', to);
    sl_sigv4_escape(to, "a/b", false);
    fclose(to);
    assert_string_equal(text, "a/b%2Bc%20d~%C3%A9%25 a%2Fb");
    free(text);
}

static void too_many_parts(void **state)
{
    const char *headers[SL_SIGV4_PARTS + 2] = {NULL};
    for (int i = 0; i <= SL_SIGV4_PARTS; i++) headers[i] = "a: b";
    const sl_sigv4_ask ask = {"GET", "h", "/", "", headers, EMPTY, "r", "s3", 0};
    char *lines = NULL;
    sl_err err = {0};
    (void)state;
    assert_int_equal(sl_sigv4_sign(&lines, &S3, &ask, &err), SL_ARG);
    assert_string_equal(err.msg, "a signed request has more than 32 headers");
    assert_null(lines);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha256_published),  cmocka_unit_test(sha256_in_pieces),
        cmocka_unit_test(hmac_published),    cmocka_unit_test(requests_of_the_guide),
        cmocka_unit_test(link_of_the_guide), cmocka_unit_test(requests_of_the_suite),
        cmocka_unit_test(keys_that_end),     cmocka_unit_test(escaped),
        cmocka_unit_test(too_many_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
