/* test_formats - videos are what their names say, streams are streams, links and devices stay
 * what
 * they are. takes: 6 s. */
#include "tests/t.h"

#pragma GCC diagnostic ignored "-Wunused-function" /* not all of these cases */
#include "tests/t_hostile.h"

#include "common/video_format.h"
#include "stages/job/output.h"
#include "stages/mux/video_file.h"

#define FRAMES 5

static size_t count(const char *bytes, size_t n, const char *what)
{
    size_t found = 0;
    const size_t m = strlen(what);
    for (size_t i = 0; i + m <= n; i++) found += !memcmp(bytes + i, what, m);
    return found;
}

/* ffprobe's answer, or, of what it does not read, what the file's own chunks say. */
static void check_file(const sl_video_format *v, const char *path)
{
    char line[256] = "";
    size_t n;
    char *bytes = get_file(path, &n);
    if (!strcmp(v->suffix, "webp")) {
        assert_int_equal(count(bytes, n, "ANMF"), FRAMES);
        assert_memory_equal(bytes + 8, "WEBP", 4);
        free(bytes);
        return;
    }
    free(bytes);
    FILE *p = popen(f("ffprobe -v error -count_frames -show_entries "
                      "stream=codec_name,width,height,nb_read_frames:format=format_name -of "
                      "csv=p=0:nk=1 '%s' | tr '\n' ,",
                      path),
                    "r");
    assert_non_null(fgets(line, sizeof line, p));
    pclose(p);
    const char *encoder;
    assert_int_equal(sl_video_encoder(&encoder, v, NULL), SL_OK);
    const char *codec = !strcmp(encoder, "libx264")      ? "h264"
                        : !strcmp(encoder, "libvpx-vp9") ? "vp9"
                        : strstr(encoder, "av1")         ? "av1"
                                                         : encoder;
    T_SAYS(line, f("%s,32,32,%d", codec, FRAMES));
    T_SAYS(line, v->muxer);
}

static void test_each_name_is_what_it_says(void **unused)
{
    const sl_video_format *v;
    const char *encoder;
    (void)unused;
    for (int i = 0; (v = sl_video_format_at(i)); i++) {
        const char *path = at(f("out/video.%s", v->suffix));
        if (sl_video_encoder(&encoder, v, NULL)) continue;
        command c = with("-o", path);
        works_(v->suffix, &c, 1, false);
        check_file(v, path);
        empty_dir(at("out"));
    }
    WORKS(with("-o", at("out/VIDEO.MKV")), 1);
    WORKS(with("-o", at("out/no-suffix")), 1);
    REFUSED(2, with("-o", at("out/x.avi")), ".avi is no format that is written, want one of .mp4");
    REFUSED(2, with("-o", at("out/x.mp4.bak")), ".bak is no format");
    command c = with("-o", at("out/x.gif"));
    set(&c, "--fps", "60");
    REFUSED(2, c, "60 frames a second, want at most 50 in .gif");
}

/* Colours: a GIF's frames are the job's, as near as 256 colours a frame come. */
static void test_colours(void **unused)
{
    enum { W = 64, H = 48, N = 3, BYTES = N * W * H * 3 };
    static uint8_t rgb[BYTES], got[BYTES];
    static const struct {
        const char *suffix;
        double mean; /* most of the mean difference; measured: 0, 7.2, 2.0 (VP9), 1.9 */
    } CASES[] = {{"apng", 0}, {"gif", 8 /* dithered */}, {"webm", 5}, {"mkv", 3}};
    (void)unused;
    for (int i = 0; i < BYTES; i++) {
        const int c = i % 3, x = i / 3 % W, y = i / 3 / W % H, n = i / 3 / W / H;
        rgb[i] = (uint8_t)(c == 0 ? 4 * x : c == 1 ? 5 * y : 60 + 40 * n);
    }
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const char *path = at(f("out/c.%s", CASES[i].suffix));
        sl_video_options o = {.w = W, .h = H, .fps = 16, .crf = 12, .threads = 2};
        sl_video_file *m = NULL;
        sl_err err = {0};
        int64_t bytes;
        T_OK(sl_video_file_open(&m, path, &o, &err));
        T_OK(sl_video_file_write(m, rgb, N, &err));
        T_OK(sl_video_file_finish(&m, &bytes, &err));
        FILE *p = popen(
            f("ffmpeg -v error -i '%s' -vf scale=in_color_matrix=bt709 -pix_fmt rgb24 -frames:v 3 "
              "-f rawvideo -",
              path),
            "r");
        assert_int_equal(fread(got, 1, BYTES, p), BYTES);
        pclose(p);
        double sum = 0;
        for (int k = 0; k < BYTES; k++) sum += abs(got[k] - rgb[k]);
        if (!(sum / BYTES <= CASES[i].mean))
            fail_msg("%s: mean difference %g, want at most %g", CASES[i].suffix, sum / BYTES,
                     CASES[i].mean);
    }
    empty_dir(at("out"));
}

static void test_streams_and_links(void **unused)
{
    size_t n, m;
    struct stat st;
    (void)unused;
    command c = job();
    works_("a file", &c, 1, false);
    char *want = get_file(at("out/out.mp4"), &n);
    empty_dir(at("out"));
    assert_int_equal(symlink("/proc/self/fd/1", at("stdout.link")), 0);
    const char *const STREAMS[] = {"-", "/dev/stdout", "/proc/self/fd/1", at("stdout.link")};
    for (size_t i = 0; i < sizeof STREAMS / sizeof *STREAMS; i++) {
        c = with("-o", STREAMS[i]);
        works_(STREAMS[i], &c, 0, false);
        char *got = get_file(at("stdout"), &m);
        assert_int_equal(m, n);
        assert_memory_equal(got, want, n);
        free(got);
    }
    assert_int_equal(lstat(at("stdout.link"), &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(lstat("/dev/stdout", &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    /* written through, be the end there or not */
    mkdir(at("deep"), 0700);
    assert_int_equal(symlink("../deep/end.mp4", at("out/a.mp4")), 0);
    for (int i = 0; i < 2; i++) {
        c = with("-o", at("out/a.mp4"));
        works_("a link", &c, 1, false);
        assert_int_equal(lstat(at("out/a.mp4"), &st), 0);
        assert_true(S_ISLNK(st.st_mode));
        char *got = get_file(at("deep/end.mp4"), &m);
        assert_int_equal(m, n);
        free(got);
    }
    empty_dir(at("out"));
    t_rmdir(at("deep"));
    put_text(at("mine.mp4"), "protected");
    chmod(at("mine.mp4"), 0444);
    REFUSED(2, with("-o", at("mine.mp4")), "cannot be written: it is protected (read-only)");
    REFUSED(2, with("--preview", at("mine.mp4")), "cannot be written: it is protected (read-only)");
    REFUSED(2, with("-o", "/dev/null"), "is a device or socket, want a file");
    REFUSED(2, with("-o", "/dev/sluice.mp4"), "is a device or socket, want a file");
    REFUSED(2, with("--preview", "/dev/null"), "preview: /dev/null is a device or socket");
    REFUSED(2, with("-o", "/dev/stdin"), "it is open for reading only");
    REFUSED(2, with("-o", "/dev/fd/77"), "it is closed");
    assert_int_equal(symlink("b.mp4", at("out/b.mp4")), 0);
    c = with("-o", at("out/b.mp4"));
    assert_int_equal(finish(&c, start(&c)), 2);
    char *said = get_file(at("stderr"), &m);
    T_SAYS(said, "links in a circle");
    unlink(at("out/b.mp4"));
    unlink(at("mine.mp4"));
    free(said);
    free(want);
}

/* A pipe that its reader empties slowly, and that was made not to wait. */
static void test_a_stream_that_does_not_wait(void **unused)
{
    enum { BYTES = 1 << 20 };
    int ends[2], status;
    sl_err err = {0};
    char *big = calloc(BYTES + 1, 1);
    (void)unused;
    memset(big, 'x', BYTES);
    put_file(at("big"), big, BYTES);
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    assert_int_equal(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
    pid_t reader = fork();
    if (!reader) {
        size_t n = 0;
        close(ends[1]);
        usleep(200000);
        for (ssize_t got; (got = read(ends[0], big, BYTES)) > 0;) n += (size_t)got;
        _exit(n == BYTES ? 0 : 1);
    }
    T_OK(sl_output_stream(at("big"), ends[1], &err));
    close(ends[1]);
    close(ends[0]);
    assert_int_equal(waitpid(reader, &status, 0), reader);
    assert_int_equal(status, 0);
    unlink(at("big"));
    free(big);
}

/* The README tells of the formats that the program has, each in the program's words. */
static void test_readme(void **unused)
{
    const sl_video_format *v;
    size_t n;
    int rows = 0;
    char *text = get_file("README.md", &n);
    (void)unused;
    for (int i = 0; (v = sl_video_format_at(i)); i++, rows++)
        T_SAYS(text, f("\n| `x.%s` | %s |\n", v->suffix, v->what));
    assert_int_equal(count(text, n, "\n| `x."), rows);
    free(text);
}

int main(void)
{
#define CLEAN(test) cmocka_unit_test_setup(test, t_hostile_clean)
    const struct CMUnitTest tests[] = {CLEAN(test_each_name_is_what_it_says), CLEAN(test_colours),
                                       CLEAN(test_streams_and_links),
                                       CLEAN(test_a_stream_that_does_not_wait), CLEAN(test_readme)};
    return cmocka_run_group_tests_name("formats", tests, t_hostile_setup, t_hostile_teardown);
}
