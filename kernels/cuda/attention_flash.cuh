/* attention_flash.cuh - what attention.cu asks of the Hopper kernel in
 * attention_flash.cu. */
#ifndef SL_ATTENTION_FLASH_CUH
#define SL_ATTENTION_FLASH_CUH

#include "kernels/cuda/cuda.h"

/* o = softmax(q k^T scale) v, nq queries, nk keys, `heads` heads of 128; row i of a
 * matrix begins i * pitch elements behind its first. o overlaps nothing. */
struct sl_attention_flash_call {
    const bf16 *q, *k, *v;
    bf16 *o;
    int64_t q_pitch, k_pitch, v_pitch, o_pitch;
    int64_t nq, nk, heads;
    float scale;
};

/* True: the kernel can do this call. Compute capability 9.0, addresses and pitches multiples of 16
 * bytes, scale above 0; SLUICE_ATTENTION_FLASH=0, or any SLUICE_ATTENTION: never. */
bool sl_attention_flash_can(const sl_cuda *cu, const sl_attention_flash_call *c);
void sl_attention_flash(sl_ctx *ctx, const sl_attention_flash_call *c);

/* The same by parts, as sl_attention_parts, in the order of bands.h. False: too many bands. */
bool sl_attention_flash_parts(sl_ctx *ctx, const sl_attention_flash_call *c, int parts,
                              const int64_t *first, int last, sl_done *done);

#endif
