/* precision.h - in which numbers a run's denoisers compute (common/precision.h): asked for by a
 * job, decided once for the weights that are loaded. */
#ifndef SL_JOB_PRECISION_H
#define SL_JOB_PRECISION_H

#include "stages/job/request.h"

/* What the command line (or a replay's dump) says goes before the configuration's word, and the
 * model keeps its transformers' weights so. Errors: SL_ARG a precision or a block that is none. */
sl_code sl_batch_use_precision(const sl_batch *b, sl_conf *conf, sl_model *model, sl_err *err);
/* The devices on which stages of conf denoise can compute so. Errors: SL_ARG naming the GPU. */
sl_code sl_precision_check_devices(const sl_conf *conf, const sl_gpus *gpus, sl_err *err);
/* The weights allow what a completed job asks for. Errors: SL_ARG, both named. */
sl_code sl_request_check_precision(const sl_request *r, const sl_conf *conf, sl_err *err);

#endif
