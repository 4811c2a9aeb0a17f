/* start.c - fork, and what a stage is before exec. */
#include "stages/dispatch/seats.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/log.h"
#include "common/path.h"
#include "common/program.h"
#include "stages/own/stage.h"

#define MAX_ENV 512

extern char **environ;

/* What a stage's environment has of its own. */
typedef struct {
    char threads[64], instance[64], filter[64], library[SL_PATH + 64];
} own_env;

/* The environment of a stage: ours, with the thread count of its configuration, its number, which
 * filter it is, and where a stage of one's own finds the library that belongs to this dispatcher.
 * `own` and `all` are the caller's memory. */
static char **stage_env(const sl_seats *s, const sl_seats_seat *p, own_env *own, char *all[MAX_ENV])
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int n = 0, threads = p->conf->threads;
    /* stages share the cores: none may spin for work */
    static char passive[] = "OMP_WAIT_POLICY=PASSIVE";
    if (!threads) threads = cpus > 2 * s->count ? (int)cpus / 2 : (int)cpus;
    snprintf(own->threads, sizeof own->threads, "OMP_NUM_THREADS=%d", threads > 0 ? threads : 1);
    snprintf(own->instance, sizeof own->instance, "SLUICE_INSTANCE=%d", p->conf->instance);
    snprintf(own->filter, sizeof own->filter, "SLUICE_FILTER=%s",
             sl_role_is_filter(p->conf->role) ? sl_role_name(p->conf->role) : "");
    snprintf(own->library, sizeof own->library, "SLUICE_STAGE_LIB=%s/libsluice-stage.so.%d",
             s->bin_dir, SL_STAGE_ABI);
    for (char **e = environ; *e && n < MAX_ENV - 6; e++)
        if (strncmp(*e, "OMP_NUM_THREADS=", 16) && strncmp(*e, "OMP_WAIT_POLICY=", 16) &&
            strncmp(*e, "SLUICE_INSTANCE=", 16) && strncmp(*e, "SLUICE_STAGE_LIB=", 17) &&
            strncmp(*e, "SLUICE_FILTER=", 14))
            all[n++] = *e;
    all[n++] = own->threads;
    all[n++] = own->instance;
    all[n++] = own->filter;
    all[n++] = own->library;
    all[n++] = passive;
    all[n] = NULL;
    return all;
}

/* Sluice's own programs log by themselves; of others' lines somebody has to say whose they are. */
static int open_voice(sl_seats_seat *p, const sl_program *program)
{
    sl_err err = {0};
    int end = -1;
    sl_voice_close(&p->voice);
    if (!strncmp(sl_path_last(program->path), "sluice-", 7)) return -1;
    if (sl_voice_open(&p->voice, &end, p->name, &err)) sl_log(SL_LOG_WARN, "%s", err.msg);
    return end;
}

/* After fork, before exec: only async-signal-safe calls. `terminal`: a process whose group and
 * whose standard input and output this one shares; 0: none. voice: where it prints; -1: to ours. */
static void become_stage(const char *path, char *const argv[], char *const envp[], int voice,
                         pid_t dispatcher_pid, pid_t terminal)
{
    sigset_t none;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != dispatcher_pid) _exit(127);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (terminal) {
        signal(SIGINT, SIG_DFL); /* the dispatcher ignores it */
        setpgid(0, getpgid(terminal));
    } else {
        int null = open("/dev/null", O_RDONLY);
        if (null >= 0) dup2(null, 0);
        if (voice >= 0) dup2(voice, 2);
        dup2(2, 1);
    }
    if (strchr(path, '/')) execve(path, argv, envp); /* never by a shell */
    else execvpe(path, argv, envp);
    _exit(127);
}

#define OPTIONS 8 /* words that every stage is given */

typedef struct {
    sl_program program; /* what the others point into */
    own_env own;
    const char *path; /* of what is executed: the program, or the wrapper */
    char *argv[SL_WRAPPER_WORDS + SL_PROGRAM_WORDS + OPTIONS + SL_CONF_ARGS + 1], *env[MAX_ENV];
    char **envp;
} command_line;

static sl_code make_command(command_line *c, const sl_seats *s, int seat, sl_err *err)
{
    const sl_seats_seat *p = &s->at[seat];
    char *const options[OPTIONS] = {
        (char *)"--connect", (char *)s->endpoint,  (char *)"--conf",   (char *)s->conf_path,
        (char *)"--model",   (char *)s->model_dir, (char *)"--device", (char *)p->conf->device};
    int n = 0;
    const sl_code rc = sl_program_find(&c->program, p->conf->program, s->bin_dir, err);
    if (rc) return rc;
    for (; seat == s->attached && s->wrapper[n]; n++) {
        if (n == SL_WRAPPER_WORDS)
            return sl_fail(err, SL_ARG, "%s: more than %d words behind --", p->name,
                           SL_WRAPPER_WORDS);
        c->argv[n] = s->wrapper[n];
    }
    c->path = n ? c->argv[0] : c->program.path;
    for (int i = 0; i < c->program.count; i++) /* a wrapper does not know where ours are */
        c->argv[n++] = !i && c->path != c->program.path ? c->program.path : c->program.word[i];
    for (int i = 0; i < OPTIONS; i++) c->argv[n++] = options[i];
    for (int i = 0; i < p->conf->arg_count; i++) c->argv[n++] = (char *)p->conf->args[i];
    c->argv[n] = NULL;
    c->envp = stage_env(s, p, &c->own, c->env);
    return SL_OK;
}

sl_code sl_start_process(sl_seats *s, int seat, sl_err *err)
{
    static command_line c;
    sl_seats_seat *p = &s->at[seat];
    const pid_t self = getpid(), terminal = seat == s->attached ? s->terminal : 0;
    sl_err why = {0};
    p->pid = 0;
    const sl_code unknown = make_command(&c, s, seat, &why);
    if (unknown || access(c.program.path, X_OK))
        return sl_fail(err, SL_ARG, "%s: program %.200s: %.200s", p->name, c.program.path,
                       unknown ? why.msg : strerror(errno));
    const int voice = terminal ? -1 : open_voice(p, &c.program);
    const pid_t child = fork();
    if (child == 0) become_stage(c.path, c.argv, c.envp, voice, self, terminal);
    const int bad = errno;
    if (voice >= 0) close(voice);
    if (child < 0) return sl_fail_errno(err, bad, "fork");
    p->pid = child;
    if (p->voice) sl_voice_of(p->voice, child);
    return SL_OK;
}
