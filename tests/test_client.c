/* test_client.c - the client's verbs against a real server: what they print, fetch and end
 * with,
 * signals, servers that die, tokens, the completion's ids. takes: 10 s. limit: 300 s
 *
 * Answers of a server that misbehaves are tests/test_remote.c's. */
#include "tests/t_serve.h"

#define JOB                                                                                        \
    "--image", T_IMAGE, "--prompt", "a cat", "--width", "48", "--height", "32", "--frames", "9"
#define SMALL JOB, "--steps", "3", "--seed", "5"
#define LONG JOB, "--width", "96", "--height", "64", "--steps", "1000"

static t_serve s;
/* What a command said. */
static char *out, *err;
static char out_path[260], err_path[260];

/* ---- commands ---- */

static void read_said(void)
{
    size_t n;
    free(out);
    free(err);
    out = t_read(out_path, &n);
    err = t_read(err_path, &n);
    assert_true(out && err);
}

static pid_t start_all(const char *const *args)
{
    pid_t pid = fork();
    if (pid == 0) {
        char program[1024];
        snprintf(program, sizeof program, "%s/sluice", t_bin());
        setenv("SLUICE_SERVER", s.state, 0);
        setenv("TMPDIR", s.base, 1);
        dup2(open("/dev/null", O_RDONLY), 0);
        dup2(open(out_path, O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
        dup2(open(err_path, O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
        execv(program, (char *const *)args);
        _exit(127);
    }
    assert_true(pid > 0);
    return pid;
}

/* The exit status, 128 + a signal's number. */
static int finish(pid_t pid)
{
    int status = 0;
    const double until = t_seconds() + T_SERVE_S;
    pid_t got;
    while (!(got = waitpid(pid, &status, WNOHANG)) && t_seconds() < until) usleep(2000);
    if (!got) {
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        read_said();
        fail_msg("the command did not end in %d s: %s", T_SERVE_S, err);
    }
    read_said();
    if (strstr(err, "Sanitizer") || strstr(err, "runtime error:")) fail_msg("%s", err);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

#define START(...) start_all((const char *const[]){"sluice", __VA_ARGS__, NULL})
/* The command must end with this status. */
#define SLUICE(want, ...)                                                                          \
    do {                                                                                           \
        int got_ = finish(START(__VA_ARGS__));                                                     \
        if (got_ != (want)) fail_msg("status %d, want %d: %s%s", got_, (want), out, err);          \
    } while (0)

/* Until the running command has said this on stderr. */
static void until_said(pid_t pid, const char *part)
{
    siginfo_t ended = {0};
    const double until = t_seconds() + T_SERVE_S;
    size_t n;
    while (t_seconds() < until) {
        char *text = t_read(err_path, &n);
        const bool there = text && strstr(text, part);
        free(text);
        if (there) return;
        if (waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG | WNOWAIT) || ended.si_pid) break;
        usleep(5000);
    }
    kill(pid, SIGKILL);
    finish(pid);
    fail_msg("the command did not say \"%s\": %s", part, err);
}

/* The first word of what was said, in one of eight static buffers. */
static const char *word(const char *text)
{
    return t_format("%.*s", (int)strcspn(text, " \n"), text);
}

static const char *at(const char *name)
{
    return t_format("%s/%s", s.base, name);
}

static json_t *json_of(const char *text)
{
    json_error_t e;
    json_t *o = json_loads(text, 0, &e);
    if (!o) fail_msg("no JSON (%s): %s", e.text, text);
    return o;
}

static int count_lines(const char *text)
{
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

/* ---- set-up ---- */

static int open_server(void **state)
{
    (void)state;
    t_serve_open(&s);
    snprintf(out_path, sizeof out_path, "%s/said.out", s.base);
    snprintf(err_path, sizeof err_path, "%s/said.err", s.base);
    t_serve_conf(&s, "");
    return 0;
}

static int open_and_start(void **state)
{
    open_server(state);
    t_serve_start(&s, T_MODEL, NULL);
    return 0;
}

static int close_server(void **state)
{
    (void)state;
    free(out);
    free(err);
    out = err = NULL;
    t_serve_close(&s);
    return 0;
}

static void run_here(const char *to)
{
    SLUICE(0, "run", "--model", T_MODEL, "--conf", s.conf, SMALL, "-o", to, "--quiet");
}

/* ---- one job ---- */

static void a_job_from_submit_to_delete(void **state)
{
    (void)state;
    char video[260], trace[260];
    snprintf(video, sizeof video, "%s", at("video.mp4"));
    snprintf(trace, sizeof trace, "%s", at("trace.json"));
    run_here(at("here.mp4"));
    SLUICE(0, "submit", SMALL);
    char id[64];
    snprintf(id, sizeof id, "%s", word(out));
    assert_string_equal(out, t_format("%s\n", id));
    assert_int_equal(strlen(id), strlen("video_") + 32);
    SLUICE(0, "wait", id, "-o", video);
    T_SAYS(out, "48x32, 9 frames at 16 fps, 3 steps");
    assert_true(t_same_file(video, at("here.mp4")));
    SLUICE(0, "wait", "--quiet", id);
    assert_string_equal(out, "");
    assert_string_equal(err, "");
    SLUICE(0, "status", id);
    T_SAYS(out, "completed, 100 %");
    T_SAYS(out, "  prompt     a cat\n");
    T_SAYS(out, "seed 5");
    SLUICE(0, "status", "--json", id);
    json_t *o = json_of(out);
    assert_string_equal(json_string_value(json_object_get(o, "status")), "completed");
    json_decref(o);
    SLUICE(0, "report", id);
    T_SAYS(out, "stage    device");
    T_SAYS(out, "unaccounted");
    SLUICE(0, "report", id, "--json");
    o = json_of(out);
    assert_string_equal(json_string_value(json_object_get(o, "status")), "done");
    json_decref(o);
    SLUICE(0, "trace", id, "-o", trace);
    size_t n;
    char *text = t_read(trace, &n);
    o = json_of(text);
    assert_true(json_array_size(json_object_get(o, "traceEvents")) > 0);
    json_decref(o);
    SLUICE(0, "trace", id);
    assert_string_equal(out, text);
    free(text);
    SLUICE(0, "logs", "-f", id);
    T_SAYS(out, " info: completed\n");
    SLUICE(0, "logs", "--json", id);
    T_SAYS(out, t_format("\"job\":\"%s\"", id));
    SLUICE(0, "cancel", id); /* once more is no error */
    T_SAYS(out, "completed");
    SLUICE(0, "delete", id);
    assert_string_equal(out, t_format("%s  deleted\n", id));
    SLUICE(2, "status", id);
    T_SAYS(err, t_format("sluice: %s: ", id));
    SLUICE(2, "wait", id);
}

static void the_video_to_standard_output(void **state)
{
    (void)state;
    SLUICE(0, "submit", "--wait", SMALL, "-o", at("a.mp4"), "--quiet");
    SLUICE(0, "list", "--ids");
    char id[64];
    snprintf(id, sizeof id, "%s", word(out));
    SLUICE(0, "wait", "-o", "-", id, "--quiet");
    assert_true(t_same_file(out_path, at("a.mp4")));
    SLUICE(0, "submit", "--wait", SMALL, "-o", "-");
    assert_true(t_same_file(out_path, at("a.mp4")));
    T_SAYS(err, "denoise");
}

static void a_run_on_a_server(void **state)
{
    (void)state;
    run_here(at("here.mp4"));
    SLUICE(0, "run", "--server", s.state, SMALL, "-o", at("there.mp4"), "--json", at("there.json"),
           "--trace", at("there.trace"), "--preview", at("there.png"), "--dump", at("dump"),
           "--dump-blocks");
    assert_true(t_same_file(at("here.mp4"), at("there.mp4")));
    T_SAYS(err, "denoise  3/3  ");
    T_SAYS(err, "mux      ");
    T_SAYS(out, "there.mp4  48x32, 9 frames at 16 fps, 3 steps, seed 5");
    T_SAYS(out, "stage    device");
    size_t n;
    char *text = t_read(at("there.json"), &n);
    json_t *o = json_of(text);
    assert_int_equal(json_array_size(json_object_get(o, "steps")), 3);
    json_decref(o);
    free(text);
    text = t_read(at("there.png"), &n);
    assert_true(n > 8 && !memcmp(text, "\x89PNG", 4));
    free(text);
    assert_int_equal(access(at("there.trace"), R_OK), 0);
    assert_int_equal(access(at("dump/blocks/block.0.safetensors"), R_OK), 0);
    /* what was dumped there is run on from here */
    SLUICE(0, "replay", at("dump"), "--from", "decode", "--conf", s.conf, "-o", at("again.mp4"),
           "--quiet");
    assert_true(t_same_file(at("here.mp4"), at("again.mp4")));
    /* the same over TCP */
    SLUICE(0, "run", "--server", s.url, SMALL, "-o", at("tcp.mp4"), "--quiet");
    assert_string_equal(out, "");
    assert_string_equal(word(err), ""); /* not even the id */
    assert_true(t_same_file(at("here.mp4"), at("tcp.mp4")));
}

static void a_file_of_jobs(void **state)
{
    (void)state;
    t_write(at("jobs.jsonl"),
            t_format("{\"seed\": 1, \"output\": \"%s\", \"json\": \"%s\"}\n\n"
                     "{\"seed\": 2, \"steps\": 2, \"o\": \"%s\", \"priority\": 3}\n",
                     at("j1.mp4"), at("j1.json"), at("j2.mp4")));
    /* steps enough to be told of one, however slow the command is to ask */
    SLUICE(0, "run", "--server", s.state, JOB, "--steps", "40", "--jobs", at("jobs.jsonl"),
           "--json", at("all.json"));
    T_SAYS(err, "job 1 denoise");
    assert_int_equal(access(at("j1.mp4"), R_OK), 0);
    assert_int_equal(access(at("j2.mp4"), R_OK), 0);
    size_t n;
    char *text = t_read(at("all.json"), &n);
    json_t *o = json_of(text), *jobs = json_object_get(o, "jobs");
    assert_int_equal(json_array_size(jobs), 2);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(jobs, 1), "step_count")), 2);
    json_decref(o);
    free(text);
    assert_int_equal(access(at("j1.json"), R_OK), 0);
    /* submitted alone, twice by one key: the same jobs */
    SLUICE(0, "submit", JOB, "--steps", "2", "--jobs", at("jobs.jsonl"), "--key", "night",
           "--json");
    SLUICE(0, "submit", JOB, "--steps", "2", "--jobs", at("jobs.jsonl"), "--key", "night");
    assert_int_equal(count_lines(out), 2);
    char *first = strdup(out);
    SLUICE(0, "submit", JOB, "--steps", "2", "--jobs", at("jobs.jsonl"), "--key", "night");
    assert_string_equal(out, first);
    char a[64], b[64];
    snprintf(a, sizeof a, "%s", word(first));
    snprintf(b, sizeof b, "%s", word(strchr(first, '\n') + 1));
    assert_string_not_equal(a, b);
    assert_int_equal(mkdir(at("videos"), 0700), 0);
    SLUICE(0, "wait", a, b, "-o", at("videos"));
    assert_int_equal(access(t_format("%s/%s.mp4", at("videos"), a), R_OK), 0);
    assert_int_equal(access(t_format("%s/%s.mp4", at("videos"), b), R_OK), 0);
    SLUICE(2, "wait", a, b, "-o", at("no-folder"));
    T_SAYS(err, "is no folder, want one for 2 videos");
    free(first);
    /* one pipe is the picture of both */
    assert_int_equal(mkfifo(at("pipe.png"), 0600), 0);
    FILE *writer = popen(t_format("cat " T_IMAGE " >%s", at("pipe.png")), "r");
    t_write(at("pipe.jsonl"), "{\"seed\": 1}\n{\"seed\": 2}\n");
    SLUICE(0, "submit", JOB, "--steps", "2", "--image", at("pipe.png"), "--jobs", at("pipe.jsonl"));
    assert_int_equal(pclose(writer), 0);
    assert_int_equal(count_lines(out), 2);
    snprintf(a, sizeof a, "%s", word(out));
    snprintf(b, sizeof b, "%s", word(strchr(out, '\n') + 1));
    SLUICE(0, "wait", a, b, "--quiet");
    /* a line that the server refuses */
    t_write(at("bad.jsonl"), "{\"seed\": 1}\n{\"frames\": 6}\n");
    SLUICE(2, "submit", JOB, "--jobs", at("bad.jsonl"));
    assert_int_equal(count_lines(out), 1);
    T_SAYS(err, "1 of 2 jobs are submitted, then: ");
    T_SAYS(err, "bad.jsonl:2: ");
    T_SAYS(err, "want 4k + 1");
    /* a run is all of them or none */
    t_write(at("bad.jsonl"), "{\"steps\": 1000}\n{\"frames\": 6}\n");
    SLUICE(2, "run", "--server", s.state, JOB, "--jobs", at("bad.jsonl"));
    SLUICE(0, "list", "--ids", "--limit", "1");
    SLUICE(1, "wait", word(out));
    T_SAYS(err, ": cancelled");
}

static void lists(void **state)
{
    (void)state;
    char ids[4][64];
    SLUICE(0, "list");
    assert_string_equal(out, "");
    for (int i = 0; i < 4; i++) {
        SLUICE(0, "submit", JOB, "--steps", "2", "--prompt", i == 2 ? "tab\there\x1b[1m" : "fog");
        snprintf(ids[i], sizeof ids[i], "%s", word(out));
    }
    SLUICE(0, "wait", ids[0], ids[1], ids[2], ids[3], "--quiet");
    SLUICE(0, "list");
    T_SAYS(out, "id  ");
    T_SAYS(out, "completed   100%");
    T_SAYS(out, "48x32");
    assert_null(strchr(out, '\x1b'));
    T_SAYS(out, "tab?here?[1m");
    SLUICE(0, "list", "--ids", "--order", "asc");
    assert_string_equal(out, t_format("%s\n%s\n%s\n%s\n", ids[0], ids[1], ids[2], ids[3]));
    SLUICE(0, "list", "--ids", "--limit", "2");
    assert_string_equal(out, t_format("%s\n%s\n", ids[3], ids[2]));
    SLUICE(0, "list", "--ids", "--limit", "2", "--after", ids[2]);
    assert_string_equal(out, t_format("%s\n%s\n", ids[1], ids[0]));
    SLUICE(0, "list", "--limit", "1");
    T_SAYS(out, t_format("more: --all, or --after %s\n", ids[3]));
    SLUICE(0, "list", "--all", "--json");
    json_t *o = json_of(out);
    assert_int_equal(json_array_size(json_object_get(o, "data")), 4);
    assert_true(json_is_false(json_object_get(o, "has_more")));
    json_decref(o);
}

/* ---- the end before the end ---- */

static void a_deadline_and_a_cancel(void **state)
{
    (void)state;
    SLUICE(0, "submit", LONG);
    char id[64];
    snprintf(id, sizeof id, "%s", word(out));
    SLUICE(124, "wait", id, "--timeout", "0.3");
    T_SAYS(err, "--timeout");
    SLUICE(2, "cancel", "video_0", id); /* the first is none; the other is cancelled all the same */
    T_SAYS(err, "sluice: video_0: ");
    SLUICE(1, "wait", id);
    T_SAYS(err, t_format("sluice: %s: cancelled\n", id));
    SLUICE(0, "list");
    T_SAYS(out, "cancelled");
}

static void ctrl_c_cancels_a_run_and_leaves_a_wait(void **state)
{
    (void)state;
    pid_t pid = START("run", "--server", s.state, LONG, "-o", at("c.mp4"));
    until_said(pid, "denoise");
    kill(pid, SIGINT);
    assert_int_equal(finish(pid), 1);
    T_SAYS(err, "c.mp4: cancelled");
    assert_int_equal(access(at("c.mp4"), F_OK), -1);
    SLUICE(0, "list", "--ids");
    SLUICE(0, "status", word(out));
    T_SAYS(out, "cancelled");
    /* a wait is left, its job is not */
    SLUICE(0, "submit", LONG);
    char id[64];
    snprintf(id, sizeof id, "%s", word(out));
    pid = START("wait", id, "-o", at("d.mp4"));
    until_said(pid, "denoise");
    kill(pid, SIGINT);
    assert_int_equal(finish(pid), 128 + SIGINT);
    T_SAYS(err, t_format("the job goes on: sluice wait %s", id));
    SLUICE(0, "status", id);
    T_SAYS(out, "in progress");
    /* SIGTERM leaves a run, too */
    SLUICE(0, "cancel", id);
    pid = START("run", "--server", s.state, LONG, "-o", at("e.mp4"));
    until_said(pid, "denoise");
    kill(pid, SIGTERM);
    assert_int_equal(finish(pid), 128 + SIGTERM);
    T_SAYS(err, "the job goes on: sluice wait video_");
    SLUICE(0, "cancel", word(strstr(err, "video_")));
    assert_int_equal(t_count_files(s.base, ".tmp-"), 0);
}

static void a_second_ctrl_c_leaves_at_once(void **state)
{
    (void)state;
    pid_t pid = START("run", "--server", s.state, LONG, "-o", at("c.mp4"));
    until_said(pid, "denoise");
    kill(s.pid, SIGSTOP); /* a cancel that is not answered */
    kill(pid, SIGINT);
    usleep(400000);
    kill(pid, SIGINT);
    int status = finish(pid);
    kill(s.pid, SIGCONT);
    assert_int_equal(status, 128 + SIGINT);
    T_SAYS(err, "could not be cancelled: interrupted");
}

static void a_wait_survives_the_server(void **state)
{
    (void)state;
    SLUICE(0, "submit", JOB, "--steps", "60", "--seed", "5");
    char id[64];
    snprintf(id, sizeof id, "%s", word(out));
    pid_t pid = START("wait", id, "-o", at("v.mp4"));
    until_said(pid, "denoise");
    kill(s.pid, SIGKILL);
    t_serve_wait(&s);
    until_said(pid, "going on when it answers");
    t_serve_start(&s, T_MODEL, NULL);
    assert_int_equal(finish(pid), 0);
    SLUICE(0, "run", "--model", T_MODEL, "--conf", s.conf, JOB, "--steps", "60", "--seed", "5",
           "-o", at("here.mp4"), "--quiet");
    assert_true(t_same_file(at("v.mp4"), at("here.mp4")));
}

static void no_server(void **state)
{
    (void)state;
    SLUICE(3, "list");
    T_SAYS(err, "sluice: no server at ");
    T_SAYS(err, "sluice serve starts one");
    SLUICE(3, "wait", "video_1");
    SLUICE(3, "run", "--server", "http://127.0.0.1:1", SMALL, "-o", at("x.mp4"));
    SLUICE(3, "list", "--server", at("nothing"));
    assert_int_equal(access(at("x.mp4"), F_OK), -1);
}

/* ---- who may ---- */

static void tokens(void **state)
{
    (void)state;
    t_write(s.tokens, "ana a-long-token-of-ana\nben a-long-token-of-ben\n");
    chmod(s.tokens, 0600);
    t_serve_start(&s, T_MODEL, (const char *const[]){"--tokens", s.tokens, NULL});
    t_write(at("ana"), "a-long-token-of-ana\n");
    chmod(at("ana"), 0600);
    t_write(at("open"), "a-long-token-of-ana\n");
    chmod(at("open"), 0644);
    SLUICE(2, "list", "--server", s.url);
    T_SAYS(err, "sluice: ");
    SLUICE(2, "list", "--server", s.url, "--token-file", at("open"));
    T_SAYS(err, "has mode 0644, want 0600");
    SLUICE(0, "submit", SMALL, "--server", s.url, "--token-file", at("ana"), "--wait", "-o",
           at("v.mp4"));
    SLUICE(0, "list", "--ids", "--server", s.url, "--token-file", at("ana"));
    char id[64];
    snprintf(id, sizeof id, "%s", word(out));
    assert_int_equal(strlen(id), 38);
    setenv("SLUICE_TOKEN", "a-long-token-of-ben", 1);
    SLUICE(0, "list", "--ids", "--server", s.url);
    assert_string_equal(out, "");
    SLUICE(2, "status", id, "--server", s.url);
    setenv("SLUICE_TOKEN", "nobody's", 1);
    SLUICE(2, "list", "--server", s.url);
    unsetenv("SLUICE_TOKEN");
    SLUICE(0, "status", id); /* the socket sees all */
}

/* ---- refusals ---- */

static void what_is_wrong_is_said_in_a_line(void **state)
{
    (void)state;
#define REFUSED(says, ...)                                                                         \
    do {                                                                                           \
        SLUICE(2, __VA_ARGS__);                                                                    \
        T_SAYS(err, says);                                                                         \
        assert_int_equal(count_lines(err), 1);                                                     \
        assert_int_equal(strncmp(err, "sluice: ", 8), 0);                                          \
        assert_string_equal(out, "");                                                              \
    } while (0)
    REFUSED("unknown command \"wiat\", did you mean wait?", "wiat");
    REFUSED("unknown option --stpes, did you mean --steps?", "submit", "--stpes", "3");
    FILE *many = fopen(at("many.jsonl"), "w");
    for (int i = 0; i < 1500; i++) fputs("{}\n", many);
    fclose(many);
    REFUSED("many.jsonl has more than 1024 jobs", "submit", SMALL, "--jobs", at("many.jsonl"));
    REFUSED("unknown option --ordr, did you mean --order?", "list", "--ordr", "asc");
    REFUSED("--order is up, want asc or desc", "list", "--order", "up");
    REFUSED("--limit is 0", "list", "--limit", "0");
    REFUSED("--limit wants a value", "list", "--limit");
    REFUSED("--all takes no value", "list", "--all=1");
    REFUSED("--after is \"a/b\"", "list", "--after", "a/b");
    REFUSED("\"x\" is no option", "list", "x");
    REFUSED("is no id of a job", "status", "../../etc");
    REFUSED("status wants the id of a job", "status");
    REFUSED("unknown option -z", "wait", "-z", "video_1");
    REFUSED("logs takes one id", "logs", "video_1", "video_2");
    REFUSED("--timeout is 0", "wait", "video_1", "--timeout", "0");
    REFUSED("output /nowhere/x.mp4 cannot be written", "wait", "video_1", "-o", "/nowhere/x.mp4");
    REFUSED("no prompt: want --prompt TEXT", "submit", "--image", T_IMAGE);
    REFUSED("--steps is \"3x\", want an integer", "submit", SMALL, "--steps", "3x");
    REFUSED("--image: ", "submit", "--prompt", "", "--image", "no-such.png");
    REFUSED("--output wants --wait", "submit", SMALL, "-o", "x.mp4");
    REFUSED("--dump wants --wait", "submit", SMALL, "--dump", "x");
    REFUSED("--device is for a run on this machine", "run", "--server", s.state, "--device", "cpu");
    REFUSED("--key is \"a b\"", "submit", SMALL, "--key", "a b");
    REFUSED("output " T_IMAGE " is also the input", "run", "--server", s.state, SMALL, "-o",
            T_IMAGE);
    REFUSED("is not valid UTF-8", "submit", SMALL, "--prompt", "\xff");
    REFUSED("want 4k + 1", "submit", SMALL, "--frames", "6"); /* the server's words */
    REFUSED("model is", "submit", SMALL, "--model", "another");
    REFUSED("completion wants the shell's name", "completion", "fish");
    REFUSED("unknown command \"serv\", did you mean serve?", "help", "serv");
    t_write(at("jobs.jsonl"), "{\"seed\": 1}\n{\"sede\": 2}\n");
    REFUSED("jobs.jsonl:2: unknown key sede, did you mean seed?", "submit", SMALL, "--jobs",
            at("jobs.jsonl"));
    t_write(at("jobs.jsonl"), "{\"output\": \"a.mp4\"}\n{\"output\": \"./a.mp4\"}\n");
    REFUSED("jobs.jsonl:2: output ./a.mp4 is also the output of line 1", "run", "--server", s.state,
            SMALL, "--jobs", at("jobs.jsonl"));
    SLUICE(0, "list", "--ids");
    assert_string_equal(out, ""); /* nothing of it was accepted */
}

/* ---- completion of ids ---- */

static void ids_are_completed(void **state)
{
    (void)state;
    SLUICE(0, "submit", SMALL, "--wait", "-o", at("v.mp4"), "--quiet");
    SLUICE(0, "list", "--ids");
    char id[64], command[2000];
    snprintf(id, sizeof id, "%s", word(out));
    snprintf(command, sizeof command,
             ". <('%s/sluice' completion bash); COMP_WORDS=('%s/sluice' wait --server '%s' vid); "
             "COMP_CWORD=4; _sluice; printf '%%s\\n' \"${COMPREPLY[@]}\" >'%s'",
             t_bin(), t_bin(), s.state, at("completed"));
    const char *const bash[] = {"bash", "--norc", "-c", command, NULL};
    pid_t pid = fork();
    if (pid == 0) {
        execvp("bash", (char *const *)bash);
        _exit(127);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    size_t n;
    char *text = t_read(at("completed"), &n);
    assert_string_equal(text, t_format("%s\n", id));
    free(text);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, open_and_start, close_server)
#define T_ALONE(name) cmocka_unit_test_setup_teardown(name, open_server, close_server)
    const struct CMUnitTest tests[] = {
        T(a_job_from_submit_to_delete),
        T(the_video_to_standard_output),
        T(a_run_on_a_server),
        T(a_file_of_jobs),
        T(lists),
        T(a_deadline_and_a_cancel),
        T(ctrl_c_cancels_a_run_and_leaves_a_wait),
        T(a_second_ctrl_c_leaves_at_once),
        T(a_wait_survives_the_server),
        T_ALONE(no_server),
        T_ALONE(tokens),
        T(what_is_wrong_is_said_in_a_line),
        T(ids_are_completed),
    };
    unsetenv("SLUICE_SERVER");
    unsetenv("SLUICE_TOKEN");
    curl_global_init(CURL_GLOBAL_DEFAULT);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
