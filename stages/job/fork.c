/* fork.c - a replay that begins in the middle of the denoising. */
#include "stages/job/fork.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/pipeline.h"
#include "common/safetensors.h"
#include "common/state.h"
#include "graphs/unipc.h"
#include "stages/job/options.h"
#include "stages/job/replay.h"

/* A dump without guidance has no uncond. */
static bool lacks_uncond(const sl_request *r)
{
    char path[SL_PATH];
    sl_st *st = NULL;
    if (!sl_job_guided(&r->spec) || sl_path_join(path, r->replay_dir, "text.safetensors", NULL) ||
        sl_st_open_file(&st, path, NULL))
        return false;
    const bool lacks = !sl_st_find(st, "uncond");
    sl_st_close(&st);
    return lacks;
}

static void name_state(sl_request *r, int step)
{
    r->spec.fork = step;
    snprintf(r->fork_file, sizeof r->fork_file, "state.%d.safetensors", step);
}

void sl_fork_note(sl_request *r, int step)
{
    if (step) name_state(r, step);
    else if (r->spec.fork) snprintf(r->fork_file, sizeof r->fork_file, "%s", SL_FORK_FILE);
    if (!r->spec.fork) return;
    r->again = sl_replay_again(r);
    if (lacks_uncond(r)) r->again |= 1u << SL_ROLE_TEXT;
}

/* Something is asked for that changes what the denoiser computes. */
static bool is_changed(const sl_request *r, const sl_model *model)
{
    static const char *const BESIDE[] = {"dump-steps", "dump-blocks", "dump-blocks-of", "preview"};
    const sl_option *o;
    for (int i = 0; (o = sl_option_at(i)); i++) {
        bool beside = false;
        for (size_t k = 0; k < sizeof BESIDE / sizeof *BESIDE; k++)
            beside = beside || !strcmp(o->name, BESIDE[k]);
        const sl_role role = sl_replay_role(o->name, model, &r->spec);
        if (r->given >> i & 1 && !beside &&
            (role == SL_ROLE_TEXT || role == SL_ROLE_IMAGE || role == SL_ROLE_DENOISE))
            return true;
    }
    return false;
}

/* What the state was made under, and belongs to. */
static sl_code check_options(const sl_request *r, sl_err *err)
{
    static const char *const FIXED[] = {"steps", "shift",  "seed",     "noise",
                                        "width", "height", "max-area", "frames"};
    for (size_t i = 0; i < sizeof FIXED / sizeof *FIXED; i++)
        if (sl_request_given(r, FIXED[i]))
            return sl_fail(err, SL_ARG,
                           "--%s is given, but a fork keeps the dump's: want guidance, prompt, "
                           "picture, sampler, LoRA or cache",
                           FIXED[i]);
    return SL_OK;
}

/* The state of the file is one of this job's; level: of its step. */
static sl_code read_state(const sl_request *r, const sl_model *model, int64_t level[SL_LEVEL_COUNT],
                          sl_err *err)
{
    static const char *const NAMES[] = {"x", "last", "m0", "m1"};
    const sl_grid g = sl_job_grid(model, &r->spec);
    const int64_t shape[] = {model->dit[0].out_channels, g.latent_frames, g.latent_height,
                             g.latent_width};
    char path[SL_PATH];
    int64_t meta[SL_META_COUNT];
    sl_st *st = NULL;
    sl_tensor t;
    sl_code rc = sl_path_join(path, r->replay_dir, r->fork_file, err);
    if (!rc && access(path, F_OK))
        return sl_fail(err, SL_ARG, "--step %d: %.300s has no %s, want a dump with --dump-steps",
                       r->spec.fork, r->replay_dir, r->fork_file);
    if (!rc) rc = sl_st_open_file(&st, path, err);
    for (int i = 0; i < 4 && !rc; i++) rc = sl_st_want(st, NAMES[i], SL_F32, 4, shape, &t, err);
    if (!rc && !(rc = sl_st_want(st, "meta", SL_I64, 1, (int64_t[]){SL_META_COUNT}, &t, err)))
        memcpy(meta, t.data, sizeof meta);
    if (!rc && !(rc = sl_st_want(st, "level", SL_I64, 1, (int64_t[]){SL_LEVEL_COUNT}, &t, err)))
        memcpy(level, t.data, SL_LEVEL_COUNT * sizeof *level);
    if (!rc && meta[SL_META_STEP] != r->spec.fork)
        rc = sl_fail(err, SL_FORMAT, "%s is of step %lld, want %d", path,
                     (long long)meta[SL_META_STEP], r->spec.fork);
    sl_st_close(&st);
    return rc;
}

/* From the state's noise the sampler can go down to its own next one. */
static sl_code check_level(const sl_request *r, const int64_t level[SL_LEVEL_COUNT], sl_err *err)
{
    const sl_job *s = &r->spec;
    const uint32_t bits = (uint32_t)level[SL_LEVEL_SIGMA];
    sl_schedule schedule;
    float sigma;
    sl_code rc = sl_schedule_make(&schedule, (sl_sampler_kind)sl_sampler_by_name(s->sampler),
                                  s->steps, s->shift, err);
    memcpy(&sigma, &bits, sizeof sigma);
    if (rc || (sigma > schedule.sigmas[s->fork + 1] && sigma <= 1)) return rc;
    return sl_fail(err, SL_ARG,
                   "--step %d: the dump has sigma %g there, and %s goes on at %g, want it below",
                   s->fork, (double)sigma, s->sampler, (double)schedule.sigmas[s->fork + 1]);
}

sl_code sl_fork_check(sl_request *r, const char *from, const sl_model *model, sl_err *err)
{
    int64_t level[SL_LEVEL_COUNT] = {0};
    sl_code rc;
    if (!r->spec.fork) return SL_OK;
    if (strcmp(from, sl_role_name(SL_ROLE_DENOISE))) {
        if (strcmp(r->fork_file, SL_FORK_FILE))
            return sl_fail(err, SL_ARG, "--step is given, but --from is %s, want --from denoise",
                           from);
        if (sl_role_follows(SL_ROLE_DENOISE, (sl_role)sl_role_by_name(from)))
            r->spec.fork = 0; /* all of it is made anew */
        r->again = 0;
        return SL_OK;
    }
    if (r->spec.fork < 1 || r->spec.fork >= r->spec.steps)
        return sl_fail(err, SL_ARG, "--step is %d, want 1 to %d: the dump has %d steps",
                       r->spec.fork, r->spec.steps - 1, r->spec.steps);
    if ((rc = check_options(r, err)) || (rc = read_state(r, model, level, err))) return rc;
    while (!level[SL_LEVEL_COMPUTED] && !is_changed(r, model)) {
        if (r->spec.fork == 1) { /* step 0 always computes */
            r->spec.fork = 0;
            return SL_OK;
        }
        name_state(r, r->spec.fork - 1);
        if ((rc = read_state(r, model, level, err))) return rc;
    }
    return check_level(r, level, err);
}
