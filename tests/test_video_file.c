/* test_video_file.c - the video that comes out is whole, tagged, playable from its start, and
 * the same every time. */
#include "t.h"

#include <dirent.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "stages/mux/video_file.h"

static const sl_video_options OPTIONS = {
    .w = 96, .h = 64, .fps = 16, .crf = 12, .threads = 2, .preset = "veryfast"};

/* n moving frames [n, h, w, 3]; noise fills the disk faster. */
static uint8_t *frames(int n, int w, int h, bool noise)
{
    uint8_t *rgb = malloc((size_t)n * (size_t)w * (size_t)h * 3), *p = rgb;
    uint64_t seed = 1;
    for (int f = 0; f < n; f++)
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++)
                for (int c = 0; c < 3; c++)
                    *p++ =
                        noise
                            ? (uint8_t)(127 + 127 * t_rand(&seed))
                            : (uint8_t)(128 + 100 * sin((x + 2 * f) / 11.0 + c) * cos(y / 9.0 + c));
    return rgb;
}

/* The output of a shell command, one line after the other. */
static void shell(char *out, size_t size, const char *fmt, const char *path)
{
    char cmd[1200];
    snprintf(cmd, sizeof cmd, fmt, path);
    FILE *p = popen(cmd, "r");
    assert_non_null(p);
    size_t n = fread(out, 1, size - 1, p);
    out[n] = 0;
    assert_int_equal(pclose(p), 0);
}

static int files_in(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    while (readdir(d)) n++;
    closedir(d);
    return n - 2;
}

static uint8_t *slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *bytes = malloc(*n);
    assert_int_equal(fread(bytes, 1, *n, f), *n);
    fclose(f);
    return bytes;
}

/* Encode `n` frames in pieces of `piece`. */
static void make(const char *path, const sl_video_options *o, const uint8_t *rgb, int n, int piece)
{
    sl_err err = {0};
    sl_video_file *m = NULL;
    int64_t bytes = 0;
    struct stat st;
    T_OK(sl_video_file_open(&m, path, o, &err));
    for (int f = 0; f < n; f += piece)
        T_OK(sl_video_file_write(m, rgb + (size_t)f * (size_t)o->w * (size_t)o->h * 3,
                                 n - f < piece ? n - f : piece, &err));
    T_OK(sl_video_file_finish(&m, &bytes, &err));
    assert_null(m);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, bytes);
}

static void ffprobe_reads_it_back(void **state)
{
    (void)state;
    char path[300], out[1000];
    const char *dir = t_tmpdir();
    uint8_t *rgb = frames(21, 96, 64, false);
    /* a name that libavformat could take for a protocol or a pattern */
    snprintf(path, sizeof path, "%s/a:b %%d.mp4", dir);
    make(path, &OPTIONS, rgb, 21, 4);
    shell(out, sizeof out,
          "ffprobe -v error -count_frames -select_streams v -show_entries "
          "stream=codec_name,width,height,pix_fmt,color_range,"
          "color_space,color_transfer,color_primaries,chroma_location,r_frame_rate,avg_frame_rate,"
          "nb_frames,nb_read_frames,"
          "duration -of default=nk=0:nw=1 'file:%s'",
          path);
    static const char *const want[] = {"codec_name=h264\n",
                                       "width=96\n",
                                       "height=64\n",
                                       "pix_fmt=yuv420p\n",
                                       "color_range=tv\n",
                                       "color_space=bt709\n",
                                       "color_transfer=bt709\n",
                                       "color_primaries=bt709\n",
                                       "chroma_location=left\n",
                                       "r_frame_rate=16/1\n",
                                       "avg_frame_rate=16/1\n",
                                       "nb_frames=21\n",
                                       "nb_read_frames=21\n",
                                       "duration=1.312500\n"};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) T_SAYS(out, want[i]);
    size_t n;
    uint8_t *bytes = slurp(path, &n), *moov = memmem(bytes, n, "moov", 4),
            *mdat = memmem(bytes, n, "mdat", 4);
    assert_true(moov && mdat && moov < mdat); /* plays before it is all there */
    assert_int_equal(files_in(dir), 1);
    free(bytes);
    free(rgb);
    t_rmdir(dir);
}

/* Colours survive: decoded as BT.709 limited range, the frames are those that went in. */
static void decoded_frames_are_close(void **state)
{
    (void)state;
    char path[300], raw[310], cmd[800];
    const char *dir = t_tmpdir();
    const int n = 9;
    size_t got_n, total = (size_t)n * 96 * 64 * 3;
    uint8_t *rgb = frames(n, 96, 64, false);
    sl_video_options o = OPTIONS;
    o.crf = 1;
    snprintf(path, sizeof path, "%s/v.mp4", dir);
    snprintf(raw, sizeof raw, "%s/v.rgb", dir);
    make(path, &o, rgb, n, n);
    snprintf(
        cmd, sizeof cmd,
        "ffmpeg -v error -i '%s' -vf "
        "scale=in_color_matrix=bt709:in_range=tv:out_range=pc:flags=accurate_rnd+full_chroma_int "
        "-pix_fmt rgb24 -f rawvideo '%s'",
        path, raw);
    assert_int_equal(system(cmd), 0);
    uint8_t *got = slurp(raw, &got_n);
    assert_int_equal(got_n, total);
    double squares = 0, bias[3] = {0};
    for (size_t i = 0; i < total; i++) {
        double d = (double)got[i] - rgb[i];
        squares += d * d;
        bias[i % 3] += d / ((double)total / 3);
    }
    double psnr = 10 * log10(255 * 255 / (squares / (double)total));
    if (!(psnr >= 40)) fail_msg("PSNR %.2f dB at crf 1, want >= 40", psnr);
    for (int c = 0; c < 3; c++) /* a wrong matrix or range shifts a channel by several levels */
        if (!(fabs(bias[c]) <= 0.5))
            fail_msg("channel %d is off by %.2f on average, want <= 0.5", c, bias[c]);
    free(got);
    free(rgb);
    t_rmdir(dir);
}

static void the_same_bytes_every_time(void **state)
{
    (void)state;
    const char *dir = t_tmpdir();
    uint8_t *rgb = frames(33, 96, 64, true), *bytes[2];
    size_t n[2];
    char path[300];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%d.mp4", dir, i);
        /* and however the frames are cut into calls */
        make(path, &OPTIONS, rgb, 33, i ? 1 : 33);
        bytes[i] = slurp(path, &n[i]);
    }
    assert_int_equal(n[0], n[1]);
    assert_memory_equal(bytes[0], bytes[1], n[0]);
    free(bytes[0]);
    free(bytes[1]);
    free(rgb);
    t_rmdir(dir);
}

static void bad_options(void **state)
{
    (void)state;
    static const struct {
        sl_video_options o;
        sl_code code;
        const char *path, *says;
    } bad[] = {
        {{95, 64, 16, 20, 0, NULL},
         SL_ARG,
         "x.mp4",
         "video: frames of 95x64, want even numbers from 2 to 16384"},
        {{96, 63, 16, 20, 0, NULL}, SL_ARG, "x.mp4", "video: frames of 96x63, want"},
        {{96, 64, 0, 20, 0, NULL}, SL_ARG, "x.mp4", "video: 0 frames a second, want 1 to 240"},
        {{96, 64, 16, 52, 0, NULL}, SL_ARG, "x.mp4", "video: crf 52, want 0 (lossless) to 51"},
        {{96, 64, 16, 20, -1, NULL}, SL_ARG, "x.mp4", "video: -1 encoder threads"},
        {{96, 64, 16, 20, 0, "quick"},
         SL_ARG,
         "x.mp4",
         "video: preset \"quick\", want one of x264's"},
        {{96, 64, 16, 20, 0, NULL},
         SL_SYS,
         "tests/none/x.mp4",
         "tests/none/x.mp4: cannot be written: No such file or directory"},
        {{96, 64, 16, 20, 0, NULL}, SL_SYS, "tests", "tests: cannot be written: it is a directory"},
        {{96, 64, 16, 20, 0, NULL},
         SL_SYS,
         "/dev/null",
         "/dev/null: cannot be written: it is not a regular file"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        sl_err err = {0};
        sl_video_file *m = NULL;
        T_CODE(sl_video_file_open(&m, bad[i].path, &bad[i].o, &err), bad[i].code);
        T_SAYS(err.msg, bad[i].says);
        assert_null(m);
    }
}

static void nothing_is_left(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_video_file *m = NULL;
    char path[300];
    const char *dir = t_tmpdir();
    uint8_t *rgb = frames(2, 96, 64, false);
    snprintf(path, sizeof path, "%s/v.mp4", dir);
    T_OK(sl_video_file_open(&m, path, &OPTIONS, &err));
    T_OK(sl_video_file_write(m, rgb, 2, &err));
    assert_int_equal(files_in(dir), 1);
    assert_int_not_equal(access(path, F_OK), 0); /* the name appears when the file is whole */
    sl_video_file_abandon(&m);
    assert_null(m);
    sl_video_file_abandon(&m);
    T_OK(sl_video_file_open(&m, path, &OPTIONS, &err));
    T_CODE(sl_video_file_finish(&m, NULL, &err), SL_ARG);
    T_SAYS(err.msg, "v.mp4: a video without frames");
    assert_null(m);
    assert_int_equal(files_in(dir), 0);
    free(rgb);
    t_rmdir(dir);
}

/* Write n_frames of noise; the first error. */
static sl_code fill(const char *path, int n_frames, const uint8_t *rgb, sl_err *err)
{
    sl_video_options o = OPTIONS;
    sl_video_file *m = NULL;
    sl_code rc;
    o.crf = 1;
    if ((rc = sl_video_file_open(&m, path, &o, err))) return rc;
    for (int f = 0; f < n_frames && !rc; f++)
        rc = sl_video_file_write(m, rgb + (size_t)f * 96 * 64 * 3, 1, err);
    if (rc) sl_video_file_abandon(&m);
    else rc = sl_video_file_finish(&m, NULL, err);
    return rc;
}

/* A real full disk: a tmpfs of a few sizes, so that frames, the index and its move to the
 * front each meet the end. */
static void a_full_disk(void **state)
{
    (void)state;
    const char *dir = t_tmpdir();
    uint8_t *rgb = frames(60, 96, 64, true);
    char path[300], size[60];
    int failed = 0;
    snprintf(path, sizeof path, "%s/v.mp4", dir);
    for (int kib = 4; kib <= 4096; kib *= 2) {
        sl_err err = {0};
        snprintf(size, sizeof size, "size=%dk", kib);
        if (mount("none", dir, "tmpfs", 0, size)) {
            print_message("skipped: a small tmpfs needs the right to mount\n");
            break;
        }
        sl_code rc = fill(path, 60, rgb, &err);
        int left = files_in(dir);
        struct stat st = {0};
        assert_int_equal(stat(path, &st), rc ? -1 : 0);
        assert_int_equal(umount(dir), 0);
        if (rc) {
            failed++;
            assert_int_equal(rc, SL_SYS);
            T_SAYS(err.msg, "v.mp4: cannot be written (");
            T_SAYS(err.msg, "No space left on device");
            assert_int_equal(left, 0);
        } else {
            assert_int_equal(left, 1);
            assert_true(st.st_size > 0 && st.st_size <= (off_t)kib << 10);
        }
    }
    if (failed) assert_true(failed >= 5);
    free(rgb);
    t_rmdir(dir);
}

/* The same with a limit on the file's size, in steps that end a few bytes apart: every
 * place of failure, the trailer's rewrite too. */
static void a_write_that_fails_anywhere(void **state)
{
    (void)state;
    const char *dir = t_tmpdir();
    uint8_t *rgb = frames(6, 96, 64, true);
    char path[300];
    struct rlimit whole, small;
    struct stat st;
    sl_err err = {0};
    snprintf(path, sizeof path, "%s/v.mp4", dir);
    T_OK(fill(path, 6, rgb, &err));
    assert_int_equal(stat(path, &st), 0);
    unlink(path);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &whole);
    small = whole;
    for (int64_t short_by = 1; short_by < st.st_size;
         short_by = short_by < 2000 ? short_by + 333 : short_by * 2) {
        small.rlim_cur = (rlim_t)(st.st_size - short_by);
        setrlimit(RLIMIT_FSIZE, &small);
        sl_code rc = fill(path, 6, rgb, &err);
        setrlimit(RLIMIT_FSIZE, &whole);
        if (rc != SL_SYS)
            fail_msg("%lld bytes short: code %s", (long long)short_by, sl_code_name(rc));
        T_SAYS(err.msg, "File too large");
        assert_int_equal(files_in(dir), 0);
    }
    free(rgb);
    t_rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ffprobe_reads_it_back),
        cmocka_unit_test(decoded_frames_are_close),
        cmocka_unit_test(the_same_bytes_every_time),
        cmocka_unit_test(bad_options),
        cmocka_unit_test(nothing_is_left),
        cmocka_unit_test(a_full_disk),
        cmocka_unit_test(a_write_that_fails_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
