/* plan.c - `sluice plan`: the bytes that a run takes, as a table and as JSON. */
#include "stages/cli/arguments.h"
#include "stages/cli/verbs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "common/log.h"
#include "stages/sizes/denoise.h"
#include "stages/job/check.h"
#include "stages/job/plan.h"

/* Sums of one device over its stages. */
typedef struct {
    const char *name;
    size_t mapped, wanted;
} device_sum;

static int add_up(const sl_run_plan *p, device_sum list[SL_CONF_SEATS + 1])
{
    int n = 1;
    list[0] = (device_sum){.name = "cpu"}; /* host memory: every process has some */
    for (int i = 0; i < p->count; i++) {
        int k = 0;
        if (!p->stages[i].runs) continue;
        while (k < n && strcmp(list[k].name, p->stages[i].device)) k++;
        if (k == n) list[n++] = (device_sum){.name = p->stages[i].device};
        list[k].mapped += sl_plan_mapped(p, i);
    }
    for (int k = 0; k < n; k++)
        for (int i = 0; i < p->count; i++)
            list[k].wanted += sl_plan_private(&p->stages[i], list[k].name);
    return n;
}

static double mb(size_t bytes)
{
    return (double)bytes * 1e-6;
}

static void print_plan(const sl_run_plan *p, const sl_job *j, int jobs, const sl_machine_memory *m,
                       const sl_gpus *gpus, const sl_conf *conf)
{
    device_sum devices[SL_CONF_SEATS + 1];
    int n = add_up(p, devices), width = 8;
    bool windows = false;
    for (int i = 0; i < p->count; i++) {
        if ((int)strlen(p->stages[i].name) > width) width = (int)strlen(p->stages[i].name);
        windows = windows || p->stages[i].window;
    }
    const bool bf16 = !strcmp(j->precision, sl_precision_name(SL_PRECISION_BF16));
    printf("%s\n%s%dx%d, %d frames, %d steps%s%s%s%s\n", j->model,
           jobs > 1 ? "the largest of the jobs; the first is " : "", j->width, j->height, j->frames,
           j->steps, sl_denoise_branches(j) > 1 ? ", guidance" : "",
           j->fbcache > 0 ? ", First Block Cache" : "", bf16 ? "" : ", ", bf16 ? "" : j->precision);
    printf("\n  %-*s %-7s %10s %10s %10s %10s %10s", width, "stage", "device", "mapped", "weights",
           "job", "work", "slots");
    if (windows) printf(" %10s", "window");
    printf(" %10s %10s   MB\n", "context", "host");
    for (int i = 0; i < p->count; i++) {
        const sl_stage_plan *s = &p->stages[i];
        if (!s->runs) continue;
        printf("  %-*s %-7s %10.1f %10.1f %10.1f %10.1f %10.1f", width, s->name, s->device,
               mb(s->mapped), mb(s->weights), mb(s->kept), mb(s->work), mb(s->slots));
        if (windows) printf(" %10.1f", mb(s->window));
        printf(" %10.1f %10.1f\n", mb(s->context), mb(s->host));
    }
    printf("  mapped: weights that stay in their files, in the page cache; job and work: the "
           "arena, what a job keeps and what a "
           "step needs;\n  context: of a GPU, what the driver, libraries and operations take "
           "beside that\n%s\n",
           windows ? "  window: of a rank, what the others of its team write to\n" : "");
    for (int k = 0; k < n; k++) {
        printf("  %-7s %.1f MB", devices[k].name, mb(devices[k].wanted));
        if (k) {
            const uint64_t *gives = sl_gpus_free(gpus, devices[k].name);
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

static sl_code write_plan(const sl_run_plan *p, const sl_job *j, const sl_machine_memory *m,
                          const sl_gpus *gpus, const sl_conf *conf, const char *path, sl_err *err)
{
    device_sum devices[SL_CONF_SEATS + 1];
    json_t *stages = json_object(), *sums = json_object();
    uint64_t there = conf->limits.memory_bytes ? (uint64_t)conf->limits.memory_bytes : m->gives;
    for (int i = 0; i < p->count; i++) {
        const sl_stage_plan *s = &p->stages[i];
        if (!s->runs) continue;
        json_object_set_new(
            stages, s->name,
            json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "device",
                      s->device, "weight_bytes", (json_int_t)(s->mapped + s->weights),
                      "mapped_bytes", (json_int_t)s->mapped, "private_weight_bytes",
                      (json_int_t)s->weights, "job_bytes", (json_int_t)s->kept, "work_bytes",
                      (json_int_t)s->work, "arena_bytes", (json_int_t)(s->kept + s->work),
                      "slot_bytes", (json_int_t)s->slots, "device_slot_bytes",
                      (json_int_t)s->device_slots, "window_bytes", (json_int_t)s->window,
                      "context_bytes", (json_int_t)s->context, "host_bytes", (json_int_t)s->host));
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
        const uint64_t *gives = sl_gpus_free(gpus, devices[k].name);
        if (gives) {
            json_object_set_new(
                d, "total_bytes",
                json_integer((json_int_t)gpus->gpu[atoi(devices[k].name + 5)].total));
            json_object_set_new(d, "available_bytes", json_integer((json_int_t)*gives));
            json_object_set_new(d, "fits", json_boolean(devices[k].wanted <= *gives));
        }
        json_object_set_new(sums, devices[k].name, d);
    }
    json_t *root = json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:b, s:o, s:o}", "model", j->model,
                             "precision", j->precision, "width", j->width, "height", j->height,
                             "frames", j->frames, "step_count", j->steps, "from_files",
                             (int)p->from_files, "stages", stages, "devices", sums);
    errno = 0;
    int bad = !root || json_dump_file(root, path, JSON_INDENT(2)), why = errno;
    json_decref(root);
    return bad ? sl_fail_errno(err, why ? why : EIO, "report %s", path) : SL_OK;
}

int sl_cli_plan(int argc, char **argv)
{
    sl_batch o = {0};
    sl_model model;
    sl_conf conf;
    sl_run_plan plan;
    sl_machine_memory machine;
    sl_err err = {0};
    if (!sl_cli_parse(&o, false, argc, argv, &err) && !sl_batch_complete(&o, &model, &conf, &err) &&
        !sl_plan_make(&plan, &o, &model, &conf, &err) && !sl_plan_machine(&machine, "", &err)) {
        if (!o.quiet) print_plan(&plan, &o.jobs[0].spec, o.job_count, &machine, &o.gpus, &conf);
        if (*o.base.json)
            write_plan(&plan, &o.jobs[0].spec, &machine, &o.gpus, &conf, o.base.json, &err);
    }
    if (err.code) sl_complain("%s", err.msg);
    sl_batch_free(&o);
    return err.code ? SL_EXIT_REFUSED : SL_EXIT_OK;
}
