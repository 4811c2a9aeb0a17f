/* content.c - files of a job: the video, pictures of it, its report, trace, log and dump. */
#include "stages/serve/download.h"
#include "stages/serve/media.h"
#include "stages/serve/routes.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/pipeline.h"
#include "common/word.h"
#include "stages/job/dump.h"

static bool has_ended(const sl_journal_job *job)
{
    return job->state != SL_JOURNAL_QUEUED && job->state != SL_JOURNAL_RUNNING;
}

/* A file of the job, whatever its state. */
static void answer_job_file(sl_ask *a, const sl_journal_job *job, const char *name,
                            const char *type, const char *missing)
{
    sl_server_place at;
    if (sl_server_file(a->server, job, name, &at, NULL))
        sl_answer_error(a, 404, "not_found", NULL, "%s", missing);
    else sl_answer_place(a, &at, type, NULL, missing);
}

/* The job's video as a file of this machine: where it is, or a copy of the store's, which is the
 * caller's to remove (*copied). */
static sl_code have_video(sl_ask *a, const sl_journal_job *job, char path[SL_PATH], bool *copied,
                          sl_err *err)
{
    sl_server_place at;
    char name[SL_WORD + 16], word[SL_WORD];
    *copied = false;
    sl_code rc = sl_server_file(a->server, job, SL_STORE_VIDEO, &at, err);
    if (rc) return rc;
    if (*at.path) {
        memcpy(path, at.path, sizeof at.path);
        return SL_OK;
    }
    sl_new_word(word);
    snprintf(name, sizeof name, "source-%s.mp4", word);
    if ((rc = sl_store_path(path, &a->server->store, a->id, name, err))) return rc;
    rc = sl_blobs_get(&a->server->blobs, at.id, at.name, at.version, at.bytes, path, err);
    *copied = !rc;
    return rc;
}

static sl_code make_picture(sl_ask *a, const sl_journal_job *job, const char *picture, bool sheet,
                            sl_err *err)
{
    char video[SL_PATH];
    bool copied;
    sl_code rc = have_video(a, job, video, &copied, err);
    if (!rc) rc = sl_media_picture(video, picture, sheet, err);
    if (copied) unlink(video);
    return rc;
}

/* Made here when it is asked for first, whoever made the video. */
static void answer_picture(sl_ask *a, const sl_journal_job *job, const char *name, bool sheet)
{
    char picture[SL_PATH], dir[SL_PATH];
    sl_err err = {0};
    sl_code rc = sl_store_path(dir, &a->server->store, a->id, "", &err);
    if (!rc && sl_server_shares_queue(a->server) && access(dir, F_OK))
        rc = sl_store_make(&a->server->store, a->id, &err);
    if (!rc) rc = sl_store_path(picture, &a->server->store, a->id, name, &err);
    if (!rc && access(picture, R_OK)) rc = make_picture(a, job, picture, sheet, &err);
    if (rc == SL_SYS && a->server->relays) {
        a->retry_s = 5;
        sl_answer_error(a, 503, "away", NULL, "%s cannot be made now: files are away", name);
    } else if (rc)
        sl_answer_error(a, 500, "internal", NULL, "%s cannot be made: %s", name, err.msg);
    else sl_answer_file(a, picture, "image/jpeg", NULL, "the picture is gone");
}

/* Through this server, or by a link; a link is good for a GET alone. */
static void answer_video(sl_ask *a, const sl_journal_job *job)
{
    static const char TYPE[] = "video/mp4";
    char name[SL_JOURNAL_ID + 8];
    sl_server_place at;
    sl_err err = {0};
    snprintf(name, sizeof name, "%s.mp4", a->id);
    if (sl_server_file(a->server, job, SL_STORE_VIDEO, &at, NULL))
        sl_answer_error(a, 404, "not_found", NULL, "the video is gone");
    else if (*at.path || a->head || strcmp(a->server->conf.s3.content, "redirect"))
        sl_answer_place(a, &at, TYPE, name, "the video is gone");
    else if (sl_answer_link(a, &at, TYPE, name, &err))
        sl_answer_error(a, 500, "internal", NULL, "%s", err.msg);
}

void sl_on_content(sl_ask *a)
{
    const char *variant = sl_ask_query(a, "variant");
    sl_journal_job job = {0};
    if (variant && strcmp(variant, "video") && strcmp(variant, "thumbnail") &&
        strcmp(variant, "spritesheet")) {
        sl_answer_error(a, 400, "invalid_value", "variant",
                        "variant is \"%.60s\", want video, thumbnail or spritesheet", variant);
        return;
    }
    if (!sl_ask_job(a, &job)) return;
    if (job.state != SL_JOURNAL_COMPLETED)
        sl_answer_error(a, 409, "not_ready", NULL,
                        has_ended(&job) ? "the video was not made: GET /v1/videos/%s tells why"
                                        : "the video is not ready: GET /v1/videos/%s tells when",
                        a->id);
    else if (variant && !strcmp(variant, "thumbnail"))
        answer_picture(a, &job, SL_STORE_THUMBNAIL, false);
    else if (variant && !strcmp(variant, "spritesheet"))
        answer_picture(a, &job, SL_STORE_SPRITES, true);
    else answer_video(a, &job);
    sl_journal_job_free(&job);
}

/* What is there once the job has ended. */
static void answer_result(sl_ask *a, const char *name, const char *type, const char *what)
{
    sl_journal_job job = {0};
    char missing[96];
    if (!sl_ask_job(a, &job)) return;
    snprintf(missing, sizeof missing, "this job has no %s: it never began", what);
    if (!has_ended(&job))
        sl_answer_error(a, 409, "not_ready", NULL, "the %s is written when the job has ended",
                        what);
    else answer_job_file(a, &job, name, type, missing);
    sl_journal_job_free(&job);
}

void sl_on_report(sl_ask *a)
{
    answer_result(a, SL_STORE_REPORT, "application/json", "report");
}

void sl_on_trace(sl_ask *a)
{
    answer_result(a, SL_STORE_TRACE, "application/json", "trace");
}

static void answer_now(sl_ask *a, const char *name, const char *type, const char *missing)
{
    sl_journal_job job = {0};
    if (!sl_ask_job(a, &job)) return;
    answer_job_file(a, &job, name, type, missing);
    sl_journal_job_free(&job);
}

void sl_on_preview(sl_ask *a)
{
    answer_now(a, SL_STORE_PREVIEW, "image/png", "there is no preview of this job yet");
}

void sl_on_logs(sl_ask *a)
{
    answer_now(a, SL_STORE_LOG, "application/jsonl", "nothing was logged of this job yet");
}

/* ---- the dump ---- */

#define BLOCKS "blocks" /* the folder that the denoiser makes for dump_blocks */
#define TENSORS ".safetensors"

/* Of a job without a dump this alone is kept. */
static bool is_kept(const char *name)
{
    return !strcmp(name, "job.json");
}

/* A file that a dump promises; not a state, nor one that is being written. */
static bool is_dumped(const char *name)
{
    bool state;
    if (is_kept(name) || !strcmp(name, SL_DUMP_NOTE)) return true;
    if (sl_dump_is_step(name, &state)) return state;
    if (sl_dump_is_handover(name)) return true;
    return !strcmp(name, "image.input") || !strcmp(name, "last_image.input") ||
           !strcmp(name, "noise" TENSORS);
}

static bool is_block(const char *name)
{
    const size_t n = strlen(name), end = strlen(TENSORS);
    return *name != '.' && n > end && !strcmp(name + n - end, TENSORS);
}

/* false: answered; else *job is the caller's to free. *dump: the job was asked for one; what
 * another has handed over goes a moment after its end. */
static bool may_see_dump(sl_ask *a, sl_journal_job *job, bool *dump)
{
    if (!sl_ask_job(a, job)) return false;
    if (!has_ended(job))
        sl_answer_error(a, 409, "not_ready", NULL, "the dump is there when the job has ended");
    *dump = sl_video_has_dump(job);
    if (a->answered) sl_journal_job_free(job);
    return !a->answered;
}

/* Files of `folder`, a job's or the blocks in it, that a dump promises. */
static void list_files(sl_ask *a, json_t *to, const char *folder, bool (*promised)(const char *))
{
    char dir[SL_PATH], path[SL_PATH];
    struct stat st;
    struct dirent **all = NULL;
    const int n = sl_store_path(dir, &a->server->store, a->id, folder, NULL)
                      ? 0
                      : scandir(dir, &all, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        const char *name = all[i]->d_name;
        if (promised(name) && !sl_path_join(path, dir, name, NULL) && !lstat(path, &st) &&
            S_ISREG(st.st_mode))
            json_array_append_new(
                to, json_pack("{s:o, s:I}", "name",
                              json_sprintf("%s%s%s", folder, *folder ? "/" : "", name), "bytes",
                              (json_int_t)st.st_size));
        free(all[i]);
    }
    free(all);
}

/* Likewise of those that the shared folder or store has. */
static void list_shared(const sl_journal_job *job, json_t *to, const char *folder,
                        bool (*promised)(const char *))
{
    const size_t n = strlen(folder);
    for (const char *at = job->files ? job->files : ""; *at; at += strcspn(at, "\n") + 1) {
        char name[SL_JOURNAL_FILE], version[SL_JOURNAL_FILE];
        unsigned long long bytes;
        if (sscanf(at, "%255s %255s %llu", name, version, &bytes) != 3) continue;
        const char *last = name;
        if (n && (strncmp(name, folder, n) || name[n] != '/')) continue;
        if (n) last += n + 1;
        if (!strchr(last, '/') && promised(last))
            json_array_append_new(
                to, json_pack("{s:s, s:I}", "name", name, "bytes", (json_int_t)bytes));
    }
}

void sl_on_dump_list(sl_ask *a)
{
    sl_journal_job job = {0};
    bool dump;
    if (!may_see_dump(a, &job, &dump)) return;
    json_t *files = json_array();
    if (sl_server_shares_queue(a->server)) {
        list_shared(&job, files, "", dump ? is_dumped : is_kept);
        if (dump) list_shared(&job, files, BLOCKS, is_block);
    } else {
        list_files(a, files, "", dump ? is_dumped : is_kept);
        if (dump) list_files(a, files, BLOCKS, is_block);
    }
    sl_journal_job_free(&job);
    sl_answer_json(a, 200, json_pack("{s:s, s:o}", "object", "list", "data", files));
}

void sl_on_dump(sl_ask *a)
{
    static const char MISSING[] = "this job was not asked for a dump, or did not get so far";
    const char *type = strstr(a->name, ".json") ? "application/json" : "application/octet-stream";
    sl_journal_job job = {0};
    bool dump;
    if (!may_see_dump(a, &job, &dump)) return;
    if (!is_dumped(a->name))
        sl_answer_error(a, 404, "not_found", NULL, "a dump has no %s", a->name);
    else if (!dump && !is_kept(a->name)) sl_answer_error(a, 404, "not_found", NULL, MISSING);
    else answer_job_file(a, &job, a->name, type, MISSING);
    sl_journal_job_free(&job);
}

void sl_on_dump_block(sl_ask *a)
{
    static const char MISSING[] =
        "this job was not asked for its blocks (dump_blocks), or has no such one";
    char name[sizeof a->name + sizeof BLOCKS];
    sl_journal_job job = {0};
    bool dump;
    if (!may_see_dump(a, &job, &dump)) return;
    snprintf(name, sizeof name, BLOCKS "/%s", a->name);
    if (!is_block(a->name)) sl_answer_error(a, 404, "not_found", NULL, "a dump has no %s", name);
    else if (!dump) sl_answer_error(a, 404, "not_found", NULL, MISSING);
    else answer_job_file(a, &job, name, "application/octet-stream", MISSING);
    sl_journal_job_free(&job);
}
