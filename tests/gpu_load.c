/* gpu_load - weights onto the device: dtypes and odd places bit for bit, files cut short,
 * the small checkpoint tensor by tensor, random weights.
 *
 * gpu_load --bench DIR: loads the checkpoint DIR (`sluice pack --random` writes one of
 * any size) network by network, and prints GB/s from the page cache and from the disk,
 * each beside the rate at which as many threads read the same files into host memory.
 *
 * limit: 240 s */
#include "tests/t.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

#include "common/model.h"
#include "common/job.h"
#include "common/safetensors.h"
#include "common/trace.h"
#include "graphs/clip.h"
#include "graphs/umt5.h"
#include "graphs/vae.h"
#include "graphs/wan_dit.h"
#include "graphs/weights.h"
#include "kernels/plugin.h"

static sl_err err;
static const sl_plugin *gpu;
static sl_ctx ctx, cpu;
static char dir[256];
static int wrong; /* findings of the running test */

#define WRONG(...) (fprintf(stderr, "    wrong: " __VA_ARGS__), fputc('\n', stderr), wrong++)

static int set_up(void **state)
{
    (void)state;
    memset(&err, 0, sizeof err);
    wrong = 0;
    T_OK(gpu->use(0, &err));
    T_OK(sl_ctx_open(&ctx, gpu->ops, 0, &err));
    T_OK(sl_ctx_open(&cpu, &sl_ops_cpu, 0, &err));
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    sl_ctx_close(&ctx);
    sl_ctx_close(&cpu);
    t_rmdir(dir);
    return 0;
}

static void *claim(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p) fail_msg("no memory for %zu bytes", bytes);
    return p;
}

static void no_context_error(const char *what)
{
    sl_err e;
    if (sl_ctx_error(&ctx, &e)) WRONG("%s: %s", what, e.msg);
}

/* Host copy of n bytes of device memory. */
static void *fetch(const void *device, size_t n)
{
    void *host = claim(n);
    sl_tensor t = sl_view1((void *)(uintptr_t)device, SL_U8, (int64_t)n);
    memset(host, 0xa5, n);
    if (n) sl_download(&ctx, host, &t);
    no_context_error("download");
    return host;
}

/* ---- pieces of a file ---- */

typedef struct {
    sl_load_piece piece;
    size_t at; /* place of piece.dst in the device memory */
} part;

static int file_fd;
static unsigned char *file_bytes;

/* A file of n bytes, numbers of all kinds in any dtype. */
static void make_file(size_t n)
{
    static const uint32_t EDGES[] = {0x7fc00000, 0xffc00001, 0x7f800001, 0x7f800000, 0xff800000,
                                     0x00000001, 0x80000000, 0x007fffff, 0x7f7fffff, 0x3f808000,
                                     0x3f818000, 0x3f807fff, 0x3f808001, 0xbf808000, 0x00008000,
                                     0x00018000, 0x7fffffff, 0x7c017c00, 0x00010001, 0x83ff03ff};
    char path[300];
    uint64_t seed = 17;
    snprintf(path, sizeof path, "%s/numbers", dir);
    file_bytes = claim(n);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        file_bytes[i] = (unsigned char)(seed >> 56);
    }
    for (size_t i = 0; i + 4 <= n && i < 40 * sizeof EDGES; i += 4)
        memcpy(file_bytes + i, &EDGES[i / 4 % 20], 4);
    file_fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(file_fd >= 0);
    for (size_t at = 0; at < n;) {
        ssize_t k = pwrite(file_fd, file_bytes + at, n - at, (off_t)at);
        assert_true(k > 0);
        at += (size_t)k;
    }
}

static void drop_file(void)
{
    close(file_fd);
    free(file_bytes);
}

/* Load the parts, which lie apart from each other in `bytes` of device memory, and hold
 * every byte there to the host's rounding; bytes between them must stay as they were. */
static void load_and_compare(part *parts, int n, size_t bytes, int threads, const char *what)
{
    sl_load_piece *pieces = claim((size_t)n * sizeof *pieces);
    sl_load_figures figures;
    uint64_t read = 0, made = 0;
    char *base = sl_device_alloc(&ctx, bytes ? bytes : 1);
    unsigned char *want = claim(bytes);
    memset(want, 0x5a, bytes);
    sl_tensor whole = sl_view1(base, SL_U8, (int64_t)bytes);
    if (bytes) sl_upload(&ctx, &whole, want);
    sl_sync(&ctx);
    no_context_error("preparing");
    for (int i = 0; i < n; i++) {
        sl_load_piece *p = &pieces[i];
        *p = parts[i].piece;
        p->dst = base + parts[i].at;
        float *x = claim((size_t)p->count * 4);
        T_OK(sl_to_floats(x, file_bytes + p->offset, p->from, p->count, &err));
        if (p->from == p->to)
            memcpy(want + parts[i].at, file_bytes + p->offset,
                   (size_t)p->count * sl_dtype_size(p->to));
        else T_OK(sl_from_floats(want + parts[i].at, p->to, x, p->count, &err));
        free(x);
        read += (uint64_t)p->count * sl_dtype_size(p->from);
        made += (uint64_t)p->count * sl_dtype_size(p->to);
    }
    sl_err why = {0};
    if (gpu->load(pieces, n, threads, NULL, &figures, &why))
        WRONG("%s, %d threads: %s", what, threads, why.msg);
    else {
        unsigned char *found = fetch(base, bytes);
        int shown = 0;
        for (int i = 0; i < n && shown < 5; i++) {
            const sl_load_piece *p = &pieces[i];
            const size_t size = sl_dtype_size(p->to);
            for (int64_t k = 0; k < p->count; k++) {
                const size_t at = parts[i].at + (size_t)k * size;
                uint32_t f = 0, w = 0;
                memcpy(&f, found + at, size);
                memcpy(&w, want + at, size);
                if (f == w) continue;
                WRONG("%s, %d threads: piece %d of %d (%s -> %s, %lld elements at byte %lld, "
                      "device byte %zu): element %lld is "
                      "0x%x, want 0x%x",
                      what, threads, i, n, sl_dtype_tag(p->from), sl_dtype_tag(p->to),
                      (long long)p->count, (long long)p->offset, parts[i].at, (long long)k, f, w);
                shown++;
                break;
            }
        }
        for (size_t i = 0; i < bytes && !shown; i++)
            if (found[i] != want[i])
                WRONG("%s: device byte %zu, of no piece, is 0x%x, want 0x%x", what, i, found[i],
                      want[i]),
                    shown++;
        if (figures.bytes_made != made || figures.bytes_read < read || !(figures.seconds > 0))
            WRONG("%s: figures say %llu bytes read, %llu made, %g s; want at least %llu, %llu, "
                  "more than 0",
                  what, (unsigned long long)figures.bytes_read,
                  (unsigned long long)figures.bytes_made, figures.seconds, (unsigned long long)read,
                  (unsigned long long)made);
        free(found);
    }
    sl_device_free(&ctx, base);
    free(want);
    free(pieces);
}

static const struct {
    sl_dtype from, to;
} PAIRS[] = {{SL_F32, SL_BF16}, {SL_F16, SL_BF16}, {SL_BF16, SL_BF16},
             {SL_F32, SL_F32},  {SL_BF16, SL_F32}, {SL_F16, SL_F32}};

/* Each pair of dtypes by itself, and all of them in one call; file offsets of every
 * remainder, counts around the grain and the chunk. */
static void every_dtype_is_rounded_as_on_the_host(void **state)
{
    static const int64_t COUNTS[] = {0,   1,    3,       63,      64,           65,
                                     800, 4097, 2097152, 2097153, 4194304 + 63, 5000001};
    enum { N = sizeof COUNTS / sizeof *COUNTS };
    make_file((size_t)24 << 20);
    part all[6 * N];
    size_t whole = 0;
    int count = 0;
    for (int d = 0; d < 6; d++) {
        part parts[N];
        size_t bytes = 0;
        for (int i = 0; i < N; i++) {
            sl_load_piece p = {.fd = file_fd,
                               .offset = i < 8 ? i : 3 * i + d,
                               .count = COUNTS[i],
                               .from = PAIRS[d].from,
                               .to = PAIRS[d].to};
            if (i == 6 || i == 10) p.offset = 4096; /* aligned, too */
            parts[i] = (part){p, bytes};
            all[count++] = (part){p, whole};
            bytes = (bytes + (size_t)p.count * sl_dtype_size(p.to) + 3) / 4 * 4 + (i % 3) * 4;
            whole = (whole + (size_t)p.count * sl_dtype_size(p.to) + 255) / 256 * 256;
        }
        char what[64];
        snprintf(what, sizeof what, "%s -> %s", sl_dtype_tag(PAIRS[d].from),
                 sl_dtype_tag(PAIRS[d].to));
        load_and_compare(parts, N, bytes, 0, what);
        load_and_compare(parts, N, bytes, 1, what);
    }
    load_and_compare(all, count, whole, 0, "all dtypes");
    load_and_compare(all, count, whole, 40, "all dtypes");
    drop_file();
    assert_int_equal(wrong, 0);
    (void)state;
}

/* In any order, with holes between them, some over each other. */
static void many_small_pieces(void **state)
{
    enum { N = 20000 };
    const size_t file = (size_t)6 << 20;
    part *parts = claim(N * sizeof *parts);
    size_t bytes = 0;
    uint64_t seed = 5;
    make_file(file);
    for (int i = 0; i < N; i++) {
        int d = i % 6;
        int64_t n = 1 + (int64_t)((t_rand(&seed) + 1) * 100),
                at = (int64_t)((t_rand(&seed) + 1) * 0.5 * (double)(file - 1000));
        parts[i] = (part){
            {.fd = file_fd, .offset = at, .count = n, .from = PAIRS[d].from, .to = PAIRS[d].to},
            bytes};
        bytes = (bytes + (size_t)n * sl_dtype_size(PAIRS[d].to) + 3) / 4 * 4;
    }
    load_and_compare(parts, N, bytes, 0, "small pieces");
    load_and_compare(parts, N, bytes, 3, "small pieces");
    load_and_compare(parts, 0, 0, 0, "no pieces");
    free(parts);
    drop_file();
    assert_int_equal(wrong, 0);
    (void)state;
}

/* One message, with the file's name; and the next load works. */
static void a_file_cut_short_is_named(void **state)
{
    const int64_t n = (int64_t)40 << 20;
    make_file((size_t)n);
    void *dst = sl_device_alloc(&ctx, (size_t)n);
    sl_load_piece p = {.fd = file_fd, .count = n / 4, .from = SL_F32, .to = SL_BF16, .dst = dst};
    assert_int_equal(ftruncate(file_fd, 20000001), 0);
    for (int threads = 0; threads < 4; threads += 3) {
        sl_err why = {0};
        sl_code rc = gpu->load(&p, 1, threads, NULL, NULL, &why);
        if (rc != SL_FORMAT || !strstr(why.msg, "/numbers ends at byte 20000001, want bytes ") ||
            !strstr(why.msg, "cut short"))
            WRONG(
                "a file cut short: %s (%s), want SL_FORMAT and \"/numbers ends at byte 20000001\"",
                why.msg, sl_code_name(rc));
    }
    sl_device_free(&ctx, dst);
    part good = {{.fd = file_fd, .offset = 7, .count = 4000000, .from = SL_F32, .to = SL_BF16}, 0};
    load_and_compare(&good, 1, 8000000, 0, "after a failure");
    drop_file();
    assert_int_equal(wrong, 0);
    (void)state;
}

static void bad_pieces_are_refused(void **state)
{
    make_file(4096);
    char *dst = sl_device_alloc(&ctx, 4096);
    const volatile int now = 1;
    const struct {
        sl_load_piece p;
        const volatile int *cancel;
        sl_code code;
        const char *says;
    } bad[] = {
        {{.fd = file_fd, .count = 4, .from = SL_I64, .to = SL_F32, .dst = dst},
         NULL,
         SL_ARG,
         "load: piece 0 is I64 and to be F32"},
        {{.fd = file_fd, .count = 4, .from = SL_F32, .to = SL_F16, .dst = dst},
         NULL,
         SL_ARG,
         "want F32, BF16 or F16 to be F32 or BF16"},
        {{.fd = file_fd, .count = -1, .from = SL_F32, .to = SL_F32, .dst = dst},
         NULL,
         SL_ARG,
         "has -1 elements"},
        {{.fd = file_fd,
          .offset = 8,
          .count = INT64_MAX / 4,
          .from = SL_F32,
          .to = SL_F32,
          .dst = dst},
         NULL,
         SL_ARG,
         "within 2^63 bytes"},
        {{.fd = file_fd, .count = 4, .from = SL_F32, .to = SL_F32, .dst = dst + 2},
         NULL,
         SL_ARG,
         "aligned for F32"},
        {{.fd = file_fd, .count = 4, .from = SL_F32, .to = SL_F32, .dst = NULL},
         NULL,
         SL_ARG,
         "goes to address"},
        {{.fd = file_fd, .offset = 4090, .count = 4, .from = SL_F32, .to = SL_F32, .dst = dst},
         NULL,
         SL_FORMAT,
         "ends at byte 4096"},
        {{.fd = -1, .count = 4, .from = SL_F32, .to = SL_F32, .dst = dst},
         NULL,
         SL_SYS,
         "cannot be read: Bad file descriptor"},
        {{.fd = file_fd, .count = 4, .from = SL_F32, .to = SL_F32, .dst = dst},
         &now,
         SL_CANCELLED,
         "cancelled"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        sl_err why = {0};
        sl_code rc = gpu->load(&bad[i].p, 1, 0, bad[i].cancel, NULL, &why);
        if (rc != bad[i].code || !strstr(why.msg, bad[i].says))
            WRONG("case %zu: %s \"%s\", want %s with \"%s\"", i, sl_code_name(rc), why.msg,
                  sl_code_name(bad[i].code), bad[i].says);
    }
    sl_device_free(&ctx, dst);
    drop_file();
    assert_int_equal(wrong, 0);
    (void)state;
}

/* ---- the loader of the networks ---- */

#define MODEL "tests/golden/tiny-i2v/model"
static const char *const COMPONENTS[][2] = {{"text_encoder", "model"},
                                            {"image_encoder", "model"},
                                            {"transformer", "diffusion_pytorch_model"},
                                            {"transformer_2", "diffusion_pytorch_model"},
                                            {"vae", "diffusion_pytorch_model"}};

static sl_weight_kind kind_of(const sl_tensor *t, const char *name, int component)
{
    const bool vae = component == 4;
    /* CLIP: float32 on a device too */
    if (component == 1) return t->rank == 1 ? SL_W_FLOAT : SL_W_MATRIX_F32;
    if (vae && strstr(name, "gamma")) return SL_W_FLOAT;
    if (vae && t->rank >= 4) return SL_W_CONV;
    if (strstr(name, "table") || strstr(name, "time_embedder")) return SL_W_FLOAT;
    return t->rank == 1 ? SL_W_VECTOR : SL_W_MATRIX;
}

static void compare(const char *name, const sl_tensor *t, const void *want)
{
    const size_t size = sl_dtype_size(t->dtype);
    unsigned char *found = fetch(t->data, sl_bytes(t));
    for (int64_t i = 0; i < sl_count(t); i++) {
        uint32_t f = 0, w = 0;
        memcpy(&f, found + (size_t)i * size, size);
        memcpy(&w, (const char *)want + (size_t)i * size, size);
        if (f == w) continue;
        WRONG("%s (%s): element %lld is 0x%x, want 0x%x", name, sl_dtype_tag(t->dtype),
              (long long)i, f, w);
        break;
    }
    free(found);
}

/* What pack_conv makes of the same numbers by itself. */
static void compare_conv(const char *name, const sl_tensor *t, const float *x)
{
    const size_t bytes = gpu->ops->packed_conv_bytes(&ctx, t->shape);
    char *packed = sl_device_alloc(&ctx, bytes);
    gpu->ops->pack_conv(&ctx, packed, x, t->shape);
    sl_sync(&ctx);
    no_context_error(name);
    unsigned char *want = fetch(packed, bytes), *found = fetch(t->data, bytes);
    for (size_t i = 0; i < bytes; i++)
        if (found[i] != want[i]) {
            WRONG("%s: byte %zu of %zu packed ones is 0x%x, want 0x%x", name, i, bytes, found[i],
                  want[i]);
            break;
        }
    free(want);
    free(found);
    sl_device_free(&ctx, packed);
}

static void each_tensor_of_the_small_model(void **state)
{
    for (int c = 0; c < 5; c++) {
        char path[300];
        sl_st *st = NULL;
        sl_loader *l = NULL, *planned = NULL;
        uint64_t read;
        double seconds;
        if (c == 3) continue;
        snprintf(path, sizeof path, "%s/%s", MODEL, COMPONENTS[c][0]);
        T_OK(sl_st_open_dir(&st, path, COMPONENTS[c][1], &err));
        const int n = sl_st_size(st);
        const sl_ops plan_ops = sl_ops_plan_of(gpu->ops);
        sl_ctx plan;
        sl_tensor *w = calloc((size_t)n, sizeof *w), none;
        assert_non_null(w);
        T_OK(sl_ctx_open(&plan, &plan_ops, 0, &err));
        T_OK(sl_loader_plan(&planned, &plan, COMPONENTS[c][0], &err));
        T_OK(sl_loader_file(&l, &ctx, path, COMPONENTS[c][1], COMPONENTS[c][0], &err));
        for (int i = 0; i < n; i++) {
            const sl_st_entry *e = sl_st_at(st, i);
            if (e->t.dtype != SL_F32 && e->t.dtype != SL_BF16 && e->t.dtype != SL_F16) continue;
            sl_weight_kind kind = kind_of(&e->t, e->name, c);
            sl_weight(l, &w[i], kind, e->t.rank, e->t.shape, "%s", e->name);
            sl_weight(planned, &none, kind, e->t.rank, e->t.shape, "%s", e->name);
        }
        if (sl_loader_finish(l, &err)) WRONG("%s: %s", COMPONENTS[c][0], err.msg);
        T_OK(sl_loader_finish(planned, &err));
        if (sl_loader_bytes(l) != sl_loader_bytes(planned))
            WRONG("%s: takes %zu bytes, planned were %zu", COMPONENTS[c][0], sl_loader_bytes(l),
                  sl_loader_bytes(planned));
        sl_loader_figures(l, &read, &seconds);
        printf("    %s: %d tensors, %.2f MB on the device, %.2f MB read, %.1f ms\n",
               COMPONENTS[c][0], n, (double)sl_loader_bytes(l) * 1e-6, (double)read * 1e-6,
               seconds * 1e3);
        T_OK(sl_loader_check_finite(l, &err));
        for (int i = 0; i < n && wrong < 20; i++) {
            const sl_st_entry *e = sl_st_at(st, i);
            const int64_t count = sl_count(&e->t);
            if (!w[i].data) {
                if (w[i].rank && count) WRONG("%s has no data", e->name);
                continue;
            }
            float *x = claim((size_t)count * 4);
            void *want = claim((size_t)count * 4);
            T_OK(sl_to_floats(x, e->t.data, e->t.dtype, count, &err));
            if (kind_of(&e->t, e->name, c) == SL_W_CONV) compare_conv(e->name, &w[i], x);
            else {
                T_OK(sl_from_floats(want, w[i].dtype, x, count, &err));
                compare(e->name, &w[i], want);
            }
            free(want);
            free(x);
        }
        free(w);
        sl_loader_close(&l);
        sl_loader_close(&planned);
        sl_ctx_close(&plan);
        sl_st_close(&st);
    }
    assert_int_equal(wrong, 0);
    (void)state;
}

static void random_weights_are_the_cpus_rounded(void **state)
{
    static const struct {
        const char *name;
        sl_weight_kind kind;
        int rank;
        int64_t shape[4];
    } asked[] = {
        {"a.weight", SL_W_MATRIX, 2, {1537, 2049}},      {"a.bias", SL_W_VECTOR, 1, {1537}},
        {"norm1.weight", SL_W_VECTOR, 1, {5120}},        {"table", SL_W_FLOAT, 3, {1, 6, 333}},
        {"time.weight", SL_W_FLOAT, 2, {511, 1023}},     {"one", SL_W_VECTOR, 1, {1}},
        {"clip.weight", SL_W_MATRIX_F32, 2, {1281, 588}}};
    enum { N = 7 };
    sl_loader *l = NULL;
    sl_tensor w[N];
    T_OK(sl_loader_random(&l, &ctx, 42, "test", &err));
    for (int i = 0; i < N; i++)
        sl_weight(l, &w[i], asked[i].kind, asked[i].rank, asked[i].shape, "%s", asked[i].name);
    T_OK(sl_loader_finish(l, &err));
    if (!gpu->random) WRONG("the plug-in's table has no random");
    for (int i = 0; i < N; i++) {
        void *want = claim(sl_bytes(&w[i]));
        sl_weight_random(want, w[i].dtype, 42, asked[i].name, &w[i], 0, sl_count(&w[i]));
        compare(asked[i].name, &w[i], want);
        free(want);
    }
    sl_loader_close(&l);
    assert_int_equal(wrong, 0);
    (void)state;
}

/* ---- measuring ---- */

#define READ_BYTES ((size_t)8 << 20)
#define READ_THREADS 16

typedef struct {
    const sl_st *st;
    int shards, *fds;
    int64_t *sizes, next; /* chunks of all files in turn */
    bool failed;
} reading;

static void *read_some(void *user)
{
    reading *r = user;
    char *buf = NULL;
    if (posix_memalign((void **)&buf, 4096, READ_BYTES)) r->failed = true;
    while (buf && !r->failed) {
        int64_t at = __atomic_fetch_add(&r->next, (int64_t)READ_BYTES, __ATOMIC_RELAXED);
        int s = 0;
        while (s < r->shards && at >= (r->sizes[s] + (int64_t)READ_BYTES - 1) /
                                          (int64_t)READ_BYTES * (int64_t)READ_BYTES)
            at -=
                (r->sizes[s] + (int64_t)READ_BYTES - 1) / (int64_t)READ_BYTES * (int64_t)READ_BYTES,
                s++;
        if (s == r->shards) break;
        posix_fadvise(r->fds[s], at, (off_t)READ_BYTES, POSIX_FADV_WILLNEED);
        for (size_t got = 0; got < READ_BYTES;) {
            ssize_t n = pread(r->fds[s], buf + got, READ_BYTES - got, at + (int64_t)got);
            if (n < 0 && errno != EINTR) r->failed = true;
            if (n == 0 || r->failed) break;
            if (n > 0) got += (size_t)n;
        }
    }
    free(buf);
    return NULL;
}

/* Seconds to read all files of the set into host memory. */
static double read_all(const sl_st *st)
{
    reading r = {.st = st, .shards = sl_st_shards(st)};
    pthread_t threads[READ_THREADS];
    int n = 0;
    r.fds = claim((size_t)r.shards * sizeof *r.fds);
    r.sizes = claim((size_t)r.shards * sizeof *r.sizes);
    for (int i = 0; i < r.shards; i++) {
        struct stat info;
        r.fds[i] = open(sl_st_path(st, i), O_RDONLY | O_CLOEXEC);
        r.sizes[i] = r.fds[i] >= 0 && !fstat(r.fds[i], &info) ? info.st_size : 0;
    }
    int64_t t0 = sl_now_ns();
    while (n < READ_THREADS && !pthread_create(&threads[n], NULL, read_some, &r)) n++;
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    double s = (double)(sl_now_ns() - t0) * 1e-9;
    for (int i = 0; i < r.shards; i++) close(r.fds[i]);
    free(r.fds);
    free(r.sizes);
    return r.failed ? NAN : s;
}

/* Out of the page cache: written back, then dropped. */
static void forget(const sl_st *st)
{
    sync();
    for (int i = 0; i < sl_st_shards(st); i++) {
        int fd = open(sl_st_path(st, i), O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
    FILE *f = fopen("/proc/sys/vm/drop_caches", "w");
    if (!f) return;
    fputs("1\n", f);
    fclose(f);
}

/* One network through its loader, as a stage does it. */
static bool load_once(const sl_model *m, int c, const char *path, double *seconds, uint64_t *read,
                      size_t *bytes)
{
    sl_loader *l = NULL;
    sl_err why = {0};
    sl_dit *dit = NULL;
    sl_umt5 *umt5 = NULL;
    sl_clip *clip = NULL;
    sl_vae_encoder *encoder = NULL;
    sl_vae_decoder *decoder = NULL;
    int64_t t0 = sl_now_ns();
    sl_code rc = sl_loader_file(&l, &ctx, path, COMPONENTS[c][1], COMPONENTS[c][0], &why);
    if (!rc) {
        if (c == 0) umt5 = sl_umt5_new(&m->umt5, l);
        if (c == 1) clip = sl_clip_new(&m->clip, l);
        if (c == 2 || c == 3) dit = sl_dit_new(&m->dit[c - 2], l);
        if (c == 4)
            encoder = sl_vae_encoder_new(&m->vae, l), decoder = sl_vae_decoder_new(&m->vae, l);
        rc = sl_loader_finish(l, &why);
    }
    if (rc) printf("  %s: %s\n", COMPONENTS[c][0], why.msg);
    else {
        double in_finish;
        sl_loader_figures(l, read, &in_finish);
        *bytes = sl_loader_bytes(l);
        *seconds = (double)(sl_now_ns() - t0) * 1e-9;
    }
    sl_umt5_free(&umt5);
    sl_clip_free(&clip);
    sl_dit_free(&dit);
    sl_vae_encoder_free(&encoder);
    sl_vae_decoder_free(&decoder);
    sl_loader_close(&l);
    return !rc;
}

/* The plug-in's reader alone, all float tensors as BF16 into one allocation; GB/s of
 * file. */
static double raw_rate(const sl_st *st, int threads)
{
    const int n = sl_st_size(st);
    sl_load_piece *pieces = claim((size_t)n * sizeof *pieces);
    int *fds = claim((size_t)sl_st_shards(st) * sizeof *fds), count = 0;
    size_t *at = claim((size_t)n * sizeof *at), bytes = 0;
    sl_err why = {0};
    sl_load_figures f = {0};
    for (int i = 0; i < sl_st_shards(st); i++)
        fds[i] = open(sl_st_path(st, i), O_RDONLY | O_CLOEXEC);
    for (int i = 0; i < n; i++) {
        const sl_st_entry *e = sl_st_at(st, i);
        if (!e->t.rank || (e->t.dtype != SL_F32 && e->t.dtype != SL_BF16 && e->t.dtype != SL_F16))
            continue;
        pieces[count++] = (sl_load_piece){.fd = fds[e->shard],
                                          .offset = sl_st_offset(st, e),
                                          .count = sl_count(&e->t),
                                          .from = e->t.dtype,
                                          .to = SL_BF16};
        at[count - 1] = bytes;
        bytes += ((size_t)sl_count(&e->t) * 2 + 255) / 256 * 256;
    }
    char *base = sl_device_alloc(&ctx, bytes);
    for (int i = 0; i < count; i++) pieces[i].dst = base ? base + at[i] : NULL;
    if (!base || gpu->load(pieces, count, threads, NULL, &f, &why))
        printf("    %d readers: %s\n", threads, base ? why.msg : "no device memory");
    sl_ctx_error(&ctx, NULL);
    sl_device_free(&ctx, base);
    for (int i = 0; i < sl_st_shards(st); i++) close(fds[i]);
    free(fds);
    free(at);
    free(pieces);
    return f.seconds > 0 ? (double)f.bytes_read * 1e-9 / f.seconds : NAN;
}

/* `only`: one component, or NULL. */
static int bench(const char *model, const char *only)
{
    sl_model m;
    char name[64] = "?";
    int sm = 0, found = 0;
    if (gpu->use(0, &err) || sl_ctx_open(&ctx, gpu->ops, 0, &err) ||
        sl_model_open(&m, model, &err)) {
        fprintf(stderr, "gpu_load: %s\n", err.msg);
        return 1;
    }
    gpu->describe(0, name, sizeof name, &sm, NULL);
    printf("loading on %s, %ld cores; GB/s are 10^9 bytes of file a second\n", name,
           sysconf(_SC_NPROCESSORS_ONLN));
    for (int c = 0; c < 5; c++) {
        char path[SL_PATH];
        sl_st *st = NULL;
        double s = 0;
        uint64_t read = 0;
        size_t bytes = 0;
        if (only && strcmp(only, COMPONENTS[c][0])) continue;
        if (sl_path_join(path, model, COMPONENTS[c][0], &err) ||
            sl_st_open_dir(&st, path, COMPONENTS[c][1], &err))
            continue;
        found++;
        double gb = 0;
        for (int i = 0; i < sl_st_size(st); i++) gb += (double)sl_bytes(&sl_st_at(st, i)->t) * 1e-9;
        forget(st);
        double disk = read_all(st), cached = read_all(st), again = read_all(st);
        if (again < cached) cached = again;
        printf("%s: %.2f GB in files; %d threads into host memory: disk %.2f GB/s, page cache %.2f "
               "GB/s\n",
               COMPONENTS[c][0], gb, READ_THREADS, gb / disk, gb / cached);
        for (int k = 0; k < 3; k++)
            if (load_once(&m, c, path, &s, &read, &bytes))
                printf("  page cache: %.2f GB -> %.2f GB on the device in %.3f s, %.2f GB/s, %.0f "
                       "%% of host reads\n",
                       (double)read * 1e-9, (double)bytes * 1e-9, s, (double)read * 1e-9 / s,
                       100 * (double)read * 1e-9 / s / (gb / cached));
        static const int THREADS[] = {1, 2, 4, 8, 16, 32};
        printf("  the reader alone, page cache, by threads:");
        for (int k = 0; k < 6; k++) printf("  %d: %.2f", THREADS[k], raw_rate(st, THREADS[k]));
        printf(" GB/s\n");
        forget(st);
        if (load_once(&m, c, path, &s, &read, &bytes))
            printf("  disk: %.3f s, %.2f GB/s, %.0f %% of host reads\n", s, (double)read * 1e-9 / s,
                   100 * (double)read * 1e-9 / s / (gb / disk));
        if (getenv("SLUICE_BENCH_DIRECT")) {
            forget(st);
            setenv("SLUICE_LOAD_DIRECT", "1", 1);
            printf("  disk, past the page cache: %.2f GB/s\n", raw_rate(st, 0));
            unsetenv("SLUICE_LOAD_DIRECT");
        }
        fflush(stdout);
        sl_st_close(&st);
    }
    sl_ctx_close(&ctx);
    if (!found) fprintf(stderr, "gpu_load: %s holds no component with weights\n", model);
    return found ? 0 : 1;
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {T(every_dtype_is_rounded_as_on_the_host),
                                       T(many_small_pieces),
                                       T(a_file_cut_short_is_named),
                                       T(bad_pieces_are_refused),
                                       T(each_tensor_of_the_small_model),
                                       T(random_weights_are_the_cpus_rounded)};
    gpu = sl_plugin_cuda(&err);
    if (!gpu || !gpu->devices()) {
        printf("skipped: %s\n", gpu ? "no CUDA device" : err.msg);
        return 0;
    }
    setlinebuf(stdout);
    if ((argc == 3 || argc == 4) && !strcmp(argv[1], "--bench")) return bench(argv[2], argv[3]);
    if (argc > 1) {
        fprintf(stderr,
                "gpu_load: \"%.60s\" is no option, want --bench DIR [COMPONENT] or nothing\n",
                argv[1]);
        return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
