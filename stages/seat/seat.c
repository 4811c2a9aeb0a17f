/* seat.c - a stage's process: opening, closing, its device, a job's beginning and end. */
#include "stages/seat/seat.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/log.h"
#include "stages/sizes/sizes.h"

/* ---- what the control asks ---- */

/* On the socket's thread: what the main thread need not be asked for. */
static bool hear(void *self, const sl_msg *m, sl_msg *reply)
{
    sl_seat *seat = self;
    switch (m->type) {
    case SL_MSG_GRANT:
    case SL_MSG_REVOKE: sl_turn_hear(&seat->turn, m, reply); return true;
    case SL_MSG_CANCEL: sl_turn_hear(&seat->turn, m, reply); return false;
    default: return sl_pools_hear(&seat->pools, m);
    }
}

static bool note(void *self, const sl_msg *m)
{
    sl_seat *seat = self;
    return sl_mates_note(&seat->mates, m) || sl_pools_note(&seat->pools, m);
}

/* ---- opening ---- */

typedef struct {
    const char *endpoint, *conf, *model, *device;
} arguments;

/* The four options come first, as the dispatcher gives them; the words behind them are the
 * configuration's `args`. */
static sl_code parse_args(sl_seat *seat, arguments *a, int argc, char **argv, sl_err *err)
{
    const struct {
        const char *name, **value;
    } options[] = {{"--connect", &a->endpoint},
                   {"--conf", &a->conf},
                   {"--model", &a->model},
                   {"--device", &a->device}};
    int i = 1;
    for (bool known = true; known && i < argc;) {
        known = false;
        for (size_t o = 0; o < sizeof options / sizeof *options && !known; o++) {
            if (strcmp(argv[i], options[o].name) || *options[o].value) continue;
            if (i + 1 == argc)
                return sl_fail(err, SL_ARG, "%s: option %s has no value", argv[0], argv[i]);
            *options[o].value = argv[i + 1];
            known = true;
        }
        i += 2 * known;
    }
    seat->args = argv + i;
    seat->arg_count = argc - i;
    snprintf(seat->device, sizeof seat->device, "%s", a->device ? a->device : "cpu");
    if (!a->endpoint || !a->model)
        return sl_fail(err, SL_ARG,
                       "%s: want --connect ENDPOINT and --model DIR (the dispatcher starts stages)",
                       argv[0]);
    return SL_OK;
}

/* OpenBLAS asks for its working buffer again and again where there is no room for it: a limit of
 * the address space is looked at before. */
static sl_code check_address_space(sl_role role, sl_err *err)
{
    const size_t want = (size_t)160 << 20; /* the buffer, 128 MiB, and stacks of threads */
    struct rlimit limit;
    if (sl_role_on_host(role) || getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY)
        return SL_OK;
    void *p = mmap(NULL, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p != MAP_FAILED) munmap(p, want);
    if (p != MAP_FAILED) return SL_OK;
    return sl_fail(err, SL_ARG,
                   "the address space is limited to %llu bytes (ulimit -v), which leaves less than "
                   "the %zu of a working buffer",
                   (unsigned long long)limit.rlim_cur, want);
}

sl_code sl_seat_open(sl_seat **out, sl_role role, int argc, char **argv, sl_err *err)
{
    arguments a = {0};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sl_msg hello = {.type = SL_MSG_HELLO, .hello = {.pid = getpid()}};
    const char *filter = getenv("SLUICE_FILTER"); /* the dispatcher says it */
    const char *name = role != SL_SEAT_FILTER ? sl_role_name(role)
                       : filter && *filter    ? filter
                                              : "filter";
    sl_seat *seat = *out = calloc(1, sizeof *seat);
    sl_code rc;
    if (!seat) return sl_fail(err, SL_NOMEM, "stage %s: no memory", name);

    /* who ends it */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sl_control_catch_term();
    sigaction(SIGINT, &ignore, NULL); /* Ctrl-C is the client's business */
    sigaction(SIGPIPE, &ignore, NULL);

    /* what it is to be */
    const char *instance = getenv("SLUICE_INSTANCE"); /* the dispatcher says it */
    seat->role = role;
    seat->instance = instance ? atoi(instance) : 0;
    sl_log_open(name, SL_LOG_INFO);
    sl_conf_defaults(&seat->conf);
    if ((rc = parse_args(seat, &a, argc, argv, err))) return rc;
    if (a.conf && (rc = sl_conf_read_file(&seat->conf, a.conf, err))) return rc;
    sl_conf_use(&seat->conf);
    if (role == SL_SEAT_FILTER) {
        role = seat->role = (sl_role)sl_role_by_name(name);
        if (!sl_role_is_filter(role))
            return sl_fail(err, SL_ARG,
                           "%s: it is a filter, and is not started as one of \"filters\"", argv[0]);
    }
    sl_log_open(name, seat->conf.run.log);
    sl_log_use_format(seat->conf.run.log_format);
    sl_origin_of_process(&seat->spool.origin, argv[0], seat->device);
    if ((rc = sl_model_open_files(&seat->model, a.model, &seat->conf.model.files, err)) ||
        (rc = sl_model_use_precision(
             &seat->model, seat->conf.denoise.precision, seat->conf.denoise.bf16_blocks,
             seat->conf.denoise.fp8_attention_steps, seat->conf.denoise.fp8_sums, err)))
        return rc;
    /* a process keeps the kernels that it uses; set before there are threads */
    if (strcmp(seat->device, "cpu")) {
        setenv("CUDA_MODULE_LOADING", "LAZY", 0);
        setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); /* a stream that waits blocks no other */
    }

    /* its parts: what the socket's thread calls is there before it */
    sl_turn_open(&seat->turn, &seat->control, &seat->conf, seat->device);
    sl_pools_open(&seat->pools, &seat->control);
    if ((rc = sl_control_open(&seat->control, role, a.endpoint, seat->conf.supervise.heartbeat_ms,
                              hear, note, seat, err)) ||
        (rc = sl_spool_open(&seat->spool, &seat->control, err)))
        return rc;
    if (sl_control_term_seen()) return sl_fail(err, SL_GONE, "drained before it began");
    snprintf(hello.hello.role, sizeof hello.hello.role, "%s", name);
    snprintf(hello.hello.device, sizeof hello.hello.device, "%s", seat->device);
    sl_control_send(&seat->control, &hello);
    return check_address_space(role, err); /* the dispatcher knows by now who says so */
}

void sl_seat_close(sl_seat **seatp)
{
    sl_seat *seat = *seatp;
    if (!seat) return;
    *seatp = NULL;
    sl_spool_close(&seat->spool); /* it says SPOOLED */
    sl_control_close(&seat->control);
    sl_pools_close(&seat->pools);
    sl_turn_close(&seat->turn);
    if (seat->plugin) sl_pinned_close(&seat->pinned, seat->plugin);
    free(seat);
}

int sl_seat_exit(sl_seat **seat, const sl_err *err)
{
    bool bad = err->code != SL_OK && err->code != SL_GONE;
    bool told = bad && *seat && (*seat)->control.out;
    if (bad && !told) sl_log_err("stopping", err);
    if (told) { /* the dispatcher tells the user why, once, instead of an exit status */
        sl_msg m = {.type = SL_MSG_FAILED, .failed = {.code = (int32_t)err->code}};
        snprintf(m.failed.message, sizeof m.failed.message, "%s", err->msg);
        sl_control_send(&(*seat)->control, &m);
    }
    sl_seat_close(seat);
    return bad;
}

/* ---- the device ---- */

sl_code sl_seat_device(sl_seat *seat, sl_err *err)
{
    const char *role = sl_role_name(seat->role);
    sl_code rc;
    if (!strcmp(seat->device, "cpu")) return SL_OK;
    if (strncmp(seat->device, "cuda:", 5))
        return sl_fail(err, SL_ARG, "%s: device %s is unknown, want cpu or cuda:N", role,
                       seat->device);
    const sl_plugin *p = sl_plugin_cuda(err);
    if (!p) return sl_context(err, err->code, "%s: device %s", role, seat->device);
    int n = atoi(seat->device + 5), there = p->devices();
    if (n >= there)
        return sl_fail(err, SL_ARG, "%s: device %s: found %d CUDA devices, want at least %d", role,
                       seat->device, there, n + 1);
    if ((rc = p->use(n, err))) return sl_context(err, rc, "%s: device %s", role, seat->device);
    sl_pool_use_cuda(p->slabs);
    seat->plugin = p;
    return SL_OK;
}

/* Which GPUs of the deployment can map the seat's, for what it receives. One that is not there is
 * its own stage's trouble. */
static sl_gpu_maps maps_of(const sl_seat *seat)
{
    sl_gpu_maps maps = {{0}};
    const int own = seat->plugin ? atoi(seat->device + 5) : 0;
    for (int i = 0; i < seat->conf.stage_count && seat->plugin; i++) {
        const char *device = seat->conf.stages[i].device;
        const int n = strncmp(device, "cuda:", 5) ? own : atoi(device + 5);
        bool yes = false;
        sl_err ignored = {0};
        if (n != own && !seat->plugin->can_map(own, n, &yes, &ignored) && yes)
            maps.of[own] |= (uint64_t)1 << n;
    }
    return maps;
}

sl_code sl_seat_receive(sl_seat *seat, sl_err *err)
{
    const sl_conf *conf = &seat->conf;
    const sl_gpu_maps maps = maps_of(seat);
    const sl_conf_stage *me = NULL;
    for (int i = 0; i < conf->stage_count; i++)
        if (conf->stages[i].role == seat->role && conf->stages[i].instance == seat->instance)
            me = &conf->stages[i];
    int slots = me ? me->slots : sl_default_slots(seat->role);
    sl_code rc = SL_OK;
    for (int h = 0; h < sl_handover_count() && !rc; h++)
        if (SL_HANDOVER[h].to == seat->role && sl_handover_applies(h, &seat->model, NULL))
            rc = sl_pools_make(
                &seat->pools, h,
                seat->plugin ? sl_slot_kind(conf, h, seat->device, &maps) : SL_POOL_HOST, slots,
                sl_slot_bytes(&seat->model, h, conf->limits.pixels, conf->limits.frames), err);
    return rc;
}

void *sl_seat_host_alloc(sl_seat *seat, size_t bytes)
{
    return seat->plugin ? sl_pinned_alloc(&seat->pinned, seat->plugin, bytes) : malloc(bytes + 1);
}

void sl_seat_host_free(sl_seat *seat, void *p)
{
    if (seat->plugin) sl_pinned_free(&seat->pinned, seat->plugin, p);
    else free(p);
}

size_t sl_seat_peak_bytes(void)
{
    FILE *f = fopen("/proc/self/status", "re");
    char line[256];
    unsigned long kb = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lu", &kb) == 1) break;
    if (f) fclose(f);
    return (size_t)kb << 10;
}

/* ---- a job's beginning and end ---- */

char *const *sl_seat_args(sl_seat *seat, int *count)
{
    seat->args_read = true;
    *count = seat->arg_count;
    return seat->args;
}

void sl_seat_ready(sl_seat *seat, int64_t load_t0_ns, size_t weight_bytes, size_t arena_bytes)
{
    if (seat->arg_count && !seat->args_read)
        sl_log(SL_LOG_WARN, "args of the configuration, from \"%.60s\" on, are of no use here",
               seat->args[0]);
    sl_msg m = {.type = SL_MSG_READY,
                .ready = {.load_s = (double)(sl_now_ns() - load_t0_ns) * 1e-9,
                          .weight_bytes = weight_bytes,
                          .arena_bytes = arena_bytes}};
    sl_control_span(&seat->control, 0, SL_SPAN_LOAD, load_t0_ns);
    sl_control_send(&seat->control, &m);
}

sl_code sl_seat_job(sl_seat *seat, sl_job *job, const sl_msg_job *msg, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc = sl_path_join(path, msg->dir, "job.json", err);
    if (!rc) rc = sl_job_read(job, path, err);
    if (!rc && (rc = sl_job_check(job, err))) sl_job_free(job);
    if (!rc) sl_origin_of_job(&seat->spool.origin, job);
    return rc;
}

bool sl_seat_begin(sl_seat *seat, const sl_msg_job *msg)
{
    sl_turn_end(&seat->turn, false);
    sl_log_job(msg ? sl_path_last(msg->dir) : NULL);
    return sl_control_begin(&seat->control, msg ? msg->job : 0, msg ? msg->attempt : 0);
}

void sl_seat_done(sl_seat *seat, const sl_msg_job *msg, const sl_tickets *out, size_t arena_bytes,
                  uint64_t bytes)
{
    sl_msg m = {.type = SL_MSG_DONE,
                .done = {.job = msg->job,
                         .attempt = msg->attempt,
                         .peak_bytes = sl_seat_peak_bytes(),
                         .arena_bytes = arena_bytes,
                         .bytes = bytes}};
    if (out) m.done.out = *out;
    sl_seat_begin(seat, NULL);
    sl_control_send(&seat->control, &m);
}

void sl_seat_failed(sl_seat *seat, const sl_msg_job *msg, const sl_err *err)
{
    sl_msg m = {.type = SL_MSG_FAILED,
                .failed = {.job = msg->job, .attempt = msg->attempt, .code = (int32_t)err->code}};
    sl_err late = {0};
    snprintf(m.failed.message, sizeof m.failed.message, "%s", err->msg);
    if (sl_spool_flush(&seat->spool, &late)) sl_log_err("spool", &late);
    sl_seat_begin(seat, NULL);
    sl_control_send(&seat->control, &m);
}
