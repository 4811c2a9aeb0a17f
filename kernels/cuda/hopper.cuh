/* hopper.cuh - what kernels of compute capability 9.0 are made of: barriers and rings of
 * places in shared memory, the copy engine's boxes of two dimensions, groups of wgmma's
 * products, and how a lane's results become 16 bytes. */
#ifndef SL_HOPPER_CUH
#define SL_HOPPER_CUH

#include <cuda.h>

#include "kernels/cuda/mma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace
{

__device__ __forceinline__ void barrier_init(uint32_t bar, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ bool barrier_passed(uint32_t bar, uint32_t parity)
{
    uint32_t passed;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.b32 %0, 1, 0, p;\n}\n"
                 : "=r"(passed)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return passed;
}

/* Copies and products take microseconds: after ten seconds something is broken, and an
 * error is better than a device that hangs. */
__device__ __forceinline__ void barrier_wait(uint32_t bar, uint32_t parity)
{
    if (barrier_passed(bar, parity)) return;
    uint64_t start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    while (!barrier_passed(bar, parity)) {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
        if (now - start > 10000000000u) __trap();
    }
}

/* The map's box at (column, row) to shared memory; its bytes are counted at the barrier. */
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, uint32_t bar,
                                         int column, int row)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                 "l"((uint64_t)map), "r"(bar), "r"(column), "r"(row)
                 : "memory");
}

__device__ __forceinline__ void products_may_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void products_queued()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void products_done()
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

/* All but the group that was queued last. */
__device__ __forceinline__ void products_done_but_last()
{
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
}

/* ---- rings in shared memory ---- */

/* Places that are filled and given back in turn, and where one side stands. */
struct ring {
    uint32_t data, full, empty; /* addresses in shared memory; barriers are 8 bytes apart */
    int at;
    uint32_t pass; /* parity of the passes through the ring */
};

template <int COUNT> __device__ __forceinline__ void advance(ring &r)
{
    if (++r.at == COUNT) r.at = 0, r.pass ^= 1;
}

/* Called by one thread at a kernel's beginning: the barriers of a ring that one thread
 * fills and `warps` warps empty. */
template <int COUNT> __device__ __forceinline__ void ring_init(const ring &r, int warps)
{
    for (int i = 0; i < COUNT; i++) {
        barrier_init(r.full + 8 * i, 1);      /* the copying thread's; the copies' bytes besides */
        barrier_init(r.empty + 8 * i, warps); /* one arrival a warp */
    }
}

/* Called by the same thread after its last ring_init and before the block's barrier. */
__device__ __forceinline__ void rings_ready()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- results on their way out ---- */

/* Among four neighbouring lanes: element i of lane q becomes element q of lane i. This
 * exchange is its own inverse. */
__device__ __forceinline__ void transpose4(uint32_t (&v)[4], int lane)
{
    const bool odd = lane & 1, high = lane & 2;
    uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? v[0] : v[1], 1),
             b = __shfl_xor_sync(0xffffffffu, odd ? v[2] : v[3], 1);
    if (odd) v[0] = a, v[2] = b;
    else v[1] = a, v[3] = b;
    a = __shfl_xor_sync(0xffffffffu, high ? v[0] : v[2], 2),
    b = __shfl_xor_sync(0xffffffffu, high ? v[1] : v[3], 2);
    if (high) v[0] = a, v[1] = b;
    else v[2] = a, v[3] = b;
}

__device__ __forceinline__ float2 floats(uint32_t two)
{
    return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

__device__ __forceinline__ uint32_t rounded(float a, float b)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *(uint32_t *)&v;
}

} // namespace

#endif
#endif
