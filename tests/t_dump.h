/* t_dump.h - what `sluice run --dump` left, beside what the reference computed. */
#ifndef T_DUMP_H
#define T_DUMP_H

#include "tests/t_net.h"
#include "tests/t_run.h"

/* Relative L2 of a layer, and of the latents after a step: float32 against float32 in another order
 * of summation. */
#define T_LAYER_TOL 1e-4
#define T_STEP_TOL 5e-4

static inline sl_st *t_open_st(const char *path)
{
    sl_st *st = NULL;
    sl_err err = {0};
    T_OK(sl_st_open_file(&st, path, &err));
    return st;
}

/* Relative L2 of got's tensor `name` to want's `as`. */
static inline double t_distance(const sl_st *got, const char *name, const sl_st *want,
                                const char *as)
{
    const sl_st_entry *g = sl_st_find(got, name);
    if (!g) fail_msg("the dump has no %s", name);
    const int64_t n = sl_count(&g->t);
    return t_rel_l2(g->t.data, t_floats(want, n, "%s", as), n);
}

/* Two files hold the same tensors, bit for bit; their headers may say of which jobs. */
static inline bool t_same_tensors(const char *a, const char *b)
{
    sl_st *x = t_open_st(a), *y = t_open_st(b);
    bool same = sl_st_size(x) == sl_st_size(y);
    for (int i = 0; i < sl_st_size(x) && same; i++) {
        const sl_st_entry *e = sl_st_at(x, i), *f = sl_st_find(y, e->name);
        same = f && e->t.dtype == f->t.dtype && sl_same_shape(&e->t, &f->t) &&
               !memcmp(e->t.data, f->t.data, sl_bytes(&e->t));
    }
    sl_st_close(&x);
    sl_st_close(&y);
    return same;
}

/* SL_SHOW=1 prints each distance. */
static inline void t_near(const char *job, const char *what, double e, double tol)
{
    if (getenv("SL_SHOW")) printf("%s: %s %.3g\n", job, what, e);
    if (!(e <= tol)) fail_msg("%s: %s is off: relative L2 %.3g, want <= %g", job, what, e, tol);
}

/* The first blocks and steps of the dump in `folder` are what the golden file has under `set`. */
static inline void t_as_reference(const char *job, const char *folder, const sl_st *want,
                                  const char *set, int blocks, int steps)
{
    char dir[1024]; /* folder may be one of t_format's */
    snprintf(dir, sizeof dir, "%s", folder);
    for (int k = 0; k < blocks; k++) {
        sl_st *block = t_open_st(t_format("%s/blocks/block.%d.safetensors", dir, k));
        t_near(
            job, t_format("block.%d", k),
            t_distance(block, t_format("block.%d", k), want, t_format("%s.dit.block.%d", set, k)),
            T_LAYER_TOL);
        sl_st_close(&block);
    }
    sl_st *got = t_open_st(t_format("%s/denoise.safetensors", dir));
    for (int k = 0; k < steps; k++)
        t_near(job, t_format("step.%d.latents", k),
               t_distance(got, t_format("step.%d.latents", k), want,
                          t_format("%s.step.%d.latents", set, k)),
               T_STEP_TOL);
    sl_st_close(&got);
}

#endif
