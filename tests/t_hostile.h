/* t_hostile.h - tools for hostile input: damaged copies of a checkpoint, a run of
 * bin/sluice with what it printed and left. */
#ifndef T_HOSTILE_H
#define T_HOSTILE_H

#include "t.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include <jansson.h>

#include "common/safetensors.h"

#define GOLDEN_MODEL "tests/golden/tiny-i2v/model"
#define GOLDEN_PICTURE "tests/golden/tiny-i2v/i2v-96x64x9.png"

/* Where everything happens: ROOT/tmp is the TMPDIR of all runs, ROOT/out takes their
 * outputs; both are empty before and after. */
static char root[256];

/* A formatted text, good until the test ends. */
static struct {
    char **texts;
    size_t count;
} kept;

static const char *f(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static const char *f(const char *fmt, ...)
{
    va_list ap;
    kept.texts = realloc(kept.texts, (kept.count + 1) * sizeof *kept.texts);
    va_start(ap, fmt);
    if (!kept.texts || vasprintf(&kept.texts[kept.count], fmt, ap) < 0) abort();
    va_end(ap);
    return kept.texts[kept.count++];
}

static void free_texts(void)
{
    while (kept.count) free(kept.texts[--kept.count]);
    free(kept.texts);
    kept.texts = NULL;
}

static const char *at(const char *name) /* ROOT/NAME */
{
    return f("%s/%s", root, name);
}

/* ---- files ---- */

static void put_file(const char *path, const void *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, n, file) != n || fclose(file))
        fail_msg("%s: %s", path, strerror(errno));
}

static void put_text(const char *path, const char *text)
{
    put_file(path, text, strlen(text));
}

/* All of a file, malloc'd, with a 0 behind it. */
static char *get_file(const char *path, size_t *n)
{
    struct stat st;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &st)) {
        fail_msg("%s: %s", path, strerror(errno));
        return NULL;
    }
    char *bytes = malloc((size_t)st.st_size + 1);
    *n = fread(bytes, 1, (size_t)st.st_size, file);
    bytes[*n] = 0;
    fclose(file);
    return bytes;
}

/* The names in a folder (not . and ..), separated by spaces, into buf; how many. */
static int list_dir(const char *dir, char *buf, size_t size)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    size_t n = 0;
    int count = 0;
    *buf = 0;
    while (d && (e = readdir(d))) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        count++;
        if (n < size) n += (size_t)snprintf(buf + n, size - n, "%s ", e->d_name);
    }
    if (d) closedir(d);
    return count;
}

static void empty_dir(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    while (d && (e = readdir(d)))
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) t_rmdir(f("%s/%s", dir, e->d_name));
    if (d) closedir(d);
}

/* ---- damaged checkpoints ---- */

static void link_tree(const char *from, const char *to)
{
    DIR *d = opendir(from);
    struct dirent *e;
    struct stat st;
    assert_non_null(d);
    assert_int_equal(mkdir(to, 0700), 0);
    while ((e = readdir(d))) {
        const char *a = f("%s/%s", from, e->d_name), *b = f("%s/%s", to, e->d_name);
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        assert_int_equal(stat(a, &st), 0);
        if (S_ISDIR(st.st_mode)) link_tree(a, b);
        else assert_int_equal(symlink(a, b), 0);
    }
    closedir(d);
}

/* ROOT/model: a fresh copy of the golden checkpoint, by links. */
static const char *fresh_model(void)
{
    char from[PATH_MAX];
    const char *to = at("model");
    assert_non_null(realpath(GOLDEN_MODEL, from));
    t_rmdir(to);
    link_tree(from, to);
    return to;
}

/* A file of ROOT/model that may be written: a copy takes the link's place. */
static const char *own(const char *rel)
{
    const char *path = f("%s/model/%s", root, rel);
    struct stat st;
    size_t n;
    assert_int_equal(lstat(path, &st), 0);
    if (!S_ISLNK(st.st_mode)) return path;
    char *bytes = get_file(path, &n);
    unlink(path);
    put_file(path, bytes, n);
    free(bytes);
    return path;
}

/* Replace `from` by `to` in a text file of ROOT/model, once. */
static void edit(const char *rel, const char *from, const char *to)
{
    const char *path = own(rel);
    size_t n;
    char *text = get_file(path, &n), *hit = strstr(text, from);
    if (!hit) fail_msg("%s has no %s", rel, from);
    char *changed = malloc(n + strlen(to) + 1);
    int m = sprintf(changed, "%.*s%s%s", (int)(hit - text), text, to, hit + strlen(from));
    put_file(path, changed, (size_t)m);
    free(changed);
    free(text);
}

static void cut(const char *rel, long bytes) /* to so many; negative: so many less */
{
    const char *path = own(rel);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, bytes < 0 ? st.st_size + bytes : bytes), 0);
}

/* A safetensors file taken apart. */
typedef struct {
    json_t *header;
    char *bytes, *data;
    size_t size; /* of data */
} st_parts;

static st_parts st_take(const char *path)
{
    st_parts p;
    uint64_t length;
    size_t n;
    p.bytes = get_file(path, &n);
    memcpy(&length, p.bytes, 8);
    p.header = json_loadb(p.bytes + 8, length, 0, NULL);
    p.data = p.bytes + 8 + length;
    p.size = n - 8 - length;
    assert_non_null(p.header);
    return p;
}

/* Written with `text` as its header; NULL: the parts' own. The parts are freed. */
static void st_put(const char *path, st_parts *p, const char *text)
{
    char *own_text = text ? NULL : json_dumps(p->header, JSON_COMPACT);
    const char *head = text ? text : own_text;
    uint64_t length = strlen(head);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fwrite(&length, 8, 1, file);
    fwrite(head, 1, length, file);
    fwrite(p->data, 1, p->size, file);
    assert_int_equal(fclose(file), 0);
    json_decref(p->header);
    free(own_text);
    free(p->bytes);
}

/* Change one entry of a file's header. */
typedef void change(json_t *header, json_t *entry, const char *name);

static void st_change(const char *rel, const char *name, change *how)
{
    const char *path = own(rel);
    st_parts p = st_take(path);
    json_t *entry = json_object_get(p.header, name);
    if (!entry) fail_msg("%s has no %s", rel, name);
    how(p.header, entry, name);
    st_put(path, &p, NULL);
}

/* Element `i` of a tensor becomes x. */
static void put_element(const char *rel, const char *name, int64_t i, float x)
{
    const char *path = own(rel);
    st_parts p = st_take(path);
    json_t *entry = json_object_get(p.header, name);
    sl_dtype dtype;
    sl_err err = {0};
    if (!entry) fail_msg("%s has no %s", rel, name);
    assert_true(sl_dtype_parse(json_string_value(json_object_get(entry, "dtype")), &dtype));
    char *data =
        p.data + json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 0));
    T_OK(sl_from_floats(data + (size_t)i * sl_dtype_size(dtype), dtype, &x, 1, &err));
    st_put(path, &p, NULL);
}

/* Element `i` of a tensor becomes NaN, or infinity. */
static void poke(const char *rel, const char *name, int64_t i, bool infinity)
{
    put_element(rel, name, i, infinity ? INFINITY : NAN);
}

/* ---- a command and what came of it ---- */

typedef struct {
    const char *argv[64];
    int n;
} command;

static void add(command *c, const char *arg)
{
    c->argv[c->n++] = arg;
    c->argv[c->n] = NULL;
}

/* The value of an option; NULL takes the option away. */
static void set(command *c, const char *option, const char *value)
{
    for (int i = 0; i < c->n; i++)
        if (!strcmp(c->argv[i], option)) {
            if (value) c->argv[i + 1] = value;
            else {
                memmove(&c->argv[i], &c->argv[i + 2], (size_t)(c->n - i - 1) * sizeof *c->argv);
                c->n -= 2;
            }
            return;
        }
    if (!value) return;
    add(c, option);
    add(c, value);
}

/* The job that all cases start from: it works, in half a second. */
static command job(void)
{
    static const char *const ARGS[] = {"run",      "--quiet", "--image",    GOLDEN_PICTURE,
                                       "--prompt", "a cat",   "--width",    "32",
                                       "--height", "32",      "--frames",   "5",
                                       "--steps",  "1",       "--guidance", "1",
                                       "--seed",   "1",       "--model",    GOLDEN_MODEL};
    command c = {.n = 0};
    add(&c, f("%s/sluice", getenv("SLUICE_BIN") ? getenv("SLUICE_BIN") : "bin"));
    for (size_t i = 0; i < sizeof ARGS / sizeof *ARGS; i++) add(&c, ARGS[i]);
    set(&c, "-o", at("out/out.mp4"));
    return c;
}

static command with(const char *option, const char *value)
{
    command c = job();
    set(&c, option, value);
    return c;
}

static command other(const char *verb, const char *a)
{
    command c = job();
    c.n = 1;
    if (verb) add(&c, verb);
    if (a) add(&c, a);
    c.argv[c.n] = NULL;
    return c;
}

static pid_t start(const command *c)
{
    pid_t pid = fork();
    if (pid == 0) {
        int out = open(at("stdout"), O_WRONLY | O_CREAT | O_TRUNC, 0600),
            err = open(at("stderr"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        unsetenv("XDG_RUNTIME_DIR");
        setenv("TMPDIR", at("tmp"), 1);
        dup2(out, 1);
        dup2(err, 2);
        execv(c->argv[0], (char **)(uintptr_t)c->argv);
        _exit(126);
    }
    assert_true(pid > 0);
    return pid;
}

static const char *text_of(const command *c)
{
    static char text[4096];
    size_t n = 0;
    for (int i = 0; i < c->n && n < sizeof text; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%.200s ", c->argv[i]);
    return text;
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* A process's exit status; a signal is -SIGNAL. Sixty seconds are a hang. */
static int finish(const command *c, pid_t pid)
{
    int status = 0;
    int64_t until = now_ms() + 60000;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (now_ms() > until) {
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
            fail_msg("hangs: %s", text_of(c));
        }
        usleep(2000);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* No process of the run is left: orphans become ours (see t_hostile_setup), so there must
 * be no child. */
static void no_process_left(const command *c)
{
    int64_t until = now_ms() + 3000;
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG)) >= 0 && now_ms() < until)
        if (!pid) usleep(2000);
    if (pid >= 0) fail_msg("a process is left: %s", text_of(c));
}

/* Nothing in TMPDIR, and in ROOT/out only `outputs` files. */
static void nothing_left(const command *c, int outputs)
{
    char names[1024];
    no_process_left(c);
    if (list_dir(at("tmp"), names, sizeof names))
        fail_msg("left in TMPDIR: %s(%s)", names, text_of(c));
    if (list_dir(at("out"), names, sizeof names) != outputs)
        fail_msg("outputs: %s, want %d (%s)", names, outputs, text_of(c));
}

/* The folder that a message says the latents are in; NULL: it says nothing of them. */
static const char *kept_in(const char *message)
{
    const char *at = strstr(message, "the latents are in ");
    if (!at) return NULL;
    at += strlen("the latents are in ");
    return f("%.*s", (int)strcspn(at, ":"), at);
}

static int lines(const char *text)
{
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

/* The command ends with `status`, one line on stderr that holds all of `says`, and leaves
 * nothing behind. */
static void refused_(const char *where, int status, const command *c, const char *const says[])
{
    size_t n;
    int got = finish(c, start(c));
    char *err = get_file(at("stderr"), &n), *out = get_file(at("stdout"), &n);
    if (got != status)
        fail_msg("%s: exit status %d, want %d: %s\n%s", where, got, status, text_of(c), err);
    if (lines(err) != 1 || strncmp(err, "sluice: ", 8))
        fail_msg("%s: want one line, \"sluice: ...\": %s\n%s", where, text_of(c), err);
    for (int i = 0; says[i]; i++)
        if (!strstr(err, says[i]))
            fail_msg("%s: message lacks \"%s\": %s\n%s", where, says[i], text_of(c), err);
    if (*out) fail_msg("%s: stdout is not empty: %s\n%s", where, text_of(c), out);
    if (kept_in(err)) t_rmdir(kept_in(err)); /* it was told, and is the user's */
    nothing_left(c, 0);
    free(err);
    free(out);
}
#define T_STRING_(x) #x
#define T_STRING(x) T_STRING_(x)
#define REFUSED(status, cmd, ...)                                                                  \
    do {                                                                                           \
        command c_ = (cmd);                                                                        \
        refused_("line " T_STRING(__LINE__), status, &c_,                                          \
                 (const char *const[]){__VA_ARGS__, NULL});                                        \
    } while (0)

/* What the next works_ may say, and must; NULL: not a word. */
static const char *to_be_said;

/* The command works without a word (but to_be_said), and leaves so many files in ROOT/out, which are
 * removed if `clean`. */
static void works_(const char *where, const command *c, int outputs, bool clean)
{
    size_t n;
    int got = finish(c, start(c));
    char *err = get_file(at("stderr"), &n);
    if (got) fail_msg("%s: exit status %d, want 0: %s\n%s", where, got, text_of(c), err);
    if (to_be_said ? !strstr(err, to_be_said) : *err != 0)
        fail_msg("%s: stderr is not %s: %s\n%s", where, to_be_said ? to_be_said : "empty",
                 text_of(c), err);
    to_be_said = NULL;
    nothing_left(c, outputs);
    if (clean) empty_dir(at("out"));
    free(err);
}
#define WORKS(cmd, outputs)                                                                        \
    do {                                                                                           \
        command c_ = (cmd);                                                                        \
        works_("line " T_STRING(__LINE__), &c_, outputs, true);                                    \
    } while (0)

/* `sluice inspect` of ROOT/model: status 1 or 2, and stdout or stderr name the damage. */
static void inspect_says_(const char *where, bool deep, const char *says)
{
    size_t n;
    command c = other("inspect", at("model"));
    if (deep) add(&c, "--deep");
    int got = finish(&c, start(&c));
    char *err = get_file(at("stderr"), &n), *out = get_file(at("stdout"), &n);
    if (got != 1 && got != 2)
        fail_msg("%s: inspect: exit status %d, want 1 or 2\n%s%s", where, got, out, err);
    if (!strstr(out, says) && !strstr(err, says))
        fail_msg("%s: inspect does not say \"%s\":\n%s%s", where, says, out, err);
    nothing_left(&c, 0);
    free(err);
    free(out);
}
#define INSPECT_SAYS(says) inspect_says_("line " T_STRING(__LINE__), false, says)
#define INSPECT_DEEP_SAYS(says) inspect_says_("line " T_STRING(__LINE__), true, says)

/* ---- the group's own folder ---- */

static int t_hostile_setup(void **unused)
{
    (void)unused;
    snprintf(root, sizeof root, "%s", t_tmpdir());
    mkdir(at("tmp"), 0700);
    mkdir(at("out"), 0700);
    return prctl(PR_SET_CHILD_SUBREAPER, 1);
}

static int t_hostile_teardown(void **unused)
{
    (void)unused;
    t_rmdir(root);
    free_texts();
    return 0;
}

/* Before each test: what a failed one left is gone. */
static int t_hostile_clean(void **unused)
{
    (void)unused;
    empty_dir(at("tmp"));
    empty_dir(at("out"));
    free_texts();
    return 0;
}

#endif
