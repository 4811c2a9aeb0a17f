/* dump.h - what is left of a job: its dump, or what a failed one had kept.
 *
 * A dump is a folder: job.json, the pictures, each hand-over as far as the job came, with
 * --dump-steps step.K and state.K, with --dump-blocks the folder blocks; and dump.json, which is
 * written last and says whether all of it is there. A folder that another job was dumped into loses
 * that one's files first, its dump.json before all others. */
#ifndef SL_JOB_DUMP_H
#define SL_JOB_DUMP_H

#include "common/pipeline.h"
#include "stages/job/request.h"

/* How the job has ended. */
typedef struct {
    sl_code code;
    const char *message; /* "": none. Beside SL_OK: of a file that the dump does without */
    const char *from;    /* the stage that a replay began at; "" all of them ran */
} sl_dump_end;

/* The job's folder has this hand-over, whole. */
bool sl_request_has(const sl_request *r, sl_handover h);
/* "step.7.safetensors", "state.7.safetensors": the denoiser's, a file a step. *state says which;
 * NULL: whichever. */
bool sl_dump_is_step(const char *name, bool *state);

/* "denoise.safetensors", "denoise.FILTER.safetensors": a hand-over's file, of whatever filters. */
bool sl_dump_is_handover(const char *name);
/* All that stages have made, and are making, in the job's folder goes: it is as it was
 * submitted. */
void sl_dump_forget(const char *dir);

/* The folder's files that --dump promises, into r->dump_dir, in the place of another job's. The
 * folder keeps them until it goes, so that a run which is killed in between has lost nothing: on
 * one file system they are one file of two names. *handovers: how many of them are hand-overs;
 * without any the dump's folder is as it was. Of a job that did not end well the latents after its
 * steps lie in files of their own. Errors: SL_SYS, "its dump is not: " or "its dump is not whole: "
 * and why, behind "the video is written, ": each file that is there is whole. */
sl_code sl_request_dump(const sl_request *r, const sl_dump_end *end, int *handovers, sl_err *err);

#define SL_DUMP_NOTE "dump.json"
/* dump.json in `dir`: {"complete", "end": done, failed or cancelled, "message", "name": what logs
 * call the job, "job": sl_origin_key, "seed": a text, "version", "from": where a replay began, ""
 * none, "filters": [{"name", "on", "took", "gave": files, "changed": false, it only looked; null,
 * the first is not there}]}. complete: it ended well, and its dump has every file. Errors: SL_SYS,
 * SL_NOMEM. */
sl_code sl_dump_note(const char *dir, const sl_request *r, const sl_dump_end *end, bool complete,
                     sl_err *err);

/* What a failed job had finished, into a new folder of `parent`, sluice-kept-UID-XXXXXX, from which
 * `sluice replay` goes on: kept, its path. It is the user's: no run removes it. On one file system
 * nothing is copied, and no room is needed; else, on a full disk, the latents alone may get there.
 * Errors: SL_SYS, not even they; nothing is left. */
sl_code sl_request_keep(const sl_request *r, const char *parent, char kept[SL_PATH], sl_err *err);

#endif
