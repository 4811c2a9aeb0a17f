/* precision.c - in which numbers a run's denoisers compute. */
#include "stages/job/precision.h"

#include <stdlib.h>
#include <string.h>

sl_code sl_batch_use_precision(const sl_batch *b, sl_conf *conf, sl_model *model, sl_err *err)
{
    const char *asked = b->base.has_precision ? b->base.spec.precision : "";
    sl_precision p;
    sl_code rc;
    if (*asked) {
        if ((rc = sl_precision_read(&p, asked, err))) return rc;
        snprintf(conf->denoise.precision, sizeof conf->denoise.precision, "%s",
                 sl_precision_name(p));
    }
    return sl_model_use_precision(model, conf->denoise.precision, conf->denoise.bf16_blocks,
                                  conf->denoise.fp8_attention_steps, conf->denoise.fp8_sums, err);
}

sl_code sl_precision_check_devices(const sl_conf *conf, const sl_gpus *gpus, sl_err *err)
{
    if (!strcmp(conf->denoise.precision, sl_precision_name(SL_PRECISION_BF16))) return SL_OK;
    for (int i = 0; i < conf->stage_count; i++) {
        const sl_conf_stage *s = &conf->stages[i];
        if (s->role != SL_ROLE_DENOISE || !sl_gpus_free(gpus, s->device)) continue;
        const int k = atoi(s->device + 5), sm = gpus->gpu[k].sm;
        if (sm != 90)
            return sl_fail(err, SL_ARG,
                           "precision %s wants a GPU of compute capability 9.0, %s (%s) has %d.%d: "
                           "want bf16 there",
                           conf->denoise.precision, s->device, gpus->gpu[k].name, sm / 10, sm % 10);
    }
    return SL_OK;
}

sl_code sl_request_check_precision(const sl_request *r, const sl_conf *conf, sl_err *err)
{
    const sl_job *s = &r->spec;
    sl_precision asked, loaded;
    sl_code rc;
    if ((rc = sl_precision_read(&asked, s->precision, err)) ||
        (rc = sl_precision_read(&loaded, conf->denoise.precision, err)))
        return rc;
    return sl_precision_fits(loaded, asked, err);
}
