/* sluice-denoise - text, image and noise -> latents [16, T, h/8, w/8], by the sampler's
 * steps, resumable at any of them. */
#include "stages/denoise/run.h"

/* The hand-overs to the denoiser that this job has. */
static sl_code take_inputs(denoiser *d, denoise_inputs *in, const sl_msg_job *msg,
                           const sl_job *job, sl_err *err)
{
    int64_t t0 = sl_now_ns();
    sl_code rc = sl_parcel_take(&in->text, d->seat, &d->ctx, msg, job, SL_HANDOVER_TEXT, err);
    if (!rc && sl_handover_applies(SL_HANDOVER_IMAGE, d->model, job))
        rc = sl_parcel_take(&in->image, d->seat, &d->ctx, msg, job, SL_HANDOVER_IMAGE, err);
    sl_control_span(&d->seat->control, msg->job, SL_SPAN_HANDOVER, t0);
    return rc;
}

static void drop_inputs(denoiser *d, denoise_inputs *in)
{
    sl_parcel_drop(&in->text, d->seat);
    sl_parcel_drop(&in->image, d->seat);
}

/* Why a member of a team stops: one that did not fail itself, and was not cancelled, lost the
 * others, and the job goes on with whoever is there. */
static sl_code gave_up(const denoise_team *team, const sl_control *control, sl_code rc, sl_err *err)
{
    bool others = rc == SL_TIMEOUT || (rc == SL_CANCELLED && !sl_control_cancelled(control));
    return team->comm && others ? (err->code = SL_GONE) : rc;
}

static sl_code denoise_job(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    denoiser *d = self;
    denoise_inputs in = {0};
    denoise_run run = {0};
    sl_msg taken = {.type = SL_MSG_TAKEN, .taken = {.job = msg->job, .attempt = msg->attempt}};
    sl_control *control = &d->seat->control;
    control->quiet = msg->team.me > 0;
    sl_code rc = sl_denoise_adapt(d, msg, job, err);
    if (!rc) rc = sl_denoise_team_open(&run.team, d->seat, &d->ctx, msg, job, &d->shares, err);
    const bool leads = sl_denoise_leads(&run.team);
    if (!rc && leads) rc = take_inputs(d, &in, msg, job, err);
    if (!rc) rc = sl_denoise_team_inputs(&run.team, d->seat, &d->ctx, job, &in, err);
    if (!rc) rc = sl_denoise_start(&run, d, msg, job, &in, err);
    /* all of it is on the device, or in vain: the slots may be filled for the next job */
    drop_inputs(d, &in);
    if (!rc && leads) sl_control_send(control, &taken);

    while (!rc && !run.parked && run.sampler.step < job->steps) rc = sl_denoise_step(&run, err);
    if (!rc) rc = run.parked ? sl_denoise_park(&run, err) : sl_denoise_finish(&run, err);
    rc = gave_up(&run.team, control, rc, err);
    sl_denoise_team_close(&run.team, &d->ctx, rc != SL_OK);
    sl_denoise_end(&run);
    control->quiet = false;
    return rc;
}

int main(int argc, char **argv)
{
    denoiser d = {0};
    sl_err err = {0};
    if (!sl_seat_open(&d.seat, SL_ROLE_DENOISE, argc, argv, &err) && !sl_denoiser_open(&d, &err))
        sl_seat_serve(d.seat, denoise_job, &d, &err);
    sl_denoiser_close(&d);
    return sl_seat_exit(&d.seat, &err);
}
