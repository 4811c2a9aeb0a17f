/* test_pth.c - .pth files: what is read, and that whatever is odd about the zip or the pickle is
 * refused in one line. */
#include "t.h"
#include "t_pth.h"

#include <limits.h>

#include "common/safetensors.h"

static sl_err err;
static float numbers[6] = {1, 2, 3, 4, 5, 6};

/* A zip around this pickle, with the numbers as storage 0. */
static t_zip around(const t_bytes *pickle)
{
    t_zip z = {0};
    t_zip_add(&z, "any name/data.pkl", pickle->bytes, pickle->count);
    t_zip_add(&z, "any name/byteorder", "little", 6);
    t_zip_add(&z, "any name/data/0", numbers, sizeof numbers);
    t_zip_add(&z, "any name/version", "3\n", 2);
    t_zip_end(&z);
    return z;
}

static t_pkl_tensor plain_tensor(void)
{
    return t_pkl_dense("w", "FloatStorage", "0", 2, (int64_t[]){2, 3});
}

static t_bytes plain_pickle(const t_pkl_tensor *t)
{
    t_bytes p = {0};
    t_pkl_begin(&p);
    t_pkl_put(&p, t);
    t_pkl_end(&p);
    return p;
}

static sl_code parse(const t_zip *z)
{
    memset(&err, 0, sizeof err);
    /* at the end of its own block, so that a read behind it shows */
    unsigned char *copy = malloc(z->b.count);
    memcpy(copy, z->b.bytes, z->b.count);
    sl_code rc = sl_st_parse(copy, z->b.count, &err);
    free(copy);
    if (rc && strchr(err.msg, '\n')) fail_msg("more than a line: %s", err.msg);
    return rc;
}

/* This pickle must be refused with a message that has `part`. Takes it over. */
static void refused(t_bytes p, const char *part)
{
    t_zip z = around(&p);
    T_CODE(parse(&z), SL_FORMAT);
    T_SAYS(err.msg, part);
    free(z.b.bytes);
    free(p.bytes);
}

static void refused_tensor(const t_pkl_tensor *t, const char *part)
{
    refused(plain_pickle(t), part);
}

static char dir[256];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    t_rmdir(dir);
    return 0;
}

/* The zip as a file, one at a time. Static buffer. */
static const char *as_file(const t_zip *z)
{
    static char path[300];
    snprintf(path, sizeof path, "%s/w.pth", dir);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(z->b.bytes, 1, z->b.count, f), z->b.count);
    assert_int_equal(fclose(f), 0);
    return path;
}

/* ---- what is read ---- */

static void tensors(void **state)
{
    (void)state;
    sl_st *st;
    t_bytes p = {0};
    t_pkl_begin(&p);
    t_pkl_tensor t = plain_tensor();
    t_pkl_put(&p, &t);
    /* the second row of the same storage; an extent of 1 may have any stride; a scalar */
    t_pkl_tensor row = {.name = "row",
                        .type = "FloatStorage",
                        .key = "0",
                        .elements = 6,
                        .offset = 3,
                        .rank = 2,
                        .shape = {1, 3},
                        .stride = {77, 1}};
    t_pkl_put(&p, &row);
    t_pkl_tensor scalar = {
        .name = "a.scalar", .type = "FloatStorage", .key = "0", .elements = 6, .offset = 5};
    t_pkl_put(&p, &scalar);
    t_pkl_tensor empty = t_pkl_dense("empty", "FloatStorage", "0", 2, (int64_t[]){0, 4});
    empty.elements = 6;
    t_pkl_put(&p, &empty);
    t_add(&p, "u}",
          2); /* attributes, as a module's state has: {"_metadata": {"": {"version": 1}}} */
    t_pkl_text(&p, "_metadata");
    t_add(&p, T_PKL_DICT, sizeof T_PKL_DICT - 1);
    t_pkl_text(&p, "");
    t_add(&p, "}", 1);
    t_pkl_text(&p, "version");
    t_add(&p, "K\1sssb.", 7); /* into {}, into the OrderedDict, into {} */
    t_zip z = around(&p);
    T_OK(sl_st_open_file(&st, as_file(&z), &err));
    assert_int_equal(sl_st_size(st), 4);
    sl_tensor w;
    T_OK(sl_st_want(st, "w", SL_F32, 2, (int64_t[]){2, 3}, &w, &err));
    float got[6];
    sl_to_floats(got, w.data, SL_F32, 6, NULL);
    assert_memory_equal(got, numbers, sizeof numbers);
    T_OK(sl_st_want(st, "row", SL_F32, 2, (int64_t[]){1, 3}, &w, &err));
    sl_to_floats(got, w.data, SL_F32, 3, NULL);
    assert_memory_equal(got, numbers + 3, 12);
    T_OK(sl_st_want(st, "a.scalar", SL_F32, 1, (int64_t[]){1}, &w, &err));
    sl_to_floats(got, w.data, SL_F32, 1, NULL);
    assert_true(got[0] == 6);
    T_OK(sl_st_want(st, "empty", SL_F32, 2, (int64_t[]){0, 4}, &w, &err));
    /* as bytes of the file */
    const sl_st_entry *e = sl_st_find(st, "row");
    assert_memory_equal(z.b.bytes + sl_st_offset(st, e), numbers + 3, 12);
    assert_null(sl_st_metadata(st, "format"));
    sl_st_close(&st);
    free(z.b.bytes);
    free(p.bytes);
}

/* Every type of storage; those that no sl_dtype is are listed and cannot be viewed. */
static void types(void **state)
{
    (void)state;
    static const struct {
        const char *type, *tag;
        int64_t elements;
        bool viewed;
    } AT[] = {{"FloatStorage", "F32", 6, true},   {"BFloat16Storage", "BF16", 12, true},
              {"HalfStorage", "F16", 12, true},   {"LongStorage", "I64", 3, true},
              {"IntStorage", "I32", 6, true},     {"ByteStorage", "U8", 24, true},
              {"DoubleStorage", "F64", 3, false}, {"ShortStorage", "I16", 12, false},
              {"CharStorage", "I8", 24, false},   {"BoolStorage", "BOOL", 24, false}};
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        sl_st *st;
        t_pkl_tensor t = t_pkl_dense("w", AT[i].type, "0", 1, &AT[i].elements);
        t_bytes p = plain_pickle(&t);
        t_zip z = around(&p);
        T_OK(sl_st_open_file(&st, as_file(&z), &err));
        assert_string_equal(sl_st_at(st, 0)->dtype, AT[i].tag);
        assert_int_equal(sl_st_at(st, 0)->t.rank, AT[i].viewed);
        sl_st_close(&st);
        free(z.b.bytes);
        free(p.bytes);
    }
}

/* torch.save's own pickle: of a VAE, 194 tensors, with its memo; around it storages of zeros. */
static void torchs_own(void **state)
{
    (void)state;
    static unsigned char pickle[1 << 15];
    FILE *f = fopen(t_golden("pth/vae.data.pkl"), "rb");
    assert_non_null(f);
    const size_t n = fread(pickle, 1, sizeof pickle, f);
    fclose(f);
    for (int zip64 = 0; zip64 < 2; zip64++) {
        t_zip z = {.zip64 = zip64};
        t_zip_add(&z, "Wan2.1_VAE/data.pkl", pickle, n);
        /* elements of storage K: the integer behind "cpu", which is spelt out the first time */
        int k = 0;
        for (size_t i = 0; i + 6 < n; i++) {
            const bool first = !memcmp(pickle + i, "X\3\0\0\0cpuq\6", 10);
            if (!first && memcmp(pickle + i, "h\6", 2)) continue;
            const unsigned char *p = pickle + i + (first ? 10 : 2);
            const size_t elements = *p == 'K'   ? p[1]
                                    : *p == 'M' ? p[1] | (size_t)p[2] << 8
                                    : *p == 'J' ? p[1] | (size_t)p[2] << 8 | (size_t)p[3] << 16
                                                : 0;
            if (!elements) continue;
            char name[64];
            unsigned char *zeros = calloc(elements, 4);
            snprintf(name, sizeof name, "Wan2.1_VAE/data/%d", k++);
            t_zip_add(&z, name, zeros, 4 * elements);
            free(zeros);
        }
        assert_int_equal(k, 194);
        t_zip_end(&z);
        sl_st *st;
        sl_tensor w;
        T_OK(sl_st_open_file(&st, as_file(&z), &err));
        assert_int_equal(sl_st_size(st), 194);
        T_OK(sl_st_want(st, "decoder.conv1.weight", SL_F32, 5, (int64_t[]){16, 16, 3, 3, 3}, &w,
                        &err));
        sl_st_close(&st);
        free(z.b.bytes);
    }
}

/* ---- the pickle ---- */

static void opcodes(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *says;
    } AT[] = {
        {"\x80\x02}\x81.", 5, "byte 3: has opcode 0x81"},
        {"\x80\x02}]a.", 6, "byte 3: has opcode 0x5d"},
        {"\x80\x02}i.", 5, "byte 3: has opcode 0x69"},
        {"\x80\x02}\x93.", 5, "byte 3: has opcode 0x93"},
        {"\x80\x02"
         "F1.5\n.",
         8, "has opcode 0x46"},
        {"\x80\x04}.", 4, "has protocol 4, want 2"},
        {"\x80\x02"
         "cos\nsystem\n.",
         13, "asks for os.system"},
        {"\x80\x02"
         "cposix\nsystem\nX\2\0\0\0ls\x85R.",
         25, "asks for posix.system"},
        {"\x80\x02"
         "c__builtin__\neval\n.",
         21, "asks for __builtin__.eval"},
        {"\x80\x02"
         "ctorch\nload\n.",
         15, "asks for torch.load"},
        {"\x80\x02"
         "ctorch._utils\n_rebuild_tensor\n.",
         33, "asks for torch._utils._rebuild_tensor"},
        {"\x80\x02"
         "ccollections\nOrderedDict",
         25, "ends within a name"},
        {"\x80\x02"
         "ccollections\nOrderedDict\n(K\1K\2tR.",
         35, "which is not done"},
        {"\x80\x02"
         "ctorch._utils\n_rebuild_tensor_v2\n)R.",
         38, "a tensor that is not (storage"},
        {"\x80\x02"
         "ctorch\nFloatStorage\n)R.",
         25, "which is not done"},
        {"\x80\x02}", 3, "ends without STOP"},
        {"\x80", 1, "ends within its protocol"},
        {"", 0, "ends without STOP"},
        {".", 1, "makes no dict"},
        {"\x80\x02K\1.", 5, "makes no dict"},
        {"\x80\x02}}.", 5, "makes no dict"},
        {"\x80\x02}(}.", 6, "makes no dict"},
        {"\x80\x02}X\xff\xff\xff\xff"
         "ab.",
         11, "ends within a text"},
        {"\x80\x02}h\5.", 6, "recalls value 5, which is not there"},
        {"\x80\x02}r\xff\xff\xff\x7f.", 9, "remembers value 2147483647 out of order"},
        {"\x80\x02q\0.", 5, "remembers what is not there"},
        {"\x80\x02(q\0.", 6, "remembers a mark"},
        {"\x80\x02t.", 4, "a tuple of values that are not there"},
        {"\x80\x02\x87.", 4, "a tuple of values that are not there"},
        {"\x80\x02(\x85.", 5, "a tuple of values that are not there"},
        {"\x80\x02K\1K\2K\3s.", 10, "items for what is no dict"},
        {"\x80\x02}(K\1u.", 8, "items for what is no dict"},
        {"\x80\x02u.", 4, "items for what is no dict"},
        {"\x80\x02}K\1b.", 7, "attributes that are no dict"},
        {"\x80\x02R.", 4, "a call that is no known function"},
        {"\x80\x02}K\1Q.", 7, "a persistent id that is no tuple of 5"},
        {"\x80\x02}(K\1K\2K\3K\4K\5tQ.", 17, "a persistent id that is not"},
        {"\x80\x02}\x8a\x09"
         "123456789.",
         15, "an integer of 9 bytes"},
        {"\x80\x02}X\1\0\0\0wK\1s.", 13, "w is no tensor"},
        {"\x80\x02}K\1K\1s.", 9, "a tensor's name is no text"},
    };
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        t_bytes p = {0};
        t_add(&p, AT[i].bytes, AT[i].n);
        refused(p, AT[i].says);
    }
}

static void lying_tensors(void **state)
{
    (void)state;
    t_pkl_tensor t = plain_tensor();
    t.key = "1";
    refused_tensor(&t, "storage 1 has no entry in the zip");
    t.key = "../data.pkl";
    refused_tensor(&t, "has no entry in the zip");
    t = plain_tensor();
    t.elements = 7;
    refused_tensor(&t, "storage 0 has 24 bytes in the zip, which is not what 7 of F32 take");
    t.elements = -6;
    refused_tensor(&t, "a persistent id that is not");
    t = plain_tensor();
    t.type = "BFloat16Storage";
    refused_tensor(&t, "which is not what 6 of BF16 take");
    t = plain_tensor();
    t.elements = INT64_MAX;
    refused_tensor(&t, "which is not what 9223372036854775807 of F32 take");
    t = plain_tensor();
    t.offset = 1;
    refused_tensor(&t, "a tensor takes elements 1 to 7 of a storage that has 6");
    t.offset = -1;
    refused_tensor(&t, "a tensor takes elements -1");
    t.offset = INT64_MAX;
    refused_tensor(&t, "of a storage that has 6");
    t = plain_tensor();
    t.shape[0] = 3;
    refused_tensor(&t, "a tensor takes elements 0 to 9 of a storage that has 6");
    t.shape[0] = -2;
    refused_tensor(&t, "extent 0 is no integer >= 0");
    t.shape[0] = t.shape[1] = (int64_t)1 << 62;
    t.stride[0] = t.shape[1];
    refused_tensor(&t, "of a storage that has 6");
    t = plain_tensor();
    t.stride[0] = 2;
    refused_tensor(&t, "stride 0 is not 3: it is not contiguous");
    t = plain_tensor();
    t.stride[0] = 1, t.stride[1] = 2; /* transposed */
    refused_tensor(&t, "stride 1 is not 1: it is not contiguous");
    t.stride[0] = t.stride[1] = 0; /* expanded */
    refused_tensor(&t, "it is not contiguous");
    t = plain_tensor();
    t.name = "";
    refused_tensor(&t, "a tensor's name is no text");
    t.name = "a\nb";
    t.offset = 1;
    refused_tensor(&t, "a tensor takes");
    t_bytes p = {0};
    t = plain_tensor();
    t_pkl_begin(&p);
    t_pkl_put(&p, &t);
    t_pkl_put(&p, &t);
    t_pkl_end(&p);
    refused(p, "w is also in");
}

static void deep_tensor(void **state)
{
    (void)state;
    t_bytes p = {0};
    t_pkl_begin(&p);
    t_pkl_tensor t = plain_tensor();
    t_pkl_put(&p, &t);
    /* its shape's tuple made of seven */
    for (size_t i = 0; i + 6 < p.count; i++)
        if (!memcmp(p.bytes + i, "(K\2K\3t", 6)) {
            t_bytes q = {0};
            t_add(&q, p.bytes, i);
            t_add(&q, "(K\1K\1K\1K\1K\1K\2K\3t(K\1K\1K\1K\1K\1K\3K\1t", 32);
            t_add(&q, p.bytes + i + 12, p.count - i - 12);
            t_pkl_end(&q);
            refused(q, "a tensor of 7 dimensions, want at most 6");
            break;
        }
    free(p.bytes);
}

/* A name that the memo repeats: some bytes of the pickle each, and a copy each of memory. */
static void one_name_many_times(void **state)
{
    (void)state;
    static char name[1 << 16];
    memset(name, 'a', sizeof name - 1);
    t_bytes p = {0};
    const t_pkl_tensor t = plain_tensor();
    t_pkl_begin(&p);
    t_pkl_put(&p, &t);
    t_add(&p, "q\0", 2); /* the tensor is value 0 */
    t_pkl_text(&p, name);
    t_add(&p, "q\1h\0", 4);
    for (int i = 0; i < 1000; i++) t_add(&p, "h\1h\0", 4);
    t_pkl_end(&p);
    refused(p, "its dict has one name many times");
}

/* ---- the zip ---- */

/* Cut anywhere: an error, and no read outside (this test runs under the sanitizers, too). */
static void cut_short(void **state)
{
    (void)state;
    for (int zip64 = 0; zip64 < 2; zip64++) {
        t_pkl_tensor t = plain_tensor();
        t_bytes p = plain_pickle(&t);
        t_zip z = {.zip64 = zip64};
        t_zip_add(&z, "a/data.pkl", p.bytes, p.count);
        t_zip_add(&z, "a/data/0", numbers, sizeof numbers);
        t_zip_end(&z);
        T_OK(parse(&z));
        const size_t whole = z.b.count;
        for (z.b.count = 4; z.b.count < whole; z.b.count++) {
            T_CODE(parse(&z), SL_FORMAT);
            T_SAYS(err.msg, "cut short");
        }
        free(z.b.bytes);
        free(p.bytes);
    }
}

/* Each byte of header, directory and end record changed: accepted or an error of one line. */
static void changed_bytes(void **state)
{
    (void)state;
    t_pkl_tensor t = plain_tensor();
    t_bytes p = plain_pickle(&t);
    for (int zip64 = 0; zip64 < 2; zip64++) {
        t_zip z = {.zip64 = zip64};
        t_zip_add(&z, "a/data.pkl", p.bytes, p.count);
        t_zip_add(&z, "a/data/0", numbers, sizeof numbers);
        t_zip_end(&z);
        for (size_t i = 4; i < z.b.count; i++)
            for (int k = 0; k < 4; k++) {
                const unsigned char was = z.b.bytes[i];
                z.b.bytes[i] = (unsigned char)(k == 0 ? 0 : k == 1 ? 255 : k == 2 ? was + 1 : ~was);
                if (parse(&z)) assert_true(err.msg[0]);
                z.b.bytes[i] = was;
            }
        free(z.b.bytes);
    }
    free(p.bytes);
}

static void lying_zips(void **state)
{
    (void)state;
    t_pkl_tensor t = plain_tensor();
    t_bytes p = plain_pickle(&t);
    t_zip z = around(&p);
    const unsigned char *good = malloc(z.b.count);
    memcpy((void *)(uintptr_t)good, z.b.bytes, z.b.count);
    const size_t first = z.directory;
#define LIE(at, x, n, says)                                                                        \
    do {                                                                                           \
        t_patch(&z.b, (at), (x), (n));                                                             \
        T_CODE(parse(&z), SL_FORMAT);                                                              \
        T_SAYS(err.msg, (says));                                                                   \
        memcpy(z.b.bytes, good, z.b.count);                                                        \
    } while (0)
    LIE(first + 10, 8, 2, "any name/data.pkl is compressed (method 8), want it stored");
    LIE(z.at[0].header + 8, 8, 2, "is compressed (method 8)");
    LIE(first + 8, 1, 2, "is encrypted");
    LIE(first + 20, 5, 4, "is compressed");
    LIE(first + 42, 1, 4, "where no zip entry begins");
    LIE(first + 42, 0xfffffff0, 4, "where no zip entry begins");
    LIE(first + 42, z.at[2].header, 4, "where another entry begins");
    LIE(first + 42, 0xffffffff, 4, "lacks its zip64 sizes");
    LIE(first + 28, 0xffff, 2, "its zip directory is damaged");
    LIE(first, 0, 4, "its zip directory is damaged");
    LIE(z.end + 10, 0xfffe, 2, "says it has 65534 entries");
    LIE(z.end + 12, 0x7fffffff, 4, "its zip directory takes bytes");
    LIE(z.end + 16, 0x7fffffff, 4, "its zip directory takes bytes");
    LIE(z.end + 10, 0xffff, 2, "its zip64 end record is not where it must be");
    /* both sizes, larger than what is there; into the next entry */
    memcpy(z.b.bytes, good, z.b.count);
    t_patch(&z.b, first + 20, 0x7fffffff, 4);
    LIE(first + 24, 0x7fffffff, 4, "want them before the directory");
    t_patch(&z.b, first + 20, p.count + 100, 4);
    LIE(first + 24, p.count + 100, 4, "overlap");
    free((void *)(uintptr_t)good);
    free(z.b.bytes);

    z = (t_zip){0};
    t_zip_add(&z, "data.pkl", p.bytes, p.count);
    t_zip_end(&z);
    T_CODE(parse(&z), SL_FORMAT);
    T_SAYS(err.msg, "is a zip without FOLDER/data.pkl");
    free(z.b.bytes);
    z = (t_zip){0};
    t_zip_add(&z, "a/data.pkl", p.bytes, p.count);
    t_zip_add(&z, "b/data.pkl", p.bytes, p.count);
    t_zip_end(&z);
    T_CODE(parse(&z), SL_FORMAT);
    T_SAYS(err.msg, "holds two data.pkl");
    free(z.b.bytes);
    z = (t_zip){0};
    t_zip_add(&z, "a/data.pkl", p.bytes, p.count);
    t_zip_add(&z, "a/byteorder", "big", 3);
    t_zip_end(&z);
    T_CODE(parse(&z), SL_FORMAT);
    T_SAYS(err.msg, "its byte order is not little");
    free(z.b.bytes);
    free(p.bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors),
        cmocka_unit_test(types),
        cmocka_unit_test(torchs_own),
        cmocka_unit_test(opcodes),
        cmocka_unit_test(lying_tensors),
        cmocka_unit_test(deep_tensor),
        cmocka_unit_test(one_name_many_times),
        cmocka_unit_test(cut_short),
        cmocka_unit_test(changed_bytes),
        cmocka_unit_test(lying_zips),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
