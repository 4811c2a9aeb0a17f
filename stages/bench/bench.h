/* bench.h - `sluice bench`: how fast the networks and their parts run on this device. */
#ifndef SL_BENCH_H
#define SL_BENCH_H

/* argv are the words after the verb; the result is the exit status (SL_EXIT_...). Figures go
 * to stdout, what is wrong to stderr. */
int sl_bench_main(int argc, char **argv);

#endif
