/* sluice-serve - what `sluice serve` becomes: a program of its own, so that the command starts
 * without the libraries of HTTP, SQLite and Redis. */
#include "common/log.h"
#include "kernels/cpu/blas.h"
#include "stages/serve/serve.h"

int main(int argc, char **argv)
{
    sl_log_open("sluice", SL_LOG_INFO);
    sl_blas_settle();
    return sl_serve_main(argc - 1, argv + 1);
}
