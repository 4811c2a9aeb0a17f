/* sluice - the one command a person types. */
#include "stages/cli/cli.h"

#include <string.h>

#include "common/log.h"

static int run_or_replay(bool replay, int argc, char **argv, int64_t t0)
{
    cli_options o = {0};
    sl_model model;
    sl_conf conf;
    sl_err err = {0};
    int status = EXIT_REFUSED;
    if (!cli_parse(&o, replay, argc, argv, &err) && !cli_check(&o, &model, &conf, &err) &&
        !plan_admit(&o, &model, &conf, &err))
        status = cli_run(&o, &model, &conf, t0, &err);
    if (err.code) complain("%s", err.msg);
    cli_options_free(&o);
    return status;
}

int main(int argc, char **argv)
{
    int64_t t0 = sl_now_ns();
    const char *verb = argc > 1 ? argv[1] : "", *second = argc > 2 ? argv[2] : "";
    sl_log_open("sluice", SL_LOG_INFO);
    if (!strcmp(verb, "help") || !strcmp(verb, "--help") || !strcmp(verb, "-h") ||
        (strcmp(verb, "bench") && (!strcmp(second, "--help") || !strcmp(second, "-h")))) {
        cli_usage(stdout);
        return EXIT_OK;
    }
    if (!strcmp(verb, "bench")) return cli_bench(argc - 2, argv + 2);
    if (!strcmp(verb, "run")) return run_or_replay(false, argc - 2, argv + 2, t0);
    if (!strcmp(verb, "replay")) return run_or_replay(true, argc - 2, argv + 2, t0);
    if (!strcmp(verb, "inspect")) return cli_inspect(argc - 2, argv + 2);
    if (!strcmp(verb, "plan")) return cli_plan(argc - 2, argv + 2);
    if (!strcmp(verb, "pack")) return cli_pack(argc - 2, argv + 2);
    if (*verb)
        complain("unknown command \"%.60s\", want run, replay, inspect, plan, pack, bench or help",
                 verb);
    else complain("no command, want run, replay, inspect, plan, pack, bench or help");
    return EXIT_REFUSED;
}
