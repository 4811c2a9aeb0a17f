/* check.c - complete and check every job before any work: what is wrong is said in one
 * line, and nothing has been touched. */
#include "stages/job/check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/minmax.h"
#include "common/picture.h"
#include "common/program.h"
#include "common/prompt.h"
#include "common/safetensors.h"
#include "common/taps.h"
#include "common/video_format.h"
#include "graphs/wan_dit.h"
#include "stages/job/components.h"
#include "stages/job/defaults.h"
#include "stages/job/files.h"
#include "stages/job/fork.h"
#include "stages/job/intake.h"
#include "stages/job/lora.h"
#include "stages/job/output.h"
#include "stages/job/piped.h"
#include "stages/job/precision.h"
#include "stages/job/replay.h"

static sl_code check_picture(const char *path, const char *option, int *w, int *h, sl_err *err)
{
    sl_picture p = {0};
    /* a picture is read twice: now, and when it is copied to the spool */
    sl_code rc = sl_regular_file(path, err);
    if (!rc) rc = sl_picture_read(&p, path, err);
    if (rc) return sl_context(err, rc, "%s", option);
    *w = p.w;
    *h = p.h;
    sl_picture_free(&p);
    return SL_OK;
}

static sl_code check_prompt(const char *text, const char *option, const sl_conf *conf, sl_err *err)
{
    char *clean = NULL;
    size_t n = strlen(text);
    if (n > (size_t)conf->limits.prompt_bytes)
        return sl_fail(err, SL_ARG, "%s has %zu bytes, want at most %d (limits.prompt_bytes)",
                       option, n, conf->limits.prompt_bytes);
    sl_code rc = sl_prompt_clean(&clean, text, n, err);
    free(clean);
    return rc ? sl_context(err, rc, "%s", option) : SL_OK;
}

static sl_code check_noise(const sl_job *s, const sl_model *model, sl_err *err)
{
    const sl_grid g = sl_job_grid(model, s);
    int64_t shape[4] = {model->dit[0].out_channels, g.latent_frames, g.latent_height,
                        g.latent_width};
    sl_st *st = NULL;
    sl_tensor t;
    sl_code rc = sl_regular_file(s->noise, err);
    if (!rc) rc = sl_st_open_file(&st, s->noise, err);
    if (!rc) rc = sl_st_want(st, "noise", SL_F32, 4, shape, &t, err);
    if (!rc) {
        int64_t at = sl_first_nonfinite(t.data, t.dtype, sl_count(&t));
        if (at >= 0)
            rc = sl_fail(err, SL_NUMERIC, "%s: noise has NaN or infinity at element %lld", s->noise,
                         (long long)at);
    }
    sl_st_close(&st);
    return rc ? sl_context(err, rc, "--noise") : SL_OK;
}

/* ---- a replay's hand-overs ---- */

/* A file of the dump must hold tensor `name` with this shape, in any float type, finite. */
static sl_code check_tensor(const sl_st *st, const char *name, int rank, const int64_t *shape,
                            sl_err *err)
{
    sl_tensor want = sl_view(NULL, SL_F32, rank, shape);
    const sl_st_entry *e = sl_st_find(st, name);
    char a[96], b[96];
    const char *path = sl_st_path(st, 0);
    if (!e)
        return sl_fail(err, SL_FORMAT, "%s: %s is missing, want %s", path, name,
                       sl_shape_text(&want, b, sizeof b));
    if (!e->t.rank || (e->t.dtype != SL_F32 && e->t.dtype != SL_F16 && e->t.dtype != SL_BF16))
        return sl_fail(err, SL_SHAPE, "%s: %s has dtype %s, want F32, F16 or BF16", path, name,
                       e->dtype);
    if (!sl_same_shape(&e->t, &want))
        return sl_fail(err, SL_SHAPE, "%s: %s has shape %s, want %s", path, name,
                       sl_shape_text(&e->t, a, sizeof a), sl_shape_text(&want, b, sizeof b));
    int64_t at = sl_first_nonfinite(e->t.data, e->t.dtype, sl_count(&e->t));
    if (at >= 0)
        return sl_fail(err, SL_NUMERIC, "%s: %s has NaN or infinity at element %lld", path, name,
                       (long long)at);
    return SL_OK;
}

/* The dump in DIR holds the tensors of this hand-over. */
static sl_code check_dumped(const char *dir, sl_handover h, const sl_model *model,
                            const sl_job *job, sl_err *err)
{
    const sl_grid grid = sl_job_grid(model, job);
    sl_tensor_spec t[SL_HANDOVER_TENSORS];
    int n = sl_handover_tensors(t, h, model, &grid, job);
    char file[64], path[SL_PATH];
    sl_st *st = NULL;
    snprintf(file, sizeof file, "%s.safetensors", SL_HANDOVER[h].file);
    sl_code rc = sl_path_join(path, dir, file, err);
    if (!rc) rc = sl_regular_file(path, err);
    if (!rc) rc = sl_st_open_file(&st, path, err);
    for (int i = 0; i < n && !rc; i++) rc = check_tensor(st, t[i].name, t[i].rank, t[i].shape, err);
    sl_st_close(&st);
    return rc ? sl_context(err, rc, "replay") : SL_OK;
}

static sl_code check_dumped_picture(const sl_request *j, bool given, const char *path,
                                    const char *name, const char *option, sl_err *err)
{
    char dumped[SL_PATH];
    int w, h;
    sl_code rc;
    if (!*path) return SL_OK;
    if (given) return check_picture(path, option, &w, &h, err);
    if ((rc = sl_path_join(dumped, j->replay_dir, name, err))) return rc;
    return check_picture(dumped, "replay", &w, &h, err);
}

/* The dump holds all that stages from --from on will read of it. */
static sl_code check_replay(sl_request *j, const char *from, const sl_model *model, sl_err *err)
{
    sl_job *s = &j->spec;
    const sl_role first = (sl_role)sl_role_by_name(from);
    bool image_again = first == SL_ROLE_IMAGE || j->again >> SL_ROLE_IMAGE & 1;
    sl_code rc = SL_OK;
    if (!sl_role_follows(SL_ROLE_DENOISE, first)) *s->noise = 0; /* the dump has the latents */
    for (int h = 0; h < sl_handover_count() && !rc; h++)
        if (sl_handover_applies(h, model, s) && sl_replay_needs(j, from, (sl_handover)h))
            rc = check_dumped(j->replay_dir, h, model, s, err);
    const bool pictured = sl_takes_picture(&model->family, s);
    if (!rc && image_again && pictured && !*s->image)
        rc = sl_fail(err, SL_ARG, "no picture: %s wants --image FILE", model->dir);
    if (!rc && image_again && pictured)
        rc = check_dumped_picture(j, j->has_image, s->image, "image.input", "--image", err);
    if (!rc && image_again && model->family.last_picture)
        rc = check_dumped_picture(j, j->has_last_image, s->last_image, "last_image.input",
                                  "--last-image", err);
    if (!rc && *s->noise) rc = check_noise(s, model, err);
    return rc;
}

/* ---- one job ---- */

/* Sampler, its steps, guidance and cache, which decide the denoiser's memory, where the user said
 * nothing. Who asks for a distilled model's sampler means its steps as well. */
static void complete_schedule(sl_request *j, const sl_model *model, const sl_conf *conf)
{
    sl_job *s = &j->spec;
    if (!j->has_sampler)
        snprintf(s->sampler, SL_PATH, "%s", sl_sampler_name(model->scheduler.kind));
    const bool distilled = sl_job_distilled(s);
    if (!j->has_shift) s->shift = distilled ? SL_DISTILLED_SHIFT : model->scheduler.flow_shift;
    if (!j->has_steps && distilled) s->steps = SL_DISTILLED_STEPS;
    if (!j->has_guidance && distilled) s->guidance = 1;
    if (!j->has_fbcache) s->fbcache = conf->fbcache.threshold;
    if (!j->has_precision) snprintf(s->precision, SL_PATH, "%s", conf->denoise.precision);
}

void sl_request_complete(sl_request *j, const sl_model *model, const sl_conf *conf)
{
    sl_job *s = &j->spec;
    complete_schedule(j, model, conf);
    if (!j->has_guidance_2) s->guidance_2 = s->guidance;
    if (!j->has_fps) s->fps = sl_default_fps(model, conf);
    if (!j->has_crf) s->crf = conf->video.crf;
    if (!j->has_fbcache_warmup) s->fbcache_warmup = conf->fbcache.warmup;
    if (!j->has_fbcache_max_hits) s->fbcache_max_hits = conf->fbcache.max_hits;
    if (!j->has_fbcache_final) s->fbcache_final = conf->fbcache.final;
}

/* Values of the checkpoint and the configuration, where the user said nothing. */
static sl_code complete(sl_request *j, const sl_model *model, const sl_conf *conf, sl_err *err)
{
    sl_job *s = &j->spec;
    char path[SL_PATH];
    sl_code rc;
    sl_request_complete(j, model, conf);
    if (!j->has_seed || j->random_seed) {
        uint32_t r;
        if (getrandom(&r, sizeof r, 0) != sizeof r)
            return sl_fail(err, SL_SYS, "no random seed to be had; give --seed");
        s->seed = r;
    }
    s->dump = *j->dump_dir != 0;
    if (*s->dump_blocks_of) {
        sl_taps which;
        s->dump_blocks = 1;
        if ((rc = sl_taps_parse(&which, s->dump_blocks_of, s->steps, model->dit[0].layers, err)))
            return sl_context(err, rc, "--dump-blocks-of");
    }
    if (s->dump && (rc = sl_absolute_path(path, j->dump_dir, err))) return rc;
    if (s->dump) memcpy(j->dump_dir, path, SL_PATH);
    if (!s->dump && (s->dump_steps || s->dump_blocks))
        return sl_fail(err, SL_ARG, "--dump-%s wants --dump DIR",
                       s->dump_steps ? "steps" : "blocks");
    int stream;
    if ((rc = sl_output_resolve(s->output, &stream, "output", err))) return rc;
    if ((j->streams = stream >= 0)) {
        j->stream = stream;
        snprintf(s->output, SL_PATH, "/dev/fd/%d", stream);
    }
    if (*s->preview && (rc = sl_output_resolve(s->preview, &stream, "preview", err))) return rc;
    if (*s->preview && stream >= 0)
        return sl_fail(err, SL_ARG, "preview is a stream, want a file: it is replaced every step");
    snprintf(s->model, SL_PATH, "%s", model->dir);
    return SL_OK;
}

static sl_code check_pictures(sl_request *j, const sl_model *model, sl_err *err)
{
    sl_job *s = &j->spec;
    int w = 0, h = 0, w2, h2;
    sl_code rc;
    /* check_replay looks at a replay's pictures */
    bool needed = sl_takes_picture(&model->family, s) && !*j->replay_dir;
    if (!model->family.picture && *s->image)
        return sl_fail(err, SL_ARG, "--image is given, but %s makes videos from text alone",
                       model->dir);
    if (!model->family.last_picture && *s->last_image)
        return sl_fail(
            err, SL_ARG,
            "--last-image is given, but %s takes a first picture only (FLF2V checkpoints take two)",
            model->dir);
    if (needed && !*s->image)
        return sl_fail(err, SL_ARG, "no picture: %s wants --image FILE", model->dir);
    if (needed && model->family.last_picture && !*s->last_image)
        return sl_fail(err, SL_ARG, "no last picture: %s wants --last-image FILE", model->dir);
    if (needed && (rc = check_picture(s->image, "--image", &w, &h, err))) return rc;
    if (needed && *s->last_image &&
        (rc = check_picture(s->last_image, "--last-image", &w2, &h2, err)))
        return rc;
    if ((rc = sl_request_check_size(j, err)) || s->width) return rc;
    if (!w) w = j->aspect_w ? j->aspect_w : 832, h = j->aspect_h ? j->aspect_h : 480;
    sl_picture_video_size(w, h, j->has_max_area ? j->max_area : SL_DEFAULT_AREA,
                          sl_edge(&model->family), &s->width, &s->height);
    s->bicubic = 1;
    if (s->width > SL_JOB_SIDE || s->height > SL_JOB_SIDE)
        return sl_fail(
            err, SL_ARG,
            "the picture has %dx%d pixels, and its aspect makes a video of %dx%d, want a "
            "side of at most %d: give --width and --height, or another picture",
            w, h, s->width, s->height, SL_JOB_SIDE);
    return SL_OK;
}

static sl_code check_preview(const sl_request *j, sl_err *err)
{
    const sl_job *s = &j->spec;
    const char *const others[] = {s->output, j->json, j->trace, s->image, s->last_image, s->noise},
                      *const what[] = {"output", "report", "trace", "input", "input", "input"};
    sl_code rc = sl_output_check(s->preview, "preview", err);
    for (int i = 0; i < 6 && !rc; i++)
        if (sl_same_file(s->preview, others[i]))
            rc = sl_fail(err, SL_ARG, "preview %s is also the %s", s->preview, what[i]);
    return rc;
}

/* The name says a format that can be written, at the job's rate. A mux of the user's own may write
 * what it likes; ours does not start without an encoder of H.264, so libavcodec is not loaded here
 * to ask for that one. */
static sl_code check_format(const sl_job *s, const sl_conf *conf, sl_err *err)
{
    const sl_conf_stage *mux = sl_conf_find(conf, SL_ROLE_MUX);
    const sl_video_format *f;
    const char *encoder;
    sl_code rc;
    if (!mux || strcmp(sl_path_last(mux->program), "sluice-mux") != 0) return SL_OK;
    if ((rc = sl_video_format_of(&f, s->output, err))) return rc;
    if (strcmp(f->encoders, SL_VIDEO_H264) && (rc = sl_video_encoder(&encoder, f, err)))
        return sl_context(err, rc, "output %s", s->output);
    if (s->fps <= f->fps_most) return SL_OK;
    return sl_fail(err, SL_ARG, "output %s: %g frames a second, want at most %d in .%s", s->output,
                   s->fps, f->fps_most, f->suffix);
}

/* What the job writes can be written, and is not one file with another thing of the job. */
static sl_code check_outputs(sl_request *j, const sl_conf *conf, sl_err *err)
{
    j->no_video = !sl_conf_find(conf, SL_ROLE_MUX);
    const sl_job *s = &j->spec;
    const char *const inputs[] = {s->image, s->last_image, s->noise};
    sl_code rc;
    if (!j->streams && !j->no_video && (rc = sl_output_check(s->output, "output", err))) return rc;
    for (int i = 0; i < 3; i++)
        if (sl_same_file(s->output, inputs[i]))
            return sl_fail(err, SL_ARG, "output %s is also the input %s", s->output, inputs[i]);
    if (!j->streams && (rc = check_format(s, conf, err))) return rc;
    if (*j->json && (rc = sl_can_write_file(j->json, "report", true, err))) return rc;
    if (sl_same_file(s->output, j->json))
        return sl_fail(err, SL_ARG, "output %s is also the report", s->output);
    if (*j->trace && (rc = sl_can_write_file(j->trace, "trace", true, err))) return rc;
    if (sl_same_file(s->output, j->trace) || sl_same_file(j->json, j->trace))
        return sl_fail(err, SL_ARG, "trace %s is also the %s", j->trace,
                       sl_same_file(s->output, j->trace) ? "output" : "report");
    if (*s->preview && (rc = check_preview(j, err))) return rc;
    if (*j->dump_dir && (rc = sl_can_make_dir(j->dump_dir, err)))
        return sl_context(err, SL_ARG, "--dump");
    return SL_OK;
}

/* A run from the stage `from` on ("": all of it) has work for this role. */
static bool computes(const char *from, sl_role role)
{
    return !*from || sl_role_follows(role, (sl_role)sl_role_by_name(from));
}

/* A team of a size that the configuration fixes can have the job. */
static sl_code check_team(const sl_job *s, const char *from, const sl_model *model,
                          const sl_conf *conf, sl_err *err)
{
    const sl_conf_stage *first = sl_conf_find(conf, SL_ROLE_DENOISE);
    if (!computes(from, SL_ROLE_DENOISE) || !sl_conf_teamed(conf, SL_ROLE_DENOISE) || !first->team)
        return SL_OK;
    return sl_team_check(model->dit[0].heads, sl_job_guided(s), first->team, err);
}

/* A replay has the dump's size, unless another is asked for: then the picture's aspect is asked
 * again, or what was said stands without a look at it. */
static sl_code renew_size(sl_request *j, sl_err *err)
{
    sl_job *s = &j->spec;
    char dumped[SL_PATH];
    sl_picture p = {.w = 832, .h = 480};
    const char *path = s->image;
    sl_code rc;
    if (j->has_width || j->has_height) s->bicubic = 0;
    if (!j->has_max_area || j->has_width || j->has_height) return SL_OK;
    if (*path && !j->has_image) {
        if ((rc = sl_path_join(dumped, j->replay_dir, "image.input", err))) return rc;
        path = dumped;
    }
    if (*path && (rc = sl_picture_read(&p, path, err))) return sl_context(err, rc, "replay");
    s->width = s->height = 0;
    j->aspect_w = p.w;
    j->aspect_h = p.h;
    sl_picture_free(&p);
    return SL_OK;
}

sl_code sl_request_check(sl_request *j, const char *from, const sl_model *model,
                         const sl_conf *conf, sl_err *err)
{
    sl_job *s = &j->spec;
    sl_code rc;
    if (!j->has_prompt)
        return sl_fail(err, SL_ARG, "no prompt: want --prompt TEXT (it may be empty)");
    if ((rc = check_prompt(s->prompt, "--prompt", conf, err)) ||
        (rc = check_prompt(s->negative, "--negative", conf, err)))
        return rc;
    if (*j->replay_dir &&
        ((rc = sl_replay_check_options(j, from, model, err)) || (rc = renew_size(j, err))))
        return rc;
    if ((rc = check_pictures(j, model, err)) || (rc = complete(j, model, conf, err)) ||
        (rc = sl_job_check_family(s, &model->family, err)) ||
        (rc = check_team(s, from, model, conf, err)) ||
        (rc = sl_request_check_precision(j, conf, err)))
        return rc;
    if (computes(from, SL_ROLE_DENOISE) &&
        (rc = sl_request_check_lora(j, model, conf->model.random, err)))
        return rc;
    const sl_grid g = sl_job_grid(model, s);
    int rope = model->dit[0].rope_max;
    if (g.token_width > rope || g.token_height > rope || g.latent_frames > rope)
        return sl_fail(
            err, SL_ARG,
            "size %dx%d x %d frames has an axis of more than %d tokens (rope_max_seq_len)",
            s->width, s->height, s->frames, rope);
    if (*j->replay_dir &&
        ((rc = sl_fork_check(j, from, model, err)) || (rc = check_replay(j, from, model, err))))
        return rc;
    if (*j->replay_dir) j->from_dump = sl_replay_taken(j, from);
    if (*s->noise && !*j->replay_dir && (rc = check_noise(s, model, err))) return rc;
    return check_outputs(j, conf, err);
}

/* Without a configuration file: as large as the jobs. */
static void fit_limits(const sl_batch *b, sl_conf *conf)
{
    const sl_job *base = &b->base.spec;
    /* of a stream nobody knows them: the settings' own, or what the command line asks for */
    if (b->jobs_stream && !*b->conf) {
        const int64_t area = sl_larger((int64_t)base->width * base->height, b->base.max_area);
        conf->limits.pixels = sl_larger(conf->limits.pixels, area);
        if (base->frames > conf->limits.frames) conf->limits.frames = base->frames;
    }
    for (int i = 0; i < b->job_count && !*b->conf; i++) {
        const sl_job *s = &b->jobs[i].spec;
        const int64_t pixels = (int64_t)s->width * s->height;
        if (!i || pixels > conf->limits.pixels) conf->limits.pixels = pixels;
        if (!i || s->frames > conf->limits.frames) conf->limits.frames = s->frames;
    }
}

sl_code sl_request_check_limits(const sl_request *r, const sl_conf *conf, const char *where,
                                sl_err *err)
{
    const sl_job *s = &r->spec;
    const int64_t pixels = (int64_t)s->width * s->height;
    if (pixels > conf->limits.pixels)
        return sl_fail(err, SL_ARG,
                       "size %dx%d has %lld pixels, want at most %lld (limits.pixels%s)", s->width,
                       s->height, (long long)pixels, (long long)conf->limits.pixels, where);
    if (s->frames > conf->limits.frames)
        return sl_fail(err, SL_ARG, "frames is %d, want at most %d (limits.frames%s)", s->frames,
                       conf->limits.frames, where);
    return SL_OK;
}

static sl_code check_limits(const sl_batch *b, sl_conf *conf, sl_err *err)
{
    const bool fixed = *b->conf != 0;
    char where[SL_PATH + 8];
    sl_code rc;
    snprintf(where, sizeof where, " in %s", b->conf);
    if (b->job_count > conf->limits.jobs) {
        if (fixed)
            return sl_fail(err, SL_ARG, "%d jobs, want at most %d (limits.jobs in %s)",
                           b->job_count, conf->limits.jobs, b->conf);
        conf->limits.jobs = b->job_count;
    }
    for (int i = 0; i < b->job_count && fixed; i++)
        if ((rc = sl_request_check_limits(&b->jobs[i], conf, where, err))) return rc;
    fit_limits(b, conf);
    return SL_OK;
}

/* Jobs from `first` on write no file that another one writes. */
static sl_code same_outputs(const sl_batch *b, int first, sl_err *err)
{
    const char *name = sl_batch_jobs_name(b);
    for (int i = first; i < b->job_count; i++)
        for (int k = 0; k < i; k++)
            if (!b->jobs[i].no_video &&
                sl_same_file(b->jobs[i].spec.output, b->jobs[k].spec.output))
                return sl_fail(err, SL_ARG, "%s:%d: output %s is also the output of line %d", name,
                               b->jobs[i].line, b->jobs[i].spec.output, b->jobs[k].line);
            else if (*b->jobs[i].dump_dir &&
                     (sl_same_file(b->jobs[i].dump_dir, b->jobs[k].dump_dir) ||
                      !strcmp(b->jobs[i].dump_dir, b->jobs[k].dump_dir)))
                return sl_fail(err, SL_ARG,
                               "%s:%d: --dump %s is also the dump of line %d, want a folder a job",
                               name, b->jobs[i].line, b->jobs[i].dump_dir, b->jobs[k].line);
    return SL_OK;
}

/* Every program that the configuration names can be started. */
static sl_code check_programs(const sl_conf *conf, sl_err *err)
{
    char dir[SL_PATH];
    sl_program p;
    sl_code rc = sl_program_dir(dir, err);
    for (int i = 0; i < conf->stage_count && !rc; i++) {
        const sl_conf_stage *st = &conf->stages[i];
        const char *what = sl_role_is_filter(st->role) ? "filter" : "stage";
        if ((rc = sl_program_find(&p, st->program, dir, err)) ||
            (rc = sl_regular_file(p.path, err)))
            sl_context(err, rc = SL_ARG, "%s %s: program", what, sl_role_name(st->role));
        else if (access(p.path, X_OK))
            rc = sl_fail(err, SL_ARG, "%s %s: program %s is not executable", what,
                         sl_role_name(st->role), p.path);
    }
    return rc;
}

/* The checkpoint's sluice.json beneath every job; a replay's jobs are complete without it. */
static sl_code use_defaults(sl_batch *b, const sl_model *model, const sl_conf *conf, sl_err *err)
{
    sl_request d;
    sl_code rc;
    if (*b->replay_dir) return SL_OK;
    rc = sl_request_read_defaults(&d, model->dir, err);
    if (!rc && d.has_negative && (rc = check_prompt(d.spec.negative, "negative", conf, err)))
        sl_context(err, rc, "%s/" SL_MODEL_DEFAULTS, model->dir);
    for (int i = 0; i < b->job_count && !rc; i++)
        rc = sl_request_apply_defaults(&b->jobs[i], &d, err);
    sl_job_free(&d.spec);
    return rc;
}

/* With random weights a checkpoint is configurations and, for the text, a tokenizer. */
static sl_code check_checkpoint(const sl_model *model, const sl_conf *conf, sl_err *err)
{
    if (!conf->model.random) return sl_components_check(model, err);
    if (!sl_conf_find(conf, SL_ROLE_TEXT)) return SL_OK;
    return sl_components_check_tokenizer(model, err);
}

/* The command line's files go before the configuration's; relative to this folder. */
static sl_code merge_files(const sl_batch *b, sl_conf *conf, const char *dir, sl_err *err)
{
    sl_model_files *to = &conf->model.files;
    char path[SL_PATH];
    sl_code rc;
    for (int i = 0; i <= SL_PART_COUNT; i++) {
        const bool part = i < SL_PART_COUNT;
        const char *own = part ? b->files.part[i] : b->files.tokenizer;
        char *at = part ? to->part[i] : to->tokenizer;
        if (!*own && !*at) continue;
        if ((rc = sl_absolute_path(path, *own ? own : at, err))) return rc;
        memcpy(at, path, SL_PATH);
    }
    if (!*dir && !*to->part[SL_PART_DIT])
        return sl_fail(err, SL_ARG, "no checkpoint: want --model DIR");
    return SL_OK;
}

/* Open what dir and conf name; then conf names a file that dir was, so that stages find it, and the
 * precision. */
static sl_code open_model(const sl_batch *b, sl_model *model, sl_conf *conf, const char *dir,
                          sl_err *err)
{
    char absolute[SL_PATH] = "";
    sl_code rc;
    if ((*dir && (rc = sl_absolute_path(absolute, dir, err))) ||
        (rc = sl_model_open_files(model, absolute, &conf->model.files, err)))
        return rc;
    for (int i = 0; i < SL_PART_COUNT; i++)
        if (model->layout.parts[i].named)
            memcpy(conf->model.files.part[i], model->layout.parts[i].path, SL_PATH);
    if ((rc = sl_batch_use_precision(b, conf, model, err))) return rc;
    return sl_precision_check_devices(conf, &b->gpus, err);
}

/* A replay runs the stages from --from on and those that a fork asks for again, and no others are
 * started; `sluice stage` runs one crew, an instance of each. */
static void keep_stages(const sl_batch *b, sl_conf *conf)
{
    int n = 0;
    unsigned again = 0;
    for (int i = 0; i < b->job_count; i++) again |= b->jobs[i].again;
    for (int i = 0; i < conf->stage_count; i++) {
        const sl_conf_stage *st = &conf->stages[i];
        const bool alone =
            !*b->stage || (!st->instance &&
                           sl_crew_of(st->role) == sl_crew_of((sl_role)sl_role_by_name(b->stage)));
        if (alone && (computes(b->from, st->role) || again >> st->role & 1))
            conf->stages[n++] = *st;
        else if (sl_role_is_filter(st->role))
            conf->filters[st->role - SL_ROLE_COUNT].runs = 0; /* what it made stays in its place */
    }
    conf->stage_count = n;
}

/* The pipeline's filters are known: is --from one of its stages, and which filters before it have
 * to run for these jobs? */
static sl_code use_filters(sl_batch *b, sl_err *err)
{
    sl_code rc;
    if (!*b->from && !*b->replay_dir) return SL_OK;
    if ((rc = sl_replay_check_from(b->from, err))) return rc;
    for (int i = 0; i < b->job_count; i++)
        b->jobs[i].again = sl_replay_filters(&b->jobs[i], b->from);
    return SL_OK;
}

/* What a job's folder holds was made by the filters that its job.json names. */
static sl_code check_filters(const sl_job *s, sl_err *err)
{
    char own[SL_FILTERS_TEXT];
    if (!strcmp(s->filters, sl_pipeline_text(own))) return SL_OK;
    return sl_fail(
        err, SL_ARG,
        "job of %.300s began with filters \"%.300s\", the configuration has \"%.300s\": want "
        "the same",
        s->output, s->filters, own);
}

sl_code sl_batch_open(sl_batch *b, sl_model *model, sl_conf *conf, sl_err *err)
{
    const char *dir = b->base.spec.model;
    sl_code rc;
    if (b->job_count) dir = b->jobs[0].spec.model;
    sl_conf_defaults(conf);
    if (*b->conf && (rc = sl_conf_read_file(conf, b->conf, err))) return rc;
    sl_conf_use(conf);
    if ((rc = use_filters(b, err))) return rc;
    if (*b->log && !sl_log_level_parse(b->log, &conf->run.log))
        return sl_fail(err, SL_ARG, "--log is \"%s\", want error, warn, info or debug", b->log);
    if (*b->results && strcmp(b->results, "-") != 0 &&
        (rc = sl_can_write_file(b->results, "results", true, err)))
        return rc;
    if (*b->wire && (rc = sl_can_write_file(b->wire, "wire", true, err))) return rc;
    if ((rc = sl_conf_use_device(conf, b->device, err))) return rc;
    keep_stages(b, conf);
    if ((rc = sl_gpus_ask(&b->gpus, conf, err)) || (rc = check_programs(conf, err))) return rc;
    if (*conf->run.dir && (rc = sl_can_make_dir(conf->run.dir, err)))
        return sl_context(err, SL_ARG, "run.dir");
    if (*conf->run.spool && (rc = sl_can_make_dir(conf->run.spool, err)))
        return sl_context(err, SL_ARG, "run.spool");
    if ((rc = merge_files(b, conf, dir, err))) return rc;
    for (int i = 0; i < b->job_count; i++)
        if (strcmp(b->jobs[i].spec.model, dir))
            return sl_fail(err, SL_ARG,
                           "line %d of %s wants model %s, the run has %s: one checkpoint a run",
                           b->jobs[i].line, b->jobs_file, b->jobs[i].spec.model, dir);
    if ((rc = open_model(b, model, conf, dir, err)) || (rc = check_checkpoint(model, conf, err)))
        return rc;
    return SL_OK;
}

sl_code sl_batch_check(sl_batch *b, sl_model *model, sl_conf *conf, sl_err *err)
{
    sl_code rc = sl_batch_open(b, model, conf, err);
    if (rc || (rc = use_defaults(b, model, conf, err)) || (rc = sl_batch_take_pipes(b, err)))
        return rc;
    for (int i = 0; i < b->job_count; i++)
        if ((rc = sl_request_check(&b->jobs[i], b->from, model, conf, err)))
            return b->jobs[i].line ? sl_context(err, rc, "%s:%d", b->jobs_file, b->jobs[i].line)
                                   : rc;
    if (*b->base.json && b->job_count > 1 &&
        (rc = sl_can_write_file(b->base.json, "report", true, err)))
        return rc;
    if (*b->base.trace && b->job_count > 1 &&
        (rc = sl_can_write_file(b->base.trace, "trace", true, err)))
        return rc;
    if ((rc = same_outputs(b, 0, err))) return rc;
    return check_limits(b, conf, err);
}

sl_code sl_batch_check_again(sl_batch *b, sl_model *model, sl_conf *conf, sl_err *err)
{
    sl_code rc = sl_batch_open(b, model, conf, err);
    for (int i = 0; i < b->job_count && !rc; i++)
        if (!(rc = check_filters(&b->jobs[i].spec, err)) &&
            !(rc = sl_job_check_family(&b->jobs[i].spec, &model->family, err)))
            if (!(rc = check_team(&b->jobs[i].spec, b->from, model, conf, err)))
                rc = sl_request_check_precision(&b->jobs[i], conf, err);
    return rc ? rc : check_limits(b, conf, err);
}

static sl_code check_last(sl_batch *b, const sl_model *model, const sl_conf *conf, sl_err *err)
{
    sl_batch last = sl_batch_last(b);
    sl_request *r = last.jobs;
    char where[SL_PATH + 8];
    sl_code rc;
    snprintf(where, sizeof where, *b->conf ? " in %s" : "", b->conf);
    if (strcmp(r->spec.model, b->base.spec.model))
        return sl_fail(err, SL_ARG, "model %s, the run has %s: one checkpoint a run", r->spec.model,
                       b->base.spec.model);
    if (!strcmp(b->jobs_file, "-") &&
        (!strcmp(r->spec.image, "-") || !strcmp(r->spec.last_image, "-") ||
         !strcmp(r->spec.noise, "-")))
        return sl_fail(err, SL_ARG,
                       "standard input has the jobs, want a file for what a job takes");
    if ((rc = use_filters(&last, err)) || (rc = use_defaults(&last, model, conf, err)) ||
        (rc = sl_batch_take_pipes(&last, err)) ||
        (rc = sl_request_check(r, b->from, model, conf, err)))
        return rc;
    return sl_request_check_limits(r, conf, where, err);
}

sl_code sl_batch_check_last(sl_batch *b, const sl_model *model, const sl_conf *conf, sl_err *err)
{
    sl_code rc = check_last(b, model, conf, err);
    const char *name = sl_batch_jobs_name(b);
    if (rc) return sl_context(err, rc, "%s:%d", name, b->jobs[b->job_count - 1].line);
    return same_outputs(b, b->job_count - 1, err);
}

/* ---- for a plan ---- */

/* A picture's aspect decides where no size is given, as in a run. */
static sl_code complete_size(sl_request *j, const sl_model *model, sl_err *err)
{
    sl_job *s = &j->spec;
    sl_picture p = {.w = 832, .h = 480};
    sl_code rc = SL_OK;
    if ((rc = sl_request_check_size(j, err)) || s->width) return rc;
    if (*s->image && (rc = sl_picture_read(&p, s->image, err)))
        return sl_context(err, rc, "--image");
    sl_picture_video_size(p.w, p.h, j->has_max_area ? j->max_area : SL_DEFAULT_AREA,
                          sl_edge(&model->family), &s->width, &s->height);
    if (*s->image) sl_picture_free(&p);
    return SL_OK;
}

sl_code sl_batch_complete(sl_batch *b, sl_model *model, sl_conf *conf, sl_err *err)
{
    const char *dir = b->base.spec.model;
    sl_err absent = {0};
    sl_code rc;
    if (!b->job_count)
        return sl_fail(err, SL_ARG, "a plan wants a jobs file, %s is a stream", b->jobs_file);
    dir = b->jobs[0].spec.model;
    sl_conf_defaults(conf);
    if (*b->conf && (rc = sl_conf_read_file(conf, b->conf, err))) return rc;
    sl_conf_use(conf);
    if ((rc = use_filters(b, err)) || (rc = sl_conf_use_device(conf, b->device, err))) return rc;
    /* a plan may be for another machine: GPUs that are not here are no error */
    if (sl_gpus_ask(&b->gpus, conf, &absent)) memset(&b->gpus, 0, sizeof b->gpus);
    if ((rc = merge_files(b, conf, dir, err)) || (rc = open_model(b, model, conf, dir, err)) ||
        (rc = use_defaults(b, model, conf, err)) || (rc = sl_batch_take_pipes(b, err)))
        return rc;
    for (int i = 0; i < b->job_count; i++) {
        sl_request *j = &b->jobs[i];
        if ((rc = complete_size(j, model, err))) return rc;
        complete_schedule(j, model, conf);
        /* a run will want a last picture */
        if (model->family.last_picture && !*j->spec.last_image)
            snprintf(j->spec.last_image, SL_PATH, "?");
        if ((rc = sl_job_check_family(&j->spec, &model->family, err)) ||
            (rc = check_team(&j->spec, b->from, model, conf, err)) ||
            (rc = sl_request_check_precision(j, conf, err)))
            return j->line ? sl_context(err, rc, "%s:%d", b->jobs_file, j->line) : rc;
    }
    fit_limits(b, conf);
    return SL_OK;
}
