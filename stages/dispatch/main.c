/* sluice-dispatch - jobs, scheduling, supervision: binds the control socket, starts the
 * stages, moves each job from one to the next. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/log.h"
#include "common/temporary.h"
#include "stages/dispatch/loop.h"

static sl_code parse_args(sl_dispatch *d, int argc, char **argv, sl_err *err)
{
    static const struct option OPTIONS[] = {
        {"run", 1, 0, 'r'},    {"conf", 1, 0, 'f'},   {"model", 1, 0, 'm'},
        {"bin", 1, 0, 'b'},    {"parent", 1, 0, 'p'}, {"keep", 0, 0, 'k'},
        {"attach", 1, 0, 'a'}, {"wire", 1, 0, 'w'},   {0}};
    int o;
    opterr = 0;
    while ((o = getopt_long(argc, argv, "", OPTIONS, NULL)) >= 0) {
        if (o == 'r') snprintf(d->run_dir, sizeof d->run_dir, "%s", optarg);
        else if (o == 'f') snprintf(d->conf_path, sizeof d->conf_path, "%s", optarg);
        else if (o == 'm') snprintf(d->model_dir, sizeof d->model_dir, "%s", optarg);
        else if (o == 'b') snprintf(d->bin_dir, sizeof d->bin_dir, "%s", optarg);
        else if (o == 'p') d->parent = (pid_t)strtol(optarg, NULL, 10);
        else if (o == 'k') d->keep = true;
        else if (o == 'w') snprintf(d->wire_path, sizeof d->wire_path, "%s", optarg);
        else if (o == 'a') d->attached = optarg;
        else
            return sl_fail(err, SL_ARG,
                           "sluice-dispatch: unknown or incomplete option %s, want --run --conf "
                           "--model --bin --parent --keep --attach --wire",
                           argv[optind - 1]);
    }
    d->wrapper = argv + optind; /* behind -- */
    if (!*d->run_dir || !*d->conf_path || !*d->model_dir || !*d->bin_dir)
        return sl_fail(err, SL_ARG,
                       "sluice-dispatch: want --run DIR --conf FILE --model DIR --bin DIR (`sluice "
                       "run` starts it)");
    return SL_OK;
}

/* The parent is gone, so nobody else is left to do it: the jobs' folders go, unless they are in a
 * spool from which another run may go on, and the run directory, if it was made for this run. */
static void remove_folders(sl_dispatch *d)
{
    static char *argv[SL_JOBS_MAX + 5] = {(char *)"rm", (char *)"-rf", (char *)"--"};
    int n = 3;
    for (int i = 0; i < sl_jobs_count(d->jobs) && !*d->conf.run.spool; i++)
        argv[n++] = (char *)sl_jobs_dir(d->jobs, i);
    if (!*d->conf.run.dir) argv[n++] = d->run_dir;
    if (n > 3) execv("/bin/rm", argv);
}

int main(int argc, char **argv)
{
    static sl_dispatch d;
    sl_err err = {0};
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGINT, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    d.parent = getppid(); /* --parent knows better: ours may be gone already */
    sl_log_open("dispatch", SL_LOG_INFO);
    int status = 2;
    if (parse_args(&d, argc, argv, &err) || sl_dispatch_open(&d, &err))
        sl_log_err("stopping", &err);
    else {
        sl_dispatch_loop(&d);
        status = 0;
    }
    sl_dispatch_stop(&d);
    if (d.jobs) {
        /* begun, and never to be finished */
        for (int i = 0; i < sl_jobs_count(d.jobs); i++)
            sl_temporary_sweep(sl_jobs_output(d.jobs, i));
        if (!status && !d.keep && (d.orphan || getppid() != d.parent)) remove_folders(&d);
        sl_jobs_close(&d.jobs);
    }
    return status;
}
