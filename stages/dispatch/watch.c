/* watch.c - stages that hold an attempt up.
 *
 *   said wrongly   an end of another attempt; chunks out of order, of another count, too few
 *   not said       DONE or FAILED; the answer to CANCEL; SPOOLED; RANK or POOL before READY
 *
 * Silence is told by two clocks. The attempt's begins anew with each word of any of its seats; the
 * kernel's (look.c) with each moment in which one of them computes, or waits for its turn. Both
 * having run for LIMIT is told, after twice LIMIT somebody is killed. LIMIT is supervise.quiet_s,
 * or twice the longest time between two words: it grows with the pieces of work. One that computes
 * all the time may do so for supervise.piece_s, or eight times that longest time.
 *
 * Of a crew that is silent it is the receiver of chunks that holds the others up, if it has said
 * nothing since its last chunk and does say something of chunks, or its slots are full; otherwise
 * the sender (to_blame). Of a team nobody can tell: all are killed. */
#include "stages/dispatch/jobs.h"

#include <inttypes.h>
#include <stdio.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/minmax.h"
#include "stages/dispatch/schedule.h"

#define SECOND 1000000000ll
#define CANCEL_S 5 /* and a piece of work: longest wait for the answer to CANCEL */

static int64_t quiet_ns(const sl_jobs *d)
{
    return d->conf->supervise.quiet_s * SECOND;
}

/* ---- faults ---- */

static void kill_for(sl_jobs *d, int number, const char *why, bool for_good)
{
    seat *s = &d->seats[number];
    snprintf(s->fault, sizeof s->fault, "%s", why);
    d->kill(d->self, number, s->fault, for_good);
}

/* One more fault of the seat's role, without the job's getting further by it. */
static void count_fault(sl_jobs *d, job *j, const seat *s, sl_code code, const char *why)
{
    char text[SL_TEXT];
    if (j->faulty != s->stage->role) j->faults = 0;
    j->faulty = s->stage->role;
    if (j->ending || ++j->faults < SL_WATCH_FAULTS) return;
    snprintf(text, sizeof text, "%s %s, %d times without the job getting further: giving up",
             s->name, why, j->faults);
    sl_table_end(d, j, code, text);
}

static void fault(sl_jobs *d, job *j, attempt *a, int number, sl_code code, const char *why)
{
    const seat *s = &d->seats[number];
    const bool first = !a->faulty;
    if (*s->fault) return;
    a->faulty = true;
    kill_for(d, number, why, false);
    /* the video may be there: then it matters to nobody */
    if (first && !j->made[sl_crew_of(s->stage->role)]) count_fault(d, j, s, code, why);
}

/* ---- what is said ---- */

/* The attempt that a message names, of those that a seat says of its own alone; 0: none. */
static uint32_t attempt_of(const sl_msg *m)
{
    switch (m->type) {
    case SL_MSG_TAKEN: return m->taken.attempt;
    case SL_MSG_PROGRESS: return m->progress.attempt;
    case SL_MSG_CHUNK: return m->chunk.attempt;
    case SL_MSG_DONE: return m->done.attempt;
    case SL_MSG_PARKED: return m->parked.attempt;
    case SL_MSG_FAILED: return m->failed.attempt;
    default: return 0;
    }
}

static bool is_end(sl_msg_type type)
{
    return type == SL_MSG_DONE || type == SL_MSG_PARKED || type == SL_MSG_FAILED;
}

static bool is_own(sl_msg_type type)
{
    return is_end(type) || type == SL_MSG_TAKEN || type == SL_MSG_PROGRESS || type == SL_MSG_CHUNK;
}

static void on_word(attempt *a, seat *s, sl_msg_type type)
{
    const int64_t now = sl_now_ns();
    a->piece_ns = sl_larger(a->piece_ns, now - a->heard_ns);
    a->heard_ns = now;
    if (type != SL_MSG_SPAN) s->last = type;
    a->told = false;
    const int h = sl_chunks_to(s->stage->role);
    if (h < 0) return;
    a->flows[h].owed = false;
    a->flows[h].answers = true;
}

bool sl_watch_hears(sl_jobs *d, int number, const sl_msg *m)
{
    seat *s = &d->seats[number];
    const uint64_t id = sl_wire_job(m);
    const uint32_t named = attempt_of(m);
    job *j = s->attempt && s->job == id ? sl_table_job(d, id) : NULL;
    attempt *a = j ? &j->attempts[sl_crew_of(s->stage->role)] : NULL;
    char why[128];
    if (!is_own(m->type) || (a && named == s->attempt)) {
        if (a && sl_table_is_in(a, s, number)) on_word(a, s, m->type);
        return true;
    }
    if (a && is_end(m->type)) {
        snprintf(why, sizeof why, "said %s of attempt %u of a job of which it has attempt %u",
                 sl_wire_name(m->type), named, s->attempt);
        fault(d, j, a, number, SL_FORMAT, why);
    } else
        sl_once_warn(d->once,
                     "%s of %s[%d] is about attempt %u of job %" PRIu64
                     ", which it does not have: ignored",
                     sl_wire_name(m->type), s->name, (int)s->pid, named, id);
    return false;
}

bool sl_watch_chunk(sl_jobs *d, job *j, attempt *a, int number, const sl_msg_chunk *m)
{
    chunk_flow *f = &a->flows[m->handover];
    char why[128];
    if (m->index == f->next && m->index < m->chunks && (!f->next || m->chunks == f->chunks)) {
        f->chunks = m->chunks;
        f->next++;
        f->owed = true;
        return true;
    }
    if (f->next && m->chunks != f->chunks)
        snprintf(why, sizeof why, "sent chunk %u of %u after chunks of %u", m->index, m->chunks,
                 f->chunks);
    else
        snprintf(why, sizeof why, "sent chunk %u of %u (the first is 0), want chunk %u", m->index,
                 m->chunks, f->next);
    fault(d, j, a, number, SL_FORMAT, why);
    return false;
}

bool sl_watch_chunks_done(sl_jobs *d, job *j, attempt *a, int number)
{
    char why[128] = "";
    for (int h = 0; h < sl_handover_count(); h++) {
        const chunk_flow *f = &a->flows[h];
        if (SL_HANDOVER[h].how != SL_CHUNKS ||
            SL_HANDOVER[h].from != d->seats[number].stage->role ||
            (f->next && f->next == f->chunks))
            continue;
        if (f->next)
            snprintf(why, sizeof why, "said DONE after %u of %u chunks", f->next, f->chunks);
        else snprintf(why, sizeof why, "said DONE without a chunk");
    }
    if (*why) fault(d, j, a, number, SL_FORMAT, why);
    return !*why;
}

/* ---- what is not said ---- */

/* Seats of the attempt that are not through, by number; returns how many. */
static int seats_in(const sl_jobs *d, const attempt *a, int out[SL_CONF_SEATS])
{
    int n = 0;
    for (int i = 0; i < SL_CONF_SEATS; i++)
        if (d->seats[i].stage && sl_table_is_in(a, &d->seats[i], i)) out[n++] = i;
    return n;
}

/* Who of a silent attempt holds the others up: the last one that is known to have a chunk, for the
 * others may wait for it to be taken; else the first that is not through. A leader stands for its
 * team. NO_SEAT: nobody but mates is left. */
static int to_blame(const sl_jobs *d, const attempt *a)
{
    int blamed = NO_SEAT;
    for (int i = 0; i < sl_role_count(); i++) {
        const sl_role r = sl_role_in_order(i);
        const int h = sl_chunks_to(r), at = a->seat[r];
        if (at == NO_SEAT) continue;
        const chunk_flow *f = h < 0 ? NULL : &a->flows[h];
        const bool has_one =
            f && f->owed && (f->answers || (int)f->next >= d->seats[at].pools[h].slots);
        if (blamed == NO_SEAT || has_one) blamed = at;
    }
    return blamed;
}

/* "job 4700-1 for 20 s (last: PROGRESS)" */
static const char *silence(const job *j, const seat *s, int64_t ns, char out[128])
{
    snprintf(out, 128, "of job %.48s for %lld s (last: %s)", sl_table_name(j),
             (long long)(ns / SECOND), s->last ? sl_wire_name(s->last) : "nothing");
    return out;
}

static void kill_silent(sl_jobs *d, job *j, attempt *a, int64_t ns, bool idle)
{
    int in[SL_CONF_SEATS], n = seats_in(d, a, in);
    const int blamed = to_blame(d, a);
    char why[128], of[128];
    for (int i = 0; i < n; i++) {
        if (!a->size && in[i] != blamed) continue;
        snprintf(why, sizeof why, "%s %.90s",
                 idle ? "neither computed nor said anything" : "said nothing",
                 silence(j, &d->seats[in[i]], ns, of));
        fault(d, j, a, in[i], SL_TIMEOUT, why);
    }
}

static void tell_silent(sl_jobs *d, const job *j, attempt *a, int64_t ns, int64_t limit, bool idle)
{
    int in[SL_CONF_SEATS], n = seats_in(d, a, in), blamed = to_blame(d, a);
    char of[128];
    a->told = true;
    if (blamed == NO_SEAT && n) blamed = in[0];
    if (blamed == NO_SEAT) return;
    const seat *s = &d->seats[blamed];
    if (idle)
        sl_log_about(sl_table_name(j), SL_LOG_WARN,
                     "%s[%d] neither computes nor says anything %s: it is killed in %lld s "
                     "(supervise.quiet_s)",
                     s->name, (int)s->pid, silence(j, s, ns, of), (long long)(limit / SECOND));
    else
        sl_log_about(sl_table_name(j), SL_LOG_INFO, "%s[%d] computes, and says nothing %s", s->name,
                     (int)s->pid, silence(j, s, ns, of));
}

static void watch_silence(sl_jobs *d, job *j, attempt *a, int64_t now)
{
    const int64_t limit = sl_larger(quiet_ns(d), 2 * a->piece_ns), silent = now - a->heard_ns,
                  longest = sl_larger(d->conf->supervise.piece_s * SECOND, 8 * a->piece_ns);
    int in[SL_CONF_SEATS], n;
    int64_t since = a->heard_ns;
    if (silent < limit) return;
    n = seats_in(d, a, in);
    for (int i = 0; i < n; i++) since = sl_larger(since, d->worked_ns(d->self, in[i]));
    if (now - since >= 2 * limit) kill_silent(d, j, a, now - since, true);
    else if (silent >= longest) kill_silent(d, j, a, silent, false);
    else if (!a->told && now - since >= limit) tell_silent(d, j, a, now - since, limit, true);
    else if (!a->told && silent >= 12 * limit) tell_silent(d, j, a, silent, limit, false);
}

static void watch_cancel(sl_jobs *d, const attempt *a, int64_t now)
{
    const int64_t piece = sl_larger(a->piece_ns, a->stopped_ns - a->heard_ns),
                  waited = now - a->stopped_ns;
    int in[SL_CONF_SEATS], n;
    char why[128];
    if (waited < CANCEL_S * SECOND + piece) return;
    n = seats_in(d, a, in);
    snprintf(why, sizeof why, "did not answer CANCEL for %lld s", (long long)(waited / SECOND));
    for (int i = 0; i < n; i++)
        if (!*d->seats[in[i]].fault) kill_for(d, in[i], why, false);
}

/* SPOOLED that never comes is as good as one that says so. */
static void watch_spool(sl_jobs *d, job *j, int h, int64_t now)
{
    const delivery *v = &j->deliveries[h];
    if (!v->spooling ||
        now - sl_larger(v->spooling_ns, d->worked_ns(d->self, v->maker)) < 2 * quiet_ns(d))
        return;
    const seat *s = &d->seats[v->maker];
    sl_msg m = {.type = SL_MSG_SPOOLED, .spooled = {.job = j->id, .code = SL_TIMEOUT}};
    snprintf(m.spooled.name, sizeof m.spooled.name, "%s", SL_HANDOVER[h].file);
    snprintf(m.spooled.message, sizeof m.spooled.message,
             "%.90s[%d] said DONE, and no SPOOLED of %s.safetensors", s->name, (int)s->pid,
             SL_HANDOVER[h].file);
    sl_jobs_on_message(d, v->maker, &m);
    if (v->seat == NO_SEAT && !sl_schedule_is_past(j, h))
        count_fault(d, j, s, SL_TIMEOUT, "said DONE, and neither a ticket nor SPOOLED");
}

/* A stage that is ready, and will never be given anything. */
static void watch_use(sl_jobs *d, int number, int64_t now)
{
    const seat *s = &d->seats[number];
    char why[128];
    if (!s->stage || !s->ready || *s->fault || now - s->ready_ns < 2 * quiet_ns(d)) return;
    const int h = sl_chunks_to(s->stage->role);
    if (h >= 0 && !s->pools[h].id) {
        snprintf(why, sizeof why, "is ready without a POOL for %s, which come in slots alone",
                 SL_HANDOVER[h].name);
        kill_for(d, number, why, true);
    } else if (s->teamed && !s->rank)
        kill_for(d, number, "is ready and has not said RANK, which its team needs (team = 1: none)",
                 true);
}

void sl_jobs_watch(sl_jobs *d, int64_t now)
{
    for (int i = 0; i < SL_CONF_SEATS; i++) watch_use(d, i, now);
    for (int i = 0; i < d->count; i++) {
        job *j = &d->jobs[i];
        for (int h = 0; h < sl_handover_count(); h++) watch_spool(d, j, h, now);
        for (int r = 0; r < sl_role_count(); r++) {
            attempt *a = &j->attempts[r];
            if (!a->number) continue;
            if (a->stopped_ns) watch_cancel(d, a, now);
            else watch_silence(d, j, a, now);
        }
    }
}

void sl_jobs_skip(sl_jobs *d, int64_t ns)
{
    for (int i = 0; i < SL_CONF_SEATS; i++) d->seats[i].ready_ns += ns;
    for (int i = 0; i < d->count; i++) {
        job *j = &d->jobs[i];
        for (int h = 0; h < sl_handover_count(); h++) j->deliveries[h].spooling_ns += ns;
        for (int r = 0; r < sl_role_count(); r++) {
            attempt *a = &j->attempts[r];
            a->heard_ns += ns;
            if (a->stopped_ns) a->stopped_ns += ns;
        }
    }
}
