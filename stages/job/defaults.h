/* defaults.h - what the makers of a checkpoint mean it to be run with: DIR/sluice.json, one
 * JSON object with the keys of a jobs file's line that describe neither what is asked for
 * nor what is written (SL_OPTION_OF_MODEL in the table). Diffusers does not look at it. */
#ifndef SL_DEFAULTS_H
#define SL_DEFAULTS_H

#include <stdio.h>

#include "common/conf.h"
#include "stages/job/request.h"

#define SL_MODEL_DEFAULTS "sluice.json"
#define SL_MODEL_DEFAULTS_BYTES (1 << 20) /* at most */
#define SL_DEFAULT_AREA (832 * 480)       /* the reference pipeline's own default size */

/* Frames a second where neither the user nor the checkpoint's file says. */
double sl_default_fps(const sl_model *model, const sl_conf *conf);

/* Width and height come together, and beside them no area. Errors: SL_ARG; an area out of
 * range. */
sl_code sl_request_check_size(const sl_request *r, sl_err *err);

/* *out has what the file gives, has_... tell which; nothing if there is no file.
 * sl_job_free(&out->spec), also after an error.
 * Errors: SL_SYS, SL_FORMAT, SL_ARG one line with the file's name. */
sl_code sl_request_read_defaults(sl_request *out, const char *dir, sl_err *err);
/* Defaults where the user said nothing: a size or an area of the user's stands for all three
 * keys, --guidance for both experts', --sampler lightx2v for steps, guidance and shift, unless
 * they are meant for that sampler, too. */
sl_code sl_request_apply_defaults(sl_request *r, const sl_request *defaults, sl_err *err);
/* "BEFOREframes 33, steps 12"; false: nothing, there is none. */
bool sl_request_print_defaults(const sl_request *defaults, const char *before, FILE *to);

#endif
