/* t_run.h - a real `sluice` under observation: its log line by line, its processes, and
 * what it leaves behind.
 *
 * The programs come from $SLUICE_BIN (default bin). Runs have their run directory,
 * outputs and settings in one private folder, and log at level debug, where the
 * dispatcher prints every message it gets: tests wait for these lines, never for a time.
 * The test program adopts orphans, so that after a run "no child is left" says that no
 * process of it is. */
#ifndef T_RUN_H
#define T_RUN_H

#include "tests/t.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "common/pipeline.h"

#define T_MODEL "tests/golden/tiny-i2v/model"
#define T_IMAGE "tests/golden/tiny-i2v/i2v-96x64x9.png"
/* a run that takes longer hangs (they take one or two seconds; sanitizers and a busy
 * machine need more) */
#define T_RUN_S 120
#define T_ARGS 64

static const char *const T_ROLES[] = {"dispatch",
#define X(NAME, name, where) name,
                                      SL_ROLES(X)
#undef X
};
#define T_ROLE_COUNT (1 + SL_ROLE_COUNT)

typedef struct {
    char base[200]; /* holds run/ (run directories), out/ (results), run.cfg */
    char conf[240], out[240];
    pid_t pid; /* sluice */
    int in;    /* its standard input; 0: none */
    int log;
    pid_t stages[T_ROLE_COUNT]; /* as the log says; the dispatcher first */
    char line[4096];            /* the newest */
    char *text;                 /* all of the log so far */
    size_t used, at;            /* bytes in it; where the next line begins */
    double deadline;
} t_run;

static inline double t_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* One of eight static buffers. */
static inline const char *t_format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static inline const char *t_format(const char *fmt, ...)
{
    static char buf[8][2048];
    static int next;
    char *b = buf[next++ % 8];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(b, sizeof buf[0], fmt, ap);
    va_end(ap);
    return b;
}

static inline const char *t_bin(void)
{
    const char *bin = getenv("SLUICE_BIN");
    return bin ? bin : "bin";
}

/* A helper program: it lies beside this test. */
static inline const char *t_helper(const char *name)
{
    char self[1024];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    char *slash = strrchr(self, '/');
    if (slash) *slash = 0;
    return t_format("%s/%s", self, name);
}

/* The test fails: the end of the log is shown, and the run is not left behind. */
static inline void t_run_fail(t_run *r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3), noreturn));
static inline void t_run_fail(t_run *r, const char *fmt, ...)
{
    char why[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    const char *from = r->text ? r->text : "";
    if (r->used > 6000) from += r->used - 6000;
    fprintf(stderr, "---- end of the log\n%s\n----\n", from);
    if (r->pid > 0) kill(r->pid, SIGKILL); /* the others go with it */
    for (double until = t_seconds() + 10; t_seconds() < until && waitpid(-1, NULL, WNOHANG) >= 0;)
        usleep(10000);
    fail_msg("%s", why);
    abort();
}

/* ---- folders and settings ---- */

/* *r was zero, or is an earlier run's. */
static inline void t_run_open(t_run *r)
{
    free(r->text);
    memset(r, 0, sizeof *r);
    const char *dir = t_tmpdir();
    assert_true(strlen(dir) < sizeof r->base);
    strcpy(r->base, dir);
    snprintf(r->conf, sizeof r->conf, "%s/run.cfg", r->base);
    snprintf(r->out, sizeof r->out, "%s/out", r->base);
    assert_int_equal(mkdir(t_format("%s/run", r->base), 0700), 0);
    assert_int_equal(mkdir(r->out, 0700), 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    r->log = -1;
}

static inline void t_run_close(t_run *r)
{
    free(r->text);
    r->text = NULL;
    t_rmdir(r->base);
}

static inline void t_write(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

/* A list `stages` of every role; `group` stands in the place of this one's. */
static inline const char *t_stages(sl_role role, const char *group)
{
    static char text[8192];
    int n = snprintf(text, sizeof text, "stages: ( ");
    for (int r = 0; r < SL_ROLE_COUNT; r++) {
        const char *own = t_format("{ name = \"%s\"; }", sl_role_name((sl_role)r));
        n += snprintf(text + n, sizeof text - (size_t)n, "%s%s", r == (int)role ? group : own,
                      r + 1 < SL_ROLE_COUNT ? ",\n" : " );\n");
    }
    return text;
}

/* Quick restarts, a state every second step; `more` is further configuration, or "". */
static inline void t_run_conf(t_run *r, int restarts, int stall_s, const char *more)
{
    t_write(
        r->conf,
        t_format(
            "run: { log = \"debug\"; };\ndenoise: { state_every = 2; };\nvideo: { preset = "
            "\"veryfast\"; threads = 2; };\n"
            "supervise: { backoff_ms = 5; restarts = %d; stall_s = %d; heartbeat_ms = 100; };\n%s",
            restarts, stall_s, more));
}

/* ---- a run ---- */

/* Start `sluice WORD...`; the log is read from now on. args end with NULL. */
static inline void t_run_start(t_run *r, char *const args[])
{
    int log[2];
    free(r->text);
    r->text = calloc(1, 1);
    r->used = r->at = 0;
    memset(r->stages, 0, sizeof r->stages);
    r->deadline = t_seconds() + T_RUN_S;
    assert_int_equal(pipe2(log, O_CLOEXEC), 0);
    r->pid = fork();
    if (r->pid == 0) {
        char program[1024];
        snprintf(program, sizeof program, "%s/sluice", t_bin());
        setenv("TMPDIR", t_format("%s/run", r->base), 1);
        int null = open("/dev/null", O_RDWR);
        dup2(r->in ? r->in : null, 0);
        dup2(null, 1);
        dup2(log[1], 2);
        execv(program, args);
        dprintf(2, "%s: %s\n", program, strerror(errno));
        _exit(127);
    }
    assert_true(r->pid > 0);
    close(log[1]);
    r->log = log[0];
}

/* The processes that a line tells of. */
static inline void t_run_note(t_run *r)
{
    int pid = 0;
    const char *d = strstr(r->line, " dispatch["), *p = strstr(r->line, " is process ");
    if (d && sscanf(d, " dispatch[%d]", &pid) == 1) r->stages[0] = pid;
    if (!p || sscanf(p, " is process %d", &pid) != 1) return;
    for (int i = 1; i < T_ROLE_COUNT; i++) {
        size_t n = strlen(T_ROLES[i]);
        if (p - r->line > (ptrdiff_t)n && !strncmp(p - n, T_ROLES[i], n)) r->stages[i] = pid;
    }
}

/* The next line into r->line; false: every process of the run has closed the log. */
static inline bool t_run_line(t_run *r)
{
    while (true) {
        char *end = memchr(r->text + r->at, '\n', r->used - r->at);
        if (end) {
            size_t n = (size_t)(end - (r->text + r->at));
            snprintf(r->line, sizeof r->line, "%.*s", (int)n, r->text + r->at);
            r->at += n + 1;
            t_run_note(r);
            return true;
        }
        if (r->log < 0) return false;
        struct pollfd f = {r->log, POLLIN, 0};
        double left = r->deadline - t_seconds();
        if (left <= 0 || poll(&f, 1, (int)(left * 1000) + 1) == 0)
            t_run_fail(r, "the run hangs: no end after %d s", T_RUN_S);
        r->text = realloc(r->text, r->used + 65537);
        ssize_t n = read(r->log, r->text + r->used, 65536);
        if (n > 0) r->used += (size_t)n;
        r->text[r->used] = 0;
        if (n == 0) {
            close(r->log);
            r->log = -1;
        }
    }
}

/* Read on until a line has this in it. */
static inline void t_run_until(t_run *r, const char *part)
{
    while (t_run_line(r))
        if (strstr(r->line, part)) return;
    t_run_fail(r, "the run ended before \"%s\"", part);
}

/* Read to the end; the exit status, or minus the signal. */
static inline int t_run_end(t_run *r)
{
    int status = 0;
    while (t_run_line(r)) continue;
    assert_int_equal(waitpid(r->pid, &status, 0), r->pid);
    r->pid = 0;
    if (strstr(r->text, "Sanitizer") || strstr(r->text, "runtime error:"))
        t_run_fail(r, "a sanitizer found something in one of the processes");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static inline void t_run_ends(t_run *r, int want)
{
    int got = t_run_end(r);
    if (got != want) t_run_fail(r, "exit status %d, want %d", got, want);
}

static inline bool t_run_said(const t_run *r, const char *part)
{
    return strstr(r->text, part) != NULL;
}

static inline int t_run_count(const t_run *r, const char *part)
{
    int n = 0;
    for (const char *p = r->text; (p = strstr(p, part)); p += strlen(part)) n++;
    return n;
}

/* ---- what is left ---- */

static inline int t_count_files(const char *dir, const char *part)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int n = 0;
    while (d && (e = readdir(d)))
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..") && (!part || strstr(e->d_name, part)))
            n++;
    if (d) closedir(d);
    return n;
}

/* Lines of a file of /proc that name this run's folder. */
static inline int t_count_lines(const char *path, const char *part)
{
    FILE *f = fopen(path, "r");
    char line[4096];
    int n = 0;
    while (f && fgets(line, sizeof line, f)) n += strstr(line, part) != NULL;
    if (f) fclose(f);
    return n;
}

/* Processes, living or not waited for, whose command names this run's folder. */
static inline int t_count_processes(const t_run *r)
{
    DIR *d = opendir("/proc");
    struct dirent *e;
    int count = 0;
    while (d && (e = readdir(d))) {
        char words[4096];
        if (!isdigit((unsigned char)e->d_name[0])) continue;
        int fd = open(t_format("/proc/%s/cmdline", e->d_name), O_RDONLY | O_CLOEXEC);
        ssize_t n = fd >= 0 ? read(fd, words, sizeof words - 1) : -1;
        if (fd >= 0) close(fd);
        for (ssize_t i = 0; i < n; i++)
            if (!words[i]) words[i] = ' ';
        if (n > 0 && (words[n] = 0, strstr(words, r->base))) count++;
    }
    if (d) closedir(d);
    return count;
}

/* Wait until no process of the run is left; fails after 20 s. */
static inline void t_run_wait_all(t_run *r)
{
    for (double until = t_seconds() + 20; waitpid(-1, NULL, WNOHANG) >= 0 && t_seconds() < until;)
        usleep(2000);
    if (t_count_processes(r)) t_run_fail(r, "left behind: %d processes", t_count_processes(r));
}

/* SIGKILL the command and its dispatcher, and wait until their stages are gone, too. */
static inline void t_run_kill_all(t_run *r)
{
    kill(r->pid, SIGKILL);
    kill(r->stages[0], SIGKILL);
    while (t_run_line(r)) continue;
    t_run_wait_all(r);
}

/* Nothing of the run is there any more: processes, zombies, sockets, shared memory, run
 * directory, temporaries. `wait_s` is for processes whose client was killed: nobody waits
 * for them but us. */
static inline void t_run_nothing_left(t_run *r, double wait_s)
{
    double until = t_seconds() + wait_s;
    pid_t child;
    while ((child = waitpid(-1, NULL, WNOHANG)) >= 0 && t_seconds() < until)
        if (!child) usleep(2000);
    if (child >= 0) t_run_fail(r, "left behind: process %d", (int)child);
    if (t_count_processes(r)) t_run_fail(r, "left behind: %d processes", t_count_processes(r));
    if (t_count_lines("/proc/net/unix", r->base))
        t_run_fail(r, "left behind: %d sockets", t_count_lines("/proc/net/unix", r->base));
    if (t_count_files("/dev/shm", "sluice"))
        t_run_fail(r, "left behind: %d entries of /dev/shm", t_count_files("/dev/shm", "sluice"));
    if (t_count_files(t_format("%s/run", r->base), NULL))
        t_run_fail(r, "left behind: a run directory in %s/run", r->base);
    if (t_count_files(r->out, ".tmp") || t_count_files(r->out, ".probe"))
        t_run_fail(r, "left behind: temporaries in %s", r->out);
}

/* ---- files ---- */

static inline char *t_read(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    char *bytes = NULL;
    *size = 0;
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    bytes = malloc((size_t)n + 1);
    *size = fread(bytes, 1, (size_t)n, f);
    bytes[*size] = 0;
    fclose(f);
    return bytes;
}

static inline bool t_same_file(const char *a, const char *b)
{
    size_t na, nb;
    char *x = t_read(a, &na), *y = t_read(b, &nb);
    bool same = x && y && na == nb && !memcmp(x, y, na);
    free(x);
    free(y);
    return same;
}

#endif
