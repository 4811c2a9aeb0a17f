/* test_weights_eight.c - matrices in 8 bits, loaded: from every dtype, as they are from F8 files,
 * random, counted, in host memory and on a device of the CPU's bodies whose memory is not the
 * host's. */
#include "tests/t.h"

#include "common/checkpoint.h"
#include "graphs/weights.h"

static sl_err err;
static sl_ctx ctx[2], plan; /* the host's; a device's */
static sl_ops apart, planned;
static char dir[256];

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    apart = sl_ops_cpu;
    apart.name = "apart";
    apart.host_memory = apart.stored_matrices = false;
    planned = sl_ops_plan_of(&apart);
    T_OK(sl_ctx_open(&ctx[0], &sl_ops_cpu, (size_t)1 << 26, &err));
    T_OK(sl_ctx_open(&ctx[1], &apart, (size_t)1 << 26, &err));
    T_OK(sl_ctx_open(&plan, &planned, 0, &err));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) sl_ctx_close(&ctx[i]);
    sl_ctx_close(&plan);
    t_rmdir(dir);
    return 0;
}

enum { N = 37, K = 65 };

/* e has the bits that quantising x [n, k] by itself has. */
static void same_as(const sl_eight *e, const float *x, const char *what)
{
    const int64_t n = e->codes.shape[0], k = e->codes.shape[1];
    const sl_tensor rows = sl_view2((void *)(uintptr_t)x, SL_F32, n, k);
    sl_eight want = {sl_view2(malloc((size_t)(n * k)), SL_E4M3, n, k),
                     sl_view1(malloc((size_t)n * sizeof(float)), SL_F32, n)};
    sl_quantise_rows(&ctx[0], &want, &rows);
    if (memcmp(want.codes.data, e->codes.data, sl_bytes(&want.codes)))
        fail_msg("%s: other codes than its numbers quantised", what);
    if (memcmp(want.scale.data, e->scale.data, sl_bytes(&want.scale)))
        fail_msg("%s: other scales than its numbers quantised", what);
    free(want.codes.data);
    free(want.scale.data);
}

/* From bf16, float16 and float32, quantised once from what the file holds; counted as planned. */
static void every_dtype_is_quantised_once(void **state)
{
    static const char *const NAMES[] = {"f32", "bf16", "f16"};
    static const sl_dtype DTYPES[] = {SL_F32, SL_BF16, SL_F16};
    float x[3][N * K];
    char raw[3][N * K * 4], path[300];
    sl_tensor t[3];
    (void)state;
    for (int i = 0; i < 3; i++) {
        t_fill(x[i], N * K, (uint64_t)i + 1);
        T_OK(sl_from_floats(raw[i], DTYPES[i], x[i], N * K, &err));
        T_OK(sl_to_floats(x[i], raw[i], DTYPES[i], N * K, &err));
        t[i] = sl_view2(raw[i], DTYPES[i], N, K);
    }
    snprintf(path, sizeof path, "%s/m.safetensors", dir);
    T_OK(sl_st_save(path, 3, NAMES, t, &err));
    for (int d = 0; d < 2; d++) {
        sl_loader *l = NULL, *counted = NULL;
        sl_eight e[3], none;
        sl_tensor w;
        uint64_t bytes;
        double seconds;
        T_OK(sl_loader_file(&l, &ctx[d], dir, "m", "test", &err));
        T_OK(sl_loader_plan(&counted, d ? &plan : &ctx[0], "test", &err));
        for (int i = 0; i < 3; i++) {
            sl_weight_eight(l, &e[i], N, K, "%s", NAMES[i]);
            sl_weight_eight(counted, &none, N, K, "%s", NAMES[i]);
        }
        sl_weight(l, &w, SL_W_FLOAT, 2, (int64_t[]){N, K}, "bf16"); /* both ways at once */
        T_OK(sl_loader_finish(l, &err));
        for (int i = 0; i < 3; i++) same_as(&e[i], x[i], NAMES[i]);
        T_NEAR((float *)w.data, x[1], N * K, 0);
        sl_loader_figures(l, &bytes, &seconds);
        if (d) assert_int_equal(bytes, N * K * (4 + 2 + 2 + 2));
        /* codes and scales, each at a multiple of 256 bytes, and the float32 copy */
        const size_t eights = 3 * ((N * K + 255) / 256 * 256 + 256),
                     copy = (N * K * 4 + 255) / 256 * 256;
        if (d) assert_int_equal(sl_loader_bytes(l), eights + copy);
        if (d) assert_int_equal(sl_loader_bytes(counted), eights);
        assert_int_equal(sl_loader_mapped(l), 0);
        assert_int_equal(sl_loader_parameters(l), 4 * N * K);
        sl_loader_close(&l);
        sl_loader_close(&counted);
    }
}

/* ---- files that are in 8 bits already ---- */

/* One matrix of codes with a scale beside it: of `scales` numbers; 0: without. */
static void write_f8(const char *path, const char *dtype, const uint8_t *codes, const float *scale,
                     int scales)
{
    static const char NAME[] = "blocks.0.attn1.to_q.weight";
    char header[512], shape[32], beside[160] = "";
    snprintf(shape, sizeof shape, scales > 1 ? "[%d,1]" : "[]", scales);
    if (scales)
        snprintf(beside, sizeof beside,
                 ",\"blocks.0.attn1.to_q.weight_scale\":{\"dtype\":\"F32\",\"shape\":%s,"
                 "\"data_offsets\":[%d,%d]}",
                 shape, N * K, N * K + 4 * scales);
    int n = snprintf(header, sizeof header,
                     "{\"%s\":{\"dtype\":\"%s\",\"shape\":[%d,%d],\"data_offsets\":[0,%d]}%s}",
                     NAME, dtype, N, K, N * K, beside);
    const uint64_t length = (uint64_t)n;
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(&length, 8, 1, f), 1);
    assert_int_equal(fwrite(header, (size_t)n, 1, f), 1);
    assert_int_equal(fwrite(codes, N * K, 1, f), 1);
    if (scales) assert_int_equal(fwrite(scale, 4 * (size_t)scales, 1, f), 1);
    assert_int_equal(fclose(f), 0);
}

static void f8_files_are_taken_as_they_are(void **state)
{
    static const int SCALES[] = {N, 1, 0};
    uint8_t codes[N * K];
    float scale[N], *floats = malloc(sizeof *floats * N * K);
    char path[300];
    (void)state;
    assert_non_null(floats);
    snprintf(path, sizeof path, "%s/f8.safetensors", dir);
    for (int i = 0; i < N; i++) scale[i] = 0.01f * (float)(i + 1);
    for (int s = 0; s < 3; s++) {
        /* unscaled weights never use the whole range */
        for (int i = 0; i < N * K; i++) codes[i] = (uint8_t)((i * 37) % (SCALES[s] ? 126 : 100));
        write_f8(path, "F8_E4M3", codes, scale, SCALES[s]);
        for (int d = 0; d < 2; d++) {
            sl_loader *l = NULL;
            sl_st *st = NULL;
            sl_eight e;
            T_OK(sl_checkpoint_open(&st, SL_NET_DIT, path, NULL, &err));
            T_OK(sl_loader_set(&l, &ctx[d], &st, "test", &err));
            sl_weight_eight(l, &e, N, K, "blocks.0.attn1.to_q.weight");
            T_OK(sl_loader_finish(l, &err));
            assert_memory_equal(e.codes.data, codes, sizeof codes);
            for (int i = 0; i < N; i++) {
                const float want = SCALES[s] == N ? scale[i] : SCALES[s] ? scale[0] : 1;
                assert_true(((float *)e.scale.data)[i] == want);
            }
            sl_loader_close(&l);
        }
    }
    /* e5m2 has no such products: its numbers are quantised like any other's */
    for (int i = 0; i < N * K; i++) codes[i] = (uint8_t)((i * 37) % 120);
    write_f8(path, "F8_E5M2", codes, scale, 1);
    for (int d = 0; d < 2; d++) {
        sl_loader *l = NULL;
        sl_st *st = NULL;
        sl_eight e;
        T_OK(sl_checkpoint_open(&st, SL_NET_DIT, path, NULL, &err));
        sl_st_floats(floats, sl_st_find(st, "blocks.0.attn1.to_q.weight"), 0, N * K);
        T_OK(sl_loader_set(&l, &ctx[d], &st, "test", &err));
        sl_weight_eight(l, &e, N, K, "blocks.0.attn1.to_q.weight");
        T_OK(sl_loader_finish(l, &err));
        same_as(&e, floats, "F8_E5M2");
        sl_loader_close(&l);
    }
    free(floats);
}

/* ---- random ones ---- */

/* The numbers of the same name in float32; on a device in parts, more than are staged at once. */
static void random_ones_are_the_named_numbers(void **state)
{
    enum { LARGE_N = 8200, LARGE_K = 8192, EACH = 3 };
    const int64_t rows[] = {0, 4100, LARGE_N - 1};
    float *x = malloc(sizeof *x * LARGE_K);
    (void)state;
    assert_non_null(x);
    for (int d = 0; d < 2; d++) {
        sl_loader *l = NULL;
        sl_eight e[EACH];
        T_OK(sl_loader_random(&l, &ctx[d], 7, "test", &err));
        for (int i = 0; i < EACH; i++)
            sl_weight_eight(l, &e[i], d ? LARGE_N : N, d ? LARGE_K : K, "blocks.%d.w.weight", i);
        T_OK(sl_loader_finish(l, &err));
        for (int i = 0; i < EACH; i++)
            for (int r = 0; r < 3; r++) {
                const int64_t n = e[i].codes.shape[0], k = e[i].codes.shape[1],
                              row = rows[r] < n ? rows[r] : n - 1;
                const sl_tensor of = sl_view2(NULL, SL_F32, n, k);
                const sl_eight one = sl_eight_rows(&e[i], row, 1);
                char name[64];
                snprintf(name, sizeof name, "blocks.%d.w.weight", i);
                sl_weight_random(x, SL_F32, 7, name, &of, row * k, k);
                same_as(&one, x, name);
            }
        sl_loader_close(&l);
    }
    free(x);
}

/* ---- refusals ---- */

static void wrong_matrices_are_named(void **state)
{
    float x[12] = {0};
    char path[300];
    (void)state;
    snprintf(path, sizeof path, "%s/m.safetensors", dir);
    T_OK(sl_st_save(path, 1, (const char *const[]){"w"}, (sl_tensor[]){sl_view2(x, SL_F32, 3, 4)},
                    &err));
    for (int d = 0; d < 2; d++) {
        sl_loader *l = NULL;
        sl_eight e;
        T_OK(sl_loader_file(&l, &ctx[d], dir, "m", "test", &err));
        sl_weight_eight(l, &e, 4, 4, "w");
        assert_true(e.codes.rank == 2 && !e.codes.data && !e.scale.data);
        T_CODE(sl_loader_finish(l, &err), SL_SHAPE);
        T_SAYS(err.msg, "test: w has shape [3, 4], want [4, 4]");
        sl_loader_close(&l);
        T_OK(sl_loader_file(&l, &ctx[d], dir, "m", "test", &err));
        sl_weight_eight(l, &e, 4, 4, "%s.%d", "none", 3);
        T_CODE(sl_loader_finish(l, &err), SL_SHAPE);
        T_SAYS(err.msg, "test: none.3 is missing, want [4, 4]");
        sl_loader_close(&l);
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(every_dtype_is_quantised_once),
        T(f8_files_are_taken_as_they_are),
        T(random_ones_are_the_named_numbers),
        T(wrong_matrices_are_named),
    };
    return cmocka_run_group_tests_name("weights in 8 bits", tests, NULL, NULL);
}
