/* schedule.c - which crew may work on which job next.
 *
 *   hand-overs to the crew            its seats           hand-overs from the crew
 *   each lies in the very seat's  --> idle, ready,    --> each is wanted, and some seat of the
 *   pool, or as a file                pools announced     receiver has a credit for it
 *
 * A CREDIT is a free slot in a pool, counted and not kept: slots less what lies there, is
 * given and not yet taken, or is on its way. The oldest job never waits for one, for younger
 * jobs may hold them all and wait for it: its hand-over goes by a file. What a job gives to one
 * seat stays together there. A seat that is idle takes files from a seat that is busy, so
 * nobody idles while a job could use it.
 *
 * Of a role that has TEAMS several seats work on one attempt: the rule holds for the leader, its
 * mates are any others that are idle. How many there are to be, team.h says of all jobs at once,
 * before each is looked at: an attempt begins when so many are idle, which those that are parked
 * for it soon are. What a team makes goes by a file where there is no credit, for whole devices
 * would wait for one. */
#include "stages/dispatch/schedule.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/trace.h"

#define FULL (-2)                /* no receiver has a credit */
#define FAR 1024                 /* costs more than any load: jobs that wait for a seat */
#define WORTH 3                  /* steps that are to be left where an attempt is parked */
#define TOGETHER_NS 5000000000ll /* longest wait for ranks that load with one that is ready */

/* ---- crews ---- */

static bool is_chunks(int h)
{
    return SL_HANDOVER[h].how == SL_CHUNKS;
}

bool sl_crew_ends_with(sl_role role)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if (is_chunks(h) && SL_HANDOVER[h].from == role) return false;
    return true;
}

/* A whole hand-over to the crew, and one from it. */
static bool takes(sl_role crew, int h)
{
    return !is_chunks(h) && sl_crew_of(SL_HANDOVER[h].to) == crew;
}
static bool gives(sl_role crew, int h)
{
    return !is_chunks(h) && sl_crew_of(SL_HANDOVER[h].from) == crew;
}

bool sl_crew_is_last(sl_role crew)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if (gives(crew, h)) return false;
    return true;
}

/* The role of the crew that has teams here; -1: none has. One at most: its seats are counted by
 * attempt. */
static int team_role(const sl_jobs *d, sl_role crew)
{
    for (int i = 0; i < SL_CONF_SEATS; i++) {
        const seat *s = &d->seats[i];
        if (s->stage && s->teamed && sl_crew_of(s->stage->role) == crew) return (int)s->stage->role;
    }
    return -1;
}

bool sl_schedule_has(const sl_jobs *d, sl_role role)
{
    for (int i = 0; i < SL_CONF_SEATS; i++)
        if (d->seats[i].stage && d->seats[i].stage->role == role) return true;
    return false;
}

/* This deployment has every role of the crew. */
static bool crew_exists(const sl_jobs *d, sl_role crew)
{
    for (int r = 0; r < sl_role_count(); r++)
        if (sl_crew_of((sl_role)r) == crew && !sl_schedule_has(d, (sl_role)r)) return false;
    return true;
}

/* ---- questions about a job ---- */

static bool is_running(const job *j, sl_role crew)
{
    return j->attempts[crew].number != 0;
}

/* It lies somewhere. The file may be whole before its maker's DONE brings the ticket: the
 * slot is better, and close. */
static bool is_there(const job *j, int h)
{
    const delivery *v = &j->deliveries[h];
    return v->seat != NO_SEAT || (v->spooled && !is_running(j, sl_crew_of(SL_HANDOVER[h].from)));
}

/* There, or on its way to its file. */
static bool is_kept(const delivery *v)
{
    return v->seat != NO_SEAT || v->spooled || v->spooling;
}

/* The crew's work is done, or nobody needs it. */
static bool is_finished(const job *j, sl_role crew)
{
    if (sl_crew_is_last(crew)) return j->made[crew];
    for (int h = 0; h < sl_handover_count(); h++)
        if (gives(crew, h) && j->deliveries[h].has && !is_kept(&j->deliveries[h]) &&
            !sl_schedule_is_past(j, h))
            return false;
    return true;
}

bool sl_schedule_is_past(const job *j, int h)
{
    sl_role crew = sl_crew_of(SL_HANDOVER[h].to);
    return is_running(j, crew) || is_finished(j, crew);
}

static bool is_wanted(const job *j, int h)
{
    const delivery *v = &j->deliveries[h];
    return v->has && !is_kept(v) && !is_running(j, sl_crew_of(SL_HANDOVER[h].from)) &&
           ((j->dump && !v->lost) || !sl_schedule_is_past(j, h));
}

/* The crew's work is wanted, and what it starts from is there. */
static bool is_runnable(const sl_jobs *d, const job *j, sl_role crew, bool *takes_any)
{
    bool wanted = sl_crew_is_last(crew) && !j->made[crew];
    *takes_any = false;
    if (is_running(j, crew) || !crew_exists(d, crew)) return false;
    for (int h = 0; h < sl_handover_count(); h++) {
        if (gives(crew, h) && is_wanted(j, h)) wanted = true;
        if (!takes(crew, h) || !j->deliveries[h].has) continue;
        if (!is_there(j, h)) return false;
        *takes_any = true;
    }
    return wanted;
}

bool sl_schedule_is_busy(const job *j)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if (j->deliveries[h].spooling) return true;
    for (int r = 0; r < sl_role_count(); r++)
        if (is_running(j, (sl_role)r)) return true;
    return false;
}

bool sl_schedule_is_made(const sl_jobs *d, const job *j)
{
    bool made = false;
    for (int r = 0; r < sl_role_count(); r++) {
        sl_role crew = sl_crew_of((sl_role)r);
        if (crew != (sl_role)r || !sl_crew_is_last(crew) || !crew_exists(d, crew)) continue;
        if (!j->made[crew]) return false;
        made = true;
    }
    return made;
}

bool sl_schedule_is_complete(const sl_jobs *d, const job *j)
{
    if (sl_schedule_is_busy(j)) return false;
    for (int r = 0; r < sl_role_count(); r++) {
        sl_role crew = sl_crew_of((sl_role)r);
        if (sl_crew_is_last(crew) && crew_exists(d, crew) && !j->made[crew]) return false;
    }
    for (int h = 0; h < sl_handover_count(); h++) {
        sl_role to = sl_crew_of(SL_HANDOVER[h].to);
        /* nobody is there to take it: it is what the job ends with */
        bool end = !crew_exists(d, to) && !is_finished(j, to);
        const delivery *v = &j->deliveries[h];
        if (v->has && ((j->dump && !v->lost) || end) && !v->spooled) return false;
    }
    return true;
}

bool sl_schedule_reaches(const sl_jobs *d, sl_role role)
{
    for (int i = 0; i < SL_CONF_SEATS; i++)
        if (d->seats[i].stage && sl_role_follows(d->seats[i].stage->role, role)) return true;
    return false;
}

const char *sl_schedule_lacks(const sl_jobs *d, const job *j)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if (is_wanted(j, h) && !sl_schedule_has(d, SL_HANDOVER[h].from))
            return sl_role_name(SL_HANDOVER[h].from);
    return NULL;
}

/* ---- credits ---- */

/* Is this delivery of the job in the seat's pool, or on its way there? */
static bool is_at(const job *j, int h, int at)
{
    const attempt *from = &j->attempts[sl_crew_of(SL_HANDOVER[h].from)];
    return j->deliveries[h].seat == at || (from->number && from->makes_for[h] == at);
}

static bool has_credit(const sl_jobs *d, int at, int h)
{
    int used = 0;
    for (int i = 0; i < d->count; i++) {
        const job *j = &d->jobs[i];
        const attempt *to = &j->attempts[sl_crew_of(SL_HANDOVER[h].to)];
        used += is_at(j, h, at);
        used += to->number && to->from_slot[h] && !to->taken && to->seat[SL_HANDOVER[h].to] == at;
    }
    return used < d->seats[at].pools[h].slots;
}

/* Jobs that wait for the seat or are in it. */
static int load_of(const sl_jobs *d, int at)
{
    int load = d->seats[at].job != NO_JOB;
    for (int i = 0; i < d->count; i++) {
        bool waits = false;
        for (int h = 0; h < sl_handover_count(); h++) waits = waits || is_at(&d->jobs[i], h, at);
        load += waits;
    }
    return load;
}

/* ---- choosing seats ---- */

/* What else the job gives to this seat's role is at the seat, or in a file, or not made yet.
 * *together: some of it is at the seat. */
static bool goes_with(const job *j, int h, int at, bool *together)
{
    *together = false;
    for (int k = 0; k < sl_handover_count(); k++) {
        const delivery *v = &j->deliveries[k];
        const attempt *from = &j->attempts[sl_crew_of(SL_HANDOVER[k].from)];
        if (k == h || !v->has || SL_HANDOVER[k].to != SL_HANDOVER[h].to) continue;
        bool elsewhere = v->seat != NO_SEAT || (from->number && from->makes_for[k] != NO_SEAT);
        if (is_at(j, k, at)) *together = true;
        else if (elsewhere && !v->spooled) return false;
    }
    return true;
}

/* The seat for which hand-over h is to be made: with the job's others, announced, least
 * loaded. NO_SEAT: nobody, it goes to a file; FULL: wait. */
static int choose_receiver(const sl_jobs *d, const job *j, int h)
{
    int best = FULL, best_cost = 0;
    if (!sl_schedule_has(d, SL_HANDOVER[h].to)) return NO_SEAT;
    for (int i = 0; i < SL_CONF_SEATS; i++) {
        const seat *s = &d->seats[i];
        bool together;
        if (!s->stage || s->stage->role != SL_HANDOVER[h].to || !has_credit(d, i, h) ||
            !goes_with(j, h, i, &together))
            continue;
        int cost = load_of(d, i) + (s->pools[h].id ? 0 : 4 * FAR) + (together ? 0 : 2 * FAR);
        if (best != FULL && cost >= best_cost) continue;
        best = i;
        best_cost = cost;
    }
    bool waits = j != d->jobs && team_role(d, sl_crew_of(SL_HANDOVER[h].from)) < 0;
    return best == FULL && !waits ? NO_SEAT : best;
}

/* The seat takes a job now. A rank has to be known to its mates. */
static bool is_idle(const seat *s)
{
    return s->ready && s->job == NO_JOB && (s->rank || !s->teamed);
}

/* The seat can begin: its pools for chunks are announced, the hand-overs to it are there.
 * How many lie in its own pools; -1: it cannot. */
static int suits(const job *j, const seat *s, int number)
{
    int lie = 0;
    if (!is_idle(s)) return -1;
    for (int h = 0; h < sl_handover_count(); h++) {
        const delivery *v = &j->deliveries[h];
        if (SL_HANDOVER[h].to != s->stage->role) continue;
        if (is_chunks(h) && !s->pools[h].id) return -1;
        if (!v->has) continue;
        if (v->seat == number) lie++;
        else if (!v->spooled) return -1;
    }
    return lie;
}

/* The seat's weights are another job's by right: order.h. The job itself could begin there. */
static bool is_anothers(const sl_jobs *d, const job *j, const seat *s, int number)
{
    const sl_role role = s->stage->role;
    bool takes_any;
    if (!sl_role_adapts(role) || s->key == j->key) return false;
    for (int i = 0; i < d->count; i++) {
        const job *k = &d->jobs[i];
        d->order_jobs[i] = (sl_order_job){
            .ready = k == j || (!k->ending && is_runnable(d, k, sl_crew_of(role), &takes_any) &&
                                (k->want || !s->teamed) && suits(k, s, number) >= 0),
            .key = k->key,
            .overtaken = k->overtaken};
    }
    return sl_order_take(d->order_jobs, d->count, s->key) != (int)(j - d->jobs);
}

/* The job begins in the crew: older ones that could have begun with other weights are overtaken. */
static void overtake(sl_jobs *d, const job *j, sl_role crew, sl_role role)
{
    bool takes_any;
    for (job *k = d->jobs; k < j && sl_role_adapts(role); k++)
        if (k->key != j->key && !k->ending && is_runnable(d, k, crew, &takes_any)) k->overtaken++;
}

/* The seat to play this role: where most hand-overs lie, then the instance of the crew's first
 * seat (they know each other: a decoder has pinned that mux's pool), then one with the job's
 * weights, then the first. NO_SEAT: none. */
static int choose_seat(const sl_jobs *d, const job *j, sl_role role, int first)
{
    int best = NO_SEAT, most = -1;
    for (int i = 0; i < SL_CONF_SEATS; i++) {
        const seat *s = &d->seats[i];
        int lie = s->stage && s->stage->role == role ? suits(j, s, i) : -1;
        if (lie < 0 || is_anothers(d, j, s, i)) continue;
        bool mate = first != NO_SEAT && d->seats[first].stage->instance == s->stage->instance;
        const int worth = 4 * lie + 2 * mate + (s->key == j->key);
        if (worth <= most) continue;
        best = i;
        most = worth;
    }
    return best;
}

/* ---- teams ---- */

/* Mates of the leader for a team of j->want, those with the job's weights first, then the lowest
 * numbers. false: there are too few who are idle. */
static bool choose_mates(const sl_jobs *d, const job *j, sl_role role, attempt *a)
{
    int n = 1; /* the leader */
    for (int i = 0; i < 2 * SL_CONF_SEATS && n < j->want; i++) {
        const seat *s = &d->seats[i % SL_CONF_SEATS];
        if (s->stage && s->stage->role == role && i % SL_CONF_SEATS != a->seat[role] &&
            is_idle(s) && (s->key == j->key) == (i < SL_CONF_SEATS))
            a->mates[n++] = i % SL_CONF_SEATS;
    }
    a->size = n;
    return n == j->want;
}

/* What the attempt began from is there for the next one too, and there is enough left to do. */
static bool may_park(const job *j, const attempt *a, sl_role role)
{
    if (a->ending || a->parking || (a->total && a->done + WORTH > a->total)) return false;
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].to == role && j->deliveries[h].has && !j->deliveries[h].spooled)
            return false;
    return true;
}

static void park(sl_jobs *d, const job *j, attempt *a, sl_role role)
{
    sl_msg m = {.type = SL_MSG_PARK, .park = {.job = j->id, .attempt = a->number}};
    a->parking = true;
    sl_table_to_seat(d, a->seat[role], &m);
    for (int i = 0; i < SL_RANKS; i++) sl_table_to_seat(d, a->mates[i], &m);
}

/* The crew has work to do for the job, now or later. */
static bool is_needed(const job *j, sl_role crew)
{
    if (is_running(j, crew)) return !j->attempts[crew].well;
    bool needed = !is_finished(j, crew);
    for (int h = 0; h < sl_handover_count(); h++)
        needed = needed || (gives(crew, h) && is_wanted(j, h));
    return needed;
}

/* The job as the policy sees it; false: it needs nothing of this role any more. Seats of an attempt
 * that ends are nobody's. */
static bool describe(const sl_jobs *d, const job *j, sl_role role, sl_team_job *out)
{
    sl_role crew = sl_crew_of(role);
    const attempt *a = &j->attempts[crew];
    bool keeps = is_running(j, crew) && !a->ending && !a->parking, takes_any;
    if (j->ending || !is_needed(j, crew)) return false;
    *out = (sl_team_job){.guided = j->guided,
                         .alone = j->alone,
                         .ranks = keeps ? a->size : 0,
                         .runnable = is_runnable(d, j, crew, &takes_any),
                         .may_park = keeps && may_park(j, a, role)};
    return true;
}

/* How many ranks there are. Those that load together with one that is ready now are there in a
 * moment: no job begins with fewer, which would take steps as much longer and be parked for them;
 * one that runs goes on meanwhile. */
static int count_ranks(const sl_jobs *d, sl_role role, bool one_runs)
{
    int ready = 0, come = 0;
    int64_t since = INT64_MAX;
    for (int i = 0; i < SL_CONF_SEATS; i++) {
        const seat *s = &d->seats[i];
        if (!s->stage || s->stage->role != role || !s->rank) continue;
        ready += s->ready;
        come += s->loads && !s->ready;
        if (s->ready && s->ready_ns < since) since = s->ready_ns;
    }
    const bool wait = ready && !one_runs && sl_now_ns() - since < TOGETHER_NS;
    return ready + (wait ? come : 0);
}

static void share(sl_jobs *d, sl_role role)
{
    sl_team_job *jobs = d->team_jobs;
    int *whose = d->team_jobs_of;
    int n = 0, team = 0;
    bool one_runs = false;
    for (int i = 0; i < SL_CONF_SEATS; i++) {
        const seat *s = &d->seats[i];
        if (s->stage && s->stage->role == role) team = s->stage->team;
    }
    for (int i = 0; i < d->count; i++)
        if (describe(d, &d->jobs[i], role, &jobs[n])) {
            one_runs = one_runs || jobs[n].ranks;
            whose[n++] = i;
        }
    const int ranks = count_ranks(d, role, one_runs);
    sl_team_share(jobs, n, ranks, team, d->model->dit[0].heads);
    for (int i = 0; i < n; i++) {
        job *j = &d->jobs[whose[i]];
        j->want = jobs[i].want;
        if (jobs[i].park) park(d, j, &j->attempts[sl_crew_of(role)], role);
    }
}

void sl_schedule_teams(sl_jobs *d)
{
    for (int r = 0; r < sl_role_count(); r++)
        if (team_role(d, sl_crew_of((sl_role)r)) == r) share(d, (sl_role)r);
}

/* ---- beginning ---- */

static void tell_queued(sl_jobs *d, job *j, sl_role crew)
{
    sl_msg m = {.type = SL_MSG_SPAN,
                .span = {.job = j->id,
                         .kind = SL_SPAN_QUEUE,
                         .t0_ns = j->runnable_ns[crew],
                         .t1_ns = sl_now_ns()}};
    snprintf(m.span.stage, sizeof m.span.stage, "%s", sl_role_name(crew));
    sl_table_to_client(d, j, &m);
    j->runnable_ns[crew] = 0;
}

/* A row of JOB's list `to`. A seat that has not announced its pool yet has none: the newest
 * pool of that hand-over, then, will do. */
static void name_receiver(const sl_jobs *d, sl_tickets *to, int h, int receiver)
{
    sl_ticket where = {.pool = receiver == NO_SEAT ? 0 : d->seats[receiver].pools[h].id};
    if (receiver == NO_SEAT) sl_tickets_add(to, (uint32_t)h, NULL);
    else if (where.pool) sl_tickets_add(to, (uint32_t)h, &where);
}

/* JOB for one seat, and it is busy. */
static void send_to(sl_jobs *d, const job *j, const attempt *a, int number, const sl_msg *m)
{
    d->seats[number].job = j->id;
    d->seats[number].attempt = a->number;
    d->seats[number].last = 0;
    d->seats[number].key = j->key;
    sl_table_to_seat(d, number, m);
}

/* Who works on the job from now on, for its client: the leader, then the others. */
static void tell_team(sl_jobs *d, const job *j, const attempt *a, int leader)
{
    for (int i = 0; i < a->size; i++) {
        const seat *s = &d->seats[i ? a->mates[i] : leader];
        sl_msg m = {
            .type = SL_MSG_STAGE,
            .stage = {.instance = (uint32_t)s->stage->instance, .pid = s->pid, .job = j->id}};
        snprintf(m.stage.stage, sizeof m.stage.stage, "%s", sl_role_name(s->stage->role));
        snprintf(m.stage.event, sizeof m.stage.event, i ? "joins" : "leads");
        snprintf(m.stage.device, sizeof m.stage.device, "%s", s->stage->device);
        sl_table_to_client(d, j, &m);
    }
}

/* JOB, which says the rest, for each of the team; hand-overs are its leader's. */
static void send_team(sl_jobs *d, const job *j, const attempt *a, int leader, sl_msg *m)
{
    sl_members *team = &m->job.team;
    *team = (sl_members){.size = (uint32_t)a->size, .key = d->new_key(d->self)};
    for (int i = 0; i < a->size; i++)
        team->member[i] = (uint32_t)d->seats[i ? a->mates[i] : leader].stage->instance;
    send_to(d, j, a, leader, m);
    m->job.in = m->job.to = (sl_tickets){0};
    for (team->me = 1; team->me < team->size; team->me++) send_to(d, j, a, a->mates[team->me], m);
    tell_team(d, j, a, leader);
}

/* JOB for one seat of the crew: what it starts from, and whose pools get what it gives. */
static void send_job(sl_jobs *d, job *j, attempt *a, sl_role role)
{
    int number = a->seat[role];
    sl_msg m = {.type = SL_MSG_JOB, .job = {.job = j->id, .attempt = a->number}};
    memcpy(m.job.dir, j->dir, sizeof m.job.dir);
    for (int h = 0; h < sl_handover_count(); h++) {
        delivery *v = &j->deliveries[h];
        if (SL_HANDOVER[h].to == role && v->has) {
            a->from_slot[h] = v->seat == number;
            sl_tickets_add(&m.job.in, (uint32_t)h, a->from_slot[h] ? &v->ticket : NULL);
            if (!a->from_slot[h]) sl_table_discard(d, v);
            v->seat = NO_SEAT; /* the crew has it now */
        }
        if (SL_HANDOVER[h].from == role && (v->has || is_chunks(h))) {
            int to = is_chunks(h) ? a->seat[SL_HANDOVER[h].to] : a->makes_for[h];
            name_receiver(d, &m.job.to, h, to);
            v->maker = number;
        }
    }
    if (d->seats[number].teamed) send_team(d, j, a, number, &m);
    else send_to(d, j, a, number, &m);
}

/* First the receivers of chunks: they know the job before a chunk comes. */
static void send_jobs(sl_jobs *d, job *j, attempt *a, sl_role role)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if (is_chunks(h) && SL_HANDOVER[h].from == role) send_jobs(d, j, a, SL_HANDOVER[h].to);
    send_job(d, j, a, role);
}

/* Start the crew's attempt, if the rule allows it. */
static void start_crew(sl_jobs *d, job *j, sl_role crew)
{
    attempt a = {0};
    int first = NO_SEAT, teamed = team_role(d, crew);
    bool takes_any;
    if (!is_runnable(d, j, crew, &takes_any)) return;
    if (!j->runnable_ns[crew]) j->runnable_ns[crew] = sl_now_ns();
    for (int i = 0; i < SL_RANKS; i++) a.mates[i] = NO_SEAT;
    for (int r = 0; r < sl_role_count(); r++) {
        a.seat[r] = NO_SEAT;
        if (sl_crew_of((sl_role)r) != crew) continue;
        if ((a.seat[r] = choose_seat(d, j, (sl_role)r, first)) == NO_SEAT) return;
        if (first == NO_SEAT) first = a.seat[r];
        if (r == teamed && (!j->want || !choose_mates(d, j, (sl_role)r, &a))) return;
    }
    for (int h = 0; h < sl_handover_count(); h++) {
        bool makes = gives(crew, h) && is_wanted(j, h);
        a.makes_for[h] = makes ? choose_receiver(d, j, h) : NO_SEAT;
        if (a.makes_for[h] == FULL) return;
    }
    a.number = ++j->attempt_count;
    a.heard_ns = sl_now_ns();
    j->attempts[crew] = a;
    for (int r = 0; r < sl_role_count(); r++)
        if (sl_crew_of((sl_role)r) == crew) overtake(d, j, crew, (sl_role)r);
    j->overtaken = 0;
    if (takes_any || j == d->jobs) j->started = true;
    tell_queued(d, j, crew);
    send_jobs(d, j, &j->attempts[crew], crew);
}

void sl_schedule_start(sl_jobs *d, job *j)
{
    for (int r = 0; r < sl_role_count(); r++)
        if (sl_crew_of((sl_role)r) == (sl_role)r) start_crew(d, j, (sl_role)r);
}
