/* kept.c - the file in which a receiver of chunks keeps them for a dump. */
#include "stages/seat/kept.h"

#include <stdio.h>
#include <unistd.h>

#include "common/log.h"

static void give_up(sl_kept *k, const sl_err *why)
{
    sl_msg m = {.type = SL_MSG_SPOOLED,
                .spooled = {.job = k->msg.job, .attempt = k->msg.attempt, .code = why->code}};
    snprintf(m.spooled.name, sizeof m.spooled.name, "%s", SL_HANDOVER[k->handover].file);
    snprintf(m.spooled.message, sizeof m.spooled.message, "%s", why->msg);
    sl_stw_abandon(&k->file);
    sl_control_send(&k->seat->control, &m);
}

/* What its tensor is called: "frames" of rgb. */
static const char *tensor_of(const sl_kept *k)
{
    return SL_HANDOVER[SL_HANDOVER[k->handover].kind].name;
}

void sl_kept_open(sl_kept *k, sl_seat *seat, const sl_msg_job *msg, sl_handover h,
                  const sl_tensor_spec *all)
{
    char file[64], path[SL_PATH];
    sl_st_note notes[SL_ORIGIN_NOTES];
    sl_err err = {0};
    *k = (sl_kept){.seat = seat, .msg = *msg, .handover = h, .frame = sl_dtype_size(all->dtype)};
    for (int i = 1; i < all->rank; i++) k->frame *= (size_t)all->shape[i];
    snprintf(file, sizeof file, "%s.safetensors", SL_HANDOVER[h].file);
    if (!sl_path_join(path, msg->dir, file, &err))
        unlink(path); /* a part, of an attempt that fell */
    if (err.code || sl_stw_open(&k->file, path, &err) ||
        sl_stw_notes(k->file, sl_origin_notes(notes, &seat->spool.origin), notes, &err) ||
        sl_stw_declare(k->file, tensor_of(k), all->dtype, all->rank, all->shape, &err))
        give_up(k, &err);
}

void sl_kept_write(sl_kept *k, const void *data, int64_t n)
{
    sl_err err = {0};
    if (k->file && sl_stw_write(k->file, tensor_of(k), data, (size_t)k->written * k->frame,
                                (size_t)n * k->frame, &err))
        give_up(k, &err);
    k->written += n;
}

void sl_kept_finish(sl_kept *k)
{
    sl_err err = {0};
    if (k->file && sl_stw_finish(&k->file, &err)) give_up(k, &err);
}

void sl_kept_cut(sl_kept *k)
{
    sl_err err = {0};
    if (k->file && k->written &&
        (sl_stw_cut(k->file, tensor_of(k), k->written, &err) || sl_stw_finish(&k->file, &err)))
        sl_log_err("dump", &err);
}

void sl_kept_abandon(sl_kept *k)
{
    sl_stw_abandon(&k->file);
}
