/* test_vae.c - the autoencoder against the reference's figures, in every chunking, with
 * and without the saving. */
#include "tests/t_vae.h"

#include <sys/mman.h>

#include "common/picture.h"
#include "common/safetensors.h"

#define MODEL "tests/golden/tiny-i2v/model/vae"

static sl_err err;

/* The config of the golden model; `base` 96 is the real one. */
static sl_vae_config config_of(int base)
{
    sl_vae_config c = {
        .base = base,
        .decoder_base = base,
        .z = 16,
        .mult = {1, 2, 4, 4},
        .res_blocks = 2,
        .temporal_down = {false, true, true},
        .mean = {-0.7571f, -0.7089f, -0.9113f, 0.1075f, -0.1745f, 0.9653f, -0.1517f, 1.5508f,
                 0.4134f, -0.0715f, 0.5517f, -0.3632f, -0.1922f, -0.9497f, 0.2503f, -0.2921f},
        .std = {2.8184f, 1.4541f, 2.3275f, 2.6558f, 1.2196f, 1.7708f, 2.6052f, 2.0743f, 3.2687f,
                2.1526f, 2.8652f, 1.5579f, 1.6382f, 1.1253f, 2.8251f, 1.916f},
        .temporal = 4,
        .spatial = 8,
    };
    return c;
}

static void open_network(t_vae *n)
{
    const sl_vae_config c = config_of(8);
    t_vae_open(n, &c, MODEL, 256 << 20);
}

static sl_st *open_case(const char *name)
{
    char rel[128];
    sl_st *st = NULL;
    snprintf(rel, sizeof rel, "tiny-i2v/%s.safetensors", name);
    T_OK(sl_st_open_file(&st, t_golden(rel), &err));
    return st;
}

/* A float32 tensor of a case, copied. */
static float *floats_of(const sl_st *st, const char *name, sl_tensor *t)
{
    const sl_st_entry *e = sl_st_find(st, name);
    if (!e) fail_msg("no %s", name);
    *t = e->t;
    float *x = malloc(sl_bytes(t));
    T_OK(sl_to_floats(x, t->data, t->dtype, sl_count(t), &err));
    return x;
}

/* ---- encode ---- */

static void test_every_tensor_of_the_checkpoint_is_used(void **state)
{
    (void)state;
    t_vae n;
    open_network(&n);
    assert_int_equal(sl_loader_unused(n.loader), 0);
    t_vae_close(&n);
}

static void test_encode_golden_moments_and_condition(void **state)
{
    (void)state;
    t_vae n;
    sl_tensor t, in;
    open_network(&n);
    sl_st *st = open_case("i2v-96x64x9");
    float *want = floats_of(st, "vae.encode.moments", &t);
    float *input = floats_of(st, "dit.input", &in);
    const int h = 64, w = 96, latents = 3 * 8 * 12;
    float *picture = t_vae_picture(st, h, w), *moments = malloc(sizeof *moments * 32 * latents);
    float *condition = malloc(sizeof *condition * 16 * latents);
    sl_tensor out = sl_view4(condition, SL_F32, 16, 3, 8, 12);
    sl_vae_encode_condition(&n.ctx, n.encoder, &out, picture, NULL, 9, h, w, moments);
    T_OK(sl_ctx_error(&n.ctx, &err));
    T_REL(moments, want, 32 * latents, 1e-5); /* two float32 computations */
    /* dit.input: 16 channels of noise, 4 of mask, 16 of condition */
    T_REL(condition, input + 20 * latents, 16 * latents, 1e-5);
    free(want), free(input), free(picture), free(moments), free(condition);
    sl_st_close(&st);
    t_vae_close(&n);
}

static void test_encode_golden_moments_of_13_frames(void **state)
{
    (void)state;
    t_vae n;
    sl_tensor t;
    sl_picture picture = {0};
    open_network(&n);
    sl_st *st = open_case("i2v-64x96x13-nocfg");
    /* has the video's size */
    T_OK(sl_picture_read(&picture, t_golden("tiny-i2v/i2v-64x96x13-nocfg.png"), &err));
    assert_int_equal(picture.w, 64);
    assert_int_equal(picture.h, 96);
    float *want = floats_of(st, "vae.encode.moments", &t),
          *first = malloc(sizeof *first * 3 * 64 * 96);
    const int latents = 4 * 12 * 8;
    float *moments = malloc(sizeof *moments * 32 * latents),
          *condition = malloc(sizeof *condition * 16 * latents);
    for (int i = 0; i < 3 * 64 * 96; i++) first[i] = picture.rgb[i] / 255.0f * 2 - 1;
    sl_tensor out = sl_view4(condition, SL_F32, 16, 4, 12, 8);
    sl_vae_encode_condition(&n.ctx, n.encoder, &out, first, NULL, 13, 96, 64, moments);
    T_OK(sl_ctx_error(&n.ctx, &err));
    T_REL(moments, want, 32 * latents, 1e-5);
    free(want), free(first), free(moments), free(condition);
    sl_picture_free(&picture);
    sl_st_close(&st);
    t_vae_close(&n);
}

static void test_saving_gives_the_bits_of_the_full_encode(void **state)
{
    (void)state;
    enum { H = 16, W = 24 };
    const int frames[] = {1, 5, 9, 13, 17, 21, 33, 81};
    t_vae n;
    open_network(&n);
    float first[H * W * 3], last[H * W * 3];
    t_fill(first, H * W * 3, 1), t_fill(last, H * W * 3, 2);
    for (size_t i = 0; i < sizeof frames / sizeof *frames; i++)
        for (int two = 0; two < 2; two++) {
            if (two && frames[i] == 1) continue;
            int t = (frames[i] - 1) / 4 + 1, count = t * (H / 8) * (W / 8);
            float *a = malloc(sizeof *a * 16 * (size_t)count),
                  *b = malloc(sizeof *b * 16 * (size_t)count);
            float *am = malloc(sizeof *am * 32 * (size_t)count),
                  *bm = malloc(sizeof *bm * 32 * (size_t)count);
            sl_tensor ta = sl_view4(a, SL_F32, 16, t, H / 8, W / 8),
                      tb = sl_view4(b, SL_F32, 16, t, H / 8, W / 8);
            sl_vae_encode_condition(&n.ctx, n.encoder, &ta, first, two ? last : NULL, frames[i], H,
                                    W, am);
            sl_vae_encode_video(&n.ctx, n.encoder, &tb, first, two ? last : NULL, frames[i], H, W,
                                bm, true);
            T_OK(sl_ctx_error(&n.ctx, &err));
            assert_int_equal(sl_first_nonfinite(am, SL_F32, 32 * count), -1);
            if (memcmp(a, b, sizeof *a * 16 * (size_t)count) ||
                memcmp(am, bm, sizeof *am * 32 * (size_t)count))
                fail_msg("%d frames%s: relative L2 %g, want the same bits", frames[i],
                         two ? " and a last picture" : "", t_rel_l2(am, bm, 32 * count));
            free(a), free(b), free(am), free(bm);
        }
    t_vae_close(&n);
}

/* ---- how much is computed: a body that counts instead of computing ---- */

static double counted;

static void count_conv(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                       const sl_tensor *history, const sl_tensor *w, const sl_tensor *b,
                       const sl_tensor *residual, const sl_conv *k)
{
    (void)ctx, (void)history, (void)w, (void)b, (void)residual;
    counted += 2.0 * (double)sl_count(y) * (double)x->shape[3] * k->kt * k->kh * k->kw;
}
static void count_attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                            const sl_tensor *v, int heads, float scale, const sl_tensor *bias,
                            bool accumulate)
{
    (void)ctx, (void)o, (void)v, (void)heads, (void)scale, (void)bias, (void)accumulate;
    counted += 4.0 * (double)q->shape[0] * (double)k->shape[0] * (double)q->shape[1];
}
/* Address space of which hardly a page is ever touched. The size lies in front. */
static void *reserve(sl_ctx *ctx, size_t bytes)
{
    (void)ctx;
    char *p = mmap(NULL, bytes + 4096, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    *(size_t *)p = bytes + 4096;
    return p + 4096;
}
static void release(sl_ctx *ctx, void *p)
{
    (void)ctx;
    munmap((char *)p - 4096, *(size_t *)((char *)p - 4096));
}
static void no_upload(sl_ctx *c, const sl_tensor *d, const void *h)
{
    (void)c, (void)d, (void)h;
}
static void no_download(sl_ctx *c, void *h, const sl_tensor *s)
{
    (void)c, (void)h, (void)s;
}
static void no_pack(sl_ctx *c, void *d, const float *s, const int64_t shape[5])
{
    (void)c, (void)d, (void)s, (void)shape;
}
static void no_sync(sl_ctx *c)
{
    (void)c;
}
static void no_zero(sl_ctx *c, const sl_tensor *y)
{
    (void)c, (void)y;
}
static void no_copy(sl_ctx *c, const sl_tensor *y, const sl_tensor *x)
{
    (void)c, (void)y, (void)x;
}
static void no_norm(sl_ctx *c, const sl_tensor *y, const sl_tensor *x, const sl_tensor *g, bool s)
{
    (void)c, (void)y, (void)x, (void)g, (void)s;
}
static void no_move(sl_ctx *c, const sl_tensor *y, const sl_tensor *x, const float *m,
                    const float *a)
{
    (void)c, (void)y, (void)x, (void)m, (void)a;
}

static double teraflop_to_encode(sl_ctx *ctx, const sl_vae_encoder *m, int frames, int h, int w,
                                 const float *last, bool every)
{
    static float anything[3];
    size_t mark = sl_mark(ctx);
    sl_tensor out = sl_new4(ctx, SL_F32, 16, (frames - 1) / 4 + 1, h / 8, w / 8);
    counted = 0;
    sl_vae_encode_video(ctx, m, &out, anything, last, frames, h, w, NULL, every);
    sl_release(ctx, mark);
    T_OK(sl_ctx_error(ctx, &err));
    return counted * 1e-12;
}

static void test_saving_is_that_of_the_design(void **state)
{
    (void)state;
    static const sl_ops counter = {
        .name = "counter",
        .act = SL_F32,
        .host_memory = true,
        .stored_matrices = true,
        .alloc = reserve,
        .free = release,
        .upload = no_upload,
        .download = no_download,
        .sync = no_sync,
        .zero = no_zero,
        .copy = no_copy,
        .attention = count_attention,
        .conv3d = count_conv,
        .conv_history = no_copy,
        .vae_norm = no_norm,
        .to_channels_last = no_move,
        .to_channels_first = no_move,
    };
    static const float last[3];
    sl_ctx ctx;
    sl_loader *l = NULL;
    sl_vae_config c = config_of(96);
    sl_ops ops = counter;
    ops.packed_conv_bytes = sl_ops_cpu.packed_conv_bytes;
    ops.pack_conv = no_pack;
    T_OK(sl_ctx_open(&ctx, &ops, (size_t)64 << 30, &err));
    T_OK(sl_loader_random(&l, &ctx, 1, "vae", &err));
    sl_vae_encoder *m = sl_vae_encoder_new(&c, l);
    T_OK(sl_loader_finish(l, &err));
    double full = teraflop_to_encode(&ctx, m, 81, 720, 1280, NULL, true),
           saved = teraflop_to_encode(&ctx, m, 81, 720, 1280, NULL, false);
    double two = teraflop_to_encode(&ctx, m, 81, 720, 1280, last, false);
    /* In full 381.7 (padding counts as work). 116 would be left if each resolution
     * stopped as a whole once nothing changes in it any more, at 12 of 81, 20 of 81 and
     * 20 of 41 frames; each layer stops by itself, conv_in after 4, so less is left. */
    if (!(fabs(full - 381.7) <= 0.1)) fail_msg("in full %.2f TFLOP, want 381.7", full);
    if (!(fabs(saved - 99.7) <= 0.1)) fail_msg("with the saving %.2f TFLOP, want 99.7", saved);
    if (!(two > saved && two < saved + 0.06 * full))
        fail_msg("with a last picture %.2f TFLOP, want a twentieth of %.2f more", two, full);
    sl_vae_encoder_free(&m);
    sl_loader_close(&l);
    sl_ctx_close(&ctx);
}

/* ---- decode ---- */

/* Decode latents [16,t,h,w] in chunks of `each` frames with a fresh video; rgb and floats
 * (may be NULL) get all frames. */
static void decode(t_vae *n, const float *latents, int t, int h, int w, int each, uint8_t *rgb,
                   float *floats)
{
    void *memory = sl_device_alloc(&n->ctx, sl_vae_decode_bytes(&n->ctx, n->decoder, h * 8, w * 8));
    /* 0xff is NaN: nothing may be read before it is written */
    memset(memory, 0xff, sl_vae_decode_bytes(&n->ctx, n->decoder, h * 8, w * 8));
    sl_vae_decode *d = sl_vae_decode_start(&n->ctx, n->decoder, h * 8, w * 8, memory);
    T_OK(sl_ctx_error(&n->ctx, &err));
    const int64_t frame = (int64_t)h * 8 * w * 8 * 3;
    for (int at = 0, done = 0; at < t; at += each) {
        int now = t - at < each ? t - at : each, frames = sl_vae_frames_of(d, now);
        float *part = malloc(sizeof *part * 16 * (size_t)(now * h * w));
        for (int c = 0; c < 16; c++)
            memcpy(part + c * now * h * w, latents + (c * t + at) * h * w,
                   sizeof *part * (size_t)(now * h * w));
        sl_tensor in = sl_view4(part, SL_F32, 16, now, h, w),
                  out = sl_view4(rgb + done * frame, SL_U8, frames, h * 8, w * 8, 3), f;
        if (floats) f = sl_view4(floats + done * frame, SL_F32, frames, h * 8, w * 8, 3);
        sl_vae_decode_chunk(&n->ctx, d, &out, floats ? &f : NULL, &in);
        T_OK(sl_ctx_error(&n->ctx, &err));
        done += frames;
        free(part);
    }
    sl_vae_decode_free(&d);
    sl_device_free(&n->ctx, memory);
}

static void decode_golden(const char *name, const char *last)
{
    t_vae n;
    sl_tensor t;
    open_network(&n);
    sl_st *st = open_case(name);
    float *latents = floats_of(st, last, &t);
    const sl_st_entry *u8 = sl_st_find(st, "frames.u8");
    const int lt = (int)t.shape[1], h = (int)t.shape[2], w = (int)t.shape[3],
              frames = 4 * (lt - 1) + 1;
    const int64_t count = (int64_t)frames * h * 8 * w * 8 * 3;
    uint8_t *rgb = malloc((size_t)count);
    float *floats = malloc(sizeof *floats * (size_t)count);
    assert_int_equal(sl_bytes(&u8->t), count);
    decode(&n, latents, lt, h, w, 1, rgb, floats);

    int64_t other = 0, far = 0;
    for (int64_t i = 0; i < count; i++) {
        int e = abs((int)rgb[i] - (int)((const uint8_t *)u8->t.data)[i]);
        other += e > 0;
        far += e > 1;
    }
    assert_int_equal(far, 0);
    if (other > count / 1000)
        fail_msg("%lld of %lld bytes differ by one, want at most a thousandth", (long long)other,
                 (long long)count);
    /* the floats round to those bytes: nothing is lost between the two outputs */
    for (int64_t i = 0; i < count; i++) {
        float v = fminf(fmaxf(floats[i] * 0.5f + 0.5f, 0), 1) * 255;
        if (!(fabsf(v - (float)rgb[i]) <= 0.5f + 1e-4f))
            fail_msg("float %lld is %g, its byte %d", (long long)i, (double)v, rgb[i]);
    }
    free(latents), free(rgb), free(floats);
    sl_st_close(&st);
    t_vae_close(&n);
}

static void test_decode_golden_9_frames(void **state)
{
    (void)state;
    decode_golden("i2v-96x64x9", "step.5.latents");
}
static void test_decode_golden_13_frames(void **state)
{
    (void)state;
    decode_golden("i2v-64x96x13-nocfg", "step.3.latents");
}
static void test_decode_golden_of_the_block_cache(void **state)
{
    (void)state;
    decode_golden("i2v-96x64x9-fbcache", "step.15.latents");
}

static void test_decode_has_the_same_bits_in_any_chunk(void **state)
{
    (void)state;
    enum { T = 6, H = 3, W = 2, COUNT = (4 * (T - 1) + 1) * H * W * 64 * 3 };
    t_vae n;
    open_network(&n);
    float latents[16 * T * H * W], *whole = malloc(sizeof *whole * COUNT),
                                   *parts = malloc(sizeof *parts * COUNT);
    uint8_t *rgb = malloc(COUNT), *rgb2 = malloc(COUNT);
    t_fill(latents, 16 * T * H * W, 3);
    decode(&n, latents, T, H, W, T, rgb, whole);
    assert_int_equal(sl_first_nonfinite(whole, SL_F32, COUNT), -1);
    for (int each = 1; each < T; each++) {
        decode(&n, latents, T, H, W, each, rgb2, parts);
        if (memcmp(whole, parts, sizeof *whole * COUNT))
            fail_msg("chunks of %d: relative L2 %g", each, t_rel_l2(parts, whole, COUNT));
        assert_memory_equal(rgb, rgb2, COUNT);
        decode(&n, latents, T, H, W, each, rgb2, NULL); /* without the floats too */
        assert_memory_equal(rgb, rgb2, COUNT);
    }
    free(whole), free(parts), free(rgb), free(rgb2);
    t_vae_close(&n);
}

static void test_two_videos_do_not_meet(void **state)
{
    (void)state;
    enum { H = 2, W = 3, PIXELS = H * W * 64 * 3 };
    t_vae n;
    open_network(&n);
    float one[16 * 2 * H * W], two[16 * 2 * H * W], chunk[16 * H * W];
    uint8_t want[2][5 * PIXELS], got[2][5 * PIXELS];
    const float *latents[2] = {one, two};
    t_fill(one, 16 * 2 * H * W, 1), t_fill(two, 16 * 2 * H * W, 2);
    sl_vae_decode *d[2];
    void *memory[2];
    size_t bytes = sl_vae_decode_bytes(&n.ctx, n.decoder, H * 8, W * 8);
    for (int v = 0; v < 2; v++) {
        decode(&n, latents[v], 2, H, W, 2, want[v], NULL);
        memory[v] = sl_device_alloc(&n.ctx, bytes);
        d[v] = sl_vae_decode_start(&n.ctx, n.decoder, H * 8, W * 8, memory[v]);
    }
    for (int k = 0; k < 2; k++)
        for (int v = 0; v < 2; v++) {
            for (int c = 0; c < 16; c++)
                memcpy(chunk + c * H * W, latents[v] + (c * 2 + k) * H * W, sizeof *chunk * H * W);
            sl_tensor in = sl_view4(chunk, SL_F32, 16, 1, H, W);
            sl_tensor out = sl_view4(got[v] + k * PIXELS, SL_U8, k ? 4 : 1, H * 8, W * 8, 3);
            assert_int_equal(sl_vae_frames_of(d[v], 1), k ? 4 : 1);
            sl_vae_decode_chunk(&n.ctx, d[v], &out, NULL, &in);
        }
    T_OK(sl_ctx_error(&n.ctx, &err));
    for (int v = 0; v < 2; v++) {
        assert_memory_equal(got[v], want[v], sizeof got[v]);
        sl_vae_decode_free(&d[v]);
        sl_device_free(&n.ctx, memory[v]);
    }
    t_vae_close(&n);
}

/* ---- planning, refusals ---- */

static void test_plan_measures_what_is_used(void **state)
{
    (void)state;
    enum { H = 32, W = 48, FRAMES = 17, T = 5 };
    t_vae n;
    sl_ctx plan;
    sl_loader *l = NULL;
    sl_vae_config c = config_of(8);
    float *picture = malloc(sizeof *picture * H * W * 3), condition[16 * T * H / 8 * W / 8];
    t_fill(picture, H * W * 3, 1);
    open_network(&n);
    T_OK(sl_ctx_open(&plan, &sl_ops_plan, 0, &err));
    T_OK(sl_loader_plan(&l, &plan, "vae", &err));
    sl_vae_encoder *e = sl_vae_encoder_new(&c, l);
    sl_vae_decoder *m = sl_vae_decoder_new(&c, l);
    T_OK(sl_loader_finish(l, &err));

    sl_tensor none = sl_view4(NULL, SL_F32, 16, T, H / 8, W / 8), out = none;
    sl_vae_encode_condition(&plan, e, &none, picture, NULL, FRAMES, H, W, NULL);
    T_OK(sl_ctx_error(&plan, &err));
    n.ctx.arena_peak = 0;
    out.data = condition;
    sl_vae_encode_condition(&n.ctx, n.encoder, &out, picture, NULL, FRAMES, H, W, NULL);
    T_OK(sl_ctx_error(&n.ctx, &err));
    assert_true(plan.arena_peak > 0);
    assert_int_equal(plan.arena_peak, n.ctx.arena_peak);

    plan.arena_peak = n.ctx.arena_peak = 0;
    assert_int_equal(sl_vae_decode_bytes(&plan, m, H, W),
                     sl_vae_decode_bytes(&n.ctx, n.decoder, H, W));
    sl_vae_decode *p = sl_vae_decode_start(&plan, m, H, W, NULL);
    for (int k = 0; k < 2; k++) {
        sl_tensor in = sl_view4(NULL, SL_F32, 16, 2, H / 8, W / 8),
                  rgb = sl_view4(NULL, SL_U8, sl_vae_frames_of(p, 2), H, W, 3);
        sl_vae_decode_chunk(&plan, p, &rgb, NULL, &in);
    }
    T_OK(sl_ctx_error(&plan, &err));
    uint8_t *frames = malloc((4 * (T - 1) + 1) * H * W * 3);
    decode(&n, condition, T, H / 8, W / 8, 2, frames, NULL);
    assert_int_equal(plan.arena_peak, n.ctx.arena_peak);

    free(picture), free(frames);
    sl_vae_decode_free(&p);
    sl_vae_encoder_free(&e);
    sl_vae_decoder_free(&m);
    sl_loader_close(&l);
    sl_ctx_close(&plan);
    t_vae_close(&n);
}

#define REFUSED(call, code, text)                                                                  \
    do {                                                                                           \
        call;                                                                                      \
        T_CODE(sl_ctx_error(&n.ctx, &err), code);                                                  \
        T_SAYS(err.msg, text);                                                                     \
    } while (0)

static void test_refusals_say_what_is_wrong(void **state)
{
    (void)state;
    t_vae n;
    open_network(&n);
    float x[16 * 16 * 3] = {0}, y[16 * 2 * 2 * 2];
    sl_tensor out = sl_view4(y, SL_F32, 16, 1, 2, 2);
    REFUSED(sl_vae_encode_condition(&n.ctx, n.encoder, &out, x, NULL, 4, 16, 16, NULL), SL_ARG,
            "vae: 4 frames, want a multiple of 4, plus 1");
    REFUSED(sl_vae_encode_condition(&n.ctx, n.encoder, &out, x, NULL, 0, 16, 16, NULL), SL_ARG,
            "vae: 0 frames");
    REFUSED(sl_vae_encode_condition(&n.ctx, n.encoder, &out, x, NULL, 1, 16, 12, NULL), SL_SHAPE,
            "12 x 16 pixels, want multiples of 8");
    REFUSED(sl_vae_encode_condition(&n.ctx, n.encoder, &out, x, x, 1, 16, 16, NULL), SL_ARG,
            "no place for a last picture");
    REFUSED(sl_vae_encode_condition(&n.ctx, n.encoder, &out, x, NULL, 5, 16, 16, NULL), SL_SHAPE,
            "vae: condition is [16, 1, 2, 2], want [16, 2, 2, 2]");
    void *memory = sl_device_alloc(&n.ctx, sl_vae_decode_bytes(&n.ctx, n.decoder, 16, 16));
    REFUSED(assert_null(sl_vae_decode_start(&n.ctx, n.decoder, 16, 20, memory)), SL_SHAPE,
            "20 x 16 pixels");
    sl_vae_decode *d = sl_vae_decode_start(&n.ctx, n.decoder, 16, 16, memory);
    uint8_t frames[5 * 16 * 16 * 3];
    sl_tensor rgb = sl_view4(frames, SL_U8, 1, 16, 16, 3),
              latents = sl_view4(y, SL_F32, 16, 2, 2, 1), few = sl_view4(y, SL_F32, 15, 1, 2, 2);
    REFUSED(sl_vae_decode_chunk(&n.ctx, d, &rgb, NULL, &latents), SL_SHAPE,
            "vae: latents are [16, 2, 2, 1], want [16, 2, 2, 2]");
    REFUSED(sl_vae_decode_chunk(&n.ctx, d, &rgb, NULL, &few), SL_SHAPE, "want [16, 1, 2, 2]");
    latents = sl_view4(y, SL_F32, 16, 2, 2, 2);
    REFUSED(sl_vae_decode_chunk(&n.ctx, d, &rgb, NULL, &latents), SL_SHAPE,
            "vae: frames are [1, 16, 16, 3], want [5, 16, 16, 3]");
    sl_vae_decode_free(&d);
    sl_device_free(&n.ctx, memory);
    t_vae_close(&n);
}

static void test_cancel_is_heard(void **state)
{
    (void)state;
    t_vae n;
    open_network(&n);
    volatile int cancel = 1;
    float x[16 * 16 * 3] = {0}, y[16 * 2 * 2];
    sl_tensor out = sl_view4(y, SL_F32, 16, 1, 2, 2);
    n.ctx.cancel = &cancel;
    sl_vae_encode_condition(&n.ctx, n.encoder, &out, x, NULL, 1, 16, 16, NULL);
    T_CODE(sl_ctx_error(&n.ctx, &err), SL_CANCELLED);
    n.ctx.cancel = NULL;
    t_vae_close(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_tensor_of_the_checkpoint_is_used),
        cmocka_unit_test(test_encode_golden_moments_and_condition),
        cmocka_unit_test(test_encode_golden_moments_of_13_frames),
        cmocka_unit_test(test_saving_gives_the_bits_of_the_full_encode),
        cmocka_unit_test(test_saving_is_that_of_the_design),
        cmocka_unit_test(test_decode_golden_9_frames),
        cmocka_unit_test(test_decode_golden_13_frames),
        cmocka_unit_test(test_decode_golden_of_the_block_cache),
        cmocka_unit_test(test_decode_has_the_same_bits_in_any_chunk),
        cmocka_unit_test(test_two_videos_do_not_meet),
        cmocka_unit_test(test_plan_measures_what_is_used),
        cmocka_unit_test(test_refusals_say_what_is_wrong),
        cmocka_unit_test(test_cancel_is_heard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
