/* origin.h - what the files of a job say of where they come from, in their __metadata__:
 *
 *   job      a number of what the job asks for: of two jobs that ask for the same it is the same,
 *            wherever their pictures, videos and models lie
 *   seed     the job's
 *   version  of Sluice: the commit
 *   program  that wrote the file
 *   device   on which it works
 *
 * Nothing of them differs between two runs of one job, so neither do the files. */
#ifndef SL_ORIGIN_H
#define SL_ORIGIN_H

#include "common/job.h"
#include "common/safetensors.h"

#define SL_ORIGIN_NOTES 5

typedef struct {
    char job[24], seed[24], program[64], device[64];
} sl_origin;

/* program: its path, or name. */
void sl_origin_of_process(sl_origin *o, const char *program, const char *device);
void sl_origin_of_job(sl_origin *o, const sl_job *job);
/* The rows, which point into *o; returns SL_ORIGIN_NOTES. */
int sl_origin_notes(sl_st_note out[SL_ORIGIN_NOTES], const sl_origin *o);

/* The number of what a job asks for, 16 digits: of all fields of job.json but paths (of models,
 * pictures, noise, results) and what is written besides the video. */
void sl_origin_key(char out[24], const sl_job *job);

#endif
