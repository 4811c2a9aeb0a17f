/* adapt.c - the weights become those that a job asks for: the checkpoint's and its LoRA; their
 * precision must be the job's already. */
#include <inttypes.h>

#include "common/log.h"
#include "stages/denoise/run.h"

/* Of weights that a switch has left half done. */
#define UNSET UINT64_MAX

/* One expert's. */
static sl_code adapt(denoiser *d, const sl_msg_job *msg, const sl_job *job, int e, sl_err *err)
{
    const char *field = e ? job->lora_2 : job->lora;
    sl_lora_set set = {0};
    sl_merge_figures f = {0};
    sl_code rc = SL_OK;
    const int64_t t0 = sl_now_ns();
    const uint64_t key = sl_lora_key(field);
    if (key == d->lora[e]) return SL_OK;
    if (!d->merge[e] && (rc = sl_merge_open(&d->merge[e], d->loaders[e], &d->ctx, err))) return rc;
    if (!(rc = sl_lora_set_open(&set, field, err)) && !(rc = sl_lora_set_read(&set, err))) {
        d->lora[e] = UNSET;
        rc = sl_merge_use(d->merge[e], (const sl_lora *const *)set.file, set.strength, set.n,
                          job->lora_lenient, &f, err);
    }
    if (!rc) d->lora[e] = key;
    if (!rc)
        sl_log(SL_LOG_DEBUG,
               "job %" PRIu64
               ": %s has %d LoRA: %d tensors merged, %d restored, %.1f MB read again, "
               "%.3f s",
               msg->job, e ? "transformer_2" : "transformer", set.n, f.tensors, f.restored,
               (double)f.bytes_read * 1e-6, (double)(sl_now_ns() - t0) * 1e-9);
    sl_lora_set_close(&set);
    sl_control_span(&d->seat->control, msg->job, SL_SPAN_LOAD, t0);
    return rc;
}

sl_code sl_denoise_adapt(denoiser *d, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    sl_precision asked;
    sl_code rc = sl_precision_read(&asked, job->precision, err);
    if (!rc) rc = sl_precision_fits(d->model->dit[0].precision.is, asked, err);
    for (int e = 0; e < d->model->family.experts && !rc; e++) rc = adapt(d, msg, job, e, err);
    return rc;
}
