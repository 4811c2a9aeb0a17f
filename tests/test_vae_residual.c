/* test_vae_residual.c - Wan2.2's autoencoder (shortcuts, 2 x 2 pixels in one, 48 channels) against
 * the reference, layer by layer; chunks; what is planned. */
#include "tests/t_vae.h"

#define FOLDER "tests/golden/tiny-ti2v-5b"
#define I2V FOLDER "/ti2v-96x64x5-i2v.safetensors"
#define T2V FOLDER "/ti2v-32x64x13-t2v.safetensors"
/* float32 against float32 in another order of sums, through up to 34 convolutions */
#define TOLERANCE 1e-5

static sl_err err;

static void open_network(t_vae *n)
{
    sl_vae_config c;
    char *json = t_text(FOLDER "/model/vae/config.json");
    T_OK(sl_model_parse_vae(&c, json, strlen(json), "config.json", &err));
    free(json);
    t_vae_open(n, &c, FOLDER "/model/vae", 64 << 20);
}

static sl_st *open_case(const char *path)
{
    sl_st *st = NULL;
    T_OK(sl_st_open_file(&st, path, &err));
    return st;
}

/* ---- taps ---- */

/* What a chunk shows is compared with "KEY.CHUNK.NAME", where the reference has it. */
typedef struct {
    const sl_st *st;
    const char *key, *last; /* last: the tap that ends a chunk */
    int chunk, seen;
} watch;

static void compare(void *user, sl_ctx *ctx, const char *name, const sl_tensor *x)
{
    watch *w = user;
    char key[96];
    (void)ctx;
    snprintf(key, sizeof key, "%s.%d.%s", w->key, w->chunk, name + strlen("vae."));
    const sl_st_entry *e = sl_st_find(w->st, key);
    if (e) {
        const int64_t c = e->t.shape[0], n = sl_count(&e->t) / c;
        float *turned = malloc(sl_bytes(&e->t));
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < c; k++)
                turned[i * c + k] = ((const float *)e->t.data)[k * n + i];
        assert_int_equal(sl_count(x), sl_count(&e->t));
        assert_int_equal(x->shape[0], e->t.shape[1]);
        const double d = t_rel_l2(x->data, turned, sl_count(x));
        if (getenv("SL_SHOW")) printf("%s %.3g\n", key, d);
        if (!(d <= TOLERANCE))
            fail_msg("%s is the first that is off: relative L2 %.3g, want <= %g", key, d,
                     TOLERANCE);
        free(turned);
        w->seen++;
    }
    if (!strcmp(name, w->last)) w->chunk++;
}

/* ---- encode ---- */

static void every_tensor_of_the_checkpoint_is_used(void **state)
{
    (void)state;
    t_vae n;
    open_network(&n);
    assert_int_equal(sl_loader_unused(n.loader), 0);
    t_vae_close(&n);
}

static void a_picture_as_the_reference(void **state)
{
    (void)state;
    enum { H = 64, W = 96, Z = 48 * 4 * 6 };
    t_vae n;
    open_network(&n);
    sl_st *st = open_case(I2V);
    float *picture = t_vae_picture(st, H, W), moments[2 * Z], latent[Z];
    sl_tensor out = sl_view4(latent, SL_F32, 48, 1, 4, 6);
    sl_vae_encode_condition(&n.ctx, n.encoder, &out, picture, NULL, 1, H, W, moments);
    T_OK(sl_ctx_error(&n.ctx, &err));
    T_REL(moments, t_floats(st, 2 * Z, "vae.encode.moments"), 2 * Z, TOLERANCE);
    T_REL(latent, t_floats(st, Z, "cond.latents"), Z, TOLERANCE);
    free(picture);
    sl_st_close(&st);
    t_vae_close(&n);
}

/* 13 frames: the encoder's time path, which a picture alone does not enter. */
static void a_video_as_the_reference(void **state)
{
    (void)state;
    enum { F = 13, H = 64, W = 32, Z = 48 * 4 * 4 * 2, N = F * H * W * 3 };
    t_vae n;
    open_network(&n);
    sl_st *st = open_case(T2V);
    const sl_st_entry *e = sl_st_find(st, "frames.u8");
    assert_non_null(e);
    assert_int_equal(sl_count(&e->t), N);
    float *video = malloc(sizeof *video * N), moments[2 * Z], latent[Z];
    for (int i = 0; i < N; i++) video[i] = ((const uint8_t *)e->t.data)[i] / 127.5f - 1;
    watch w = {st, "vae.video", "vae.mid", 0, 0};
    n.ctx.tap = compare, n.ctx.tap_user = &w;
    sl_tensor out = sl_view4(latent, SL_F32, 48, 4, 4, 2);
    sl_vae_encode_frames(&n.ctx, n.encoder, &out, video, F, H, W, moments);
    T_OK(sl_ctx_error(&n.ctx, &err));
    T_REL(moments, t_floats(st, 2 * Z, "vae.video.moments"), 2 * Z, TOLERANCE);
    assert_int_equal(w.seen, 8);
    free(video);
    sl_st_close(&st);
    t_vae_close(&n);
}

/* ---- decode ---- */

/* A whole video, `at_once` latent frames a chunk; the caller frees the frames. */
static uint8_t *decode(t_vae *n, const float *latents, int t, int h, int w, int at_once,
                       float *floats)
{
    const int H = 16 * h, W = 16 * w, F = 4 * (t - 1) + 1;
    uint8_t *frames = malloc((size_t)F * H * W * 3);
    float *part = malloc(sizeof *part * 48 * (size_t)(t * h * w));
    void *memory =
        aligned_alloc(256, (sl_vae_decode_bytes(&n->ctx, n->decoder, H, W) + 255) & ~(size_t)255);
    sl_vae_decode *d = sl_vae_decode_start(&n->ctx, n->decoder, H, W, memory);
    int64_t done = 0;
    for (int k = 0; k < t; k += at_once) {
        const int m = t - k < at_once ? t - k : at_once, f = sl_vae_frames_of(d, m);
        for (int c = 0; c < 48; c++)
            memcpy(part + c * m * h * w, latents + (c * t + k) * h * w,
                   sizeof *part * (size_t)(m * h * w));
        sl_tensor in = sl_view4(part, SL_F32, 48, m, h, w),
                  rgb = sl_view4(frames + done * H * W * 3, SL_U8, f, H, W, 3),
                  as_floats =
                      sl_view4(floats ? floats + done * H * W * 3 : NULL, SL_F32, f, H, W, 3);
        sl_vae_decode_chunk(&n->ctx, d, &rgb, floats ? &as_floats : NULL, &in);
        done += f;
    }
    T_OK(sl_ctx_error(&n->ctx, &err));
    assert_int_equal(done, F);
    sl_vae_decode_free(&d);
    free(memory), free(part);
    return frames;
}

static void frames_as_the_reference(const char *path, const char *key, int t, int h, int w,
                                    int taps)
{
    t_vae n;
    open_network(&n);
    sl_st *st = open_case(path);
    const int64_t count = (int64_t)(4 * (t - 1) + 1) * 16 * h * 16 * w * 3;
    const sl_st_entry *e = sl_st_find(st, "frames.u8");
    watch watched = {st, "vae.decode", "vae.out", 0, 0};
    n.ctx.tap = compare, n.ctx.tap_user = &watched;
    uint8_t *got = decode(&n, t_floats(st, 48 * (int64_t)t * h * w, "%s", key), t, h, w, 1, NULL);
    assert_int_equal(watched.seen, taps);
    assert_int_equal(sl_count(&e->t), count);
    int64_t off = 0;
    for (int64_t i = 0; i < count; i++) {
        const int d = abs(got[i] - ((const uint8_t *)e->t.data)[i]);
        assert_true(d <= 1);
        off += d;
    }
    assert_true(off <= count / 1000);
    free(got);
    sl_st_close(&st);
    t_vae_close(&n);
}

static void decoding_13_frames_as_the_reference(void **state)
{
    (void)state;
    frames_as_the_reference(T2V, "step.3.latents", 4, 4, 2, 11);
}

static void decoding_5_frames_as_the_reference(void **state)
{
    (void)state;
    frames_as_the_reference(I2V, "latents.final", 2, 4, 6, 0);
}

/* The same bits by one, two, three and four latent frames a chunk, and as floats. */
static void chunks_do_not_matter(void **state)
{
    (void)state;
    enum { N = 13 * 64 * 32 * 3 };
    t_vae n;
    open_network(&n);
    sl_st *st = open_case(T2V);
    const float *latents = t_floats(st, 48 * 4 * 4 * 2, "step.3.latents");
    float *floats = malloc(sizeof *floats * N);
    uint8_t *want = decode(&n, latents, 4, 4, 2, 1, NULL);
    for (int at_once = 1; at_once <= 4; at_once++) {
        uint8_t *got = decode(&n, latents, 4, 4, 2, at_once, floats);
        assert_memory_equal(got, want, N);
        for (int i = 0; i < N; i++) {
            const float x = fminf(fmaxf(floats[i] * 0.5f + 0.5f, 0), 1);
            assert_int_equal(got[i], (int)rintf(255 * x));
        }
        free(got);
    }
    free(want), free(floats);
    sl_st_close(&st);
    t_vae_close(&n);
}

/* ---- plans and refusals ---- */

static void the_planned_arena_is_what_is_used(void **state)
{
    (void)state;
    enum { H = 64, W = 96 };
    t_vae n;
    sl_ctx plan;
    sl_loader *l = NULL;
    open_network(&n);
    T_OK(sl_ctx_open(&plan, &sl_ops_plan, 0, &err));
    T_OK(sl_loader_plan(&l, &plan, "vae", &err));
    sl_vae_encoder *e = sl_vae_encoder_new(&n.c, l);
    sl_vae_decoder *d = sl_vae_decoder_new(&n.c, l);
    T_OK(sl_loader_finish(l, &err));

    static float picture[H * W * 3], latent[48 * 4 * 6];
    sl_tensor out = sl_view4(latent, SL_F32, 48, 1, 4, 6);
    sl_vae_encode_condition(&plan, e, &out, picture, NULL, 1, H, W, NULL);
    n.ctx.arena_peak = 0;
    sl_vae_encode_condition(&n.ctx, n.encoder, &out, picture, NULL, 1, H, W, NULL);
    T_OK(sl_ctx_error(&n.ctx, &err));
    assert_int_equal(n.ctx.arena_peak, plan.arena_peak);

    plan.arena_peak = n.ctx.arena_peak = 0;
    assert_int_equal(sl_vae_decode_bytes(&plan, d, H, W),
                     sl_vae_decode_bytes(&n.ctx, n.decoder, H, W));
    sl_vae_decode *video = sl_vae_decode_start(&plan, d, H, W, NULL);
    for (int k = 0; k < 2; k++) {
        sl_tensor in = sl_view4(NULL, SL_F32, 48, 1, 4, 6),
                  rgb = sl_view4(NULL, SL_U8, k ? 4 : 1, H, W, 3);
        sl_vae_decode_chunk(&plan, video, &rgb, NULL, &in);
    }
    T_OK(sl_ctx_error(&plan, &err));
    sl_vae_decode_free(&video);
    float *two = calloc(48 * 2 * 4 * 6, sizeof *two);
    free(decode(&n, two, 2, 4, 6, 1, NULL));
    assert_int_equal(n.ctx.arena_peak, plan.arena_peak);
    free(two);
    sl_vae_encoder_free(&e);
    sl_vae_decoder_free(&d);
    sl_loader_close(&l);
    sl_ctx_close(&plan);
    t_vae_close(&n);
}

static void sizes_are_multiples_of_16(void **state)
{
    (void)state;
    t_vae n;
    float x[3];
    open_network(&n);
    sl_tensor out = sl_view4(x, SL_F32, 48, 1, 1, 1);
    sl_vae_encode_condition(&n.ctx, n.encoder, &out, x, NULL, 1, 24, 16, NULL);
    T_CODE(sl_ctx_error(&n.ctx, &err), SL_SHAPE);
    T_SAYS(err.msg, "vae: pictures are 16 x 24 pixels, want multiples of 16");
    assert_null(sl_vae_decode_start(&n.ctx, n.decoder, 16, 8, NULL));
    T_CODE(sl_ctx_error(&n.ctx, &err), SL_SHAPE);
    T_SAYS(err.msg, "vae: frames are 8 x 16 pixels, want multiples of 16");
    t_vae_close(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_tensor_of_the_checkpoint_is_used),
        cmocka_unit_test(a_picture_as_the_reference),
        cmocka_unit_test(a_video_as_the_reference),
        cmocka_unit_test(decoding_13_frames_as_the_reference),
        cmocka_unit_test(decoding_5_frames_as_the_reference),
        cmocka_unit_test(chunks_do_not_matter),
        cmocka_unit_test(the_planned_arena_is_what_is_used),
        cmocka_unit_test(sizes_are_multiples_of_16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
