/* dumped.c - the tensors of a dump in the pipeline's order.
 *
 * A tensor is told by its file and its name alone:
 *     text          ids.cond ids.uncond, cond uncond
 *     image         condition clip
 *     denoise       noise, step.K.latents (or in step.K of its own), latents
 *     state.K       the sampler's state before step K; fork: that with which the job began
 *     blocks/NAME   [step.K.][uncond.]NAME, NAME one of input patch block.I.PART block.I, or of
 *                   what is made once a job: text image time_proj
 *     frames        frames
 *     FILE.FILTER   what a filter made of FILE's, in the order of job.json's `filters` */
#include "stages/cli/dumped.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define TENSORS ".safetensors"
#define BLOCKS "blocks"

/* The denoiser's phases, and those of a step. */
enum { NOISE, CONTEXT, STEPS, RESULT, OTHER, FILTERED };
enum { STATE, INPUT, PATCH, BLOCK, LATENTS, REST };

/* What a block taps, in the order in which it is made. */
static const char *const PARTS[] = {"attn1.q",       "attn1.k", "attn1.v", "attn1",
                                    "attn2.q",       "attn2.k", "attn2.v", "attn2.image_k",
                                    "attn2.image_v", "attn2",   "ffn",     ""};
#define PART_COUNT ((int)(sizeof PARTS / sizeof *PARTS))

/* ---- names ---- */

/* "WORD.N.rest" or "WORD.N": *n and what stands behind; NULL: it is not that. */
static const char *numbered(const char *name, const char *word, int *n)
{
    const size_t length = strlen(word);
    int end = 0;
    if (strncmp(name, word, length) || name[length] != '.' ||
        sscanf(name + length + 1, "%9d%n", n, &end) != 1 || *n < 0)
        return NULL;
    name += length + 1 + end;
    return *name == '.' ? name + 1 : *name ? NULL : name;
}

/* A tensor that the first forward, or a chosen one, was tapped for. */
static void place_block(sl_dumped *t, const char *name)
{
    const char *rest = numbered(name, "step", &t->step);
    int part = 0;
    if (rest) name = rest;
    t->uncond = !strncmp(name, "uncond.", 7);
    if (t->uncond) name += 7;
    t->phase = STEPS;
    if ((rest = numbered(name, "block", &t->block))) {
        while (part < PART_COUNT && strcmp(PARTS[part], rest)) part++;
        t->part = BLOCK, t->place = part;
    } else if (!strcmp(name, "input")) t->part = INPUT;
    else if (!strcmp(name, "patch")) t->part = PATCH;
    else if (!strcmp(name, "text") || !strcmp(name, "image") || !strcmp(name, "time_proj")) {
        t->phase = CONTEXT;
        return;
    } else t->part = REST;
    if (t->step < 0) t->step = 0;
}

static void place_denoised(sl_dumped *t, const char *name)
{
    const char *rest = numbered(name, "step", &t->step);
    if (rest && !strcmp(rest, "latents")) t->phase = STEPS, t->part = LATENTS;
    else if (!strcmp(name, "noise")) t->phase = NOISE;
    else if (!strcmp(name, "latents")) t->phase = RESULT;
    else t->phase = OTHER;
}

/* The hand-over of a filter's file, "denoise.soften"; the filter goes to t. -1: it is none. */
static int filtered(sl_dumped *t, const char *file, const char *filters)
{
    char whole[SL_HANDOVER_NAME], word[SL_FILTERS_TEXT];
    const char *dot = strrchr(file, '.'), *at;
    if (!dot || dot - file >= (int)sizeof whole || strlen(dot + 1) >= sizeof t->filter) return -1;
    snprintf(whole, sizeof whole, "%.*s", (int)(dot - file), file);
    const int h = sl_handover_by_file(whole);
    if (h < 0) return -1;
    snprintf(t->filter, sizeof t->filter, "%s", dot + 1);
    snprintf(word, sizeof word, "%s:%s", SL_HANDOVER[h].name, t->filter);
    at = strstr(filters, word);
    t->place = at ? (int)(at - filters) : SL_FILTERS_TEXT;
    return h;
}

/* file: without its suffix, in the dump's folder; "" of it: blocks. filters: the dump's. */
static void place(sl_dumped *t, const char *file, bool block, const char *tensor,
                  const char *filters)
{
    const int h = sl_handover_by_file(file), of = block ? -1 : filtered(t, file, filters);
    int step = -1;
    const bool fork = !strcmp(file, "fork");
    const char *state = fork ? "" : numbered(file, "state", &step);
    t->stage = SL_ROLES_MOST;
    t->step = t->block = -1;
    snprintf(t->name, sizeof t->name, "%s%s%s",
             block     ? BLOCKS "/"
             : state   ? file
             : of >= 0 ? t->filter
                       : "",
             (state && !block) || of >= 0 ? "." : "", tensor);
    for (char *c = t->name; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) *c = '?'; /* a file's word, for a terminal */
    if (block) {
        t->stage = SL_ROLE_DENOISE;
        place_block(t, tensor);
    } else if (fork) {
        t->stage = SL_ROLE_DENOISE;
        t->phase = NOISE;
    } else if (state && !*state) {
        t->stage = SL_ROLE_DENOISE;
        t->phase = STEPS, t->part = STATE, t->step = step;
    } else if (h == SL_HANDOVER_LATENTS || numbered(file, "step", &step)) {
        t->stage = SL_ROLE_DENOISE;
        place_denoised(t, tensor);
    } else if (of >= 0) {
        t->stage = (int)SL_HANDOVER[of].from;
        t->phase = FILTERED;
    } else if (h >= 0) {
        t->stage = (int)SL_HANDOVER[h].from;
        t->phase = strncmp(tensor, "ids.", 4) ? 1 : 0;
    }
}

int sl_dumped_order(const sl_dumped *a, const sl_dumped *b)
{
    const int keys[][2] = {{a->stage, b->stage},
                           {a->phase, b->phase},
                           {a->step, b->step},
                           {a->part == LATENTS, b->part == LATENTS},
                           {a->part != STATE, b->part != STATE},
                           {a->uncond, b->uncond},
                           {a->part, b->part},
                           {a->block, b->block},
                           {a->place, b->place}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (keys[i][0] != keys[i][1]) return keys[i][0] < keys[i][1] ? -1 : 1;
    return strverscmp(a->name, b->name); /* blocks.2 before blocks.10 */
}

static int order(const void *a, const void *b)
{
    return sl_dumped_order(a, b);
}

const char *sl_dumped_maker(const sl_dumped *t, char *buf, size_t size)
{
    int n =
        snprintf(buf, size, "%s", t->stage < SL_ROLE_COUNT ? sl_role_name((sl_role)t->stage) : "");
    if (*t->filter) {
        snprintf(buf, size, "filter %s, of what %s gave", t->filter,
                 sl_role_name((sl_role)t->stage));
        return buf;
    }
    if (t->stage != SL_ROLE_DENOISE || n < 0 || (size_t)n >= size) return buf;
    char *at = buf + n;
    const size_t left = size - (size_t)n;
    const char *branch = t->uncond ? "uncond" : "cond";
    if (t->block >= 0) snprintf(at, left, ", block %d of step %d, %s", t->block, t->step, branch);
    else if (t->phase == STEPS && t->part == STATE) snprintf(at, left, ", before step %d", t->step);
    else if (t->phase == STEPS && t->part == LATENTS) snprintf(at, left, ", step %d", t->step);
    else if (t->phase == STEPS)
        snprintf(at, left, ", before the blocks of step %d, %s", t->step, branch);
    else if (t->phase == CONTEXT) snprintf(at, left, ", once a job");
    return buf;
}

/* ---- files ---- */

static sl_code add_file(sl_dump *d, const char *path, const char *file, bool block, sl_err *err)
{
    sl_st *st = NULL;
    sl_code rc = sl_st_open_file(&st, path, err);
    if (rc) return rc;
    const int n = sl_st_size(st);
    sl_st **files = realloc(d->files, (size_t)(d->file_count + 1) * sizeof(void *));
    if (files) d->files = files;
    sl_dumped *at = realloc(d->at, (size_t)(d->count + n + 1) * sizeof *at);
    if (at) d->at = at;
    if (!files || !at) {
        sl_st_close(&st);
        return sl_fail(err, SL_NOMEM, "%s: no memory", path);
    }
    d->files[d->file_count++] = st;
    for (int i = 0; i < n; i++) {
        sl_dumped *t = &d->at[d->count++];
        *t = (sl_dumped){.entry = sl_st_at(st, i)};
        place(t, file, block, t->entry->name, d->filters);
    }
    return SL_OK;
}

/* The tensor files of a folder of the dump; what else lies there is none of them. */
static sl_code add_folder(sl_dump *d, const char *dir, bool block, sl_err *err)
{
    char path[SL_PATH], file[SL_PATH];
    struct dirent *e;
    sl_code rc = SL_OK;
    DIR *list = opendir(dir);
    while (list && !rc && (e = readdir(list))) {
        const size_t n = strlen(e->d_name), end = strlen(TENSORS);
        if (*e->d_name == '.' || n <= end || strcmp(e->d_name + n - end, TENSORS)) continue;
        snprintf(file, sizeof file, "%.*s", (int)(n - end), e->d_name);
        if (!(rc = sl_path_join(path, dir, e->d_name, err)))
            rc = add_file(d, path, file, block, err);
    }
    if (list) closedir(list);
    return rc;
}

/* What a file of tensors is in a dump, by its own name: "denoise" of DIR/denoise.safetensors. */
static void name_alone(char file[SL_PATH], bool *block, const char *path)
{
    const char *last = sl_path_last(path), *end = strstr(last, TENSORS);
    const char *folder = last > path + sizeof BLOCKS ? last - sizeof BLOCKS : "";
    *block = !strncmp(folder, BLOCKS "/", sizeof BLOCKS);
    snprintf(file, SL_PATH, "%.*s", end ? (int)(end - last) : (int)strlen(last), last);
}

/* Which filters the dump's job had, in order: of its job.json; without one nobody knows. */
static void read_filters(sl_dump *d, const char *dir)
{
    char path[SL_PATH];
    sl_job job = {0};
    if (!sl_path_join(path, dir, "job.json", NULL) && !sl_job_read(&job, path, NULL))
        snprintf(d->filters, sizeof d->filters, "%s", job.filters);
    sl_job_free(&job);
}

sl_code sl_dump_open(sl_dump *d, const char *path, sl_err *err)
{
    char blocks[SL_PATH], file[SL_PATH];
    struct stat st;
    bool block;
    sl_code rc;
    *d = (sl_dump){0};
    d->folder = !stat(path, &st) && S_ISDIR(st.st_mode);
    if (d->folder) read_filters(d, path);
    if (d->folder) {
        if ((rc = sl_path_join(blocks, path, BLOCKS, err)) ||
            (rc = add_folder(d, path, false, err)) || (rc = add_folder(d, blocks, true, err)))
            return rc;
        if (!d->file_count)
            return sl_fail(err, SL_ARG, "%.400s is no folder that --dump wrote: no tensors in it",
                           path);
    } else {
        name_alone(file, &block, path);
        if ((rc = add_file(d, path, file, block, err))) return rc;
    }
    if (d->count) qsort(d->at, (size_t)d->count, sizeof *d->at, order);
    return SL_OK;
}

void sl_dump_close(sl_dump *d)
{
    for (int i = 0; i < d->file_count; i++) sl_st_close(&d->files[i]);
    free(d->files);
    free(d->at);
    *d = (sl_dump){0};
}
