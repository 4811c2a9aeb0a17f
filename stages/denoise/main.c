/* sluice-denoise - text, image and noise -> latents [16, T, h/8, w/8], by the sampler's
 * steps, resumable at any of them. */
#include "stages/denoise/run.h"

#include "common/log.h"

/* The hand-overs a job starts from: the lease that its ticket names, or the file in the
 * spool. */
static sl_code open_input(denoiser *d, sl_pool *pool, const sl_msg_job *msg,
                          const sl_ticket *ticket, const char *file, sl_lease **lease, sl_st **st,
                          sl_err *err)
{
    char path[SL_PATH];
    if (ticket) return sl_lease_open(lease, pool, ticket, sl_network_stream(&d->ctx, pool), err);
    sl_code rc = sl_path_join(path, msg->dir, file, err);
    return rc ? rc : sl_st_open_file(st, path, err);
}

static void drop_leases(denoiser *d, denoise_inputs *in)
{
    sl_lease_drop(&in->text, sl_network_stream(&d->ctx, d->text));
    sl_lease_drop(&in->image, sl_network_stream(&d->ctx, d->image));
}

static sl_code denoise_job(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    denoiser *d = self;
    denoise_inputs in = {0};
    denoise_run run = {0};
    sl_msg taken = {.type = SL_MSG_TAKEN, .taken = {.job = msg->job, .attempt = msg->attempt}};
    int64_t t0 = sl_now_ns();
    sl_code rc;
    if ((rc = open_input(d, d->text, msg, sl_tickets_find(&msg->in, SL_HANDOVER_TEXT),
                         "text.safetensors", &in.text, &in.text_file, err)))
        goto done;
    if (d->model->family.picture &&
        (rc = open_input(d, d->image, msg, sl_tickets_find(&msg->in, SL_HANDOVER_IMAGE),
                         "image.safetensors", &in.image, &in.image_file, err)))
        goto done;
    sl_stage_span(d->st, msg->job, SL_SPAN_HANDOVER, t0);
    if ((rc = denoise_start(&run, d, msg, job, &in, err))) goto done;
    /* all of it is on the device: the slots may be filled for the next job */
    drop_leases(d, &in);
    sl_stage_send(d->st, &taken);

    while (run.sampler.step < job->steps)
        if ((rc = denoise_step(&run, err))) goto done;
    rc = denoise_finish(&run, err);
done:
    denoise_end(&run);
    drop_leases(d, &in);
    sl_st_close(&in.text_file);
    sl_st_close(&in.image_file);
    return rc;
}

int main(int argc, char **argv)
{
    denoiser d = {0};
    sl_err err = {0};
    if (sl_stage_open(&d.st, "denoise", argc, argv, &err) || denoiser_open(&d, &err)) {
        denoiser_close(&d);
        return sl_stage_exit(&d.st, &err);
    }
    sl_network_serve(d.st, denoise_job, &d, d.text, d.image, &err);
    denoiser_close(&d);
    return sl_stage_exit(&d.st, &err);
}
