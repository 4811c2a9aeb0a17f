/* test_denoise_golden.c - whole denoising loops against the reference: every step's
 * latents, every cache decision.
 *
 * Runs the cases of tests/golden; `test_denoise_golden DIR` runs those of the folders under DIR
 * instead. Noise, token ids, CLIP tokens and the VAE's moments
 * are the reference's, so only UMT5, the DiT, the cache and the sampler are at work.
 * SL_SHOW=1 prints every distance. */
#include "tests/t_dit.h"

#include <jansson.h>

#include "graphs/umt5.h"
#include "graphs/unipc.h"

static const char *root = "tests/golden";

typedef struct {
    const char *folder, *name;
    bool float_rope; /* the rotary tables were not rounded */
} golden_case;
static const golden_case CASES[] = {
    {"tiny-i2v", "i2v-96x64x9", false},         {"tiny-i2v", "i2v-64x96x13-nocfg", false},
    {"tiny-i2v", "i2v-96x64x9-fbcache", false}, {"tiny-t2v", "t2v-64x64x5", false},
    {"tiny-flf2v", "flf2v-64x64x9", false},     {"tiny-i2v-a14b", "a14b-64x64x9", false},
    {"tiny-t2v-a14b", "a14b-48x64x5", true},    {"tiny-ti2v-5b", "ti2v-96x64x5-i2v", true},
    {"tiny-ti2v-5b", "ti2v-32x64x13-t2v", true}};

/* One case being run. */
typedef struct {
    sl_model model;
    json_t *json; /* NAME.json */
    sl_st *figures, *text;
    t_dit dit[2];            /* the experts */
    t_context context[2][2]; /* [expert][cond, uncond] */
    sl_fbcache cache[2];     /* cond, uncond */
    sl_fbcache_rules rules;
    int steps, calls;
    bool guided;
    int64_t shape[4];    /* of the latents */
    sl_tensor condition; /* F32 [20, T, H, W]; rank 0 without */
    sl_schedule *schedule;
    sl_sampler sampler;
    float *cond, *uncond;
    void *memory[4]; /* condition, sampler, two caches */
} run;

static double number(const run *r, const char *key, double otherwise)
{
    json_t *j = json_object_get(r->json, key);
    return json_is_number(j) ? json_number_value(j) : otherwise;
}

/* Prompt `i` encoded, rows of the true length; the caller frees. */
static float *encode(run *r, const char *dir, int i, int *n)
{
    char path[1400];
    sl_err err = {0};
    sl_ctx ctx, plan;
    sl_loader *l = NULL;
    const int32_t *ids = t_ids(r->text, i, n);
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    T_OK(sl_ctx_open(&plan, &sl_ops_plan, 0, &err));
    T_OK(sl_loader_file(&l, &ctx, t_join(path, sizeof path, dir, "model/text_encoder"), "model",
                        "text_encoder", &err));
    sl_umt5 *m = sl_umt5_new(&r->model.umt5, l);
    T_OK(sl_loader_finish(l, &err));
    float *y = malloc(sizeof *y * (size_t)*n * (size_t)r->model.umt5.d_model);
    sl_tensor out = sl_view2(y, SL_F32, *n, r->model.umt5.d_model);
    sl_umt5_encode(&plan, m, ids, *n, &out);
    t_reserve(&ctx, &plan);
    sl_umt5_encode(&ctx, m, ids, *n, &out);
    T_OK(sl_ctx_error(&ctx, &err));
    sl_umt5_free(&m);
    sl_loader_close(&l);
    sl_ctx_close(&ctx);
    sl_ctx_close(&plan);
    return y;
}

/* Latent frame 0 is the picture's (TI2V-5B); into: x, or what is compared, where nobody uses it. */
static void keep_frame(const run *r, float *into)
{
    const sl_st_entry *e = sl_st_find(r->figures, "cond.latents");
    const int64_t plane = r->shape[2] * r->shape[3];
    for (int64_t c = 0; e && c < r->shape[0]; c++)
        memcpy(into + c * r->shape[1] * plane, (const float *)e->t.data + c * plane,
               sizeof *into * (size_t)plane);
}

/* Mask and normalised mean from the reference's moments (spec 3.6). */
static void make_condition(run *r)
{
    const sl_st_entry *e = sl_st_find(r->figures, "vae.encode.moments");
    if (!e || r->model.family.time_per_token) return;
    const int64_t t = r->shape[1], hw = r->shape[2] * r->shape[3], z = r->shape[0];
    const float *mean = e->t.data;
    float *c = calloc((size_t)((4 + z) * t * hw), sizeof *c);
    for (int64_t j = 0; j < 4; j++)
        for (int64_t f = 0; f < t; f++)
            for (int64_t i = 0; i < hw; i++)
                c[(j * t + f) * hw + i] =
                    f == 0 || (r->model.family.last_picture && f == t - 1 && j == 3);
    for (int64_t k = 0; k < z; k++)
        for (int64_t i = 0; i < t * hw; i++)
            c[(4 + k) * t * hw + i] =
                (mean[k * t * hw + i] - r->model.vae.mean[k]) * (1 / r->model.vae.std[k]);
    r->memory[0] = c;
    r->condition = sl_view4(c, SL_F32, 4 + z, t, r->shape[2], r->shape[3]);
}

static void open_text(run *r, const char *dir)
{
    const sl_st_entry *clip = sl_st_find(r->figures, "clip.penultimate");
    const int image_tokens = clip ? (int)(clip->t.shape[0] * clip->t.shape[1]) : 0;
    for (int branch = 0; branch < (r->guided ? 2 : 1); branch++) {
        int n;
        float *text = encode(r, dir, (int)number(r, branch ? "neg" : "prompt", 0), &n);
        for (int e = 0; e < r->model.family.experts; e++)
            t_dit_context(&r->dit[e], &r->context[e][branch], text, n, clip ? clip->t.data : NULL,
                          image_tokens);
        free(text);
    }
}

static void open_run(run *r, const golden_case *g)
{
    char dir[1100], path[1400];
    sl_err err = {0};
    memset(r, 0, sizeof *r);
    snprintf(dir, sizeof dir, "%s/%s", root, g->folder);
    T_OK(sl_model_open(&r->model, t_join(path, sizeof path, dir, "model"), &err));
    snprintf(path, sizeof path, "%s/%s.json", dir, g->name);
    if (!(r->json = json_load_file(path, 0, NULL))) fail_msg("cannot read %s", path);
    snprintf(path, sizeof path, "%s/%s.safetensors", dir, g->name);
    T_OK(sl_st_open_file(&r->figures, path, &err));
    T_OK(sl_st_open_file(&r->text, t_join(path, sizeof path, dir, "text.safetensors"), &err));

    const sl_st_entry *noise = sl_st_find(r->figures, "noise");
    memcpy(r->shape, noise->t.shape, sizeof r->shape);
    r->steps = (int)number(r, "steps", 0);
    r->guided = number(r, "cfg", 1) > 1;
    r->rules.threshold = (float)number(r, "fbcache_threshold", 0);
    r->schedule = malloc(sizeof *r->schedule);
    T_OK(sl_schedule_make(r->schedule, r->model.scheduler.kind, r->steps,
                          r->model.scheduler.flow_shift, &err));
    const int t = (int)r->shape[1], h = (int)r->shape[2] / 2, w = (int)r->shape[3] / 2;
    for (int e = 0; e < r->model.family.experts; e++) {
        t_dit_open(&r->dit[e],
                   t_join(path, sizeof path, dir, e ? "model/transformer_2" : "model/transformer"));
        r->dit[e].float_rope = g->float_rope;
        r->dit[e].kept_frames = sl_st_find(r->figures, "cond.latents") != NULL;
        r->dit[e].kept_step = r->steps;
        double times[SL_MAX_STEPS + 1] = {0};
        memcpy(times, r->schedule->timesteps, (size_t)r->steps * sizeof *times);
        t_dit_times(&r->dit[e], times, r->steps + r->dit[e].kept_frames);
        t_dit_rope(&r->dit[e], t, h, w);
    }
    open_text(r, dir);
    make_condition(r);

    const int dim = r->dit[0].config.dim;
    for (int i = 0; i < 2; i++) {
        r->memory[2 + i] = t_memory(sl_fbcache_bytes(&r->dit[0].ctx, (int64_t)t * h * w, dim));
        sl_fbcache_init(&r->dit[0].ctx, &r->cache[i], &r->rules, r->memory[2 + i],
                        (int64_t)t * h * w, dim);
    }
    r->memory[1] = t_memory(sl_sampler_bytes(r->shape));
    sl_sampler_init(&r->sampler, r->schedule, r->memory[1], r->shape);
    memcpy(r->sampler.x.data, noise->t.data, sl_bytes(&r->sampler.x));
    keep_frame(r, r->sampler.x.data);
    r->cond = malloc(sl_bytes(&r->sampler.x));
    r->uncond = malloc(sl_bytes(&r->sampler.x));
}

static void close_run(run *r)
{
    for (int e = 0; e < r->model.family.experts; e++) {
        t_dit_close(&r->dit[e]);
        free(r->context[e][0].memory);
        free(r->context[e][1].memory);
    }
    for (int i = 0; i < 4; i++) free(r->memory[i]);
    free(r->cond);
    free(r->uncond);
    free(r->schedule);
    sl_st_close(&r->figures);
    sl_st_close(&r->text);
    json_decref(r->json);
}

/* The next of the JSON's decisions, which list cond and uncond in turn. */
static void check_decision(run *r, const golden_case *g, int step, const char *branch,
                           const sl_fbcache_report *got)
{
    json_t *want = json_array_get(json_object_get(r->json, "fbcache"), (size_t)r->calls++),
           *diff = json_object_get(want, "diff");
    if (!want) return;
    if (got->computed != json_is_true(json_object_get(want, "compute")))
        fail_msg("%s: step %d, %s: %s at metric %.6g, the reference decided otherwise", g->name,
                 step, branch, got->computed ? "computed" : "reused", (double)got->metric);
    if (json_is_number(diff) ? !(fabs(got->metric / json_number_value(diff) - 1) <= 1e-3)
                             : !isnan(got->metric)) /* decisions are 3e-3 away */
        fail_msg("%s: step %d, %s: metric %.6g, want %.6g", g->name, step, branch,
                 (double)got->metric, json_number_value(diff));
}

/* One branch of one step into v, compared where the reference kept it. */
static void branch(run *r, const golden_case *g, int step, int expert, int which, float *v)
{
    static const char *const NAMES[] = {"cond", "uncond"};
    sl_err err = {0};
    sl_fbcache_report report;
    char key[48];
    sl_tensor out = sl_view(v, SL_F32, 4, r->shape);
    sl_fbcache *cache = r->rules.threshold > 0 ? &r->cache[which] : NULL;
    if (cache) cache->step = step, cache->steps = r->steps;
    t_dit_forward(&r->dit[expert], &out, &r->sampler.x, r->condition.rank ? &r->condition : NULL,
                  step, &r->context[expert][which], cache, &report);
    T_OK(sl_ctx_error(&r->dit[expert].ctx, &err));
    check_decision(r, g, step, NAMES[which], &report);
    snprintf(key, sizeof key, "step.%d.%s", step, NAMES[which]);
    const sl_st_entry *want = sl_st_find(r->figures, key);
    if (!want) return;
    double e = t_rel_l2(v, want->t.data, sl_count(&out));
    if (getenv("SL_SHOW")) printf("%s: %s %.3g\n", g->name, key, e);
    /* the first step shows the network alone; later ones carry the drift of the latents
     * too */
    if (!(e <= (step == 0 ? 1e-4 : 5e-4)))
        fail_msg("%s: %s is off: relative L2 %.3g", g->name, key, e);
}

static void one_step(run *r, const golden_case *g, int i)
{
    sl_err err = {0};
    char key[48];
    const bool low =
        r->model.family.experts == 2 && r->schedule->timesteps[i] < r->model.boundary_ratio * 1000;
    const double guidance = low ? number(r, "cfg2", number(r, "cfg", 1)) : number(r, "cfg", 1);
    sl_ctx *ctx = &r->dit[0].ctx;
    sl_tensor c = sl_view(r->cond, SL_F32, 4, r->shape),
              u = sl_view(r->uncond, SL_F32, 4, r->shape);

    json_t *expert = json_array_get(json_object_get(r->json, "expert"), (size_t)i);
    if (expert) assert_int_equal((int)json_integer_value(expert), low ? 2 : 1);
    branch(r, g, i, low, 0, r->cond);
    if (r->guided) {
        branch(r, g, i, low, 1, r->uncond);
        sl_guidance(ctx, &c, &c, &u, (float)guidance);
    }
    sl_sampler_step(ctx, &r->sampler, &c);
    T_OK(sl_ctx_error(ctx, &err));
    snprintf(key, sizeof key, "step.%d.latents", i);
    keep_frame(r, r->sampler.x.data);
    float *want = malloc(sl_bytes(&c));
    memcpy(want, t_floats(r->figures, sl_count(&c), "%s", key), sl_bytes(&c));
    keep_frame(r, want);
    double e = t_rel_l2(r->sampler.x.data, want, sl_count(&c));
    free(want);
    if (getenv("SL_SHOW")) printf("%s: %s %.3g\n", g->name, key, e);
    if (!(e <= 5e-4))
        fail_msg("%s: %s is the first that is off: relative L2 %.3g, want <= 5e-4", g->name, key,
                 e);
}

static void every_step_as_the_reference(void **state)
{
    const golden_case *g = *state;
    run *r = malloc(sizeof *r);
    open_run(r, g);
    for (int i = 0; i < r->steps; i++) one_step(r, g, i);
    if (json_is_array(json_object_get(r->json, "fbcache")))
        assert_int_equal(r->calls, json_array_size(json_object_get(r->json, "fbcache")));
    close_run(r);
    free(r);
}

int main(int argc, char **argv)
{
    enum { COUNT = sizeof CASES / sizeof *CASES };
    struct CMUnitTest tests[COUNT];
    if (argc > 1) root = argv[1];
    for (int i = 0; i < COUNT; i++)
        tests[i] = (struct CMUnitTest){CASES[i].name, every_step_as_the_reference, NULL, NULL,
                                       (void *)(uintptr_t)&CASES[i]};
    return _cmocka_run_group_tests("denoise", tests, COUNT, NULL, NULL);
}
