/* test_dit.c - the DiT's first forward against the reference, piece by piece, for I2V,
 * FLF2V and a Wan2.2 expert; refusals. */
#include "tests/t_dit.h"

typedef struct {
    const char *name, *transformer, *figures, *text;
    bool float_rope; /* the figures' rotary tables are not rounded to bf16 */
    int kept_frames; /* of the latents; their timestep, 0, follows those of the steps */
    sl_precision precision;
} model;
#define MODEL(folder, figures, ...) IN(SL_PRECISION_BF16, folder, figures, __VA_ARGS__)
#define IN(precision, folder, figures, ...)                                                        \
    {                                                                                              \
        folder, "tests/golden/" folder "/model/transformer",                                       \
            "tests/golden/" folder "/" figures ".safetensors",                                     \
            "tests/golden/" folder "/text.safetensors", __VA_ARGS__, precision                     \
    }
static const model I2V = MODEL("tiny-i2v", "i2v-96x64x9", false, 0),
                   T2V = MODEL("tiny-t2v", "t2v-64x64x5", false, 0),
                   FLF2V = MODEL("tiny-flf2v", "flf2v-64x64x9", false, 0),
                   A14B = MODEL("tiny-i2v-a14b", "a14b-64x64x9", false, 0),
                   TI2V = MODEL("tiny-ti2v-5b", "ti2v-96x64x5-i2v", true, 1),
                   I2V_EIGHT = IN(SL_PRECISION_FP8_LINEAR, "tiny-i2v", "i2v-96x64x9", false, 0),
                   T2V_EIGHT = IN(SL_PRECISION_FP8_LINEAR, "tiny-t2v", "t2v-64x64x5", false, 0),
                   TI2V_EIGHT =
                       IN(SL_PRECISION_FP8_LINEAR, "tiny-ti2v-5b", "ti2v-96x64x5-i2v", true, 1);

/* The first forward of a golden case: its inputs are cut out of dit.input and
 * clip.penultimate. */
typedef struct {
    const model *m;
    t_dit d;
    sl_st *figures, *text;
    sl_tensor input, latents, condition; /* F32 [36, T, H, W], [16, ..], [20, ..] */
    t_context context;
    float *v;
    sl_tensor out;
    int taps, piece;     /* figures compared; rows of the current one seen so far */
    const char *stop_at; /* cancel at this tap */
    volatile int cancel;
    /* in 8 bits: the reference's tokens before the block, and how far ours may be from them */
    float *tokens;
    double off, head_off; /* and behind the head's norm */
} first;

/* Compare a tap with the reference, naming the first that is off. */
static void compare(void *user, sl_ctx *ctx, const char *name, const sl_tensor *t);

static void first_open(first *f, const model *m)
{
    sl_err err = {0};
    char key[] = "clip.penultimate";
    memset(f, 0, sizeof *f);
    f->m = m;
    t_dit_open_as(&f->d, m->transformer, m->precision);
    f->d.float_rope = m->float_rope;
    T_OK(sl_st_open_file(&f->figures, m->figures, &err));
    T_OK(sl_st_open_file(&f->text, m->text, &err));

    const sl_st_entry *input = sl_st_find(f->figures, "dit.input"),
                      *times = sl_st_find(f->figures, "timesteps");
    if (!input || !times || times->t.dtype != SL_I64)
        fail_msg("%s: golden inputs are missing", m->name);
    f->input = input->t;
    const int64_t channels = f->d.config.out_channels;
    f->latents = sl_rows(&f->input, 0, channels);
    f->condition = sl_rows(&f->input, channels, f->input.shape[0] - channels);
    f->v = malloc(sizeof(float) * (size_t)sl_count(&f->latents));
    f->out = sl_view(f->v, SL_F32, 4, f->latents.shape);

    f->d.ctx.tap = compare;
    f->d.ctx.tap_user = f;
    double steps[64];
    for (int64_t i = 0; i < times->t.shape[0]; i++) {
        int64_t step;
        /* at any address in the file */
        memcpy(&step, (char *)times->t.data + 8 * i, sizeof step);
        steps[i] = (double)step;
    }
    f->d.kept_frames = m->kept_frames, f->d.kept_step = (int)times->t.shape[0];
    steps[f->d.kept_step] = 0;
    t_dit_times(&f->d, steps, f->d.kept_step + (m->kept_frames > 0));
    t_dit_rope(&f->d, (int)f->input.shape[1], (int)f->input.shape[2] / 2,
               (int)f->input.shape[3] / 2);
    const sl_st_entry *clip = sl_st_find(f->figures, key), *embed = sl_st_find(f->text, "embed.0");
    t_dit_context(&f->d, &f->context, embed->t.data, (int)embed->t.shape[0],
                  clip ? clip->t.data : NULL,
                  clip ? (int)(clip->t.shape[0] * clip->t.shape[1]) : 0);
}

static void first_close(first *f)
{
    free(f->context.memory);
    free(f->v);
    free(f->tokens);
    sl_st_close(&f->figures);
    sl_st_close(&f->text);
    t_dit_close(&f->d);
}

/* [C, T, H, W] as patch rows [T (H/2) (W/2), (C, 2, 2)]; patch 1: as rows [T H W, C]. The
 * caller frees. */
static float *as_rows(const sl_tensor *x, int patch)
{
    const int64_t c = x->shape[0], t = x->shape[1], h = x->shape[2], w = x->shape[3];
    const float *from = x->data;
    float *rows = malloc(sizeof *rows * (size_t)(c * t * h * w));
    for (int64_t i = 0; i < c * t * h * w; i++) {
        const int64_t ch = i / (t * h * w), f = i / (h * w) % t, y = i / w % h, xx = i % w;
        const int64_t row = (f * (h / patch) + y / patch) * (w / patch) + xx / patch;
        rows[((row * c + ch) * patch + y % patch) * patch + xx % patch] = from[i];
    }
    return rows;
}

/* ---- how far 8 bits may be off ----
 *
 * The code of a number m 2^e, 1 <= m < 2, is off by up to 2^-4 2^e, evenly: in the root of the mean
 * square by 2^-4 / (sqrt 3 m) of the number, and where leading digits lie evenly on a logarithmic
 * scale by 2^-4 / sqrt 3 * sqrt(3 / (8 ln 2)) = 0.0266. Roundings are independent of each other, so
 * a product of two rounded matrices is CODE = sqrt 2 * 0.0266 of its L2 norm off, whatever is
 * summed, and a chain of m products sqrt m * CODE: norms and attention's averages between them do
 * not widen it, GELU does by its steepest slope, 1.13. Self-attention's result and
 * cross-attention's hang on four products each, the feed-forward's on two; the latter two also on
 * tokens that are off by what came before in the block, which is at most self-attention's part. */
#define CODE 0.0375
#define SLOPE 1.13

/* Tokens after a block are off by what those before it were and that part of it that the block's
 * branches pass on; and, independent of it, by the roundings within the branches, at most 2 CODE of
 * what they add. */
static double off_after(const first *f, const sl_tensor *after)
{
    const float *x = after->data;
    double was = 0, is = 0, added = 0;
    for (int64_t i = 0; i < sl_count(after); i++) {
        const double a = (double)x[i], b = (double)f->tokens[i];
        is += a * a, was += b * b, added += (a - b) * (a - b);
    }
    return hypot(f->off * (sqrt(was) + sqrt(added)), 2 * CODE * sqrt(added)) / sqrt(is);
}

/* The head's LayerNorm takes the mean off, which no error is of, from every token. */
static double off_behind_norm(const first *f, const sl_tensor *last)
{
    const int64_t d = last->shape[1];
    double widest = 1;
    for (int64_t i = 0; i < last->shape[0]; i++) {
        const float *x = (const float *)last->data + i * d;
        double sum = 0, squares = 0;
        for (int64_t c = 0; c < d; c++) {
            sum += (double)x[c];
            squares += (double)x[c] * (double)x[c];
        }
        const double wider = sqrt(squares / (squares - sum * sum / (double)d));
        if (wider > widest) widest = wider;
    }
    return f->off * widest;
}

/* The limit of a tap whose figures are `want`. */
static double limit_of(first *f, const char *name, const sl_tensor *want)
{
    if (!f->m->precision || !strncmp(name, "time", 4) || !strcmp(name, "text") ||
        !strcmp(name, "image") || !strcmp(name, "input") || !strcmp(name, "patch"))
        return 1e-4;
    if (!strcmp(name, "block.0.attn1")) return sqrt(4) * CODE;
    if (!strcmp(name, "block.0.attn2")) return sqrt(4 + 4) * CODE;
    if (!strcmp(name, "block.0.ffn")) return SLOPE * sqrt(2 + 4) * CODE;
    return off_after(f, want);
}

/* The tokens of a tap are the next block's. */
static void keep_tokens(first *f, const float *tokens, int64_t n, double off)
{
    f->tokens = realloc(f->tokens, sizeof *tokens * (size_t)n);
    assert_non_null(f->tokens);
    memcpy(f->tokens, tokens, sizeof *tokens * (size_t)n);
    f->off = off;
}

static void check(first *f, const char *name, const float *got, const float *want, int64_t n,
                  double limit)
{
    double e = t_rel_l2(got, want, n);
    if (getenv("SL_SHOW")) printf("%s: %s %.3g of %.3g\n", f->m->name, name, e, limit);
    if (!(e <= limit))
        fail_msg("%s: %s is the first that is off: relative L2 %.3g, want <= %.3g", f->m->name,
                 name, e, limit);
    /* that it is in 8 bits at all: at least the roundings of one product */
    if (limit > 1e-4 && !strcmp(name, "block.0.attn1") && !(e >= CODE / 2))
        fail_msg("%s: %s is off by %.3g, want at least %.3g in 8 bits", f->m->name, name, e,
                 CODE / 2);
    f->taps++;
}

static void compare(void *user, sl_ctx *ctx, const char *name, const sl_tensor *t)
{
    first *f = user;
    char key[64];
    (void)ctx;
    if (f->stop_at && !strcmp(name, f->stop_at)) f->cancel = 1;
    snprintf(key, sizeof key, "dit.%s", name);
    const sl_st_entry *want = sl_st_find(f->figures, key);
    if (!want) fail_msg("%s: no golden figure for %s", f->m->name, name);
    if (!strcmp(name, "input") || !strcmp(name, "patch")) {
        float *rows = as_rows(&want->t, name[0] == 'i' ? 2 : 1);
        assert_int_equal(sl_count(t), sl_count(&want->t));
        check(f, name, t->data, rows, sl_count(t), 1e-4);
        if (name[0] == 'p') keep_tokens(f, rows, sl_count(t), 0);
        free(rows);
    } else if (!strcmp(name, "time_proj") && f->m->kept_frames) {
        /* the reference has a row a token: those of the kept frames, then the first step's */
        const int64_t d = want->t.shape[1],
                      kept = want->t.shape[0] / f->input.shape[1] * f->m->kept_frames;
        for (int64_t n = 0; n < want->t.shape[0]; n++)
            T_REL((float *)t->data + (n < kept ? f->d.kept_step : 0) * d,
                  (float *)want->t.data + n * d, d, 1e-4);
        f->taps++;
    } else if (!strcmp(name, "time_proj") || !strcmp(name, "text")) {
        /* the first step; the first 48 rows */
        check(f, name, t->data, want->t.data, sl_count(&want->t), 1e-4);
    } else {
        const int64_t d = want->t.shape[1]; /* rows that may come in pieces */
        assert_int_equal(t->shape[1], d);
        assert_true(f->piece + t->shape[0] <= want->t.shape[0]);
        const double limit = limit_of(f, name, &want->t);
        check(f, name, t->data, (float *)want->t.data + f->piece * d, sl_count(t), limit);
        if (f->m->precision && !strncmp(name, "block.", 6) && !strchr(name + 6, '.')) {
            keep_tokens(f, want->t.data, sl_count(&want->t), limit);
            f->head_off = off_behind_norm(f, &want->t);
        }
        f->piece = (int)((f->piece + t->shape[0]) % want->t.shape[0]);
    }
}

/* All figures of one model: what there is, `taps` of them. */
static void as_the_reference(const model *m, int taps)
{
    first f;
    sl_err err = {0};
    first_open(&f, m);
    t_dit_forward(&f.d, &f.out, &f.latents, f.condition.shape[0] ? &f.condition : NULL, 0,
                  &f.context, NULL, NULL);
    T_OK(sl_ctx_error(&f.d.ctx, &err));
    if (sl_st_find(f.figures, "step.0.cond"))
        check(&f, "step.0.cond", f.v, t_floats(f.figures, sl_count(&f.out), "step.0.cond"),
              sl_count(&f.out), m->precision ? f.head_off : 1e-4);
    assert_int_equal(f.taps, taps);
    assert_int_equal(sl_loader_unused(f.d.loader), 0);
    first_close(&f);
}

/* time_proj, text, image; input, patch, attn1, attn2, ffn, block 0, 1, 2; the output */
static void i2v_as_the_reference(void **state)
{
    (void)state;
    as_the_reference(&I2V, 12);
}

/* The same figures, in 8 bits. */
static void eight_bits_are_off_by_their_roundings(void **state)
{
    (void)state;
    as_the_reference(&I2V_EIGHT, 12);
    as_the_reference(&T2V_EIGHT, 10);
    as_the_reference(&TI2V_EIGHT, 10);
}

/* neither image tokens nor a condition */
static void t2v_as_the_reference(void **state)
{
    (void)state;
    as_the_reference(&T2V, 10);
}

/* two rows of time, the first frame kept */
static void ti2v_as_the_reference(void **state)
{
    (void)state;
    as_the_reference(&TI2V, 10);
}

/* The kept frame's tokens and the others in pieces of any size, and by kept frames of none and
 * all: 12 tokens, 6 of them kept. */
static void two_times_in_pieces(void **state)
{
    static const int ROWS[] = {12, 7, 6, 5, 1};
    sl_err err = {0};
    float *all[3] = {0};
    (void)state;
    for (int kept = 0; kept < 3; kept++)
        for (int i = 0; i < 5; i++) {
            first f;
            first_open(&f, &TI2V);
            f.d.ctx.tap = NULL;
            f.d.kept_frames = kept;
            sl_dit_set_rows(f.d.dit, ROWS[i]);
            t_dit_forward(&f.d, &f.out, &f.latents, NULL, 0, &f.context, NULL, NULL);
            T_OK(sl_ctx_error(&f.d.ctx, &err));
            const int64_t n = sl_count(&f.out);
            if (i == 0) {
                all[kept] = malloc(sizeof(float) * (size_t)n);
                memcpy(all[kept], f.v, sizeof(float) * (size_t)n);
                if (kept == 1) T_REL(f.v, t_floats(f.figures, n, "step.0.cond"), n, 1e-4);
                else if (kept) assert_true(t_rel_l2(all[2], all[0], n) > 0.01);
            }
            T_REL(f.v, all[kept], n, 1e-5);
            first_close(&f);
        }
    /* all frames kept: what one row of time gives that is 0 */
    first f;
    first_open(&f, &TI2V);
    f.d.ctx.tap = NULL;
    f.d.kept_frames = 0;
    t_dit_forward(&f.d, &f.out, &f.latents, NULL, f.d.kept_step, &f.context, NULL, NULL);
    T_OK(sl_ctx_error(&f.d.ctx, &err));
    T_REL(f.v, all[2], sl_count(&f.out), 1e-5);
    first_close(&f);
    for (int i = 0; i < 3; i++) free(all[i]);
}

/* 514 image tokens and their position table */
static void flf2v_as_the_reference(void **state)
{
    (void)state;
    as_the_reference(&FLF2V, 11);
}

/* no image tokens, but a condition */
static void wan22_expert_as_the_reference(void **state)
{
    (void)state;
    as_the_reference(&A14B, 10);
}

/* The reference writes each angle twice, for both of a pair; rounded to bf16 here (see
 * t_dit_rope), so equal to the bit. */
static void rotary_tables_as_the_reference(void **state)
{
    first f;
    (void)state;
    first_open(&f, &I2V);
    const int64_t n = f.d.rope.cos.shape[0], half = f.d.rope.cos.shape[1];
    static const char *const NAME[2] = {"dit.rope.cos", "dit.rope.sin"};
    float *table[2];
    sl_err err = {0};
    for (int i = 0; i < 2; i++) {
        const sl_st_entry *e = sl_st_find(f.figures, NAME[i]);
        assert_non_null(e);
        assert_int_equal(sl_count(&e->t), n * half * 2);
        table[i] = malloc((size_t)(n * half * 2) * sizeof(float));
        T_OK(sl_to_floats(table[i], e->t.data, e->t.dtype, n * half * 2, &err));
    }
    const float *c = table[0], *s = table[1];
    for (int64_t i = 0; i < n * half; i++) {
        if (((float *)f.d.rope.cos.data)[i] != c[2 * i] || c[2 * i] != c[2 * i + 1])
            fail_msg("cos of token %lld, pair %lld is off", (long long)(i / half),
                     (long long)(i % half));
        if (((float *)f.d.rope.sin.data)[i] != s[2 * i])
            fail_msg("sin of token %lld, pair %lld is off", (long long)(i / half),
                     (long long)(i % half));
    }
    free(table[0]);
    free(table[1]);
    first_close(&f);
}

/* Unrounded: time, height and width turn pairs 0-21, 22-42 and 43-63 by position *
 * 10000^(-k / pairs of the axis). */
static void rotary_tables_are_float32(void **state)
{
    first f;
    sl_err err = {0};
    sl_dit_rope r;
    (void)state;
    first_open(&f, &I2V);
    void *memory = t_memory(sl_dit_rope_bytes(f.d.dit, 3, 4, 6));
    sl_dit_rope_make(&f.d.ctx, f.d.dit, &r, memory, 3, 4, 6);
    T_OK(sl_ctx_error(&f.d.ctx, &err));
    for (int i = 0; i < 72 * 64; i++) {
        const int row = i / 64, pair = i % 64;
        const double at = pair < 22   ? row / 24 / pow(10000, pair / 22.0)
                          : pair < 43 ? row / 6 % 4 / pow(10000, (pair - 22) / 21.0)
                                      : row % 6 / pow(10000, (pair - 43) / 21.0);
        if (!(fabs(((float *)r.cos.data)[i] - cos(at)) <= 1e-7) ||
            !(fabs(((float *)r.sin.data)[i] - sin(at)) <= 1e-7))
            fail_msg("token %d, pair %d is off", row, pair);
    }
    free(memory);
    first_close(&f);
}

/* Text-to-video brings all channels as latents and no condition. */
static void no_condition_is_all_channels_at_once(void **state)
{
    first f;
    sl_err err = {0};
    (void)state;
    first_open(&f, &I2V);
    t_dit_forward(&f.d, &f.out, &f.input, NULL, 0, &f.context, NULL, NULL);
    T_OK(sl_ctx_error(&f.d.ctx, &err));
    T_REL(f.v, t_floats(f.figures, sl_count(&f.out), "step.0.cond"), sl_count(&f.out), 1e-4);
    first_close(&f);
}

/* 72 tokens, at most 32, 5 or 1 at a time. */
static void rows_at_a_time_do_not_matter(void **state)
{
    static const int ROWS[] = {32, 5, 1};
    sl_err err = {0};
    (void)state;
    for (int i = 0; i < 3; i++) {
        first f;
        first_open(&f, &I2V);
        sl_dit_set_rows(f.d.dit, ROWS[i]);
        t_dit_forward(&f.d, &f.out, &f.latents, &f.condition, 0, &f.context, NULL, NULL);
        T_OK(sl_ctx_error(&f.d.ctx, &err));
        T_REL(f.v, t_floats(f.figures, sl_count(&f.out), "step.0.cond"), sl_count(&f.out), 1e-4);
        first_close(&f);
    }
}

static void the_planned_arena_is_what_is_used(void **state)
{
    static const model *const MODELS[] = {&I2V, &I2V_EIGHT};
    sl_err err = {0};
    (void)state;
    for (int i = 0; i < 2; i++) {
        first f;
        first_open(&f, MODELS[i]);
        f.d.plan.arena_peak = f.d.ctx.arena_peak = 0;
        t_dit_forward(&f.d, &f.out, &f.latents, &f.condition, 0, &f.context, NULL, NULL);
        T_OK(sl_ctx_error(&f.d.ctx, &err));
        assert_int_equal(f.d.ctx.arena_peak, f.d.plan.arena_peak);
        first_close(&f);
    }
}

/* Pieces of whole granules have the bits of all rows at once; so have they in 8 bits. */
static void pieces_have_the_bits_of_the_whole(void **state)
{
    static const model *const MODELS[] = {&I2V, &I2V_EIGHT};
    sl_err err = {0};
    (void)state;
    for (int i = 0; i < 2; i++) {
        float *whole = NULL;
        for (int pieces = 0; pieces < 2; pieces++) {
            first f;
            first_open(&f, MODELS[i]);
            f.d.ctx.tap = NULL;
            if (pieces) sl_dit_set_rows(f.d.dit, f.d.ctx.ops->row_granule);
            t_dit_forward(&f.d, &f.out, &f.latents, &f.condition, 0, &f.context, NULL, NULL);
            T_OK(sl_ctx_error(&f.d.ctx, &err));
            if (pieces) assert_memory_equal(f.v, whole, sl_bytes(&f.out));
            else whole = f.v, f.v = NULL;
            first_close(&f);
        }
        free(whole);
    }
}

/* The design case, 1280x720x81 of the 14B model on a float32 device: x, q, k, v and
 * pieces, never the whole feed-forward. */
static void a_block_of_the_14b_model_keeps_four_token_tensors(void **state)
{
    static const char CONFIG[] =
        "{\"num_layers\": 2, \"num_attention_heads\": 40, \"attention_head_dim\": 128, "
        "\"ffn_dim\": 13824,"
        "\"in_channels\": 36, \"out_channels\": 16, \"text_dim\": 4096, \"freq_dim\": 256, "
        "\"image_dim\": 1280,"
        "\"added_kv_proj_dim\": 5120, \"patch_size\": [1, 2, 2], \"cross_attn_norm\": true,"
        "\"qk_norm\": \"rms_norm_across_heads\", \"eps\": 1e-06}";
    sl_err err = {0};
    sl_dit_config config;
    sl_ctx plan;
    sl_loader *l = NULL;
    double t[1] = {999};
    sl_dit_times times;
    sl_dit_rope rope;
    sl_dit_context context;
    (void)state;
    T_OK(sl_model_parse_dit(&config, CONFIG, sizeof CONFIG - 1, "config.json", &err));
    T_OK(sl_ctx_open(&plan, &sl_ops_plan, 0, &err));
    T_OK(sl_loader_plan(&l, &plan, "transformer", &err));
    sl_dit *dit = sl_dit_new(&config, l);
    T_OK(sl_loader_finish(l, &err));
    sl_tensor latents = sl_view4(NULL, SL_F32, 16, 21, 90, 160),
              condition = sl_view4(NULL, SL_F32, 20, 21, 90, 160);
    sl_tensor text = sl_view2(NULL, SL_F32, 512, 4096), image = sl_view2(NULL, SL_F32, 257, 1280);
    sl_dit_times_make(&plan, dit, &times, NULL, t, 1);
    sl_dit_rope_make(&plan, dit, &rope, NULL, 21, 45, 80);
    sl_dit_context_make(&plan, dit, &context, NULL, &text, &image);
    sl_fbcache cache;
    sl_fbcache_init(&plan, &cache, &(sl_fbcache_rules){.threshold = 0.1f}, NULL, 75600, 5120);
    sl_dit_input in = {.latents = &latents,
                       .condition = &condition,
                       .times = &times,
                       .rope = &rope,
                       .context = &context};
    sl_dit_forward(&plan, dit, &latents, &in, NULL);
    const size_t without = plan.arena_peak;
    in.cache = &cache;
    sl_dit_forward(&plan, dit, &latents, &in, NULL);
    /* the cache's own two tensors are the caller's */
    assert_int_equal(plan.arena_peak, without);
    const size_t peak = plan.arena_peak,
                 tokens = (size_t)75600 * 5120 * sl_dtype_size(sl_act(&plan));
    T_OK(sl_ctx_error(&plan, &err));
    if (!(peak < tokens * 17 / 4))
        fail_msg("the arena takes %.2f token tensors, want less than 4.25",
                 (double)peak / (double)tokens);
    sl_dit_free(&dit);
    sl_loader_close(&l);
    sl_ctx_close(&plan);
}

static void hears_a_cancel_between_blocks(void **state)
{
    first f;
    sl_err err = {0};
    (void)state;
    first_open(&f, &I2V);
    const int before = f.taps;
    f.stop_at = "block.0";
    f.d.ctx.cancel = &f.cancel;
    t_dit_forward(&f.d, &f.out, &f.latents, &f.condition, 0, &f.context, NULL, NULL);
    T_CODE(sl_ctx_error(&f.d.ctx, &err), SL_CANCELLED);
    assert_int_equal(f.taps - before, 6); /* up to block.0, nothing of block.1 */
    f.d.ctx.cancel = NULL;
    first_close(&f);
}

/* A hit adds what the later blocks added; a computed step with unchanged input adds the
 * same, so both agree. */
static void a_cache_hit_repeats_a_computed_step(void **state)
{
    first f;
    sl_err err = {0};
    sl_fbcache cache;
    sl_fbcache_report report;
    (void)state;
    first_open(&f, &I2V);
    const int64_t n = f.d.rope.cos.shape[0], cells = sl_count(&f.out);
    void *memory = t_memory(sl_fbcache_bytes(&f.d.ctx, n, f.d.config.dim));
    float *once = malloc(sizeof *once * (size_t)cells);
    sl_fbcache_init(&f.d.ctx, &cache, &(sl_fbcache_rules){.threshold = 0.1f}, memory, n,
                    f.d.config.dim);
    t_dit_forward(&f.d, &f.out, &f.latents, &f.condition, 0, &f.context, &cache, &report);
    T_OK(sl_ctx_error(&f.d.ctx, &err));
    assert_true(report.computed && isnan(report.metric));
    memcpy(once, f.v, sizeof *once * (size_t)cells);
    t_dit_forward(&f.d, &f.out, &f.latents, &f.condition, 0, &f.context, &cache, &report);
    T_OK(sl_ctx_error(&f.d.ctx, &err));
    assert_true(!report.computed && report.metric == 0);
    T_REL(f.v, once, cells, 1e-6);
    assert_int_equal(f.d.ctx.arena_peak, f.d.plan.arena_peak);
    free(once);
    free(memory);
    first_close(&f);
}

/* A step that ended half-way leaves no residual that a later step could use. */
static void a_cancelled_step_empties_the_cache(void **state)
{
    first f;
    sl_err err = {0};
    sl_fbcache cache;
    (void)state;
    first_open(&f, &I2V);
    const int64_t n = f.d.rope.cos.shape[0];
    void *memory = t_memory(sl_fbcache_bytes(&f.d.ctx, n, f.d.config.dim));
    sl_fbcache_init(&f.d.ctx, &cache, &(sl_fbcache_rules){.threshold = 0.1f}, memory, n,
                    f.d.config.dim);
    f.stop_at = "block.1";
    f.d.ctx.cancel = &f.cancel;
    t_dit_forward(&f.d, &f.out, &f.latents, &f.condition, 0, &f.context, &cache, NULL);
    T_CODE(sl_ctx_error(&f.d.ctx, &err), SL_CANCELLED);
    assert_false(cache.filled);
    f.d.ctx.cancel = NULL;
    free(memory);
    first_close(&f);
}

/* Run a forward that must fail with `text`. */
static void refused(first *f, sl_code code, const char *text, const sl_tensor *latents,
                    const sl_tensor *condition, int step, const sl_dit_rope *rope,
                    const sl_dit_context *context)
{
    sl_err err = {0};
    const sl_dit_input in = {.latents = latents,
                             .condition = condition,
                             .times = &f->d.times,
                             .step = step,
                             .kept_frames = f->d.kept_frames,
                             .kept_step = f->d.kept_step,
                             .rope = rope,
                             .context = context};
    sl_dit_forward(&f->d.ctx, f->d.dit, &f->out, &in, NULL);
    T_CODE(sl_ctx_error(&f->d.ctx, &err), code);
    T_SAYS(err.msg, text);
}

static void refuses_what_does_not_belong_together(void **state)
{
    first f;
    sl_err err = {0};
    (void)state;
    first_open(&f, &I2V);
    const sl_dit_context *c = &f.context.c;
    const sl_dit_rope *r = &f.d.rope;
    refused(&f, SL_SHAPE, "dit: latents and condition have 16 channels, want 36", &f.latents, NULL,
            0, r, c);
    refused(&f, SL_ARG, "dit: step 6, the time tables have 6", &f.latents, &f.condition, 6, r, c);
    sl_dit_rope other = f.d.rope;
    other.w = 5;
    refused(&f, SL_SHAPE, "dit: rotary tables are for 3 x 4 x 5 tokens, want 3 x 4 x 6", &f.latents,
            &f.condition, 0, &other, c);
    sl_dit_context no_image = *c;
    no_image.image_tokens = 0;
    refused(&f, SL_ARG, "dit: the context holds 0 image tokens, the model wants some", &f.latents,
            &f.condition, 0, r, &no_image);

    f.d.kept_frames = 4;
    refused(&f, SL_ARG, "dit: 4 kept frames of 3", &f.latents, &f.condition, 0, r, c);
    f.d.kept_frames = 1;
    refused(&f, SL_ARG, "dit: step 6 of kept frames, the time tables have 6", &f.latents,
            &f.condition, 0, r, c);
    f.d.kept_frames = 0;

    sl_dit_context made;
    sl_tensor text = sl_view2(NULL, SL_F32, 511, f.d.config.text_dim),
              image = sl_view2(NULL, SL_F32, 257, 1280);
    sl_dit_context_make(&f.d.ctx, f.d.dit, &made, NULL, &text, &image);
    T_CODE(sl_ctx_error(&f.d.ctx, &err), SL_SHAPE);
    T_SAYS(err.msg, "dit: text has shape [511, 128], want [512, 128]");
    text = sl_view2(NULL, SL_F32, 512, f.d.config.text_dim);
    sl_dit_context_make(&f.d.ctx, f.d.dit, &made, NULL, &text, &image);
    T_CODE(sl_ctx_error(&f.d.ctx, &err), SL_SHAPE);
    T_SAYS(err.msg, "dit: image tokens have shape [257, 1280], want [257, 96]");
    sl_dit_context_make(&f.d.ctx, f.d.dit, &made, NULL, &text, NULL);
    T_CODE(sl_ctx_error(&f.d.ctx, &err), SL_ARG);
    T_SAYS(err.msg, "dit: the model wants image tokens, got none");
    sl_dit_rope_make(&f.d.ctx, f.d.dit, &other, NULL, 1, 1025, 4);
    T_CODE(sl_ctx_error(&f.d.ctx, &err), SL_ARG);
    T_SAYS(err.msg, "dit: token grid 1 x 1025 x 4, want 1 to 1024 along each axis");
    first_close(&f);
}

static void flf2v_wants_both_pictures(void **state)
{
    first f;
    sl_err err = {0};
    sl_dit_context made;
    (void)state;
    first_open(&f, &FLF2V);
    sl_tensor text = sl_view2(NULL, SL_F32, 512, f.d.config.text_dim),
              image = sl_view2(NULL, SL_F32, 257, f.d.config.image_dim);
    sl_dit_context_make(&f.d.ctx, f.d.dit, &made, NULL, &text, &image);
    T_CODE(sl_ctx_error(&f.d.ctx, &err), SL_SHAPE);
    T_SAYS(err.msg, "dit: image tokens have shape [257, 96], want [514, 96]");
    first_close(&f);
}

static void a14b_takes_no_picture_tokens(void **state)
{
    first f;
    sl_err err = {0};
    sl_dit_context made;
    (void)state;
    first_open(&f, &A14B);
    sl_tensor text = sl_view2(NULL, SL_F32, 512, f.d.config.text_dim),
              image = sl_view2(NULL, SL_F32, 257, 96);
    sl_dit_context_make(&f.d.ctx, f.d.dit, &made, NULL, &text, &image);
    T_CODE(sl_ctx_error(&f.d.ctx, &err), SL_ARG);
    T_SAYS(err.msg, "dit: image tokens given, but the model takes none");
    first_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(i2v_as_the_reference),
        cmocka_unit_test(eight_bits_are_off_by_their_roundings),
        cmocka_unit_test(t2v_as_the_reference),
        cmocka_unit_test(ti2v_as_the_reference),
        cmocka_unit_test(two_times_in_pieces),
        cmocka_unit_test(flf2v_as_the_reference),
        cmocka_unit_test(wan22_expert_as_the_reference),
        cmocka_unit_test(rotary_tables_as_the_reference),
        cmocka_unit_test(rotary_tables_are_float32),
        cmocka_unit_test(no_condition_is_all_channels_at_once),
        cmocka_unit_test(rows_at_a_time_do_not_matter),
        cmocka_unit_test(the_planned_arena_is_what_is_used),
        cmocka_unit_test(pieces_have_the_bits_of_the_whole),
        cmocka_unit_test(a_block_of_the_14b_model_keeps_four_token_tensors),
        cmocka_unit_test(hears_a_cancel_between_blocks),
        cmocka_unit_test(a_cache_hit_repeats_a_computed_step),
        cmocka_unit_test(a_cancelled_step_empties_the_cache),
        cmocka_unit_test(refuses_what_does_not_belong_together),
        cmocka_unit_test(flf2v_wants_both_pictures),
        cmocka_unit_test(a14b_takes_no_picture_tokens),
    };
    return cmocka_run_group_tests_name("dit", tests, NULL, NULL);
}
