/* folder.c - a job's folder in the spool: inputs copied in, a dump moved out. */
#include "stages/job/folder.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/pipeline.h"
#include "stages/job/files.h"

#define FILE_NAME 64

static void name_file(char out[FILE_NAME], int h)
{
    snprintf(out, FILE_NAME, "%s.safetensors", SL_HANDOVER[h].file);
}

/* A replayed job begins with the hand-overs of stages before --from, and those beside it. */
static sl_code copy_dumped(const sl_request *r, const char *from, sl_err *err)
{
    const sl_role first = (sl_role)sl_role_by_name(from);
    char file[FILE_NAME], src[SL_PATH], dst[SL_PATH];
    sl_code rc = SL_OK;
    for (int h = 0; h < SL_HANDOVER_COUNT && !rc; h++) {
        if (SL_HANDOVER[h].how != SL_WHOLE || sl_role_follows(SL_HANDOVER[h].from, first)) continue;
        name_file(file, h);
        if ((rc = sl_path_join(src, r->replay_dir, file, err)) ||
            (rc = sl_path_join(dst, r->dir, file, err)))
            break;
        if (h == SL_HANDOVER_IMAGE && access(src, R_OK) && errno == ENOENT)
            continue; /* a checkpoint without pictures has none */
        rc = sl_copy_file(src, dst, err);
    }
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

sl_code sl_request_open_dir(sl_request *r, const char *spool, const char *from, sl_err *err)
{
    char path[SL_PATH], name[32];
    const bool replay = *r->replay_dir != 0;
    sl_code rc;
    snprintf(name, sizeof name, "%d-%llu", (int)getpid(), (unsigned long long)r->id);
    if ((rc = sl_path_join(r->dir, spool, name, err))) return rc;
    sl_remove_tree(r->dir); /* of a process that had our number and was killed */
    if ((rc = sl_make_dirs(r->dir, err)) ||
        (rc = copy_input(r, r->spec.image, "image.input", r->has_image, replay, err)) ||
        (rc = copy_input(r, r->spec.last_image, "last_image.input", r->has_last_image, replay,
                         err)) ||
        (rc = copy_input(r, r->spec.noise, "noise.safetensors", r->has_noise, false, err)) ||
        (*from && (rc = copy_dumped(r, from, err))) ||
        (rc = sl_path_join(path, r->dir, "job.json", err)))
        return rc;
    return sl_job_write(&r->spec, path, err);
}

sl_code sl_request_dump(const sl_request *r, sl_err *err)
{
    enum { INPUTS = 3, FILES = INPUTS + SL_HANDOVER_COUNT };
    char files[FILES][FILE_NAME] = {"job.json", "image.input", "last_image.input"};
    char src[SL_PATH], dst[SL_PATH];
    int done = 0;
    bool made = access(r->dump_dir, F_OK) != 0;
    sl_code rc = sl_make_dirs(r->dump_dir, err);
    for (int h = 0; h < SL_HANDOVER_COUNT; h++) name_file(files[INPUTS + h], h);
    for (; done < FILES && !rc; done++) {
        if ((rc = sl_path_join(src, r->dir, files[done], err)) ||
            (rc = sl_path_join(dst, r->dump_dir, files[done], err)) || access(src, R_OK))
            continue;
        rc = sl_move_file(src, dst, err);
    }
    if (!rc && r->spec.dump_blocks && !(rc = sl_path_join(src, r->dir, "blocks", err)) &&
        !(rc = sl_path_join(dst, r->dump_dir, "blocks", err)))
        rc = sl_move_files(src, dst, err);
    for (int i = 0; rc && i < done; i++)
        if (!sl_path_join(dst, r->dump_dir, files[i], NULL)) unlink(dst);
    if (rc && made) rmdir(r->dump_dir);
    return rc ? sl_context(err, rc, "the video is written, its dump is not") : SL_OK;
}
