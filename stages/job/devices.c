/* devices.c - the GPUs of this machine, asked by a child process: the parent would
 * keep a context, half a gigabyte, for as long as the run takes. */
#include "stages/job/devices.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "kernels/plugin.h"

/* seconds, the longest wait for the driver: the first context after a boot takes some */
#define ANSWER_S 60

typedef struct {
    sl_gpus gpus;
    sl_err err;
} answer;

/* N of "cuda:N"; -1: another device. */
static int ordinal(const char *device)
{
    const char *n = device + 5;
    size_t digits = strncmp(device, "cuda:", 5) ? 0 : strspn(n, "0123456789");
    if (digits < 1 || digits > 2 || n[digits] || (digits == 2 && *n == '0') ||
        atoi(n) >= SL_MAX_GPUS)
        return -1;
    return atoi(n);
}

/* ---- which stage gets which ---- */

static sl_code no_device(const char *text, sl_err *err)
{
    return sl_fail(err, SL_ARG,
                   "--device is %s, want cpu or cuda:N with N from 0 to %d, or up to %d of them "
                   "with commas between",
                   text, SL_MAX_GPUS - 1, SL_RANKS);
}

sl_code sl_device_list_read(sl_device_list *out, const char *text, sl_err *err)
{
    out->count = 0;
    for (const char *at = text;; at++) {
        size_t n = strcspn(at, ",");
        if (out->count == SL_RANKS || n >= sizeof out->at[0]) return no_device(text, err);
        char *one = out->at[out->count];
        memcpy(one, at, n);
        one[n] = 0;
        const bool cpu = !strcmp(one, "cpu");
        if (!cpu && ordinal(one) < 0) return no_device(text, err);
        if (cpu == (strcmp(out->at[0], "cpu") != 0))
            return sl_fail(err, SL_ARG, "--device is %s, want devices of one kind", text);
        out->count++;
        if (!*(at += n)) return SL_OK;
    }
}

/* A role with teams gets an instance on each device, in the place of those that it has. */
static sl_code spread(sl_conf *conf, const sl_device_list *d, sl_err *err)
{
    const sl_conf from = *conf;
    conf->stage_count = 0;
    for (int i = 0; i < from.stage_count; i++) {
        const sl_conf_stage *s = &from.stages[i];
        const bool teams = sl_role_has_teams(s->role);
        if (teams && s->instance) continue;
        if (teams && s->team > d->count)
            return sl_fail(err, SL_ARG, "--device names %d devices, want the %d of a team of %s",
                           d->count, s->team, sl_role_name(s->role));
        for (int k = 0; k < (teams ? d->count : 1); k++) {
            sl_conf_stage *to = &conf->stages[conf->stage_count];
            if (conf->stage_count++ == SL_CONF_SEATS)
                return sl_fail(err, SL_ARG,
                               "--device makes more than %d processes of the stages, want fewer "
                               "devices",
                               SL_CONF_SEATS);
            *to = *s;
            if (!teams) continue;
            to->instance = k;
            snprintf(to->device, sizeof to->device, "%s", d->at[k]);
        }
    }
    return SL_OK;
}

/* What comes before a role with teams works on the first device, what comes after on the last. */
static const char *device_of(sl_role role, const sl_device_list *d)
{
    for (int r = 0; r < (int)role; r++)
        if (sl_role_has_teams((sl_role)r)) return d->at[d->count - 1];
    return d->at[0];
}

sl_code sl_conf_use_device(sl_conf *conf, const char *devices, sl_err *err)
{
    sl_device_list d;
    sl_code rc;
    if (*devices && (rc = sl_device_list_read(&d, devices, err))) return rc;
    if (*devices && d.count > 1 && (rc = spread(conf, &d, err))) return rc;
    for (int i = 0; i < conf->stage_count; i++) {
        sl_conf_stage *s = &conf->stages[i];
        const bool dealt = *devices && d.count > 1 && sl_role_has_teams(s->role);
        if (sl_role_on_host(s->role)) {
            if (strcmp(s->device, "cpu"))
                return sl_fail(err, SL_ARG,
                               "device %s (stage %s): it works on the CPU alone, want cpu",
                               s->device, sl_role_name(s->role));
        } else if (*devices && !dealt && !sl_role_is_filter(s->role)) {
            snprintf(s->device, sizeof s->device, "%s", device_of(s->role, &d));
        }
    }
    return SL_OK;
}

/* ---- asking the driver ---- */

/* Which of the GPUs that stages want can map each other. */
static sl_code ask_maps(sl_gpus *out, const sl_plugin *p, sl_err *err)
{
    for (int i = 0; i < out->count && i < SL_MAX_GPUS; i++)
        for (int k = 0; k < out->count && k < SL_MAX_GPUS; k++) {
            bool yes = false;
            sl_code rc;
            if (k == i || !out->gpu[i].total || !out->gpu[k].total) continue;
            if ((rc = p->can_map(i, k, &yes, err))) return rc;
            if (yes) out->maps.of[i] |= (uint64_t)1 << k;
        }
    return SL_OK;
}

/* The child's part: the driver asked, this machine's GPUs told. */
static sl_code ask(sl_gpus *out, const sl_conf *conf, sl_err *err)
{
    sl_code rc;
    const sl_plugin *p = sl_plugin_cuda(err);
    if (!p) return err->code;
    out->count = p->devices();
    for (int i = 0; i < conf->stage_count; i++) {
        int n = ordinal(conf->stages[i].device);
        size_t free_bytes, total;
        if (n < 0 || (n < out->count && out->gpu[n].total)) continue;
        if (n >= out->count)
            return sl_fail(err, SL_ARG, "found %d CUDA devices, want at least %d", out->count,
                           n + 1);
        if ((rc = p->describe(n, out->gpu[n].name, sizeof out->gpu[n].name, &out->gpu[n].sm, err)))
            return rc;
        if (out->gpu[n].sm < 80)
            return sl_fail(err, SL_ARG, "%s has compute capability %d.%d, want 8.0 or later",
                           out->gpu[n].name, out->gpu[n].sm / 10, out->gpu[n].sm % 10);
        if ((rc = p->memory(n, &free_bytes, &total, err))) return rc;
        free_bytes += SL_GPU_CONTEXT_BYTES; /* of the child: it ends before others begin */
        out->gpu[n].total = total;
        out->gpu[n].free = free_bytes < total ? free_bytes : total;
    }
    return ask_maps(out, p, err);
}

/* All of the child's answer, within the time. */
static sl_code hear(int fd, answer *a, sl_err *err)
{
    int64_t until = sl_now_ns() + (int64_t)ANSWER_S * 1000000000;
    size_t got = 0;
    while (got < sizeof *a) {
        struct pollfd f = {fd, POLLIN, 0};
        int64_t left_ms = (until - sl_now_ns()) / 1000000;
        if (left_ms <= 0)
            return sl_fail(err, SL_TIMEOUT, "the CUDA driver gave no answer in %d s", ANSWER_S);
        if (poll(&f, 1, (int)left_ms) <= 0) continue;
        ssize_t n = read(fd, (char *)a + got, sizeof *a - got);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return sl_fail(err, SL_CUDA,
                           "the process that asked the CUDA driver ended without an answer");
        got += (size_t)n;
    }
    return SL_OK;
}

static void tell(int fd, const answer *a)
{
    for (size_t put = 0; put < sizeof *a;) {
        ssize_t n = write(fd, (const char *)a + put, sizeof *a - put);
        if (n <= 0 && errno != EINTR) return;
        if (n > 0) put += (size_t)n;
    }
}

sl_code sl_gpus_ask(sl_gpus *out, const sl_conf *conf, sl_err *err)
{
    const sl_conf_stage *first = NULL; /* stage that wants a GPU: messages name it */
    int fds[2], status;
    memset(out, 0, sizeof *out);
    for (int i = conf->stage_count - 1; i >= 0; i--)
        if (ordinal(conf->stages[i].device) >= 0) first = &conf->stages[i];
    if (!first) return SL_OK;
    answer *a = calloc(1, sizeof *a);
    if (!a) return sl_fail(err, SL_NOMEM, "no memory");
    if (pipe2(fds, O_CLOEXEC)) {
        free(a);
        return sl_fail_errno(err, errno, "pipe");
    }
    pid_t self = getpid(), pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != self) _exit(1);
        ask(&a->gpus, conf, &a->err);
        tell(fds[1], a);
        _exit(0); /* nothing of the parent's is to be run at its end */
    }
    close(fds[1]);
    sl_code rc = pid > 0 ? hear(fds[0], a, err) : sl_fail_errno(err, errno, "fork");
    close(fds[0]);
    if (pid > 0) {
        kill(pid, SIGKILL); /* the child has answered, or will not */
        waitpid(pid, &status, 0);
    }
    if (!rc && (rc = a->err.code)) *err = a->err;
    if (!rc) *out = a->gpus;
    free(a);
    return rc ? sl_context(err, rc, "device %s (stage %s)", first->device,
                           sl_role_name(first->role))
              : SL_OK;
}

const uint64_t *sl_gpus_free(const sl_gpus *gpus, const char *device)
{
    int n = strncmp(device, "cuda:", 5) ? SL_MAX_GPUS : atoi(device + 5);
    return n >= 0 && n < SL_MAX_GPUS && gpus->gpu[n].total ? &gpus->gpu[n].free : NULL;
}
