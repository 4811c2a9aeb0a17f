/* wire.h - the messages between the dispatcher, the stages and clients, written once.
 *
 * A message is one ZeroMQ frame: a 16-byte header (magic, version, type, body length), then
 * the fields of the list in order, little endian, without padding. Every field has a fixed
 * size, so a type has one length.
 * The decoder checks magic, version, type and length before it reads, that every string ends
 * inside its field (zeros fill the rest), and that a list is no longer than its field. It
 * never trusts a number inside a body: the receiver checks ranges.
 * The encoder, the decoder, the printer and the round-trip test expand the lists below. Type
 * numbers are never reused.
 *
 * Who sends what (stages/README.md tells the protocol as a story):
 *   stage -> dispatcher   HELLO POOL RANK READY TAKEN PROGRESS STEP SPAN CHUNK SPOOLED
 *                         SHARE PARKED DONE FAILED HEARTBEAT ASK GIVE
 *   dispatcher -> stage   POOL RANK LOAD JOB CHUNK PARK CANCEL KEEP REAP DISCARD DRAIN GRANT
 *                         REVOKE
 *   client -> dispatcher  HELLO SUBMIT CANCEL DRAIN
 *   dispatcher -> client  ACCEPTED PROGRESS STEP SPAN SHARE STAGE FINISHED */
#ifndef SL_WIRE_H
#define SL_WIRE_H

#include "common/lease.h"
#include "common/pipeline.h"

#define SL_WIRE_MAGIC 0x43554c53u /* "SLUC" */
#define SL_WIRE_VERSION 6
#define SL_WIRE_HEADER 16

#define SL_STR16 16
#define SL_STR64 64
#define SL_TEXT 512
#define SL_DIR 1024

#define SL_TICKETS 4 /* most hand-overs that one attempt takes, or gives */

/* How a hand-over travels: as a file of the job's folder, or in a slot that the ticket names. */
typedef enum { SL_BY_FILE, SL_BY_SLOT } sl_way;

typedef struct {
    uint32_t handover; /* sl_handover */
    uint32_t way;      /* sl_way */
    sl_ticket ticket;  /* zero where the way is SL_BY_FILE */
} sl_wire_row;

/* Hand-overs of one attempt, a row of `at` each; rows from `count` on are zero. */
typedef struct {
    uint32_t count;
    sl_wire_row at[SL_TICKETS];
} sl_tickets;

/* The members of one attempt of a role that has teams: instances of it, as sl_team of
 * kernels/comm.h. */
typedef struct {
    uint32_t size;             /* 0: of no team; members from this one on are zero */
    uint32_t me;               /* index of the receiver in member; 0 leads, and speaks for all */
    uint32_t key;              /* larger than any that its members have had */
    uint32_t member[SL_RANKS]; /* instances */
} sl_members;

/* What ASK wants a device's turn for.
 *   PIECE   of text, image or decode: short, and another stage waits for the result, so it goes
 *           first
 *   STEP    of denoising: long, and there are many */
typedef enum { SL_TURN_PIECE, SL_TURN_STEP } sl_turn_kind;

/* Fields: kind on the wire (an sl_wire_KIND below), name. */
/* clang-format off */

/* Kinds that are made of others, in their order on the wire. ROW: of sl_tickets. */
#define WIRE_KIND_TICKET(F) F(u64, pool) F(u32, slot) F(u32, reserved) F(u64, epoch)
#define WIRE_KIND_POOL(F)   F(u64, pool) F(i32, pid) F(i32, fd) F(u32, kind) F(u32, slots) \
                            F(u64, slot_bytes) F(str24, name) F(blob64, device_handle)
#define WIRE_KIND_ROW(F)    F(u32, handover) F(u32, way) F(ticket, ticket)
/* and SL_TICKETS times a row, `at` */
#define WIRE_KIND_TICKETS(F) F(u32, count)
/* and SL_RANKS times u32, `member` */
#define WIRE_KIND_TEAM(F)   F(u32, size) F(u32, me) F(u32, key)

/* A process speaks. role: a stage's, or "client". These two fields come first in every version of
 * the protocol, so that one of another version can be named. */
#define WIRE_HELLO(F)     F(str16, role) F(i32, pid) F(str64, device) F(u64, budget_bytes)
/* Where a stage receives the hand-over of this name. */
#define WIRE_POOL(F)      F(str24, handover) F(pool, handle)
/* How the others of the role reach this instance: sl_comm_handle of kernels/comm.h. A newer one
 * of the rank takes its place. */
#define WIRE_RANK(F)      F(i32, rank) F(i32, pid) F(i32, fd) F(u64, window_bytes) F(blob64, device)
/* Load the weights, together with the team; alone if it is of one. */
#define WIRE_LOAD(F)      F(team, team)
/* The weights are loaded: jobs may come. */
#define WIRE_READY(F)     F(f64, load_s) F(u64, weight_bytes) F(u64, arena_bytes)
/* in: what the attempt starts from. to: the pools (ticket.pool) that are to have what it gives.
 * dir: the job's folder. team: who works on it together; `in` and `to` are its first member's. */
#define WIRE_JOB(F)       F(u64, job) F(u32, attempt) F(tickets, in) F(tickets, to) F(dir, dir) \
                          F(team, team)
/* The attempt's inputs are read: the slots of `in` are free. */
#define WIRE_TAKEN(F)     F(u64, job) F(u32, attempt)
/* done of total pieces of the stage's work. */
#define WIRE_PROGRESS(F)  F(u64, job) F(u32, attempt) F(str16, stage) F(u32, done) F(u32, total) \
                          F(f64, seconds)
/* A denoising step, when it began and how long it took, with the First Block Cache's decision for
 * each branch. */
#define WIRE_STEP(F)      F(u64, job) F(u32, attempt) F(u32, step) F(u32, steps) \
                          F(i64, t0_ns) F(f64, seconds) \
                          F(i32, cond_computed) F(f64, cond_metric) \
                          F(i32, uncond_computed) F(f64, uncond_metric)
/* Where time went: common/trace.h. job 0: of none. */
#define WIRE_SPAN(F)      F(u64, job) F(str16, stage) F(u32, kind) F(i64, t0_ns) F(i64, t1_ns)
/* Chunk `index` of `chunks` of a hand-over lies in the slot. */
#define WIRE_CHUNK(F)     F(u64, job) F(u32, attempt) F(u32, handover) F(u32, index) \
                          F(u32, chunks) F(u32, frames) F(ticket, slot)
/* A file is whole, or could not be written. name: the file's, without .safetensors. */
#define WIRE_SPOOLED(F)   F(u64, job) F(u32, attempt) F(str24, name) F(i32, code) F(text, message)
/* To each member: spool the state before the next step and end the attempt with PARKED, for
 * another team to go on. A member that has finished the last step says DONE as ever. */
#define WIRE_PARK(F)      F(u64, job) F(u32, attempt)
/* The attempt is over, and the job goes on at a step that its spooled state names. */
#define WIRE_PARKED(F)    F(u64, job) F(u32, attempt) F(u32, step)
/* What a member of a team did in the attempt, before DONE or PARKED. rows: its part of a forward's
 * rows, 0 .. 1, in the mean. Seconds: of steps; of those,
 * of data of the others that came late (exchange), of others that had not come so far (wait).
 * device_bytes: of its device, what all processes had taken after a step. */
#define WIRE_SHARE(F)     F(u64, job) F(u32, attempt) F(str16, stage) F(u32, instance) \
                          F(u32, size) F(u32, me) F(u32, steps) F(f64, rows) F(f64, step_s) \
                          F(f64, exchange_s) F(f64, wait_s) F(u64, sent_bytes) \
                          F(u64, device_bytes)
/* The attempt is over. out: the hand-overs that lie in slots now; bytes: of the finished file. */
#define WIRE_DONE(F)      F(u64, job) F(u32, attempt) F(tickets, out) F(u64, peak_bytes) \
                          F(u64, arena_bytes) F(u64, bytes)
/* The attempt is over without a result. job 0: why the process cannot start. */
#define WIRE_FAILED(F)    F(u64, job) F(u32, attempt) F(i32, code) F(text, message)
/* The process lives; job: what it works on. */
#define WIRE_HEARTBEAT(F) F(u64, job) F(u64, beats)
/* End the attempt (to a stage), the job (to the dispatcher). */
#define WIRE_CANCEL(F)    F(u64, job) F(u32, attempt)
/* Process pid is dead: free what it was writing, and what it sealed and told nobody of. */
#define WIRE_REAP(F)      F(i32, pid)
/* Before a REAP: a ticket that the dispatcher knows of, and will send in a JOB. */
#define WIRE_KEEP(F)      F(ticket, ticket)
/* Nobody will open this ticket: free its slot. */
#define WIRE_DISCARD(F)   F(ticket, ticket)
/* Finish what has begun, and end. */
#define WIRE_DRAIN(F)     F(u32, why)
/* A job in folder dir. tag: the client's own number for it, returned in ACCEPTED, FINISHED. */
#define WIRE_SUBMIT(F)    F(u64, tag) F(dir, dir)
/* job: the dispatcher's number, which all news of the job carry. */
#define WIRE_ACCEPTED(F)  F(u64, tag) F(u64, job)
/* News of a stage's process; event says which. */
#define WIRE_STAGE(F)     F(str16, stage) F(u32, instance) F(str16, event) F(i32, pid) \
                          F(str64, device) F(f64, load_s) F(u64, weight_bytes) \
                          F(u64, peak_bytes) F(u64, arena_bytes) F(u64, job)
/* The job is over. job 0: it was refused, and never had a number. A message beside SL_OK: the first
 * file that its dump does without, and why. */
#define WIRE_FINISHED(F)  F(u64, tag) F(u64, job) F(i32, code) F(text, message) F(u64, bytes)
/* The stage wants the device's turn for a piece of work; a turn that it holds goes back. */
#define WIRE_ASK(F)       F(u64, job) F(u64, turn) F(u32, kind) F(str64, what) F(u64, expected_ms)
/* The turn that was asked for. free: it holds for every piece of work until REVOKE. */
#define WIRE_GRANT(F)     F(u64, turn) F(u32, free)
/* The turn is free no more: ask for the next piece; give the turn back now if none runs. */
#define WIRE_REVOKE(F)    F(u64, turn)
/* A turn is given back, or not wanted any more. */
#define WIRE_GIVE(F)      F(u64, turn)

#define WIRE_ALL(M)                                                                             \
    M(1, HELLO, hello) M(2, POOL, pool) M(3, READY, ready) M(4, JOB, job) M(5, TAKEN, taken)    \
    M(6, PROGRESS, progress) M(7, STEP, step) M(8, SPAN, span) M(9, CHUNK, chunk)               \
    M(10, SPOOLED, spooled) M(11, DONE, done) M(12, FAILED, failed)                             \
    M(13, HEARTBEAT, heartbeat) M(14, CANCEL, cancel) M(15, REAP, reap) M(16, DRAIN, drain)     \
    M(17, SUBMIT, submit) M(18, ACCEPTED, accepted) M(19, STAGE, stage)                         \
    M(20, FINISHED, finished) M(21, DISCARD, discard) M(22, KEEP, keep) M(23, ASK, ask)         \
    M(24, GRANT, grant) M(25, REVOKE, revoke) M(26, GIVE, give) M(27, RANK, rank)               \
    M(28, LOAD, load) M(29, PARK, park) M(30, PARKED, parked) M(31, SHARE, share)
/* clang-format on */

typedef enum {
#define X(number, NAME, lower) SL_MSG_##NAME = number,
    WIRE_ALL(X)
#undef X
} sl_msg_type;

typedef int32_t sl_wire_i32;
typedef uint32_t sl_wire_u32;
typedef int64_t sl_wire_i64;
typedef uint64_t sl_wire_u64;
typedef double sl_wire_f64;
typedef char sl_wire_str16[SL_STR16];
typedef char sl_wire_str24[SL_POOL_NAME];
typedef char sl_wire_str64[SL_STR64];
typedef char sl_wire_text[SL_TEXT];
typedef char sl_wire_dir[SL_DIR];
typedef sl_ticket sl_wire_ticket;
typedef sl_pool_handle sl_wire_pool;
typedef sl_tickets sl_wire_tickets;
typedef sl_members sl_wire_team;
typedef uint8_t sl_wire_blob64[64];

#define FIELD(kind, name) sl_wire_##kind name;
#define X(number, NAME, lower)                                                                     \
    typedef struct {                                                                               \
        WIRE_##NAME(FIELD)                                                                         \
    } sl_msg_##lower;
WIRE_ALL(X)
#undef X
#undef FIELD

/* Any message. */
typedef struct {
    sl_msg_type type;
    union {
#define X(number, NAME, lower) sl_msg_##lower lower;
        WIRE_ALL(X)
#undef X
    };
} sl_msg;

#define SL_WIRE_MAX 2048 /* longest encoded message; checked when the program is compiled */

/* The ticket of hand-over h; NULL: it is not in the list, or travels as a file. */
const sl_ticket *sl_tickets_find(const sl_tickets *list, uint32_t h);
/* Append a row. SL_TICKETS at most: a bug if more. ticket NULL: by file. */
void sl_tickets_add(sl_tickets *list, uint32_t h, const sl_ticket *ticket);

/* Encode into buf (SL_WIRE_MAX bytes); returns the length. A string that is longer than its
 * field is cut. */
size_t sl_wire_encode(uint8_t *buf, const sl_msg *msg);
/* Decode `length` bytes. Errors: SL_FORMAT saying what is wrong (magic, version, type,
 * length, an unended string); *out is zeroed then, but for a HELLO of another version, of which it
 * has the type, role and pid. */
sl_code sl_wire_decode(sl_msg *out, const void *bytes, size_t length, sl_err *err);
/* One line: "DONE job=1 attempt=1 tickets=1 ..." */
const char *sl_wire_text_of(const sl_msg *msg, char *buf, size_t size);
const char *sl_wire_name(sl_msg_type type); /* "DONE"; "?" for no type */
uint64_t sl_wire_job(const sl_msg *msg);    /* the number in its field `job`; 0: it names none */

/* ---- over a ZeroMQ socket ---- */

/* Send one message; `to` is the peer's identity (ROUTER) or NULL. Never blocks longer
 * than the socket's send timeout.
 * Errors: SL_BUSY queue full or timeout; SL_GONE no such peer; SL_SYS. */
sl_code sl_wire_send(void *socket, const void *to, size_t to_size, const sl_msg *msg, sl_err *err);
/* Receive one message without waiting. from (64 bytes) and *from_size get the peer's
 * identity on a ROUTER socket, may be NULL otherwise. SL_BUSY: none there. SL_FORMAT:
 * something that is no message came, and was taken off the queue. */
sl_code sl_wire_recv(void *socket, void *from, size_t *from_size, sl_msg *out, sl_err *err);

#endif
