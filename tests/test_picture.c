/* test_picture.c - pictures come out as Pillow reads and resizes them; what is no whole
 * picture is refused in one line. */
#include "t_net.h"

#include <time.h>

#include "common/path.h"
#include "common/picture.h"
#include "common/safetensors.h"

#define DIR "tests/golden/pictures/"

static uint8_t *slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: no such file", path);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *bytes = malloc(*n + 1);
    assert_int_equal(fread(bytes, 1, *n, f), *n);
    fclose(f);
    return bytes;
}

/* Largest difference, and the part of bytes that differ at all. */
static int compare(const uint8_t *a, const uint8_t *b, size_t n, double *part)
{
    int most = 0;
    size_t differ = 0;
    for (size_t i = 0; i < n; i++) {
        int d = abs(a[i] - b[i]);
        if (d > most) most = d;
        differ += d != 0;
    }
    *part = (double)differ / (double)n;
    return most;
}

/* Every picture and every resize of index.txt, in order. */
static void as_pillow(void **state)
{
    (void)state;
    size_t n_pictures, n_resized, at = 0, resized_at = 0;
    uint8_t *pictures = slurp(DIR "pictures.bin", &n_pictures),
            *resized = slurp(DIR "resize.bin", &n_resized);
    FILE *index = fopen(DIR "index.txt", "r");
    char name[100], path[200];
    int w, h, rows = 0;
    sl_picture source = {0};
    sl_err err = {0};
    assert_non_null(index);
    T_OK(sl_picture_read(&source, DIR "source.png", &err));
    for (; fscanf(index, "%99s %d %d", name, &w, &h) == 3; rows++) {
        size_t n = (size_t)w * (size_t)h * 3;
        bool resize = !strchr(name, '.');
        sl_picture p = {0};
        double part;
        snprintf(path, sizeof path, DIR "%s", name);
        if (resize)
            T_OK(sl_picture_resize(&p, &source, w, h,
                                   !strcmp(name, "bicubic") ? SL_FILTER_BICUBIC : SL_FILTER_LANCZOS,
                                   &err));
        else T_OK(sl_picture_read(&p, path, &err));
        if (p.w != w || p.h != h) fail_msg("%s is %dx%d, want %dx%d", name, p.w, p.h, w, h);
        int most = compare(p.rgb, resize ? resized + resized_at : pictures + at, n, &part);
        *(resize ? &resized_at : &at) += n;
        /* JPEG: libavcodec's inverse cosine transform is not libjpeg's (picture.c);
         * everything else is exact. */
        if (most > (sl_ends_with(name, ".jpg") ? 2 : 0) || part > 0.05)
            fail_msg("%s %dx%d: %.1f %% of bytes differ, by up to %d", name, w, h, 100 * part,
                     most);
        sl_picture_free(&p);
    }
    assert_int_equal(rows, 59);
    assert_int_equal(at, n_pictures);
    assert_int_equal(resized_at, n_resized);
    fclose(index);
    sl_picture_free(&source);
    free(pictures);
    free(resized);
}

/* Every picture of kinds/: where its orientation stands, kinds, and how its pixels are kept. */
static void odd_ones_as_pillow(void **state)
{
    (void)state;
    size_t size, at = 0;
    uint8_t *want = slurp(DIR "kinds/pictures.bin", &size);
    FILE *index = fopen(DIR "kinds/index.txt", "r");
    char name[100], path[200];
    int w, h, level, rows = 0;
    assert_non_null(index);
    for (; fscanf(index, "%99s %d %d %d", name, &w, &h, &level) == 4; rows++) {
        sl_picture p = {0};
        sl_err err = {0};
        double part;
        snprintf(path, sizeof path, DIR "kinds/%s", name);
        T_OK(sl_picture_read(&p, path, &err));
        if (p.w != w || p.h != h) fail_msg("%s is %dx%d, want %dx%d", name, p.w, p.h, w, h);
        int most = compare(p.rgb, want + at, (size_t)w * (size_t)h * 3, &part);
        at += (size_t)w * (size_t)h * 3;
        if (most > level)
            fail_msg("%s: %.1f %% of bytes differ, by up to %d", name, 100 * part, most);
        sl_picture_free(&p);
    }
    assert_int_equal(rows, 86);
    assert_int_equal(at, size);
    fclose(index);
    free(want);
}

/* README's table is the list of kinds. */
static void kinds_as_told(void **state)
{
    (void)state;
    static const char *const ROWS[] = {
#define X(id, name, what, by) "| " name " | " what " | " by " |\n",
        SL_PICTURE_KINDS(X)
#undef X
    };
    size_t n;
    char *readme = (char *)slurp("README.md", &n);
    readme[n] = 0;
    const char *at = strstr(readme, "| picture | what of it | read by |\n|---|---|---|\n");
    assert_non_null(at);
    at += strlen("| picture | what of it | read by |\n|---|---|---|\n");
    for (int i = 0; i < SL_PICTURE_KIND_COUNT; at += strlen(ROWS[i]), i++) {
        if (strncmp(at, ROWS[i], strlen(ROWS[i]))) fail_msg("README.md lacks: %s", ROWS[i]);
        if (!strstr(sl_picture_kinds(), sl_picture_kind_name((sl_picture_kind)i)))
            fail_msg("sl_picture_kinds lacks %s", sl_picture_kind_name((sl_picture_kind)i));
    }
    assert_true(*at == '\n');
    free(readme);
}

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        sl_code code;
        const char *says;
    } bad[] = {
        {DIR "huge.png", SL_FORMAT,
         "huge.png: the picture has 60000x60000 pixels, at most 178956970 are read, 65535 a side"},
        {DIR "cut.png", SL_FORMAT, "cut.png: the PNG picture is truncated after "},
        {DIR "cut.jpg", SL_FORMAT, "cut.jpg: the JPEG picture is truncated after "},
        {DIR "cut.webp", SL_FORMAT, "cut.webp: the WebP picture is truncated after "},
        {DIR "short.png", SL_FORMAT, "short.png: the PNG picture is damaged"},
        {DIR "make.py", SL_FORMAT,
         "make.py: not a picture, want a picture (PNG, JPEG, WebP, BMP, GIF, TIFF, JPEG 2000, PPM, "
         "AVIF or "
         "HEIC)"},
        {"/dev/null", SL_FORMAT, "/dev/null: the file is empty"},
        {DIR, SL_SYS, "pictures/: cannot be read: Is a directory"},
        {DIR "none.png", SL_SYS, "none.png: cannot be opened: No such file or directory"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        sl_err err = {0};
        sl_picture p = {1, 1, NULL};
        T_CODE(sl_picture_read(&p, bad[i].path, &err), bad[i].code);
        T_SAYS(err.msg, bad[i].says);
        assert_null(p.rgb);
    }
    static const struct {
        const char *bytes;
        size_t n;
        const char *says;
    } raw[] = {
        {"\x89", 1, "x: not a picture"},
        {"GIF89a\1\0\1\0\0\0\0;", 14, "x: the GIF picture is truncated after 14 bytes"},
        {"\0\0\0\x18"
         "ftypheic",
         12, "x: the HEIC picture is truncated after 12 bytes"},
        {"\0\0\0\x18"
         "ftypisom",
         12, "x: a video, want"},
        {"<html>", 6, "x: a web page, want"},
        {"\xff\xd8\xff\xd9", 4, "truncated"},
        {"BM\0\0\0\0\0\0\0\0\0\0\0\0\x28\0\0\0\0\0\0\0\0\0\0\0", 26,
         "x: the BMP header says 0x0 pixels"},
        {"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x07\0\0\x07\0\0", 30,
         "x: the WebP picture is truncated after 30 bytes"},
    };
    for (size_t i = 0; i < sizeof raw / sizeof *raw; i++) {
        sl_err err = {0};
        sl_picture p;
        T_CODE(sl_picture_decode(&p, (const uint8_t *)raw[i].bytes, raw[i].n, "x", &err),
               SL_FORMAT);
        T_SAYS(err.msg, raw[i].says);
    }
}

/* Cut anywhere, a picture is refused: never half a picture. */
static void every_truncation_is_refused(void **state)
{
    (void)state;
    static const char *const files[] = {"rgb.png",
                                        "palette.png",
                                        "420.jpg",
                                        "progressive.jpg",
                                        "exif6.jpg",
                                        "lossy.webp",
                                        "alpha.webp",
                                        "lossless.webp",
                                        "rgb.bmp",
                                        "kinds/arith.jpg",
                                        "kinds/animated.webp",
                                        "kinds/moved.gif",
                                        "kinds/tiff_lzw.tif",
                                        "kinds/bare.j2k",
                                        "kinds/grey.jp2",
                                        "kinds/p6.ppm",
                                        "kinds/p5.pgm",
                                        "kinds/p1.pbm",
                                        "kinds/444.avif"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[200];
        size_t n;
        snprintf(path, sizeof path, DIR "%s", files[i]);
        uint8_t *bytes = slurp(path, &n);
        for (size_t cut = 0; cut<n; cut += n - cut> 40 && cut > 40 ? 13 : 1) {
            if (sl_ends_with(files[i], ".gif") && cut == n - 1)
                continue;                    /* the last mark is no pixel */
            uint8_t *part = malloc(cut + 1); /* of its own, so that reading past it shows */
            sl_err err = {0};
            sl_picture p = {0};
            memcpy(part, bytes, cut);
            if (sl_picture_decode(&p, part, cut, files[i], &err) != SL_FORMAT)
                fail_msg("%s cut after %zu of %zu bytes: taken", files[i], cut, n);
            assert_true(strlen(err.msg) > 0);
            free(part);
        }
        free(bytes);
    }
}

static uint8_t *big(uint8_t *p, uint64_t v, int bytes)
{
    while (bytes--) *p++ = (uint8_t)(v >> 8 * bytes);
    return p;
}

/* A box's head with its size still to come, and the end of the box that begins at `box`. */
static uint8_t *begin(uint8_t *p, const char *type)
{
    memcpy(p + 4, type, 4);
    return p + 8;
}
static uint8_t *end(uint8_t *box, uint8_t *p)
{
    big(box, (uint64_t)(p - box), 4);
    return p;
}

/* AVIF whose tables are small and whose counts multiply: they are refused, and soon. */
static void tables_are_walked_once(void **state)
{
    enum { ITEMS = 200000, PROPERTIES = 32767, TIMES = 2000 };
    uint8_t *file = calloc(1, 4 << 20), *p = file, *meta, *box, *inner;
    (void)state;
    assert_non_null(file);
    p = end(p, big(big(begin(p, "ftyp"), 0x61766966, 4), 0, 4)); /* avif */
    p = big(begin(meta = p, "meta"), 0, 4);
    p = end(p, big(big(begin(p, "pitm"), 0, 4), 1, 2));
    p = big(big(begin(box = p, "iinf"), 0, 4), 1, 2);
    p = end(p, big(big(begin(p, "infe"), 2ul << 24, 4), 1ul << 48 | 0x61763031, 8)); /* 1: av01 */
    end(box, p);
    p = begin(box = p, "iprp");
    p = begin(inner = p, "ipco");
    for (int i = 0; i < PROPERTIES; i++) p = end(p, begin(p, "free"));
    end(inner, p);
    p = big(big(begin(inner = p, "ipma"), 1, 4), TIMES, 4); /* 1: two bytes an index */
    for (int i = 0; i < TIMES; i++) {
        p = big(big(p, 1, 2), 255, 1); /* of item 1, each time */
        for (int k = 0; k < 255; k++) p = big(p, PROPERTIES, 2);
    }
    end(inner, p);
    end(box, p);
    p = big(big(begin(box = p, "iloc"), 2ul << 24, 4), 0, 2); /* extents of no bytes */
    p = big(p, ITEMS, 4);
    for (int i = 0; i < ITEMS; i++) p = big(big(big(p, 2, 4), 0, 4), 65535, 2);
    end(box, p);
    end(meta, p);
    assert_true(p - file < 4 << 20);
    sl_err err = {0};
    sl_picture out;
    const clock_t before = clock();
    T_CODE(sl_picture_decode(&out, file, (size_t)(p - file), "x", &err), SL_FORMAT);
    /* well under 1 s; not done after 36 s of CPU time where each count is walked for each */
    assert_true((double)(clock() - before) / CLOCKS_PER_SEC < 5);
    free(file);
}

/* `clip.pixels` of the golden folder, from the picture as it was given (130 x 90), not
 * from the one resized to the video's 96 x 64. */
static void pixels_as_golden(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_picture p = {0}, video = {0};
    sl_st *st = NULL;
    T_OK(sl_picture_read(&p, t_golden("tiny-i2v/i2v-96x64x9.png"), &err));
    T_OK(sl_st_open_file(&st, t_golden("tiny-i2v/i2v-96x64x9.safetensors"), &err));
    float *want = t_pixels(st, "clip.pixels", 3 * 224 * 224, 3, T_CLIP_MEAN, T_CLIP_STD),
          *got = malloc(3 * 224 * 224 * 4);
    T_OK(sl_picture_clip_pixels(got, &p, 224, 224, 224, T_CLIP_MEAN, T_CLIP_STD, 1.0f / 255, &err));
    /* a level of the picture is 0.0146: every byte is equal */
    T_NEAR(got, want, 3 * 224 * 224, 1e-6);
    T_CODE(
        sl_picture_clip_pixels(got, &p, 100, 224, 224, T_CLIP_MEAN, T_CLIP_STD, 1.0f / 255, &err),
        SL_SHAPE);
    T_SAYS(err.msg, "CLIP's crop is 224x224, but the picture has 144x100 after its resize");
    free(want);
    /* [3, 64, 96], -1..1 */
    want = t_pixels(st, "vae.encode.input.frame0", 3 * 64 * 96, 1, T_HALF, T_HALF);
    T_OK(sl_picture_resize(&video, &p, 96, 64, SL_FILTER_LANCZOS, &err));
    for (int i = 0; i < 3 * 64 * 96; i++)
        got[i] = (float)video.rgb[i % (64 * 96) * 3 + i / (64 * 96)] / 255 * 2 - 1;
    T_NEAR(got, want, 3 * 64 * 96, 1e-6);
    free(want);
    free(got);
    sl_st_close(&st);
    sl_picture_free(&p);
    sl_picture_free(&video);
}

/* numpy: round(sqrt(area * h / w)) // 16 * 16 */
static void video_sizes(void **state)
{
    (void)state;
    static const int at[][4] = {{1280, 720, 1280, 720},
                                {720, 1280, 720, 1280},
                                {1000, 1000, 960, 960},
                                {4000, 3000, 1104, 816},
                                {1, 100000, 16, 57600}};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        int w, h;
        sl_picture_video_size(at[i][0], at[i][1], 1280 * 720, 16, &w, &h);
        if (w != at[i][2] || h != at[i][3])
            fail_msg("%dx%d: %dx%d, want %dx%d", at[i][0], at[i][1], w, h, at[i][2], at[i][3]);
    }
}

static void bad_sizes(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_picture p = {0}, q;
    T_OK(sl_picture_read(&p, DIR "rgb.png", &err));
    T_CODE(sl_picture_resize(&q, &p, 0, 4, SL_FILTER_LANCZOS, &err), SL_ARG);
    T_CODE(sl_picture_resize(&q, &p, 1 << 16, 1 << 16, SL_FILTER_LANCZOS, &err), SL_ARG);
    T_SAYS(err.msg, "cannot be resized to 65536x65536");
    sl_picture_free(&p);
    sl_picture_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_pillow),
        cmocka_unit_test(odd_ones_as_pillow),
        cmocka_unit_test(kinds_as_told),
        cmocka_unit_test(refused),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(tables_are_walked_once),
        cmocka_unit_test(pixels_as_golden),
        cmocka_unit_test(video_sizes),
        cmocka_unit_test(bad_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
