/* live.c - where running jobs are, and what they are likely to take. */
#include "stages/serve/live.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/pipeline.h"

#define SHAPES 32  /* sizes whose times are remembered */
#define FORGET 0.3 /* weight of the newest example */

/* What part of a job each role is. Of progress, not of time: it has to move, not to be exact. */
static const double SHARES[SL_ROLES_MOST] = {[SL_ROLE_TEXT] = 0.01,
                                             [SL_ROLE_IMAGE] = 0.03,
                                             [SL_ROLE_DENOISE] = 0.80,
                                             [SL_ROLE_DECODE] = 0.10,
                                             [SL_ROLE_MUX] = 0.06};

/* What was measured of jobs of one size. */
typedef struct {
    int64_t step_work; /* of one step; 0: free */
    double step_s;     /* negative: none yet */
    double rest_s;     /* of a job after its last step; negative: none yet */
    uint64_t used;
} shape;

typedef struct {
    bool used;
    sl_live_job job;
    double part[SL_ROLES_MOST]; /* finished, 0 to 1 */
    int64_t step_work;
    int steps;
    int steps_left;
    int64_t last_step_ns; /* end of the newest step; 0: none yet */
} entry;

struct sl_live {
    pthread_mutex_t lock;
    entry at[SL_LIVE_JOBS];
    shape shapes[SHAPES];
    uint64_t clock;
};

sl_code sl_live_open(sl_live **out, sl_err *err)
{
    sl_live *l = *out = calloc(1, sizeof *l);
    if (!l) return sl_fail(err, SL_NOMEM, "serve: no memory");
    pthread_mutex_init(&l->lock, NULL);
    return SL_OK;
}

void sl_live_close(sl_live **lp)
{
    sl_live *l = *lp;
    *lp = NULL;
    if (!l) return;
    pthread_mutex_destroy(&l->lock);
    free(l);
}

int64_t sl_live_step_work(int width, int height, int frames, bool guided)
{
    return (int64_t)width * height * frames * (guided ? 2 : 1);
}

/* ---- what was measured ---- */

static shape *shape_of(sl_live *l, int64_t work)
{
    shape *oldest = l->shapes;
    for (int i = 0; i < SHAPES; i++) {
        if (l->shapes[i].step_work == work) return &l->shapes[i];
        if (l->shapes[i].used < oldest->used) oldest = &l->shapes[i];
    }
    *oldest = (shape){.step_work = work, .step_s = -1, .rest_s = -1};
    return oldest;
}

static void learn(double *known, double s)
{
    *known = *known < 0 ? s : *known + FORGET * (s - *known);
}

/* Seconds of a step, or of the rest, for that much work a step; negative: nothing is known. */
static double guess(const sl_live *l, int64_t work, size_t at)
{
    const shape *newest = NULL;
    for (int i = 0; i < SHAPES; i++) {
        const shape *s = &l->shapes[i];
        const double known = *(const double *)((const char *)s + at);
        if (!s->step_work || known < 0) continue;
        if (s->step_work == work) return known;
        if (!newest || s->used > newest->used) newest = s;
    }
    if (!newest) return -1;
    return *(const double *)((const char *)newest + at) * (double)work / (double)newest->step_work;
}

static double job_s(const sl_live *l, int64_t work, int steps)
{
    const double step = guess(l, work, offsetof(shape, step_s)),
                 rest = guess(l, work, offsetof(shape, rest_s));
    if (step < 0) return -1;
    return step * steps + (rest < 0 ? 0 : rest);
}

/* ---- the pipeline's ---- */

static entry *find(sl_live *l, const char *id)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (l->at[i].used && !strcmp(l->at[i].job.id, id)) return &l->at[i];
    return NULL;
}

void sl_live_begin(sl_live *l, const char *id, const sl_job *spec, double progress)
{
    pthread_mutex_lock(&l->lock);
    for (int i = 0; i < SL_LIVE_JOBS; i++) {
        entry *e = &l->at[i];
        if (e->used) continue;
        *e = (entry){
            .used = true,
            .job = {.progress = progress},
            .step_work =
                sl_live_step_work(spec->width, spec->height, spec->frames, sl_job_guided(spec)),
            .steps = spec->steps,
            .steps_left = spec->steps,
        };
        memcpy(e->job.id, id, strlen(id) + 1);
        break;
    }
    pthread_mutex_unlock(&l->lock);
}

static void add_up(entry *e)
{
    double sum = 0;
    for (int r = 0; r < SL_ROLE_COUNT; r++) sum += SHARES[r] * e->part[r];
    if (sum > e->job.progress) e->job.progress = sum < 1 ? sum : 1;
}

static bool is_behind_steps(int role)
{
    return role != SL_ROLE_DENOISE && sl_role_follows((sl_role)role, SL_ROLE_DENOISE);
}

void sl_live_step(sl_live *l, const char *id, const sl_msg_progress *m)
{
    const int role = sl_role_by_name(m->stage);
    pthread_mutex_lock(&l->lock);
    entry *e = find(l, id);
    if (e && role >= 0 && m->total) {
        memcpy(e->job.stage, m->stage, sizeof e->job.stage);
        e->job.step = m->done;
        e->job.steps = m->total;
        e->job.step_s = m->seconds;
        e->part[role] = fmin(1, (double)m->done / m->total);
        if (sl_role_has_teams((sl_role)role)) {
            shape *s = shape_of(l, e->step_work);
            learn(&s->step_s, m->seconds);
            s->used = ++l->clock;
            e->steps_left = (int)(m->total - m->done);
            e->last_step_ns = sl_now_ns();
            e->job.preview++;
        }
        if (is_behind_steps(role)) e->steps_left = 0; /* an earlier life had made them */
        add_up(e);
    }
    pthread_mutex_unlock(&l->lock);
}

void sl_live_stage_done(sl_live *l, const char *id, const char *stage)
{
    const int role = sl_role_by_name(stage);
    pthread_mutex_lock(&l->lock);
    entry *e = find(l, id);
    if (e && role >= 0) {
        e->part[role] = 1;
        /* whoever is through with the steps, or with what comes of them, had all before it */
        const bool steps = role == SL_ROLE_DENOISE || is_behind_steps(role);
        for (int r = 0; r < SL_ROLE_COUNT; r++)
            if (steps && sl_role_follows((sl_role)role, (sl_role)r)) e->part[r] = 1;
        if (steps) e->steps_left = 0;
        add_up(e);
    }
    pthread_mutex_unlock(&l->lock);
}

void sl_live_end(sl_live *l, const char *id, bool well)
{
    pthread_mutex_lock(&l->lock);
    entry *e = find(l, id);
    if (e && well && e->last_step_ns) {
        shape *s = shape_of(l, e->step_work);
        learn(&s->rest_s, (double)(sl_now_ns() - e->last_step_ns) * 1e-9);
        s->used = ++l->clock;
    }
    if (e) e->used = false;
    pthread_mutex_unlock(&l->lock);
}

/* ---- anybody's ---- */

static void describe(const sl_live *l, const entry *e, sl_live_job *out)
{
    const double rest = guess(l, e->step_work, offsetof(shape, rest_s));
    const double ends = e->part[SL_ROLE_MUX] < 1 ? 1 - e->part[SL_ROLE_DECODE] : 0;
    *out = e->job;
    out->left_s = job_s(l, e->step_work, e->steps_left);
    if (!e->steps_left) out->left_s = rest < 0 ? -1 : rest * ends;
}

int sl_live_all(sl_live *l, sl_live_job out[SL_LIVE_JOBS])
{
    int n = 0;
    pthread_mutex_lock(&l->lock);
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (l->at[i].used) describe(l, &l->at[i], &out[n++]);
    pthread_mutex_unlock(&l->lock);
    return n;
}

bool sl_live_get(sl_live *l, const char *id, sl_live_job *out)
{
    pthread_mutex_lock(&l->lock);
    const entry *e = find(l, id);
    if (e) describe(l, e, out);
    pthread_mutex_unlock(&l->lock);
    return e != NULL;
}

double sl_live_queued_s(sl_live *l, int64_t step_work, int steps, int position, int lanes)
{
    double running = 0, own;
    pthread_mutex_lock(&l->lock);
    for (int i = 0; i < SL_LIVE_JOBS; i++) {
        sl_live_job j;
        if (!l->at[i].used) continue;
        describe(l, &l->at[i], &j);
        if (j.left_s > 0) running += j.left_s;
    }
    own = job_s(l, step_work, steps);
    pthread_mutex_unlock(&l->lock);
    if (own < 0) return -1;
    if (lanes < 1) lanes = 1;
    return running / lanes + own * position / lanes + own;
}

void sl_live_print(const sl_live_job *j, char out[SL_JOURNAL_LIVE])
{
    snprintf(out, SL_JOURNAL_LIVE, "%s %u %u %.3f %d %.1f", *j->stage ? j->stage : "-", j->step,
             j->steps, j->step_s, j->preview, j->left_s);
}

bool sl_live_parse(sl_live_job *out, const sl_journal_job *job)
{
    *out = (sl_live_job){.progress = job->progress};
    memcpy(out->id, job->id, sizeof out->id);
    if (sscanf(job->live, "%15s %u %u %lf %d %lf", out->stage, &out->step, &out->steps,
               &out->step_s, &out->preview, &out->left_s) != 6 ||
        !isfinite(out->step_s) || !isfinite(out->left_s))
        return false;
    if (!strcmp(out->stage, "-")) *out->stage = 0;
    return true;
}
