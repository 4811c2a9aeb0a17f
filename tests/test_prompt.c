/* test_prompt.c - the prompt that comes out is the one that diffusers with ftfy makes. */
#include "t.h"

#include <jansson.h>

#include "common/prompt.h"

/* Every pair of tests/golden/prompts/cases.json, byte for byte. */
static void as_ftfy_and_diffusers(void **state)
{
    (void)state;
    json_error_t je;
    json_t *cases = json_load_file(t_golden("prompts/cases.json"), JSON_ALLOW_NUL, &je), *pair;
    size_t i;
    assert_non_null(cases);
    assert_true(json_array_size(cases) > 300);
    json_array_foreach(cases, i, pair)
    {
        sl_err err = {0};
        char *got = NULL;
        const json_t *in = json_array_get(pair, 0);
        T_OK(sl_prompt_clean(&got, json_string_value(in), json_string_length(in), &err));
        assert_string_equal(got, json_string_value(json_array_get(pair, 1)));
        free(got);
    }
    json_decref(cases);
}

static void invalid_utf8_is_refused_with_its_offset(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t length, at;
        const char *hex;
    } bad[] = {
        {"abc\xff", 4, 3, "0xff"},           {"\xc3", 1, 0, "0xc3"},
        {"ab\xe4\xb8", 4, 2, "0xe4"},        {"\xc0\xaf", 2, 0, "0xc0"},
        {"x\xed\xa0\xbd", 4, 1, "0xed"},     {"\xf4\x90\x80\x80", 4, 0, "0xf4"},
        {"na\xc3\xafve \x80", 8, 7, "0x80"}, {"caf\xe9 au lait", 12, 3, "0xe9"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        sl_err err = {0};
        char *got = NULL, want[80];
        T_CODE(sl_prompt_clean(&got, bad[i].bytes, bad[i].length, &err), SL_FORMAT);
        assert_null(got);
        snprintf(want, sizeof want, "prompt: invalid UTF-8 at byte %zu (%s)", bad[i].at,
                 bad[i].hex);
        assert_string_equal(err.msg, want);
    }
}

static void long_prompts(void **state)
{
    (void)state;
    sl_err err = {0};
    char *got = NULL, *text = malloc(SL_PROMPT_MAX + 1);
    for (size_t i = 0; i < 10000; i++) text[i] = i % 8 == 7 ? ' ' : 'w';
    T_OK(sl_prompt_clean(&got, text, 9999, &err));
    assert_int_equal(strlen(got), 9999);
    free(got);
    memcpy(text, "&", 1); /* a chain of entities, each hidden in the last: ends, in time */
    for (size_t i = 1; i + 4 <= SL_PROMPT_MAX; i += 4) memcpy(text + i, "amp;", 4);
    T_OK(sl_prompt_clean(&got, text, 40001, &err));
    free(got);
    T_CODE(sl_prompt_clean(&got, text, SL_PROMPT_MAX + 1, &err), SL_ARG);
    assert_string_equal(err.msg, "prompt: 1048577 bytes, at most 1048576 are taken");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_ftfy_and_diffusers),
        cmocka_unit_test(invalid_utf8_is_refused_with_its_offset),
        cmocka_unit_test(long_prompts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
