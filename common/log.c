/* log.c - one line a message on stderr: composing it in one buffer and writing it at
 * once. */
#include "common/log.h"

#include <errno.h>
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
static _Atomic int log_level = SL_LOG_INFO;

void sl_log_open(const char *name, sl_log_level level)
{
    snprintf(log_name, sizeof log_name, "%s", name ? name : "sluice");
    atomic_store(&log_level, level);
}

bool sl_log_shows(sl_log_level level)
{
    return (int)level <= atomic_load_explicit(&log_level, memory_order_relaxed);
}

/* "12:34:56.789 name[pid] level: " into line; bytes written. */
static int line_head(char *line, size_t size, sl_log_level level)
{
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    return snprintf(line, size, "%02d:%02d:%02d.%03d %s[%d] %s: ", tm.tm_hour, tm.tm_min, tm.tm_sec,
                    (int)(now.tv_nsec / 1000000), log_name, (int)getpid(),
                    sl_log_level_name(level));
}

void sl_log(sl_log_level level, const char *fmt, ...)
{
    char line[SL_LOG_LINE];
    const size_t room = sizeof line - 1; /* vsnprintf's NUL gives its place to the newline */
    int saved = errno;
    va_list ap;
    if (!sl_log_shows(level)) return;

    size_t head = (size_t)line_head(line, sizeof line, level), end;
    va_start(ap, fmt);
    int n = vsnprintf(line + head, sizeof line - head, fmt, ap);
    va_end(ap);
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
    while (write(STDERR_FILENO, line, end) < 0 && errno == EINTR) {
    }
    errno = saved;
}

void sl_log_err(const char *prefix, const sl_err *err)
{
    sl_log(SL_LOG_ERROR, "%s: %s", prefix, err->msg[0] ? err->msg : sl_code_text(err->code));
}

void sl_complain(const char *fmt, ...)
{
    char line[COMPLAINT];
    va_list ap;
    va_start(ap, fmt);
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
