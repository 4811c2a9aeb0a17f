/* gpu_ranks - t_ranks.h on GPUs: the ranks on all devices that are there, several on one if need
 * be, through CUDA IPC. run: alone. limit: 600 s */
#include "tests/t_ranks.h"

#include "kernels/plugin.h"

static int devices;

static const char *on_gpu(int i)
{
    return t_format("cuda:%d", i % devices);
}

/* Asked in a child: a context here would stay. */
static int count_devices(void)
{
    int status = 0;
    pid_t pid = fork();
    if (!pid) {
        sl_err err = {0};
        const sl_plugin *p = sl_plugin_cuda(&err);
        if (!p) fprintf(stderr, "%s\n", err.msg);
        _exit(p ? p->devices() : 0);
    }
    waitpid(pid, &status, 0);
    return WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {T_RANKS_TESTS};
    t_device = on_gpu, t_more_steps = 10, t_steps_within = 1000, t_stays_away = true;
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (!(devices = count_devices())) return 1;
    return cmocka_run_group_tests_name("ranks", tests, make_model, remove_model);
}
