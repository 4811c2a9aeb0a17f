/* dump.c - what is left of a job, as a folder of its files. */
#include "stages/job/dump.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/json.h"
#include "common/origin.h"
#include "common/state.h"
#include "common/version.h"
#include "stages/job/files.h"

#define FILE_NAME 64
#define BLOCKS "blocks"
#define TENSORS ".safetensors"

static void name_file(char out[FILE_NAME], int h)
{
    snprintf(out, FILE_NAME, "%s.safetensors", SL_HANDOVER[h].file);
}

enum { INPUTS = 4, FILES = INPUTS + SL_HANDOVERS_MOST };

static const char *const FIRST[INPUTS] = {"job.json", "image.input", "last_image.input",
                                          SL_FORK_FILE};

/* A dump's files, in the order in which they are worth most: what a replay needs at all, the
 * latents and what filters made of them, what they were made of, the frames. Returns how many. */
static int name_files(char files[FILES][FILE_NAME])
{
    int n = 1;
    snprintf(files[0], FILE_NAME, "%s", FIRST[0]);
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].kind == SL_HANDOVER_LATENTS) name_file(files[n++], h);
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].kind != SL_HANDOVER_LATENTS && SL_HANDOVER[h].how == SL_WHOLE)
            name_file(files[n++], h);
    for (int i = 1; i < INPUTS; i++) snprintf(files[n++], FILE_NAME, "%s", FIRST[i]);
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].how != SL_WHOLE) name_file(files[n++], h);
    return n;
}

static bool has(const char *dir, const char *file)
{
    char path[SL_PATH];
    struct stat st;
    return !sl_path_join(path, dir, file, NULL) && !stat(path, &st) && S_ISREG(st.st_mode) &&
           !access(path, R_OK);
}

bool sl_request_has(const sl_request *r, sl_handover h)
{
    char file[FILE_NAME];
    name_file(file, h);
    return has(r->dir, file);
}

bool sl_dump_is_step(const char *name, bool *state)
{
    int step, end = 0;
    const bool of_state = !strncmp(name, "state.", 6);
    if (state) *state = of_state;
    sscanf(name, of_state ? "state.%d.safetensors%n" : "step.%d.safetensors%n", &step, &end);
    return end && !name[end];
}

bool sl_dump_is_handover(const char *name)
{
    for (int h = 0; h < SL_HANDOVER_COUNT; h++) {
        const size_t n = strlen(SL_HANDOVER[h].file);
        if (strncmp(name, SL_HANDOVER[h].file, n)) continue;
        const char *filter = name + n, *end = strrchr(name, '.');
        if (!strcmp(filter, TENSORS)) return true;
        if (*filter == '.' && end > filter + 1 && end - filter <= SL_FILTER_NAME &&
            !memchr(filter + 1, '.', (size_t)(end - filter - 1)) && !strcmp(end, TENSORS))
            return true;
    }
    return false;
}

void sl_dump_forget(const char *dir)
{
    char path[SL_PATH];
    struct dirent *e;
    DIR *d = opendir(dir);
    while (d && (e = readdir(d)))
        if ((sl_dump_is_handover(e->d_name) || sl_dump_is_step(e->d_name, NULL) ||
             !strcmp(e->d_name, "state" TENSORS)) &&
            !sl_path_join(path, dir, e->d_name, NULL))
            unlink(path);
    if (d) closedir(d);
    if (!sl_path_join(path, dir, BLOCKS, NULL)) sl_remove_tree(path);
}

/* Another job's files in a dump's folder, which would be taken for this one's. */
static void remove_other(const char *dir)
{
    char path[SL_PATH];
    if (!sl_path_join(path, dir, SL_DUMP_NOTE, NULL)) unlink(path);
    for (int i = 0; i < INPUTS; i++)
        if (!sl_path_join(path, dir, FIRST[i], NULL)) unlink(path);
    sl_dump_forget(dir);
}

/* One file of the job's folder, if it is there, into another folder: a second name of it, or a
 * copy. */
static sl_code put_one(const char *from, const char *to, const char *file, sl_err *err)
{
    char src[SL_PATH], dst[SL_PATH];
    sl_code rc;
    if (!has(from, file)) return SL_OK;
    if ((rc = sl_path_join(src, from, file, err)) || (rc = sl_path_join(dst, to, file, err)))
        return rc;
    unlink(dst);
    return link(src, dst) ? sl_copy_file(src, dst, err) : SL_OK;
}

static bool is_file(const char *name)
{
    return *name != '.' && !strstr(name, ".tmp");
}

/* All files of a folder that are whole. */
static sl_code put_all(const char *from, const char *to, bool (*wanted)(const char *name),
                       sl_err *err)
{
    DIR *d = opendir(from);
    struct dirent *e;
    sl_code rc = SL_OK;
    while (d && !rc && (e = readdir(d)))
        if (wanted(e->d_name)) rc = put_one(from, to, e->d_name, err);
    if (d) closedir(d);
    return rc;
}

static bool is_any_step(const char *name)
{
    return sl_dump_is_step(name, NULL);
}

static bool is_state(const char *name)
{
    bool state;
    return sl_dump_is_step(name, &state) && state;
}

static sl_code put_blocks(const sl_request *r, sl_err *err)
{
    char src[SL_PATH], dst[SL_PATH];
    sl_code rc;
    if (!r->spec.dump_blocks) return SL_OK;
    if ((rc = sl_path_join(src, r->dir, BLOCKS, err))) return rc;
    if (access(src, R_OK)) return SL_OK; /* no block was computed */
    if ((rc = sl_path_join(dst, r->dump_dir, BLOCKS, err)) || (rc = sl_make_dirs(dst, err)))
        return rc;
    return put_all(src, dst, is_file, err);
}

/* Do these files of tensors hold the same where the second has some? */
static bool same_tensors(const char *a, const char *b)
{
    sl_st *of_a = NULL, *of_b = NULL;
    bool same = !sl_st_open_file(&of_a, a, NULL) && !sl_st_open_file(&of_b, b, NULL);
    for (int i = 0; same && i < sl_st_size(of_b); i++) {
        const sl_tensor *t = &sl_st_at(of_b, i)->t;
        const sl_st_entry *other = sl_st_find(of_a, sl_st_at(of_b, i)->name);
        same = other && other->t.dtype == t->dtype && sl_same_shape(&other->t, t) &&
               !memcmp(other->t.data, t->data, sl_bytes(t));
    }
    sl_st_close(&of_a);
    sl_st_close(&of_b);
    return same;
}

/* What filters made of the hand-overs in `dir`, those that are there; a file that a filter has not
 * changed becomes a second name of the one that it took. */
static json_t *filters_of(const char *dir)
{
    json_t *all = json_array();
    for (int f = SL_ROLE_COUNT; f < sl_role_count(); f++) {
        const sl_handover in = sl_filter_takes((sl_role)f), out = sl_filter_gives((sl_role)f);
        char took[FILE_NAME], gave[FILE_NAME], a[SL_PATH], b[SL_PATH];
        name_file(took, in);
        name_file(gave, out);
        if (!has(dir, gave) || sl_path_join(a, dir, took, NULL) || sl_path_join(b, dir, gave, NULL))
            continue;
        const bool both = has(dir, took), same = both && same_tensors(a, b);
        if (same && !sl_same_file(a, b) && !unlink(b) && link(a, b)) sl_copy_file(a, b, NULL);
        json_array_append_new(
            all, json_pack("{s:s, s:s, s:s, s:s, s:o}", "name", sl_role_name((sl_role)f), "on",
                           SL_HANDOVER[SL_HANDOVER[out].kind].name, "took", took, "gave", gave,
                           "changed", both ? json_boolean(!same) : json_null()));
    }
    return all;
}

sl_code sl_dump_note(const char *dir, const sl_request *r, const sl_dump_end *end, bool complete,
                     sl_err *err)
{
    char path[SL_PATH], key[24], seed[24];
    sl_code rc = sl_path_join(path, dir, SL_DUMP_NOTE, err);
    if (rc) return rc;
    sl_origin_key(key, &r->spec);
    snprintf(seed, sizeof seed, "%" PRIu64, r->spec.seed);
    json_t *note = json_pack(
        "{s:b, s:s, s:o?, s:s, s:s, s:s, s:s, s:s, s:o}", "complete", complete, "end",
        end->code == SL_OK          ? "done"
        : end->code == SL_CANCELLED ? "cancelled"
                                    : "failed",
        "message", json_string(end->message), "name", sl_path_last(r->dir), "job", key, "seed",
        seed, "version", sl_version(), "from", end->from, "filters", filters_of(dir));
    return sl_json_write(note, path, JSON_INDENT(2), "dump", err);
}

sl_code sl_request_dump(const sl_request *r, const sl_dump_end *end, int *handovers, sl_err *err)
{
    char files[FILES][FILE_NAME];
    bool any = false;
    sl_code rc;
    *handovers = 0;
    const int count = name_files(files);
    for (int h = 0; h < sl_handover_count(); h++) any = any || sl_request_has(r, (sl_handover)h);
    if (!any) return SL_OK;
    if ((rc = sl_make_dirs(r->dump_dir, err))) goto done;
    remove_other(r->dump_dir);
    for (int i = 0; i < count && !rc; i++) {
        if ((rc = put_one(r->dir, r->dump_dir, files[i], err))) break;
        for (int h = 0; h < sl_handover_count(); h++) {
            char own[FILE_NAME];
            name_file(own, h);
            *handovers += !strcmp(own, files[i]) && has(r->dump_dir, own);
        }
    }
    /* a job that has come to its end has the latents after its steps in one file */
    if (!rc) rc = put_all(r->dir, r->dump_dir, end->code ? is_any_step : is_state, err);
    if (!rc) rc = put_blocks(r, err);
    if (!rc) rc = sl_dump_note(r->dump_dir, r, end, !end->code && !*end->message, err);
    if (rc && !*handovers) remove_other(r->dump_dir); /* a job.json alone is no dump */
done:
    return rc ? sl_context(err, rc, "%s", *handovers ? "its dump is not whole" : "its dump is not")
              : SL_OK;
}

sl_code sl_request_keep(const sl_request *r, const char *parent, char kept[SL_PATH], sl_err *err)
{
    char files[FILES][FILE_NAME], latents[FILE_NAME], name[64];
    sl_code rc;
    snprintf(name, sizeof name, "sluice-kept-%u-XXXXXX", (unsigned)getuid());
    if ((rc = sl_path_join(kept, parent, name, err))) return rc;
    if (!mkdtemp(kept)) return sl_fail_errno(err, errno, "%s", kept);
    const int count = name_files(files);
    for (int i = 0; i < count && !rc; i++) rc = put_one(r->dir, kept, files[i], err);
    name_file(latents, SL_HANDOVER_LATENTS);
    if (rc && has(kept, latents)) return SL_OK; /* the hours are in there */
    if (rc) sl_remove_tree(kept);
    return rc;
}
