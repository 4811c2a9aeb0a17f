/* order.c - whose turn of a device is next, and whose weights. */
#include "stages/dispatch/order.h"

int sl_order_next(const sl_order_wait *waits, int n, int64_t now_ns, int64_t patience_ns)
{
    int best = 0, best_rank = 3;
    for (int i = 0; i < n; i++) {
        int rank = !waits[i].step ? 1 : now_ns - waits[i].since_ns > patience_ns ? 0 : 2;
        if (rank > best_rank || (rank == best_rank && waits[i].since_ns >= waits[best].since_ns))
            continue;
        best = i;
        best_rank = rank;
    }
    return best;
}

int sl_order_take(const sl_order_job *jobs, int n, uint64_t key)
{
    int oldest = -1, same = -1;
    for (int i = n - 1; i >= 0; i--) {
        if (!jobs[i].ready) continue;
        oldest = i;
        if (jobs[i].key == key) same = i;
    }
    if (oldest >= 0 && jobs[oldest].overtaken >= SL_ORDER_OVERTAKEN) return oldest;
    return same >= 0 ? same : oldest;
}
