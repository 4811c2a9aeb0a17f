/* dumped.h - the tensors of a dump, or of one file of tensors, in the order in which the pipeline
 * makes them. */
#ifndef SL_CLI_DUMPED_H
#define SL_CLI_DUMPED_H

#include "common/path.h"
#include "common/pipeline.h"
#include "common/safetensors.h"

#define SL_DUMPED_NAME 200

/* One tensor and who made it. */
typedef struct {
    const sl_st_entry *entry; /* of one of the dump's open files */
    /* what it is called, whatever file it lies in: "cond", "blocks/block.3", "state.4.x",
     * "soften.latents" */
    char name[SL_DUMPED_NAME];
    int stage;              /* sl_role; SL_ROLES_MOST: of a file that no stage is known to write */
    int step, block;        /* of the denoiser; -1: of none */
    bool uncond;            /* of that branch */
    int phase, part, place; /* where it stands among those of its stage: dumped.c */
    char filter[SL_FILTER_NAME]; /* that made it of what the stage gave; "": none */
} sl_dumped;

typedef struct {
    bool folder;                   /* it is a dump; else one file */
    char filters[SL_FILTERS_TEXT]; /* of its job, as sl_pipeline_text */
    sl_st **files;
    int file_count;
    sl_dumped *at; /* in order */
    int count;
} sl_dump;

/* Open the tensor files of a dump's folder, or the one file. sl_dump_close also after an error; a
 * zeroed dump may be closed. Errors: SL_ARG a folder without any; what sl_st_open_file says;
 * SL_NOMEM. */
sl_code sl_dump_open(sl_dump *d, const char *path, sl_err *err);
void sl_dump_close(sl_dump *d);

/* As qsort's: by the pipeline's order, then by name. */
int sl_dumped_order(const sl_dumped *a, const sl_dumped *b);
/* "denoise, block 3 of step 0, cond", into buf; returns buf. */
const char *sl_dumped_maker(const sl_dumped *t, char *buf, size_t size);

#endif
