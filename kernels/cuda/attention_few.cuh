/* attention_few.cuh - what attention.cu and the Hopper kernel of attention_few.cu tell one another. */
#ifndef SL_ATTENTION_FEW_CUH
#define SL_ATTENTION_FEW_CUH

#include "kernels/cuda/cuda.h"

/* Attention of nq queries to nk keys, `heads` heads of 128; row i of a matrix begins i * pitch elements behind its first. */
struct sl_attention_few_call {
    const bf16 *q, *k, *v;
    bf16 *o; /* [nq, heads * 128], read and written */
    int64_t q_pitch, k_pitch, v_pitch, o_pitch;
    const float *stats; /* NULL: o += the result, rounded to bf16 first. Else F32 [heads, nq]: o is the result over other keys and
                           this the log of their sum of exponentials; o becomes the result over those and these keys together. */
    int64_t nq, nk, heads;
    float scale;
};

/* Can the kernel do it? Compute capability 9.0, 1 to 272 keys (128 with stats), addresses and pitches multiples of 16 bytes, scale
 * above 0; SLUICE_ATTENTION_FEW=0: never. */
bool sl_attention_few_can(const sl_cuda *cu, const sl_attention_few_call *c);
void sl_attention_few(sl_ctx *ctx, const sl_attention_few_call *c);

#endif
