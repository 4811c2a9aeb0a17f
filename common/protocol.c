/* protocol.c - the protocol of stages as JSON and as Markdown, from the lists. */
#include "common/protocol.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "common/lease_block.h"
#include "common/trace.h"
#include "common/wire_kinds.h"

typedef struct {
    const char *kind, *name;
    int times; /* one after the other */
} field;

typedef struct {
    const char *name;
    int bytes;
    const field *fields; /* the last has no kind; NULL: a plain kind */
} kind_row;

typedef struct {
    int number;
    const char *name;
    int bytes; /* of the body */
    const field *fields;
} message_row;

#define FIELD(kind, name) {#kind, #name, 1},
#define LIST(...)                                                                                  \
    (const field[])                                                                                \
    {                                                                                              \
        __VA_ARGS__                                                                                \
        {                                                                                          \
            0                                                                                      \
        }                                                                                          \
    }
#define PLAIN(kind)                                                                                \
    {                                                                                              \
#kind, SIZE_##kind, NULL                                                                   \
    }
static const kind_row KINDS[] = {
    PLAIN(i32),
    PLAIN(u32),
    PLAIN(i64),
    PLAIN(u64),
    PLAIN(f64),
    PLAIN(str16),
    PLAIN(str24),
    PLAIN(str64),
    PLAIN(text),
    PLAIN(dir),
    PLAIN(blob64),
    {"ticket", SIZE_ticket, LIST(WIRE_KIND_TICKET(FIELD))},
    {"pool", SIZE_pool, LIST(WIRE_KIND_POOL(FIELD))},
    {"row", SIZE_row, LIST(WIRE_KIND_ROW(FIELD))},
    {"tickets", SIZE_tickets, LIST(WIRE_KIND_TICKETS(FIELD){"row", "at", SL_TICKETS}, )},
    {"team", SIZE_team, LIST(WIRE_KIND_TEAM(FIELD){"u32", "member", SL_RANKS}, )},
};
#define KIND_COUNT (sizeof KINDS / sizeof *KINDS)

static const field HEADER[] = {
    {"u32", "magic", 1}, {"u32", "version", 1}, {"u32", "type", 1}, {"u32", "bytes", 1}, {0}};

static const message_row MESSAGES[] = {
#define X(number, NAME, lower) {number, #NAME, BODY_##NAME, LIST(WIRE_##NAME(FIELD))},
    WIRE_ALL(X)
#undef X
};
#define MESSAGE_COUNT (sizeof MESSAGES / sizeof *MESSAGES)

/* ---- shared memory: where fields of a struct lie ---- */

typedef struct {
    const char *name;
    size_t offset, bytes;
} place;

typedef struct {
    const char *name;
    size_t bytes;
    const place *places;
    int count;
} layout;

#define PLACE(type, field)                                                                         \
    {                                                                                              \
#field, offsetof(type, field), sizeof(((type *)0)->field)                                  \
    }
#define BLOCK(field) PLACE(sl_block, field)
#define SLOT(field) PLACE(sl_block_slot, field)
#define TENSOR(field) PLACE(sl_block_tensor, field)
static const place IN_BLOCK[] = {BLOCK(magic),      BLOCK(pool),   BLOCK(kind),   BLOCK(slots),
                                 BLOCK(slot_bytes), BLOCK(closed), BLOCK(pinned), BLOCK(freed),
                                 BLOCK(peers),      BLOCK(slot)};
static const place IN_SLOT[] = {
    SLOT(word),
    SLOT(rest_until_ms),
    SLOT(no_filled),
    {"count", offsetof(sl_block_slot, table.count), 4},
    {"complete", offsetof(sl_block_slot, table.complete), 4},
    {"tensor", offsetof(sl_block_slot, table.tensor), sizeof(sl_block_tensor) * SL_LEASE_TENSORS},
    SLOT(filled_event),
    SLOT(drained_event)};
static const place IN_TENSOR[] = {TENSOR(name), TENSOR(dtype), TENSOR(rank), TENSOR(shape),
                                  TENSOR(offset)};
#define LAYOUT(name, type, places)                                                                 \
    {                                                                                              \
        name, sizeof(type), places, sizeof(places) / sizeof *(places)                              \
    }
static const layout LAYOUTS[] = {LAYOUT("block", sl_block, IN_BLOCK),
                                 LAYOUT("slot", sl_block_slot, IN_SLOT),
                                 LAYOUT("tensor", sl_block_tensor, IN_TENSOR)};

/* Names of sl_slot_state, by number. */
static const char *const STATES[] = {"free",    "reserved",    "filling",  "ready",
                                     "reading", "quarantined", "abandoned"};
_Static_assert(sizeof STATES / sizeof *STATES == SL_SLOT_STATES, "a name for each state");

/* ---- JSON; what has no memory is NULL, and NULL is refused by what it is put into ---- */

static json_t *fields_json(const field *f)
{
    json_t *list = json_array();
    for (; f->kind; f++) {
        json_t *o = json_pack("{s:s, s:s}", "name", f->name, "kind", f->kind);
        if (f->times > 1) json_object_set_new(o, "times", json_integer(f->times));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *kinds_json(void)
{
    json_t *all = json_object();
    for (size_t i = 0; i < KIND_COUNT; i++) {
        json_t *o = json_pack("{s:i}", "bytes", KINDS[i].bytes);
        if (KINDS[i].fields) json_object_set_new(o, "fields", fields_json(KINDS[i].fields));
        json_object_set_new(all, KINDS[i].name, o);
    }
    return all;
}

static json_t *messages_json(void)
{
    json_t *all = json_array();
    for (size_t i = 0; i < MESSAGE_COUNT; i++) {
        const message_row *m = &MESSAGES[i];
        json_array_append_new(all, json_pack("{s:i, s:s, s:i, s:o}", "number", m->number, "name",
                                             m->name, "bytes", m->bytes, "fields",
                                             fields_json(m->fields)));
    }
    return all;
}

/* A list of names whose numbers travel. */
static json_t *names_json(int n, const char *name_of(int))
{
    json_t *all = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(all, json_pack("{s:i, s:s}", "number", i, "name", name_of(i)));
    return all;
}

static json_t *dtypes_json(void)
{
    json_t *all = json_array();
    for (int i = 0; i < SL_DTYPE_COUNT; i++)
        json_array_append_new(all, json_pack("{s:i, s:s, s:i}", "number", i, "name",
                                             sl_dtype_tag((sl_dtype)i), "bytes",
                                             (int)sl_dtype_size((sl_dtype)i)));
    return all;
}

static json_t *handovers_json(void)
{
    json_t *all = json_array();
    for (int i = 0; i < SL_HANDOVER_COUNT; i++) {
        const sl_handover_row *h = &SL_HANDOVER[i];
        json_array_append_new(all, json_pack("{s:i, s:s, s:s, s:s, s:s, s:b}", "number", i, "name",
                                             h->name, "from", sl_role_name(h->from), "to",
                                             sl_role_name(h->to), "file", h->file, "chunks",
                                             h->how == SL_CHUNKS));
    }
    return all;
}

static json_t *pool_json(void)
{
    json_t *all = json_pack("{s:I, s:i, s:i}", "magic", (json_int_t)SL_BLOCK_MAGIC, "align",
                            SL_BLOCK_ALIGN, "max_slots", SL_POOL_MAX_SLOTS),
           *states = json_array();
    for (size_t i = 0; i < sizeof LAYOUTS / sizeof *LAYOUTS; i++) {
        json_t *o = json_pack("{s:I}", "bytes", (json_int_t)LAYOUTS[i].bytes),
               *fields = json_object();
        for (int k = 0; k < LAYOUTS[i].count; k++) {
            const place *at = &LAYOUTS[i].places[k];
            json_object_set_new(fields, at->name,
                                json_pack("{s:I, s:I}", "offset", (json_int_t)at->offset, "bytes",
                                          (json_int_t)at->bytes));
        }
        json_object_set_new(o, "fields", fields);
        json_object_set_new(all, LAYOUTS[i].name, o);
    }
    for (int i = 0; i < SL_SLOT_STATES; i++) json_array_append_new(states, json_string(STATES[i]));
    json_object_set_new(all, "states", states);
    return all;
}

static const char *role_at(int i)
{
    return sl_role_name((sl_role)i);
}
static const char *code_at(int i)
{
    return sl_code_name((sl_code)i);
}
static const char *span_at(int i)
{
    return sl_span_kind_name((uint32_t)i);
}

char *sl_protocol_json(void)
{
    json_t *all = json_pack(
        "{s:I, s:i, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:[s, s], s:[s, s], s:o}", "magic",
        (json_int_t)SL_WIRE_MAGIC, "version", SL_WIRE_VERSION, "header_bytes", SL_WIRE_HEADER,
        "header", fields_json(HEADER), "kinds", kinds_json(), "messages", messages_json(), "codes",
        names_json(SL_CODE_COUNT, code_at), "dtypes", dtypes_json(), "roles",
        names_json(SL_ROLE_COUNT, role_at), "handovers", handovers_json(), "spans",
        names_json(SL_SPAN_KIND_COUNT, span_at), "turns", "piece", "step", "ways", "file", "slot",
        "pool", pool_json());
    char *text = all ? json_dumps(all, JSON_INDENT(1)) : NULL;
    json_decref(all);
    return text;
}

/* ---- Markdown ---- */

static void print_fields(FILE *to, const field *f)
{
    for (int first = 1; f->kind; f++, first = 0) {
        fprintf(to, "%s`%s` %s", first ? "" : ", ", f->name, f->kind);
        if (f->times > 1) fprintf(to, " x %d", f->times);
    }
}

sl_code sl_protocol_markdown(FILE *to, sl_err *err)
{
    fprintf(to,
            "# The messages, byte by byte\n\n"
            "Made by `sluice protocol --markdown` from the lists of `common/wire.h`. `sluice "
            "protocol --json`\nsays the same for programs, and what the memory of a pool looks "
            "like; `stages/README.md` tells\nwhat the messages mean. Fields follow one another "
            "without padding, little endian. A text fills its\nfield with zeros, at least "
            "one.\n\nEach message begins with %d bytes, of which the last field counts the "
            "body's:\n",
            SL_WIRE_HEADER);
    print_fields(to, HEADER);
    fprintf(to,
            ".\nmagic is %#x, version %d.\n\n| type | message | bytes | body |\n"
            "|---|---|---|---|\n",
            SL_WIRE_MAGIC, SL_WIRE_VERSION);
    for (size_t i = 0; i < MESSAGE_COUNT; i++) {
        fprintf(to, "| %d | %s | %d | ", MESSAGES[i].number, MESSAGES[i].name, MESSAGES[i].bytes);
        print_fields(to, MESSAGES[i].fields);
        fprintf(to, " |\n");
    }
    fprintf(to, "\n| kind | bytes | is |\n|---|---|---|\n");
    for (size_t i = 0; i < KIND_COUNT; i++) {
        fprintf(to, "| %s | %d |", KINDS[i].name, KINDS[i].bytes);
        if (KINDS[i].fields) fprintf(to, " "), print_fields(to, KINDS[i].fields);
        fprintf(to, " |\n");
    }
    fprintf(to, "\n| number | dtype | code of FAILED | kind of a SPAN | hand-over |\n"
                "|---|---|---|---|---|\n");
    for (int i = 0; i < SL_CODE_COUNT; i++)
        fprintf(to, "| %d | %s | %s: %s | %s | %s |\n", i,
                i < SL_DTYPE_COUNT ? sl_dtype_tag((sl_dtype)i) : "", code_at(i),
                sl_code_text((sl_code)i), i < SL_SPAN_KIND_COUNT ? span_at(i) : "",
                i < SL_HANDOVER_COUNT ? SL_HANDOVER[i].name : "");
    return ferror(to) ? sl_fail_errno(err, errno, "protocol") : SL_OK;
}
