/* test_plugin.c - opening the CUDA plug-in on a machine without it: one clear line for
 * each way in which its file can be wrong. */
#include "tests/t.h"

#include <pthread.h>
#include <sys/wait.h>

#include "kernels/plugin.h"

/* The plug-in is opened once a process: each case has its own, with SLUICE_CUDA set to
 * `file` (NULL: not set). Its message, or "opened". */
static const char *answer(const char *file)
{
    static char text[1024];
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        sl_err err = {0}, again = {0};
        if (file) setenv("SLUICE_CUDA", file, 1);
        else unsetenv("SLUICE_CUDA");
        const char *said = sl_plugin_cuda(&err) ? "opened" : err.msg;
        if (!sl_plugin_cuda(&again) && (again.code != err.code || strcmp(again.msg, err.msg) != 0))
            said = "the second call says something else";
        if (!sl_plugin_cuda(NULL) && err.code != SL_ARG) said = sl_code_name(err.code);
        ssize_t put = write(ends[1], said, strlen(said));
        _exit(put < 0);
    }
    close(ends[1]);
    size_t n = 0;
    ssize_t got;
    while (n < sizeof text - 1 && (got = read(ends[0], text + n, sizeof text - 1 - n)) > 0)
        n += (size_t)got;
    text[n] = 0;
    close(ends[0]);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    if (strchr(text, '\n')) fail_msg("more than one line: %s", text);
    return text;
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void a_missing_file_is_named(void **state)
{
    (void)state;
    const char *said = answer("/nowhere/at/all.so");
    T_SAYS(said, "CUDA plug-in /nowhere/at/all.so: ");
    T_SAYS(said, "No such file");
    assert_null(strstr(strstr(said, "all.so") + 1, "all.so")); /* named once */
}

static void without_a_setting_the_programs_folder_is_searched(void **state)
{
    (void)state;
    char self[1024];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(n > 0);
    self[n] = 0;
    strcpy(strrchr(self, '/') + 1, "sluice_cuda.so");
    if (access(self, F_OK) == 0) skip();
    T_SAYS(answer(NULL), self);
    T_SAYS(answer(""), self);
}

static void a_file_that_is_no_library_is_refused(void **state)
{
    (void)state;
    char path[600];
    const char *dir = t_tmpdir();
    snprintf(path, sizeof path, "%s/text.so", dir);
    write_file(path, "not a library, and long enough that it might have been one: nothing in it is "
                     "what a loader looks for\n");
    const char *said = answer(path);
    T_SAYS(said, path);
    T_SAYS(said, "invalid ELF header");
    write_file(path, "");
    T_SAYS(answer(path), "file too short");
    T_SAYS(answer(dir), dir);
    t_rmdir(dir);
}

static void another_library_is_refused(void **state)
{
    (void)state;
    T_SAYS(answer("libm.so.6"), "no plug-in of sluice");
}

static void a_long_path_is_refused(void **state)
{
    (void)state;
    char path[6000];
    memset(path, 'x', sizeof path - 1);
    path[0] = '/';
    path[sizeof path - 1] = 0;
    T_SAYS(answer(path), "a path of 5999 characters");
}

/* A library that says it is a plug-in, of interface `abi`; false: there is no compiler
 * here. */
static bool build(const char *dir, int abi)
{
    char source[700], command[1600];
    snprintf(source, sizeof source, "%s/plugin.c", dir);
    snprintf(command, sizeof command,
             "struct { int abi; void *rest[32]; } sl_plugin_entry = {%d, {0}};\n", abi);
    write_file(source, command);
    snprintf(command, sizeof command, "cc -shared -fPIC -o '%s/plugin.so' '%s' 2>/dev/null", dir,
             source);
    return system(command) == 0;
}

static void another_interface_is_refused(void **state)
{
    (void)state;
    char path[700];
    const char *dir = t_tmpdir();
    bool built = build(dir, SL_PLUGIN_ABI + 41);
    snprintf(path, sizeof path, "%s/plugin.so", dir);
    if (built) {
        char want[64];
        snprintf(want, sizeof want, "number %d, want %d", SL_PLUGIN_ABI + 41, SL_PLUGIN_ABI);
        T_SAYS(answer(path), want);
        assert_true(build(dir, SL_PLUGIN_ABI));
        assert_string_equal(answer(path), "opened");
    }
    t_rmdir(dir);
    if (!built) skip();
}

static void *opener(void *at)
{
    sl_err err = {0};
    *(const sl_plugin **)at = sl_plugin_cuda(&err);
    return NULL;
}

static void threads_open_it_once(void **state)
{
    (void)state;
    enum { THREADS = 8 };
    pthread_t thread[THREADS];
    const sl_plugin *found[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, opener, &found[i]), 0);
    for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_join(thread[i], NULL), 0);
    for (int i = 1; i < THREADS; i++) assert_ptr_equal(found[i], found[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_file_is_named),
        cmocka_unit_test(without_a_setting_the_programs_folder_is_searched),
        cmocka_unit_test(a_file_that_is_no_library_is_refused),
        cmocka_unit_test(another_library_is_refused),
        cmocka_unit_test(a_long_path_is_refused),
        cmocka_unit_test(another_interface_is_refused),
        cmocka_unit_test(threads_open_it_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
