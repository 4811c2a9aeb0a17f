/* plan.c - the bytes that a run takes, stage by stage and device by device; and the refusal
 * of what does not fit. */
#include "stages/job/plan.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "kernels/cuda/conv_tiles.h"
#include "stages/job/components.h"
#include "stages/job/lora.h"
#include "stages/sizes/denoise.h"

/* Measured: what a stage's process takes with no job, and what x264 takes for each pixel
 * of a frame: look-ahead, references, and a frame a thread. */
#define PROCESS_BYTES ((size_t)32 << 20)
/* host memory of a GPU's process: its libraries, and the loader's pinned slots */
#define GPU_PROCESS_BYTES ((size_t)640 << 20)
#define ENCODER_PIXEL 210
#define ENCODER_PIXEL_SLOW 550 /* the presets slower, veryslow, placebo */
#define ENCODER_PIXEL_THREAD 14

/* ---- one network ---- */

typedef struct {
    const sl_model *model;
    const sl_conf *conf;
    const sl_job *job;
    const sl_gpu_maps *maps;
    const sl_conf_stage *stage; /* that is planned */
    sl_run_plan *plan;
    sl_loader *loader; /* of the newest network */
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
    static const sl_ops GPU = {.name = "cuda",
                               .act = SL_BF16,
                               .row_granule = 1,
                               .columns_apart = true,
                               .packed_conv_bytes = gpu_conv_bytes};
    return strcmp(device, "cpu") ? &GPU : &sl_ops_cpu;
}

/* A loader that counts: by the checkpoint's headers, or, where no weights are, by the
 * configuration alone. */
static sl_code open_counting(planner *p, sl_part_id part, sl_err *err)
{
    if (!p->conf->model.random && sl_part_has_weights(&p->model->layout, part))
        return sl_component_inspect(&p->loader, p->model, part, &p->ctx, err);
    p->plan->from_files = false;
    return sl_loader_plan(&p->loader, &p->ctx, sl_part_name(part), err);
}

/* The loader has been asked for all tensors: their bytes are added to the stage. */
static sl_code close_counting(planner *p, sl_stage_plan *s, const char *name, sl_err *err)
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

static void add_arena(sl_stage_plan *s, const sl_arena *a)
{
    s->kept = a->kept;
    s->work = a->peak - a->kept;
}

/* Bytes of a slot of h, as far as the job fills it. */
static size_t handed(const planner *p, sl_handover h)
{
    return sl_slot_bytes(p->model, h, (int64_t)p->job->width * p->job->height, p->job->frames);
}

/* The pool in which the stage receives h: of a device it is taken whole. */
static void add_slots(const planner *p, sl_stage_plan *s, sl_handover h)
{
    const bool on_device = sl_slot_kind(p->conf, h, s->device, p->maps) == SL_POOL_CUDA;
    const size_t slot = on_device ? sl_slot_bytes(p->model, h, p->conf->limits.pixels,
                                                  p->conf->limits.frames)
                                  : handed(p, h),
                 bytes = (size_t)p->stage->slots * slot;
    s->slots += bytes;
    if (on_device) s->device_slots += bytes;
}

/* ---- stages: each beside what its main does ---- */

static sl_code plan_text(planner *p, sl_stage_plan *s, bool computes, sl_err *err)
{
    size_t row = (size_t)SL_UMT5_MAX_TOKENS * (size_t)p->model->umt5.d_model * sizeof(float);
    sl_arena a = {0};
    sl_umt5 *m = NULL;
    sl_code rc = open_counting(p, SL_PART_TEXT, err);
    if (!rc && !(m = sl_umt5_new(&p->model->umt5, p->loader)))
        rc = sl_fail(err, SL_NOMEM, "umt5: no memory");
    if (!rc) rc = close_counting(p, s, "text_encoder", err);
    /* the arena is taken whether a job computes or not */
    if (!rc) rc = sl_arena_text(&a, &p->body, &p->model->umt5, m, err);
    add_arena(s, &a);
    /* cond, uncond, both once more for the spool, one on its way */
    if (computes) s->host += 5 * row;
    sl_umt5_free(&m);
    return rc;
}

static sl_code plan_image(planner *p, sl_stage_plan *s, bool computes, sl_err *err)
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
        if (!(rc = open_counting(p, SL_PART_IMAGE, err)) &&
            !(c = sl_clip_new(&model->clip, p->loader)))
            rc = sl_fail(err, SL_NOMEM, "clip: no memory");
        if (!rc) rc = close_counting(p, s, "image_encoder", err);
        clip = (size_t)sl_image_tokens(model, job) * (size_t)model->clip.hidden * sizeof(float);
    }
    if (!rc) rc = open_counting(p, SL_PART_VAE, err);
    if (!rc && !(v = sl_vae_encoder_new(&model->vae, p->loader)))
        rc = sl_fail(err, SL_NOMEM, "vae: no memory");
    if (!rc) rc = close_counting(p, s, "vae", err);
    if (!rc && computes) rc = sl_arena_image(&a, &p->body, model, c, v, job, err);
    add_arena(s, &a);
    /* 8-bit pictures of the video's size and floats of them; results, and once more for
     * the spool */
    if (computes) s->host += pixels * 3 * 5 + 2 * (clip + handed(p, SL_HANDOVER_IMAGE));
    sl_clip_free(&c);
    sl_vae_encoder_free(&v);
    return rc;
}

static sl_code plan_denoise(planner *p, sl_stage_plan *s, bool computes, sl_err *err)
{
    static const char *const NAMES[SL_EXPERTS] = {"transformer", "transformer_2"};
    const sl_model *model = p->model;
    const sl_job *job = p->job;
    const bool teamed = sl_conf_teamed(p->conf, SL_ROLE_DENOISE), fixed = p->stage->team > 1;
    const sl_denoise_split split =
        sl_denoise_split_of(job, teamed && fixed ? p->stage->team : 1, 0);
    int64_t shape[4];
    sl_dit *dit[SL_EXPERTS] = {0};
    sl_schedule *schedule = malloc(sizeof *schedule);
    sl_merge_sizes lora;
    size_t merging = 0;
    sl_arena a = {0};
    sl_code rc = schedule ? SL_OK : sl_fail(err, SL_NOMEM, "denoise: no memory");
    for (int e = 0; e < model->family.experts && !rc; e++) {
        if ((rc = open_counting(p, e ? SL_PART_DIT_2 : SL_PART_DIT, err))) break;
        if (!(dit[e] = sl_dit_new(&model->dit[e], p->loader)))
            rc = sl_fail(err, SL_NOMEM, "%s: no memory", NAMES[e]);
        if (!rc && computes && !(rc = sl_lora_sizes(job, e, p->loader, &lora, err))) {
            if (p->body.host_memory) s->weights += lora.host_bytes;
            if (lora.arena_bytes > merging) merging = lora.arena_bytes;
        }
        if (!rc) rc = close_counting(p, s, NAMES[e], err);
    }
    if (!rc && computes)
        rc = sl_schedule_make(schedule, (sl_sampler_kind)sl_sampler_by_name(job->sampler),
                              job->steps, job->shift, err);
    if (!rc && computes)
        rc = sl_denoise_arena(
            &a, &p->body,
            &(sl_denoise_sizes){
                .model = model, .dit = dit, .job = job, .schedule = schedule, .split = &split},
            err);
    if (merging > a.peak) a.peak = merging; /* before the job's own are there */
    add_arena(s, &a);
    if (!rc && teamed)
        rc = sl_denoise_window(&s->window, &p->body, model, dit, p->conf->limits.pixels,
                               p->conf->limits.frames, sl_conf_instances(p->conf, SL_ROLE_DENOISE),
                               err);
    sl_denoise_shape(model, job, shape);
    size_t latents = (size_t)(shape[0] * shape[1] * shape[2] * shape[3]) * sizeof(float);
    size_t held = 0;
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].to == SL_ROLE_DENOISE && sl_handover_applies(h, model, NULL))
            held += handed(p, h);
    /* noise, result, the state of four, the state and both results once more for the spool; with
     * the cache a rank keeps the state of the last step that computed, too; inputs */
    if (computes)
        s->host += (teamed && job->fbcache > 0 ? 16 : 12) * latents + held +
                   sl_denoise_preview_bytes(model, job);
    for (int e = 0; e < SL_EXPERTS; e++) sl_dit_free(&dit[e]);
    free(schedule);
    return rc;
}

static sl_code plan_decode(planner *p, sl_stage_plan *s, bool computes, sl_err *err)
{
    sl_arena a = {0};
    sl_vae_decoder *m = NULL;
    sl_code rc = open_counting(p, SL_PART_VAE, err);
    if (!rc && !(m = sl_vae_decoder_new(&p->model->vae, p->loader)))
        rc = sl_fail(err, SL_NOMEM, "vae: no memory");
    if (!rc) rc = close_counting(p, s, "vae", err);
    if (!rc && computes) rc = sl_arena_decode(&a, &p->body, p->model, m, p->job, err);
    add_arena(s, &a);
    s->host += handed(p, SL_HANDOVER_LATENTS);
    sl_vae_decoder_free(&m);
    return rc;
}

static sl_code plan_mux(planner *p, sl_stage_plan *s, bool computes, sl_err *err)
{
    const char *preset = p->conf->video.preset;
    bool slow =
        !strcmp(preset, "slower") || !strcmp(preset, "veryslow") || !strcmp(preset, "placebo");
    const sl_grid g = sl_job_grid(p->model, p->job);
    sl_tensor_spec frames[SL_HANDOVER_TENSORS]; /* [n, h, w, 3] */
    (void)computes;
    (void)err;
    sl_handover_tensors(frames, (sl_handover)sl_chunks_to(SL_ROLE_MUX), p->model, &g, p->job);
    size_t pixels = (size_t)(frames[0].shape[1] * frames[0].shape[2]);
    s->host += pixels * ((slow ? ENCODER_PIXEL_SLOW : ENCODER_PIXEL) +
                         ENCODER_PIXEL_THREAD * (size_t)p->conf->video.threads);
    return SL_OK;
}

/* What it takes and what it gives, once more each; the program's own memory nobody knows. */
static sl_code plan_filter(planner *p, sl_stage_plan *s, bool computes, sl_err *err)
{
    const sl_handover in = sl_filter_takes(p->stage->role);
    (void)err;
    if (computes && SL_HANDOVER[in].how == SL_WHOLE) s->host += 3 * handed(p, in);
    return SL_OK;
}

/* ---- a run ---- */

typedef sl_code stage_fn(planner *p, sl_stage_plan *s, bool computes, sl_err *err);
/* What a stage takes beside its process and the pools it receives in; NULL: nothing. */
static stage_fn *const STAGES[SL_ROLE_COUNT] = {
    [SL_ROLE_TEXT] = plan_text,     [SL_ROLE_IMAGE] = plan_image, [SL_ROLE_DENOISE] = plan_denoise,
    [SL_ROLE_DECODE] = plan_decode, [SL_ROLE_MUX] = plan_mux,
};

/* Does a replay from the stage `from` compute this one? "": a run computes all. */
static bool computes(const char *from, sl_role role)
{
    return !*from || sl_role_follows(role, (sl_role)sl_role_by_name(from));
}

static bool same_sizes(const sl_job *a, const sl_job *b)
{
    return a->width == b->width && a->height == b->height && a->frames == b->frames &&
           a->steps == b->steps && !strcmp(a->sampler, b->sampler) && a->shift == b->shift &&
           sl_denoise_branches(a) == sl_denoise_branches(b) &&
           (a->fbcache > 0) == (b->fbcache > 0) && !*a->image == !*b->image &&
           !*a->last_image == !*b->last_image;
}

static size_t sum(const sl_stage_plan *s)
{
    return s->weights + s->kept + s->work + s->slots + s->window + s->context + s->host;
}

/* The k-th stage of the configuration, for the planner's job. */
static sl_code plan_stage(planner *p, sl_stage_plan *s, int k, const char *from, sl_err *err)
{
    const sl_conf_stage *c = p->stage = &p->conf->stages[k];
    sl_code rc;
    *s = (sl_stage_plan){.role = c->role};
    if (c->role == SL_ROLE_IMAGE && !p->model->family.picture) return SL_OK;
    s->runs = true;
    sl_conf_name(p->conf, c, s->name);
    snprintf(s->device, sizeof s->device, "%s", sl_role_on_host(c->role) ? "cpu" : c->device);
    s->host = PROCESS_BYTES;
    if (strcmp(s->device, "cpu")) {
        s->context = SL_GPU_CONTEXT_BYTES + SL_GPU_WORKSPACE_BYTES + SL_GPU_SCRATCH_BYTES;
        s->host = GPU_PROCESS_BYTES;
    }
    p->body = sl_ops_plan_of(sizes_of(s->device));
    if ((rc = sl_ctx_open(&p->ctx, &p->body, 0, err))) return rc;
    if (sl_role_is_filter(c->role)) rc = plan_filter(p, s, computes(from, c->role), err);
    else if (STAGES[c->role]) rc = STAGES[c->role](p, s, computes(from, c->role), err);
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].to == c->role && sl_handover_applies(h, p->model, NULL))
            add_slots(p, s, h);
    sl_loader_close(&p->loader);
    sl_ctx_close(&p->ctx);
    return rc;
}

sl_code sl_plan_make(sl_run_plan *out, const sl_batch *b, const sl_model *model,
                     const sl_conf *conf, sl_err *err)
{
    planner p = {.model = model, .conf = conf, .maps = &b->gpus.maps, .plan = out};
    sl_code rc = SL_OK;
    memset(out, 0, sizeof *out);
    out->from_files = true;
    out->count = conf->stage_count;
    for (int i = 0; i < b->job_count && !rc; i++) {
        p.job = &b->jobs[i].spec;
        if (i && same_sizes(p.job, &b->jobs[i - 1].spec)) continue;
        for (int k = 0; k < conf->stage_count && !rc; k++) {
            sl_stage_plan s;
            rc = plan_stage(&p, &s, k, b->from, err);
            if (!rc && sum(&s) > sum(&out->stages[k])) out->stages[k] = s;
        }
    }
    return rc;
}

size_t sl_plan_private(const sl_stage_plan *s, const char *device)
{
    bool here = s->runs && !strcmp(s->device, device), host = s->runs && !strcmp(device, "cpu");
    size_t on_cpu = s->slots - s->device_slots;
    return (here ? s->weights + s->kept + s->work + s->device_slots + s->window + s->context : 0) +
           (host ? on_cpu + s->host : 0);
}

size_t sl_plan_mapped(const sl_run_plan *plan, int i)
{
    for (int k = 0; k < i; k++)
        if (plan->stages[k].role == plan->stages[i].role && plan->stages[k].mapped) return 0;
    return plan->stages[i].mapped;
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

/* Where a version of cgroups keeps its files, and what they are called. */
typedef struct {
    const char *folder, *limit, *used, *cache[2];
} group_files;
static const group_files V1 = {"/sys/fs/cgroup/memory",
                               "memory.limit_in_bytes",
                               "memory.usage_in_bytes",
                               {"total_inactive_file", "total_active_file"}},
                         V2 = {"/sys/fs/cgroup",
                               "memory.max",
                               "memory.current",
                               {"inactive_file", "active_file"}};

/* Bytes that one cgroup still gives: its limit less what it uses, but for page cache, which
 * goes when memory is wanted. UINT64_MAX where it has no limit: version 2 says "max", or is the top
 * without the file; version 1 says a number that no machine has (9223372036854771712); and one of
 * `total` bytes, all that this machine has, or more, limits nothing. */
static uint64_t group_gives(const group_files *v, const char *root, uint64_t total,
                            const char *group)
{
    char path[SL_PATH], text[16384];
    uint64_t limit, used, file = 0, more;
    snprintf(path, sizeof path, "%s%.900s/%s", v->folder, group, v->limit);
    if (!read_text(text, sizeof text, root, path) || sscanf(text, "%lu", &limit) != 1 ||
        limit >= total)
        return UINT64_MAX;
    snprintf(path, sizeof path, "%s%.900s/%s", v->folder, group, v->used);
    if (!read_text(text, sizeof text, root, path) || sscanf(text, "%lu", &used) != 1)
        return UINT64_MAX;
    snprintf(path, sizeof path, "%s%.900s/memory.stat", v->folder, group);
    for (int i = 0; i < 2 && read_text(text, sizeof text, root, path); i++)
        if (read_number(text, v->cache[i], &more)) file += more;
    used = used > file ? used - file : 0;
    return limit > used ? limit - used : 0;
}

/* The tightest of a cgroup and all around it. `group` is a path of SL_PATH bytes. */
static uint64_t groups_give(const group_files *v, const char *root, uint64_t total, char *group)
{
    uint64_t least = UINT64_MAX;
    while (true) {
        char *slash = strrchr(group, '/');
        if (slash && !slash[1]) *slash = 0;
        const uint64_t g = group_gives(v, root, total, group);
        if (g < least) least = g;
        if (!*group || !(slash = strrchr(group, '/'))) return least;
        *slash = 0;
    }
}

/* A line of /proc/self/cgroup, "ID:CONTROLLERS:PATH": which version has its memory, or NULL. */
static const group_files *version_of(const char *line)
{
    if (!strncmp(line, "0::", 3)) return &V2;
    const char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
    for (const char *at = names; at && at < path; at = strpbrk(at + 1, ",:"))
        if (!strncmp(at + 1, "memory", 6) && (at[7] == ',' || at[7] == ':')) return &V1;
    return NULL;
}

sl_code sl_plan_machine(sl_machine_memory *out, const char *root, sl_err *err)
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
    const char *line = read_text(text, sizeof text, root, "/proc/self/cgroup") ? text : NULL;
    for (; line && *line; line += strcspn(line, "\n"), line += *line == '\n') {
        const group_files *v = version_of(line);
        const char *path = v ? strchr(strchr(line, ':') + 1, ':') + 1 : NULL;
        if (!v) continue;
        snprintf(group, sizeof group, "%.*s", (int)strcspn(path, "\n"), path);
        const uint64_t g = groups_give(v, root, out->total, group);
        if (g < out->group) out->group = g;
    }
    struct rlimit r;
    out->address =
        getrlimit(RLIMIT_AS, &r) || r.rlim_cur == RLIM_INFINITY ? UINT64_MAX : r.rlim_cur;
    out->gives = out->group < out->available ? out->group : out->available;
    return SL_OK;
}

/* ---- admission ---- */

/* Bytes that one device has to hold, and the stage that takes most of them. */
static size_t total_of(const sl_run_plan *plan, const char *device, int *largest, size_t *most)
{
    size_t wanted = 0;
    *most = 0;
    for (int i = 0; i < plan->count; i++) {
        size_t n = sl_plan_private(&plan->stages[i], device);
        wanted += n;
        if (n > *most) *most = n, *largest = i;
    }
    return wanted;
}

static sl_code admit_gpus(const sl_run_plan *plan, const sl_gpus *gpus, sl_err *err)
{
    for (int i = 0; i < plan->count; i++) {
        const char *device = plan->stages[i].device;
        const uint64_t *there = plan->stages[i].runs ? sl_gpus_free(gpus, device) : NULL;
        int largest = 0;
        size_t most, wanted = there ? total_of(plan, device, &largest, &most) : 0;
        if (there && wanted > *there)
            return sl_fail(err, SL_NOMEM,
                           "the run wants %zu bytes of %s, there are %llu free of %llu; the "
                           "largest stage is %s with %zu: sluice plan "
                           "shows all",
                           wanted, device, (unsigned long long)*there,
                           (unsigned long long)gpus->gpu[atoi(device + 5)].total,
                           plan->stages[largest].name, most);
    }
    return SL_OK;
}

/* A stage's libraries, the stacks and heaps of its threads: addresses that it takes beside its
 * plan. Measured on two processors, 0.6 to 0.95 GB; with less OpenBLAS waits for memory for
 * ever. */
#define ADDRESSES_BESIDE ((uint64_t)1 << 30)

static sl_code admit_addresses(const sl_run_plan *plan, uint64_t limit, sl_err *err)
{
    for (int i = 0; i < plan->count; i++) {
        const uint64_t wanted =
            sl_plan_private(&plan->stages[i], "cpu") + sl_plan_mapped(plan, i) + ADDRESSES_BESIDE;
        if (plan->stages[i].runs && wanted > limit)
            return sl_fail(err, SL_NOMEM,
                           "stage %s wants %llu bytes of addresses, this process and its children "
                           "may have %llu each (ulimit -v)",
                           plan->stages[i].name, (unsigned long long)wanted,
                           (unsigned long long)limit);
    }
    return SL_OK;
}

sl_code sl_plan_admit(sl_admission *out, const sl_batch *b, const sl_model *model,
                      const sl_conf *conf, sl_err *err)
{
    sl_machine_memory m;
    sl_run_plan plan;
    size_t mapped = 0, most;
    int largest = 0;
    sl_code rc = sl_plan_make(&plan, b, model, conf, err);
    if (rc || (rc = sl_plan_machine(&m, "", err)) || (rc = admit_gpus(&plan, &b->gpus, err)) ||
        (rc = admit_addresses(&plan, m.address, err)))
        return rc;
    uint64_t there = conf->limits.memory_bytes ? (uint64_t)conf->limits.memory_bytes : m.gives;
    const char *why = conf->limits.memory_bytes ? "limits.memory_bytes"
                      : m.group < m.available   ? "its cgroup's limit"
                                                : "MemAvailable";
    size_t wanted = total_of(&plan, "cpu", &largest, &most);
    for (int i = 0; i < plan.count; i++) mapped += sl_plan_mapped(&plan, i);
    if (wanted > there)
        return sl_fail(err, SL_NOMEM,
                       "the run wants %zu bytes of memory, there are %llu (%s); the largest stage "
                       "is %s with %zu: sluice plan shows all",
                       wanted, (unsigned long long)there, why, plan.stages[largest].name, most);
    out->mapped = out->held = mapped;
    if (!conf->limits.memory_bytes && mapped > there - wanted) out->held = there - wanted;
    return SL_OK;
}
