/* check.c - complete and check every job before any work: what is wrong is said in one line, and nothing has been touched. */
#include "stages/cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/picture.h"
#include "common/safetensors.h"
#include "stages/text/prompt.h"

#define DEFAULT_AREA (832 * 480)    /* the reference pipeline's own default size */

/* Can this file be made? Its folder must exist and take a new file; the file itself may exist. */
static sl_code check_writable(const char *path, const char *what, sl_err *err)
{
    char probe[SL_PATH + 16];
    struct stat st;
    if (!stat(path, &st) && S_ISDIR(st.st_mode)) return sl_fail(err, SL_ARG, "%s %s is a directory, want a file", what, path);
    snprintf(probe, sizeof probe, "%s.probe%d", path, (int)getpid());
    int fd = open(probe, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return sl_fail(err, SL_ARG, "%s %s cannot be written: %s", what, path, strerror(errno));
    close(fd);
    unlink(probe);
    return SL_OK;
}

static sl_code check_picture(const char *path, const char *option, int *w, int *h, sl_err *err)
{
    sl_picture p = {0};
    sl_code rc = sl_picture_read(&p, path, err);
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
    if (n > (size_t)conf->limits.prompt_bytes) return sl_fail(err, SL_ARG, "%s has %zu bytes, want at most %d (limits.prompt_bytes)", option, n, conf->limits.prompt_bytes);
    sl_code rc = sl_prompt_clean(&clean, text, n, err);
    free(clean);
    return rc ? sl_context(err, rc, "%s", option) : SL_OK;
}

static sl_code check_noise(const sl_job *s, const sl_model *model, sl_err *err)
{
    int64_t shape[4] = {model->dit[0].out_channels, sl_job_latent_frames(s), s->height / 8, s->width / 8};
    sl_st *st = NULL;
    sl_tensor t;
    sl_code rc = sl_st_open_file(&st, s->noise, err);
    if (!rc) rc = sl_st_want(st, "noise", SL_F32, 4, shape, &t, err);
    if (!rc) {
        int64_t at = sl_first_nonfinite(t.data, t.dtype, sl_count(&t));
        if (at >= 0) rc = sl_fail(err, SL_NUMERIC, "%s: noise has NaN or infinity at element %lld", s->noise, (long long)at);
    }
    sl_st_close(&st);
    return rc ? sl_context(err, rc, "--noise") : SL_OK;
}

/* What the checkpoint and the configuration say where the user said nothing. */
static sl_code complete(cli_job *j, const sl_model *model, const sl_conf *conf, sl_err *err)
{
    sl_job *s = &j->spec;
    char path[SL_PATH];
    sl_code rc;
    if (!j->has_shift) s->shift = model->scheduler.flow_shift;
    if (!j->has_sampler) snprintf(s->sampler, SL_PATH, "%s", model->scheduler.kind == SL_SAMPLER_EULER ? "euler" : "unipc");
    if (!j->has_guidance_2) s->guidance_2 = s->guidance;
    if (!j->has_fps) s->fps = conf->video.fps;
    if (!j->has_crf) s->crf = conf->video.crf;
    if (!j->has_fbcache) s->fbcache = conf->fbcache.threshold;
    if (!s->fbcache_warmup) s->fbcache_warmup = conf->fbcache.warmup;
    if (!s->fbcache_max_hits) s->fbcache_max_hits = conf->fbcache.max_hits;
    if (!s->fbcache_final) s->fbcache_final = conf->fbcache.final;
    if (!j->has_seed) {
        uint32_t r;
        if (getrandom(&r, sizeof r, 0) != sizeof r) return sl_fail(err, SL_SYS, "no random seed to be had; give --seed");
        s->seed = r;
    }
    s->dump = *j->dump_dir != 0;
    if (!s->dump && (s->dump_steps || s->dump_blocks)) return sl_fail(err, SL_ARG, "--dump-%s wants --dump DIR", s->dump_steps ? "steps" : "blocks");
    if ((rc = absolute_path(path, s->output, err))) return rc;
    memcpy(s->output, path, SL_PATH);
    snprintf(s->model, SL_PATH, "%s", model->dir);
    return SL_OK;
}

static sl_code check_pictures(cli_job *j, const sl_model *model, sl_err *err)
{
    sl_job *s = &j->spec;
    int w = 0, h = 0, w2, h2;
    sl_code rc;
    /* replayed from behind the image stage, the picture itself is not needed */
    bool needed = model->takes_image && (!*j->replay_dir || access(s->image, R_OK) == 0 || *s->image == 0);
    if (!model->takes_image && *s->image) return sl_fail(err, SL_ARG, "--image is given, but %s makes videos from text alone", model->dir);
    if (!model->takes_last_image && *s->last_image)
        return sl_fail(err, SL_ARG, "--last-image is given, but %s takes a first picture only (FLF2V checkpoints take two)", model->dir);
    if (*j->replay_dir) needed = false;
    if (needed && !*s->image) return sl_fail(err, SL_ARG, "no picture: %s wants --image FILE", model->dir);
    if (needed && model->takes_last_image && !*s->last_image) return sl_fail(err, SL_ARG, "no last picture: %s wants --last-image FILE", model->dir);
    if (needed && (rc = check_picture(s->image, "--image", &w, &h, err))) return rc;
    if (needed && *s->last_image && (rc = check_picture(s->last_image, "--last-image", &w2, &h2, err))) return rc;
    if (!s->width != !s->height) return sl_fail(err, SL_ARG, "--width is %d and --height %d, want both or neither", s->width, s->height);
    if (!s->width) {
        int64_t area = j->max_area ? j->max_area : DEFAULT_AREA;
        if (area < 256 || area > (int64_t)8192 * 8192) return sl_fail(err, SL_ARG, "--max-area is %lld, want 256 to 67108864 pixels", (long long)area);
        if (!w) w = 832, h = 480;
        sl_picture_video_size(w, h, area, &s->width, &s->height);
        s->bicubic = 1;
    } else if (j->max_area) return sl_fail(err, SL_ARG, "--max-area is given beside --width and --height, want one of the two");
    return SL_OK;
}

static sl_code check_job(cli_job *j, const sl_model *model, const sl_conf *conf, sl_err *err)
{
    sl_job *s = &j->spec;
    sl_code rc;
    if (!j->has_prompt) return sl_fail(err, SL_ARG, "no prompt: want --prompt TEXT (it may be empty)");
    if ((rc = check_prompt(s->prompt, "--prompt", conf, err)) || (rc = check_prompt(s->negative, "--negative", conf, err))) return rc;
    if ((rc = check_pictures(j, model, err)) || (rc = complete(j, model, conf, err)) || (rc = sl_job_check(s, err))) return rc;
    int rope = model->dit[0].rope_max;
    if (s->width / 16 > rope || s->height / 16 > rope || sl_job_latent_frames(s) > rope)
        return sl_fail(err, SL_ARG, "size %dx%d x %d frames has an axis of more than %d tokens (rope_max_seq_len)", s->width, s->height, s->frames, rope);
    if (*s->noise && !*j->replay_dir && (rc = check_noise(s, model, err))) return rc;
    if ((rc = check_writable(s->output, "output", err))) return rc;
    if (*j->json && (rc = check_writable(j->json, "report", err))) return rc;
    if (*j->dump_dir && (rc = make_dirs(j->dump_dir, err))) return sl_context(err, SL_ARG, "--dump");
    if (*j->dump_dir && access(j->dump_dir, W_OK)) return sl_fail(err, SL_ARG, "--dump %s cannot be written: %s", j->dump_dir, strerror(errno));
    return SL_OK;
}

static sl_code check_limits(const cli_options *o, sl_conf *conf, sl_err *err)
{
    bool fixed = *o->conf != 0;
    if (o->job_count > conf->limits.jobs) {
        if (fixed) return sl_fail(err, SL_ARG, "%d jobs, want at most %d (limits.jobs in %s)", o->job_count, conf->limits.jobs, o->conf);
        conf->limits.jobs = o->job_count;
    }
    for (int i = 0; i < o->job_count; i++) {
        const sl_job *s = &o->jobs[i].spec;
        int64_t pixels = (int64_t)s->width * s->height;
        if (fixed && pixels > conf->limits.pixels)
            return sl_fail(err, SL_ARG, "size %dx%d has %lld pixels, want at most %lld (limits.pixels in %s)", s->width, s->height, (long long)pixels,
                           (long long)conf->limits.pixels, o->conf);
        if (fixed && s->frames > conf->limits.frames)
            return sl_fail(err, SL_ARG, "frames is %d, want at most %d (limits.frames in %s)", s->frames, conf->limits.frames, o->conf);
        if (!fixed && (!i || pixels > conf->limits.pixels)) conf->limits.pixels = pixels;
        if (!fixed && (!i || s->frames > conf->limits.frames)) conf->limits.frames = s->frames;
    }
    return SL_OK;
}

static sl_code same_outputs(const cli_options *o, sl_err *err)
{
    for (int i = 0; i < o->job_count; i++)
        for (int k = 0; k < i; k++)
            if (!strcmp(o->jobs[i].spec.output, o->jobs[k].spec.output))
                return sl_fail(err, SL_ARG, "two jobs write to %s", o->jobs[i].spec.output);
    return SL_OK;
}

sl_code cli_check(cli_options *o, sl_model *model, sl_conf *conf, sl_err *err)
{
    sl_code rc;
    const char *dir = o->jobs[0].spec.model;
    char absolute[SL_PATH];
    sl_conf_defaults(conf);
    if (*o->conf && (rc = sl_conf_read_file(conf, o->conf, err))) return rc;
    if (*o->device && strcmp(o->device, "cpu") && strncmp(o->device, "cuda:", 5)) return sl_fail(err, SL_ARG, "--device is %s, want cpu or cuda:N", o->device);
    for (int i = 0; i < conf->stage_count; i++) {
        if (*o->device) snprintf(conf->stages[i].device, sizeof conf->stages[i].device, "%.15s", o->device);
        if (strcmp(conf->stages[i].device, "cpu"))
            return sl_fail(err, SL_ARG, "device %s (stage %s) is not to be had: this build has no CUDA plug-in, want cpu", conf->stages[i].device,
                           sl_role_name(conf->stages[i].role));
    }
    if (!*dir) return sl_fail(err, SL_ARG, "no checkpoint: want --model DIR");
    for (int i = 0; i < o->job_count; i++)
        if (strcmp(o->jobs[i].spec.model, dir))
            return sl_fail(err, SL_ARG, "line %d of %s wants model %s, the run has %s: one checkpoint a run", o->jobs[i].line, o->jobs_file, o->jobs[i].spec.model, dir);
    if ((rc = absolute_path(absolute, dir, err)) || (rc = sl_model_open(model, absolute, err)) || (rc = check_weights(model, err))) return rc;
    for (int i = 0; i < o->job_count; i++)
        if ((rc = check_job(&o->jobs[i], model, conf, err)))
            return o->jobs[i].line ? sl_context(err, rc, "%s:%d", o->jobs_file, o->jobs[i].line) : rc;
    if (*o->base.json && o->job_count > 1 && (rc = check_writable(o->base.json, "report", err))) return rc;
    if ((rc = same_outputs(o, err))) return rc;
    return check_limits(o, conf, err);
}
