/* gpu_attention.c - attention of every kind on the GPU, held to the CPU body on the same
 * inputs, and what our own kernels of it take.
 *
 * An argument: only the tests of that name (* and ?), as a sanitizer wants them, which takes
 * minutes for all. Without a device: one line, and success. */
#include "tests/t_hopper.h"
#include "tests/t_pair.h"

#include <fcntl.h>

/* ---- attention ---- */

/* q, k, v dense; or columns of one matrix (k and v of one where Nq != Nk) */
enum { APART, TOGETHER };

static twin part(const twin *t, int64_t first, int64_t count)
{
    twin r = *t;
    r.g = sl_cols(&t->g, first, count);
    r.c = sl_cols(&t->c, first, count);
    return r;
}

static void attention_in(pair *p, sl_dtype dtype, int64_t nq, int64_t nk, int heads, int64_t d,
                         bool bias, bool accumulate, int place, int64_t pad)
{
    int64_t w = heads * d;
    twin q, k, v, o = matrix(p, dtype, nq, w, pad),
                  table = matrix(p, SL_F32, heads, nq + nk - 1, 0);
    if (place == TOGETHER && nq == nk) {
        twin all = matrix(p, dtype, nq, 3 * w, 0);
        q = part(&all, 0, w), k = part(&all, w, w), v = part(&all, 2 * w, w);
    } else {
        q = matrix(p, dtype, nq, w, pad);
        if (place == TOGETHER) {
            twin all = matrix(p, dtype, nk, 2 * w, 0);
            k = part(&all, 0, w), v = part(&all, w, w);
        } else k = matrix(p, dtype, nk, w, pad), v = matrix(p, dtype, nk, w, pad);
    }
    float scale = 2 / sqrtf((float)d);
    sl_attention(&p->cpu, &o.c, &q.c, &k.c, &v.c, heads, scale, bias ? &table.c : NULL, accumulate);
    sl_attention(&p->gpu, &o.g, &q.g, &k.g, &v.g, heads, scale, bias ? &table.g : NULL, accumulate);
    /* in bf16 the weights are rounded, then the result, then the sum */
    same(p, &o, dtype == SL_F32 ? 1e-5 : 4e-3,
         say("attention %lld x %lld, %d heads x %lld, %s, bias %d, accumulate %d, place %d, pad "
             "%lld",
             (long long)nq, (long long)nk, heads, (long long)d, sl_dtype_tag(dtype), bias,
             accumulate, place, (long long)pad));
    forget(p);
}

static void attention_once(pair *p, int64_t nq, int64_t nk, int heads, int64_t d, bool bias,
                           bool accumulate, int place, int64_t pad)
{
    attention_in(p, SL_BF16, nq, nk, heads, d, bias, accumulate, place, pad);
}

/* Where our own kernel is not, the sizes of the DiT must be cuDNN's: a warning about a
 * slower form is a failure. */
static void fused_attention_is_there(void **state)
{
    (void)state;
    pair p;
    char file[600], text[2000] = "";
    const char *dir = t_tmpdir();
    snprintf(file, sizeof file, "%s/log", dir);
    pair_open(&p, (size_t)1 << 30);
    fflush(stderr);
    int before = dup(2), to = open(file, O_RDWR | O_CREAT, 0600);
    assert_true(before >= 0 && to >= 0 && dup2(to, 2) >= 0);
    setenv("SLUICE_ATTENTION_FLASH", "0", 1);
    attention_once(&p, 300, 512, 40, 128, false, false, APART, 0);
    attention_once(&p, 300, 257, 40, 128, false, false, APART, 0);
    attention_once(&p, 300, 300, 40, 128, false, false, TOGETHER, 0);
    attention_once(&p, 300, 257, 40, 128, false, true, APART, 0);
    attention_once(&p, 200, 200, 12, 64, false, false, APART, 0);
    unsetenv("SLUICE_ATTENTION_FLASH");
    fflush(stderr);
    dup2(before, 2);
    close(before);
    lseek(to, 0, SEEK_SET);
    ssize_t n = read(to, text, sizeof text - 1);
    close(to);
    t_rmdir(dir);
    if (n > 0 && strstr(text, "cuDNN")) {
        print_message("FAIL cuDNN did not do it: %s", text);
        p.failures++;
    }
    pair_close(&p);
}

static void fused_attention_of_odd_sizes(void **state)
{
    (void)state;
    static const int64_t NQ[] = {1, 17, 128, 300}, NK[] = {1, 17, 257, 512};
    static const int HEADS[] = {1, 3, 40};
    pair p;
    int turn = 0;
    pair_open(&p, (size_t)1 << 30);
    setenv("SLUICE_ATTENTION_FLASH", "0", 1);
    EACH(i, NQ) EACH(j, NK)
    {
        attention_once(&p, NQ[i], NK[j], HEADS[turn % 3], 128, false, turn & 1, turn / 2 % 2,
                       turn % 5 == 0 ? 8 : 0);
        turn++;
    }
    attention_once(&p, 257, 257, 3, 128, false, true, TOGETHER, 8);
    attention_once(&p, 131, 67, 5, 64, false, true, TOGETHER, 16);
    /* the image's, where it goes apart */
    attention_once(&p, 300, 257, 40, 128, false, true, TOGETHER, 8);
    /* added in several pieces */
    attention_once(&p, 7000, 33, 40, 128, false, true, APART, 0);
    unsetenv("SLUICE_ATTENTION_FLASH");
    pair_close(&p);
}

/* Rows first .. first + rows of t times a power of two. */
static void amplify(pair *p, twin *t, int64_t first, int64_t rows, float by)
{
    const int64_t width = t->whole_c.shape[1], n = sl_count(&t->whole_c);
    float *x = malloc((size_t)n * 4 + 1);
    assert_non_null(x);
    memcpy(x, t->whole_c.data, (size_t)n * 4);
    for (int64_t i = first * width; i < (first + rows) * width; i++) x[i] *= by;
    fill(p, t, x);
    free(x);
}

/* Hopper's kernel (attention_flash.cu); of the keys, `rows` from `first` on are
 * multiplied by `by`. */
static void our_attention_once(pair *p, int64_t nq, int64_t nk, int heads, int64_t first,
                               int64_t rows, float by, int place, int64_t pad)
{
    int64_t w = heads * 128;
    twin q = matrix(p, SL_BF16, nq, w, pad), k, v, o = matrix(p, SL_BF16, nq, w, pad);
    if (place == TOGETHER) {
        twin all = matrix(p, SL_BF16, nk, 2 * w, 0);
        amplify(p, &all, first, rows, by);
        k = part(&all, 0, w), v = part(&all, w, w);
    } else {
        k = matrix(p, SL_BF16, nk, w, pad), v = matrix(p, SL_BF16, nk, w, pad);
        amplify(p, &k, first, rows, by);
    }
    const float scale = 2 / sqrtf(128);
    sl_attention(&p->cpu, &o.c, &q.c, &k.c, &v.c, heads, scale, NULL, false);
    sl_attention(&p->gpu, &o.g, &q.g, &k.g, &v.g, heads, scale, NULL, false);
    same(p, &o, 4e-3,
         say("attention %lld x %lld, %d heads, keys %lld to %lld times %g, place %d, pad %lld",
             (long long)nq, (long long)nk, heads, (long long)first, (long long)(first + rows - 1),
             (double)by, place, (long long)pad));
    forget(p);
}

/* Scores that pass what exponentials hold again and again: every 160 keys are twice as
 * large as those before. */
static void rising_keys(pair *p, int64_t nq, int64_t nk)
{
    twin q = matrix(p, SL_BF16, nq, 128, 0), k = matrix(p, SL_BF16, nk, 128, 0),
         v = matrix(p, SL_BF16, nk, 128, 0), o = matrix(p, SL_BF16, nq, 128, 0);
    for (int64_t first = 160; first < nk; first += 160) amplify(p, &k, first, nk - first, 2);
    sl_attention(&p->cpu, &o.c, &q.c, &k.c, &v.c, 1, 0.125f, NULL, false);
    sl_attention(&p->gpu, &o.g, &q.g, &k.g, &v.g, 1, 0.125f, NULL, false);
    same(p, &o, 4e-3, say("attention %lld x %lld, keys that rise", (long long)nq, (long long)nk));
    forget(p);
}

/* What is not a number stays where it belongs: one query's row, or one head's column of
 * results. */
static void not_a_number(pair *p, bool in_q)
{
    enum { NQ = 300, NK = 1100, HEADS = 2, W = HEADS * 128, ROW = 77 };
    const char *what = say("attention, a NaN in %s", in_q ? "q" : "k");
    twin q = matrix(p, SL_BF16, NQ, W, 0), k = matrix(p, SL_BF16, NK, W, 0),
         v = matrix(p, SL_BF16, NK, W, 0), o = matrix(p, SL_BF16, NQ, W, 0);
    twin *bad = in_q ? &q : &k;
    const int64_t n = sl_count(&bad->whole_c);
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    memcpy(x, bad->whole_c.data, (size_t)n * sizeof *x);
    x[ROW * W + 130] = NAN; /* the second head */
    fill(p, bad, x);
    free(x);
    sl_attention(&p->gpu, &o.g, &q.g, &k.g, &v.g, HEADS, 0.1f, NULL, false);
    sl_sync(&p->gpu);
    if (!went_wrong(p, what)) {
        float *got = downloaded(p, &o.g);
        int64_t wrong = 0;
        for (int64_t i = 0; i < NQ * W; i++)
            wrong += !isnan(got[i]) != !(i % W >= 128 && (!in_q || i / W == ROW));
        p->cases++;
        if (wrong) {
            print_message("FAIL %s: %lld of %d elements\n", what, (long long)wrong, NQ * W);
            p->failures++;
        }
        free(got);
    }
    forget(p);
}

/* It is the kernel that was meant: cuDNN's rounds otherwise. */
static void not_cudnn(pair *p)
{
    enum { N = 2000, W = 3 * 128 };
    twin q = matrix(p, SL_BF16, N, W, 0), k = matrix(p, SL_BF16, N, W, 0),
         v = matrix(p, SL_BF16, N, W, 0), o = matrix(p, SL_BF16, N, W, 0);
    float *got[2];
    for (int i = 0; i < 2; i++) {
        if (i) setenv("SLUICE_ATTENTION_FLASH", "0", 1);
        sl_attention(&p->gpu, &o.g, &q.g, &k.g, &v.g, 3, 0.1f, NULL, false);
        unsetenv("SLUICE_ATTENTION_FLASH");
        sl_sync(&p->gpu);
        got[i] = downloaded(p, &o.g);
    }
    p->cases++;
    if (!memcmp(got[0], got[1], N * W * sizeof(float))) {
        print_message("FAIL attention was not attention_flash.cu's\n");
        p->failures++;
    }
    free(got[0]), free(got[1]);
    forget(p);
}

static void attention_of_our_own(void **state)
{
    (void)state;
    static const int64_t NQ[] = {1, 63, 64, 65, 191, 192, 193, 1000, 8447},
                         NK[] = {1, 79, 80, 81, 160, 161, 239, 1999, 3001};
    static const int HEADS[] = {1, 3, 7}, PAD[] = {0, 8, 64};
    pair p;
    int turn = 0;
    if (!gpu_is_hopper("attention of our own")) skip();
    pair_open(&p, (size_t)1 << 30);
    not_cudnn(&p);
    our_attention_once(&p, 64, 80, 1, 0, 0, 1, APART, 0);    /* one block of keys */
    our_attention_once(&p, 64, 1040, 1, 0, 0, 1, APART, 0);  /* many */
    our_attention_once(&p, 192, 1041, 1, 0, 0, 1, APART, 0); /* one key more */
    /* many tiles of one block, which is not whole */
    our_attention_once(&p, 8447, 72, 40, 0, 0, 1, TOGETHER, 0);
    EACH(i, NQ)
    for (int j = 0; j < 3; j++, turn++)
        our_attention_once(&p, NQ[i], NK[turn % 9], NQ[i] > 1000 ? 3 : HEADS[turn % 3], 0, 0, 1,
                           turn % 2, PAD[turn % 3]);
    EACH(i, NK) our_attention_once(&p, 193, NK[i], 2, 0, 0, 1, TOGETHER, 8);
    /* the first keys outweigh all others by far */
    our_attention_once(&p, 500, 2000, 3, 0, 80, 64, APART, 0);
    our_attention_once(&p, 500, 2000, 3, 0, 2000, 64, APART, 0); /* scores of hundreds */
    /* a block passes the limit, */
    our_attention_once(&p, 500, 2000, 3, 80, 80, 64, APART, 0);
    our_attention_once(&p, 500, 2000, 3, 999, 1, 64, APART, 0); /* a key, */
    /* the last block, which is not whole, */
    our_attention_once(&p, 500, 2041, 3, 2000, 41, 64, APART, 0);
    our_attention_once(&p, 500, 2041, 3, 2040, 1, 64, TOGETHER, 8); /* its only key, */
    our_attention_once(&p, 500, 2000, 3, 1000, 1000, 64, APART, 0); /* half of them */
    our_attention_once(&p, 500, 2000, 3, 0, 2000, 0.0625f, APART, 0);
    rising_keys(&p, 300, 1500);
    rising_keys(&p, 192, 1040);
    not_a_number(&p, true);
    not_a_number(&p, false);
    our_attention_once(&p, 64, 1100, 300, 0, 0, 1, APART, 0); /* more heads than blocks */
    /* blocks that go on to the next head */
    our_attention_once(&p, 2112, 1100, 40, 0, 0, 1, TOGETHER, 0);
    pair_close(&p);
}

/* The counters of what is done have come to their values. */
static void counted(pair *p, const sl_done *d, const char *what)
{
    for (int i = 0; i < d->count; i++) {
        const sl_tensor t = sl_view1((void *)(uintptr_t)d->at[i], SL_F32, 1);
        uint32_t n = 0;
        sl_download(&p->gpu, &n, &t);
        if (!went_wrong(p, what) && n != d->value[i])
            fail_msg("%s: counter %d is %u, want %u", what, i, n, d->value[i]);
    }
}

static void same_bits(pair *p, const sl_tensor *a, const sl_tensor *b, const char *what)
{
    unsigned char *x = malloc(sl_bytes(a)), *y = malloc(sl_bytes(b));
    assert_true(x && y && sl_bytes(a) == sl_bytes(b));
    sl_download(&p->gpu, x, a);
    sl_download(&p->gpu, y, b);
    if (!went_wrong(p, what) && memcmp(x, y, sl_bytes(a))) fail_msg("%s: other bits", what);
    free(x);
    free(y);
}

/* n tokens in `parts` parts as even as may be, `last` last. */
static void parts_once(pair *p, int64_t n, int heads, int parts, int last)
{
    const char *what = say("attention by parts: %lld tokens, %d heads, %d parts, %d last",
                           (long long)n, heads, parts, last);
    const int64_t w = heads * 128;
    twin q = matrix(p, SL_BF16, n, w, 0), k = matrix(p, SL_BF16, n, w, 0),
         v = matrix(p, SL_BF16, n, w, 0), whole = matrix(p, SL_BF16, n, w, 0),
         o = matrix(p, SL_BF16, n, w, 0);
    int64_t first[8 + 1];
    sl_done done[8];
    for (int i = 0; i <= parts; i++) first[i] = n * i / parts;
    sl_attention(&p->gpu, &whole.g, &q.g, &k.g, &v.g, heads, 0.125f, NULL, false);
    for (int turn = 0; turn < 2; turn++) { /* counters go on */
        sl_zero(&p->gpu, &o.g);
        const bool by_parts = sl_attention_parts(&p->gpu, &o.g, &q.g, &k.g, &v.g, heads, 0.125f,
                                                 parts, first, last, done);
        sl_sync(&p->gpu);
        if (went_wrong(p, what)) return;
        if (!by_parts) fail_msg("%s: in one piece, want parts", what);
        for (int i = 0; i < parts; i++) {
            const bool wanted = i != last && first[i + 1] > first[i];
            if (wanted != (done[i].count > 0) || (parts == 2 && done[i].count > 1))
                fail_msg("%s: part %d has %d counters", what, i, done[i].count);
            counted(p, &done[i], what);
        }
        same_bits(p, &o.g, &whole.g, what);
    }
    forget(p);
}

/* A row's bits do not depend on who took its tile: all heads in one call, where a block takes many
 * tiles and the last ones are shared out, and each head in a call of its own. */
static void heads_apart_once(pair *p, int64_t nq, int64_t nk, int heads)
{
    const char *what =
        say("attention %lld x %lld, %d heads apart", (long long)nq, (long long)nk, heads);
    const int64_t w = heads * 128;
    twin q = matrix(p, SL_BF16, nq, w, 0), k = matrix(p, SL_BF16, nk, w, 0),
         v = matrix(p, SL_BF16, nk, w, 0), whole = matrix(p, SL_BF16, nq, w, 0),
         o = matrix(p, SL_BF16, nq, w, 0);
    sl_attention(&p->gpu, &whole.g, &q.g, &k.g, &v.g, heads, 0.125f, NULL, false);
    sl_zero(&p->gpu, &o.g);
    for (int h = 0; h < heads; h++) {
        twin at[4] = {part(&q, h * 128, 128), part(&k, h * 128, 128), part(&v, h * 128, 128),
                      part(&o, h * 128, 128)};
        sl_attention(&p->gpu, &at[3].g, &at[0].g, &at[1].g, &at[2].g, 1, 0.125f, NULL, false);
    }
    sl_sync(&p->gpu);
    same_bits(p, &o.g, &whole.g, what);
    forget(p);
}

static void heads_together_or_apart(void **state)
{
    (void)state;
    pair p;
    if (!gpu_is_hopper("heads apart")) skip();
    pair_open(&p, (size_t)1 << 30);
    heads_apart_once(&p, 7 * 192, 1000, 20);  /* 140 tiles: 8 behind 132 */
    heads_apart_once(&p, 1300, 80, 20);       /* the last not whole; one block of keys */
    heads_apart_once(&p, 2112, 161, 40);      /* 440: 44 behind 396, to all blocks */
    heads_apart_once(&p, 9 * 192, 500, 20);   /* 180: 48 are too many to be shared */
    heads_apart_once(&p, 4 * 192 + 1, 81, 3); /* 15: there is nothing but them */
    pair_close(&p);
}

static void attention_by_parts(void **state)
{
    (void)state;
    pair p;
    if (!gpu_is_hopper("attention by parts")) skip();
    pair_open(&p, (size_t)1 << 30);
    for (int last = 0; last < 2; last++) {
        parts_once(&p, 2 * 192, 1, 2, last);
        parts_once(&p, 385, 3, 2, last);
        parts_once(&p, 4680, 20, 2, last);
        parts_once(&p, 7 * 192, 20, 2, last); /* the last tiles are shared out */
        parts_once(&p, 100, 2, 2, last);      /* both in one tile */
    }
    for (int parts = 1; parts <= 8; parts++)
        for (int last = 0; last < parts; last++) parts_once(&p, 1953, 5, parts, last);
    parts_once(&p, 5, 2, 8, 3); /* some have no rows */
    pair_close(&p);
}

/* nq queries and nk keys in 8 bits, held to the CPU body; again in parts, with the same bits. The
 * two differ where a last place of float32 decides how a number is rounded to a code. */
static void eight_once(pair *p, int64_t nq, int64_t nk, int heads, int64_t pad, float spread,
                       double tol)
{
    const char *what = say("attention in 8 bits: %lld x %lld, %d heads, pad %lld, scores to %g",
                           (long long)nq, (long long)nk, heads, (long long)pad, (double)spread);
    const int64_t w = heads * 128, first[4] = {0, nq / 3, nq / 3 * 2, nq};
    twin q = matrix(p, SL_BF16, nq, w, pad), k = matrix(p, SL_BF16, nk, w, pad),
         v = matrix(p, SL_BF16, nk, w, pad), o = matrix(p, SL_BF16, nq, w, pad),
         again = matrix(p, SL_BF16, nq, w, pad);
    const float scale = spread / 128;
    sl_done done[3];
    sl_ctx *const side[2] = {&p->cpu, &p->gpu};
    for (int i = 0; i < 2; i++) {
        const sl_keys_eight keys = sl_new_keys_eight(side[i], nk, w, heads);
        const sl_queries_eight codes = sl_new_queries_eight(side[i], nq, w, heads);
        sl_code_keys(side[i], &keys, i ? &k.g : &k.c, i ? &v.g : &v.c, heads);
        sl_code_queries(side[i], &codes, i ? &q.g : &q.c, heads, scale);
        sl_attention_eight(side[i], i ? &o.g : &o.c, &codes, &keys, heads, 1, NULL, 0, NULL);
        if (i) sl_attention_eight(side[i], &again.g, &codes, &keys, heads, 3, first, 1, done);
    }
    sl_sync(&p->gpu);
    for (int i = 0; i < 3; i++)
        if (i != 1) counted(p, &done[i], what);
    if (!pad) same_bits(p, &again.g, &o.g, what);
    same(p, &o, tol, what);
    forget(p);
}

/* n queries of a layer, coded by what makes them: the bits of the two operations; of the same rows
 * the CPU body codes, neighbours at most where a last place of float32 decides. */
static void queries_once(pair *p, int64_t n, int heads, sl_dtype weights, int64_t pad)
{
    const char *what = say("queries as they are made: %lld of %d heads, weights %s, pad %lld",
                           (long long)n, heads, sl_dtype_tag(weights), (long long)pad);
    const int64_t w = heads * 128, size = n * w;
    twin x = matrix(p, SL_BF16, n, w, pad), y = matrix(p, SL_BF16, n, w, pad),
         cos = matrix(p, SL_F32, n, 64, 0), sin = matrix(p, SL_F32, n, 64, 0),
         of = matrix(p, weights, 1, w, 0);
    const sl_tensor w_g = sl_view1(of.g.data, weights, w);
    const sl_queries_eight made = sl_new_queries_eight(&p->gpu, n, w, heads),
                           two = sl_new_queries_eight(&p->gpu, n, w, heads),
                           cpu = sl_new_queries_eight(&p->cpu, n, w, heads);
    sl_rmsnorm_rope(&p->gpu, &y.g, &x.g, &w_g, 1e-6f, &cos.g, &sin.g, heads);
    sl_code_queries(&p->gpu, &two, &y.g, heads, 0.1f);
    const bool one =
        sl_rmsnorm_rope_queries(&p->gpu, &made, &x.g, &w_g, 1e-6f, &cos.g, &sin.g, heads, 0.1f);
    if (!one && pad % 8 == 0 && heads <= 40) fail_msg("%s: in two operations", what);
    float *rows = downloaded(p, &y.whole_g); /* the CPU codes the GPU's own numbers */
    for (int64_t r = 0; r < n; r++)
        memcpy((float *)y.c.data + r * y.c.pitch, rows + r * (w + 2 * pad) + pad,
               (size_t)w * sizeof *rows);
    sl_code_queries(&p->cpu, &cpu, &y.c, heads, 0.1f);
    int8_t *a = malloc((size_t)size), *b = malloc((size_t)size);
    float *s = malloc((size_t)(2 * n * heads) * sizeof *s);
    assert_true(a && b && s);
    float *t = s + n * heads;
    sl_download(&p->gpu, a, &made.codes);
    sl_download(&p->gpu, b, &two.codes);
    sl_download(&p->gpu, s, &made.scale);
    sl_download(&p->gpu, t, &two.scale);
    if (!went_wrong(p, what)) {
        int64_t others = 0, far = -1, scales = 0;
        for (int64_t i = 0; i < size; i++) {
            others += a[i] != b[i];
            if (abs(b[i] - ((const int8_t *)cpu.codes.data)[i]) > 1 && far < 0) far = i;
        }
        for (int64_t i = 0; i < n * heads; i++)
            scales += s[i] != t[i] ||
                      !(fabsf(t[i] - ((const float *)cpu.scale.data)[i]) <= 1e-6f * fabsf(t[i]));
        if (others || scales || far >= 0) {
            print_message("FAIL %s: %lld of %lld codes and %lld scales differ, code [%lld, %lld] "
                          "is not the CPU's (-1: none)\n",
                          what, (long long)others, (long long)size, (long long)scales,
                          (long long)(far < 0 ? -1 : far / w), (long long)(far < 0 ? -1 : far % w));
            p->failures++;
        }
    }
    free(rows);
    free(a);
    free(b);
    free(s);
    forget(p);
}

static void queries_are_coded_as_they_are_made(void **state)
{
    static const int HEADS[] = {1, 2, 5, 12, 20, 40};
    (void)state;
    pair p;
    if (!gpu_is_hopper("queries in 8 bits")) skip();
    pair_open(&p, (size_t)1 << 30);
    EACH(i, HEADS)
    {
        queries_once(&p, 1, HEADS[i], SL_BF16, 0);
        queries_once(&p, 333, HEADS[i], i % 2 ? SL_BF16 : SL_F32, i % 3 ? 8 : 0);
    }
    queries_once(&p, 4000, 40, SL_BF16, 0); /* two rows a block */
    queries_once(&p, 77, 41, SL_BF16, 0);   /* more than registers hold */
    pair_close(&p);
}

static void attention_in_8_bits(void **state)
{
    (void)state;
    pair p;
    if (!gpu_is_hopper("attention in 8 bits")) skip();
    pair_open(&p, (size_t)1 << 30);
    static const int64_t N[] = {1, 17, 127, 128, 129, 191, 192, 193, 400, 1000};
    EACH(i, N)
    {
        eight_once(&p, N[i], 300, 3, 0, 4, 4e-3);
        eight_once(&p, 200, N[i], 2, i % 2 ? 8 : 0, 4, 4e-3);
    }
    eight_once(&p, 4680, 4680, 20, 0, 4, 4e-3); /* more tiles than multiprocessors */
    /* scores so large that blocks are multiplied again: weights are then rounded from another
     * largest, each by up to a sixteenth */
    eight_once(&p, 400, 2000, 2, 0, 100, 8e-2);
    pair_close(&p);
}

static void generic_attention(void **state)
{
    (void)state;
    pair p;
    pair_open(&p, (size_t)1 << 30);
    attention_once(&p, 257, 257, 16, 80, false, false, APART, 0);
    attention_once(&p, 900, 900, 1, 384, false, false, TOGETHER, 0); /* the VAE's one head */
    attention_once(&p, 512, 512, 64, 64, true, false, APART, 0);     /* UMT5 */
    attention_once(&p, 37, 37, 4, 64, true, true, TOGETHER, 8);
    attention_once(&p, 1, 1, 2, 64, true, false, APART, 0);
    attention_once(&p, 65, 41, 3, 24, true, true, APART, 3); /* nothing aligned */
    attention_once(&p, 130, 77, 3, 5, false, false, APART, 1);
    /* rows of 8 bytes: not cuDNN's */
    attention_once(&p, 50, 61, 2, 128, false, true, APART, 4);
    /* queries in several pieces */
    attention_once(&p, 1025, 1025, 64, 64, true, false, APART, 0);
    attention_once(&p, 300, 20000, 12, 40, false, true, APART, 0); /* heads in several groups */
    pair_close(&p);
}

/* CLIP's: nothing is rounded, whatever the head's width. */
static void attention_in_float32(void **state)
{
    (void)state;
    pair p;
    pair_open(&p, (size_t)1 << 30);
    attention_in(&p, SL_F32, 257, 257, 16, 80, false, false, APART, 0); /* the 14B model */
    attention_in(&p, SL_F32, 257, 257, 4, 32, false, false, APART, 0);  /* small ones */
    attention_in(&p, SL_F32, 257, 257, 2, 48, false, false, TOGETHER, 0);
    /* widths that cuDNN takes in bf16 */
    attention_in(&p, SL_F32, 300, 257, 3, 128, false, false, APART, 0);
    attention_in(&p, SL_F32, 200, 200, 5, 64, false, true, TOGETHER, 8);
    attention_in(&p, SL_F32, 1, 1, 2, 64, true, false, APART, 0);
    attention_in(&p, SL_F32, 37, 37, 4, 64, true, true, TOGETHER, 0);
    attention_in(&p, SL_F32, 65, 41, 3, 24, true, true, APART, 3); /* nothing aligned */
    attention_in(&p, SL_F32, 130, 77, 3, 5, false, false, APART, 1);
    /* rows aligned, heads not */
    attention_in(&p, SL_F32, 64, 48, 4, 6, false, false, APART, 0);
    /* queries in several pieces */
    attention_in(&p, SL_F32, 1025, 1025, 64, 64, false, false, APART, 0);
    pair_close(&p);
}

/* The three forms, against each other on the device. */
static void forms_agree(pair *p, int64_t nq, int64_t nk, int heads, int64_t d)
{
    static const char *const FORM[] = {"generic", "unified", "composite", NULL};
    int64_t w = heads * d;
    twin q = matrix(p, SL_BF16, nq, w, 0), k = matrix(p, SL_BF16, nk, w, 0),
         v = matrix(p, SL_BF16, nk, w, 0), o = matrix(p, SL_BF16, nq, w, 0);
    float *want = NULL;
    for (int f = 0; f < 4; f++) {
        const char *what =
            say("%s attention %lld x %lld, %d heads x %lld", FORM[f] ? FORM[f] : "chosen",
                (long long)nq, (long long)nk, heads, (long long)d);
        if (FORM[f]) setenv("SLUICE_ATTENTION", FORM[f], 1);
        else unsetenv("SLUICE_ATTENTION");
        sl_attention(&p->gpu, &o.g, &q.g, &k.g, &v.g, heads, 2 / sqrtf((float)d), NULL, false);
        sl_sync(&p->gpu);
        if (went_wrong(p, what)) break; /* it emptied the arena */
        float *got = downloaded(p, &o.g);
        if (want) compare(p, got, want, nq * w, w, 4e-3, what);
        if (want) free(got);
        else want = got;
    }
    unsetenv("SLUICE_ATTENTION");
    free(want);
    forget(p);
}

static void forms_of_attention_agree(void **state)
{
    (void)state;
    pair p;
    pair_open(&p, (size_t)1 << 30);
    forms_agree(&p, 1024, 257, 4, 128);
    forms_agree(&p, 4096, 4096, 4, 128);
    forms_agree(&p, 1000, 1000, 3, 64);
    forms_agree(&p, 1000, 8272, 4, 128);
    pair_close(&p);
}

static void two_lists_once(pair *p, int64_t nq, int64_t n1, int64_t n2, int heads, float first,
                           float second, int place, int64_t pad)
{
    const int64_t w = heads * 128;
    const float scale = 2 / sqrtf(128);
    twin q = matrix(p, SL_BF16, nq, w, pad), o = matrix(p, SL_BF16, nq, w, pad), k[2], v[2];
    const char *what = say("attention of %lld to %lld and %lld keys, %d heads, keys times %g and "
                           "%g, place %d, pad %lld",
                           (long long)nq, (long long)n1, (long long)n2, heads, (double)first,
                           (double)second, place, (long long)pad);
    for (int i = 0; i < 2; i++) {
        const int64_t n = i ? n2 : n1;
        if (place == TOGETHER) {
            twin all = matrix(p, SL_BF16, n, 2 * w, 0);
            amplify(p, &all, 0, n, i ? second : first);
            k[i] = part(&all, 0, w), v[i] = part(&all, w, w);
        } else {
            k[i] = matrix(p, SL_BF16, n, w, 0), v[i] = matrix(p, SL_BF16, n, w, pad);
            amplify(p, &k[i], 0, n, i ? second : first);
        }
    }
    sl_attention_two(&p->cpu, &o.c, &q.c, &k[0].c, &v[0].c, &k[1].c, &v[1].c, heads, scale);
    if (!gpu->attention_two(&p->gpu, &o.g, &q.g, &k[0].g, &v[0].g, &k[1].g, &v[1].g, heads,
                            scale)) {
        print_message("FAIL %s: it was refused\n", what);
        p->cases++, p->failures++;
    } else same(p, &o, 4e-3, what);
    forget(p);
}

/* Both lists of cross-attention in one pass (attention_two.cu). */
static void two_lists_of_keys(void **state)
{
    (void)state;
    static const int64_t NQ[] = {1, 63, 64, 65, 129, 1000, 8447},
                         K1[] = {1, 16, 100, 127, 128, 129, 500, 512, 513, 1000},
                         K2[] = {1, 17, 80, 143, 144, 145, 255, 256, 257, 272, 288, 289, 514};
    static const int HEADS[] = {1, 3, 40}, PAD[] = {0, 8, 64};
    pair p;
    int turn = 0;
    if (!gpu_is_hopper("attention to two lists")) skip();
    pair_open(&p, (size_t)1 << 30);
    two_lists_once(&p, 64, 128, 144, 1, 1, 1, APART, 0);  /* one block of keys each, whole */
    two_lists_once(&p, 128, 256, 288, 1, 1, 1, APART, 0); /* two */
    two_lists_once(&p, 300, 512, 257, 3, 1, 1, APART, 0);
    EACH(i, NQ)
    for (int j = 0; j < 5; j++, turn++)
        two_lists_once(&p, NQ[i], K1[turn % 10], K2[turn % 13], NQ[i] > 1000 ? 3 : HEADS[turn % 3],
                       1, 1, turn % 2, PAD[turn % 3]);
    EACH(i, K1) two_lists_once(&p, 129, K1[i], 257, 3, 1, 1, TOGETHER, 8);
    EACH(i, K2) two_lists_once(&p, 129, 512, K2[i], 3, 1, 1, TOGETHER, 8);
    two_lists_once(&p, 1000, 512, 257, 3, 64, 1, APART, 0); /* scores of a hundred and more */
    two_lists_once(&p, 1000, 512, 257, 3, 1, 64, APART, 0);
    two_lists_once(&p, 1000, 513, 272, 3, 0.0625f, 0.0625f, TOGETHER, 0);
    two_lists_once(&p, 64, 512, 257, 400, 1, 1, APART, 0); /* several heads a block */
    /* blocks that go on to the next head midway */
    two_lists_once(&p, 2112, 512, 257, 40, 1, 1, TOGETHER, 0);
    two_lists_once(&p, 300, 8000, 2000, 3, 1, 1, TOGETHER, 0); /* many blocks of keys */
    pair_close(&p);
}

/* ---- speed ---- */

/* What our own kernels of attention take, and the old way: many keys by cuDNN,
 * cross-attention in two calls. */
static void speed_of_our_attention(void **state)
{
    (void)state;
    enum { D = 5120, TIMES = 20 };
    static const int64_t N[] = {1560, 3600, 8448, 32760, 48384};
    pair p;
    sl_err err = {0};
    size_t free_bytes = 0, total = 0;
    T_OK(sl_plugin_cuda(&err)->memory(0, &free_bytes, &total, &err));
    if (free_bytes < (size_t)5 << 30) {
        print_message("speed: %zu bytes are free, want 5 GiB\n", free_bytes);
        return;
    }
    pair_open(&p, (size_t)4 << 30);
    EACH(i, N)
    {
        const int times = N[i] > 10000 ? 4 : TIMES;
        double ms[2] = {0, 0};
        sl_tensor q = noise(&p, N[i], D), k = noise(&p, N[i], D), v = noise(&p, N[i], D),
                  o = noise(&p, N[i], D);
        for (int way = 0; way < 2; way++) {
            if (!way) setenv("SLUICE_ATTENTION_FLASH", "0", 1);
            double from = 0;
            for (int r = 0; r <= times; r++) {
                sl_attention(&p.gpu, &o, &q, &k, &v, 40, 0.088388f, NULL, false);
                if (r == 0) sl_sync(&p.gpu), from = seconds();
            }
            sl_sync(&p.gpu);
            unsetenv("SLUICE_ATTENTION_FLASH");
            ms[way] = (seconds() - from) / times * 1e3;
        }
        if (!went_wrong(&p, "attention"))
            print_message("speed: attention %lld x %lld, 40 heads x 128: cuDNN %.3f ms, ours %.3f "
                          "ms (%.0f TFLOP/s)\n",
                          (long long)N[i], (long long)N[i], ms[0], ms[1],
                          4e-9 * (double)N[i] * (double)N[i] * D / ms[1]);
        forget(&p);
    }
    static const int64_t NQ[] = {8448, 32760, 48384, 75600};
    EACH(i, NQ) /* both lists of cross-attention: two calls, one pass */
    {
        static const char *const WAY[] = {"0", "1"};
        double ms[2] = {0, 0};
        sl_tensor q = noise(&p, NQ[i], D), k1 = noise(&p, 512, D), v1 = noise(&p, 512, D),
                  k2 = noise(&p, 257, D), v2 = noise(&p, 257, D), o = noise(&p, NQ[i], D);
        EACH(way, WAY)
        {
            setenv("SLUICE_ATTENTION_TWO", WAY[way], 1);
            double from = 0;
            for (int r = 0; r <= TIMES; r++) {
                sl_attention_two(&p.gpu, &o, &q, &k1, &v1, &k2, &v2, 40, 0.088388f);
                if (r == 0) sl_sync(&p.gpu), from = seconds();
            }
            sl_sync(&p.gpu);
            ms[way] = (seconds() - from) / TIMES * 1e3;
        }
        unsetenv("SLUICE_ATTENTION_TWO");
        /* TFLOP/s of a millisecond */
        const double work = 4e-9 * (double)NQ[i] * (512 + 257) * D;
        if (!went_wrong(&p, "attention to two lists"))
            print_message("speed: attention %lld x (512 + 257), 40 heads x 128: two calls %.3f ms, "
                          "one pass %.3f ms (%.0f TFLOP/s)\n",
                          (long long)NQ[i], ms[0], ms[1], work / ms[1]);
        forget(&p);
    }
    pair_close(&p);
}

int main(int argc, char **argv)
{
    int status;
    if (!gpu_open("gpu_attention", &status)) return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fused_attention_is_there),
        cmocka_unit_test(fused_attention_of_odd_sizes),
        cmocka_unit_test(generic_attention),
        cmocka_unit_test(attention_in_float32),
        cmocka_unit_test(forms_of_attention_agree),
        cmocka_unit_test(speed_of_our_attention),
        cmocka_unit_test(attention_of_our_own),
        cmocka_unit_test(heads_together_or_apart),
        cmocka_unit_test(attention_by_parts),
        cmocka_unit_test(queries_are_coded_as_they_are_made),
        cmocka_unit_test(attention_in_8_bits),
        /* the last: a kernel that breaks takes the device along */
        cmocka_unit_test(two_lists_of_keys),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
