/* outcome.c - following, signals, and files. */
#include "stages/cli/outcome.h"

#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/json.h"
#include "common/log.h"
#include "common/pipeline.h"
#include "common/video_format.h"
#include "stages/cli/follow.h"
#include "stages/cli/terminal.h"
#include "stages/cli/video.h"
#include "stages/job/files.h"
#include "stages/job/report_table.h"

#define SAME_MS 100 /* signals that come so close together are one */

/* ---- signals ---- */

static void set_of(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
}

sl_code sl_vigil_open(sl_vigil *v, sl_remote *r, bool quiet, bool many, bool cancels, sl_err *err)
{
    sigset_t set;
    *v = (sl_vigil){
        .remote = r, .progress = {.quiet = quiet, .many = many}, .cancels = cancels, .signals = -1};
    set_of(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    if ((v->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
        return sl_fail_errno(err, errno, "signalfd");
    r->interrupt_fd = v->signals;
    return SL_OK;
}

void sl_vigil_close(sl_vigil *v)
{
    sigset_t set;
    if (!v->remote) return;
    v->remote->interrupt_fd = -1;
    if (v->signals >= 0) close(v->signals);
    set_of(&set);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    v->remote = NULL;
}

void sl_vigil_leave(const sl_vigil *v)
{
    if (!v->caught) return;
    signal(v->caught, SIG_DFL);
    raise(v->caught);
}

void sl_vigil_cancel(sl_vigil *v, const sl_outcome *jobs, int count)
{
    char path[128];
    sl_err err = {0};
    for (int i = 0; i < count && !(err.code == SL_CANCELLED); i++) {
        if (jobs[i].through || !*jobs[i].id) continue;
        snprintf(path, sizeof path, "/v1/videos/%s/cancel", jobs[i].id);
        if (sl_remote_call(v->remote, "POST", path, NULL, 0, NULL, NULL, &err))
            sl_complain("%s could not be cancelled: %s", jobs[i].id, err.msg);
    }
}

/* A signal has come. true: it cancels, and the jobs' ends are waited for. */
static bool on_signal(sl_vigil *v, sl_outcome *jobs, int count)
{
    struct signalfd_siginfo info;
    int left = 0;
    const bool again = v->times > 0;
    /* what stands between a terminal and a program (timeout, make) may send the signal once more */
    if (!again) usleep(SAME_MS * 1000);
    while (read(v->signals, &info, sizeof info) == sizeof info) {
        v->caught = (int)info.ssi_signo;
        v->times++;
    }
    sl_progress_end(&v->progress);
    if (v->cancels && !again && v->caught == SIGINT) {
        v->caught = 0;
        sl_vigil_cancel(v, jobs, count);
        return true;
    }
    for (int i = 0; i < count; i++) left += !jobs[i].through && *jobs[i].id;
    if (left == 1 && count == 1) sl_complain("the job goes on: sluice wait %s", jobs[0].id);
    else if (left) sl_complain("%d jobs go on: sluice list", left);
    return false;
}

/* ---- files ---- */

static sl_code fetch_one(sl_remote *r, const char *id, const char *what, const char *file,
                         uint64_t want, sl_err *err)
{
    char path[192];
    snprintf(path, sizeof path, "/v1/videos/%s/%s", id, what);
    return sl_remote_file(r, path, file, want, err);
}

/* A server's word for a file is no path of this machine: NAME or blocks/NAME. */
static bool is_dump_name(const char *name)
{
    static const char BLOCKS[] = "blocks/";
    if (!strncmp(name, BLOCKS, sizeof BLOCKS - 1)) name += sizeof BLOCKS - 1;
    const size_t n = strlen(name);
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("_-.", name[i])) return false;
    return n > 0 && n < 64 && *name != '.';
}

static sl_code fetch_dumped(sl_remote *r, const sl_outcome *o, const char *name, sl_err *err)
{
    char what[96], file[SL_PATH];
    sl_code rc;
    if (!name || !is_dump_name(name)) {
        rc = sl_fail(err, SL_FORMAT, "%s lists the file %.60s, want a plain name", r->name,
                     name ? name : "without a name");
        sl_one_line(err);
        return rc;
    }
    snprintf(what, sizeof what, "dump/%s", name);
    if ((rc = sl_path_join(file, o->dump, name, err))) return rc;
    if (strchr(name, '/')) { /* its folder */
        char *slash = strrchr(file, '/');
        *slash = 0;
        rc = sl_make_dirs(file, err);
        *slash = '/';
    }
    return rc ? rc : fetch_one(r, o->id, what, file, 0, err);
}

/* What the server has of a dump, into a folder. */
static sl_code fetch_dump(sl_remote *r, const sl_outcome *o, sl_err *err)
{
    json_t *list = NULL, *file;
    char path[128];
    size_t i;
    snprintf(path, sizeof path, "/v1/videos/%s/dump", o->id);
    sl_code rc = sl_make_dirs(o->dump, err);
    if (!rc) rc = sl_remote_call(r, "GET", path, NULL, 0, NULL, &list, err);
    json_array_foreach(json_object_get(list, "data"), i, file)
    {
        if (rc) break;
        rc = fetch_dumped(r, o, json_string_value(json_object_get(file, "name")), err);
    }
    json_decref(list);
    return rc ? sl_context(err, rc, "--dump %s", o->dump) : SL_OK;
}

static sl_code fetch_report(sl_remote *r, sl_outcome *o, sl_err *err)
{
    char path[128];
    if (!*o->report && !o->table) return SL_OK;
    snprintf(path, sizeof path, "/v1/videos/%s/report", o->id);
    return sl_remote_call(r, "GET", path, NULL, 0, NULL, &o->said, err);
}

/* The report is there too of a job that failed after it began. */
static sl_code fetch(sl_vigil *v, sl_outcome *o, const sl_video *job, sl_err *err)
{
    sl_remote *r = v->remote;
    sl_code rc = SL_OK, report;
    sl_err why = {0};
    if (job->completed && *o->output)
        rc = fetch_one(r, o->id, "content", o->output, job->bytes, err);
    if (!rc && job->completed && *o->dump) rc = fetch_dump(r, o, err);
    if (!rc && *o->trace) rc = fetch_one(r, o->id, "trace", o->trace, 0, err);
    if (!rc && *o->preview) rc = fetch_one(r, o->id, "preview", o->preview, 0, err);
    if (!rc) {
        report = fetch_report(r, o, &why);
        if (!report && *o->report) report = sl_json_to_file(o->said, o->report, &why);
        if (report) *err = why, rc = report;
    }
    /* a job that failed before it began has none of them */
    if (rc == SL_ARG && !job->completed) rc = SL_OK;
    return rc;
}

/* ---- jobs ---- */

static void print_end(const sl_outcome *o, const sl_video *job, bool quiet)
{
    if (quiet || !strcmp(o->output, "-") || !strcmp(o->report, "-")) return;
    if (o->table && o->said) {
        sl_report_print_json(o->said, *o->output ? o->output : o->id, stdout);
    } else if (job->completed) {
        printf("%s  %dx%d, %d frames at %g fps, %d steps, %.2f MB\n",
               *o->output ? o->output : o->id, job->width, job->height, job->frames, job->fps,
               job->steps, (double)job->bytes * 1e-6);
    }
    fflush(stdout);
}

/* One job to its end. SL_CANCELLED: a signal. */
static sl_code see_through(sl_vigil *v, sl_outcome *o, int number, sl_err *err)
{
    sl_video job;
    sl_code rc;
    if (!o->video &&
        (rc = sl_follow(v->remote, &v->progress, (uint64_t)number, o->id, &o->video, err)))
        return rc;
    sl_progress_end(&v->progress);
    if ((rc = sl_video_read(&job, o->video, err)) || (rc = fetch(v, o, &job, err))) return rc;
    o->through = true;
    const char *name = *o->output && strcmp(o->output, "-") ? o->output : o->id;
    if (job.completed) print_end(o, &job, v->progress.quiet);
    else if (job.cancelled) rc = sl_fail(err, SL_INTERNAL, "%s: cancelled", name);
    else rc = sl_fail(err, SL_INTERNAL, "%s: failed: %s", name, job.error);
    return rc;
}

static int graver(int a, int b)
{
    static const int ORDER[] = {SL_EXIT_NO_SERVER, SL_EXIT_TIMEOUT, SL_EXIT_REFUSED,
                                SL_EXIT_FAILED};
    for (int i = 0; i < 4; i++)
        if (a == ORDER[i] || b == ORDER[i]) return ORDER[i];
    return SL_EXIT_OK;
}

int sl_vigil_wait(sl_vigil *v, sl_outcome *jobs, int count)
{
    int status = SL_EXIT_OK;
    for (int i = 0; i < count;) {
        sl_outcome *o = &jobs[i];
        sl_err err = {0};
        if (o->through) {
            if (o->code) status = graver(status, SL_EXIT_FAILED);
            i++;
            continue;
        }
        sl_code rc = see_through(v, o, i + 1, &err);
        sl_progress_end(&v->progress);
        if (rc == SL_CANCELLED) {
            if (!on_signal(v, jobs, count)) return graver(status, SL_EXIT_FAILED);
            continue;
        }
        o->code = rc;
        if (rc) {
            sl_complain("%s", err.msg);
            status = graver(status, o->through ? SL_EXIT_FAILED : sl_remote_exit(v->remote, rc));
        }
        if (rc && !o->through && sl_remote_passes(rc)) return status; /* nor would the others */
        o->through = true;
        i++;
    }
    return status;
}

void sl_outcome_free(sl_outcome *o)
{
    json_decref(o->video);
    json_decref(o->said);
    o->video = o->said = NULL;
}

sl_code sl_outcome_check(const sl_outcome *o, sl_err *err)
{
    sl_code rc;
    if (*o->output && strcmp(o->output, "-") && (rc = sl_video_format_served(o->output, err)))
        return rc;
    if (*o->output && strcmp(o->output, "-") &&
        (rc = sl_can_write_file(o->output, "output", false, err)))
        return rc;
    if (*o->report && strcmp(o->report, "-") &&
        (rc = sl_can_write_file(o->report, "report", true, err)))
        return rc;
    if (*o->trace && strcmp(o->trace, "-") &&
        (rc = sl_can_write_file(o->trace, "trace", false, err)))
        return rc;
    if (*o->preview && (rc = sl_can_write_file(o->preview, "preview", false, err))) return rc;
    if (*o->dump && (rc = sl_can_make_dir(o->dump, err))) return sl_context(err, SL_ARG, "--dump");
    return SL_OK;
}
