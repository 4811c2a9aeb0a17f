/* test_base64.c - RFC 4648's test vectors (section 10), with and without padding; every byte; what
 * is not base64. */
#include "tests/t.h"

#include "common/base64.h"

static bool decode(uint8_t *to, size_t *size, const char *text)
{
    const size_t n = strlen(text);
    char *copy = malloc(n + 1); /* of its own size, so that reading past it shows */
    memcpy(copy, text, n);
    const bool good = sl_base64_decode(to, size, copy, n);
    free(copy);
    return good;
}

static void test_vectors(void **state)
{
    static const char *const OF[][2] = {{"", ""},
                                        {"Zg==", "f"},
                                        {"Zm8=", "fo"},
                                        {"Zm9v", "foo"},
                                        {"Zm9vYg==", "foob"},
                                        {"Zm9vYmE=", "fooba"},
                                        {"Zm9vYmFy", "foobar"},
                                        {"Zg", "f"},
                                        {"Zm8", "fo"},
                                        {"Zm9vYmE", "fooba"}};
    uint8_t got[16];
    size_t size;
    (void)state;
    for (size_t i = 0; i < sizeof OF / sizeof *OF; i++) {
        assert_true(decode(got, &size, OF[i][0]));
        assert_int_equal(size, strlen(OF[i][1]));
        assert_memory_equal(got, OF[i][1], size);
    }
}

static void test_every_byte(void **state)
{
    static const char SET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    (void)state;
    for (int b = 0; b < 256; b++) {
        const char text[] = {SET[b >> 2], SET[(b & 3) << 4 | b >> 4], SET[(b & 15) << 2 | b >> 6],
                             SET[b & 63], 0};
        uint8_t got[3];
        size_t size;
        assert_true(decode(got, &size, text));
        assert_int_equal(size, 3);
        for (int i = 0; i < 3; i++) assert_int_equal(got[i], b);
    }
}

static void test_what_is_none(void **state)
{
    static const char *const BAD[] = {
        "!!!!", "Z",     "Zm9vY", "=",    "==",    "====",   "Z===",     "Zg=",       "Zg==A",
        "Z=g=", "Zm 9v", "Zm9-",  "Zm9_", "Zm9v=", "Zm9v\n", "Zm9v====", "Zm\xc3\xa4"};
    uint8_t got[16];
    size_t size;
    (void)state;
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++)
        if (decode(got, &size, BAD[i])) fail_msg("\"%s\" is taken", BAD[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_vectors),
                                       cmocka_unit_test(test_every_byte),
                                       cmocka_unit_test(test_what_is_none)};
    return cmocka_run_group_tests_name("base64", tests, NULL, NULL);
}
