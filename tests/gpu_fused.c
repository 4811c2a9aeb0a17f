/* gpu_fused.c - the memory-bound CUDA kernels that move, go element by element or by
 * rows, against the CPU body: real widths, odd sizes, views off the grid of 16 bytes,
 * aliases; then every one of the family without elements, and with more than 32 bits
 * count.
 *
 * gpu_fused --bench [NAME]: the times of these operations (t_fused.h), or of those whose
 * names contain NAME.
 *
 * limit: 300 s */
#include "tests/t_fused.h"

/* A poisoned [rows, cols] with `left` and `right` columns beside it. */
static pair pitched(sl_dtype c_type, sl_dtype g_type, int64_t rows, int64_t cols, int64_t left,
                    int64_t right)
{
    pair p = {.left = left, .right = right, .pitched = true};
    p.c_whole = sl_new2(&cpu, c_type, rows, left + cols + right);
    p.g_whole = sl_new2(&gpu, g_type, rows, left + cols + right);
    if (!p.c_whole.data || !p.g_whole.data)
        fail_msg("%s: arena: %s%s", name, cpu.err.msg, gpu.err.msg);
    p.c = sl_cols(&p.c_whole, left, cols);
    p.g = sl_cols(&p.g_whole, left, cols);
    poison(&p);
    return p;
}

/* ---- movement ---- */

static void zero(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(COUNTS); i++)
        for (int off = 0; off < 2; off++) {
            begin("zero %lld + %d", (long long)COUNTS[i], off);
            pair y = dense(SL_F32, SL_BF16, SHAPE(COUNTS[i]), off);
            sl_zero(&cpu, &y.c);
            sl_zero(&gpu, &y.g);
            check(&y, EXACT);
        }
    end();
}

static void copy_dense(void **state)
{
    (void)state;
    for (size_t from = 0; from < COUNT(FLOATS); from++)
        for (size_t to = 0; to < COUNT(FLOATS); to++)
            for (size_t i = 0; i < COUNT(COUNTS); i++)
                for (int off = 0; off < 3; off++) {
                    begin("copy %s to %s, %lld + %d", sl_dtype_tag(FLOATS[from]),
                          sl_dtype_tag(FLOATS[to]), (long long)COUNTS[i], off);
                    pair x = dense(FLOATS[from], FLOATS[from], SHAPE(COUNTS[i]), off / 2),
                         y = dense(FLOATS[to], FLOATS[to], SHAPE(COUNTS[i]), off);
                    fill(&x, -70000, 70000); /* beyond fp16 at both ends */
                    sl_copy(&cpu, &y.c, &x.c);
                    sl_copy(&gpu, &y.g, &x.g);
                    check(&y, EXACT);
                }
    end();
}

static void copy_pitched(void **state)
{
    static const int64_t VIEWS[][6] = {
        /* rows, columns, left and right of x, of y */
        {5, 64, 64, 64, 0, 0}, {7, 128, 8, 24, 16, 8},       {1, 24, 8, 8, 8, 8},
        {9, 12, 4, 0, 8, 4},   {33, 7, 3, 1, 2, 2},          {3, 6, 2, 2, 0, 4},
        {257, 1, 1, 1, 0, 3},  {64, 5120, 5120, 5120, 0, 8}, {1000, 40, 0, 40, 40, 0}};
    (void)state;
    for (size_t from = 0; from < COUNT(FLOATS); from++)
        for (size_t to = 0; to < COUNT(FLOATS); to++)
            for (size_t i = 0; i < COUNT(VIEWS); i++) {
                const int64_t *v = VIEWS[i];
                begin("copy of rows %s to %s, [%lld, %lld], %lld and %lld beside x",
                      sl_dtype_tag(FLOATS[from]), sl_dtype_tag(FLOATS[to]), (long long)v[0],
                      (long long)v[1], (long long)v[2], (long long)v[3]);
                pair x = pitched(FLOATS[from], FLOATS[from], v[0], v[1], v[2], v[3]),
                     y = pitched(FLOATS[to], FLOATS[to], v[0], v[1], v[4], v[5]);
                fill(&x, -100, 100);
                sl_copy(&cpu, &y.c, &x.c);
                sl_copy(&gpu, &y.g, &x.g);
                check(&y, EXACT);
            }
    end();
}

static void copy_bytes(void **state)
{
    enum { ROWS = 37, COLS = 7, PITCH = 11 };
    uint8_t in[ROWS * PITCH], out[ROWS * COLS];
    (void)state;
    begin("copy U8 [37, 7] at a pitch of 11");
    sl_tensor x = sl_new2(&gpu, SL_U8, ROWS, PITCH), y = sl_new2(&gpu, SL_U8, ROWS, COLS),
              view = sl_cols(&x, 3, COLS);
    for (size_t i = 0; i < sizeof in; i++) in[i] = (uint8_t)(i * 37);
    sl_upload(&gpu, &x, in);
    sl_copy(&gpu, &y, &view);
    sl_download(&gpu, out, &y);
    if (gpu.err.code != SL_OK) SAY("%s", gpu.err.msg);
    for (int i = 0; i < ROWS * COLS && !wrong; i++)
        if (out[i] != in[i / COLS * PITCH + 3 + i % COLS])
            SAY("byte %d is %d, want %d", i, out[i], in[i / COLS * PITCH + 3 + i % COLS]);
    end();
}

/* ---- elementwise ---- */

static void add_and_sub(void **state)
{
    (void)state;
    for (int sub = 0; sub < 2; sub++)
        for (int types = 0; types < 8; types++)
            for (size_t i = 0; i < COUNT(COUNTS); i++)
                for (int how = 0; how < 4; how++) { /* apart, off the grid, y is a, y is b */
                    sl_dtype ty = TWO[types & 1], ta = TWO[types >> 1 & 1], tb = TWO[types >> 2];
                    if ((how == 2 && ta != ty) || (how == 3 && tb != ty)) continue;
                    int off = how == 1;
                    begin("%s %s = %s, %s, %lld, way %d", sub ? "sub" : "add", sl_dtype_tag(ty),
                          sl_dtype_tag(ta), sl_dtype_tag(tb), (long long)COUNTS[i], how);
                    pair a = dense(SL_F32, ta, SHAPE(COUNTS[i]), 0),
                         b = dense(SL_F32, tb, SHAPE(COUNTS[i]), off);
                    pair y = dense(SL_F32, ty, SHAPE(COUNTS[i]), 3 * off);
                    fill(&a, -2, 2), fill(&b, -3, 3);
                    sl_tensor cy = how == 2   ? a.c
                                   : how == 3 ? b.c
                                              : y.c,
                              gy = how == 2   ? a.g
                                   : how == 3 ? b.g
                                              : y.g;
                    (sub ? sl_sub : sl_add)(&cpu, &cy, &a.c, &b.c);
                    (sub ? sl_sub : sl_add)(&gpu, &gy, &a.g, &b.g);
                    /* the buffer around it holds numbers, not poison: look at the view
                     * alone */
                    if (how >= 2) {
                        sl_copy(&cpu, &y.c, &cy);
                        sl_copy(&gpu, &y.g, &gy);
                    }
                    check(&y, EXACT);
                }
    end();
}

static void silu(void **state)
{
    (void)state;
    for (int types = 0; types < 4; types++)
        for (size_t i = 0; i < COUNT(COUNTS); i++)
            for (int how = 0; how < 3; how++) {
                sl_dtype ty = TWO[types & 1], tx = TWO[types >> 1];
                if (how == 2 && tx != ty) continue;
                begin("silu %s = %s, %lld, way %d", sl_dtype_tag(ty), sl_dtype_tag(tx),
                      (long long)COUNTS[i], how);
                pair x = dense(SL_F32, tx, SHAPE(COUNTS[i]), how == 1),
                     y = dense(SL_F32, ty, SHAPE(COUNTS[i]), 0);
                fill(&x, -30, 30);
                sl_tensor cy = how == 2 ? x.c : y.c, gy = how == 2 ? x.g : y.g;
                sl_silu(&cpu, &cy, &x.c);
                sl_silu(&gpu, &gy, &x.g);
                if (how == 2) {
                    sl_copy(&cpu, &y.c, &cy);
                    sl_copy(&gpu, &y.g, &gy);
                }
                /* 2e-6: 16 units of float32, for two exponentials */
                check(&y, ty == SL_F32 ? 2e-6 : ROUNDING, 1e-30);
            }
    end();
}

static void geglu(void **state)
{
    static const int64_t AT[][2] = {{512, 10240}, {3, 7}, {1, 1}, {5, 8}, {17, 333}};
    (void)state;
    for (size_t i = 0; i < COUNT(AT); i++)
        for (int how = 0; how < 3; how++) {
            begin("geglu [%lld, %lld], way %d", (long long)AT[i][0], (long long)AT[i][1], how);
            pair a = dense(SL_F32, SL_BF16, SHAPE(AT[i][0], AT[i][1]), 0),
                 b = dense(SL_F32, SL_BF16, SHAPE(AT[i][0], AT[i][1]), how == 1);
            pair y = dense(SL_F32, SL_BF16, SHAPE(AT[i][0], AT[i][1]), how == 1 ? 3 : 0);
            fill(&a, -6, 6), fill(&b, -2, 2);
            sl_tensor cy = how == 2 ? a.c : y.c, gy = how == 2 ? a.g : y.g;
            sl_geglu(&cpu, &cy, &a.c, &b.c);
            sl_geglu(&gpu, &gy, &a.g, &b.g);
            if (how == 2) {
                sl_copy(&cpu, &y.c, &cy);
                sl_copy(&gpu, &y.g, &gy);
            }
            check(&y, ROUNDING, 1e-30);
        }
    end();
}

static void embed(void **state)
{
    static const int64_t AT[][2] = {{1, 8}, {7, 5}, {512, 4096}, {513, 24}, {1300, 13}, {0, 8}};
    enum { ROWS = 97 };
    (void)state;
    for (size_t i = 0; i < COUNT(AT); i++)
        for (size_t t = 0; t < COUNT(TWO); t++) {
            int64_t n = AT[i][0], d = AT[i][1];
            begin("embed %lld rows of %lld, table %s", (long long)n, (long long)d,
                  sl_dtype_tag(TWO[t]));
            pair table = dense(TWO[t], TWO[t], SHAPE(ROWS, d), 0),
                 y = dense(SL_F32, SL_BF16, SHAPE(n, d), 0);
            int32_t *ids = claim((size_t)n * sizeof *ids);
            fill(&table, -1, 1);
            for (int64_t k = 0; k < n; k++) ids[k] = (int32_t)((k * 31 + 96) % ROWS);
            sl_embed(&cpu, &y.c, &table.c, ids);
            sl_embed(&gpu, &y.g, &table.g, ids);
            /* the caller's array is its own again */
            memset(ids, 0x7f, (size_t)n * sizeof *ids);
            free(ids);
            check(&y, EXACT);
        }
    end();
}

/* ---- rows ---- */

static const int64_t ROWS[][2] = {
    {3, 5120}, {1061, 5120}, {1057, 1536}, {257, 1280},  {512, 4096}, {5, 3072},
    {1, 2560}, {1100, 64},   {3, 8},       {5, 1},       {4, 13},     {9, 333},
    {2, 5128}, {3, 10240},   {7, 16},      {1057, 1032}, {0, 64}};

static void layernorm(void **state)
{
    static const char *const WEIGHTS[] = {"none", "BF16", "F32", "F32 and BF16",
                                          "BF16 off the grid"};
    (void)state;
    for (size_t i = 0; i < COUNT(ROWS); i++)
        for (size_t k = 0; k < COUNT(WEIGHTS); k++)
            for (int turn = 0; turn < 6; turn++) {
                int64_t n = ROWS[i][0], d = ROWS[i][1];
                int how = turn % 3;
                sl_dtype type = turn < 3 ? SL_BF16 : SL_F32;
                begin("layernorm [%lld, %lld] %s, weights %s, way %d", (long long)n, (long long)d,
                      sl_dtype_tag(type), WEIGHTS[k], how);
                pair x = dense(SL_F32, type, SHAPE(n, d), how == 2),
                     y = dense(SL_F32, type, SHAPE(n, d), how == 2);
                pair w = k == 2 || k == 3 ? floats(SHAPE(d), 0) : act(SHAPE(d), k == 4),
                     b = k == 2 ? floats(SHAPE(d), 0) : act(SHAPE(d), 0);
                /* far from zero: variance by differences of squares would show */
                fill(&x, -1, 5);
                sl_layernorm(&cpu, how == 1 ? &x.c : &y.c, &x.c, k ? &w.c : NULL, k ? &b.c : NULL,
                             1e-6f);
                sl_layernorm(&gpu, how == 1 ? &x.g : &y.g, &x.g, k ? &w.g : NULL, k ? &b.g : NULL,
                             1e-6f);
                settle(how, &y, &x);
                /* 2e-5: sums of 5120 in another order, of numbers up to 5 deviations */
                check(&y, type == SL_F32 ? 1e-5 : ROUNDING, 2e-5);
            }
    end();
}

static void layernorm_modulate(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(ROWS); i++)
        for (int how = 0; how < 3; how++) {
            int64_t n = ROWS[i][0], d = ROWS[i][1];
            begin("layernorm_modulate [%lld, %lld], way %d", (long long)n, (long long)d, how);
            pair x = dense(SL_F32, SL_BF16, SHAPE(n, d), how == 2),
                 y = dense(SL_F32, SL_BF16, SHAPE(n, d), how == 2);
            pair scale = floats(SHAPE(d), how == 2), shift = floats(SHAPE(d), 0);
            fill(&x, -1, 5);
            sl_layernorm_modulate(&cpu, how == 1 ? &x.c : &y.c, &x.c, &scale.c, &shift.c, 1e-6f);
            sl_layernorm_modulate(&gpu, how == 1 ? &x.g : &y.g, &x.g, &scale.g, &shift.g, 1e-6f);
            settle(how, &y, &x);
            check(&y, ROUNDING, 2e-5);
        }
    end();
}

/* Columns beside x and y of way `how`: 0 dense, 1 a third of a wide matrix in place, 2
 * another pitch, 3 odd. */
static pair beside(int how, bool out, int64_t n, int64_t d)
{
    if (how == 1) return pitched(SL_F32, SL_BF16, n, d, d, d);
    if (how == 2)
        return out ? pitched(SL_F32, SL_BF16, n, d, 8, 16) : pitched(SL_F32, SL_BF16, n, d, 16, 0);
    if (how == 3)
        return out ? pitched(SL_F32, SL_BF16, n, d, 1, 2) : pitched(SL_F32, SL_BF16, n, d, 3, 0);
    return pitched(SL_F32, SL_BF16, n, d, 0, 0);
}

static void rmsnorm(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(ROWS); i++)
        for (size_t t = 0; t < COUNT(TWO); t++)
            for (int how = 0; how < 4; how++) {
                int64_t n = ROWS[i][0], d = ROWS[i][1];
                if (!n) continue;
                begin("rmsnorm [%lld, %lld], weights %s, way %d", (long long)n, (long long)d,
                      sl_dtype_tag(TWO[t]), how);
                pair x = beside(how, false, n, d), y = beside(how, true, n, d),
                     w = dense(SL_F32, TWO[t], SHAPE(d), 0);
                fill(&x, -3, 3), fill(&w, 0, 2);
                sl_rmsnorm(&cpu, how == 1 ? &x.c : &y.c, &x.c, &w.c, 1e-6f);
                sl_rmsnorm(&gpu, how == 1 ? &x.g : &y.g, &x.g, &w.g, 1e-6f);
                settle(how, &y, &x);
                check(&y, ROUNDING, 1e-6);
            }
    end();
}

static void rmsnorm_rope(void **state)
{
    static const int64_t AT[][3] = {/* rows, heads, head */
                                    {3, 40, 128}, {1061, 40, 128}, {1057, 12, 128}, {7, 24, 128},
                                    {5, 2, 16},   {9, 4, 24},      {1060, 3, 64},   {2, 1, 2},
                                    {11, 3, 10},  {6, 2, 40},      {4, 50, 128},    {5, 1, 1024},
                                    {3, 2, 2048}, {8, 5, 8}};
    (void)state;
    for (size_t i = 0; i < COUNT(AT); i++)
        for (size_t t = 0; t < COUNT(TWO); t++)
            for (int how = 0; how < 4; how++) {
                int64_t n = AT[i][0], heads = AT[i][1], half = AT[i][2] / 2, d = heads * AT[i][2];
                begin("rmsnorm_rope [%lld, %lld x %lld], weights %s, way %d", (long long)n,
                      (long long)heads, (long long)AT[i][2], sl_dtype_tag(TWO[t]), how);
                pair x = beside(how, false, n, d), y = beside(how, true, n, d),
                     w = dense(SL_F32, TWO[t], SHAPE(d), 0);
                pair c = floats(SHAPE(n, half), 0), s = floats(SHAPE(n, half), how == 3);
                fill(&x, -3, 3), fill(&w, 0, 2);
                sl_rmsnorm_rope(&cpu, how == 1 ? &x.c : &y.c, &x.c, &w.c, 1e-6f, &c.c, &s.c,
                                (int)heads);
                sl_rmsnorm_rope(&gpu, how == 1 ? &x.g : &y.g, &x.g, &w.g, 1e-6f, &c.g, &s.g,
                                (int)heads);
                settle(how, &y, &x);
                /* 4e-6: two products of numbers up to 4 may cancel */
                check(&y, ROUNDING, 4e-6);
            }
    end();
}

static void gated_add(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(ROWS); i++)
        for (int how = 0; how < 3; how++) {
            int64_t n = ROWS[i][0], d = ROWS[i][1];
            begin("gated_add [%lld, %lld], way %d", (long long)n, (long long)d, how);
            pair x = act(SHAPE(n, d), how == 2), y = act(SHAPE(n, d), 0),
                 gate = floats(SHAPE(d), how == 2 ? 3 : 0),
                 out = dense(SL_F32, SL_BF16, SHAPE(n, d), 0);
            sl_gated_add(&cpu, &x.c, how == 1 ? &x.c : &y.c, &gate.c);
            sl_gated_add(&gpu, &x.g, how == 1 ? &x.g : &y.g, &gate.g);
            settle(1, &out, &x);
            check(&out, ROUNDING, 1e-6);
        }
    end();
}

/* ---- sizes ---- */

/* Tensors without elements: nothing happens, nothing fails. */
static void nothing(void **state)
{
    (void)state;
    begin("tensors without elements");
    sl_tensor e2 = sl_view2(NULL, SL_BF16, 0, 64), e4 = sl_view4(NULL, SL_BF16, 0, 4, 4, 3),
              e6 = sl_view4(NULL, SL_BF16, 0, 4, 4, 6);
    sl_tensor f4 = sl_view4(NULL, SL_F32, 3, 0, 4, 4), l4 = sl_view4(NULL, SL_F32, 16, 0, 4, 4),
              u8 = sl_view4(NULL, SL_U8, 0, 4, 4, 3);
    sl_tensor rows = sl_view2(NULL, SL_BF16, 0, 64), rope = sl_view2(NULL, SL_F32, 0, 16),
              f1 = sl_view1(NULL, SL_F32, 0);
    pair w = act(SHAPE(64), 0), f = floats(SHAPE(64), 0), g3 = act(SHAPE(3), 0);
    const sl_tensor *one[] = {&f1};
    sl_zero(&gpu, &e2);
    sl_copy(&gpu, &e2, &rows);
    sl_add(&gpu, &e2, &e2, &rows);
    sl_silu(&gpu, &e2, &e2);
    sl_geglu(&gpu, &e2, &e2, &rows);
    sl_layernorm(&gpu, &e2, &e2, NULL, NULL, 1e-6f);
    sl_layernorm_modulate(&gpu, &e2, &e2, &f.g, &f.g, 1e-6f);
    sl_rmsnorm(&gpu, &e2, &e2, &w.g, 1e-6f);
    sl_rmsnorm_rope(&gpu, &e2, &e2, &w.g, 1e-6f, &rope, &rope, 2);
    sl_gated_add(&gpu, &e2, &rows, &f.g);
    sl_patchify(&gpu, &e2, &l4, NULL);
    sl_unpatchify(&gpu, &l4, &rows);
    sl_guidance(&gpu, &e2, &e2, &rows, 5);
    sl_flow_x0(&gpu, &f1, &f1, &f1, 1);
    sl_lincomb(&gpu, &f1, 1, one, (float[]){1});
    sl_conv_history(&gpu, &e4, &e4);
    sl_vae_norm(&gpu, &e4, &e4, &g3.g, true);
    sl_time_shuffle(&gpu, &e4, &e6);
    sl_to_channels_last(&gpu, &e4, &f4, NULL, NULL);
    sl_to_channels_first(&gpu, &f4, &e4, NULL, NULL);
    sl_frames_rgb8(&gpu, &u8, &e4);
    sl_sync(&gpu);
    cases++;
    if (gpu.err.code != SL_OK) SAY("%s", gpu.err.msg);
    end();
}

/* 2.25e9 elements: beyond 32 bits, signed, and 4.5 GB */
enum { HUGE_D = 5120, HUGE_ROWS = 440000, HUGE_TAIL = 3 };

/* Row-wise operations on tensors of more than 2^31 elements: the last rows are right. */
static void beyond_32_bits(void **state)
{
    static const char *const OPS[] = {
        "add",     "silu",         "copy",      "layernorm", "layernorm_modulate",
        "rmsnorm", "rmsnorm_rope", "gated_add", "vae_norm"};
    const int64_t first = HUGE_ROWS - HUGE_TAIL;
    const size_t bytes = (size_t)HUGE_ROWS * HUGE_D * sizeof(sl_bf16);
    (void)state;
    begin("beyond 32 bits");
    pair tail = act(SHAPE(HUGE_TAIL, HUGE_D), 0), w = act(SHAPE(HUGE_D), 0),
         f = floats(SHAPE(HUGE_D), 0), want = dense(SL_F32, SL_BF16, SHAPE(HUGE_TAIL, HUGE_D), 0);
    pair cs = floats(SHAPE(HUGE_TAIL, 64), 0);
    void *a = sl_device_alloc(&gpu, bytes), *b = a ? sl_device_alloc(&gpu, bytes) : NULL,
         *c = b ? sl_device_alloc(&gpu, (size_t)HUGE_ROWS * 64 * 4) : NULL;
    if (!c) {
        printf("    left out: %s\n", gpu.err.msg);
        sl_device_free(&gpu, a);
        sl_device_free(&gpu, b);
        sl_ctx_error(&gpu, NULL);
        return;
    }
    sl_tensor x = sl_view2(a, SL_BF16, HUGE_ROWS, HUGE_D),
              y = sl_view2(b, SL_BF16, HUGE_ROWS, HUGE_D),
              rope = sl_view2(c, SL_F32, HUGE_ROWS, 64);
    sl_tensor x_end = sl_rows(&x, first, HUGE_TAIL), y_end = sl_rows(&y, first, HUGE_TAIL),
              rope_end = sl_rows(&rope, first, HUGE_TAIL);
    for (size_t i = 0; i < COUNT(OPS); i++) {
        snprintf(name, sizeof name, "%s [%d, %d]", OPS[i], HUGE_ROWS, HUGE_D);
        sl_zero(&gpu, &x), sl_zero(&gpu, &y), sl_zero(&gpu, &rope);
        poison(&want);
        sl_copy(&gpu, &x_end, &tail.g);
        sl_copy(&gpu, &rope_end, &cs.g);
        sl_tensor x4 = sl_view4(a, SL_BF16, HUGE_ROWS, 5, 16, 64),
                  y4 = sl_view4(b, SL_BF16, HUGE_ROWS, 5, 16, 64),
                  g64 = sl_view1(w.g.data, SL_BF16, 64);
        sl_tensor c4 = sl_view4(tail.c.data, SL_F32, HUGE_TAIL, 5, 16, 64),
                  o4 = sl_view4(want.c.data, SL_F32, HUGE_TAIL, 5, 16, 64);
        sl_tensor c64 = sl_view1(w.c.data, SL_F32, 64);
        switch (i) {
        case 0: sl_add(&gpu, &y, &x, &x), sl_add(&cpu, &want.c, &tail.c, &tail.c); break;
        case 1: sl_silu(&gpu, &y, &x), sl_silu(&cpu, &want.c, &tail.c); break;
        case 2: sl_copy(&gpu, &y, &x), sl_copy(&cpu, &want.c, &tail.c); break;
        case 3:
            sl_layernorm(&gpu, &y, &x, &w.g, &w.g, 1e-6f),
                sl_layernorm(&cpu, &want.c, &tail.c, &w.c, &w.c, 1e-6f);
            break;
        case 4:
            sl_layernorm_modulate(&gpu, &y, &x, &f.g, &f.g, 1e-6f),
                sl_layernorm_modulate(&cpu, &want.c, &tail.c, &f.c, &f.c, 1e-6f);
            break;
        case 5:
            sl_rmsnorm(&gpu, &y, &x, &w.g, 1e-6f), sl_rmsnorm(&cpu, &want.c, &tail.c, &w.c, 1e-6f);
            break;
        case 6:
            sl_rmsnorm_rope(&gpu, &y, &x, &w.g, 1e-6f, &rope, &rope, 40);
            sl_rmsnorm_rope(&cpu, &want.c, &tail.c, &w.c, 1e-6f, &cs.c, &cs.c, 40);
            break;
        case 7:
            sl_zero(&cpu, &want.c), sl_gated_add(&gpu, &y, &x, &f.g),
                sl_gated_add(&cpu, &want.c, &tail.c, &f.c);
            break;
        default:
            sl_vae_norm(&gpu, &y4, &x4, &g64, true), sl_vae_norm(&cpu, &o4, &c4, &c64, true);
            break;
        }
        sl_copy(&gpu, &want.g, &y_end);
        check(&want, ROUNDING, 2e-5);
    }
    sl_device_free(&gpu, a);
    sl_device_free(&gpu, b);
    sl_device_free(&gpu, c);
    end();
}

/* ---- bench ---- */

static void run_add(const bench_set *s)
{
    sl_add(&gpu, &s->t[0], &s->t[0], &s->t[1]);
}
static void run_layernorm(const bench_set *s)
{
    sl_layernorm(&gpu, &s->t[0], &s->t[1], &s->t[2], &s->t[3], 1e-6f);
}
static void run_modulate(const bench_set *s)
{
    sl_layernorm_modulate(&gpu, &s->t[0], &s->t[1], &s->t[2], &s->t[3], 1e-6f);
}
static void run_rms(const bench_set *s)
{
    sl_rmsnorm(&gpu, &s->t[0], &s->t[1], &s->t[2], 1e-6f);
}
static void run_rope(const bench_set *s)
{
    sl_rmsnorm_rope(&gpu, &s->t[0], &s->t[0], &s->t[1], 1e-6f, &s->t[2], &s->t[3], 40);
}
static void run_gated(const bench_set *s)
{
    sl_gated_add(&gpu, &s->t[0], &s->t[1], &s->t[2]);
}
static void run_geglu(const bench_set *s)
{
    sl_geglu(&gpu, &s->t[0], &s->t[0], &s->t[1]);
}

static const bench_case BENCH[] = {
    {"copy of rows [75600, 5120] out of 15360",
     run_copy,
     {A2(N, D, 1), {SL_BF16, 2, {N, D}, 1, true}}},
    {"copy F32 to BF16 [75600, 5120]", run_copy, {A2(N, D, 1), {SL_F32, 2, {N, D}, 1, false}}},
    {"add [75600, 5120] in place", run_add, {A2(N, D, 2), A2(N, D, 1)}},
    {"layernorm [75600, 5120], weights BF16",
     run_layernorm,
     {A2(N, D, 1), A2(N, D, 1), V1(SL_BF16, D), V1(SL_BF16, D)}},
    {"layernorm [75600, 5120], weights F32",
     run_layernorm,
     {A2(N, D, 1), A2(N, D, 1), V1(SL_F32, D), V1(SL_F32, D)}},
    {"layernorm_modulate [75600, 5120]",
     run_modulate,
     {A2(N, D, 1), A2(N, D, 1), V1(SL_F32, D), V1(SL_F32, D)}},
    {"layernorm_modulate [32760, 1536]",
     run_modulate,
     {A2(32760, 1536, 1), A2(32760, 1536, 1), V1(SL_F32, 1536), V1(SL_F32, 1536)}},
    {"rmsnorm [75600, 5120]", run_rms, {A2(N, D, 1), A2(N, D, 1), V1(SL_BF16, D)}},
    {"rmsnorm [512, 4096]", run_rms, {A2(512, 4096, 1), A2(512, 4096, 1), V1(SL_BF16, 4096)}},
    {"rmsnorm_rope [75600, 40 x 128] in place",
     run_rope,
     {A2(N, D, 2), V1(SL_BF16, D), {SL_F32, 2, {N, 64}, 1, false}, {SL_F32, 2, {N, 64}, 1, false}}},
    {"rmsnorm_rope [75600, 40 x 128] in place, out of 15360",
     run_rope,
     {{SL_BF16, 2, {N, D}, 2, true},
      V1(SL_BF16, D),
      {SL_F32, 2, {N, 64}, 1, false},
      {SL_F32, 2, {N, 64}, 1, false}}},
    {"gated_add [75600, 5120]", run_gated, {A2(N, D, 2), A2(N, D, 1), V1(SL_F32, D)}},
    {"geglu [512, 10240] in place", run_geglu, {A2(512, 10240, 2), A2(512, 10240, 1)}},
};

int main(int argc, char **argv)
{
    int status;
    const struct CMUnitTest tests[] = {
        T(zero),    T(copy_dense),   T(copy_pitched), T(copy_bytes), T(add_and_sub),
        T(silu),    T(geglu),        T(embed),        T(layernorm),  T(layernorm_modulate),
        T(rmsnorm), T(rmsnorm_rope), T(gated_add),    T(nothing),    T(beyond_32_bits),
    };
    if (!tests_wanted("gpu_fused", BENCH, COUNT(BENCH), argc, argv, &status)) return status;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
