/* sluice-denoise - text, image and noise -> latents [16, T, h/8, w/8], by the sampler's steps, resumable at any of them. */
#include "stages/denoise/run.h"

#include "common/log.h"

/* The hand-overs a job starts from: the lease that its ticket names, or the file in the spool. */
static sl_code open_input(sl_pool *pool, const sl_msg_job *msg, bool by_ticket, const sl_ticket *ticket, const char *file,
                          sl_lease **lease, sl_st **st, sl_err *err)
{
    char path[SL_PATH];
    if (by_ticket) return sl_lease_open(lease, pool, ticket, NULL, err);
    sl_code rc = sl_path_join(path, msg->dir, file, err);
    return rc ? rc : sl_st_open_file(st, path, err);
}

static sl_code denoise_job(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    denoiser *d = self;
    sl_lease *text = NULL, *image = NULL;
    sl_st *text_file = NULL, *image_file = NULL;
    denoise_run run = {0};
    sl_msg taken = {.type = SL_MSG_TAKEN, .taken = {.job = msg->job, .attempt = msg->attempt}};
    int64_t t0 = sl_now_ns();
    sl_code rc;
    if ((rc = open_input(d->text, msg, msg->tickets & 1, &msg->first, "text.safetensors", &text, &text_file, err))) goto done;
    if (d->model->takes_image &&
        (rc = open_input(d->image, msg, msg->tickets & 2, &msg->second, "image.safetensors", &image, &image_file, err)))
        goto done;
    if ((rc = denoise_start(&run, d, msg, job, text, text_file, image, image_file, err))) goto done;
    sl_lease_drop(&text, NULL); /* all of it is on the device: the slots may be filled for the next job */
    sl_lease_drop(&image, NULL);
    sl_stage_send(d->st, &taken);
    sl_stage_span(d->st, msg->job, SL_SPAN_HANDOVER, t0);

    while (run.sampler.step < job->steps)
        if ((rc = denoise_step(&run, err))) goto done;
    rc = denoise_finish(&run, err);
done:
    denoise_end(&run);
    sl_lease_drop(&text, NULL);
    sl_lease_drop(&image, NULL);
    sl_st_close(&text_file);
    sl_st_close(&image_file);
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
