/* test_tokenizer.c - the ids are those that the reference's tokenizer gives. */
#include "t.h"

#include <jansson.h>

#include "common/safetensors.h"
#include "common/prompt.h"
#include "common/tokenizer.h"
#include "common/unigram.h"

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

/* ---- tokenizer.json without spiece.model ---- */

static unsigned char *read_whole(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    unsigned char *p = malloc(*n + 1);
    assert_int_equal(fread(p, 1, *n, f), *n);
    p[*n] = 0;
    fclose(f);
    return p;
}

/* The last field of this number in a message; *n: its bytes. Lengths and numbers only. */
static const unsigned char *field(const unsigned char *p, size_t size, unsigned number, size_t *n)
{
    const unsigned char *end = p + size, *found = NULL;
    while (p < end) {
        uint64_t x[2] = {0};
        for (int k = 0; k < 2; k++) {
            int shift = 0;
            do x[k] |= (uint64_t)(*p & 127) << shift, shift += 7;
            while (*p++ & 128);
            if (!k && (x[0] & 7) == 5) break; /* a float */
        }
        if ((x[0] & 7) == 5) p += 4;
        if ((x[0] & 7) != 2) continue;
        if (x[0] >> 3 == number) found = p, *n = (size_t)x[1];
        p += x[1];
    }
    assert_non_null(found);
    return found;
}

/* What transformers 5.24 saves for the tiny tokenizer; the golden file has a mark where it has
 * the character map of spiece.model. */
static void write_json(const char *path)
{
    static const char MARK[] = "@CHARSMAP@",
                      SET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t n, size, spec;
    unsigned char *model = read_whole(MODEL, &size),
                  *text = read_whole(t_golden("tokenizer/tokenizer.json"), &n);
    const unsigned char *p = field(model, size, 3, &spec);
    p = field(p, spec, 2, &spec);
    FILE *f = fopen(path, "w");
    char *mark = strstr((char *)text, MARK);
    assert_true(f && mark);
    fwrite(text, 1, (size_t)(mark - (char *)text), f);
    for (size_t i = 0; i < spec; i += 3) {
        unsigned x = 0;
        for (size_t k = 0; k < 3; k++) x = x << 8 | (i + k < spec ? p[i + k] : 0);
        for (int k = 0; k < 4; k++)
            fputc(i + (size_t)k > spec ? '=' : SET[x >> (18 - 6 * k) & 63], f);
    }
    fputs(mark + sizeof MARK - 1, f);
    fclose(f);
    free(model);
    free(text);
}

/* Up to 200 bytes of what people write, and of what they do not. */
static size_t make_text(char *text, uint64_t *seed)
{
    static const char *const PARTS[] = {"the ",
                                        "A red fox",
                                        ", ",
                                        "1080p ",
                                        "  ",
                                        "\t\n",
                                        "caf\xc3\xa9",
                                        "\xe7\x8b\x90",
                                        "\xef\xbc\xa1",
                                        "\xe2\x98\x83",
                                        "\xf0\x9f\x90\xb1",
                                        "<unk>",
                                        "</s>",
                                        "<0x41>",
                                        "literature",
                                        "un",
                                        "\xc2\xa0",
                                        "\xe3\x80\x80",
                                        "fi\xef\xac\x81",
                                        "e\xcc\x81",
                                        "\xe2\x96\x81",
                                        "'s ",
                                        "walk",
                                        "ing."};
    size_t n = 0;
    const int parts = 1 + (int)((t_rand(seed) + 1) * 10);
    for (int i = 0; i < parts && n < 180; i++) {
        const size_t k = (size_t)((t_rand(seed) + 1) / 2 * (sizeof PARTS / sizeof *PARTS));
        n += (size_t)sprintf(text + n, "%s", PARTS[k % (sizeof PARTS / sizeof *PARTS)]);
        if (t_rand(seed) > 0.5f) text[n++] = (char)(33 + (int)((t_rand(seed) + 1) * 46));
    }
    return n;
}

static void tokenizer_json_alone(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_tokenizer *a, *b;
    char command[700], text[256], model[300], json[300];
    const char *dir = t_tmpdir();
    uint64_t seed = 7;
    snprintf(json, sizeof json, "%s/tokenizer.json", dir);
    snprintf(model, sizeof model, "%s/spiece.model", dir);
    snprintf(command, sizeof command, "cp %s %s", MODEL, model);
    assert_int_equal(system(command), 0);
    write_json(json);
    T_OK(sl_tokenizer_open(&a, model, &err));
    T_OK(sl_tokenizer_open(&b, json, &err));
    for (int i = 0; i < 3000; i++) {
        int32_t x[512], y[512];
        int n, m;
        const size_t length = make_text(text, &seed);
        T_OK(sl_tokenizer_encode(a, text, length, x, 512, &n, &err));
        T_OK(sl_tokenizer_encode(b, text, length, y, 512, &m, &err));
        if (n != m || memcmp(x, y, (size_t)n * sizeof *x)) fail_msg("\"%s\": other ids", text);
    }
    sl_tokenizer_close(&a);
    sl_tokenizer_close(&b);
    t_rmdir(dir);
}

static void bad_json(void **state)
{
    (void)state;
#define HEAD "{\"pre_tokenizer\":{\"type\":\"Metaspace\"},\"normalizer\":{\"type\":\"Precompiled\","
#define WHOLE HEAD "\"precompiled_charsmap\":\"AAAA\"},\"model\":"
    static const struct {
        const char *text, *says;
    } AT[] = {
        {"{}", "has 0 pieces"},
        {"[]", "holds no JSON object"},
        {"{\"model\":{\"type\":\"BPE\"}}", "model is BPE, want Unigram"},
        {WHOLE "{\"vocab\":[]}}", "has 0 pieces"},
        {WHOLE "{\"vocab\":[[\"a\",1]]}}", "has no piece for what is unknown"},
        {WHOLE "{\"unk_id\":9,\"vocab\":[[\"a\",1]]}}", "has no piece for what is unknown"},
        {WHOLE "{\"unk_id\":-1,\"vocab\":[[\"a\",1]]}}", "has no piece for what is unknown"},
        {WHOLE "{\"vocab\":[[\"<unk>\",0],[\"a\"]]}}", "piece 1 is no [text, score]"},
        {WHOLE "{\"vocab\":[[\"<unk>\",0],7]}}", "piece 1 is no [text, score]"},
        {WHOLE "{\"vocab\":[[\"<unk>\",0],[\"a\",\"b\"]]}}", "piece 1 is no [text, score]"},
        {HEAD "\"precompiled_charsmap\":\"AA?A\"},\"model\":{\"vocab\":[[\"<unk>\",0]]}}",
         "is no base64"},
        {HEAD "\"x\":1},\"model\":{\"vocab\":[[\"<unk>\",0]]}}",
         "normalizer is Precompiled, want Precompiled"},
        {"{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"vocab\":[[\"a\",0]]}}",
         "pre_tokenizer is ByteLevel, want Metaspace"},
    };
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        sl_err err = {0};
        unsigned char *out;
        size_t n;
        T_CODE(sl_unigram_parse(&out, &n, AT[i].text, strlen(AT[i].text), "t.json", &err),
               SL_FORMAT);
        T_SAYS(err.msg, AT[i].says);
        assert_null(out);
    }
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
    T_SAYS(err.msg, "tests/golden/tiny-i2v/prompts.json: holds no JSON object");
    T_CODE(sl_tokenizer_open(&t, "tests/golden/tiny-i2v/i2v-96x64x9.png", &err), SL_FORMAT);
    T_SAYS(err.msg, "(19207 bytes) is not a sentencepiece model");
    T_CODE(sl_tokenizer_open(&t, "/dev/null", &err), SL_FORMAT);
    char dir[256], path[300];
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    snprintf(path, sizeof path, "%s/large.model", dir);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(ftruncate(fileno(f), (off_t)1 << 40), 0); /* holds nothing */
    fclose(f);
    T_CODE(sl_tokenizer_open(&t, path, &err), SL_FORMAT);
    T_SAYS(err.msg, "large.model has more than 104857600 bytes, want a tokenizer");
    assert_null(t);
    t_rmdir(dir);
}

/* By what is in them: each kind under a name that says nothing, or another's. */
static void told_by_content(void **state)
{
    static const char *const NAMES[] = {"spiece.json", "json", "weights.model"};
    static const char TEXT[] = "A red fox walks, slowly";
    sl_tokenizer *tiny = open_tiny();
    int32_t want[64];
    int count = 0;
    char dir[256], path[300];
    sl_err err = {0};
    size_t n = 0;
    unsigned char *model = read_whole(MODEL, &n);
    const sl_tensor bytes = sl_view1(model, SL_U8, (int64_t)n);
    (void)state;
    T_OK(sl_tokenizer_encode(tiny, TEXT, strlen(TEXT), want, 64, &count, &err));
    sl_tokenizer_close(&tiny);
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    for (int i = 0; i < 3; i++) {
        sl_tokenizer *t = NULL;
        snprintf(path, sizeof path, "%s/%s", dir, NAMES[i]);
        if (i == 0) {
            FILE *f = fopen(path, "wb");
            assert_true(f && fwrite(model, 1, n, f) == n);
            fclose(f);
        } else if (i == 1) write_json(path);
        else T_OK(sl_st_save(path, 1, (const char *const[]){"spiece_model"}, &bytes, &err));
        T_OK(sl_tokenizer_open(&t, path, &err));
        expect(t, TEXT, want, count);
        sl_tokenizer_close(&t);
    }
    free(model);
    t_rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_ids),         cmocka_unit_test(spaces_and_control_pieces),
        cmocka_unit_test(unknown_characters), cmocka_unit_test(truncation_keeps_the_end_mark),
        cmocka_unit_test(bad_models),         cmocka_unit_test(tokenizer_json_alone),
        cmocka_unit_test(bad_json),           cmocka_unit_test(told_by_content),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
