/* test_safetensors.c - tensor files: what is read back, what is refused and how it says
 * so, what the writer leaves behind. */
#include "t.h"

#include <dirent.h>
#include <limits.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "common/safetensors.h"

static sl_err err;
static char dir[256];

/* ---- making files ---- */

static int set_up(void **state)
{
    (void)state;
    memset(&err, 0, sizeof err);
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    t_rmdir(dir);
    return 0;
}

/* DIR/name; one of four static buffers in turn. */
static const char *at(const char *name)
{
    static char buf[4][512];
    static int k;
    k = (k + 1) % 4;
    snprintf(buf[k], sizeof buf[k], "%s/%s", dir, name);
    return buf[k];
}

static void put(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(at(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* A file image: length, header text, data_bytes zero bytes. Static buffer. */
static unsigned char image[1 << 16];
static size_t make_image(const char *header, size_t data_bytes)
{
    size_t n = strlen(header);
    assert_true(8 + n + data_bytes <= sizeof image);
    memset(image, 0, sizeof image);
    for (int i = 0; i < 8; i++) image[i] = (unsigned char)((uint64_t)n >> 8 * i);
    memcpy(image + 8, header, n);
    return 8 + n + data_bytes;
}

/* This header over this many bytes of data must be refused with a message that contains
 * `part`. */
#define REFUSED(header, data_bytes, part)                                                          \
    do {                                                                                           \
        size_t n_ = make_image((header), (data_bytes));                                            \
        T_CODE(sl_st_parse(image, n_, &err), SL_FORMAT);                                           \
        T_SAYS(err.msg, (part));                                                                   \
    } while (0)
#define ACCEPTED(header, data_bytes)                                                               \
    do {                                                                                           \
        size_t n_ = make_image((header), (data_bytes));                                            \
        T_OK(sl_st_parse(image, n_, &err));                                                        \
    } while (0)

static int files_in_dir(void)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* ---- reading ---- */

static void a_golden_file_is_read(void **state)
{
    sl_st *st = NULL;
    sl_tensor t;
    T_OK(sl_st_open_file(&st, t_golden("tiny-i2v/i2v-96x64x9.safetensors"), &err));
    T_OK(sl_st_want(st, "noise", SL_F32, 4, (int64_t[]){16, 3, 8, 12}, &t, &err));
    assert_int_equal(sl_first_nonfinite(t.data, t.dtype, sl_count(&t)), -1);
    assert_null(sl_st_find(st, "nosuch"));
    for (int i = 1; i < sl_st_size(st); i++)
        assert_true(strcmp(sl_st_at(st, i - 1)->name, sl_st_at(st, i)->name) < 0);
    for (int i = 0; i < sl_st_size(st); i++)
        assert_ptr_equal(sl_st_find(st, sl_st_at(st, i)->name), sl_st_at(st, i));
    assert_null(sl_st_at(st, sl_st_size(st)));
    sl_st_close(&st);
    assert_null(st);
    sl_st_close(&st);
    (void)state;
}

static void a_sharded_folder_is_read(void **state)
{
    sl_st *st = NULL;
    T_OK(sl_st_open_dir(&st, t_golden("tiny-i2v/model/transformer"), "diffusion_pytorch_model",
                        &err));
    assert_int_equal(sl_st_shards(st), 2);
    const sl_st_entry *e = sl_st_find(st, "blocks.2.ffn.net.2.weight");
    assert_non_null(e);
    assert_string_equal(e->dtype, "BF16");
    T_SAYS(sl_st_path(st, e->shard), "-of-00002.safetensors");
    sl_st_close(&st);
    T_OK(sl_st_open_dir(&st, t_golden("tiny-i2v/model/vae"), "diffusion_pytorch_model", &err));
    assert_int_equal(sl_st_shards(st), 1);
    assert_int_equal(sl_st_size(st), 194);
    sl_st_close(&st);
    (void)state;
}

static void want_names_file_shape_and_dtype(void **state)
{
    sl_st *st = NULL;
    sl_tensor t;
    T_OK(sl_st_open_file(&st, t_golden("tiny-i2v/i2v-96x64x9.safetensors"), &err));
    T_CODE(sl_st_want(st, "noise", SL_F32, 4, (int64_t[]){16, 3, 8, 8}, &t, &err), SL_SHAPE);
    T_SAYS(err.msg, "i2v-96x64x9.safetensors: noise has shape [16, 3, 8, 12], want [16, 3, 8, 8]");
    assert_int_equal(t.rank, 0);
    T_CODE(sl_st_want(st, "noise", SL_F32, 3, (int64_t[]){16, -1, 8}, &t, &err), SL_SHAPE);
    T_SAYS(err.msg, "want [16, any, 8]");
    T_CODE(sl_st_want(st, "noise", SL_BF16, 4, (int64_t[]){16, 3, 8, 12}, &t, &err), SL_SHAPE);
    T_SAYS(err.msg, "noise has dtype F32, want BF16");
    T_CODE(sl_st_want(st, "nose", SL_F32, 4, (int64_t[]){16, 3, 8, 12}, &t, &err), SL_SHAPE);
    T_SAYS(err.msg, "holds no tensor nose");
    T_OK(sl_st_want(st, "noise", SL_F32, 4, (int64_t[]){-1, -1, -1, 12}, &t, &err));
    sl_st_close(&st);
    (void)state;
}

static void scalars_empty_tensors_and_padding_are_fine(void **state)
{
    sl_st *st = NULL;
    size_t n;
    ACCEPTED("{}", 0);
    ACCEPTED("{}       ", 0);
    ACCEPTED("{\"__metadata__\":{\"format\":\"pt\"}}", 0);
    ACCEPTED("{\"a\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[0,0]},\"b\":{\"dtype\":"
             "\"U8\",\"shape\":[3],\"data_"
             "offsets\":[0,3]}}",
             3);
    n = make_image("{\"s\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4);
    put("s.safetensors", image, n);
    T_OK(sl_st_open_file(&st, at("s.safetensors"), &err));
    assert_int_equal(sl_st_at(st, 0)->t.rank, 1);
    assert_int_equal(sl_count(&sl_st_at(st, 0)->t), 1);
    sl_st_close(&st);
    (void)state;
}

static void a_foreign_dtype_is_listed_but_not_viewed(void **state)
{
    sl_st *st = NULL;
    sl_tensor t;
    size_t n = make_image("{\"d\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[0,16]},\"m\":{"
                          "\"dtype\":\"BOOL\",\"shape\":[3],"
                          "\"data_offsets\":[16,19]}}",
                          19);
    put("f.safetensors", image, n);
    T_OK(sl_st_open_file(&st, at("f.safetensors"), &err));
    assert_int_equal(sl_st_size(st), 2);
    assert_string_equal(sl_st_find(st, "d")->dtype, "F64");
    assert_int_equal(sl_st_find(st, "d")->t.rank, 0);
    assert_null(sl_st_find(st, "d")->t.data);
    T_CODE(sl_st_want(st, "d", SL_F32, 1, (int64_t[]){2}, &t, &err), SL_SHAPE);
    T_SAYS(err.msg, "d has dtype F64, want F32");
    sl_st_close(&st);
    (void)state;
}

static void metadata_is_read(void **state)
{
    sl_st *st = NULL;
    sl_st_writer *w = NULL;
    T_OK(sl_stw_open(&w, at("m.safetensors"), &err));
    T_OK(sl_stw_metadata(w, "job", "7", &err));
    T_OK(sl_stw_metadata(w, "step", "12", &err));
    T_CODE(sl_stw_metadata(w, "bad", "\xff\xfe", &err), SL_ARG);
    T_OK(sl_stw_finish(&w, &err));
    T_OK(sl_st_open_file(&st, at("m.safetensors"), &err));
    assert_string_equal(sl_st_metadata(st, "job"), "7");
    assert_string_equal(sl_st_metadata(st, "step"), "12");
    assert_null(sl_st_metadata(st, "none"));
    sl_st_close(&st);
    (void)state;
}

/* ---- refusing ---- */

static void bad_lengths_are_refused(void **state)
{
    unsigned char head[16] = {0};
    T_CODE(sl_st_parse(head, 0, &err), SL_FORMAT);
    T_CODE(sl_st_parse(head, 7, &err), SL_FORMAT);
    T_SAYS(err.msg, "has 7 bytes, want at least 8");
    T_CODE(sl_st_parse(head, 8, &err), SL_FORMAT); /* header length 0 */
    head[7] = 0x80;                                /* 2^63 */
    T_CODE(sl_st_parse(head, 16, &err), SL_FORMAT);
    T_SAYS(err.msg, "header length is 9223372036854775808, want at most 8");
    memset(head, 0xff, 8);
    T_CODE(sl_st_parse(head, 16, &err), SL_FORMAT);
    size_t n = make_image("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}", 16);
    /* every truncation */
    for (size_t cut = 0; cut < n; cut++) T_CODE(sl_st_parse(image, cut, &err), SL_FORMAT);
    T_OK(sl_st_parse(image, n, &err));
    T_CODE(sl_st_parse(image, n + 1, &err), SL_FORMAT);
    T_SAYS(err.msg, "has 17 bytes of data, its tensors take 16");
    (void)state;
}

static void bad_json_is_refused(void **state)
{
    REFUSED("[]", 0, "does not start with '{'");
    REFUSED(" {}", 0, "does not start with '{'");
    REFUSED("{\"a\":}", 0, "memory:1:");
    REFUSED("{} x", 0, "end of file expected");
    REFUSED("{\"\xff\":1}", 0, "decode byte 0xff");
    REFUSED("{\"a\\u0000b\":1}", 0, "not JSON");
    REFUSED("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":"
            "\"U8\",\"shape\":[1],\"data_offsets\":"
            "[1,2]}}",
            2, "duplicate");
    REFUSED("{\"a\":3}", 0, "has no \"dtype\"");
    REFUSED("{\"__metadata__\":3}", 0, "__metadata__ is no object");
    REFUSED("{\"__metadata__\":{\"a\":3}}", 0, "a is no string");
    REFUSED("{\"a\\nb\":3}", 0, "memory: a?b has"); /* the message stays on one line */
    (void)state;
}

static void bad_entries_are_refused(void **state)
{
    REFUSED("{\"a\":{\"dtype\":\"FP32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
            "dtype \"FP32\", want one of F32 BF16 F16 U8 I64 I32");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "no \"shape\"");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4,
            "no integer >= 0");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4,
            "no integer >= 0");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]}}",
            4, "too big");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
            "7 dimensions, want at most 6");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}",
            0, "not what F32 [4611686018427387904, 4] takes");
    REFUSED(
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[0,4611686018427387904,4],\"data_offsets\":[0,0]}}", 0,
        "not what F32");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "no \"data_offsets\"");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4,
            "no \"data_offsets\"");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,\"4\"]}}", 4,
            "offset is no integer");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4,
            "want them in order and within the file's 4 bytes");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4,
            "want them in order");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 4,
            "within the file's 4 bytes");
    REFUSED("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4,
            "a has 4 bytes of data, which is not what F32 [2] takes");
    REFUSED("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1,
            "not what F4 [3] takes");
    (void)state;
}

static void overlaps_and_holes_are_refused(void **state)
{
    REFUSED("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":"
            "\"U8\",\"shape\":[4],\"data_offsets\":"
            "[2,6]}}",
            6, "a and b overlap");
    REFUSED("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":"
            "\"U8\",\"shape\":[4],\"data_offsets\":"
            "[0,4]}}",
            4, "overlap");
    REFUSED("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":"
            "\"U8\",\"shape\":[4],\"data_offsets\":"
            "[6,10]}}",
            10, "2 bytes before b belong to no tensor");
    REFUSED("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}", 6,
            "2 bytes before a belong to no tensor");
    REFUSED("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 6,
            "has 6 bytes of data, its tensors take 4");
    (void)state;
}

static void files_that_are_no_files_are_refused(void **state)
{
    sl_st *st = (sl_st *)1;
    T_CODE(sl_st_open_file(&st, at("none.safetensors"), &err), SL_SYS);
    T_SAYS(err.msg, "none.safetensors: cannot be opened: No such file");
    assert_null(st);
    T_CODE(sl_st_open_file(&st, dir, &err), SL_SYS);
    T_SAYS(err.msg, "is no regular file");
    assert_int_equal(mkfifo(at("fifo"), 0600), 0);
    T_CODE(sl_st_open_file(&st, at("fifo"), &err), SL_SYS);
    put("empty", "", 0);
    T_CODE(sl_st_open_file(&st, at("empty"), &err), SL_FORMAT);
    const size_t n =
        make_image("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4);
    put("cut", image, n / 2); /* within its header */
    T_CODE(sl_st_open_file(&st, at("cut"), &err), SL_FORMAT);
    T_SAYS(err.msg, "(not a safetensors file, or cut short)");
    T_CODE(sl_st_open_dir(&st, dir, "model", &err), SL_SYS);
    T_SAYS(err.msg, "holds neither model.safetensors nor model.safetensors.index.json");
    (void)state;
}

/* ---- the index ---- */

static void save_u8(const char *file, const char *tensor)
{
    unsigned char one = 1;
    sl_tensor t = sl_view1(&one, SL_U8, 1);
    T_OK(sl_st_save(at(file), 1, &tensor, &t, &err));
}

#define INDEX_REFUSED(text, part)                                                                  \
    do {                                                                                           \
        sl_st *st_ = NULL;                                                                         \
        put("m.safetensors.index.json", (text), strlen(text));                                     \
        T_CODE(sl_st_open_dir(&st_, dir, "m", &err), SL_FORMAT);                                   \
        T_SAYS(err.msg, (part));                                                                   \
        assert_null(st_);                                                                          \
    } while (0)

static void a_wrong_index_is_refused(void **state)
{
    sl_st *st = NULL;
    const char *good = "{\"metadata\":{\"total_size\":2},\"weight_map\":{\"a\":\"m-1.safetensors\","
                       "\"b\":\"m-2.safetensors\"}}";
    save_u8("m-1.safetensors", "a");
    save_u8("m-2.safetensors", "b");
    put("m.safetensors.index.json", good, strlen(good));
    T_OK(sl_st_open_dir(&st, dir, "m", &err));
    assert_int_equal(sl_st_size(st), 2);
    sl_st_close(&st);

    INDEX_REFUSED("{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-3.safetensors\"}}",
                  "names m-3.safetensors, which is not there");
    /* a name that no shard has: a warning; the shards' own tensors are all there */
    good = "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\"}}";
    put("m.safetensors.index.json", good, strlen(good));
    T_OK(sl_st_open_dir(&st, dir, "m", &err));
    assert_int_equal(sl_st_size(st), 2);
    sl_st_close(&st);
    /* a single file beside an index is stale */
    save_u8("m.safetensors", "z");
    T_OK(sl_st_open_dir(&st, dir, "m", &err));
    assert_null(sl_st_find(st, "z"));
    sl_st_close(&st);
    /* in the other shard */
    INDEX_REFUSED("{\"weight_map\":{\"b\":\"m-1.safetensors\",\"a\":\"m-2.safetensors\"}}",
                  "holds no");
    INDEX_REFUSED("{\"weight_map\":{\"a\":\"../m-1.safetensors\"}}",
                  "want the plain name of a file");
    INDEX_REFUSED("{\"weight_map\":{\"a\":\"/etc/passwd\"}}",
                  "a lies in \"/etc/passwd\", want the plain name");
    INDEX_REFUSED("{\"weight_map\":{\"a\":\"..\"}}", "want the plain name");
    INDEX_REFUSED("{\"weight_map\":{\"a\":\"\"}}", "want the plain name");
    INDEX_REFUSED("{\"weight_map\":{\"a\":7}}", "a names no file");
    INDEX_REFUSED("{\"weight_map\":[]}", "has no \"weight_map\" object");
    INDEX_REFUSED("{\"weight_map\":{\"a\":\"m-1.safetensors\",\"a\":\"m-1.safetensors\"}}",
                  "duplicate");
    INDEX_REFUSED("{", "m.safetensors.index.json:1:");
    save_u8("m-2.safetensors", "a");
    INDEX_REFUSED(good, "a is also in");
    (void)state;
}

/* ---- writing ---- */

static void what_is_written_is_read_back(void **state)
{
    sl_st_writer *w = NULL;
    sl_st *st = NULL;
    sl_tensor t;
    float x[100], y[6] = {1, 2, 3, 4, 5, 6};
    t_fill(x, 100, 1);
    T_OK(sl_stw_open(&w, at("w.safetensors"), &err));
    T_OK(sl_stw_declare(w, "z", SL_F32, 2, (int64_t[]){2, 3}, &err));
    T_OK(sl_stw_declare(w, "a", SL_F32, 1, (int64_t[]){100}, &err));
    T_OK(sl_stw_declare(w, "none", SL_U8, 2, (int64_t[]){0, 3}, &err));
    /* the end before the start, with an overlap */
    T_OK(sl_stw_write(w, "a", x + 50, 200, 200, &err));
    T_OK(sl_stw_write(w, "z", y, 0, 24, &err));
    T_OK(sl_stw_write(w, "a", x + 10, 40, 200, &err));
    T_OK(sl_stw_write(w, "a", x, 0, 40, &err));
    assert_int_equal(access(at("w.safetensors"), F_OK), -1); /* not there before it is whole */
    T_OK(sl_stw_finish(&w, &err));
    assert_null(w);
    assert_int_equal(files_in_dir(), 1);
    T_OK(sl_st_open_file(&st, at("w.safetensors"), &err));
    T_OK(sl_st_want(st, "a", SL_F32, 1, (int64_t[]){100}, &t, &err));
    assert_memory_equal(t.data, x, sizeof x);
    /* order of declaration */
    assert_ptr_equal((char *)t.data - 24, sl_st_find(st, "z")->t.data);
    assert_int_equal((uintptr_t)sl_st_find(st, "z")->t.data % 8, 0);
    T_OK(sl_st_want(st, "z", SL_F32, 2, (int64_t[]){2, 3}, &t, &err));
    assert_memory_equal(t.data, y, sizeof y);
    sl_st_close(&st);
    (void)state;
}

static void a_file_with_bytes_missing_is_not_made(void **state)
{
    sl_st_writer *w = NULL;
    char c[16] = {0};
    T_OK(sl_stw_open(&w, at("w.safetensors"), &err));
    T_OK(sl_stw_declare(w, "a", SL_U8, 1, (int64_t[]){16}, &err));
    T_OK(sl_stw_write(w, "a", c, 0, 4, &err));
    T_OK(sl_stw_write(w, "a", c, 8, 8, &err));
    T_CODE(sl_stw_finish(&w, &err), SL_FORMAT);
    T_SAYS(err.msg, "w.safetensors: a lacks bytes from 4 of 16 on");
    assert_null(w);
    assert_int_equal(files_in_dir(), 0);
    T_OK(sl_stw_open(&w, at("w.safetensors"), &err));
    sl_stw_abandon(&w);
    sl_stw_abandon(&w);
    assert_int_equal(files_in_dir(), 0);
    (void)state;
}

/* The last tensor may end before what was declared: its file has what was written. */
static void a_tensor_is_cut(void **state)
{
    sl_st_writer *w = NULL;
    sl_st *st = NULL;
    sl_tensor t;
    char a[4] = {1, 2, 3, 4}, c[16] = {5, 6, 7, 8, 9, 10, 11, 12};
    for (int entries = 0; entries <= 2; entries++) {
        T_OK(sl_stw_open(&w, at("w.safetensors"), &err));
        T_OK(sl_stw_declare(w, "a", SL_U8, 1, (int64_t[]){4}, &err));
        T_OK(sl_stw_declare(w, "c", SL_U8, 2, (int64_t[]){4, 4}, &err));
        T_OK(sl_stw_write(w, "a", a, 0, 4, &err));
        T_OK(sl_stw_write(w, "c", c, 0, 8, &err));
        T_CODE(sl_stw_cut(w, "a", 1, &err), SL_ARG);
        T_CODE(sl_stw_cut(w, "c", 5, &err), SL_ARG);
        T_SAYS(err.msg, "c is to be cut to 5 entries of 4");
        T_OK(sl_stw_cut(w, "c", entries, &err));
        T_OK(sl_stw_finish(&w, &err));
        T_OK(sl_st_open_file(&st, at("w.safetensors"), &err));
        T_OK(sl_st_want(st, "c", SL_U8, 2, (int64_t[]){entries, 4}, &t, &err));
        assert_memory_equal(t.data, c, (size_t)entries * 4);
        T_OK(sl_st_want(st, "a", SL_U8, 1, (int64_t[]){4}, &t, &err));
        assert_memory_equal(t.data, a, 4);
        sl_st_close(&st);
    }
    unlink(at("w.safetensors"));
    (void)state;
}

static void wrong_writes_are_refused(void **state)
{
    sl_st_writer *w = NULL;
    char c[16] = {0};
    T_OK(sl_stw_open(&w, at("w.safetensors"), &err));
    T_OK(sl_stw_declare(w, "a", SL_U8, 1, (int64_t[]){16}, &err));
    T_CODE(sl_stw_declare(w, "a", SL_U8, 1, (int64_t[]){16}, &err), SL_ARG);
    T_SAYS(err.msg, "a is declared twice");
    T_CODE(sl_stw_declare(w, "__metadata__", SL_U8, 1, (int64_t[]){16}, &err), SL_ARG);
    T_CODE(sl_stw_declare(w, "\xc3(", SL_U8, 1, (int64_t[]){16}, &err), SL_ARG);
    T_CODE(sl_stw_declare(w, "b", SL_F32, 2, (int64_t[]){INT64_MAX, 2}, &err), SL_SHAPE);
    T_CODE(sl_stw_declare(w, "b", SL_F32, 1, (int64_t[]){-1}, &err), SL_SHAPE);
    T_CODE(sl_stw_write(w, "b", c, 0, 1, &err), SL_ARG);
    T_SAYS(err.msg, "b was not declared");
    T_CODE(sl_stw_write(w, "a", c, 8, 9, &err), SL_ARG);
    T_SAYS(err.msg, "bytes 8 to 17 given, want at most 16");
    T_CODE(sl_stw_write(w, "a", c, SIZE_MAX, 2, &err), SL_ARG);
    T_OK(sl_stw_write(w, "a", c, 0, 16, &err));
    T_CODE(sl_stw_declare(w, "b", SL_U8, 1, (int64_t[]){16}, &err), SL_ARG);
    T_OK(sl_stw_finish(&w, &err));
    (void)state;
}

static void a_full_disk_leaves_nothing(void **state)
{
    static char big[1 << 20];
    struct rlimit old, small;
    sl_tensor t = sl_view1(big, SL_U8, sizeof big);
    const char *name = "a";
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 1 << 16;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    sl_code rc = sl_st_save(at("w.safetensors"), 1, &name, &t, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(rc, SL_SYS);
    T_SAYS(err.msg, "w.safetensors: cannot be written: File too large");
    assert_int_equal(files_in_dir(), 0);
    T_CODE(sl_st_save(at("no/such/w.safetensors"), 1, &name, &t, &err), SL_SYS);
    T_SAYS(err.msg, "no/such/w.safetensors: cannot be written: No such file");
    (void)state;
}

static void an_old_file_stays_until_the_new_one_is_whole(void **state)
{
    sl_st_writer *w = NULL;
    sl_st *st = NULL;
    save_u8("w.safetensors", "old");
    T_OK(sl_stw_open(&w, at("w.safetensors"), &err));
    T_OK(sl_stw_declare(w, "new", SL_U8, 1, (int64_t[]){1}, &err));
    T_OK(sl_stw_write(w, "new", "x", 0, 1, &err));
    T_OK(sl_st_open_file(&st, at("w.safetensors"), &err));
    assert_non_null(sl_st_find(st, "old"));
    T_OK(sl_stw_finish(&w, &err));
    /* an open set keeps what it mapped */
    assert_int_equal(*(char *)sl_st_find(st, "old")->t.data, 1);
    sl_st_close(&st);
    T_OK(sl_st_open_file(&st, at("w.safetensors"), &err));
    assert_non_null(sl_st_find(st, "new"));
    sl_st_close(&st);
    (void)state;
}

/* The design case: 14 shards of 5 GB. Files with holes have that size and no blocks;
 * opening must read headers only. */
static void large_shards_are_mapped_not_read(void **state)
{
    sl_st *st = NULL;
    char index[2048] = "{\"weight_map\":{", header[256], file[64];
    const int64_t gb5 = 5000000000;
    for (int i = 0; i < 14; i++) {
        snprintf(file, sizeof file, "m-%05d-of-00014.safetensors", i + 1);
        snprintf(header, sizeof header,
                 "{\"w.%d\":{\"dtype\":\"F32\",\"shape\":[%lld],\"data_offsets\":[0,%lld]}}", i,
                 (long long)gb5 / 4, (long long)gb5);
        put(file, image, make_image(header, 0));
        assert_int_equal(truncate(at(file), (off_t)(8 + strlen(header)) + gb5), 0);
        snprintf(index + strlen(index), sizeof index - strlen(index), "%s\"w.%d\":\"%s\"",
                 i ? "," : "", i, file);
    }
    strcat(index, "}}");
    put("m.safetensors.index.json", index, strlen(index));
    T_OK(sl_st_open_dir(&st, dir, "m", &err));
    assert_int_equal(sl_st_shards(st), 14);
    const sl_st_entry *e = sl_st_find(st, "w.13");
    assert_int_equal(sl_bytes(&e->t), gb5);
    assert_int_equal(((char *)e->t.data)[gb5 - 1], 0);
    sl_st_close(&st);
    (void)state;
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_golden_file_is_read),
        T(a_sharded_folder_is_read),
        T(want_names_file_shape_and_dtype),
        T(scalars_empty_tensors_and_padding_are_fine),
        T(a_foreign_dtype_is_listed_but_not_viewed),
        T(metadata_is_read),
        T(bad_lengths_are_refused),
        T(bad_json_is_refused),
        T(bad_entries_are_refused),
        T(overlaps_and_holes_are_refused),
        T(files_that_are_no_files_are_refused),
        T(a_wrong_index_is_refused),
        T(what_is_written_is_read_back),
        T(a_file_with_bytes_missing_is_not_made),
        T(a_tensor_is_cut),
        T(wrong_writes_are_refused),
        T(a_full_disk_leaves_nothing),
        T(an_old_file_stays_until_the_new_one_is_whole),
        T(large_shards_are_mapped_not_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
