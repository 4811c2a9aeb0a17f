/* plan.c - the body without memory or work: a graph run on it has its shapes checked and
 * its arena measured. */
#include "kernels/cpu/cpu.h"

const sl_ops sl_ops_plan = {
    .name = "plan",
    .act = SL_F32,
    .host_memory = true,
    .stored_matrices = true,
    .rows_at_once = SL_CPU_ROWS,
    .row_granule = SL_CPU_GRANULE,
    .plan = true,
    .packed_conv_bytes = sl_cpu_packed_conv_bytes, /* for whoever counts the bytes of weights */
};

sl_ops sl_ops_plan_of(const sl_ops *device)
{
    return (sl_ops){.name = "plan",
                    .act = device->act,
                    .host_memory = device->host_memory,
                    .stored_matrices = device->stored_matrices,
                    .rows_at_once = device->rows_at_once,
                    .row_granule = device->row_granule,
                    .columns_apart = device->columns_apart,
                    .eight_width = device->eight_width,
                    .plan = true,
                    .packed_conv_bytes = device->packed_conv_bytes};
}
