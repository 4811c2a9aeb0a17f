/* context.c - the operations of a seat's device. Apart from seat.c, so that a stage which computes
 * by other means (stages/own) is not linked with them. */
#include "stages/seat/seat.h"

sl_code sl_seat_context(sl_seat *seat, sl_ctx *ctx, sl_err *err)
{
    sl_code rc;
    if ((rc = sl_seat_device(seat, err)) ||
        (rc = sl_ctx_open(ctx, seat->plugin ? seat->plugin->ops : &sl_ops_cpu, 0, err)))
        return rc;
    ctx->cancel = &seat->control.wished[SL_WISH_CANCEL];
    return SL_OK;
}
