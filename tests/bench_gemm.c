/* bench_gemm.c - what it costs that a share's products have the bits of the whole's: the
 * 14B transformer's at the rows of whole jobs and of shares of a half, a quarter and an
 * eighth, with the algorithm chosen for the share's own rows, for all rows of the job
 * (what a forward does), and for 32,768 whatever they are.
 *
 * On a GPU; without one, one line. The three take turns, ROUNDS times BUDGET_S each, so
 * that all have the clock that the power limit allows; figures are the median round's.
 * The last line of a size is a forward's 40 blocks. limit: 600 s */
#include <stdio.h>
#include <stdlib.h>

#include "tests/t_layers.h"

#include "kernels/comm.h"

enum { ROUNDS = 5, WAYS = 3, NOMINAL = 32768, BLOCKS = 40 };
#define BUDGET_S 0.1

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Milliseconds of m rows of l by each way; false: it failed. */
static bool measure(pair *p, const t_layer *l, int64_t m, int64_t whole, double ms[WAYS])
{
    const int64_t ways[WAYS] = {0, whole, NOMINAL};
    const t_operands o = t_operands_of(p, l, m);
    double of[WAYS][ROUNDS];
    for (int r = -1; r < ROUNDS; r++) /* the first warms up */
        for (int w = 0; w < WAYS; w++) {
            int runs = 0;
            p->gpu.whole_rows = ways[w];
            t_layer_rows(&p->gpu, l, &o, 0, m);
            sl_sync(&p->gpu);
            const double from = seconds();
            do {
                for (int i = 0; i < 4; i++) t_layer_rows(&p->gpu, l, &o, 0, m);
                sl_sync(&p->gpu);
                runs += 4;
            } while (seconds() - from < BUDGET_S);
            if (r >= 0) of[w][r] = (seconds() - from) / runs * 1e3;
        }
    p->gpu.whole_rows = 0;
    for (int w = 0; w < WAYS; w++) {
        qsort(of[w], ROUNDS, sizeof of[w][0], by_size);
        ms[w] = of[w][ROUNDS / 2];
    }
    forget(p);
    return !went_wrong(p, l->name);
}

static void print(const char *name, int64_t m, const double ms[WAYS], const char *unit)
{
    printf("%7lld rows  %-24s %9.3f %9.3f %9.3f %s  %+6.2f %% %+6.2f %%\n", (long long)m, name,
           ms[0], ms[1], ms[2], unit, 100 * (ms[1] / ms[0] - 1), 100 * (ms[2] / ms[0] - 1));
    fflush(stdout);
}

static bool measure_share(pair *p, int64_t tokens, int team)
{
    const int64_t m = sl_share_of(&(sl_team){.size = team}, tokens, 0).rows;
    double forward[WAYS] = {0};
    printf("\n1/%d of %lld rows %27s %9s %9s\n", team, (long long)tokens, "by its own", "by all",
           "by 32,768");
    EACH(i, T_LAYERS)
    {
        double ms[WAYS];
        if (!measure(p, &T_LAYERS[i], m, tokens, ms)) return false;
        print(T_LAYERS[i].name, m, ms, "ms");
        for (int w = 0; w < WAYS; w++) forward[w] += BLOCKS * T_LAYERS[i].each * ms[w];
    }
    print("40 blocks", m, forward, "ms");
    return true;
}

int main(void)
{
    static const int64_t TOKENS[] = {75600, 48384, 32760};
    static const int TEAMS[] = {1, 2, 4, 8};
    int status;
    pair p;
    if (!gpu_open("bench_gemm", &status)) return status;
    pair_open(&p, (size_t)8 << 30);
    EACH(i, TOKENS) EACH(k, TEAMS) if (!measure_share(&p, TOKENS[i], TEAMS[k])) return 1;
    sl_ctx_close(&p.gpu);
    sl_ctx_close(&p.cpu);
    return 0;
}
