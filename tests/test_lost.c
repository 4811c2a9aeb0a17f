/* test_lost - finished work is never lost: full disks, folders that go, jobs that fail at their
 * end, dumps into used folders, temporaries of others. takes: 6 s. limit: 180 s */
#include "tests/t.h"

#pragma GCC diagnostic ignored "-Wunused-function" /* not all of these cases */
#include "tests/t_hostile.h"

#include <sys/file.h>
#include <sys/mount.h>
#include <utime.h>

#include "common/temporary.h"
#include "stages/job/dump.h"
#include "stages/job/files.h"

static bool there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* The command's exit status; *said: what it wrote on stderr, to be freed. */
static int outcome(const command *c, char **said)
{
    size_t n;
    int status = finish(c, start(c));
    *said = get_file(at("stderr"), &n);
    return status;
}

static bool same_bytes(const char *a, const char *b)
{
    size_t n, m;
    char *x = get_file(a, &n), *y = get_file(b, &m);
    bool same = n == m && !memcmp(x, y, n);
    free(x);
    free(y);
    return same;
}

/* ---- a disk that is full at the end ---- */

static bool mount_full(const char *dir, off_t leave)
{
    char block[4096] = {0};
    off_t n = 0;
    mkdir(dir, 0700);
    if (mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700")) {
        print_message("no small tmpfs can be mounted here (%s): not tested\n", strerror(errno));
        return false;
    }
    int fd = open(f("%s/filler", dir), O_WRONLY | O_CREAT, 0600);
    for (ssize_t put; (put = write(fd, block, sizeof block)) > 0;) n += put;
    assert_int_equal(ftruncate(fd, n - leave), 0);
    close(fd);
    return true;
}

static int unmount_all(void **unused)
{
    umount2(at("disk"), MNT_DETACH);
    return t_hostile_clean(unused);
}

static command larger(void)
{
    command c = job();
    set(&c, "--width", "96");
    set(&c, "--height", "64");
    set(&c, "--frames", "9");
    return c;
}

/* The latents of a job whose video has no room are kept, named, and worth the same video. */
static void test_a_full_disk_at_the_end(void **unused)
{
    command c = larger();
    char *said;
    (void)unused;
    works_("undisturbed", &c, 1, false);
    assert_int_equal(rename(at("out/out.mp4"), at("whole.mp4")), 0);
    for (int dump = 0; dump < 2; dump++) {
        if (!mount_full(at("disk"), 4096)) skip();
        c = larger();
        set(&c, "-o", at("disk/out.mp4"));
        if (dump) set(&c, "--dump", at("dump"));
        assert_int_equal(outcome(&c, &said), 1);
        T_SAYS(said, "out.mp4: failed: mux: ");
        T_SAYS(said, "No space left on device");
        const char *folder = kept_in(said);
        if (!folder) fail_msg("no word of the latents: %s", said);
        T_SAYS(said, f("go on with sluice replay %s --from decode", folder));
        assert_int_equal(lines(said), 1);
        assert_true(there(f("%s/denoise.safetensors", folder)));
        assert_true(there(f("%s/text.safetensors", folder)));
        assert_true(there(f("%s/job.json", folder)));
        if (dump) assert_string_equal(folder, at("dump"));
        assert_false(there(f("%s/.sluice", folder)));
        umount(at("disk"));
        c = other("replay", folder);
        set(&c, "--from", "decode");
        set(&c, "-o", at("out/again.mp4"));
        assert_int_equal(outcome(&c, &said), 0);
        assert_true(same_bytes(at("out/again.mp4"), at("whole.mp4")));
        /* and from the seed that job.json has, for the noise was not asked for */
        c = other("replay", folder);
        set(&c, "--from", "denoise");
        set(&c, "-o", at("out/again.mp4"));
        if (outcome(&c, &said)) fail_msg("replay from denoise: %s", said);
        assert_true(same_bytes(at("out/again.mp4"), at("whole.mp4")));
        t_rmdir(folder);
        empty_dir(at("out"));
    }
    c = job();
    nothing_left(&c, 0);
}

/* A dump has no room: the video is made all the same, and the line before it says so. */
static void test_no_room_for_the_dump(void **unused)
{
    command c = larger();
    char *said;
    (void)unused;
    if (!mount_full(at("disk"), 4096)) skip();
    set(&c, "--dump", at("disk/dump"));
    assert_int_equal(outcome(&c, &said), 1);
    T_SAYS(said, "dump: 4096 bytes are free there, want ");
    T_SAYS(said, "the video is written, its dump is not");
    assert_true(there(at("out/out.mp4")));
    assert_false(there(at("disk/dump")));
    umount(at("disk"));
    nothing_left(&c, 1);
    empty_dir(at("out"));
}

/* Where the latents have room and the rest has not, the latents are kept. */
static void test_latents_go_first(void **unused)
{
    static sl_request q;
    char folder[SL_PATH], big[32768] = "x";
    sl_err err = {0};
    (void)unused;
    if (!mount_full(at("disk"), 16384)) skip();
    for (int room = 1; room >= 0; room--) {
        memset(big, 'x', sizeof big - 1);
        mkdir(at("work"), 0700);
        snprintf(q.dir, sizeof q.dir, "%s", at("work"));
        put_text(at("work/job.json"), "{}");
        put_text(at("work/denoise.safetensors"), room ? "latents" : big);
        put_text(at("work/text.safetensors"), big);
        sl_code rc = sl_request_keep(&q, at("disk"), folder, &err);
        assert_int_equal(rc, room ? SL_OK : SL_SYS);
        assert_int_equal(there(folder), room);
        if (room) assert_true(there(f("%s/job.json", folder)));
        if (room) assert_true(there(f("%s/denoise.safetensors", folder)));
        if (room) assert_false(there(f("%s/text.safetensors", folder)));
        t_rmdir(at("work"));
        if (room) t_rmdir(f("%s", folder));
    }
}

/* ---- a job that fails on its way ---- */

static void test_a_failed_job_dumps_what_it_has(void **unused)
{
    command c = job();
    char *said;
    (void)unused;
    fresh_model();
    poke("transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
         "blocks.2.attn1.to_v.bias", 9, false);
    set(&c, "--model", at("model"));
    set(&c, "--dump", at("dump"));
    assert_int_equal(outcome(&c, &said), 1);
    T_SAYS(said, "NaN");
    T_SAYS(said, f("what it had is in %s", at("dump")));
    assert_true(there(at("dump/text.safetensors")));
    assert_true(there(at("dump/image.safetensors")));
    assert_true(there(at("dump/image.input")));
    assert_false(there(at("dump/denoise.safetensors")));
    assert_false(there(at("dump/.sluice")));
    c = other("replay", at("dump")); /* with the weights mended */
    set(&c, "--from", "denoise");
    set(&c, "--model", GOLDEN_MODEL);
    set(&c, "-o", at("out/out.mp4"));
    if (outcome(&c, &said)) fail_msg("replay from denoise: %s", said);
    c = job();
    set(&c, "-o", at("out/whole.mp4"));
    works_("undisturbed", &c, 2, false);
    assert_true(same_bytes(at("out/out.mp4"), at("out/whole.mp4")));
    empty_dir(at("out"));
    t_rmdir(at("dump"));
}

/* ---- a folder that goes while the job runs ---- */

static void test_a_run_directory_that_goes(void **unused)
{
    char *said;
    size_t n;
    (void)unused;
    for (int dump = 0; dump < 2; dump++) {
        command c = job();
        set(&c, "--steps", "1000");
        set(&c, "--width", "96");
        set(&c, "--height", "64");
        set(&c, "--frames", "33");
        if (dump) set(&c, "--dump", at("dump"));
        pid_t pid = start(&c);
        const char *folder = at(dump ? "dump/.sluice" : "tmp");
        /* until it denoises: some steps are behind it */
        const char *find = f("find %s -name state.safetensors 2>/dev/null | grep -q .", folder);
        for (int i = 0; i < 400 && system(find); i++) usleep(50000);
        const int64_t t0 = now_ms();
        if (dump) t_rmdir(at("dump"));
        else empty_dir(at("tmp"));
        assert_int_equal(finish(&c, pid), 1);
        said = get_file(at("stderr"), &n);
        T_SAYS(said, "was removed while the job ran");
        if (now_ms() - t0 > 5000) fail_msg("told after %d ms", (int)(now_ms() - t0));
        nothing_left(&c, 0);
        free(said);
    }
}

/* The job of all cases, with another TMPDIR than theirs. */
static command job_in(const char *tmpdir)
{
    command plain = job(), c = {.n = 0};
    add(&c, "/usr/bin/env");
    add(&c, f("TMPDIR=%s", tmpdir));
    for (int i = 0; i < plain.n; i++) add(&c, plain.argv[i]);
    return c;
}

/* A socket's name has 107 bytes: TMPDIR may have more, and is used, also by a dispatcher that is
 * started again. One that cannot be used is told in a line. */
static void test_a_tmpdir_of_any_length(void **unused)
{
    char names[512];
    (void)unused;
    const char *outer = f("%s/%0130d", at("tmp"), 1), *inner = f("%s/%0230d", outer, 2);
    assert_int_equal(mkdir(outer, 0700), 0);
    assert_int_equal(mkdir(inner, 0700), 0);
    command c = job_in(inner);
    set(&c, "--steps", "60");
    pid_t pid = start(&c), dispatcher = 0;
    for (int i = 0; i < 500 && !list_dir(inner, names, sizeof names); i++) usleep(10000);
    assert_int_equal(strncmp(names, "sluice-", 7), 0);
    for (int i = 0; i < 500 && !dispatcher; i++, usleep(10000)) {
        FILE *children = fopen(f("/proc/%d/task/%d/children", (int)pid, (int)pid), "r");
        if (children && fscanf(children, "%d", &dispatcher) != 1) dispatcher = 0;
        if (children) fclose(children);
    }
    *strchr(names, ' ') = 0;
    const char *socket = f("%s/%s/ctl", inner, names);
    for (int i = 0; i < 500 && !there(socket); i++) usleep(10000);
    assert_int_equal(kill(dispatcher, SIGKILL), 0);
    assert_int_equal(finish(&c, pid), 0);
    assert_false(list_dir(inner, names, sizeof names));
    assert_true(there(at("out/out.mp4")));
    t_rmdir(outer);
    empty_dir(at("out"));

    c = job_in(f("%s", at("nowhere")));
    to_be_said = f("TMPDIR %s cannot be written: No such file or directory; the run's folder is in "
                   "/var/tmp",
                   at("nowhere"));
    works_("a folder that is not there", &c, 1, true);
}

/* XDG_RUNTIME_DIR and /run/user go at the last logout: nothing of a run lies there. */
static void test_the_run_directory_outlives_a_session(void **unused)
{
    char out[SL_PATH];
    sl_err err = {0};
    (void)unused;
    setenv("XDG_RUNTIME_DIR", at("out"), 1);
    setenv("TMPDIR", at("tmp"), 1);
    T_OK(sl_make_run_dir(out, "", &err));
    assert_int_equal(strncmp(out, at("tmp/"), strlen(at("tmp/"))), 0);
    sl_remove_tree(out);
    unsetenv("TMPDIR");
    T_OK(sl_make_run_dir(out, "", &err));
    assert_int_equal(strncmp(out, "/var/tmp/sluice-", 16), 0);
    sl_remove_tree(out);
    unsetenv("XDG_RUNTIME_DIR");
}

/* ---- a dump into a used folder ---- */

static void test_a_used_folder(void **unused)
{
    command c = job();
    (void)unused;
    mkdir(at("dump"), 0700);
    mkdir(at("dump/blocks"), 0700);
    put_text(at("dump/blocks/0.safetensors"), "another's");
    put_text(at("dump/last_image.input"), "another's");
    put_text(at("dump/step.3.safetensors"), "another's");
    put_text(at("dump/notes.txt"), "the user's");
    set(&c, "--dump", at("dump"));
    works_("a used folder", &c, 1, false);
    assert_false(there(at("dump/blocks")));
    assert_false(there(at("dump/last_image.input")));
    assert_false(there(at("dump/step.3.safetensors")));
    assert_true(there(at("dump/notes.txt")));
    assert_true(there(at("dump/frames.safetensors")));
    /* a replay into its own folder reads all of it before it writes */
    c = other("replay", at("dump"));
    set(&c, "--from", "decode");
    set(&c, "--dump", at("dump"));
    set(&c, "-o", at("out/out.mp4"));
    add(&c, "--quiet");
    works_("its own folder", &c, 1, true);
    assert_true(there(at("dump/text.safetensors")));
    t_rmdir(at("dump"));
}

/* ---- temporaries ---- */

static void age(const char *path, int age_s)
{
    struct utimbuf times = {time(NULL) - age_s, time(NULL) - age_s};
    assert_int_equal(utime(path, &times), 0);
}

static void put_old(const char *path, int age_s)
{
    put_text(path, "x");
    age(path, age_s);
}

/* Of a run that was killed with all its processes: its folder in a dump goes a day later. */
static void test_work_of_the_killed(void **unused)
{
    const char *const work[] = {at("dump"), at("dump/.sluice"), at("dump/.sluice/2147483646-1"),
                                at("dump/.sluice/2147483646-2"), at("dump/.sluice/2147483646-x")};
    command c = job();
    (void)unused;
    for (int i = 0; i < 5; i++) assert_int_equal(mkdir(work[i], 0700), 0);
    put_text(f("%s/text.safetensors", work[2]), "x");
    age(work[2], 90000);
    age(work[3], 3600);
    age(work[4], 90000);
    set(&c, "--dump", at("dump"));
    works_("beside what the killed left", &c, 1, false);
    assert_false(there(work[2]));
    assert_true(there(work[3])); /* of another container, perhaps */
    assert_true(there(work[4])); /* no run's */
    assert_true(there(at("dump/frames.safetensors")));
    t_rmdir(at("dump"));
}

static void test_temporaries_of_others(void **unused)
{
    const char *file = at("out/video.mp4"), *other_ns = f("%s.tmp-00000001-2147483646-0", file),
               *locked = f("%s.tmp-00000001-2147483646-1", file),
               *old = f("%s.tmp-00000001-2147483646-2", file);
    char *own = NULL, name[256];
    int fd, out[2];
    sl_err err = {0};
    (void)unused;
    put_old(other_ns, 3600);
    put_old(locked, 400000);
    put_old(old, 400000);
    int lock = open(locked, O_WRONLY | O_CLOEXEC);
    assert_int_equal(flock(lock, LOCK_EX), 0);
    assert_int_equal(pipe(out), 0);
    pid_t pid = fork();
    if (!pid) { /* one of ours, which dies in the middle */
        if (!sl_temporary_make(&own, &fd, file, NULL) && write(out[1], own, 256) < 0) _exit(1);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_true(read(out[0], name, sizeof name) > 0);
    assert_true(there(name));
    T_OK(sl_temporary_make(&own, &fd, file, &err)); /* and one that lives */
    sl_temporary_sweep(file);
    assert_true(there(own));
    assert_true(there(other_ns));
    assert_true(there(locked));
    assert_false(there(old));
    assert_false(there(name));
    close(lock);
    sl_temporary_sweep(file);
    assert_false(there(locked));
    unlink(own);
    unlink(other_ns);
    close(fd);
    free(own);
    /* a name as long as names may be */
    command c = job();
    set(&c, "-o", f("%s/%0251d.mp4", at("out"), 7));
    works_("a long name", &c, 1, true);
}

int main(void)
{
#define CLEAN(test) cmocka_unit_test_setup_teardown(test, t_hostile_clean, unmount_all)
    const struct CMUnitTest tests[] = {CLEAN(test_a_full_disk_at_the_end),
                                       CLEAN(test_no_room_for_the_dump),
                                       CLEAN(test_latents_go_first),
                                       CLEAN(test_a_failed_job_dumps_what_it_has),
                                       CLEAN(test_a_run_directory_that_goes),
                                       CLEAN(test_a_tmpdir_of_any_length),
                                       CLEAN(test_the_run_directory_outlives_a_session),
                                       CLEAN(test_a_used_folder),
                                       CLEAN(test_work_of_the_killed),
                                       CLEAN(test_temporaries_of_others)};
    return cmocka_run_group_tests_name("lost", tests, t_hostile_setup, t_hostile_teardown);
}
