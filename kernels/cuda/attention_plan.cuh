/* attention_plan.cuh - what attention.cu asks of cuDNN's plans in attention_plan.cu. */
#ifndef SL_ATTENTION_PLAN_CUH
#define SL_ATTENTION_PLAN_CUH

#include "kernels/cuda/cuda.h"

/* What a plan is for. Compared as bytes, so zeroed before it is filled. */
struct sl_attention_shape {
    int64_t nq, nk, heads, d, q_pitch, k_pitch, v_pitch, o_pitch;
};

/* Where the data of one run lie. */
struct sl_attention_data {
    const void *q, *k, *v;
    void *o;
    float scale;
};

/* *plan: the plan for this shape, made at its first use and kept by ctx; NULL: cuDNN has
 * none (which has been logged). False: ctx has failed. */
bool sl_attention_plan(sl_ctx *ctx, const sl_attention_shape *s, cudnnBackendDescriptor_t *plan);
/* Queues the plan on ctx's stream. */
cudnnStatus_t sl_attention_execute(sl_ctx *ctx, cudnnBackendDescriptor_t plan,
                                   const sl_attention_data *data);

#endif
