/* test_wire.c - messages: every type there and back, every damaged one refused with what
 * is wrong, over real sockets. */
#include "t.h"

#include <zmq.h>

#include "common/wire.h"

/* ---- random contents for every field of every list ---- */

static uint64_t state = 1;

static uint64_t next(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static void fill_string(char *s, size_t field)
{
    size_t n = next() % 4 ? next() % field : field - 1; /* often as long as it goes */
    memset(s, 0, field);
    for (size_t i = 0; i < n; i++) s[i] = (char)(1 + next() % 255);
}
static void fill_i32(int32_t *v)
{
    *v = (int32_t)next();
}
static void fill_u32(uint32_t *v)
{
    *v = (uint32_t)next();
}
static void fill_i64(int64_t *v)
{
    *v = (int64_t)next();
}
static void fill_u64(uint64_t *v)
{
    *v = next();
}
static void fill_f64(double *v)
{
    uint64_t u = next(); /* any bits: NaN with its payload, infinities, denormals */
    memcpy(v, &u, 8);
}
static void fill_str16(char (*s)[SL_STR16])
{
    fill_string(*s, SL_STR16);
}
static void fill_str24(char (*s)[SL_POOL_NAME])
{
    fill_string(*s, SL_POOL_NAME);
}
static void fill_str64(char (*s)[SL_STR64])
{
    fill_string(*s, SL_STR64);
}
static void fill_text(char (*s)[SL_TEXT])
{
    fill_string(*s, SL_TEXT);
}
static void fill_dir(char (*s)[SL_DIR])
{
    fill_string(*s, SL_DIR);
}
static void fill_ticket(sl_ticket *t)
{
    fill_u64(&t->pool), fill_u32(&t->slot), fill_u32(&t->reserved), fill_u64(&t->epoch);
}
static void fill_pool(sl_pool_handle *h)
{
    fill_u64(&h->pool), fill_i32(&h->pid), fill_i32(&h->fd), fill_u32(&h->kind),
        fill_u32(&h->slots), fill_u64(&h->slot_bytes);
    fill_string(h->name, SL_POOL_NAME);
    for (size_t i = 0; i < sizeof h->device_handle; i++) h->device_handle[i] = (uint8_t)next();
}

static void fill_tickets(sl_tickets *v)
{
    memset(v, 0, sizeof *v);
    v->count = (uint32_t)(next() % (SL_TICKETS + 1));
    for (uint32_t i = 0; i < v->count; i++) {
        v->at[i].handover = (uint32_t)next();
        v->at[i].way = next() % 2 ? SL_BY_SLOT : SL_BY_FILE;
        fill_ticket(&v->at[i].ticket);
    }
}

static void fill_team(sl_members *v)
{
    memset(v, 0, sizeof *v);
    v->size = (uint32_t)(next() % (SL_RANKS + 1));
    if (!v->size) return;
    v->me = (uint32_t)(next() % v->size);
    fill_u32(&v->key);
    for (uint32_t i = 0; i < v->size; i++) v->member[i] = (uint32_t)(next() % SL_RANKS);
}

static void fill_blob64(uint8_t (*v)[64])
{
    for (int i = 0; i < 64; i++) (*v)[i] = (uint8_t)next();
}

/* The message of list NAME with random fields. Structs are zeroed first: bytes between
 * fields are never compared. */
static void fill(sl_msg *m, sl_msg_type type)
{
    memset(m, 0, sizeof *m);
    m->type = type;
#define FILL(kind, name) fill_##kind(&f->name);
    switch (type) {
#define X(number, NAME, lower)                                                                     \
    case SL_MSG_##NAME: {                                                                          \
        sl_msg_##lower *f = &m->lower;                                                             \
        WIRE_##NAME(FILL)                                                                          \
    } break;
        WIRE_ALL(X)
#undef X
    }
}

/* ---- one field as it was ---- */

static bool same_bytes(const void *a, const void *b, size_t n)
{
    return !memcmp(a, b, n);
}
#define SAME_i32(a, b) ((a) == (b))
#define SAME_u32(a, b) ((a) == (b))
#define SAME_i64(a, b) ((a) == (b))
#define SAME_u64(a, b) ((a) == (b))
#define SAME_f64(a, b) same_bytes(&(a), &(b), 8)
#define SAME_str16(a, b) same_bytes(a, b, SL_STR16)
#define SAME_str24(a, b) same_bytes(a, b, SL_POOL_NAME)
#define SAME_str64(a, b) same_bytes(a, b, SL_STR64)
#define SAME_text(a, b) same_bytes(a, b, SL_TEXT)
#define SAME_dir(a, b) same_bytes(a, b, SL_DIR)
#define SAME_ticket(a, b)                                                                          \
    ((a).pool == (b).pool && (a).slot == (b).slot && (a).reserved == (b).reserved &&               \
     (a).epoch == (b).epoch)
static bool same_tickets(const sl_tickets *a, const sl_tickets *b)
{
    bool same = a->count == b->count;
    for (int i = 0; i < SL_TICKETS; i++)
        same = same && a->at[i].handover == b->at[i].handover && a->at[i].way == b->at[i].way &&
               SAME_ticket(a->at[i].ticket, b->at[i].ticket);
    return same;
}
#define SAME_team(a, b) same_bytes(&(a), &(b), sizeof(sl_members)) /* of words alone */
#define SAME_blob64(a, b) same_bytes(a, b, 64)
#define SAME_tickets(a, b) same_tickets(&(a), &(b))
#define SAME_pool(a, b)                                                                            \
    ((a).pool == (b).pool && (a).pid == (b).pid && (a).fd == (b).fd && (a).kind == (b).kind &&     \
     (a).slots == (b).slots && (a).slot_bytes == (b).slot_bytes &&                                 \
     same_bytes((a).name, (b).name, SL_POOL_NAME) &&                                               \
     same_bytes((a).device_handle, (b).device_handle, 64))

static void compare(const sl_msg *a, const sl_msg *b)
{
    assert_int_equal(a->type, b->type);
#define CHECK(kind, name)                                                                          \
    if (!SAME_##kind(x->name, y->name))                                                            \
        fail_msg("%s: field " #name " came back changed", sl_wire_name(a->type));
    switch (a->type) {
#define X(number, NAME, lower)                                                                     \
    case SL_MSG_##NAME: {                                                                          \
        const sl_msg_##lower *x = &a->lower, *y = &b->lower;                                       \
        WIRE_##NAME(CHECK)                                                                         \
    } break;
        WIRE_ALL(X)
#undef X
    }
}

static const sl_msg_type TYPES[] = {
#define X(number, NAME, lower) SL_MSG_##NAME,
    WIRE_ALL(X)
#undef X
};
#define TYPE_COUNT (sizeof TYPES / sizeof *TYPES)

/* ---- encoding ---- */

static void test_round_trip(void **unused)
{
    uint8_t bytes[SL_WIRE_MAX], again[SL_WIRE_MAX];
    sl_err err = {0};
    sl_msg in, out;
    (void)unused;
    for (size_t i = 0; i < TYPE_COUNT; i++)
        for (int round = 0; round < 50; round++) {
            fill(&in, TYPES[i]);
            size_t n = sl_wire_encode(bytes, &in);
            assert_in_range(n, SL_WIRE_HEADER, SL_WIRE_MAX);
            memset(&out, 0xa5, sizeof out);
            T_OK(sl_wire_decode(&out, bytes, n, &err));
            compare(&in, &out);
            assert_int_equal(sl_wire_encode(again, &out), n);
            assert_memory_equal(again, bytes, n);
        }
}

/* The layout is fixed: a program in another language relies on it. */
static void test_layout(void **unused)
{
    static const uint8_t WANT[] = {'S', 'L', 'U', 'C', 6, 0, 0, 0, 14, 0, 0,    0,    12,   0,
                                   0,   0,   8,   7,   6, 5, 4, 3, 2,  1, 0xfe, 0xff, 0xff, 0xff};
    sl_msg m = {.type = SL_MSG_CANCEL,
                .cancel = {.job = 0x0102030405060708u, .attempt = 0xfffffffeu}};
    uint8_t bytes[SL_WIRE_MAX];
    (void)unused;
    assert_int_equal(sl_wire_encode(bytes, &m), sizeof WANT);
    assert_memory_equal(bytes, WANT, sizeof WANT);
}

/* Nothing of the sender's memory travels behind the end of a string; a string without an
 * end is cut to its field. */
static void test_strings_are_cut_and_zeroed(void **unused)
{
    uint8_t bytes[SL_WIRE_MAX];
    sl_msg m = {.type = SL_MSG_SPOOLED}, out;
    sl_err err = {0};
    (void)unused;
    memcpy(m.spooled.name, "text\0secret............", 24);
    sl_wire_encode(bytes, &m);
    assert_memory_equal(bytes + SL_WIRE_HEADER + 12, "text\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                        24);
    memset(m.spooled.name, 'x', 24);
    size_t n = sl_wire_encode(bytes, &m);
    T_OK(sl_wire_decode(&out, bytes, n, &err));
    assert_string_equal(out.spooled.name, "xxxxxxxxxxxxxxxxxxxxxxx");
}

/* ---- damage ---- */

static void test_every_length_but_one_is_refused(void **unused)
{
    uint8_t bytes[SL_WIRE_MAX + 1] = {0};
    char want[128];
    sl_err err = {0};
    sl_msg m, out;
    (void)unused;
    for (size_t i = 0; i < TYPE_COUNT; i++) {
        fill(&m, TYPES[i]);
        size_t n = sl_wire_encode(bytes, &m), body = n - SL_WIRE_HEADER;
        for (size_t cut = 0; cut <= n + 1; cut++) {
            /* on the heap: the sanitizer sees a byte read too far */
            uint8_t *exact = malloc(cut + !cut);
            memcpy(exact, bytes, cut);
            if (cut == n) T_OK(sl_wire_decode(&out, exact, cut, &err));
            else {
                T_CODE(sl_wire_decode(&out, exact, cut, &err), SL_FORMAT);
                if (cut < SL_WIRE_HEADER)
                    snprintf(want, sizeof want, "message: %zu bytes, want at least 16", cut);
                else
                    snprintf(want, sizeof want, "message: %s has %zu bytes and says %zu, want %zu",
                             sl_wire_name(TYPES[i]), cut - SL_WIRE_HEADER, body, body);
                assert_string_equal(err.msg, want);
            }
            free(exact);
        }
    }
}

static void set_u32(uint8_t *at, uint32_t v)
{
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(v >> 8 * i);
}

static void test_wrong_headers(void **unused)
{
    static const struct {
        int at;
        uint32_t value;
        const char *says;
    } CASES[] = {{0, 0x43554c54, "message: magic 43554c54, want 43554c53"},
                 {0, 0, "message: magic 00000000, want 43554c53"},
                 {0, 0x534c5543, "message: magic 534c5543, want 43554c53"},
                 {4, 0, "message: protocol version 0, want 6"},
                 {4, 1, "message: protocol version 1, want 6"},
                 {4, UINT32_MAX, "message: protocol version 4294967295, want 6"},
                 {8, 0, "message: unknown type 0"},
                 {8, 200, "message: unknown type 200"},
                 {8, UINT32_MAX, "message: unknown type 4294967295"},
                 {8, SL_MSG_DRAIN, "message: DRAIN has 12 bytes and says 12, want 4"},
                 {12, 11, "message: CANCEL has 12 bytes and says 11, want 12"},
                 {12, 0, "message: CANCEL has 12 bytes and says 0, want 12"},
                 {12, UINT32_MAX, "message: CANCEL has 12 bytes and says 4294967295, want 12"}};
    (void)unused;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        uint8_t bytes[SL_WIRE_MAX];
        sl_msg m = {.type = SL_MSG_CANCEL}, out;
        sl_err err = {0};
        size_t n = sl_wire_encode(bytes, &m);
        set_u32(bytes + CASES[i].at, CASES[i].value);
        T_CODE(sl_wire_decode(&out, bytes, n, &err), SL_FORMAT);
        assert_string_equal(err.msg, CASES[i].says);
    }
}

/* Who speaks another version is named, if it says HELLO: role and pid stand first in all. */
static void test_hello_of_another_version(void **unused)
{
    uint8_t bytes[SL_WIRE_MAX];
    sl_msg m = {.type = SL_MSG_HELLO, .hello = {.role = "decode", .pid = 4711, .device = "cpu"}},
           out;
    sl_err err = {0};
    const size_t n = sl_wire_encode(bytes, &m), first = SL_WIRE_HEADER + SL_STR16 + 4;
    (void)unused;
    set_u32(bytes + 4, 9);
    for (size_t length = 0; length <= n; length += length == first - 1 ? 1 : 7) {
        T_CODE(sl_wire_decode(&out, bytes, length, &err), SL_FORMAT);
        if (length < first) {
            assert_int_equal(out.type, 0);
            continue;
        }
        assert_string_equal(err.msg, "message: protocol version 9, want 6");
        assert_int_equal(out.type, SL_MSG_HELLO);
        assert_string_equal(out.hello.role, "decode");
        assert_int_equal(out.hello.pid, 4711);
    }
    memset(bytes + SL_WIRE_HEADER, 'x', SL_STR16); /* a role without an end is none */
    T_CODE(sl_wire_decode(&out, bytes, n, &err), SL_FORMAT);
    assert_string_equal(out.hello.role, "");
    set_u32(bytes + 8, SL_MSG_READY);
    T_CODE(sl_wire_decode(&out, bytes, n, &err), SL_FORMAT);
    assert_int_equal(out.type, 0);
}

/* A string field at bytes + at: without an end, and with a byte behind its end. */
static void damage_string(uint8_t *bytes, size_t n, size_t at, size_t field, sl_msg_type type)
{
    uint8_t keep[SL_DIR];
    char want[128];
    sl_err err = {0};
    sl_msg out;
    snprintf(want, sizeof want,
             "message: %s has a string or a list without an end, or with bytes behind it",
             sl_wire_name(type));
    memcpy(keep, bytes + at, field);
    memset(bytes + at, 'x', field);
    T_CODE(sl_wire_decode(&out, bytes, n, &err), SL_FORMAT);
    assert_string_equal(err.msg, want);
    memset(bytes + at, 0, field);
    bytes[at + field - 1] = 'x';
    T_CODE(sl_wire_decode(&out, bytes, n, &err), SL_FORMAT);
    assert_string_equal(err.msg, want);
    memcpy(bytes + at, keep, field);
    T_OK(sl_wire_decode(&out, bytes, n, &err));
}

/* Where the strings lie: sizes on the wire, and how far into the field its text begins (a
 * pool's name). */
enum {
    LONG_i32 = 4,
    LONG_u32 = 4,
    LONG_i64 = 8,
    LONG_u64 = 8,
    LONG_f64 = 8,
    LONG_ticket = 24,
    LONG_str16 = 16,
    LONG_str24 = 24,
    LONG_str64 = 64,
    LONG_text = 512,
    LONG_dir = 1024,
    LONG_team = (3 + SL_RANKS) * 4,
    LONG_blob64 = 64,
    LONG_tickets = 4 + SL_TICKETS * 32,
    LONG_pool = 8 + 16 + 8 + 24 + 64,
    TEXT_i32 = 0,
    TEXT_u32 = 0,
    TEXT_i64 = 0,
    TEXT_u64 = 0,
    TEXT_f64 = 0,
    TEXT_ticket = 0,
    TEXT_str16 = 16,
    TEXT_str24 = 24,
    TEXT_str64 = 64,
    TEXT_text = 512,
    TEXT_dir = 1024,
    TEXT_team = 0,
    TEXT_blob64 = 0,
    TEXT_tickets = 0,
    TEXT_pool = 24,
    SKIP_i32 = 0,
    SKIP_u32 = 0,
    SKIP_i64 = 0,
    SKIP_u64 = 0,
    SKIP_f64 = 0,
    SKIP_ticket = 0,
    SKIP_str16 = 0,
    SKIP_str24 = 0,
    SKIP_str64 = 0,
    SKIP_text = 0,
    SKIP_dir = 0,
    SKIP_team = 0,
    SKIP_blob64 = 0,
    SKIP_tickets = 0,
    SKIP_pool = 32
};

static void test_a_string_without_an_end(void **unused)
{
    uint8_t bytes[SL_WIRE_MAX];
    sl_msg m;
    int strings = 0;
    (void)unused;
#define LOOK(kind, name)                                                                           \
    if (TEXT_##kind) damage_string(bytes, n, at + SKIP_##kind, TEXT_##kind, m.type), strings++;    \
    at += LONG_##kind;
#define X(number, NAME, lower)                                                                     \
    {                                                                                              \
        fill(&m, SL_MSG_##NAME);                                                                   \
        size_t n = sl_wire_encode(bytes, &m), at = SL_WIRE_HEADER;                                 \
        WIRE_##NAME(LOOK) assert_int_equal(at, n);                                                 \
    }
    WIRE_ALL(X)
#undef X
    assert_in_range(strings, 14, 100);
}

/* A list says how long it is: never longer than its field, nothing behind its end, no way that is
 * none. */
static void test_a_damaged_list(void **unused)
{
    uint8_t bytes[SL_WIRE_MAX];
    sl_msg m = {.type = SL_MSG_DONE, .done = {.job = 1, .attempt = 1}}, out;
    const size_t list = SL_WIRE_HEADER + 8 + 4; /* after job and attempt */
    const size_t damaged[][2] = {{0, SL_TICKETS + 1}, {0, 255}, {0, 1}, {8, 2}, {4 + 2 * 32, 1}};
    sl_err err;
    (void)unused;
    sl_tickets_add(&m.done.out, 1, &(sl_ticket){.pool = 9, .slot = 2, .epoch = 3});
    sl_tickets_add(&m.done.out, 2, NULL);
    size_t n = sl_wire_encode(bytes, &m);
    T_OK(sl_wire_decode(&out, bytes, n, &err));
    assert_int_equal(sl_tickets_find(&out.done.out, 1)->slot, 2);
    assert_null(sl_tickets_find(&out.done.out, 2)); /* by file */
    assert_null(sl_tickets_find(&out.done.out, 0));
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        uint8_t keep = bytes[list + damaged[i][0]];
        bytes[list + damaged[i][0]] = (uint8_t)damaged[i][1];
        T_CODE(sl_wire_decode(&out, bytes, n, &err), SL_FORMAT);
        T_SAYS(err.msg, "DONE has a string or a list without an end");
        bytes[list + damaged[i][0]] = keep;
    }
}

/* A team has one encoding: no more members than there can be, the receiver among them, nothing
 * behind its end, no team without a size. */
static void test_a_damaged_team(void **unused)
{
    uint8_t bytes[SL_WIRE_MAX];
    sl_msg m = {.type = SL_MSG_LOAD, .load.team = {.size = 2, .me = 1, .key = 7, .member = {3, 0}}},
           out;
    const size_t damaged[][2] = {{0, SL_RANKS + 1}, {0, 0}, {0, 1}, {4, 2},
                                 {12, SL_RANKS},    {20, 1}};
    sl_err err;
    (void)unused;
    size_t n = sl_wire_encode(bytes, &m);
    T_OK(sl_wire_decode(&out, bytes, n, &err));
    assert_memory_equal(&out.load.team, &m.load.team, sizeof m.load.team);
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        uint8_t *at = bytes + SL_WIRE_HEADER + damaged[i][0], keep = *at;
        *at = (uint8_t)damaged[i][1];
        T_CODE(sl_wire_decode(&out, bytes, n, &err), SL_FORMAT);
        *at = keep;
    }
}

/* ---- printing ---- */

static void test_printing(void **unused)
{
    sl_msg m = {
        .type = SL_MSG_PROGRESS,
        .progress = {
            .job = 7, .attempt = 2, .stage = "denoise", .done = 3, .total = 50, .seconds = 1.5}};
    char text[4096], small[16];
    (void)unused;
    assert_string_equal(sl_wire_text_of(&m, text, sizeof text),
                        "PROGRESS job=7 attempt=2 stage=\"denoise\" done=3 total=50 seconds=1.5");
    assert_string_equal(sl_wire_text_of(&m, small, sizeof small), "PROGRESS job=7 ");
    assert_int_equal(sl_wire_job(&m), 7);
    for (size_t i = 0; i < TYPE_COUNT; i++) /* no size is overrun, and the text always ends */
        for (size_t size = 1; size < 200; size += 7) {
            char *exact = malloc(size);
            fill(&m, TYPES[i]);
            assert_in_range(strlen(sl_wire_text_of(&m, exact, size)), 0, size - 1);
            free(exact);
        }
    assert_string_equal(sl_wire_name(SL_MSG_DISCARD), "DISCARD");
    assert_int_equal(sl_wire_job(&(sl_msg){.type = SL_MSG_SUBMIT, .submit = {.tag = 9}}), 0);
    assert_int_equal(
        sl_wire_job(&(sl_msg){.type = SL_MSG_FINISHED, .finished = {.tag = 9, .job = 1ull << 40}}),
        1ull << 40);
    assert_string_equal(sl_wire_name((sl_msg_type)99), "?");
}

/* ---- sockets ---- */

typedef struct {
    void *zmq, *router, *dealer;
    char dir[256];
} line;

/* A ROUTER and a DEALER named "peer", over inproc or ipc. */
static void line_open(line *l, bool ipc)
{
    char endpoint[300] = "inproc://line";
    int mandatory = 1, none = 0;
    memset(l, 0, sizeof *l);
    if (ipc) {
        snprintf(l->dir, sizeof l->dir, "%s", t_tmpdir());
        snprintf(endpoint, sizeof endpoint, "ipc://%s/ctl", l->dir);
    }
    l->zmq = zmq_ctx_new();
    l->router = zmq_socket(l->zmq, ZMQ_ROUTER);
    l->dealer = zmq_socket(l->zmq, ZMQ_DEALER);
    zmq_setsockopt(l->router, ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory);
    zmq_setsockopt(l->router, ZMQ_LINGER, &none, sizeof none);
    zmq_setsockopt(l->dealer, ZMQ_LINGER, &none, sizeof none);
    zmq_setsockopt(l->dealer, ZMQ_IDENTITY, "peer", 4);
    assert_int_equal(zmq_bind(l->router, endpoint), 0);
    assert_int_equal(zmq_connect(l->dealer, endpoint), 0);
}

static void line_close(line *l)
{
    zmq_close(l->dealer);
    zmq_close(l->router);
    zmq_ctx_term(l->zmq);
    if (*l->dir) t_rmdir(l->dir);
}

static void wait_for(void *socket)
{
    zmq_pollitem_t item = {socket, 0, ZMQ_POLLIN, 0};
    assert_int_equal(zmq_poll(&item, 1, 5000), 1);
}

static void over(bool ipc)
{
    char from[64];
    size_t size = 0;
    sl_err err = {0};
    sl_msg in, out;
    line l;
    line_open(&l, ipc);
    T_CODE(sl_wire_recv(l.router, from, &size, &out, &err), SL_BUSY);
    for (size_t i = 0; i < TYPE_COUNT; i++) {
        fill(&in, TYPES[i]);
        T_OK(sl_wire_send(l.dealer, NULL, 0, &in, &err));
        wait_for(l.router);
        T_OK(sl_wire_recv(l.router, from, &size, &out, &err));
        compare(&in, &out);
        assert_int_equal(size, 4);
        assert_memory_equal(from, "peer", 4);

        fill(&in, TYPES[i]);
        T_OK(sl_wire_send(l.router, from, size, &in, &err));
        wait_for(l.dealer);
        T_OK(sl_wire_recv(l.dealer, NULL, NULL, &out, &err));
        compare(&in, &out);
    }
    T_CODE(sl_wire_send(l.router, "nobody", 6, &in, &err), SL_GONE);
    T_SAYS(err.msg, "no such peer");
    T_CODE(sl_wire_recv(l.dealer, NULL, NULL, &out, &err), SL_BUSY);
    line_close(&l);
}

static void test_over_inproc(void **unused)
{
    (void)unused;
    over(false);
}
static void test_over_ipc(void **unused)
{
    (void)unused;
    over(true);
}

/* Send frames of these sizes as one multi-part message; the receiver must refuse it once,
 * saying so, and hear the next message. */
static void send_frames(line *l, int count, const size_t *sizes, const char *says)
{
    static uint8_t junk[100000];
    char from[64];
    size_t size = 0;
    sl_err err = {0};
    sl_msg good = {.type = SL_MSG_ACCEPTED, .accepted = {.job = 77}}, out;
    for (int i = 0; i < count; i++)
        assert_true(zmq_send(l->dealer, junk, sizes[i], i + 1 < count ? ZMQ_SNDMORE : 0) >= 0);
    T_OK(sl_wire_send(l->dealer, NULL, 0, &good, &err));
    wait_for(l->router);
    T_CODE(sl_wire_recv(l->router, from, &size, &out, &err), SL_FORMAT);
    assert_string_equal(err.msg, says);
    wait_for(l->router);
    T_OK(sl_wire_recv(l->router, from, &size, &out, &err));
    compare(&good, &out);
    assert_int_equal(size, 4);
}

static void test_what_is_no_message_is_taken_off_the_queue(void **unused)
{
    line l;
    (void)unused;
    for (int ipc = 0; ipc < 2; ipc++) {
        line_open(&l, ipc);
        send_frames(&l, 1, (size_t[]){0}, "message: 0 bytes, want at least 16");
        send_frames(&l, 1, (size_t[]){1}, "message: 1 bytes, want at least 16");
        send_frames(&l, 1, (size_t[]){SL_WIRE_MAX}, "message: magic 00000000, want 43554c53");
        send_frames(&l, 1, (size_t[]){SL_WIRE_MAX + 1}, "message: 2049 bytes, want at most 2048");
        send_frames(&l, 1, (size_t[]){100000}, "message: 100000 bytes, want at most 2048");
        send_frames(&l, 2, (size_t[]){0, 28}, "message: more frames than one body");
        send_frames(&l, 2, (size_t[]){28, 0}, "message: more frames than one body");
        send_frames(&l, 5, (size_t[]){28, 100000, 0, 1, 28}, "message: more frames than one body");
        line_close(&l);
    }
}

/* The first frame of a peer's own making is not taken for an identity. */
static void test_a_lone_frame_where_an_identity_is_wanted(void **unused)
{
    char from[64];
    size_t size = 0;
    sl_err err = {0};
    sl_msg m = {.type = SL_MSG_ACCEPTED}, out;
    void *zmq = zmq_ctx_new(), *a = zmq_socket(zmq, ZMQ_PAIR), *b = zmq_socket(zmq, ZMQ_PAIR);
    (void)unused;
    zmq_bind(a, "inproc://pair");
    zmq_connect(b, "inproc://pair");
    T_OK(sl_wire_send(b, NULL, 0, &m, &err));
    T_CODE(sl_wire_recv(a, from, &size, &out, &err), SL_FORMAT);
    assert_string_equal(err.msg, "message: a lone frame, want identity and body");
    T_OK(sl_wire_send(b, "name", 4, &m, &err));
    T_OK(sl_wire_recv(a, from, &size, &out, &err));
    assert_int_equal(size, 4);
    char big[65] = {0};
    /* longer than any identity that we keep */
    T_OK(sl_wire_send(b, big, sizeof big, &m, &err));
    T_CODE(sl_wire_recv(a, from, &size, &out, &err), SL_FORMAT);
    T_CODE(sl_wire_recv(a, from, &size, &out, &err), SL_BUSY);
    zmq_close(a);
    zmq_close(b);
    zmq_ctx_term(zmq);
}

/* A full queue is an answer, not a wait. */
static void test_a_full_queue(void **unused)
{
    sl_err err = {0};
    sl_msg m = {.type = SL_MSG_DRAIN};
    int one = 1, at_once = 0, none = 0, sent = 0;
    void *zmq = zmq_ctx_new(), *s = zmq_socket(zmq, ZMQ_DEALER);
    (void)unused;
    zmq_setsockopt(s, ZMQ_SNDHWM, &one, sizeof one);
    zmq_setsockopt(s, ZMQ_SNDTIMEO, &at_once, sizeof at_once);
    zmq_setsockopt(s, ZMQ_LINGER, &none, sizeof none);
    zmq_connect(s, "ipc:///nonexistent/ctl");
    while (sent < 100 && !sl_wire_send(s, NULL, 0, &m, &err)) sent++;
    assert_in_range(sent, 0, 10);
    assert_int_equal(err.code, SL_BUSY);
    assert_string_equal(err.msg, "DRAIN could not be sent in time");
    zmq_close(s);
    zmq_ctx_term(zmq);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_strings_are_cut_and_zeroed),
        cmocka_unit_test(test_every_length_but_one_is_refused),
        cmocka_unit_test(test_wrong_headers),
        cmocka_unit_test(test_hello_of_another_version),
        cmocka_unit_test(test_a_string_without_an_end),
        cmocka_unit_test(test_a_damaged_list),
        cmocka_unit_test(test_a_damaged_team),
        cmocka_unit_test(test_printing),
        cmocka_unit_test(test_over_inproc),
        cmocka_unit_test(test_over_ipc),
        cmocka_unit_test(test_what_is_no_message_is_taken_off_the_queue),
        cmocka_unit_test(test_a_lone_frame_where_an_identity_is_wanted),
        cmocka_unit_test(test_a_full_queue),
    };
    return cmocka_run_group_tests_name("wire", tests, NULL, NULL);
}
