/* test_unipc.c - sampler tables and paths against diffusers, resuming in the middle, and
 * what is refused. */
#include "tests/t_net.h"

#include "graphs/unipc.h"

#define CELLS 32 /* 1 x 1 x 4 x 8 latents */
static const int64_t SHAPE[4] = {1, 1, 4, 8};

static sl_st *golden, *distilled;
static sl_ctx ctx;
static sl_err err;

static int open_all(void **state)
{
    (void)state;
    T_OK(sl_st_open_file(&golden, t_golden("tiny-i2v/scheduler.safetensors"), &err));
    T_OK(sl_st_open_file(&distilled, t_golden("distill-4step/distill-48x32x5.safetensors"), &err));
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    sl_st_close(&golden);
    sl_st_close(&distilled);
    sl_ctx_close(&ctx);
    return 0;
}

static void tables_as_the_reference(sl_sampler_kind kind, const char *name)
{
    static const int STEPS[] = {4, 10, 30, 50};
    static const double SHIFTS[] = {3, 5, 8};
    sl_schedule *s = malloc(sizeof *s);
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < 3; b++) {
            const int n = STEPS[a];
            char key[64];
            T_OK(sl_schedule_make(s, kind, n, SHIFTS[b], &err));
            const float *sigmas = t_floats(golden, n + 1, "%s.%d.%.1f.sigmas", name, n, SHIFTS[b]);
            for (int i = 0; i <= n; i++)
                if (!(fabsf(s->sigmas[i] - sigmas[i]) <= 1e-7f)) /* one rounding of float32 */
                    fail_msg("%s, %d steps, shift %g: sigma %d is %.9g, want %.9g", name, n,
                             SHIFTS[b], i, s->sigmas[i], sigmas[i]);
            snprintf(key, sizeof key, "%s.%d.%.1f.timesteps", name, n, SHIFTS[b]);
            const sl_st_entry *t = sl_st_find(golden, key);
            assert_non_null(t);
            for (int i = 0; i < n; i++) {
                double want = kind == SL_SAMPLER_UNIPC ? (double)((int64_t *)t->t.data)[i]
                                                       : (double)((float *)t->t.data)[i];
                /* Euler's are float32 near 1000 */
                if (!(fabs(s->timesteps[i] - want) <= (kind == SL_SAMPLER_UNIPC ? 0 : 1e-4)))
                    fail_msg("%s, %d steps, shift %g: time %d is %.9g, want %.9g", name, n,
                             SHIFTS[b], i, s->timesteps[i], want);
            }
        }
    free(s);
}

static void unipc_tables_as_the_reference(void **state)
{
    (void)state;
    tables_as_the_reference(SL_SAMPLER_UNIPC, "unipc");
}

static void euler_tables_as_the_reference(void **state)
{
    (void)state;
    tables_as_the_reference(SL_SAMPLER_EULER, "euler");
}

/* The 40 steps that the published model runs with. */
static void forty_steps_at_shift_3(void **state)
{
    static const int WANT[] = {999, 991, 982, 973, 964, 954, 944, 934, 923, 911, 900, 887, 875, 861,
                               848, 833, 818, 802, 786, 768, 750, 731, 710, 689, 667, 643, 618, 591,
                               563, 533, 500, 466, 429, 390, 347, 301, 251, 197, 138, 74};
    sl_schedule *s = malloc(sizeof *s);
    (void)state;
    T_OK(sl_schedule_make(s, SL_SAMPLER_UNIPC, 40, 3, &err));
    for (int i = 0; i < 40; i++) assert_int_equal((int)s->timesteps[i], WANT[i]);
    free(s);
}

/* The tables of LightX2V's own list and of ComfyUI's `simple`, which has a zero behind them. */
static void lightx2v_tables_as_the_reference(void **state)
{
    static const int STEPS[] = {2, 4, 4, 6, 8};
    static const char *const NAMES[] = {"lightx2v.1000-500", "lightx2v.1000-750-500-250",
                                        "simple.4", "simple.6", "simple.8"};
    static const double SHIFTS[] = {3, 5, 8};
    sl_schedule *s = malloc(sizeof *s);
    (void)state;
    for (int a = 0; a < 5; a++)
        for (int b = 0; b < 3; b++) {
            const int n = STEPS[a], there = *NAMES[a] == 's' ? n + 1 : n;
            T_OK(sl_schedule_make(s, SL_SAMPLER_LIGHTX2V, n, SHIFTS[b], &err));
            const float *sigmas =
                t_floats(distilled, there, "table.%s.%.1f.sigmas", NAMES[a], SHIFTS[b]);
            for (int i = 0; i < there; i++)
                if (!(fabsf(s->sigmas[i] - sigmas[i]) <= 1e-7f)) /* one rounding of float32 */
                    fail_msg("%s, shift %g: sigma %d is %.9g, want %.9g", NAMES[a], SHIFTS[b], i,
                             s->sigmas[i], sigmas[i]);
            assert_true(s->sigmas[n] == 0);
        }
    /* those that distilled models were trained at: no integers */
    T_OK(sl_schedule_make(s, SL_SAMPLER_LIGHTX2V, 4, 5, &err));
    const float *times = t_floats(distilled, 4, "lightx2v.timesteps");
    for (int i = 0; i < 4; i++)
        if (!(fabs(s->timesteps[i] - (double)times[i]) <= 1e-4)) /* one rounding near 1000 */
            fail_msg("time %d is %.9g, want %.9g", i, s->timesteps[i], (double)times[i]);
    assert_true(s->timesteps[1] == 937.5);
    free(s);
}

/* From the recorded velocities the recorded latents. */
static void lightx2v_steps_as_the_reference(void **state)
{
    static const int64_t LATENTS[4] = {16, 2, 4, 6};
    const int64_t n = 16 * 2 * 4 * 6;
    sl_schedule *schedule = malloc(sizeof *schedule);
    void *memory = aligned_alloc(256, sl_sampler_bytes(LATENTS));
    sl_sampler s;
    (void)state;
    T_OK(sl_schedule_make(schedule, SL_SAMPLER_LIGHTX2V, 4, 5, &err));
    sl_sampler_init(&s, schedule, memory, LATENTS);
    memcpy(s.x.data, t_floats(distilled, n, "noise"), (size_t)n * sizeof(float));
    for (int i = 0; i < 4; i++) {
        sl_tensor v =
            sl_view((float *)(uintptr_t)t_floats(distilled, n, "lightx2v.step.%d.cond", i), SL_F32,
                    4, LATENTS);
        sl_sampler_step(&ctx, &s, &v);
        T_OK(sl_ctx_error(&ctx, &err));
        double e = t_rel_l2(s.x.data, t_floats(distilled, n, "lightx2v.step.%d.latents", i), n);
        if (!(e <= 1e-6)) fail_msg("step %d is off: relative L2 %.3g, want <= 1e-6", i, e);
    }
    free(memory);
    free(schedule);
}

/* The golden path's model: v = 0.3 x + sin(t / 100). */
static void model(float v[CELLS], const float x[CELLS], double t)
{
    for (int i = 0; i < CELLS; i++) v[i] = 0.3f * x[i] + sinf((float)t / 100);
}

static void step_once(sl_sampler *s)
{
    float v[CELLS];
    sl_tensor tv = sl_view(v, SL_F32, 4, SHAPE);
    model(v, s->x.data, s->schedule->timesteps[s->step]);
    sl_sampler_step(&ctx, s, &tv);
    T_OK(sl_ctx_error(&ctx, &err));
}

static void unipc_paths_as_the_reference(void **state)
{
    static const int STEPS[] = {2, 5, 10};
    sl_schedule *schedule = malloc(sizeof *schedule);
    void *memory = aligned_alloc(256, sl_sampler_bytes(SHAPE));
    (void)state;
    for (int a = 0; a < 3; a++) {
        const int n = STEPS[a];
        const float *path = t_floats(golden, (n + 1) * CELLS, "unipc.path.%d", n);
        sl_sampler s;
        T_OK(sl_schedule_make(schedule, SL_SAMPLER_UNIPC, n, 5, &err));
        sl_sampler_init(&s, schedule, memory, SHAPE);
        memcpy(s.x.data, path, sizeof(float) * CELLS);
        for (int i = 1; i <= n; i++) {
            step_once(&s);
            double e = t_rel_l2(s.x.data, path + i * CELLS, CELLS);
            if (!(e <= 1e-5))
                fail_msg("unipc, %d steps: step %d is the first that is off: relative L2 %.3g, "
                         "want <= 1e-5",
                         n, i, e);
        }
        assert_int_equal(s.step, n);
    }
    free(memory);
    free(schedule);
}

/* A straight flow x = (1 - sigma) clean + sigma noise has the velocity noise - clean:
 * Euler follows it to the clean end. */
static void euler_follows_a_straight_flow(void **state)
{
    sl_schedule *schedule = malloc(sizeof *schedule);
    void *memory = aligned_alloc(256, sl_sampler_bytes(SHAPE));
    float clean[CELLS], noise[CELLS], v[CELLS];
    sl_tensor tv = sl_view(v, SL_F32, 4, SHAPE);
    sl_sampler s;
    (void)state;
    t_fill(clean, CELLS, 1);
    t_fill(noise, CELLS, 2);
    for (int i = 0; i < CELLS; i++) v[i] = noise[i] - clean[i];
    T_OK(sl_schedule_make(schedule, SL_SAMPLER_EULER, 7, 5, &err));
    sl_sampler_init(&s, schedule, memory, SHAPE);
    memcpy(s.x.data, noise, sizeof noise); /* sigma_0 is 1 */
    for (int i = 0; i < 7; i++) sl_sampler_step(&ctx, &s, &tv);
    T_OK(sl_ctx_error(&ctx, &err));
    T_NEAR((float *)s.x.data, clean, CELLS, 1e-6);
    free(memory);
    free(schedule);
}

/* With a single step the result is the clean sample, x - sigma v. */
static void one_step_gives_the_clean_sample(void **state)
{
    sl_schedule *schedule = malloc(sizeof *schedule);
    void *memory = aligned_alloc(256, sl_sampler_bytes(SHAPE));
    float x[CELLS], v[CELLS], want[CELLS];
    sl_sampler s;
    (void)state;
    t_fill(x, CELLS, 3);
    T_OK(sl_schedule_make(schedule, SL_SAMPLER_UNIPC, 1, 3, &err));
    sl_sampler_init(&s, schedule, memory, SHAPE);
    memcpy(s.x.data, x, sizeof x);
    model(v, x, schedule->timesteps[0]);
    for (int i = 0; i < CELLS; i++) want[i] = x[i] - schedule->sigmas[0] * v[i];
    step_once(&s);
    T_NEAR((float *)s.x.data, want, CELLS, 1e-7);
    free(memory);
    free(schedule);
}

/* After each step of either sampler: x - sigma v, of the sample and the velocity before it. */
static void a_step_tells_its_clean_sample(void **state)
{
    sl_schedule *schedule = malloc(sizeof *schedule);
    void *memory = aligned_alloc(256, sl_sampler_bytes(SHAPE));
    (void)state;
    for (int kind = 0; kind < SL_SAMPLER_COUNT; kind++) {
        float before[CELLS], v[CELLS], want[CELLS], got[CELLS], w[2];
        const sl_tensor *of[2];
        sl_sampler s;
        T_OK(sl_schedule_make(schedule, (sl_sampler_kind)kind, 6, 5, &err));
        sl_sampler_init(&s, schedule, memory, SHAPE);
        t_fill(s.x.data, CELLS, 8);
        for (int i = 0; i < 6; i++) {
            memcpy(before, s.x.data, sizeof before);
            model(v, before, schedule->timesteps[i]);
            step_once(&s);
            sl_sampler_clean(&s, of, w);
            for (int k = 0; k < CELLS; k++) {
                want[k] = before[k] - schedule->sigmas[i] * v[k];
                got[k] = w[0] * ((const float *)of[0]->data)[k];
                if (of[1]) got[k] += w[1] * ((const float *)of[1]->data)[k];
            }
            T_REL(got, want, CELLS, 1e-5);
        }
        T_REL((float *)s.x.data, got, CELLS, 1e-6); /* the last is the result */
    }
    free(memory);
    free(schedule);
}

/* What a spool file would hold: four tensors and three numbers. */
static void resumes_bit_for_bit(void **state)
{
    sl_schedule *schedule = malloc(sizeof *schedule);
    void *m1 = aligned_alloc(256, sl_sampler_bytes(SHAPE)),
         *m2 = aligned_alloc(256, sl_sampler_bytes(SHAPE));
    const size_t bytes = sizeof(float) * CELLS;
    (void)state;
    for (int kind = 0; kind < SL_SAMPLER_COUNT; kind++)
        for (int stop = 0; stop <= 9; stop++) {
            sl_sampler a, b;
            T_OK(sl_schedule_make(schedule, (sl_sampler_kind)kind, 9, 5, &err));
            sl_sampler_init(&a, schedule, m1, SHAPE);
            sl_sampler_init(&b, schedule, m2, SHAPE);
            /* so that what a start leaves unset is equal */
            memset(m1, 0, sl_sampler_bytes(SHAPE));
            t_fill(a.x.data, CELLS, 4);
            for (int i = 0; i < stop; i++) step_once(&a);
            b.step = a.step;
            b.last_order = a.last_order;
            b.history = a.history;
            memcpy(b.x.data, a.x.data, bytes);
            memcpy(b.last.data, a.last.data, bytes);
            memcpy(b.m0.data, a.m0.data, bytes);
            memcpy(b.m1.data, a.m1.data, bytes);
            for (int i = stop; i < 9; i++) step_once(&a), step_once(&b);
            assert_memory_equal(a.x.data, b.x.data, bytes);
        }
    free(m1);
    free(m2);
    free(schedule);
}

static void refuses_bad_settings(void **state)
{
    sl_schedule *s = malloc(sizeof *s);
    (void)state;
    T_CODE(sl_schedule_make(s, SL_SAMPLER_UNIPC, 0, 3, &err), SL_ARG);
    T_SAYS(err.msg, "sampler: 0 steps, want 1 to 1000");
    T_CODE(sl_schedule_make(s, SL_SAMPLER_EULER, 1001, 3, &err), SL_ARG);
    T_CODE(sl_schedule_make(s, SL_SAMPLER_UNIPC, 4, 0, &err), SL_ARG);
    T_SAYS(err.msg, "sampler: shift 0, want a number above 0");
    T_CODE(sl_schedule_make(s, SL_SAMPLER_UNIPC, 4, NAN, &err), SL_ARG);
    T_CODE(sl_schedule_make(s, SL_SAMPLER_UNIPC, 4, 1e9, &err), SL_ARG);
    T_SAYS(err.msg, "equal in float32");
    T_OK(sl_schedule_make(s, SL_SAMPLER_UNIPC, 1000, 16, &err));
    T_OK(sl_schedule_make(s, SL_SAMPLER_EULER, 1000, 16, &err));
    T_OK(sl_schedule_make(s, SL_SAMPLER_UNIPC, 1000, 0.5, &err));
    free(s);
}

static void refuses_a_step_too_many(void **state)
{
    sl_schedule *schedule = malloc(sizeof *schedule);
    void *memory = aligned_alloc(256, sl_sampler_bytes(SHAPE));
    sl_sampler s;
    (void)state;
    T_OK(sl_schedule_make(schedule, SL_SAMPLER_UNIPC, 2, 3, &err));
    sl_sampler_init(&s, schedule, memory, SHAPE);
    t_fill(s.x.data, CELLS, 5);
    step_once(&s);
    step_once(&s);
    sl_sampler_step(&ctx, &s, &s.x0);
    T_CODE(sl_ctx_error(&ctx, &err), SL_ARG);
    T_SAYS(err.msg, "sampler: step 3, the schedule has 2");
    free(memory);
    free(schedule);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unipc_tables_as_the_reference),
        cmocka_unit_test(euler_tables_as_the_reference),
        cmocka_unit_test(lightx2v_tables_as_the_reference),
        cmocka_unit_test(lightx2v_steps_as_the_reference),
        cmocka_unit_test(forty_steps_at_shift_3),
        cmocka_unit_test(unipc_paths_as_the_reference),
        cmocka_unit_test(euler_follows_a_straight_flow),
        cmocka_unit_test(one_step_gives_the_clean_sample),
        cmocka_unit_test(a_step_tells_its_clean_sample),
        cmocka_unit_test(resumes_bit_for_bit),
        cmocka_unit_test(refuses_bad_settings),
        cmocka_unit_test(refuses_a_step_too_many),
    };
    return cmocka_run_group_tests_name("unipc", tests, open_all, close_all);
}
