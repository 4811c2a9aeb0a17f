/* pack.c - `sluice pack`: a copy of a checkpoint in the form that loads fastest, still a
 * Diffusers folder that other programs read.
 *
 * Each component is one file. The transformers and the text encoder are in bf16 but for
 * what the reference keeps in float32 (spec 2.1); the VAE and CLIP stay as they are
 * stored. Tensors lie in the order in which the network asks for them, from a multiple of
 * 4096 bytes on, so that loading is one pass of large aligned reads without conversion;
 * behind them those that nobody here asks for, but other programs expect (CLIP's last
 * layer). The folder is written beside its name and renamed at the end: what has the name
 * is whole.
 * With --random DIR's configurations are enough: the tensors that its networks ask for
 * get random numbers (those of sl_loader_random), to measure loading and speed at sizes
 * whose weights are not here. --component leaves the others' weights out. */
#include "stages/cli/verbs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/log.h"
#include "common/path.h"
#include "common/safetensors.h"
#include "common/tokenizer.h"
#include "stages/job/components.h"
#include "stages/job/defaults.h"
#include "stages/job/files.h"

#define DATA_ALIGN 4096
#define PIECE ((int64_t)8 << 20) /* elements converted and written at a time */
#define BLOCK 4096               /* elements converted while they lie in the cache */
#define SMALL_FILE (256 << 20)   /* more is no configuration and no tokenizer */
#define SEED 1                   /* of random weights */

typedef struct {
    char *name;
    sl_tensor stored;
    const sl_st_entry *from; /* NULL: random */
    sl_dtype dtype;          /* as it will be written */
} item;

typedef struct {
    const sl_component *c;
    sl_loader *loader;
    item *items;
    int count, room;
    bool failed; /* no memory for the list */
} part;

typedef struct {
    char from[SL_PATH], to[SL_PATH], temporary[SL_PATH + 32];
    sl_dtype dtype; /* BF16 or F32 */
    bool quiet, random;
    const char *only[SL_MAX_COMPONENTS]; /* the components asked for; none: all */
    int only_count;
    sl_model_files files; /* named in place of the checkpoint's */
    sl_model model;
    sl_ctx plan;
    part parts[SL_MAX_COMPONENTS];
    int part_count;
    void *stage;                /* PIECE elements */
    uint64_t bytes, done, read; /* to write; written; read so far */
    int64_t t0_ns, shown_ns;
} packer;

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
    interrupted = sig;
}

/* ---- what to write ---- */

/* A part of the name, between dots, is one of those that the reference loads in float32
 * whatever it is asked for. */
static bool stays_float(const char *name)
{
    static const char *const PARTS[] = {"rope",  "time_embedder", "scale_shift_table",
                                        "norm1", "norm2",         "norm3"};
    for (const char *p = name; p; p = strchr(p, '.') ? strchr(p, '.') + 1 : NULL)
        for (size_t i = 0; i < sizeof PARTS / sizeof *PARTS; i++)
            if (strcspn(p, ".") == strlen(PARTS[i]) && !strncmp(p, PARTS[i], strlen(PARTS[i])))
                return true;
    return false;
}

static sl_dtype dtype_of(const packer *k, const sl_component *c, const char *name,
                         const sl_tensor *stored)
{
    bool dit = !strncmp(c->name, "transformer", 11), text = !strcmp(c->name, "text_encoder");
    bool is_float = stored->dtype == SL_F32 || stored->dtype == SL_BF16 || stored->dtype == SL_F16;
    if (!is_float || (!dit && !text)) return stored->dtype;
    return dit && stays_float(name) ? SL_F32 : k->dtype;
}

static void collect(void *user, const char *name, const sl_tensor *stored, const sl_st_entry *from)
{
    part *p = user;
    if (p->count == p->room) {
        int room = p->room ? 2 * p->room : 256;
        item *more = realloc(p->items, (size_t)room * sizeof *more);
        if (!more) {
            p->failed = true;
            return;
        }
        p->items = more;
        p->room = room;
    }
    char *copy = strdup(name);
    if (copy) p->items[p->count++] = (item){.name = copy, .stored = *stored, .from = from};
    else p->failed = true;
}

/* Tensors left over by the network's definition: in published files, of no use to any program. */
static void collect_rest(void *user, const char *name, const sl_tensor *stored,
                         const sl_st_entry *from)
{
    if (!sl_ends_with(name, ".norm_added_q.weight")) collect(user, name, stored, from);
}

static sl_code list_part(packer *k, part *p, sl_err *err)
{
    sl_err why = {0};
    sl_code rc = k->random ? sl_loader_plan(&p->loader, &k->plan, p->c->name, err)
                           : sl_component_inspect(&p->loader, &k->model, p->c->id, &k->plan, err);
    if (rc) return rc;
    sl_loader_watch(p->loader, collect, p);
    p->c->load(&k->model, p->loader);
    if ((rc = sl_loader_finish(p->loader, &why))) return sl_fail(err, rc, "%s", why.msg);
    sl_loader_rest(p->loader, collect_rest, p);
    if (p->failed)
        return sl_fail(err, SL_NOMEM, "%s: no memory for its list of tensors", p->c->name);
    for (int i = 0; i < p->count; i++) {
        item *t = &p->items[i];
        if (!t->stored.rank)
            return sl_fail(
                err, SL_SHAPE,
                "%s: %s has a type that cannot be packed, want F32, BF16, F16, U8, I32 or I64",
                p->c->name, t->name);
        t->dtype = dtype_of(k, p->c, t->name, &t->stored);
        k->bytes += (uint64_t)sl_count(&t->stored) * sl_dtype_size(t->dtype);
        if (!k->random) k->read += sl_st_stored(t->from);
    }
    return SL_OK;
}

/* ---- tensors ---- */

static void show(packer *k, const char *what, bool last)
{
    int64_t now = sl_now_ns();
    bool tty = isatty(2);
    if (k->quiet || (!last && (!tty || now - k->shown_ns < 100 * 1000000ll))) return;
    double s = (double)(now - k->t0_ns) * 1e-9;
    fprintf(stderr, "%s%-14s %.2f of %.2f GB  %.2f GB/s%s", tty ? "\r\033[K" : "", what,
            (double)k->done * 1e-9, (double)k->bytes * 1e-9, s > 0 ? (double)k->done * 1e-9 / s : 0,
            tty && !last ? "" : "\n");
    fflush(stderr);
    k->shown_ns = now;
}

/* n elements from `first` on into the stage, as dtype. One thread does it faster than most disks
 * read or write. */
static void convert(packer *k, sl_dtype dtype, const sl_st_entry *from, int64_t first, int64_t n)
{
    float x[BLOCK];
    for (int64_t at = 0; at < n; at += BLOCK) {
        int64_t m = n - at < BLOCK ? n - at : BLOCK;
        sl_st_floats(x, from, first + at, m);
        sl_from_floats((char *)k->stage + at * (int64_t)sl_dtype_size(dtype), dtype, x, m, NULL);
    }
}

/* The mapping's pages of [p, p + n): asked for in advance, or given back, so that what is
 * mapped does not pile up. */
static void advise(const char *p, int64_t n, int advice)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)p / page * page;
    if (n > 0) madvise((void *)from, (uintptr_t)p + (uintptr_t)n - from, advice);
}

/* Bytes that elements [0, n) take in the file. */
static int64_t bytes_before(const item *t, int64_t n)
{
    const sl_coding c = t->from->coding;
    return c ? n / sl_coding_block(c) * sl_coding_bytes(c)
             : n * (int64_t)sl_dtype_size(t->stored.dtype);
}

static sl_code write_tensor(packer *k, sl_st_writer *w, const char *part_name, const item *t,
                            sl_err *err)
{
    const int64_t n = sl_count(&t->stored), out = (int64_t)sl_dtype_size(t->dtype);
    const bool coded = t->from->coding;
    const char *src = sl_st_shape(t->from)->data;
    sl_code rc = SL_OK;
    for (int64_t at = 0; at < n && !rc; at += PIECE) {
        const int64_t m = n - at < PIECE ? n - at : PIECE;
        const int64_t begin = bytes_before(t, at), end = bytes_before(t, at + m),
                      next = bytes_before(t, at + 2 * m < n ? at + 2 * m : n);
        const void *data = src + begin;
        if (interrupted) return sl_fail(err, SL_CANCELLED, "interrupted");
        advise(src + end, next - end, MADV_WILLNEED);
        if (coded || t->dtype != t->stored.dtype) {
            convert(k, t->dtype, t->from, at, m);
            data = k->stage;
        }
        if ((rc = sl_stw_write(w, t->name, data, (size_t)(at * out), (size_t)(m * out), err)))
            break;
        advise(src + begin, end - begin, MADV_DONTNEED);
        k->done += (uint64_t)(m * out);
        show(k, part_name, false);
    }
    return rc;
}

static sl_code write_random(packer *k, sl_st_writer *w, const char *part_name, const item *t,
                            sl_err *err)
{
    int64_t n = sl_count(&t->stored), out = (int64_t)sl_dtype_size(t->dtype);
    for (int64_t at = 0; at < n; at += PIECE) {
        int64_t m = n - at < PIECE ? n - at : PIECE;
        sl_code rc;
        if (interrupted) return sl_fail(err, SL_CANCELLED, "interrupted");
        sl_weight_random(k->stage, t->dtype, SEED, t->name, &t->stored, at, m);
        if ((rc = sl_stw_write(w, t->name, k->stage, (size_t)(at * out), (size_t)(m * out), err)))
            return rc;
        k->done += (uint64_t)(m * out);
        show(k, part_name, false);
    }
    return SL_OK;
}

static sl_code write_part(packer *k, const part *p, sl_err *err)
{
    char dir[SL_PATH], path[SL_PATH], file[64];
    sl_st_writer *w = NULL;
    sl_code rc;
    snprintf(file, sizeof file, "%s.safetensors", p->c->stem);
    if ((rc = sl_path_join(dir, k->temporary, p->c->name, err)) || (rc = sl_make_dirs(dir, err)) ||
        (rc = sl_path_join(path, dir, file, err)) || (rc = sl_stw_open(&w, path, err)))
        return rc;
    sl_stw_align(w, DATA_ALIGN);
    if ((rc = sl_stw_metadata(w, "format", "pt", err)) ||
        (rc = sl_stw_metadata(w, "packed_by", k->random ? "sluice pack --random" : "sluice pack",
                              err)) ||
        (rc = sl_stw_metadata(w, "packed_dtype", k->dtype == SL_BF16 ? "bf16" : "f32", err)))
        goto done;
    for (int i = 0; i < p->count; i++)
        if ((rc = sl_stw_declare(w, p->items[i].name, p->items[i].dtype, p->items[i].stored.rank,
                                 p->items[i].stored.shape, err)))
            goto done;
    for (int i = 0; i < p->count; i++)
        if ((rc = (k->random ? write_random : write_tensor)(k, w, p->c->name, &p->items[i], err)))
            goto done;
    rc = sl_stw_finish(&w, err);
    show(k, p->c->name, true);
done:
    sl_stw_abandon(&w);
    return rc;
}

/* ---- the other files ---- */

static bool holds_weights(const char *name)
{
    static const char *const ENDS[] = {".safetensors", ".index.json", ".bin",  ".h5",   ".msgpack",
                                       ".pt",          ".pth",        ".ckpt", ".gguf", ".onnx"};
    for (size_t i = 0; i < sizeof ENDS / sizeof *ENDS; i++)
        if (sl_ends_with(name, ENDS[i])) return true;
    return false;
}

/* Every regular file of FROM/folder that holds no weights; a folder that is not there is
 * none. */
static sl_code copy_folder(const packer *k, const char *folder, sl_err *err)
{
    char src_dir[SL_PATH], dst_dir[SL_PATH], src[SL_PATH], dst[SL_PATH];
    struct dirent *e;
    sl_code rc;
    if ((rc = sl_path_join(src_dir, k->model.dir, folder, err)) ||
        (rc = sl_path_join(dst_dir, k->temporary, folder, err)))
        return rc;
    DIR *d = opendir(src_dir);
    if (!d) return errno == ENOENT ? SL_OK : sl_fail_errno(err, errno, "%s", src_dir);
    rc = sl_make_dirs(dst_dir, err);
    while (!rc && (e = readdir(d))) {
        struct stat st;
        if (*e->d_name == '.' || holds_weights(e->d_name) ||
            (rc = sl_path_join(src, src_dir, e->d_name, err)) ||
            (rc = sl_path_join(dst, dst_dir, e->d_name, err)) || stat(src, &st) ||
            !S_ISREG(st.st_mode))
            continue;
        if (st.st_size > SMALL_FILE) continue;
        if (!(rc = sl_copy_file(src, dst, err))) chmod(dst, 0644);
    }
    closedir(d);
    return rc;
}

/* A configuration of the Diffusers folder that the checkpoint is shown as. */
static sl_code write_json(const packer *k, const char *file, sl_err *err)
{
    char shown[SL_PATH + 64], to[SL_PATH], folder[SL_PATH];
    json_t *root;
    sl_code rc = sl_layout_json(&root, shown, &k->model.layout, file, err);
    if (rc) return rc;
    if ((rc = sl_path_join(to, k->temporary, file, err))) {
        json_decref(root);
        return rc;
    }
    snprintf(folder, sizeof folder, "%s", to);
    *strrchr(folder, '/') = 0;
    if ((rc = sl_make_dirs(folder, err))) {
        json_decref(root);
        return rc;
    }
    return sl_json_write(root, to, JSON_INDENT(2), "pack: ", err);
}

/* Of a checkpoint in another layout: all configurations, and the tokenizer as spiece.model. */
static sl_code write_rest(const packer *k, sl_err *err)
{
    const sl_component *c;
    char path[SL_PATH], file[80];
    sl_code rc = write_json(k, "model_index.json", err);
    if (!rc) rc = write_json(k, "scheduler/scheduler_config.json", err);
    if (!rc && k->model.family.clip)
        rc = write_json(k, "image_processor/preprocessor_config.json", err);
    for (int i = 0; !rc && (c = sl_component_at(&k->model, i)); i++) {
        snprintf(file, sizeof file, "%s/config.json", c->name);
        rc = write_json(k, file, err);
    }
    if (rc || (rc = sl_path_join(path, k->temporary, "tokenizer", err)) ||
        (rc = sl_make_dirs(path, err)) ||
        (rc = sl_path_join(path, k->temporary, "tokenizer/spiece.model", err)))
        return rc;
    return sl_tokenizer_write(k->model.layout.tokenizer, path, err);
}

static sl_code copy_rest(const packer *k, sl_err *err)
{
    static const char *const FOLDERS[] = {"scheduler", "tokenizer", "image_processor",
                                          "feature_extractor"};
    static const char *const FILES[] = {"model_index.json", SL_MODEL_DEFAULTS, "README.md",
                                        "LICENSE",          "LICENSE.txt",     "LICENSE.md"};
    char src[SL_PATH], dst[SL_PATH];
    const bool diffusers = k->model.layout.kind == SL_LAYOUT_DIFFUSERS;
    sl_code rc = diffusers ? SL_OK : write_rest(k, err);
    for (size_t i = 0; diffusers && i < sizeof FOLDERS / sizeof *FOLDERS && !rc; i++)
        rc = copy_folder(k, FOLDERS[i], err);
    for (int i = 0; diffusers && !rc && sl_component_at(&k->model, i); i++)
        rc = copy_folder(k, sl_component_at(&k->model, i)->name, err);
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES && !rc; i++) {
        if ((rc = sl_path_join(src, k->model.dir, FILES[i], err)) ||
            (rc = sl_path_join(dst, k->temporary, FILES[i], err)) || access(src, R_OK))
            continue;
        if (!(rc = sl_copy_file(src, dst, err))) chmod(dst, 0644);
    }
    return rc;
}

/* ---- before ---- */

static sl_code parse(packer *k, int argc, char **argv, sl_err *err)
{
    static const struct option OPTIONS[] = {{"model", 1, 0, 'm'},
                                            {"output", 1, 0, 'o'},
                                            {"dtype", 1, 0, 'd'},
                                            {"random", 0, 0, 'r'},
                                            {"component", 1, 0, 'c'},
                                            {"quiet", 0, 0, 'q'},
                                            SL_CLI_FILES,
                                            {0}};
    static const char usage[] = "want sluice pack --model DIR -o DIR2 [--dtype bf16|f32] [--random "
                                "[--component NAME]...] [--quiet]";
    const char *model = "", *out = "", *dtype = "bf16";
    sl_code rc;
    int o, index = 0;
    opterr = 0;
    optind = 1;
    while ((o = getopt_long(argc, argv, ":o:", OPTIONS, &index)) >= 0) {
        if (o == 'm') model = optarg;
        else if (o == 'o') out = optarg;
        else if (o == 'd') dtype = optarg;
        else if (o == 'r') k->random = true;
        else if (o == 'c' && k->only_count < SL_MAX_COMPONENTS) k->only[k->only_count++] = optarg;
        else if (o == 'c')
            return sl_fail(err, SL_ARG, "pack: --component is given more than %d times",
                           SL_MAX_COMPONENTS);
        else if (o == 'q') k->quiet = true;
        else if (o == 'f') {
            char *at = sl_component_file(&k->files, OPTIONS[index].name);
            if ((rc = sl_absolute_path(at, optarg, err))) return rc;
        } else
            return sl_fail(err, SL_ARG, "pack: option %.60s %s, %s", argv[optind - 1],
                           o == ':' ? "lacks its value" : "is not known", usage);
    }
    if (optind < argc)
        return sl_fail(err, SL_ARG, "pack: \"%.60s\" is no option, %s", argv[optind], usage);
    if (!*model || !*out)
        return sl_fail(err, SL_ARG, "pack: %s is missing, %s", *model ? "-o" : "--model", usage);
    if (k->only_count && !k->random)
        return sl_fail(err, SL_ARG, "pack: --component %.60s goes with --random, %s", k->only[0],
                       usage);
    if (strcmp(dtype, "bf16") && strcmp(dtype, "f32"))
        return sl_fail(err, SL_ARG, "pack: --dtype is %.60s, want bf16 or f32", dtype);
    k->dtype = strcmp(dtype, "f32") ? SL_BF16 : SL_F32;
    if ((rc = sl_absolute_path(k->from, model, err)) || (rc = sl_absolute_path(k->to, out, err)))
        return rc;
    for (size_t n = strlen(k->to); n > 1 && k->to[n - 1] == '/'; n--) k->to[n - 1] = 0;
    return SL_OK;
}

/* The folder that will hold DIR2. */
static void parent_of(char out[SL_PATH], const char *path)
{
    snprintf(out, SL_PATH, "%s", path);
    char *slash = strrchr(out, '/');
    slash[slash == out] = 0;
}

static bool is_empty(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int n = 0;
    while (d && (e = readdir(d))) n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    if (d) closedir(d);
    return d && !n;
}

/* DIR2 is a new name outside of DIR, where a folder can be made. */
static sl_code check_output(const packer *k, sl_err *err)
{
    char parent[SL_PATH], real_from[PATH_MAX], real_parent[PATH_MAX];
    struct stat st;
    parent_of(parent, k->to);
    if (!realpath(k->from, real_from)) return sl_fail_errno(err, errno, "%s", k->from);
    if (sl_same_file(k->from, k->to))
        return sl_fail(err, SL_ARG, "pack: output %s is the checkpoint itself, want another folder",
                       k->to);
    if (!realpath(parent, real_parent))
        return sl_fail_errno(err, errno, "output %s: its parent", k->to);
    size_t n = strlen(real_from);
    if (!strncmp(real_parent, real_from, n) && (!real_parent[n] || real_parent[n] == '/'))
        return sl_fail(err, SL_ARG,
                       "pack: output %s lies in the checkpoint itself, want a folder outside of it",
                       k->to);
    if (!lstat(k->to, &st) && (!S_ISDIR(st.st_mode) || !is_empty(k->to)))
        return sl_fail(err, SL_ARG,
                       "pack: output %s is there already, want a new name or an empty folder",
                       k->to);
    return sl_can_make_dir(parent, err);
}

/* A packer that lives has a lock on its folder, also one of another container, whose number means
 * nothing here. */
static bool is_held(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool held = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
    if (fd >= 0) close(fd);
    return held;
}

/* Folders that dead packers (SIGKILL) of this name left are removed. */
static void sweep(const packer *k)
{
    char parent[SL_PATH], path[SL_PATH], prefix[SL_PATH];
    struct dirent *e;
    parent_of(parent, k->to);
    int n = snprintf(prefix, sizeof prefix, "%.1000s.tmp-", strrchr(k->to, '/') + 1);
    DIR *d = opendir(parent);
    while (d && (e = readdir(d))) {
        char *end;
        long pid = strncmp(e->d_name, prefix, (size_t)n) ? 0 : strtol(e->d_name + n, &end, 10);
        if (pid > 0 && !*end && kill((pid_t)pid, 0) && errno == ESRCH &&
            !sl_path_join(path, parent, e->d_name, NULL) && !is_held(path))
            sl_remove_tree(path);
    }
    if (d) closedir(d);
}

/* Every name of --component is one of this model's. */
static sl_code check_names(const packer *k, sl_err *err)
{
    const sl_component *c;
    for (int i = 0; i < k->only_count; i++) {
        char list[200] = "";
        for (int n = 0; (c = sl_component_at(&k->model, n)) && strcmp(c->name, k->only[i]); n++)
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", n ? ", " : "",
                     c->name);
        if (!c)
            return sl_fail(err, SL_ARG, "pack: --component is %.60s, want one of %s", k->only[i],
                           list);
    }
    return SL_OK;
}

static bool is_wanted(const packer *k, const sl_component *c)
{
    bool named = !k->only_count;
    for (int i = 0; i < k->only_count; i++) named |= !strcmp(k->only[i], c->name);
    return named;
}

static sl_code prepare(packer *k, sl_err *err)
{
    char parent[SL_PATH];
    struct statvfs fs;
    const sl_component *c;
    sl_request defaults;
    sl_code rc = sl_model_open_files(&k->model, k->from, &k->files, err);
    if (rc) return rc;
    /* sluice.json is copied, and so must be good */
    rc = sl_request_read_defaults(&defaults, k->model.dir, err);
    sl_job_free(&defaults.spec);
    if (rc || (rc = check_names(k, err)) ||
        (!k->random && (rc = sl_components_check(&k->model, err))) || (rc = check_output(k, err)))
        return rc;
    if ((rc = sl_ctx_open(&k->plan, &sl_ops_plan, 0, err))) return rc;
    for (int i = 0; (c = sl_component_at(&k->model, i)); i++) {
        if (!is_wanted(k, c)) continue;
        part *p = &k->parts[k->part_count++];
        p->c = c;
        if ((rc = list_part(k, p, err))) return rc;
    }
    sweep(k);
    parent_of(parent, k->to);
    if (!statvfs(parent, &fs) && (uint64_t)fs.f_bavail * fs.f_frsize < k->bytes)
        return sl_fail(err, SL_SYS, "pack: output %s wants %llu bytes, %llu are free there", k->to,
                       (unsigned long long)k->bytes, (unsigned long long)fs.f_bavail * fs.f_frsize);
    if (!(k->stage = malloc((size_t)PIECE * sizeof(float))))
        return sl_fail(err, SL_NOMEM, "pack: no memory for %zu bytes",
                       (size_t)PIECE * sizeof(float));
    return SL_OK;
}

/* ---- the command ---- */

static sl_code pack(packer *k, sl_err *err)
{
    sl_code rc;
    snprintf(k->temporary, sizeof k->temporary, "%s.tmp-%d", k->to, (int)getpid());
    if (is_held(k->temporary))
        return sl_fail(err, SL_BUSY, "pack: %s is being written by another process", k->temporary);
    sl_remove_tree(k->temporary); /* of a process that had our number and was killed */
    if (mkdir(k->temporary, 0777)) return sl_fail_errno(err, errno, "%s", k->temporary);
    int held = open(k->temporary, O_RDONLY | O_DIRECTORY | O_CLOEXEC); /* until this process ends */
    if (held >= 0) flock(held, LOCK_EX | LOCK_NB);
    k->t0_ns = sl_now_ns();
    rc = copy_rest(k, err);
    for (int i = 0; i < k->part_count && !rc; i++) rc = write_part(k, &k->parts[i], err);
    if (!rc && rename(k->temporary, k->to)) rc = sl_fail_errno(err, errno, "%s", k->to);
    if (rc) sl_remove_tree(k->temporary);
    double s = (double)(sl_now_ns() - k->t0_ns) * 1e-9;
    if (!rc && !k->quiet && k->random)
        printf("%s: %.2f GB of random weights in %.2f s, %.2f GB/s\n", k->to,
               (double)k->done * 1e-9, s, (double)k->done * 1e-9 / s);
    else if (!rc && !k->quiet)
        printf("%s: %.2f GB from %.2f GB in %.2f s, %.2f GB/s\n", k->to, (double)k->done * 1e-9,
               (double)k->read * 1e-9, s, (double)k->done * 1e-9 / s);
    return rc;
}

int sl_cli_pack(int argc, char **argv)
{
    struct sigaction stop = {.sa_handler = on_signal}, ignore = {.sa_handler = SIG_IGN};
    packer *k = calloc(1, sizeof *k);
    sl_err err = {0};
    int status = SL_EXIT_REFUSED;
    if (!k) sl_fail(&err, SL_NOMEM, "no memory");
    /* getopt looks from the second word on */
    else if (!parse(k, argc + 1, argv - 1, &err) && !prepare(k, &err)) {
        sigaction(SIGINT, &stop, NULL);
        sigaction(SIGTERM, &stop, NULL);
        sigaction(SIGHUP, &stop, NULL);
        /* a limit on file sizes is an error like a full disk */
        sigaction(SIGXFSZ, &ignore, NULL);
        status = pack(k, &err) ? SL_EXIT_FAILED : SL_EXIT_OK;
    }
    if (err.code) sl_complain("%s", err.msg);
    for (int i = 0; k && i < k->part_count; i++) {
        for (int n = 0; n < k->parts[i].count; n++) free(k->parts[i].items[n].name);
        free(k->parts[i].items);
        sl_loader_close(&k->parts[i].loader);
    }
    if (k) {
        sl_ctx_close(&k->plan);
        free(k->stage);
    }
    free(k);
    return status;
}
