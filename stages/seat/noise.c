/* noise.c - noise from a file or a seed. */
#include "stages/seat/noise.h"

#include <stdlib.h>

#include "graphs/randn.h"
#include "stages/seat/parcel.h"

sl_code sl_seat_noise(float **out, const sl_msg_job *msg, const sl_job *job, const int64_t shape[4],
                      sl_err *err)
{
    char path[SL_PATH];
    sl_st *st = NULL;
    const int64_t n = shape[0] * shape[1] * shape[2] * shape[3];
    sl_code rc = SL_OK;
    *out = NULL;
    if (!*job->noise) {
        if (!(*out = malloc((size_t)n * sizeof(float))))
            return sl_fail(err, SL_NOMEM, "noise: no memory");
        sl_randn(*out, n, job->seed);
        return SL_OK;
    }
    if (!(rc = sl_path_join(path, msg->dir, "noise.safetensors", err)) &&
        !(rc = sl_st_open_file(&st, path, err)))
        rc = sl_parcel_read(out, st, "noise", 4, shape, err);
    sl_st_close(&st);
    return rc;
}
