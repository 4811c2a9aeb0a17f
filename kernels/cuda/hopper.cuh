/* hopper.cuh - instructions of compute capability 9.0 that several kernels are made of:
 * barriers in shared memory, the copy engine's boxes of two dimensions, groups of wgmma's
 * products. */
#ifndef SL_HOPPER_CUH
#define SL_HOPPER_CUH

#include <cuda.h>

#include "kernels/cuda/cuda.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace
{

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

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

} // namespace

#endif
#endif
