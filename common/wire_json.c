/* wire_json.c - a message as JSON, from the lists of wire.h. */
#include "common/wire_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* Numbers of 64 bits that JSON's readers would round: as text. */
static json_t *of_u64(uint64_t v)
{
    if (v <= (uint64_t)1 << 53) return json_integer((json_int_t)v);
    return json_sprintf("%" PRIu64, v);
}

/* A text of a peer may hold bytes that are no UTF-8. */
static json_t *of_text(const char *s, size_t size)
{
    char copy[SL_DIR];
    json_t *text;
    snprintf(copy, sizeof copy, "%.*s", (int)(size < sizeof copy ? size : sizeof copy - 1), s);
    if ((text = json_string(copy))) return text;
    for (char *c = copy; *c; c++)
        if ((unsigned char)*c >= 0x80) *c = '?';
    return json_string(copy);
}

static json_t *of_ticket(const sl_ticket *t)
{
    return json_pack("{s:o, s:i, s:o}", "pool", json_sprintf("%016" PRIx64, t->pool), "slot",
                     (int)t->slot, "epoch", of_u64(t->epoch));
}

static json_t *of_pool(const sl_pool_handle *h)
{
    return json_pack("{s:o, s:o, s:i, s:i, s:i, s:i, s:o}", "name", of_text(h->name, SL_POOL_NAME),
                     "pool", json_sprintf("%016" PRIx64, h->pool), "pid", (int)h->pid, "fd",
                     (int)h->fd, "kind", (int)h->kind, "slots", (int)h->slots, "slot_bytes",
                     of_u64(h->slot_bytes));
}

static json_t *of_handover(uint32_t h)
{
    if (h < (uint32_t)sl_handover_count()) return json_string(SL_HANDOVER[h].name);
    return json_integer(h);
}

static json_t *of_tickets(const sl_tickets *v)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < v->count && i < SL_TICKETS; i++)
        json_array_append_new(
            list, json_pack("{s:o, s:s, s:o*}", "handover", of_handover(v->at[i].handover), "way",
                            v->at[i].way == SL_BY_FILE ? "file" : "slot", "ticket",
                            v->at[i].way == SL_BY_FILE ? NULL : of_ticket(&v->at[i].ticket)));
    return list;
}

static json_t *of_team(const sl_members *v)
{
    json_t *members = json_array();
    for (uint32_t i = 0; i < v->size && i < SL_RANKS; i++)
        json_array_append_new(members, json_integer(v->member[i]));
    return json_pack("{s:i, s:i, s:o}", "me", (int)v->me, "key", (int)v->key, "members", members);
}

static json_t *of_blob(const uint8_t *v, size_t n)
{
    char hex[2 * 64 + 1];
    for (size_t i = 0; i < n; i++) snprintf(hex + 2 * i, 3, "%02x", v[i]);
    return json_string(hex);
}

#define OF_i32(v) json_integer(v)
#define OF_u32(v) json_integer(v)
#define OF_i64(v) json_integer(v)
#define OF_u64(v) of_u64(v)
#define OF_f64(v) (isfinite(v) ? json_real(v) : json_null())
#define OF_str16(v) of_text(v, sizeof(v))
#define OF_str24 OF_str16
#define OF_str64(v) of_text(v, sizeof(v))
#define OF_text(v) of_text(v, sizeof(v))
#define OF_dir(v) of_text(v, sizeof(v))
#define OF_ticket(v) of_ticket(&(v))
#define OF_tickets(v) of_tickets(&(v))
#define OF_pool(v) of_pool(&(v))
#define OF_team(v) of_team(&(v))
#define OF_blob64(v) of_blob(v, sizeof(v))

json_t *sl_wire_json(const sl_msg *msg)
{
    json_t *o = json_object();
#define SET(kind, name) json_object_set_new(o, #name, OF_##kind(m->name));
    switch (msg->type) {
#define X(number, NAME, lower)                                                                     \
    case SL_MSG_##NAME: {                                                                          \
        const sl_msg_##lower *m = &msg->lower;                                                     \
        WIRE_##NAME(SET)                                                                           \
    } break;
        WIRE_ALL(X)
#undef X
    }
    return o;
}
