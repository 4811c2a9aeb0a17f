/* sluice - the one command a person types. */
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "stages/bench/bench.h"
#include "stages/cli/arguments.h"
#include "stages/cli/verbs.h"
#include "stages/serve/serve.h"

int main(int argc, char **argv)
{
    int64_t t0 = sl_now_ns();
    const char *verb = argc > 1 ? argv[1] : "", *second = argc > 2 ? argv[2] : "";
    sl_log_open("sluice", SL_LOG_INFO);
    if (!strcmp(verb, "help") || !strcmp(verb, "--help") || !strcmp(verb, "-h") ||
        (strcmp(verb, "bench") && (!strcmp(second, "--help") || !strcmp(second, "-h")))) {
        sl_cli_usage(stdout);
        return SL_EXIT_OK;
    }
    if (!strcmp(verb, "bench")) return sl_bench_main(argc - 2, argv + 2);
    if (!strcmp(verb, "run")) return sl_cli_run(false, argc - 2, argv + 2, t0);
    if (!strcmp(verb, "replay")) return sl_cli_run(true, argc - 2, argv + 2, t0);
    if (!strcmp(verb, "serve")) return sl_serve_main(argc - 2, argv + 2);
    if (!strcmp(verb, "inspect")) return sl_cli_inspect(argc - 2, argv + 2);
    if (!strcmp(verb, "plan")) return sl_cli_plan(argc - 2, argv + 2);
    if (!strcmp(verb, "pack")) return sl_cli_pack(argc - 2, argv + 2);
    if (*verb)
        sl_complain("unknown command \"%.60s\", want run, replay, serve, inspect, plan, pack, "
                    "bench or help",
                    verb);
    else sl_complain("no command, want run, replay, serve, inspect, plan, pack, bench or help");
    return SL_EXIT_REFUSED;
}
