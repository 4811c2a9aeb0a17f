/* t_s3.h - a real HTTP server that speaks S3 (tests/s3/server.py), started by the test, its keys in
 * the environment of whoever is started after it.
 *
 * It wants the virtual environment that tests/s3.sh makes; SLUICE_S3_PYTHON names another. */
#ifndef T_S3_H
#define T_S3_H

#include "tests/t.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <curl/curl.h>

#define T_S3_BUCKET "sluice-test"
#define T_S3_START_S 60

typedef struct {
    pid_t pid;
    int port;
    const char *address;      /* it listens at */
    char url[64];             /* of the store */
    char key[64], secret[96]; /* its user's */
} t_s3;

static inline const char *t_s3_python(void)
{
    const char *given = getenv("SLUICE_S3_PYTHON");
    return given ? given : "build/s3/venv/bin/python";
}

/* false: there is no S3 server on this machine. */
static inline bool t_s3_is_there(void)
{
    return !access(t_s3_python(), X_OK);
}

/* What AWS's variables say is this store alone. */
static inline void t_s3_environment(const t_s3 *s)
{
    static const char *const OTHERS[] = {
        "AWS_SESSION_TOKEN",          "AWS_PROFILE",   "AWS_REGION",
        "AWS_DEFAULT_REGION",         "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL",
        "AWS_SHARED_CREDENTIALS_FILE"};
    for (size_t i = 0; i < sizeof OTHERS / sizeof *OTHERS; i++) unsetenv(OTHERS[i]);
    setenv("AWS_ENDPOINT_URL_S3", s->url, 1);
    setenv("AWS_ACCESS_KEY_ID", s->key, 1);
    setenv("AWS_SECRET_ACCESS_KEY", s->secret, 1);
    setenv("no_proxy", s->address, 1);
}

static inline void t_s3_open_at(t_s3 *s, const char *address)
{
    int out[2];
    char line[256] = "";
    *s = (t_s3){.address = address};
    assert_int_equal(pipe(out), 0);
    fflush(NULL);
    s->pid = fork();
    if (!s->pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(out[1], 1);
        close(out[0]);
        close(out[1]);
        /* its first word tells Python which environment it is of */
        execl(t_s3_python(), t_s3_python(), "tests/s3/server.py", T_S3_BUCKET, address,
              (char *)NULL);
        _exit(127);
    }
    assert_true(s->pid > 0);
    close(out[1]);
    for (size_t n = 0; n < sizeof line - 1 && (!n || line[n - 1] != '\n'); n++) {
        struct pollfd p = {out[0], POLLIN, 0};
        if (poll(&p, 1, T_S3_START_S * 1000) < 1 || read(out[0], line + n, 1) != 1)
            fail_msg("the S3 server did not start");
    }
    close(out[0]);
    if (sscanf(line, "%d %63s %95s", &s->port, s->key, s->secret) != 3)
        fail_msg("the S3 server says \"%s\"", line);
    snprintf(s->url, sizeof s->url, "http://%s:%d", address, s->port);
    t_s3_environment(s);
}

static inline void t_s3_open(t_s3 *s)
{
    t_s3_open_at(s, "127.0.0.1");
}

static inline void t_s3_close(t_s3 *s)
{
    if (s->pid <= 0) return;
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
    s->pid = 0;
}

static inline size_t t_s3_append(char *data, size_t one, size_t n, void *self)
{
    FILE *to = self;
    return fwrite(data, one, n, to);
}

/* GET of an address; the body, malloc'd, *code its status (0: no answer), *type the answer's. */
static inline char *t_s3_get(const char *url, const char *range, long *code, char type[64],
                             size_t *size)
{
    char *text = NULL;
    const char *is = NULL;
    CURL *c = curl_easy_init();
    FILE *to = open_memstream(&text, size);
    assert_non_null(to);
    *code = 0;
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 30L);
    if (range) curl_easy_setopt(c, CURLOPT_RANGE, range);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, t_s3_append);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, to);
    if (!curl_easy_perform(c)) curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, code);
    curl_easy_getinfo(c, CURLINFO_CONTENT_TYPE, &is);
    snprintf(type, 64, "%s", is ? is : "");
    curl_easy_cleanup(c);
    fclose(to);
    return text;
}

/* What tests/s3/server.py does for the test; its answer, malloc'd. */
static inline char *t_s3_control(const t_s3 *s, const char *what)
{
    char url[1200], type[64];
    long code;
    size_t size;
    snprintf(url, sizeof url, "%s/-/%s", s->url, what);
    char *text = t_s3_get(url, NULL, &code, type, &size);
    if (code != 200) fail_msg("%s: HTTP %ld", url, code);
    return text;
}

static inline void t_s3_fault(const t_s3 *s, const char *name, int n, int skip)
{
    char what[64];
    snprintf(what, sizeof what, "fault/%s/%d/%d", name, n, skip);
    free(t_s3_control(s, what));
}

/* Of the requests since the last look those that have `word`. */
static inline int t_s3_seen(const t_s3 *s, const char *word)
{
    char *text = t_s3_control(s, "seen"), *save = NULL;
    int n = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        n += strstr(line, word) != NULL;
    free(text);
    return n;
}

#endif
