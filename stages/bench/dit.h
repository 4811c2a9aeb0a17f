/* dit.h - the diffusion transformer with random weights and inputs, as the benchmarks run it: alone
 * (dit.c) and by a team (team.c).
 *
 *     open -> for each size: reserve, job, (forward ...), drop -> close
 * The weights and inputs of a size are the same numbers in every process that takes the same
 * steps. */
#ifndef SL_BENCH_DIT_H
#define SL_BENCH_DIT_H

#include "graphs/wan_dit.h"
#include "stages/bench/measure.h"

#define SL_BENCH_BRANCHES 2 /* of a guided step */

typedef struct {
    sl_bench_net n; /* does not move: its context points into it */
    sl_dit *m;
    int branches; /* of the job: 1 or 2 */
    sl_dit_times times;
    sl_dit_rope rope;
    sl_dit_context context[SL_BENCH_BRANCHES];
    sl_tensor v[SL_BENCH_BRANCHES], text[SL_BENCH_BRANCHES];
    sl_tensor latents, condition, image; /* condition, image: rank 0 where the model has none */
    void *memory[16];
    int memories;
} sl_bench_dit_net;

/* Make the weights. sl_bench_dit_close, also after an error. */
sl_code sl_bench_dit_open(sl_bench_dit_net *d, sl_bench *b, sl_err *err);
void sl_bench_dit_close(sl_bench_dit_net *d);

/* The tables and contexts of one job, and its inputs: shapes only on a planning ctx. Errors are
 * ctx's. sl_bench_dit_drop frees them. */
void sl_bench_dit_job(sl_bench_dit_net *d, sl_ctx *ctx, const sl_bench_size *s, int branches);
void sl_bench_dit_drop(sl_bench_dit_net *d);

/* v[branch] = one forward; share NULL: of this process alone. */
void sl_bench_dit_forward(sl_bench_dit_net *d, sl_ctx *ctx, int branch, const sl_dit_share *share);

/* The arena for forwards of this size by teams of these sizes, 1 among them. */
sl_code sl_bench_dit_reserve(sl_bench_dit_net *d, const sl_bench_size *s, int branches, int count,
                             const int teams[], sl_err *err);

#endif
