/* test_png.c - PNG of every kind, depth, filter and interlacing, made here from pixels that are
 * known; what is damaged where pixels come from is refused, elsewhere it is not. */
#include "tests/t.h"

#include <zlib.h>

#include "common/picture.h"

#define W 37
#define H 29
enum { ROOM = 1 << 17, IDAT = 100 /* bytes in each chunk of pixels */ };

static const struct {
    int type, samples;
} KINDS[] = {{0, 1}, {2, 3}, {3, 1}, {4, 2}, {6, 4}};

/* Sample c of the pixel at (x, y), of this many bits. */
static unsigned sample(int x, int y, int c, int depth)
{
    const unsigned v = (unsigned)(x * 2654435761u + y * 40503u + c * 9973u) >> 7;
    return v & ((1u << depth) - 1);
}

/* Colour c of palette entry i; there are all but the last that the depth has. */
static uint8_t colour(unsigned i, int c)
{
    return (uint8_t)(i * 37 + (unsigned)c * 101 + 5);
}

static void want_pixel(uint8_t *rgb, int type, int depth, int x, int y)
{
    const int samples = type == 2 || type == 6 ? 3 : 1;
    for (int c = 0; c < 3; c++) {
        const unsigned v = sample(x, y, samples == 3 ? c : 0, depth);
        if (type == 3) rgb[c] = v == (1u << depth) - 1 ? 0 : colour(v, c);
        else rgb[c] = (uint8_t)(depth == 16 ? v >> 8 : v * 255 / ((1u << depth) - 1));
    }
}

typedef struct {
    uint8_t at[ROOM];
    size_t n;
} file;

static void put32(uint8_t *to, size_t v)
{
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void chunk(file *f, const char *type, const void *body, size_t n)
{
    assert_true(f->n + n + 12 <= ROOM);
    uint8_t *to = f->at + f->n;
    put32(to, n);
    memcpy(to + 4, type, 4);
    if (n) memcpy(to + 8, body, n);
    put32(to + 8 + n, crc32(0, to + 4, (uInt)n + 4));
    f->n += 12 + n;
}

static int predict(int filter, int left, int up, int corner)
{
    const int p = left + up - corner, a = abs(p - left), b = abs(p - up), c = abs(p - corner);
    switch (filter) {
    case 1: return left;
    case 2: return up;
    case 3: return (left + up) / 2;
    case 4: return a <= b && a <= c ? left : b <= c ? up : corner;
    default: return 0;
    }
}

/* The lines of every dx-th and dy-th pixel from (x0, y0) on, each by the next filter. */
static size_t put_pass(uint8_t *to, int kind, int depth, int x0, int y0, int dx, int dy)
{
    static int filter;
    const int samples = KINDS[kind].samples;
    const size_t w = x0 < W ? (size_t)((W - x0 + dx - 1) / dx) : 0,
                 bits = (size_t)(samples * depth), n = (w * bits + 7) / 8, step = (bits + 7) / 8;
    uint8_t line[W * 8] = {0}, above[W * 8] = {0};
    uint8_t *const begin = to;
    for (int y = y0; y < H && w; y += dy) {
        memset(line, 0, sizeof line);
        for (size_t i = 0; i < w * (size_t)samples; i++) {
            const unsigned v = sample(x0 + (int)i / samples * dx, y, (int)i % samples, depth);
            if (depth == 16) line[2 * i] = (uint8_t)(v >> 8), line[2 * i + 1] = (uint8_t)v;
            else line[i * (size_t)depth / 8] |= (uint8_t)(v << (8 - depth - (int)i * depth % 8));
        }
        *to++ = (uint8_t)filter;
        for (size_t i = 0; i < n; i++)
            *to++ = (uint8_t)(line[i] - predict(filter, i < step ? 0 : line[i - step], above[i],
                                                i < step ? 0 : above[i - step]));
        memcpy(above, line, sizeof above);
        filter = (filter + 1) % 5;
    }
    return (size_t)(to - begin);
}

/* What a test spoils. */
typedef struct {
    int filter, pixels, behind; /* one more: 1 */
    bool no_palette;
} fault;

static void make(file *f, int kind, int depth, bool interlaced, fault bad)
{
    static const int ADAM7[7][4] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                                    {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
    static uint8_t raw[ROOM], packed[ROOM];
    uint8_t head[13] = {0}, palette[3 * 255];
    size_t n = 0;
    uLongf size = ROOM;
    put32(head, W);
    put32(head + 4, H);
    head[8] = (uint8_t)depth;
    head[9] = (uint8_t)KINDS[kind].type;
    head[12] = interlaced;
    memcpy(f->at, "\x89PNG\r\n\x1a\n", 8);
    f->n = 8;
    chunk(f, "IHDR", head, sizeof head);
    chunk(f, "iCCP", "no profile", 10);
    for (int i = 0; i < 3 * 255; i++) palette[i] = colour((unsigned)i / 3, i % 3);
    if (KINDS[kind].type == 3 && depth <= 8 && !bad.no_palette)
        chunk(f, "PLTE", palette, 3 * ((1u << depth) - 1));
    for (int i = 0; i < (interlaced ? 7 : 1); i++) {
        static const int WHOLE[4] = {0, 0, 1, 1};
        const int *p = interlaced ? ADAM7[i] : WHOLE;
        n += put_pass(raw + n, kind, depth, p[0], p[1], p[2], p[3]);
    }
    if (bad.filter) raw[0] = 5;
    memset(raw + n, 7, 1000);
    n = n - (size_t)bad.pixels + 1000 * (size_t)bad.behind;
    assert_int_equal(compress(packed, &size, raw, n), Z_OK);
    for (size_t at = 0; at < size; at += IDAT)
        chunk(f, "IDAT", packed + at, size - at < IDAT ? size - at : IDAT);
    chunk(f, "IEND", NULL, 0);
}

static sl_code read_it(sl_picture *p, const file *f, sl_err *err)
{
    uint8_t *copy = malloc(f->n); /* of its own size, so that reading past it shows */
    memcpy(copy, f->at, f->n);
    const sl_code rc = sl_picture_decode(p, copy, f->n, "x", err);
    free(copy);
    return rc;
}

static void test_every_kind(void **state)
{
    static file f;
    int tried = 0;
    (void)state;
    for (int k = 0; k < 5; k++)
        for (int depth = 1; depth <= 16; depth *= 2)
            for (int interlaced = 0; interlaced < 2; interlaced++) {
                const int type = KINDS[k].type;
                const bool is_one = type == 0 || (type == 3 ? depth <= 8 : depth >= 8);
                sl_picture p = {0};
                sl_err err = {0};
                make(&f, k, depth, interlaced, (fault){0});
                if (!is_one) {
                    T_CODE(read_it(&p, &f, &err), SL_FORMAT);
                    T_SAYS(err.msg, "x: the PNG picture is damaged or of a kind that is not read");
                    continue;
                }
                T_OK(read_it(&p, &f, &err));
                assert_int_equal(p.w, W);
                assert_int_equal(p.h, H);
                for (int i = 0; i < W * H; i++) {
                    uint8_t want[3];
                    want_pixel(want, type, depth, i % W, i / W);
                    if (memcmp(p.rgb + 3 * i, want, 3))
                        fail_msg("type %d, %d bits%s, pixel (%d, %d): %d %d %d, want %d %d %d",
                                 type, depth, interlaced ? ", interlaced" : "", i % W, i / W,
                                 p.rgb[3 * i], p.rgb[3 * i + 1], p.rgb[3 * i + 2], want[0], want[1],
                                 want[2]);
                }
                sl_picture_free(&p);
                tried++;
            }
    assert_int_equal(tried, 2 * 15);
}

/* The n-th chunk of this type: where its length stands. */
static uint8_t *find(file *f, const char *type, int n)
{
    for (size_t at = 8; at < f->n;) {
        const uint8_t *p = f->at + at;
        if (!memcmp(p + 4, type, 4) && !n--) return f->at + at;
        at += 12 + ((size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3]);
    }
    fail_msg("no %s", type);
    return NULL;
}

static void test_damage(void **state)
{
    enum { RGB = 1, INDEXED = 2 };
    static file f;
    static const fault FAULTS[] = {{.filter = 1}, {.pixels = 1}};
    (void)state;
#define REFUSED()                                                                                  \
    do {                                                                                           \
        sl_picture p = {0};                                                                        \
        sl_err err = {0};                                                                          \
        T_CODE(read_it(&p, &f, &err), SL_FORMAT);                                                  \
        T_SAYS(err.msg, "x: the PNG picture is damaged");                                          \
    } while (0)
#define READ()                                                                                     \
    do {                                                                                           \
        sl_picture p = {0};                                                                        \
        sl_err err = {0};                                                                          \
        T_OK(read_it(&p, &f, &err));                                                               \
        sl_picture_free(&p);                                                                       \
    } while (0)
    for (size_t i = 0; i < sizeof FAULTS / sizeof *FAULTS; i++) {
        make(&f, RGB, 8, false, FAULTS[i]);
        REFUSED();
    }
    make(&f, RGB, 8, false, (fault){.behind = 1}); /* more than the picture takes */
    READ();
    make(&f, INDEXED, 8, false, (fault){.no_palette = true});
    REFUSED();
    static const struct {
        const char *chunk;
        int n, byte; /* of the chunk, from its length on */
        bool read;
    } AT[] = {{"IHDR", 0, 8 + 10, false}, {"IHDR", 0, 21, false}, {"PLTE", 0, 9, false},
              {"IDAT", 0, 8, false},      {"IDAT", 1, 50, false}, {"IDAT", 2, 8 + IDAT, false},
              {"iCCP", 0, 9, true},       {"IEND", 0, 9, true}};
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        make(&f, INDEXED, 8, false, (fault){0});
        find(&f, AT[i].chunk, AT[i].n)[AT[i].byte] ^= 0x40;
        if (AT[i].read) READ();
        else REFUSED();
    }
    /* zlib's checksum behind the last pixel, in a chunk whose own is right */
    make(&f, RGB, 8, false, (fault){0});
    int last = 0;
    for (size_t at = 8; at < f.n; at += 12 + (size_t)f.at[at + 2] * 256 + f.at[at + 3])
        last += !memcmp(f.at + at + 4, "IDAT", 4);
    uint8_t *idat = find(&f, "IDAT", last - 1);
    const size_t n = idat[3];
    idat[8 + n - 1] ^= 1;
    put32(idat + 8 + n, crc32(0, idat + 4, (uInt)n + 4));
    REFUSED();
}

/* What sl_picture_write writes, sl_picture_read reads, at sizes that fill zlib's window and not. */
static void test_written(void **state)
{
    static const int SIZES[][2] = {{1, 1}, {3, 1}, {1, 5}, {640, 400}};
    const char *dir = t_tmpdir();
    char path[300];
    (void)state;
    snprintf(path, sizeof path, "%s/x.png", dir);
    for (int i = 0; i < 4; i++) {
        const size_t n = (size_t)SIZES[i][0] * (size_t)SIZES[i][1] * 3;
        sl_picture p = {SIZES[i][0], SIZES[i][1], malloc(n)}, got = {0};
        sl_err err = {0};
        uint32_t x = 1;
        for (size_t k = 0; k < n; k++) p.rgb[k] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
        T_OK(sl_picture_write(&p, path, &err));
        T_OK(sl_picture_read(&got, path, &err));
        assert_int_equal(got.w, p.w);
        assert_int_equal(got.h, p.h);
        assert_memory_equal(got.rgb, p.rgb, n);
        sl_picture_free(&p);
        sl_picture_free(&got);
    }
    sl_picture none = {0, 4, NULL};
    sl_err err = {0};
    T_CODE(sl_picture_write(&none, path, &err), SL_ARG);
    T_SAYS(err.msg, "picture: 0x4 pixels, want 1 to");
    t_rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_kind),
                                       cmocka_unit_test(test_damage),
                                       cmocka_unit_test(test_written)};
    return cmocka_run_group_tests_name("png", tests, NULL, NULL);
}
