/* wire_kinds.h - bytes on the wire of each kind of field and of each message's body, for those who
 * lay messages out: wire.c, and protocol.c, which tells others how. */
#ifndef SL_WIRE_KINDS_H
#define SL_WIRE_KINDS_H

#include "common/wire.h"

#define SIZE(kind, name) +SIZE_##kind
enum {
    SIZE_i32 = 4,
    SIZE_u32 = 4,
    SIZE_i64 = 8,
    SIZE_u64 = 8,
    SIZE_f64 = 8,
    SIZE_str16 = SL_STR16,
    SIZE_str24 = SL_POOL_NAME,
    SIZE_str64 = SL_STR64,
    SIZE_text = SL_TEXT,
    SIZE_dir = SL_DIR,
    SIZE_blob64 = 64,
    SIZE_ticket = 0 WIRE_KIND_TICKET(SIZE),
    SIZE_pool = 0 WIRE_KIND_POOL(SIZE),
    SIZE_row = 0 WIRE_KIND_ROW(SIZE),
    SIZE_tickets = (0 WIRE_KIND_TICKETS(SIZE)) + SL_TICKETS * SIZE_row,
    SIZE_team = (0 WIRE_KIND_TEAM(SIZE)) + SL_RANKS * SIZE_u32,
};
enum {
#define X(number, NAME, lower) BODY_##NAME = 0 WIRE_##NAME(SIZE),
    WIRE_ALL(X)
#undef X
};
#undef SIZE

#endif
