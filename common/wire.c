/* wire.c - encode, decode, print, send and receive the messages of wire.h. */
#include "common/wire_kinds.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

/* ---- one field of each kind: put, get, size, print ---- */

static void put_bytes(uint8_t **p, const void *v, size_t n)
{
    memcpy(*p, v, n);
    *p += n;
}
static void put_u32(uint8_t **p, const uint32_t *v)
{
    for (int i = 0; i < 4; i++) *(*p)++ = (uint8_t)(*v >> 8 * i);
}
static void put_u64(uint8_t **p, const uint64_t *v)
{
    for (int i = 0; i < 8; i++) *(*p)++ = (uint8_t)(*v >> 8 * i);
}
static void get_u32(const uint8_t **p, uint32_t *v)
{
    *v = 0;
    for (int i = 0; i < 4; i++) *v |= (uint32_t) * (*p)++ << 8 * i;
}
static void get_u64(const uint8_t **p, uint64_t *v)
{
    *v = 0;
    for (int i = 0; i < 8; i++) *v |= (uint64_t) * (*p)++ << 8 * i;
}
static void put_i32(uint8_t **p, const int32_t *v)
{
    uint32_t u = (uint32_t)*v;
    put_u32(p, &u);
}
static void get_i32(const uint8_t **p, int32_t *v)
{
    uint32_t u;
    get_u32(p, &u);
    *v = (int32_t)u;
}
static void put_i64(uint8_t **p, const int64_t *v)
{
    uint64_t u = (uint64_t)*v;
    put_u64(p, &u);
}
static void get_i64(const uint8_t **p, int64_t *v)
{
    uint64_t u;
    get_u64(p, &u);
    *v = (int64_t)u;
}
static void put_f64(uint8_t **p, const double *v)
{
    uint64_t u;
    memcpy(&u, v, 8);
    put_u64(p, &u);
}
static void get_f64(const uint8_t **p, double *v)
{
    uint64_t u;
    get_u64(p, &u);
    memcpy(v, &u, 8);
}

/* Strings: cut to the field, the rest zero, so that nothing of the sender's stack
 * travels. */
static void put_string(uint8_t **p, const char *s, size_t field)
{
    size_t n = strnlen(s, field - 1);
    memcpy(*p, s, n);
    memset(*p + n, 0, field - n);
    *p += field;
}
/* One text has one encoding: after its end there is nothing but zeros. */
static bool get_string(const uint8_t **p, char *s, size_t field)
{
    size_t n = strnlen((const char *)*p, field);
    bool ok = n < field;
    memcpy(s, *p, field);
    for (size_t i = n; i < field; i++) ok = ok && !s[i];
    *p += field;
    return ok;
}
#define STRING_KIND(kind, field)                                                                   \
    static void put_##kind(uint8_t **p, const char(*v)[field])                                     \
    {                                                                                              \
        put_string(p, *v, field);                                                                  \
    }                                                                                              \
    static bool get_##kind(const uint8_t **p, char(*v)[field])                                     \
    {                                                                                              \
        return get_string(p, *v, field);                                                           \
    }
STRING_KIND(str16, SL_STR16)
STRING_KIND(str24, SL_POOL_NAME)
STRING_KIND(str64, SL_STR64)
STRING_KIND(text, SL_TEXT)
STRING_KIND(dir, SL_DIR)

/* Kinds whose bytes can all be right: wrap them so that every get returns whether it was. */
#define GET_i32(p, v) (get_i32(p, v), true)
#define GET_u32(p, v) (get_u32(p, v), true)
#define GET_i64(p, v) (get_i64(p, v), true)
#define GET_u64(p, v) (get_u64(p, v), true)
#define GET_f64(p, v) (get_f64(p, v), true)
#define GET_ticket get_ticket
#define GET_pool get_pool
#define GET_blob64(p, v) (get_blob64(p, v), true)
#define GET_tickets get_tickets
#define GET_team get_team
#define GET_str16 get_str16
#define GET_str24 get_str24
#define GET_str64 get_str64
#define GET_text get_text
#define GET_dir get_dir

/* The fields of a kind that is made of others; v: the struct. */
#define PUT_OF(kind, name) put_##kind(p, &v->name);
#define GET_OF(kind, name) ok = GET_##kind(p, &v->name) && ok;

static void put_blob64(uint8_t **p, const uint8_t (*v)[64])
{
    put_bytes(p, *v, 64);
}
static void get_blob64(const uint8_t **p, uint8_t (*v)[64])
{
    memcpy(*v, *p, 64);
    *p += 64;
}

static void put_ticket(uint8_t **p, const sl_ticket *v)
{
    WIRE_KIND_TICKET(PUT_OF)
}
static bool get_ticket(const uint8_t **p, sl_ticket *v)
{
    bool ok = true;
    WIRE_KIND_TICKET(GET_OF)
    return ok;
}
static void put_pool(uint8_t **p, const sl_pool_handle *v)
{
    WIRE_KIND_POOL(PUT_OF)
}
static bool get_pool(const uint8_t **p, sl_pool_handle *v)
{
    bool ok = true;
    WIRE_KIND_POOL(GET_OF)
    return ok;
}

static void put_tickets(uint8_t **p, const sl_tickets *list)
{
    put_u32(p, &list->count);
    for (int i = 0; i < SL_TICKETS; i++) {
        const sl_wire_row *v = &list->at[i];
        WIRE_KIND_ROW(PUT_OF)
    }
}
/* One list has one encoding: after its end there is nothing but zeros. */
static bool get_tickets(const uint8_t **p, sl_tickets *list)
{
    const uint8_t *end = *p + SIZE_tickets;
    get_u32(p, &list->count);
    bool ok = list->count <= SL_TICKETS;
    for (const uint8_t *q = *p + (ok ? list->count : 0) * SIZE_row; q < end; q++) ok = ok && !*q;
    for (int i = 0; i < SL_TICKETS; i++) {
        sl_wire_row *v = &list->at[i];
        WIRE_KIND_ROW(GET_OF)
        ok = ok && v->way <= SL_BY_SLOT;
    }
    return ok;
}

static void put_team(uint8_t **p, const sl_members *v)
{
    WIRE_KIND_TEAM(PUT_OF)
    for (int i = 0; i < SL_RANKS; i++) put_u32(p, &v->member[i]);
}
/* One team has one encoding. */
static bool get_team(const uint8_t **p, sl_members *v)
{
    bool ok = true;
    WIRE_KIND_TEAM(GET_OF)
    ok = v->size <= SL_RANKS && (v->size ? v->me < v->size : !v->me && !v->key);
    for (uint32_t i = 0; i < SL_RANKS; i++) {
        get_u32(p, &v->member[i]);
        ok = ok && (i < v->size ? v->member[i] < SL_RANKS : !v->member[i]);
    }
    return ok;
}

#define X(number, NAME, lower)                                                                     \
    _Static_assert(SL_WIRE_HEADER + BODY_##NAME <= SL_WIRE_MAX, #NAME " does not fit");
WIRE_ALL(X)
#undef X

const char *sl_wire_name(sl_msg_type type)
{
    switch (type) {
#define X(number, NAME, lower)                                                                     \
    case SL_MSG_##NAME: return #NAME;
        WIRE_ALL(X)
#undef X
    }
    return "?";
}

uint64_t sl_wire_job(const sl_msg *msg)
{
    uint64_t number = 0;
#define FIND(kind, name)                                                                           \
    if (!strcmp(#name, "job")) memcpy(&number, &m->name, sizeof number);
    switch (msg->type) {
#define X(number_of, NAME, lower)                                                                  \
    case SL_MSG_##NAME: {                                                                          \
        const sl_msg_##lower *m = &msg->lower;                                                     \
        (void)m;                                                                                   \
        WIRE_##NAME(FIND)                                                                          \
    } break;
        WIRE_ALL(X)
#undef X
    }
    return number;
}

const sl_ticket *sl_tickets_find(const sl_tickets *list, uint32_t h)
{
    for (uint32_t i = 0; i < list->count && i < SL_TICKETS; i++)
        if (list->at[i].handover == h && list->at[i].way == SL_BY_SLOT) return &list->at[i].ticket;
    return NULL;
}

void sl_tickets_add(sl_tickets *list, uint32_t h, const sl_ticket *ticket)
{
    assert(list->count < SL_TICKETS);
    uint32_t i = list->count++;
    list->at[i].handover = h;
    list->at[i].way = ticket ? SL_BY_SLOT : SL_BY_FILE;
    if (ticket) list->at[i].ticket = *ticket;
}

size_t sl_wire_encode(uint8_t *buf, const sl_msg *msg)
{
    uint8_t *p = buf + SL_WIRE_HEADER, *h = buf;
    uint32_t magic = SL_WIRE_MAGIC, version = SL_WIRE_VERSION, type = (uint32_t)msg->type, body;
#define PUT(kind, name) put_##kind(&p, &m->name);
    switch (msg->type) {
#define X(number, NAME, lower)                                                                     \
    case SL_MSG_##NAME: {                                                                          \
        const sl_msg_##lower *m = &msg->lower;                                                     \
        WIRE_##NAME(PUT)                                                                           \
    } break;
        WIRE_ALL(X)
#undef X
    }
    body = (uint32_t)(p - buf - SL_WIRE_HEADER);
    put_u32(&h, &magic), put_u32(&h, &version), put_u32(&h, &type), put_u32(&h, &body);
    return (size_t)(p - buf);
}

/* Who says HELLO in another version of the protocol: those fields stand first in all of them. */
static void get_foreign_hello(sl_msg *out, const uint8_t *p, size_t length)
{
    if (length < sizeof out->hello.role + 4) return;
    out->type = SL_MSG_HELLO;
    if (!get_str16(&p, &out->hello.role)) out->hello.role[0] = 0;
    get_i32(&p, &out->hello.pid);
}

sl_code sl_wire_decode(sl_msg *out, const void *bytes, size_t length, sl_err *err)
{
    const uint8_t *p = bytes;
    uint32_t magic, version, type, body, want = 0;
    bool ok = true;
    memset(out, 0, sizeof *out);
    if (length < SL_WIRE_HEADER)
        return sl_fail(err, SL_FORMAT, "message: %zu bytes, want at least %d", length,
                       SL_WIRE_HEADER);
    get_u32(&p, &magic), get_u32(&p, &version), get_u32(&p, &type), get_u32(&p, &body);
    if (magic != SL_WIRE_MAGIC)
        return sl_fail(err, SL_FORMAT, "message: magic %08x, want %08x", magic, SL_WIRE_MAGIC);
    if (version != SL_WIRE_VERSION && type == SL_MSG_HELLO)
        get_foreign_hello(out, p, length - SL_WIRE_HEADER);
    if (version != SL_WIRE_VERSION)
        return sl_fail(err, SL_FORMAT, "message: protocol version %u, want %d", version,
                       SL_WIRE_VERSION);
    switch ((sl_msg_type)type) {
#define X(number, NAME, lower)                                                                     \
    case SL_MSG_##NAME: want = BODY_##NAME; break;
        WIRE_ALL(X)
#undef X
    default: return sl_fail(err, SL_FORMAT, "message: unknown type %u", type);
    }
    if (body != want || length - SL_WIRE_HEADER != want)
        return sl_fail(err, SL_FORMAT, "message: %s has %zu bytes and says %u, want %u",
                       sl_wire_name((sl_msg_type)type), length - SL_WIRE_HEADER, body, want);
    out->type = (sl_msg_type)type;
#define GET(kind, name) ok = GET_##kind(&p, &m->name) && ok;
    switch (out->type) {
#define X(number, NAME, lower)                                                                     \
    case SL_MSG_##NAME: {                                                                          \
        sl_msg_##lower *m = &out->lower;                                                           \
        WIRE_##NAME(GET)                                                                           \
    } break;
        WIRE_ALL(X)
#undef X
    }
    if (!ok)
        return sl_fail(err, SL_FORMAT,
                       "message: %s has a string or a list without an end, or with bytes behind it",
                       sl_wire_name(out->type));
    return SL_OK;
}

/* ---- printing ---- */

typedef struct {
    char *at, *end;
} out_text;

static void say(out_text *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(out_text *o, const char *fmt, ...)
{
    va_list ap;
    if (o->at >= o->end) return;
    va_start(ap, fmt);
    int n = vsnprintf(o->at, (size_t)(o->end - o->at), fmt, ap);
    va_end(ap);
    if (n > 0) o->at += n < o->end - o->at ? n : o->end - o->at;
}
static void say_tickets(out_text *o, const sl_tickets *v)
{
    say(o, "[");
    for (uint32_t i = 0; i < v->count && i < SL_TICKETS; i++) {
        const sl_ticket *t = &v->at[i].ticket;
        say(o, "%s%u:", i ? " " : "", v->at[i].handover);
        if (v->at[i].way == SL_BY_FILE) say(o, "file");
        else say(o, "%08" PRIx32 "/%u@%" PRIu64, (uint32_t)t->pool, t->slot, t->epoch);
    }
    say(o, "]");
}
static void say_team(out_text *o, const sl_members *v)
{
    say(o, "%u@%u[", v->me, v->key);
    for (uint32_t i = 0; i < v->size && i < SL_RANKS; i++)
        say(o, "%s%u", i ? " " : "", v->member[i]);
    say(o, "]");
}
#define SAY_i32(v) say(&o, "%" PRId32, v)
#define SAY_u32(v) say(&o, "%" PRIu32, v)
#define SAY_i64(v) say(&o, "%" PRId64, v)
#define SAY_u64(v) say(&o, "%" PRIu64, v)
#define SAY_f64(v) say(&o, "%g", v)
#define SAY_str16(v) say(&o, "\"%s\"", v)
#define SAY_str24 SAY_str16
#define SAY_str64(v) say(&o, "\"%s\"", v)
#define SAY_text(v) say(&o, "\"%s\"", v)
#define SAY_dir(v) say(&o, "\"%s\"", v)
#define SAY_ticket(v) say(&o, "%08" PRIx32 "/%u@%" PRIu64, (uint32_t)(v).pool, (v).slot, (v).epoch)
#define SAY_team(v) say_team(&o, &(v))
#define SAY_blob64(v) say(&o, "%02x%02x...", (v)[0], (v)[1])
#define SAY_tickets(v) say_tickets(&o, &(v))
#define SAY_pool(v) say(&o, "%s:%08" PRIx32 " pid %d", (v).name, (uint32_t)(v).pool, (v).pid)

const char *sl_wire_text_of(const sl_msg *msg, char *buf, size_t size)
{
    out_text o = {buf, buf + size};
    say(&o, "%s", sl_wire_name(msg->type));
#define SAY(kind, name) say(&o, " " #name "="), SAY_##kind(m->name);
    switch (msg->type) {
#define X(number, NAME, lower)                                                                     \
    case SL_MSG_##NAME: {                                                                          \
        const sl_msg_##lower *m = &msg->lower;                                                     \
        WIRE_##NAME(SAY)                                                                           \
    } break;
        WIRE_ALL(X)
#undef X
    }
    return buf;
}

/* ---- sockets ---- */

sl_code sl_wire_send(void *socket, const void *to, size_t to_size, const sl_msg *msg, sl_err *err)
{
    uint8_t buf[SL_WIRE_MAX];
    size_t n = sl_wire_encode(buf, msg);
    int rc = 0;
    if (to) do
            rc = zmq_send(socket, to, to_size, ZMQ_SNDMORE);
        while (rc < 0 && errno == EINTR);
    if (rc >= 0) do
            rc = zmq_send(socket, buf, n, 0);
        while (rc < 0 && errno == EINTR);
    if (rc >= 0) return SL_OK;
    if (errno == EAGAIN)
        return sl_fail(err, SL_BUSY, "%s could not be sent in time", sl_wire_name(msg->type));
    if (errno == EHOSTUNREACH)
        return sl_fail(err, SL_GONE, "%s: no such peer", sl_wire_name(msg->type));
    return sl_fail(err, SL_SYS, "%s could not be sent: %s", sl_wire_name(msg->type),
                   zmq_strerror(errno));
}

/* Take off what is left of a message with more frames than it should have. */
static void swallow(void *socket)
{
    int more = 1;
    size_t size = sizeof more;
    char junk[1];
    while (!zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size) && more)
        if (zmq_recv(socket, junk, sizeof junk, ZMQ_DONTWAIT) < 0) break;
}

static bool has_more(void *socket)
{
    int more = 0;
    size_t size = sizeof more;
    return !zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size) && more;
}

sl_code sl_wire_recv(void *socket, void *from, size_t *from_size, sl_msg *out, sl_err *err)
{
    uint8_t buf[SL_WIRE_MAX];
    int n;
    if (from) {
        do n = zmq_recv(socket, from, 64, ZMQ_DONTWAIT);
        while (n < 0 && errno == EINTR);
        if (n < 0 && errno == EAGAIN) return sl_fail(err, SL_BUSY, "no message");
        if (n < 0) return sl_fail(err, SL_SYS, "receive: %s", zmq_strerror(errno));
        if (n > 64 || !has_more(socket)) {
            swallow(socket);
            return sl_fail(err, SL_FORMAT, "message: a lone frame, want identity and body");
        }
        *from_size = (size_t)n;
    }
    do n = zmq_recv(socket, buf, sizeof buf, ZMQ_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) return sl_fail(err, SL_BUSY, "no message");
    if (n < 0) return sl_fail(err, SL_SYS, "receive: %s", zmq_strerror(errno));
    if (has_more(socket)) {
        swallow(socket);
        return sl_fail(err, SL_FORMAT, "message: more frames than one body");
    }
    if (n > (int)sizeof buf)
        return sl_fail(err, SL_FORMAT, "message: %d bytes, want at most %d", n, SL_WIRE_MAX);
    return sl_wire_decode(out, buf, (size_t)n, err);
}
