/* look.c - what the kernel says of the seats' processes: who computes, who spins, who is stopped
 * by a debugger.
 *
 * A stage that works uses a processor, or reads and writes files; waiting for a GPU counts, for
 * the driver polls. One that does none of it, with a job in hand, waits for something: watch.c. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/process.h"
#include "stages/dispatch/seats.h"

#define MS 1000000ll
#define LOOK_MS 1000
#define MAX_OFFSPRING 256
#define WORKS_PERCENT 3 /* of one processor: heartbeats take less */
#define WORKS_FAULTS 64 /* new pages a second: mapped weights are read so */
#define WORKS_BYTES 65536

static bool is_busy(uint64_t ticks, int64_t passed_ns)
{
    return ticks * 100 * 1000 * MS >=
           WORKS_PERCENT * (uint64_t)passed_ns * (uint64_t)sysconf(_SC_CLK_TCK);
}

/* The process did nothing but enter the kernel. On a busy machine half a core is what it gets; what
 * a GPU's driver does in the kernel is not to be judged from here. */
static bool is_spinning(const sl_seats_seat *p, uint64_t system, uint64_t faults, uint64_t io,
                        int64_t passed_ns)
{
    return !strcmp(p->conf->device, "cpu") && faults < WORKS_FAULTS && io < WORKS_BYTES &&
           system * 2000 * MS >= (uint64_t)passed_ns * (uint64_t)sysconf(_SC_CLK_TCK);
}

static void look_at(sl_seats *s, int seat, int64_t now, int64_t passed)
{
    sl_seats_seat *p = &s->at[seat];
    sl_process is;
    if (p->pid <= 0 || !sl_process_look(&is, p->speaker ? p->speaker : p->pid)) return;
    const uint64_t user = is.user_ticks - p->user_ticks, system = is.system_ticks - p->system_ticks,
                   faults = is.faults - p->faults, io = is.io_bytes - p->io_bytes;
    p->io_bytes = is.io_bytes;
    p->user_ticks = is.user_ticks;
    p->system_ticks = is.system_ticks;
    p->faults = is.faults;
    const bool debugged = is.state == 't';
    if (debugged) p->last_beat_ns = now; /* it would beat */
    if (debugged || is.state == 'D' || is_busy(user + system, passed) || faults >= WORKS_FAULTS ||
        io >= WORKS_BYTES)
        p->worked_ns = now;
    p->spins = is_spinning(p, system, faults, io, passed) ? p->spins + 1 : 0;
    if (p->spins < SL_SEATS_SPINS || seat == s->attached) return;
    p->spins = 0;
    sl_seats_kill_for_good(s, seat, SL_NOMEM,
                           "spins in the kernel without doing anything: no memory? (ulimit -v, "
                           "cgroup)");
}

void sl_seats_look(sl_seats *s)
{
    const int64_t now = sl_now_ns(), passed = now - s->looked_ns;
    if (passed < LOOK_MS * MS) return;
    s->looked_ns = now;
    for (int i = 0; i < s->count; i++) look_at(s, i, now, passed);
}

/* A wrapper's work, or that of workers whose parent only waits for them. */
static void look_at_offspring(sl_seats_seat *p, int64_t passed, int64_t now)
{
    pid_t all[MAX_OFFSPRING];
    uint64_t ticks = 0;
    sl_process is;
    const int n = sl_process_offspring(p->pid, all, MAX_OFFSPRING);
    for (int i = 0; i < n; i++)
        if (sl_process_look(&is, all[i])) ticks += is.user_ticks + is.system_ticks;
    /* of a child that has ended the time is gone: then there is less than before */
    if (n && ticks > p->offspring_ticks && is_busy(ticks - p->offspring_ticks, passed))
        p->worked_ns = now;
    p->offspring_ticks = ticks;
}

int64_t sl_seats_worked_ns(sl_seats *s, int seat)
{
    sl_seats_seat *p = &s->at[seat];
    const int64_t now = sl_now_ns();
    if (p->pid > 0 && now - p->worked_ns > 2 * LOOK_MS * MS && now - p->asked_ns > LOOK_MS * MS) {
        look_at_offspring(p, now - p->asked_ns, now);
        p->asked_ns = now;
    }
    return p->worked_ns;
}
