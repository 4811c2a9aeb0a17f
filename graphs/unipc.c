/* unipc.c - UniPC (order 2, bh2), flow-match Euler and LightX2V's steps as linear combinations of
 * a few tensors with scalars made here. */
#include "graphs/unipc.h"

#include <math.h>

#include "graphs/layers.h"

#define TRAIN_STEPS 1000

/* ---- tables ---- */

static double shifted(double sigma, double shift)
{
    return shift * sigma / (1 + (shift - 1) * sigma);
}

static void unipc_table(sl_schedule *t, double shift)
{
    /* numpy.linspace(1, 1/1000, N + 1) without its last */
    const double step = (1.0 / TRAIN_STEPS - 1) / t->steps;
    for (int i = 0; i < t->steps; i++) {
        double g = shifted(i * step + 1, shift);
        if (i == 0 && fabs(g - 1) < 1e-6) g -= 1e-6; /* keeps alpha off zero */
        t->timesteps[i] = trunc(g * TRAIN_STEPS);
        t->sigmas[i] = (float)g;
    }
}

/* The reference shifts twice: its constructor's table, in float32, gives the ends of a
 * range that is shifted once more. */
static void euler_table(sl_schedule *t, double shift)
{
    const float s = (float)shift, low = 1.0f / TRAIN_STEPS;
    const double first = s * 1.0f / (1 + (s - 1) * 1.0f), last = s * low / (1 + (s - 1) * low);
    const double from = first * TRAIN_STEPS,
                 step = t->steps > 1 ? (last * TRAIN_STEPS - from) / (t->steps - 1) : 0;
    for (int i = 0; i < t->steps; i++) {
        t->sigmas[i] = (float)shifted((i * step + from) / TRAIN_STEPS, shift);
        t->timesteps[i] = t->sigmas[i] * (float)TRAIN_STEPS;
    }
}

/* In float32, as both do; ComfyUI rounds the place in its table of 1000 down. */
static void lightx2v_table(sl_schedule *t, double shift)
{
    const float s = (float)shift;
    for (int i = 0; i < t->steps; i++) {
        const int left = TRAIN_STEPS - i * TRAIN_STEPS / t->steps;
        const float u = (float)left / TRAIN_STEPS;
        t->sigmas[i] = s * u / (1 + (s - 1) * u);
        t->timesteps[i] = t->sigmas[i] * (float)TRAIN_STEPS;
    }
}

sl_code sl_schedule_make(sl_schedule *out, sl_sampler_kind kind, int steps, double shift,
                         sl_err *err)
{
    if (steps < 1 || steps > SL_MAX_STEPS)
        return sl_fail(err, SL_ARG, "sampler: %d steps, want 1 to %d", steps, SL_MAX_STEPS);
    if (!(shift > 0) || !isfinite(shift))
        return sl_fail(err, SL_ARG, "sampler: shift %g, want a number above 0", shift);
    *out = (sl_schedule){.kind = kind, .steps = steps};
    if (kind == SL_SAMPLER_UNIPC) unipc_table(out, shift);
    else if (kind == SL_SAMPLER_EULER) euler_table(out, shift);
    else lightx2v_table(out, shift);
    for (int i = 0; i < steps; i++) /* sigmas[steps] is 0 */
        if (!(out->sigmas[i] > out->sigmas[i + 1]) || out->sigmas[i] > 1)
            return sl_fail(err, SL_ARG,
                           "sampler: with shift %g the noise levels of steps %d and %d of %d are "
                           "equal in float32",
                           shift, i + 1, i + 2, steps);
    return SL_OK;
}

/* ---- UniPC's scalars ---- */

/* Half the log signal-to-noise ratio, rounded to float32 as the reference's tables are;
 * +inf at sigma 0. */
static double lambda(float sigma)
{
    return logf(1 - sigma) - logf(sigma);
}

/* x_next = a[0] x + a[1] m0 + a[2] m1: from sigma s[1] to s[2], the step before started
 * at s[0] (order 2 only).
 *   h = lambda_2 - lambda_1         E  = expm1(-h)
 *   r = (lambda_0 - lambda_1) / h   D1 = (m1 - m0) / r
 *   x_next = s2/s1 x - alpha_2 E m0 - alpha_2 E D1 / 2 */
static void predictor(float a[3], const float s[3], int order)
{
    const double h = lambda(s[2]) - lambda(s[1]), e = expm1(-h), alpha = 1 - s[2];
    double d1 = 0;
    if (order == 2) {
        double r = (lambda(s[0]) - lambda(s[1])) / h;
        d1 = -alpha * e * 0.5 / r;
    }
    a[0] = (float)((double)s[2] / s[1]);
    a[1] = (float)(-alpha * e - d1);
    a[2] = (float)d1;
}

/* x = a[0] last + a[1] x0 + a[2] m0 + a[3] m1: the step from s[1] to s[2] again, now that
 * x0 at s[2] is known.
 *   x = s2/s1 last - alpha_2 E (m0 + rho0 D1 + rho1 (x0 - m0))
 *   rho0, rho1: the solution of the bh2 solver's 2 x 2 system */
static void corrector(float a[4], const float s[3], int order)
{
    const double h = lambda(s[2]) - lambda(s[1]), hh = -h, e = expm1(hh), alpha = 1 - s[2];
    double rho1 = 0.5, d1 = 0; /* d1 = rho0 / r */
    if (order == 2) {
        double r = (lambda(s[0]) - lambda(s[1])) / h;
        double k1 = e / hh - 1, b1 = k1 / e, k2 = k1 / hh - 0.5, b2 = 2 * k2 / e;
        double rho0 = (b1 - b2) / (1 - r);
        rho1 = b1 - rho0;
        d1 = rho0 / r;
    }
    a[0] = (float)((double)s[2] / s[1]);
    a[1] = (float)(-alpha * e * rho1);
    a[2] = (float)(-alpha * e * (1 - d1 - rho1));
    a[3] = (float)(-alpha * e * d1);
}

/* ---- state ---- */

static size_t lay_out(sl_sampler *s, void *memory, const int64_t shape[4])
{
    size_t at = 0;
    s->x = sl_carve(memory, &at, SL_F32, 4, shape);
    s->last = sl_carve(memory, &at, SL_F32, 4, shape);
    s->m0 = sl_carve(memory, &at, SL_F32, 4, shape);
    s->m1 = sl_carve(memory, &at, SL_F32, 4, shape);
    s->x0 = sl_carve(memory, &at, SL_F32, 4, shape);
    return at;
}

size_t sl_sampler_bytes(const int64_t shape[4])
{
    sl_sampler s;
    return lay_out(&s, NULL, shape);
}

void sl_sampler_init(sl_sampler *s, const sl_schedule *schedule, void *memory,
                     const int64_t shape[4])
{
    *s = (sl_sampler){.schedule = schedule};
    lay_out(s, memory, shape);
}

/* m1 <- m0 <- x0; the oldest becomes the scratch. The views move, not the data. */
static void push_history(sl_sampler *s)
{
    sl_tensor oldest = s->m1;
    s->m1 = s->m0;
    s->m0 = s->x0;
    s->x0 = oldest;
    if (s->history < 2) s->history++;
}

static void unipc_step(sl_ctx *ctx, sl_sampler *s, const sl_tensor *v)
{
    const int i = s->step, n = s->schedule->steps;
    const float *sigmas = s->schedule->sigmas;
    float a[4];
    /* from the sample as predicted, not as corrected */
    sl_flow_x0(ctx, &s->x0, &s->x, v, sigmas[i]);
    if (s->history) {
        corrector(a, (float[]){s->last_order == 2 ? sigmas[i - 2] : 0, sigmas[i - 1], sigmas[i]},
                  s->last_order);
        sl_lincomb(ctx, &s->x, s->last_order == 2 ? 4 : 3,
                   (const sl_tensor *[]){&s->last, &s->x0, &s->m0, &s->m1}, a);
    }
    push_history(s);
    sl_copy(ctx, &s->last, &s->x);

    int order = n - i < 2 || s->history < 2 ? 1 : 2; /* lower order at both ends */
    if (i == n - 1) {
        sl_copy(ctx, &s->x, &s->m0); /* to sigma 0: the clean sample itself */
    } else {
        predictor(a, (float[]){order == 2 ? sigmas[i - 1] : 0, sigmas[i], sigmas[i + 1]}, order);
        sl_lincomb(ctx, &s->x, order == 2 ? 3 : 2, (const sl_tensor *[]){&s->last, &s->m0, &s->m1},
                   a);
    }
    s->last_order = order;
}

/* x += (sigma_next - sigma) v, which is LightX2V's x0 = x - sigma v; x0 + sigma_next v. The latents
 * stay F32 where the reference casts them to v's dtype: the same in float32. */
static void euler_step(sl_ctx *ctx, sl_sampler *s, const sl_tensor *v)
{
    const float *sigma = &s->schedule->sigmas[s->step];
    sl_copy(ctx, &s->x0, v);
    sl_lincomb(ctx, &s->x, 2, (const sl_tensor *[]){&s->x, &s->x0},
               (float[]){1, sigma[1] - sigma[0]});
}

void sl_sampler_step(sl_ctx *ctx, sl_sampler *s, const sl_tensor *v)
{
    if (!sl_ok(ctx)) return;
    if (s->step >= s->schedule->steps) {
        sl_ctx_fail(ctx, SL_ARG, "sampler: step %d, the schedule has %d", s->step + 1,
                    s->schedule->steps);
        return;
    }
    if (s->schedule->kind == SL_SAMPLER_UNIPC) unipc_step(ctx, s, v);
    else euler_step(ctx, s, v);
    s->step++;
}

/* Euler's x0 has the step's v; x - sigma v is where v leads from the sample before the step, and
 * x_next - sigma_next v from the one after it: the same. */
void sl_sampler_clean(const sl_sampler *s, const sl_tensor *of[2], float w[2])
{
    const bool euler = s->schedule->kind != SL_SAMPLER_UNIPC;
    of[0] = euler ? &s->x : &s->m0;
    of[1] = euler ? &s->x0 : NULL;
    w[0] = 1;
    w[1] = euler ? -s->schedule->sigmas[s->step] : 0;
}
