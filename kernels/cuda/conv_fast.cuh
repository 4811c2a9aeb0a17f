/* conv_fast.cuh - what conv.cu and the Hopper kernel of conv_fast.cu tell one another. */
#ifndef SL_CONV_FAST_CUH
#define SL_CONV_FAST_CUH

#include "kernels/cuda/conv_tiles.h"
#include "kernels/cuda/cuda.h"

struct sl_cuda_convs {
    bool simple; /* SLUICE_CONV=simple: the kernel for every device, everywhere */
    /* SLUICE_CONV=wide: tiles of 192 channels wherever Co allows them (tests) */
    bool wide;
    unsigned set_up; /* bit i: fast kernel i may use its shared memory on this device */
    unsigned set_up_simple;
};

/* One call of sl_conv3d with its pointers taken apart. */
struct sl_conv_call {
    /* history, bias, residual: NULL if there is none */
    const bf16 *x, *history, *w, *bias, *residual;
    bf16 *y;
    int T, H, W, C; /* x as stored */
    int frames, oh, ow, co;
    sl_conv k;
    int before; /* frames that y's first frame sees before x's first */
};

/* True: the fast kernel can do this call. */
bool sl_conv_fast_can(const sl_cuda *cu, const sl_conv_call *c);
void sl_conv_fast(sl_ctx *ctx, const sl_conv_call *c);

#endif
