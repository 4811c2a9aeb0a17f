/* plan.c - `sluice plan`: the bytes that a run takes, stage by stage and device by
 * device; and the refusal of what does not fit. */
#include "stages/cli/cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "common/log.h"
#include "common/picture.h"
#include "kernels/cuda/conv_tiles.h"
#include "stages/denoise/memory.h"

/* Measured: what a stage's process takes with no job, and what x264 takes for each pixel
 * of a frame: look-ahead, references, and a frame a thread. */
#define PROCESS_BYTES ((size_t)32 << 20)
/* on the host, for a GPU: its libraries, and the loader's pinned slots */
#define GPU_PROCESS_BYTES ((size_t)640 << 20)
#define ENCODER_PIXEL 210
#define ENCODER_PIXEL_SLOW 550 /* the presets slower, veryslow, placebo */
#define ENCODER_PIXEL_THREAD 14

/* ---- one network ---- */

typedef struct {
    const sl_model *model;
    const sl_conf *conf;
    const sl_job *job;
    run_plan *plan;
    sl_loader *loader; /* of the network that was asked for last */
    sl_ops body;
    sl_ctx ctx; /* on `body`: the plan of a stage's device */
} planner;

static size_t gpu_conv_bytes(sl_ctx *ctx, const int64_t shape[5])
{
    (void)ctx;
    return sl_conv_packed_bytes(shape);
}

/* The table that gives a device's sizes: of a GPU without its plug-in, which may be on
 * another machine. */
static const sl_ops *sizes_of(const char *device)
{
    static const sl_ops GPU = {.name = "cuda", .act = SL_BF16, .packed_conv_bytes = gpu_conv_bytes};
    return strcmp(device, "cpu") ? &GPU : &sl_ops_cpu;
}

static bool has_weights(const char *dir, const char *stem)
{
    char name[64], path[SL_PATH];
    snprintf(name, sizeof name, "%s.safetensors", stem);
    if (!sl_path_join(path, dir, name, NULL) && !access(path, F_OK)) return true;
    snprintf(name, sizeof name, "%s.safetensors.index.json", stem);
    return !sl_path_join(path, dir, name, NULL) && !access(path, F_OK);
}

/* A loader that counts: by the checkpoint's headers, or, where no weights are, by the
 * configuration alone. */
static sl_code open_counting(planner *p, const char *name, const char *stem, sl_err *err)
{
    char dir[SL_PATH];
    sl_code rc = sl_path_join(dir, p->model->dir, name, err);
    if (rc) return rc;
    if (!p->conf->model.random && has_weights(dir, stem))
        return sl_loader_inspect(&p->loader, &p->ctx, dir, stem, name, err);
    p->plan->from_files = false;
    return sl_loader_plan(&p->loader, &p->ctx, name, err);
}

/* All tensors have been asked for: add them to the stage. */
static sl_code close_counting(planner *p, stage_plan *s, const char *name, sl_err *err)
{
    sl_err ignored = {0};
    sl_code rc = sl_loader_finish(p->loader, &ignored);
    if (rc) *err = ignored;
    for (int k = 0; !rc && sl_loader_finding(p->loader, k); k++)
        if (strncmp(sl_loader_finding(p->loader, k), "unexpected", 10))
            rc = sl_fail(err, SL_FORMAT, "%s: %s", name, sl_loader_finding(p->loader, k));
    s->mapped += sl_loader_mapped(p->loader);
    s->weights += sl_loader_bytes(p->loader) - sl_loader_mapped(p->loader);
    sl_loader_close(&p->loader);
    return rc;
}

static void add_arena(stage_plan *s, const sl_arena *a)
{
    s->kept = a->kept;
    s->work = a->peak - a->kept;
}

/* The pool in which the stage of this role receives `purpose`. */
static void add_slots(const planner *p, stage_plan *s, sl_role role, sl_handover h,
                      size_t slot_bytes)
{
    size_t bytes = (size_t)sl_conf_find(p->conf, role)->slots * slot_bytes;
    s->slots += bytes;
    if (sl_slot_kind(p->conf, h) == SL_POOL_CUDA) s->device_slots += bytes;
}

/* ---- stages: each beside what its main does ---- */

static sl_code plan_text(planner *p, stage_plan *s, bool computes, sl_err *err)
{
    size_t row = (size_t)SL_UMT5_MAX_TOKENS * (size_t)p->model->umt5.d_model * sizeof(float);
    sl_arena a = {0};
    sl_umt5 *m = NULL;
    sl_code rc = open_counting(p, "text_encoder", "model", err);
    if (!rc && !(m = sl_umt5_new(&p->model->umt5, p->loader)))
        rc = sl_fail(err, SL_NOMEM, "umt5: no memory");
    if (!rc) rc = close_counting(p, s, "text_encoder", err);
    /* taken whether a job computes or not */
    if (!rc) rc = sl_arena_text(&a, &p->body, &p->model->umt5, m, err);
    add_arena(s, &a);
    /* cond, uncond, both once more for the spool, one on its way */
    if (computes) s->host += 5 * row;
    sl_umt5_free(&m);
    return rc;
}

static sl_code plan_image(planner *p, stage_plan *s, bool computes, sl_err *err)
{
    const sl_model *model = p->model;
    const sl_job *job = p->job;
    bool last = model->family.last_picture && *job->last_image;
    size_t pixels = (size_t)job->width * (size_t)job->height * (last ? 2 : 1), clip = 0;
    sl_arena a = {0};
    sl_clip *c = NULL;
    sl_vae_encoder *v = NULL;
    sl_code rc = SL_OK;
    if (model->family.clip) {
        if (!(rc = open_counting(p, "image_encoder", "model", err)) &&
            !(c = sl_clip_new(&model->clip, p->loader)))
            rc = sl_fail(err, SL_NOMEM, "clip: no memory");
        if (!rc) rc = close_counting(p, s, "image_encoder", err);
        clip = (size_t)sl_image_tokens(model, job) * (size_t)model->clip.hidden * sizeof(float);
    }
    if (!rc) rc = open_counting(p, "vae", "diffusion_pytorch_model", err);
    if (!rc && !(v = sl_vae_encoder_new(&model->vae, p->loader)))
        rc = sl_fail(err, SL_NOMEM, "vae: no memory");
    if (!rc) rc = close_counting(p, s, "vae", err);
    if (!rc && computes) rc = sl_arena_image(&a, &p->body, model, c, v, job, err);
    add_arena(s, &a);
    /* 8-bit pictures of the video's size and floats of them; results, and once more for
     * the spool */
    if (computes)
        s->host += pixels * 3 * 5 +
                   2 * (clip + sl_slot_bytes(model, SL_HANDOVER_IMAGE,
                                             (int64_t)job->width * job->height, job->frames));
    sl_clip_free(&c);
    sl_vae_encoder_free(&v);
    return rc;
}

static sl_code plan_denoise(planner *p, stage_plan *s, bool computes, sl_err *err)
{
    static const char *const NAMES[EXPERTS] = {"transformer", "transformer_2"};
    const sl_model *model = p->model;
    const sl_job *job = p->job;
    int64_t shape[4];
    sl_dit *dit[EXPERTS] = {0};
    sl_schedule *schedule = malloc(sizeof *schedule);
    sl_arena a = {0};
    sl_code rc = schedule ? SL_OK : sl_fail(err, SL_NOMEM, "denoise: no memory");
    for (int e = 0; e < model->family.experts && !rc; e++) {
        if ((rc = open_counting(p, NAMES[e], "diffusion_pytorch_model", err))) break;
        if (!(dit[e] = sl_dit_new(&model->dit[e], p->loader)))
            rc = sl_fail(err, SL_NOMEM, "%s: no memory", NAMES[e]);
        if (!rc) rc = close_counting(p, s, NAMES[e], err);
    }
    if (!rc && computes)
        rc = sl_schedule_make(schedule,
                              strcmp(job->sampler, "euler") ? SL_SAMPLER_UNIPC : SL_SAMPLER_EULER,
                              job->steps, job->shift, err);
    if (!rc && computes)
        rc = denoise_arena(
            &a, &p->body,
            &(denoise_sizes){.model = model, .dit = dit, .job = job, .schedule = schedule}, err);
    add_arena(s, &a);
    denoise_shape(model, job, shape);
    size_t latents = (size_t)(shape[0] * shape[1] * shape[2] * shape[3]) * sizeof(float);
    size_t text = sl_slot_bytes(model, SL_HANDOVER_TEXT, 0, 1),
           image = model->family.picture
                       ? sl_slot_bytes(model, SL_HANDOVER_IMAGE, (int64_t)job->width * job->height,
                                       job->frames)
                       : 0,
           held = text + image;
    add_slots(p, s, SL_ROLE_DENOISE, SL_HANDOVER_TEXT, text);
    add_slots(p, s, SL_ROLE_DENOISE, SL_HANDOVER_IMAGE, image);
    if (computes)
        s->host +=
            /* noise, result, the state of four, the state and both results once more for
             * the spool; inputs */
            12 * latents + held;
    for (int e = 0; e < EXPERTS; e++) sl_dit_free(&dit[e]);
    free(schedule);
    return rc;
}

static sl_code plan_decode(planner *p, stage_plan *s, bool computes, sl_err *err)
{
    size_t latents = sl_slot_bytes(p->model, SL_HANDOVER_LATENTS,
                                   (int64_t)p->job->width * p->job->height, p->job->frames);
    sl_arena a = {0};
    sl_vae_decoder *m = NULL;
    sl_code rc = open_counting(p, "vae", "diffusion_pytorch_model", err);
    if (!rc && !(m = sl_vae_decoder_new(&p->model->vae, p->loader)))
        rc = sl_fail(err, SL_NOMEM, "vae: no memory");
    if (!rc) rc = close_counting(p, s, "vae", err);
    if (!rc && computes) rc = sl_arena_decode(&a, &p->body, p->model, m, p->job, err);
    add_arena(s, &a);
    add_slots(p, s, SL_ROLE_DECODE, SL_HANDOVER_LATENTS, latents);
    s->host += latents;
    sl_vae_decoder_free(&m);
    return rc;
}

static sl_code plan_mux(planner *p, stage_plan *s, bool computes, sl_err *err)
{
    const char *preset = p->conf->video.preset;
    bool slow =
        !strcmp(preset, "slower") || !strcmp(preset, "veryslow") || !strcmp(preset, "placebo");
    size_t pixels = (size_t)p->job->width * (size_t)p->job->height;
    (void)computes;
    (void)err;
    add_slots(p, s, SL_ROLE_MUX, SL_HANDOVER_FRAMES,
              sl_slot_bytes(p->model, SL_HANDOVER_FRAMES, (int64_t)pixels, p->job->frames));
    s->host += pixels * ((slow ? ENCODER_PIXEL_SLOW : ENCODER_PIXEL) +
                         ENCODER_PIXEL_THREAD * (size_t)p->conf->video.threads);
    return SL_OK;
}

/* ---- a run ---- */

typedef sl_code stage_fn(planner *p, stage_plan *s, bool computes, sl_err *err);
static stage_fn *const STAGES[SL_ROLE_COUNT] = {plan_text, plan_image, plan_denoise, plan_decode,
                                                plan_mux};

/* Does a replay from here compute this stage? */
static bool computes(const char *from, sl_role role)
{
    if (role == SL_ROLE_TEXT) return !*from || !strcmp(from, "text");
    if (role == SL_ROLE_IMAGE) return !*from || !strcmp(from, "image");
    return role != SL_ROLE_DENOISE || strcmp(from, "decode");
}

static bool same_sizes(const sl_job *a, const sl_job *b)
{
    return a->width == b->width && a->height == b->height && a->frames == b->frames &&
           a->steps == b->steps && !strcmp(a->sampler, b->sampler) && a->shift == b->shift &&
           denoise_branches(a) == denoise_branches(b) && (a->fbcache > 0) == (b->fbcache > 0) &&
           !*a->last_image == !*b->last_image;
}

static size_t sum(const stage_plan *s)
{
    return s->weights + s->kept + s->work + s->slots + s->context + s->host;
}

sl_code plan_make(run_plan *out, const cli_options *o, const sl_model *model, const sl_conf *conf,
                  sl_err *err)
{
    planner p = {.model = model, .conf = conf, .plan = out};
    sl_code rc = SL_OK;
    memset(out, 0, sizeof *out);
    out->from_files = true;
    for (int i = 0; i < o->job_count && !rc; i++) {
        p.job = &o->jobs[i].spec;
        if (i && same_sizes(p.job, &o->jobs[i - 1].spec)) continue;
        for (int role = 0; role < SL_ROLE_COUNT && !rc; role++) {
            const sl_conf_stage *c = sl_conf_find(conf, (sl_role)role);
            stage_plan s = {.runs = true, .host = PROCESS_BYTES};
            if (!c || (role == SL_ROLE_IMAGE && !model->family.picture)) continue;
            snprintf(s.device, sizeof s.device, "%s", role == SL_ROLE_MUX ? "cpu" : c->device);
            if (strcmp(s.device, "cpu")) {
                s.context = SL_GPU_CONTEXT_BYTES + SL_GPU_WORKSPACE_BYTES + SL_GPU_SCRATCH_BYTES;
                s.host = GPU_PROCESS_BYTES;
            }
            p.body = sl_ops_plan_of(sizes_of(s.device));
            if ((rc = sl_ctx_open(&p.ctx, &p.body, 0, err))) break;
            rc = STAGES[role](&p, &s, computes(o->from, (sl_role)role), err);
            sl_loader_close(&p.loader);
            sl_ctx_close(&p.ctx);
            if (!out->stages[role].runs || sum(&s) > sum(&out->stages[role])) out->stages[role] = s;
        }
    }
    return rc;
}

size_t plan_private(const stage_plan *s, const char *device)
{
    bool here = s->runs && !strcmp(s->device, device), host = s->runs && !strcmp(device, "cpu");
    size_t on_cpu = s->slots - s->device_slots;
    return (here ? s->weights + s->kept + s->work + s->device_slots + s->context : 0) +
           (host ? on_cpu + s->host : 0);
}

/* ---- the machine ---- */

static bool read_text(char *buf, size_t size, const char *root, const char *path)
{
    char full[SL_PATH];
    FILE *f = snprintf(full, sizeof full, "%s%s", root, path) < (int)sizeof full ? fopen(full, "re")
                                                                                 : NULL;
    if (!f) return false;
    size_t n = fread(buf, 1, size - 1, f);
    buf[n] = 0;
    fclose(f);
    return true;
}

/* The number behind `key` at the beginning of a line. */
static bool read_number(const char *text, const char *key, uint64_t *out)
{
    size_t n = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (!strncmp(line, key, n)) return sscanf(line + n, " %lu", out) == 1;
    return false;
}

/* What one cgroup still gives: its limit less what it uses, but for page cache, which
 * goes when memory is wanted. */
static uint64_t group_gives(const char *root, const char *group)
{
    char path[SL_PATH], text[16384];
    uint64_t limit, used, file = 0, more;
    const char *const CACHE[] = {"inactive_file", "active_file"};
    snprintf(path, sizeof path, "/sys/fs/cgroup%.900s/memory.max", group);
    /* "max", or the top */
    if (!read_text(text, sizeof text, root, path) || sscanf(text, "%lu", &limit) != 1)
        return UINT64_MAX;
    snprintf(path, sizeof path, "/sys/fs/cgroup%.900s/memory.current", group);
    if (!read_text(text, sizeof text, root, path) || sscanf(text, "%lu", &used) != 1)
        return UINT64_MAX;
    snprintf(path, sizeof path, "/sys/fs/cgroup%.900s/memory.stat", group);
    for (int i = 0; i < 2 && read_text(text, sizeof text, root, path); i++)
        if (read_number(text, CACHE[i], &more)) file += more;
    used = used > file ? used - file : 0;
    return limit > used ? limit - used : 0;
}

sl_code plan_machine(machine_memory *out, const char *root, sl_err *err)
{
    char text[16384], group[SL_PATH];
    memset(out, 0, sizeof *out);
    out->group = UINT64_MAX;
    if (!read_text(text, sizeof text, root, "/proc/meminfo") ||
        !read_number(text, "MemTotal:", &out->total) ||
        !read_number(text, "MemAvailable:", &out->available))
        return sl_fail(err, SL_SYS, "%s/proc/meminfo: no MemTotal and MemAvailable in it", root);
    out->total *= 1024;
    out->available *= 1024;
    const char *line = read_text(text, sizeof text, root, "/proc/self/cgroup") ? text : "";
    while (line && strncmp(line, "0::", 3))
        line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL;
    if (line) {
        snprintf(group, sizeof group, "%.*s", (int)strcspn(line + 3, "\n"), line + 3);
        while (true) { /* this group and all around it */
            char *slash = strrchr(group, '/');
            if (slash && !slash[1]) *slash = 0;
            uint64_t g = group_gives(root, group);
            if (g < out->group) out->group = g;
            if (!*group || !(slash = strrchr(group, '/'))) break;
            *slash = 0;
        }
    }
    out->gives = out->group < out->available ? out->group : out->available;
    return SL_OK;
}

/* ---- admission ---- */

/* What of the plan one device has to hold, and the stage that takes most of it. */
static size_t total_of(const run_plan *plan, const char *device, int *largest, size_t *most)
{
    size_t wanted = 0;
    *most = 0;
    for (int i = 0; i < SL_ROLE_COUNT; i++) {
        size_t n = plan_private(&plan->stages[i], device);
        wanted += n;
        if (n > *most) *most = n, *largest = i;
    }
    return wanted;
}

/* What a GPU still gives; NULL: nobody asked it. */
static const uint64_t *gpu_gives(const gpu_machine *gpus, const char *device)
{
    int n = strncmp(device, "cuda:", 5) ? MAX_GPUS : atoi(device + 5);
    return n >= 0 && n < MAX_GPUS && gpus->gpu[n].total ? &gpus->gpu[n].free : NULL;
}

static sl_code admit_gpus(const run_plan *plan, const gpu_machine *gpus, sl_err *err)
{
    for (int i = 0; i < SL_ROLE_COUNT; i++) {
        const char *device = plan->stages[i].device;
        const uint64_t *there = plan->stages[i].runs ? gpu_gives(gpus, device) : NULL;
        int largest = 0;
        size_t most, wanted = there ? total_of(plan, device, &largest, &most) : 0;
        if (there && wanted > *there)
            return sl_fail(err, SL_NOMEM,
                           "the run wants %zu bytes of %s, there are %llu free of %llu; the "
                           "largest stage is %s with %zu: sluice plan "
                           "shows all",
                           wanted, device, (unsigned long long)*there,
                           (unsigned long long)gpus->gpu[atoi(device + 5)].total,
                           sl_role_name((sl_role)largest), most);
    }
    return SL_OK;
}

sl_code plan_admit(const cli_options *o, const sl_model *model, const sl_conf *conf, sl_err *err)
{
    machine_memory m;
    run_plan plan;
    size_t mapped = 0, most;
    int largest = 0;
    sl_code rc = plan_make(&plan, o, model, conf, err);
    if (rc || (rc = plan_machine(&m, "", err)) || (rc = admit_gpus(&plan, &o->gpus, err)))
        return rc;
    uint64_t there = conf->limits.memory_bytes ? (uint64_t)conf->limits.memory_bytes : m.gives;
    const char *why = conf->limits.memory_bytes ? "limits.memory_bytes"
                      : m.group < m.available   ? "its cgroup's memory.max"
                                                : "MemAvailable";
    size_t wanted = total_of(&plan, "cpu", &largest, &most);
    for (int i = 0; i < SL_ROLE_COUNT; i++) mapped += plan.stages[i].mapped;
    if (wanted > there)
        return sl_fail(err, SL_NOMEM,
                       "the run wants %zu bytes of memory, there are %llu (%s); the largest stage "
                       "is %s with %zu: sluice plan shows all",
                       wanted, (unsigned long long)there, why, sl_role_name((sl_role)largest),
                       most);
    if (!conf->limits.memory_bytes && mapped > there - wanted)
        sl_log(SL_LOG_WARN,
               "memory holds %llu of the %zu bytes of weights that stay mapped: the rest is read "
               "from the disk again at every step",
               (unsigned long long)(there - wanted), mapped);
    return SL_OK;
}

/* ---- sluice plan ---- */

/* A picture's aspect decides where no size is given, as in a run. */
static sl_code complete_size(cli_job *j, sl_err *err)
{
    sl_job *s = &j->spec;
    sl_picture p = {.w = 832, .h = 480};
    sl_code rc = SL_OK;
    if ((rc = check_size(j, err)) || s->width) return rc;
    if (*s->image && (rc = sl_picture_read(&p, s->image, err)))
        return sl_context(err, rc, "--image");
    sl_picture_video_size(p.w, p.h, j->has_max_area ? j->max_area : DEFAULT_AREA, &s->width,
                          &s->height);
    if (*s->image) sl_picture_free(&p);
    return SL_OK;
}

static sl_code complete(cli_options *o, sl_model *model, sl_conf *conf, sl_err *err)
{
    char absolute[SL_PATH];
    const char *dir = o->jobs[0].spec.model;
    sl_err absent = {0};
    sl_code rc;
    sl_conf_defaults(conf);
    if (*o->conf && (rc = sl_conf_read_file(conf, o->conf, err))) return rc;
    if ((rc = use_devices(o, conf, err))) return rc;
    /* a plan may be for another machine */
    if (ask_gpus(&o->gpus, conf, &absent)) memset(&o->gpus, 0, sizeof o->gpus);
    if (!*dir) return sl_fail(err, SL_ARG, "no checkpoint: want --model DIR");
    if ((rc = absolute_path(absolute, dir, err)) || (rc = sl_model_open(model, absolute, err)) ||
        (rc = use_defaults(o, model, conf, err)))
        return rc;
    for (int i = 0; i < o->job_count; i++) {
        cli_job *j = &o->jobs[i];
        if ((rc = complete_size(j, err))) return rc;
        if (!j->has_shift) j->spec.shift = model->scheduler.flow_shift;
        if (!j->has_sampler)
            snprintf(j->spec.sampler, SL_PATH, "%s",
                     model->scheduler.kind == SL_SAMPLER_EULER ? "euler" : "unipc");
        if (!j->has_fbcache) j->spec.fbcache = conf->fbcache.threshold;
        /* a run will want one */
        if (model->family.last_picture && !*j->spec.last_image)
            snprintf(j->spec.last_image, SL_PATH, "?");
        if ((rc = sl_job_check(&j->spec, err))) return rc;
    }
    return SL_OK;
}

/* Sums of one device over its stages. */
typedef struct {
    const char *name;
    size_t mapped, wanted;
} device_sum;

static int add_up(const run_plan *p, device_sum list[SL_ROLE_COUNT + 1])
{
    int n = 1;
    list[0] = (device_sum){.name = "cpu"}; /* host memory: every process has some */
    for (int i = 0; i < SL_ROLE_COUNT; i++) {
        int k = 0;
        if (!p->stages[i].runs) continue;
        while (k < n && strcmp(list[k].name, p->stages[i].device)) k++;
        if (k == n) list[n++] = (device_sum){.name = p->stages[i].device};
        list[k].mapped += p->stages[i].mapped;
    }
    for (int k = 0; k < n; k++)
        for (int i = 0; i < SL_ROLE_COUNT; i++)
            list[k].wanted += plan_private(&p->stages[i], list[k].name);
    return n;
}

static double mb(size_t bytes)
{
    return (double)bytes * 1e-6;
}

static void print_plan(const run_plan *p, const sl_job *j, int jobs, const machine_memory *m,
                       const gpu_machine *gpus, const sl_conf *conf)
{
    device_sum devices[SL_ROLE_COUNT + 1];
    int n = add_up(p, devices);
    printf("%s\n%s%dx%d, %d frames, %d steps%s%s\n", j->model,
           jobs > 1 ? "the largest of the jobs; the first is " : "", j->width, j->height, j->frames,
           j->steps, denoise_branches(j) > 1 ? ", guidance" : "",
           j->fbcache > 0 ? ", First Block Cache" : "");
    printf("\n  %-8s %-7s %10s %10s %10s %10s %10s %10s %10s   MB\n", "stage", "device", "mapped",
           "weights", "job", "work", "slots", "context", "host");
    for (int i = 0; i < SL_ROLE_COUNT; i++) {
        const stage_plan *s = &p->stages[i];
        if (s->runs)
            printf("  %-8s %-7s %10.1f %10.1f %10.1f %10.1f %10.1f %10.1f %10.1f\n",
                   sl_role_name((sl_role)i), s->device, mb(s->mapped), mb(s->weights), mb(s->kept),
                   mb(s->work), mb(s->slots), mb(s->context), mb(s->host));
    }
    printf("  mapped: weights that stay in their files, in the page cache; job and work: the "
           "arena, what a job keeps and what a "
           "step needs;\n  context: of a GPU, what the driver, libraries and operations take "
           "beside that\n\n");
    for (int k = 0; k < n; k++) {
        printf("  %-7s %.1f MB", devices[k].name, mb(devices[k].wanted));
        if (k) {
            const uint64_t *gives = gpu_gives(gpus, devices[k].name);
            int g = atoi(devices[k].name + 5);
            if (gives)
                printf("; %s has %.1f MB, %.1f MB free: %s", gpus->gpu[g].name,
                       mb((size_t)gpus->gpu[g].total), mb((size_t)*gives),
                       devices[k].wanted > *gives ? "does not fit" : "fits");
            printf("\n");
            continue;
        }
        uint64_t there = conf->limits.memory_bytes ? (uint64_t)conf->limits.memory_bytes : m->gives;
        if (devices[k].mapped) printf(", and %.1f MB of weights mapped", mb(devices[k].mapped));
        printf("; the machine has %.1f MB, %.1f MB free", mb(m->total), mb(m->available));
        if (m->group != UINT64_MAX) printf(", %.1f MB left in its cgroup", mb(m->group));
        if (conf->limits.memory_bytes) printf(", limits.memory_bytes %.1f MB", mb(there));
        printf(": %s\n", devices[k].wanted > there ? "does not fit"
                         : devices[k].mapped > there - devices[k].wanted
                             ? "fits, but not all weights at once"
                             : "fits");
    }
    if (!p->from_files)
        printf(
            "  weights are not all there: those count as float32 on the CPU, bfloat16 on a GPU\n");
}

static sl_code write_plan(const run_plan *p, const sl_job *j, const machine_memory *m,
                          const gpu_machine *gpus, const sl_conf *conf, const char *path,
                          sl_err *err)
{
    device_sum devices[SL_ROLE_COUNT + 1];
    json_t *stages = json_object(), *sums = json_object();
    uint64_t there = conf->limits.memory_bytes ? (uint64_t)conf->limits.memory_bytes : m->gives;
    for (int i = 0; i < SL_ROLE_COUNT; i++) {
        const stage_plan *s = &p->stages[i];
        if (!s->runs) continue;
        json_object_set_new(
            stages, sl_role_name((sl_role)i),
            json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "device",
                      s->device, "weight_bytes", (json_int_t)(s->mapped + s->weights),
                      "mapped_bytes", (json_int_t)s->mapped, "private_weight_bytes",
                      (json_int_t)s->weights, "job_bytes", (json_int_t)s->kept, "work_bytes",
                      (json_int_t)s->work, "arena_bytes", (json_int_t)(s->kept + s->work),
                      "slot_bytes", (json_int_t)s->slots, "device_slot_bytes",
                      (json_int_t)s->device_slots, "context_bytes", (json_int_t)s->context,
                      "host_bytes", (json_int_t)s->host));
    }
    for (int k = 0, n = add_up(p, devices); k < n; k++) {
        json_t *d = json_pack("{s:I, s:I}", "wanted_bytes", (json_int_t)devices[k].wanted,
                              "mapped_bytes", (json_int_t)devices[k].mapped);
        if (!k) {
            json_object_set_new(d, "total_bytes", json_integer((json_int_t)m->total));
            json_object_set_new(d, "available_bytes", json_integer((json_int_t)m->available));
            json_object_set_new(d, "cgroup_bytes",
                                m->group == UINT64_MAX ? json_null()
                                                       : json_integer((json_int_t)m->group));
            json_object_set_new(d, "limit_bytes", json_integer((json_int_t)there));
            json_object_set_new(d, "fits", json_boolean(devices[k].wanted <= there));
        }
        const uint64_t *gives = gpu_gives(gpus, devices[k].name);
        if (gives) {
            json_object_set_new(
                d, "total_bytes",
                json_integer((json_int_t)gpus->gpu[atoi(devices[k].name + 5)].total));
            json_object_set_new(d, "available_bytes", json_integer((json_int_t)*gives));
            json_object_set_new(d, "fits", json_boolean(devices[k].wanted <= *gives));
        }
        json_object_set_new(sums, devices[k].name, d);
    }
    json_t *root =
        json_pack("{s:s, s:i, s:i, s:i, s:i, s:b, s:o, s:o}", "model", j->model, "width", j->width,
                  "height", j->height, "frames", j->frames, "step_count", j->steps, "from_files",
                  (int)p->from_files, "stages", stages, "devices", sums);
    errno = 0;
    int bad = !root || json_dump_file(root, path, JSON_INDENT(2)), why = errno;
    json_decref(root);
    return bad ? sl_fail_errno(err, why ? why : EIO, "report %s", path) : SL_OK;
}

int cli_plan(int argc, char **argv)
{
    cli_options o = {0};
    sl_model model;
    sl_conf conf;
    run_plan plan;
    machine_memory machine;
    sl_err err = {0};
    if (!cli_parse(&o, false, argc, argv, &err) && !complete(&o, &model, &conf, &err) &&
        !plan_make(&plan, &o, &model, &conf, &err) && !plan_machine(&machine, "", &err)) {
        if (!o.quiet) print_plan(&plan, &o.jobs[0].spec, o.job_count, &machine, &o.gpus, &conf);
        if (*o.base.json)
            write_plan(&plan, &o.jobs[0].spec, &machine, &o.gpus, &conf, o.base.json, &err);
    }
    if (err.code) complain("%s", err.msg);
    cli_options_free(&o);
    return err.code ? EXIT_REFUSED : EXIT_OK;
}
