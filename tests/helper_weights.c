/* helper_weights.c - makes the golden models' weights from their seeds, the very bytes that the
 * reference computed with.
 *
 *   helper_weights [FOLDER...]
 *
 * FOLDER is a component's, such as tests/golden/tiny-i2v/model/vae; none: every one below
 * tests/golden that has a weights.txt. Files that are there already stay as they are. weights.txt,
 * written by tests/golden/trim.py, has lines
 *   seed S
 *   times NAME FACTOR       a parameter that was scaled once more
 *   file NAME DTYPE         the tensors after it lie in this file
 *   NAME EXTENT...          a tensor
 * One `torch.randn` each was drawn in the order of the names, over all files. Scales by name: the
 * rules with which they were made (tests/golden/README.md). tests/golden/weights.sha256 has the
 * files' sums. */
#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/path.h"
#include "common/tensor.h"
#include "graphs/randn.h"

enum { TENSORS = 512, FILES = 8 };

typedef struct {
    char name[128];
    int64_t shape[SL_MAX_RANK], count;
    int rank, file;
    double times; /* 1 but for a few */
    void *data;   /* in the file's dtype */
} tensor;

typedef struct {
    char name[128];
    sl_dtype dtype;
} file;

typedef struct {
    const char *folder;
    unsigned long long seed;
    tensor at[TENSORS];
    int count;
    file files[FILES];
    int file_count;
    struct {
        char name[128];
        double factor;
    } times[8];
    int times_count;
} recipe;

static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
static void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("helper_weights: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(1);
}

/* ---- the recipe ---- */

static void read_tensor(recipe *r, const char *line, const char *path)
{
    int used;
    long long extent;
    if (r->count == TENSORS || !r->file_count) die("%s: no place for %s", path, line);
    tensor *t = &r->at[r->count++];
    *t = (tensor){.count = 1, .file = r->file_count - 1, .times = 1};
    if (sscanf(line, "%127s%n", t->name, &used) != 1) die("%s: what is %s", path, line);
    for (line += used; t->rank < SL_MAX_RANK && sscanf(line, "%lld%n", &extent, &used) == 1;
         line += used) {
        t->shape[t->rank++] = extent;
        t->count *= extent;
    }
    if (!t->rank || t->count < 1) die("%s: %s has no shape", path, t->name);
}

static void read_recipe(recipe *r, const char *folder)
{
    char path[1024], line[512], dtype[16];
    memset(r, 0, sizeof *r);
    r->folder = folder;
    snprintf(path, sizeof path, "%s/weights.txt", folder);
    FILE *f = fopen(path, "r");
    if (!f) die("%s: %s", path, strerror(errno));
    while (fgets(line, sizeof line, f)) {
        file *next = &r->files[r->file_count];
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "seed %llu", &r->seed) == 1) continue;
        if (r->times_count < 8 && sscanf(line, "times %127s %lf", r->times[r->times_count].name,
                                         &r->times[r->times_count].factor) == 2)
            r->times_count++;
        else if (r->file_count < FILES && sscanf(line, "file %127s %15s", next->name, dtype) == 2) {
            if (!sl_dtype_parse(dtype, &next->dtype)) die("%s: no dtype %s", path, dtype);
            r->file_count++;
        } else read_tensor(r, line, path);
    }
    fclose(f);
    for (int i = 0; i < r->times_count; i++)
        for (int k = 0; k < r->count; k++)
            if (!strcmp(r->at[k].name, r->times[i].name)) r->at[k].times = r->times[i].factor;
}

/* ---- the numbers ---- */

/* What a parameter's numbers are multiplied by; those of rank 1 and gammas are 1 + 0.15 x. */
static double factor_of(const tensor *t)
{
    const char *n = t->name;
    if (strstr(n, "scale_shift_table")) return 0.2;
    if (sl_ends_with(n, "bias")) return 0.05;
    if (strstr(n, "relative_attention_bias")) return 0.7;
    if (strstr(n, "shared") || strstr(n, "embed_tokens")) return 1;
    if (t->rank == 2 && strstr(n, "embedding") && !strstr(n, "patch") && !strstr(n, "proj") &&
        !strstr(n, "linear"))
        return 0.7;
    return 0; /* by the elements of a row */
}

/* The numbers as the model has them, float32. */
static void scale(const tensor *t, float *x)
{
    const char *n = t->name;
    const double factor = factor_of(t);
    const float row = (float)sqrt((double)(t->count / t->shape[0]));
    if (!strstr(n, "scale_shift_table") && !sl_ends_with(n, "bias") &&
        (t->rank == 1 || strstr(n, "gamma")))
        for (int64_t i = 0; i < t->count; i++) x[i] = 1 + 0.15f * x[i];
    else if (factor > 0)
        for (int64_t i = 0; i < t->count; i++) x[i] *= (float)factor;
    else
        for (int64_t i = 0; i < t->count; i++) x[i] /= row;
    if (t->times != 1)
        for (int64_t i = 0; i < t->count; i++) x[i] *= (float)t->times;
}

static void draw(sl_rng *g, tensor *t, sl_dtype dtype)
{
    float *x = malloc((size_t)t->count * sizeof *x);
    if (!x) die("no memory for %s", t->name);
    sl_rng_normal(g, x, t->count);
    scale(t, x);
    if (!(t->data = malloc((size_t)t->count * sl_dtype_size(dtype))))
        die("no memory for %s", t->name);
    sl_from_floats(t->data, dtype, x, t->count, NULL);
    free(x);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(tensor *const *)a)->name, (*(tensor *const *)b)->name);
}

static void draw_all(recipe *r)
{
    static tensor *order[TENSORS];
    sl_rng g;
    for (int i = 0; i < r->count; i++) order[i] = &r->at[i];
    qsort(order, (size_t)r->count, sizeof *order, by_name);
    sl_rng_seed(&g, r->seed);
    for (int i = 0; i < r->count; i++) draw(&g, order[i], r->files[order[i]->file].dtype);
}

/* ---- the files, as the safetensors package writes them ---- */

static void put_header(FILE *f, const recipe *r, int which)
{
    const size_t width = sl_dtype_size(r->files[which].dtype);
    size_t at = 0;
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", f);
    for (int i = 0; i < r->count; i++) {
        const tensor *t = &r->at[i];
        if (t->file != which) continue;
        fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name,
                sl_dtype_tag(r->files[which].dtype));
        for (int k = 0; k < t->rank; k++)
            fprintf(f, "%s%lld", k ? "," : "", (long long)t->shape[k]);
        fprintf(f, "],\"data_offsets\":[%zu,%zu]}", at, at + width * (size_t)t->count);
        at += width * (size_t)t->count;
    }
    fputc('}', f);
}

static void write_file(const recipe *r, int which, const char *path)
{
    char beside[1200], *header = NULL;
    size_t length = 0;
    FILE *h = open_memstream(&header, &length);
    if (!h) die("no memory for a header");
    put_header(h, r, which);
    while (ftell(h) % 8) fputc(' ', h);
    fclose(h);
    /* another process may be making the same file */
    snprintf(beside, sizeof beside, "%s.%ld", path, (long)getpid());
    FILE *f = fopen(beside, "w");
    if (!f) die("%s: %s", beside, strerror(errno));
    const uint64_t n = length;
    fwrite(&n, sizeof n, 1, f);
    fwrite(header, 1, length, f);
    for (int i = 0; i < r->count; i++)
        if (r->at[i].file == which)
            fwrite(r->at[i].data, sl_dtype_size(r->files[which].dtype), (size_t)r->at[i].count, f);
    const bool whole = !ferror(f);
    if (fclose(f) || !whole || rename(beside, path)) {
        unlink(beside);
        die("%s: %s", path, strerror(errno));
    }
    free(header);
}

static void make_folder(const char *folder)
{
    static recipe r;
    char path[1100];
    bool drawn = false;
    read_recipe(&r, folder);
    for (int i = 0; i < r.file_count; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, r.files[i].name);
        if (!access(path, R_OK)) continue;
        if (!drawn) draw_all(&r);
        drawn = true;
        write_file(&r, i, path);
    }
    for (int i = 0; i < r.count; i++) free(r.at[i].data);
}

int main(int argc, char **argv)
{
    glob_t found = {0};
    for (int i = 1; i < argc; i++) make_folder(argv[i]);
    if (argc > 1) return 0;
    if (glob("tests/golden/tiny-*/model/*/weights.txt", 0, NULL, &found))
        die("no tests/golden/tiny-*/model/*/weights.txt here");
    for (size_t i = 0; i < found.gl_pathc; i++) {
        *strrchr(found.gl_pathv[i], '/') = 0;
        make_folder(found.gl_pathv[i]);
    }
    globfree(&found);
    return 0;
}
