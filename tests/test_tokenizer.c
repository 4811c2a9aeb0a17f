/* test_tokenizer.c - the ids are those that the reference's tokenizer gives. */
#include "t.h"

#include <jansson.h>

#include "common/safetensors.h"
#include "common/prompt.h"
#include "common/tokenizer.h"

#define MODEL "tests/golden/tiny-i2v/model/tokenizer/spiece.model"

static sl_tokenizer *open_tiny(void)
{
    sl_err err = {0};
    sl_tokenizer *t = NULL;
    T_OK(sl_tokenizer_open(&t, MODEL, &err));
    return t;
}

/* Encode and compare with want[0..n-1]. */
static void expect(const sl_tokenizer *t, const char *text, const int32_t *want, int n)
{
    sl_err err = {0};
    int32_t ids[512];
    int got = 0;
    T_OK(sl_tokenizer_encode(t, text, strlen(text), ids, 512, &got, &err));
    if (got != n) fail_msg("\"%s\": %d ids, want %d", text, got, n);
    for (int i = 0; i < n; i++)
        if (ids[i] != want[i]) fail_msg("\"%s\": id %d is %d, want %d", text, i, ids[i], want[i]);
}
#define EXPECT(t, text, ...)                                                                       \
    do {                                                                                           \
        static const int32_t want_[] = {__VA_ARGS__};                                              \
        expect((t), (text), want_, (int)(sizeof want_ / sizeof *want_));                           \
    } while (0)

/* Cleaning and encoding together: every prompt of the golden folder, `ids.{i}`. */
static void golden_ids(void **state)
{
    (void)state;
    sl_err err = {0};
    json_error_t je;
    json_t *prompts = json_load_file(t_golden("tiny-i2v/prompts.json"), 0, &je), *p;
    sl_tokenizer *t = open_tiny();
    sl_st *st = NULL;
    size_t i;
    T_OK(sl_st_open_file(&st, t_golden("tiny-i2v/text.safetensors"), &err));
    assert_int_equal(json_array_size(prompts), 12);
    json_array_foreach(prompts, i, p)
    {
        char key[32], *clean = NULL;
        int32_t want[512];
        snprintf(key, sizeof key, "ids.%zu", i);
        const sl_st_entry *e = sl_st_find(st, key);
        assert_non_null(e);
        int n = (int)sl_count(&e->t);
        assert_true(n >= 1 && n <= 512);
        for (int k = 0; k < n; k++) {
            if (e->t.dtype == SL_I64) {
                int64_t v;
                memcpy(&v, (const char *)e->t.data + 8 * (size_t)k, 8);
                want[k] = (int32_t)v;
            } else {
                assert_int_equal(e->t.dtype, SL_I32);
                memcpy(&want[k], (const char *)e->t.data + 4 * (size_t)k, 4);
            }
        }
        T_OK(sl_prompt_clean(&clean, json_string_value(p), json_string_length(p), &err));
        expect(t, clean, want, n);
        free(clean);
    }
    sl_st_close(&st);
    sl_tokenizer_close(&t);
    json_decref(prompts);
}

/* As T5TokenizerFast of transformers 5 gives them. */
static void spaces_and_control_pieces(void **state)
{
    (void)state;
    sl_tokenizer *t = open_tiny();
    EXPECT(t, "", 1);
    EXPECT(t, "x", 266, 742, 1);
    EXPECT(t, "x ", 266, 742, 1);
    EXPECT(t, "a  b", 267, 470, 1);
    /* full-width A, ideographic space, B */
    EXPECT(t, "\xef\xbc\xa1\xe3\x80\x80\xef\xbc\xa2", 392, 564, 1);
    /* the piece mark itself is white space */
    EXPECT(t, "\xe2\x96\x81 a", 267, 1);
    EXPECT(t, "<s> hi", 2, 502, 285, 1);
    EXPECT(t, "a</s>b", 267, 1, 470, 1);
    EXPECT(t, "<pad>", 0, 1);
    sl_tokenizer_close(&t);
    assert_null(t);
    sl_tokenizer_close(&t);
}

/* The tiny model was trained with byte pieces; tokenizer.json says whether the fast
 * tokenizer uses them. */
static void unknown_characters(void **state)
{
    (void)state;
    static const char *const off = "{\"model\": {\"type\": \"Unigram\", \"vocab\": "
                                   "[[\"byte_fallback\", -1]], \"byte_fallback\" : false}}";
    static const char *const on = "{\"model\":{\"byte_fallback\":true}}";
    sl_err err = {0};
    sl_tokenizer *t = open_tiny();
    EXPECT(t, "\xe2\x98\x83", 266, 230, 156, 135, 1);
    sl_tokenizer_close(&t);
    const char *dir = t_tmpdir();
    char cmd[600], model[300], json[300];
    snprintf(model, sizeof model, "%s/spiece.model", dir);
    snprintf(json, sizeof json, "%s/tokenizer.json", dir);
    snprintf(cmd, sizeof cmd, "cp %s %s", MODEL, model);
    assert_int_equal(system(cmd), 0);
    for (int bytes = 0; bytes < 2; bytes++) {
        FILE *f = fopen(json, "w");
        assert_non_null(f);
        fputs(bytes ? on : off, f);
        fclose(f);
        T_OK(sl_tokenizer_open(&t, model, &err));
        if (bytes) {
            EXPECT(t, "\xe2\x98\x83", 266, 230, 156, 135, 1);
        } else {
            EXPECT(t, "emoji \xf0\x9f\x90\xb1\xf0\x9f\x9a\x80 end", 420, 287, 281, 1599, 285, 266,
                   3, 762, 1); /* two unknowns, one <unk> */
            EXPECT(t, "\xe2\x98\x83\xe2\x98\x83 \xe2\x98\x83", 266, 3, 266, 3, 1);
        }
        sl_tokenizer_close(&t);
    }
    t_rmdir(dir);
}

static void truncation_keeps_the_end_mark(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_tokenizer *t = open_tiny();
    char *text = malloc(10001);
    int32_t ids[512];
    int n = 0;
    for (int i = 0; i < 10000; i++) text[i] = "word "[i % 5];
    T_OK(sl_tokenizer_encode(t, text, 10000, ids, 512, &n, &err));
    assert_int_equal(n, 512);
    assert_int_equal(ids[511], 1);
    assert_int_not_equal(ids[510], 1);
    T_OK(sl_tokenizer_encode(t, text, 10000, ids, 1, &n, &err));
    assert_int_equal(n, 1);
    assert_int_equal(ids[0], 1);
    T_CODE(sl_tokenizer_encode(t, text, 10000, ids, 0, &n, &err), SL_ARG);
    assert_string_equal(err.msg, "tokenizer: room for 0 ids, want at least 1");
    free(text);
    sl_tokenizer_close(&t);
}

static void bad_models(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_tokenizer *t = NULL;
    T_CODE(sl_tokenizer_open(&t, "tests/golden/no-such.model", &err), SL_SYS);
    assert_string_equal(
        err.msg, "tokenizer: cannot open tests/golden/no-such.model: No such file or directory");
    T_CODE(sl_tokenizer_open(&t, "tests/golden", &err), SL_SYS);
    T_SAYS(err.msg, "Is a directory");
    T_CODE(sl_tokenizer_open(&t, "tests/golden/tiny-i2v/prompts.json", &err), SL_FORMAT);
    T_SAYS(err.msg, "tests/golden/tiny-i2v/prompts.json (4041 bytes) is not a sentencepiece model");
    T_CODE(sl_tokenizer_open(&t, "/dev/null", &err), SL_FORMAT);
    assert_null(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_ids),         cmocka_unit_test(spaces_and_control_pieces),
        cmocka_unit_test(unknown_characters), cmocka_unit_test(truncation_keeps_the_end_mark),
        cmocka_unit_test(bad_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
