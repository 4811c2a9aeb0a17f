/* progress.c - one line a stage on a terminal, one a second in a log. */
#include "stages/cli/progress.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/pipeline.h"

#define TERMINAL_MS 100
#define LOG_MS 1000

static bool on_terminal(const sl_progress *p)
{
    return !p->logs && isatty(2);
}

/* `what` names the line: another one begins a new one on a terminal. */
static void write_line(sl_progress *p, uint64_t job, const char *what, const char *text)
{
    const bool tty = on_terminal(p), other = strcmp(p->what, what) || p->job != job;
    char which[32] = "";
    if (p->many) snprintf(which, sizeof which, "job %d ", (int)job);
    if (p->logs) sl_log_about(p->name, SL_LOG_INFO, "%s", text);
    else if (tty) fprintf(stderr, "%s\r\033[K%s%s", other && *p->what ? "\n" : "", which, text);
    else fprintf(stderr, "%s%s\n", which, text);
    fflush(stderr);
    p->last_ns = sl_now_ns();
    p->job = job;
    snprintf(p->what, sizeof p->what, "%s", what);
}

/* The names of a server's stages are not ours. */
static void clean(char *out, size_t size, const char *text)
{
    snprintf(out, size, "%s", text);
    for (char *c = out; *c; c++)
        if (iscntrl((unsigned char)*c)) *c = '?';
}

void sl_progress_step(sl_progress *p, uint64_t job, const char *stage, unsigned done,
                      unsigned total, double seconds, int ranks)
{
    char name[16], text[160], together[32] = "";
    const int role = sl_role_by_name(stage);
    const bool last = done == total, keeps_pace = role >= 0 && sl_chunks_to((sl_role)role) >= 0;
    if (p->quiet || (!last && keeps_pace)) return;
    clean(name, sizeof name, stage);
    const bool other = strcmp(p->what, name) || p->job != job;
    const int64_t least_ns = (on_terminal(p) ? TERMINAL_MS : LOG_MS) * 1000000ll;
    if (!last && !other && sl_now_ns() - p->last_ns < least_ns) return;
    if (ranks > 0 && role >= 0 && sl_role_has_teams((sl_role)role))
        snprintf(together, sizeof together, ", %d rank%s", ranks, ranks > 1 ? "s" : "");
    snprintf(text, sizeof text, "%-8s %u/%u  %.2f s each%s", name, done, total, seconds, together);
    write_line(p, job, name, text);
}

void sl_progress_note(sl_progress *p, uint64_t job, const char *text)
{
    char line[64];
    clean(line, sizeof line, text);
    if (p->quiet || (p->job == job && !strcmp(p->what, line))) return;
    /* a terminal's note takes the place of the note before it */
    if (on_terminal(p) && p->job == job && *p->what &&
        strcspn(p->what, ",") == strcspn(line, ",") && !strncmp(p->what, line, strcspn(line, ",")))
        snprintf(p->what, sizeof p->what, "%s", line);
    write_line(p, job, line, line);
}

void sl_progress_end(sl_progress *p)
{
    if (!p->quiet && *p->what && on_terminal(p)) fputc('\n', stderr);
    *p->what = 0;
}
