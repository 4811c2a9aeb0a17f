/* test_gguf.c - GGUF: every type's blocks decode to what the gguf package says, bit for bit; a file
 * that its writer wrote is read; damaged ones are refused in one line. */
#include "t.h"

#include "common/checkpoint.h"
#include "common/safetensors.h"

static sl_err err;

static void blocks(void **state)
{
    (void)state;
    static const sl_coding ALL[] = {SL_Q4_0, SL_Q4_1, SL_Q5_0, SL_Q5_1, SL_Q8_0,
                                    SL_Q2_K, SL_Q3_K, SL_Q4_K, SL_Q5_K, SL_Q6_K};
    sl_st *st;
    T_OK(sl_st_open_file(&st, t_golden("gguf/blocks.safetensors"), &err));
    assert_int_equal(sl_st_size(st), 2 * sizeof ALL / sizeof *ALL);
    for (size_t i = 0; i < sizeof ALL / sizeof *ALL; i++) {
        char name[40];
        static float want[1024], got[1024];
        snprintf(name, sizeof name, "%s.blocks", sl_coding_tag(ALL[i]));
        const sl_st_entry *codes = sl_st_find(st, name);
        snprintf(name, sizeof name, "%s.numbers", sl_coding_tag(ALL[i]));
        const sl_st_entry *numbers = sl_st_find(st, name);
        assert_true(codes && numbers);
        const int64_t n = sl_count(&numbers->t);
        assert_true(n <= 1024);
        assert_int_equal(n / sl_coding_block(ALL[i]) * sl_coding_bytes(ALL[i]),
                         sl_count(&codes->t));
        sl_to_floats(want, numbers->t.data, SL_F32, n, NULL);
        sl_decode(got, ALL[i], codes->t.data, 0, n);
        for (int64_t k = 0; k < n; k++)
            if (memcmp(&got[k], &want[k], sizeof *got))
                fail_msg("%s: element %lld is %.9g, want %.9g", sl_coding_tag(ALL[i]), (long long)k,
                         (double)got[k], (double)want[k]);
        /* any part of the run */
        for (int64_t from = 0; from < n; from += 37) {
            const int64_t m = n - from < 101 ? n - from : 101;
            sl_decode(got, ALL[i], codes->t.data, from, m);
            assert_memory_equal(got, want + from, (size_t)m * sizeof *got);
        }
    }
    sl_st_close(&st);
}

/* All 256 codes of the 8-bit floats, by their definition. */
static void eight_bit_floats(void **state)
{
    (void)state;
    unsigned char codes[256];
    float x[256];
    for (int i = 0; i < 256; i++) codes[i] = (unsigned char)i;
    sl_decode(x, SL_F8_E4M3, codes, 0, 256);
    for (int i = 0; i < 256; i++) {
        const int e = i >> 3 & 15, m = i & 7;
        double want = e ? (1 + m / 8.0) * pow(2, e - 7) : m / 8.0 * pow(2, -6);
        if (i & 128) want = -want;
        if ((i & 127) == 127) assert_true(isnan(x[i]));
        else assert_true(x[i] == (float)want);
    }
    assert_true(x[0x7e] == 448 && x[1] == 0x1p-9f);
    sl_decode(x, SL_F8_E5M2, codes, 0, 256);
    for (int i = 0; i < 256; i++) {
        const int e = i >> 2 & 31, m = i & 3;
        double want = e ? (1 + m / 4.0) * pow(2, e - 15) : m / 4.0 * pow(2, -14);
        if (i & 128) want = -want;
        if (e == 31) assert_true(m ? isnan(x[i]) : isinf(x[i]));
        else assert_true(x[i] == (float)want);
    }
}

/* Of the package's writer: a flattened convolution with its shape, Q8_0, float32. */
static void a_file(void **state)
{
    (void)state;
    sl_st *st;
    float x[256];
    sl_tensor t;
    T_OK(sl_checkpoint_open(&st, SL_NET_DIT, t_golden("gguf/small.gguf"), NULL, &err));
    assert_int_equal(sl_st_size(st), 3);
    assert_string_equal(sl_st_metadata(st, "general.architecture"), "wan");
    T_OK(
        sl_st_want(st, "patch_embedding.weight", SL_F16, 5, (int64_t[]){64, 4, 1, 2, 2}, &t, &err));
    T_OK(sl_st_want(st, "blocks.0.attn1.to_q.bias", SL_F32, 1, (int64_t[]){4}, &t, &err));
    sl_to_floats(x, t.data, SL_F32, 4, NULL);
    assert_true(x[0] == 0 && x[3] == 3);
    const sl_st_entry *e = sl_st_find(st, "blocks.0.attn1.to_q.weight");
    assert_non_null(e);
    assert_string_equal(e->dtype, "Q8_0");
    assert_int_equal(e->coded.shape[0], 4);
    assert_int_equal(e->coded.shape[1], 64);
    assert_int_equal(sl_st_stored(e), 8 * 34);
    double sum = 0; /* normal numbers: the mean square is near 1 */
    sl_st_floats(x, e, 0, 256);
    for (int i = 0; i < 256; i++) sum += (double)x[i] * (double)x[i];
    assert_true(sum > 150 && sum < 400);
    sl_st_close(&st);
}

/* ---- damage ---- */

static unsigned char *load(size_t *n)
{
    FILE *f = fopen(t_golden("gguf/small.gguf"), "rb");
    unsigned char *p = malloc(1 << 16);
    assert_true(f && p);
    *n = fread(p, 1, 1 << 16, f);
    fclose(f);
    return p;
}

/* At the end of its own block, so that a read behind it shows. */
static sl_code parse(const unsigned char *p, size_t n)
{
    unsigned char *copy = malloc(n ? n : 1);
    memset(&err, 0, sizeof err);
    memcpy(copy, p, n);
    sl_code rc = sl_st_parse(copy, n, &err);
    if (rc && (!err.msg[0] || strchr(err.msg, '\n'))) fail_msg("not one line: %s", err.msg);
    free(copy);
    return rc;
}

static void cut_and_changed(void **state)
{
    (void)state;
    size_t n;
    unsigned char *p = load(&n);
    T_OK(parse(p, n));
    for (size_t k = 4; k < n; k++) {
        /* the last tensor ends at the file's end but for its padding */
        if (!parse(p, k) && k + 32 < n) fail_msg("%zu of %zu bytes are taken for whole", k, n);
    }
    for (size_t i = 4; i < 700 && i < n; i++)
        for (int k = 0; k < 4; k++) {
            const unsigned char was = p[i];
            p[i] = (unsigned char)(k == 0 ? 0 : k == 1 ? 255 : k == 2 ? was + 1 : ~was);
            parse(p, n);
            p[i] = was;
        }
    free(p);
}

static size_t find(const unsigned char *p, size_t n, const char *text)
{
    for (size_t i = 0; i + strlen(text) < n; i++)
        if (!memcmp(p + i, text, strlen(text))) return i + strlen(text);
    fail_msg("%s is not in the file", text);
    return 0;
}

static void lies(void **state)
{
    (void)state;
    size_t n;
    unsigned char *p = load(&n), *good = malloc(n);
    memcpy(good, p, n);
#define LIE(at, byte, says)                                                                        \
    do {                                                                                           \
        p[at] = (byte);                                                                            \
        T_CODE(parse(p, n), SL_FORMAT);                                                            \
        T_SAYS(err.msg, (says));                                                                   \
        memcpy(p, good, n);                                                                        \
    } while (0)
    LIE(4, 1, "is GGUF version 1, want 2 or 3");
    LIE(15, 1, "says it has");
    LIE(22, 1, "says it has");
    const size_t shape = find(p, n, "orig_shape.patch_embedding.weight"),
                 q = find(p, n, "blocks.0.self_attn.q.weight");
    LIE(shape + 4, 6, "is no list of 32-bit integers"); /* float32 */
    LIE(shape + 16, 65, "elements, which its original shape has not");
    LIE(shape + 15, 1, "ends within a list");
    LIE(q, 7, "has 7 dimensions, want at most 6");
    LIE(q + 4, 33, "has rows of 33, want a multiple of 32 (Q8_0)");
    LIE(q + 11, 128, "has an extent of 9223372036854775872");
    LIE(q + 19, 64, "is too large");
    LIE(q + 20, 16, "has type 16, want F32, F16, BF16, Q4_0"); /* IQ2_XXS */
    LIE(q + 24, 1, "of the data on, which has");
    LIE(q + 30, 1, "of the data on, which has");
    LIE(q - 27, 0, "has no name, or one with a NUL");
    free(p);
    free(good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks), cmocka_unit_test(eight_bit_floats),
        cmocka_unit_test(a_file), cmocka_unit_test(cut_and_changed),
        cmocka_unit_test(lies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
