/* log.c - one line a message on stderr: composing it in one buffer and writing it at
 * once. job_lock guards the job's name, which the main thread sets while others log. */
#include "common/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const NAMES[] = {
#define X(name, text) text,
    SL_LOG_LEVELS(X)
#undef X
};

#define COMPLAINT 1600 /* bytes of the longest, its NUL included; more is cut off */

static char log_name[32] = "sluice";
static _Atomic int log_level = SL_LOG_INFO, log_format = SL_LOG_AS_TEXT;
static pthread_mutex_t job_lock = PTHREAD_MUTEX_INITIALIZER;
static char log_job[SL_LOG_JOB];

void sl_log_open(const char *name, sl_log_level level)
{
    snprintf(log_name, sizeof log_name, "%s", name ? name : "sluice");
    atomic_store(&log_level, level);
}

void sl_log_use_format(sl_log_format format)
{
    atomic_store(&log_format, (int)format);
}

void sl_log_job(const char *name)
{
    pthread_mutex_lock(&job_lock);
    snprintf(log_job, sizeof log_job, "%s", name ? name : "");
    pthread_mutex_unlock(&job_lock);
}

static void current_job(char out[SL_LOG_JOB])
{
    pthread_mutex_lock(&job_lock);
    memcpy(out, log_job, SL_LOG_JOB);
    pthread_mutex_unlock(&job_lock);
}

bool sl_log_shows(sl_log_level level)
{
    return (int)level <= atomic_load_explicit(&log_level, memory_order_relaxed);
}

static bool is_json(void)
{
    return atomic_load_explicit(&log_format, memory_order_relaxed) == SL_LOG_AS_JSON;
}

/* Whose a line is. */
typedef struct {
    const char *name;
    int pid;
} speaker;

static speaker ourselves(void)
{
    return (speaker){log_name, (int)getpid()};
}

static void put(const char *line, size_t n)
{
    while (write(STDERR_FILENO, line, n) < 0 && errno == EINTR) {
    }
}

/* ---- text ---- */

/* "12:34:56.789 name[pid] level: " into line; bytes written. */
static int line_head(char *line, size_t size, const speaker *who, sl_log_level level)
{
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    return snprintf(line, size, "%02d:%02d:%02d.%03d %s[%d] %s: ", tm.tm_hour, tm.tm_min, tm.tm_sec,
                    (int)(now.tv_nsec / 1000000), who->name, who->pid, sl_log_level_name(level));
}

static void write_text(const speaker *who, sl_log_level level, const char *fmt, va_list ap)
{
    char line[SL_LOG_LINE];
    const size_t room = sizeof line - 1; /* vsnprintf's NUL gives its place to the newline */
    size_t head = (size_t)line_head(line, sizeof line, who, level), end;
    int n = vsnprintf(line + head, sizeof line - head, fmt, ap);
    if (n < 0)
        n = snprintf(line + head, sizeof line - head, "(a message that cannot be formatted)");
    end = head + (size_t)n;
    if (end > room) {
        end = room;
        memcpy(line + end - 3, "...", 3);
    }
    for (size_t i = head; i < end; i++)
        if ((unsigned char)line[i] < ' ' || line[i] == 127) line[i] = ' ';
    line[end++] = '\n';
    put(line, end);
}

/* ---- JSON ---- */

/* Bytes of the UTF-8 character at s; 0: it is none. */
static int character(const unsigned char *s)
{
    const int n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (n < 2) return n;
    if (s[0] > 0xf4 || (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0; /* longer than it needs to be, half of a pair, or past the last */
    for (int i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    return n;
}

/* What stands for the character at *s in a JSON string, into out; *s moves behind it. */
static int escaped(char out[8], const char **s)
{
    const unsigned char *at = (const unsigned char *)*s;
    const int n = character(at);
    const unsigned code = n == 2 ? (at[0] & 0x1fu) << 6 | (at[1] & 0x3fu) : at[0];
    *s += n ? n : 1;
    if (!n) return snprintf(out, 8, "\xef\xbf\xbd");
    if (n == 1 && (code == '"' || code == '\\')) return snprintf(out, 8, "\\%c", (char)code);
    if (n < 3 && (code < ' ' || (code >= 0x7f && code < 0xa0)))
        return snprintf(out, 8, "\\u%04x", code);
    return snprintf(out, 8, "%.*s", n, (const char *)at);
}

/* The text as the inside of a JSON string behind `used` bytes of line, up to `end` of them; one
 * that is longer ends in "...". Bytes used then. */
static size_t add_escaped(char *line, size_t used, size_t end, const char *text)
{
    size_t whole = used; /* where "..." still has room */
    while (*text) {
        char one[8];
        const size_t n = (size_t)escaped(one, &text);
        if (used + n > end) {
            memcpy(line + whole, "...", 3);
            return whole + 3;
        }
        memcpy(line + used, one, n);
        used += n;
        if (used + 3 <= end) whole = used;
    }
    return used;
}

static void write_json(const speaker *who, const char *job, sl_log_level level, const char *fmt,
                       va_list ap)
{
    enum { NAME = 6 * sizeof log_name, JOB = 6 * SL_LOG_JOB }; /* the longest with escapes */
    char line[SL_LOG_LINE], text[SL_LOG_LINE];
    struct timespec now;
    struct tm tm;
    if (vsnprintf(text, sizeof text, fmt, ap) < 0)
        snprintf(text, sizeof text, "(a message that cannot be formatted)");
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    size_t n = strftime(line, sizeof line, "{\"time\":\"%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, sizeof line - n, ".%03dZ\",\"level\":\"%s\",\"process\":\"",
                          (int)(now.tv_nsec / 1000000), sl_log_level_name(level));
    n = add_escaped(line, n, n + NAME, who->name);
    n += (size_t)snprintf(line + n, sizeof line - n, "\",\"pid\":%d,", who->pid);
    if (job && *job) {
        n += (size_t)snprintf(line + n, sizeof line - n, "\"job\":\"");
        n = add_escaped(line, n, n + JOB, job);
        n += (size_t)snprintf(line + n, sizeof line - n, "\",");
    }
    n += (size_t)snprintf(line + n, sizeof line - n, "\"message\":\"");
    n = add_escaped(line, n, sizeof line - 3, text);
    memcpy(line + n, "\"}\n", 3);
    put(line, n + 3);
}

/* ---- either ---- */

static void write_line(const speaker *who, const char *job, sl_log_level level, const char *fmt,
                       va_list ap)
{
    if (is_json()) write_json(who, job, level, fmt, ap);
    else write_text(who, level, fmt, ap);
}

void sl_log(sl_log_level level, const char *fmt, ...)
{
    int saved = errno;
    char job[SL_LOG_JOB];
    va_list ap;
    if (!sl_log_shows(level)) return;
    current_job(job);
    const speaker who = ourselves();
    va_start(ap, fmt);
    write_line(&who, job, level, fmt, ap);
    va_end(ap);
    errno = saved;
}

void sl_log_about(const char *job, sl_log_level level, const char *fmt, ...)
{
    int saved = errno;
    va_list ap;
    if (!sl_log_shows(level)) return;
    const speaker who = ourselves();
    va_start(ap, fmt);
    write_line(&who, job, level, fmt, ap);
    va_end(ap);
    errno = saved;
}

void sl_log_from(const char *name, int pid, sl_log_level level, const char *fmt, ...)
{
    int saved = errno;
    const speaker who = {name, pid};
    va_list ap;
    if (!sl_log_shows(level)) return;
    va_start(ap, fmt);
    write_line(&who, NULL, level, fmt, ap);
    va_end(ap);
    errno = saved;
}

void sl_log_err(const char *prefix, const sl_err *err)
{
    sl_log(SL_LOG_ERROR, "%s: %s", prefix, err->msg[0] ? err->msg : sl_code_text(err->code));
}

void sl_complain(const char *fmt, ...)
{
    char line[COMPLAINT], job[SL_LOG_JOB];
    va_list ap;
    va_start(ap, fmt);
    if (is_json()) {
        current_job(job);
        const speaker who = ourselves();
        write_json(&who, job, SL_LOG_ERROR, fmt, ap);
        va_end(ap);
        return;
    }
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    for (unsigned char *p = (unsigned char *)line; *p; p++)
        if (*p < 32 || *p == 127) *p = '?';
    fprintf(stderr, "%s: %s\n", log_name, line);
}

bool sl_log_level_parse(const char *text, sl_log_level *out)
{
    for (int i = 0; i < SL_LOG_LEVEL_COUNT; i++)
        if (!strcmp(text, NAMES[i])) {
            *out = (sl_log_level)i;
            return true;
        }
    return false;
}

const char *sl_log_level_name(sl_log_level level)
{
    return (unsigned)level < SL_LOG_LEVEL_COUNT ? NAMES[level] : "?";
}
