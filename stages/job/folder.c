/* folder.c - a job's folder, in the spool or where its dump will lie: inputs copied in. */
#include "stages/job/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/pipeline.h"
#include "common/state.h"
#include "common/wire.h"
#include "stages/job/files.h"
#include "stages/job/replay.h"

#define FILE_NAME 64
#define DAY_S 86400
#define WORK ".sluice" /* in a dump's folder, while its job runs: the job's own */
#define MARK "record"  /* in a job's folder: the path of its run's record */

static void name_file(char out[FILE_NAME], int h)
{
    snprintf(out, FILE_NAME, "%s.safetensors", SL_HANDOVER[h].file);
}

/* A replayed job begins with the hand-overs of stages before --from, and those beside it. */
static sl_code copy_dumped(const sl_request *r, const char *from, sl_err *err)
{
    char file[FILE_NAME], src[SL_PATH], dst[SL_PATH];
    sl_code rc = SL_OK;
    for (int h = 0; h < sl_handover_count() && !rc; h++) {
        if (!sl_replay_takes(r, from, (sl_handover)h)) continue;
        name_file(file, h);
        if ((rc = sl_path_join(src, r->replay_dir, file, err)) ||
            (rc = sl_path_join(dst, r->dir, file, err)))
            break;
        if ((h == SL_HANDOVER_IMAGE || !sl_replay_needs(r, from, (sl_handover)h)) &&
            access(src, R_OK) && errno == ENOENT)
            continue; /* a checkpoint without pictures has none; nobody asks for it */
        rc = sl_copy_file(src, dst, err);
    }
    if (!rc && r->spec.fork && !(rc = sl_path_join(src, r->replay_dir, r->fork_file, err)) &&
        !(rc = sl_path_join(dst, r->dir, SL_FORK_FILE, err)))
        rc = sl_copy_file(src, dst, err);
    return rc ? sl_context(err, rc, "replay") : SL_OK;
}

static sl_code copy_input(const sl_request *r, const char *path, const char *name, bool given,
                          bool optional, sl_err *err)
{
    char src[SL_PATH], dst[SL_PATH];
    sl_code rc;
    if (!*path) return SL_OK;
    if (*r->replay_dir && !given && strcmp(name, "noise.safetensors")) {
        /* the dump has its own copy of the picture */
        if ((rc = sl_path_join(src, r->replay_dir, name, err))) return rc;
        path = src;
    }
    if ((rc = sl_path_join(dst, r->dir, name, err))) return rc;
    if (optional && access(path, R_OK)) return SL_OK;
    return sl_copy_file(path, dst, err);
}

static sl_code put_mark(const sl_request *r, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc = sl_path_join(path, r->dir, MARK, err);
    FILE *f = rc ? NULL : fopen(path, "we");
    if (rc) return rc;
    const bool put = f && fprintf(f, "%s\n", r->record) > 0;
    if ((f && fclose(f)) || !put) return sl_fail_errno(err, errno, "%s", path);
    return SL_OK;
}

/* The record that a job's folder names; "": none. */
static void read_mark(char record[SL_PATH], const char *dir)
{
    char path[SL_PATH];
    FILE *f = sl_path_join(path, dir, MARK, NULL) ? NULL : fopen(path, "re");
    if (!f || !fgets(record, SL_PATH, f)) *record = 0;
    if (f) fclose(f);
    record[strcspn(record, "\n")] = 0;
}

/* Somebody may go on with the job: the record that its folder names is there. */
static bool is_held(const char *dir)
{
    char record[SL_PATH];
    read_mark(record, dir);
    return *record && !access(record, F_OK);
}

/* DIR/PID-ID, with the job's inputs in it. */
static sl_code open_in(sl_request *r, const char *dir, const char *from, sl_err *err)
{
    char path[SL_PATH], name[48];
    const bool replay = *r->replay_dir != 0;
    char filters[SL_FILTERS_TEXT];
    sl_code rc = sl_make_dirs(dir, err);
    for (int i = 0; !rc; i++) { /* a folder that several hosts share may have our number */
        snprintf(name, sizeof name, i ? "%d-%llu-%d" : "%d-%llu", (int)getpid(),
                 (unsigned long long)r->id, i);
        if ((rc = sl_path_join(r->dir, dir, name, err)) || !mkdir(r->dir, 0700)) break;
        if (errno != EEXIST) rc = sl_fail_errno(err, errno, "%s", r->dir);
    }
    if (rc || (*r->record && (rc = put_mark(r, err))) ||
        (rc = copy_input(r, r->spec.image, "image.input", r->has_image, replay, err)) ||
        (rc = copy_input(r, r->spec.last_image, "last_image.input", r->has_last_image, replay,
                         err)) ||
        (rc = copy_input(r, r->spec.noise, "noise.safetensors", r->has_noise, false, err)) ||
        (*from && (rc = copy_dumped(r, from, err))) ||
        (rc = sl_path_join(path, r->dir, "job.json", err)) ||
        (rc = sl_job_set_text(&r->spec.filters, sl_pipeline_text(filters), err)) ||
        (r->streams && (rc = sl_path_join(r->spec.output, r->dir, "video.mp4", err))))
        return rc;
    return sl_job_write(&r->spec, path, err);
}

/* A job's folder that open_in named, PID-ID or PID-ID-N, of a process that is not here any more. */
static bool is_of_dead(const char *name)
{
    unsigned long long id;
    int pid, again, end = 0;
    if (sscanf(name, "%d-%llu%n", &pid, &id, &end) == 2 && end && name[end] == '-')
        sscanf(name, "%d-%llu-%d%n", &pid, &id, &again, &end);
    return end && !name[end] && pid > 0 && kill(pid, 0) && errno == ESRCH;
}

/* A folder of a dead process, to which nobody has written for a day: it is no living one's of
 * another container either. */
static bool is_left(const char *path, const char *name, const struct stat *st)
{
    return is_of_dead(name) && time(NULL) - st->st_mtime > DAY_S && !is_held(path);
}

/* What runs have left that were killed with all their processes; of the run of `record`, whose lock
 * the caller has, whatever its age. "": of none. */
static void sweep_work(const char *dir, const char *record)
{
    char of[SL_PATH];
    char path[SL_PATH];
    struct stat st;
    struct dirent *e;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    while (d && (e = readdir(d))) {
        if (sl_path_join(path, dir, e->d_name, NULL) || lstat(path, &st) || !S_ISDIR(st.st_mode) ||
            st.st_uid != geteuid() || *e->d_name == '.')
            continue;
        if (*record) read_mark(of, path);
        if (*record ? !strcmp(of, record) : is_left(path, e->d_name, &st)) sl_remove_tree(path);
    }
    if (d) closedir(d);
    else if (fd >= 0) close(fd);
}

void sl_request_sweep(const char *spool, const char *record)
{
    sweep_work(spool, record);
}

sl_code sl_request_open_dir(sl_request *r, const char *spool, const char *from, sl_err *err)
{
    char beside[SL_PATH];
    r->made_dump = *r->dump_dir && access(r->dump_dir, F_OK);
    /* the hand-overs of a dump are written where it will lie */
    if (*r->dump_dir && !r->small_dump && strlen(r->dump_dir) + sizeof WORK + 48 < SL_DIR &&
        !sl_path_join(beside, r->dump_dir, WORK, NULL)) {
        sweep_work(beside, "");
        if (!open_in(r, beside, from, NULL)) return SL_OK;
        sl_request_close_dir(r);
    }
    return open_in(r, spool, from, err);
}

void sl_request_close_dir(const sl_request *r)
{
    char beside[SL_PATH];
    if (!*r->dir) return;
    /* without it the job has ended: nobody makes again what goes now */
    if (!sl_path_join(beside, r->dir, "job.json", NULL)) unlink(beside);
    sl_remove_tree(r->dir);
    if (!*r->dump_dir) return;
    if (!sl_path_join(beside, r->dump_dir, WORK, NULL)) rmdir(beside);
    if (r->made_dump) rmdir(r->dump_dir); /* nothing came of it */
}
