/* mates.c - the other instances of a stage's role. */
#include "stages/seat/mates.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"

#define LOAD_S 60 /* longest wait for LOAD */
#define LOOK_MS 100

/* ---- how ---- */

static bool on_cpu(const sl_conf_stage *s)
{
    return !strcmp(s->device, "cpu");
}

/* *yes: the GPUs of all instances can map each other. */
static sl_code all_map(bool *yes, const sl_conf *conf, sl_role role, const sl_plugin *p,
                       sl_err *err)
{
    *yes = true;
    for (int i = 0; i < conf->stage_count; i++)
        for (int k = 0; k < conf->stage_count && *yes; k++) {
            const sl_conf_stage *a = &conf->stages[i], *b = &conf->stages[k];
            if (a->role != role || b->role != role || !strcmp(a->device, b->device)) continue;
            sl_code rc = p->can_map(atoi(a->device + 5), atoi(b->device + 5), yes, err);
            if (rc) return rc;
        }
    return SL_OK;
}

sl_code sl_mates_way(const char **out, const sl_conf *conf, sl_role role, const sl_plugin *p,
                     sl_err *err)
{
    const sl_conf_stage *first = sl_conf_find(conf, role);
    const char *name = sl_role_name(role);
    bool cpu = on_cpu(first), map = true;
    sl_code rc;
    for (int i = 0; i < conf->stage_count; i++)
        if (conf->stages[i].role == role && on_cpu(&conf->stages[i]) != cpu)
            return sl_fail(err, SL_ARG,
                           "%s: a team on %s and %s, want devices of one kind (or team = 1)", name,
                           first->device, conf->stages[i].device);
    *out = first->comm;
    if (strcmp(*out, "auto")) {
        if (cpu == !strcmp(*out, "shm")) return SL_OK;
        return sl_fail(err, SL_ARG, "%s: comm = \"%s\" on %s, want \"auto\" or %s", name, *out,
                       first->device, cpu ? "\"shm\"" : "one of \"ipc\", \"nccl\"");
    }
    if (cpu) *out = "shm";
    else if ((rc = all_map(&map, conf, role, p, err))) return rc;
    else *out = map ? "ipc" : "nccl";
    return SL_OK;
}

/* ---- opening ---- */

static void beat(void *of)
{
    sl_comm_beat(of);
}

sl_code sl_mates_open(sl_mates *r, sl_control *control, const sl_conf *conf, sl_role role,
                      int instance, const sl_ctx *ctx, const sl_plugin *p, size_t bytes,
                      sl_err *err)
{
    const sl_comm_body *body = &sl_comm_shm;
    const char *way;
    sl_comm_handle h;
    sl_code rc = sl_mates_way(&way, conf, role, p, err);
    if (rc) return rc;
    r->control = control;
    r->granule = ctx->ops->row_granule;
    if (!strcmp(way, "ipc")) body = p->comm_ipc;
    if (!strcmp(way, "nccl")) body = p->comm_nccl;
    if ((rc = sl_comm_open(&r->comm, body, instance, bytes, SL_MATES_SILENT_MS, err))) return rc;
    sl_control_pulse(control, beat, r->comm);
    sl_comm_handle_of(r->comm, &h);
    sl_msg m = {.type = SL_MSG_RANK,
                .rank = {.rank = h.rank, .pid = h.pid, .fd = h.fd, .window_bytes = h.window_bytes}};
    memcpy(m.rank.device, h.device, sizeof m.rank.device);
    sl_control_send(control, &m);
    sl_log(SL_LOG_DEBUG, "rank %d by %s with a window of %.1f MB", instance, way,
           (double)bytes * 1e-6);
    return SL_OK;
}

void sl_mates_close(sl_mates *r)
{
    if (!r->comm) return;
    sl_control_pulse(r->control, NULL, NULL);
    sl_comm_close(&r->comm);
}

/* ---- what is heard of others ---- */

bool sl_mates_note(sl_mates *r, const sl_msg *m)
{
    if (m->type == SL_MSG_LOAD) {
        r->load = m->load.team;
        r->load_came = true;
        return true;
    }
    if (m->type != SL_MSG_RANK) return false;
    const sl_msg_rank *of = &m->rank;
    if (of->rank < 0 || of->rank >= SL_RANKS) {
        sl_log(SL_LOG_WARN, "RANK %d: ignored, want 0 to %d", of->rank, SL_RANKS - 1);
        return true;
    }
    sl_comm_handle h = {
        .rank = of->rank, .pid = of->pid, .fd = of->fd, .window_bytes = of->window_bytes};
    memcpy(h.device, of->device, sizeof h.device);
    r->others[of->rank].handle = h;
    r->others[of->rank].known = true;
    r->others[of->rank].connected = false;
    return true;
}

/* The team that the message tells of. */
static sl_team team_of(const sl_mates *r, const sl_members *m)
{
    sl_team t = {.size = (int)m->size, .me = (int)m->me, .key = m->key, .granule = r->granule};
    for (uint32_t i = 0; i < m->size; i++) t.member[i] = (int)m->member[i];
    return t;
}

sl_code sl_mates_join(sl_mates *r, const sl_members *m, sl_team *out, sl_err *err)
{
    *out = (sl_team){.size = 1, .key = m->key, .granule = r->granule};
    if (!r->comm || m->size == 0) return SL_OK;
    sl_comm_handle own;
    sl_comm_handle_of(r->comm, &own);
    if (m->member[m->me] != (uint32_t)own.rank)
        return sl_fail(err, SL_ARG, "team: member %u is instance %u, this is %d", m->me,
                       m->member[m->me], own.rank);
    *out = team_of(r, m);
    for (uint32_t i = 0; i < m->size; i++) {
        uint32_t k = m->member[i];
        if (i == m->me || r->others[k].connected) continue;
        if (!r->others[k].known)
            return sl_fail(err, SL_GONE, "team: instance %u has not said how to reach it", k);
        sl_code rc = sl_comm_connect(r->comm, &r->others[k].handle, err);
        if (rc) return rc;
        r->others[k].connected = true;
    }
    return SL_OK;
}

sl_code sl_mates_load_team(sl_mates *r, sl_team *out, sl_err *err)
{
    const int64_t by = sl_now_ns() + LOAD_S * 1000000000ll;
    sl_err why = {0};
    *out = (sl_team){.size = 1};
    if (!r->comm) return SL_OK;
    while (!r->load_came && sl_now_ns() < by) {
        sl_code rc = sl_control_wait(r->control, LOOK_MS, err);
        if (rc) return rc;
    }
    if (!r->load_came) sl_log(SL_LOG_WARN, "no LOAD for %d s: weights are loaded alone", LOAD_S);
    else if (!sl_mates_join(r, &r->load, out, &why)) return SL_OK;
    else {
        const sl_team lost = team_of(r, &r->load);
        sl_log(SL_LOG_WARN, "weights are loaded alone: %s", why.msg);
        sl_comm_abort(r->comm, &lost); /* nobody waits for this rank */
    }
    *out = (sl_team){.size = 1};
    return SL_OK;
}
