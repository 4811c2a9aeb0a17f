/* gpu_comm.c - ranks that exchange on GPUs: through CUDA IPC, dealt out to all devices that are
 * there, several to one if need be; through NCCL, a device each; and how NCCL is refused.
 * Without an argument all of it; gpu_comm ipc | nccl: one. limit: 600 s */
#include "t_comm.h"

#include "t_gpu_rank.h"

static char *said; /* shared with who is asked: what an open or connect failed with */
enum { SAID = 512 };

/* Open an end with nccl and the library that SLUICE_NCCL names. 0: it is there; 1: no; 2: there is
 * no plug-in. */
static int opens(char *says, size_t size)
{
    sl_err err = {0};
    sl_comm *c = NULL;
    const sl_plugin *p = sl_plugin_cuda(&err);
    const bool refused = !p || sl_comm_open(&c, p->comm_nccl, 0, 1 << 20, 1000, &err);
    snprintf(says, size, "%s", refused ? err.msg : "");
    sl_comm_close(&c);
    return !p ? 2 : refused;
}

static void no_library_is_one_line(void **state)
{
    (void)state;
    setenv("SLUICE_NCCL", "/nonexistent/libnccl.so.2", 1);
    const int there = t_ask(opens, said, SAID);
    if (there == 2) skip();
    assert_int_equal(there, 1);
    T_SAYS(said, "comm: no NCCL, want 2.14 or newer (SLUICE_NCCL names its file): /nonexistent/");
    assert_null(strchr(said, '\n'));
}

/* A library of NCCL's version `v`; false: there is no compiler here. */
static bool build(const char *dir, int v)
{
    char source[700], text[1600];
    snprintf(source, sizeof source, "%s/nccl.c", dir);
    snprintf(text, sizeof text, "int ncclGetVersion(int *v) { *v = %d; return 0; }\n", v);
    FILE *f = fopen(source, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    snprintf(text, sizeof text, "cc -shared -fPIC -o '%s/nccl.so' '%s' 2>/dev/null", dir, source);
    return system(text) == 0;
}

static void an_old_library_is_one_line(void **state)
{
    static const struct {
        int version;
        const char *says;
    } AT[] = {{2708, "nccl.so is NCCL 2.7.8, want 2.14 or newer (SLUICE_NCCL names another file)"},
              {21304, "nccl.so is NCCL 2.13.4, want 2.14 or newer"},
              {21403, "nccl.so has no ncclGetUniqueId, want NCCL 2.14 or newer"}};
    const char *dir = t_tmpdir();
    char path[700];
    int there = 0;
    (void)state;
    snprintf(path, sizeof path, "%s/nccl.so", dir);
    setenv("SLUICE_NCCL", path, 1);
    for (size_t i = 0; i < sizeof AT / sizeof *AT && there != 2; i++) {
        there = build(dir, AT[i].version) ? t_ask(opens, said, SAID) : 2;
        if (there == 2) break;
        assert_int_equal(there, 1);
        T_SAYS(said, AT[i].says);
    }
    t_rmdir(dir);
    if (there == 2) skip();
}

/* Two ends on one device. */
static int shares_a_device(char *says, size_t size)
{
    sl_err err = {0};
    sl_comm *c[2] = {NULL, NULL};
    sl_comm_handle h;
    const sl_plugin *p = sl_plugin_cuda(&err);
    const bool open = p && !p->use(0, &err) &&
                      !sl_comm_open(&c[0], p->comm_nccl, 3, 1 << 20, 1000, &err) &&
                      !sl_comm_open(&c[1], p->comm_nccl, 5, 1 << 20, 1000, &err);
    if (open) sl_comm_handle_of(c[1], &h);
    const sl_code rc = open ? sl_comm_connect(c[0], &h, &err) : SL_OK;
    snprintf(says, size, "%s", err.msg);
    sl_comm_close(&c[0]);
    sl_comm_close(&c[1]);
    return open && rc == SL_ARG;
}

static void two_ranks_on_a_device_are_refused(void **state)
{
    (void)state;
    const int refused = t_ask(shares_a_device, said, SAID);
    T_SAYS(said, "comm: ranks 3 and 5 are both on device 0 (");
    T_SAYS(said, "and NCCL wants one for each rank; ipc lets them share it");
    assert_int_equal(refused, 1);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {T_COMM_TESTS},
                            libraries[] = {cmocka_unit_test(no_library_is_one_line),
                                           cmocka_unit_test(an_old_library_is_one_line)},
                            one[] = {cmocka_unit_test(two_ranks_on_a_device_are_refused)};
    const char *given = getenv("SLUICE_NCCL"), *which = argc > 1 ? argv[1] : "";
    const bool ipc = !*which || !strcmp(which, "ipc"),
               with_nccl = !*which || !strcmp(which, "nccl");
    char *kept = given ? strdup(given) : NULL;
    int failures = 0;
    if (!ipc && !with_nccl) {
        fprintf(stderr, "gpu_comm: %s, want ipc or nccl\n", which);
        return 2;
    }
    said = mmap(NULL, SAID, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const int devices = t_ask(t_count_devices, said, SAID);
    t_body = (t_comm_body){.open = open_gpu,
                           .window = (size_t)4 << 20,
                           .arena = (size_t)16 << 20,
                           .ranks = 8,
                           .device_used = gpu_used};
    if (ipc) failures += cmocka_run_group_tests_name("ipc", tests, NULL, NULL);
    if (!with_nccl) return failures;
    failures += cmocka_run_group_tests_name("nccl: libraries", libraries, NULL, NULL);
    if (kept) setenv("SLUICE_NCCL", kept, 1);
    else unsetenv("SLUICE_NCCL");
    free(kept);
    t_nccl = true;
    t_body.ranks = devices < 8 ? devices : 8;
    if (devices < 1) printf("nccl: no device: exchanges left out\n");
    else if (t_ask(opens, said, SAID)) printf("nccl: exchanges left out: %s\n", said);
    else {
        failures += cmocka_run_group_tests_name("nccl: one device", one, NULL, NULL);
        if (devices < 2) printf("nccl: one device only: exchanges left out\n");
        else failures += cmocka_run_group_tests_name("nccl", tests, NULL, NULL);
    }
    return failures;
}
