/* team_load.c - who reads what, the rounds, and going on alone.
 *
 * CUTS     parts of pieces, in the order of the files; those of a member follow each other,
 *          and those of a batch. A cut is a whole piece, or ends at a multiple of GRAIN
 *          elements. Every member makes the same list.
 * WINDOW   a line a member for what is agreed on first, then two sets of slots, a slot a
 *          member; round r uses set r % 2. A set may be written again once its readers
 *          have copied it out: a member starts round r after its wait for round r - 1, in
 *          which the others' parts began after they had copied out round r - 2.
 * READING  by the plug-in's threads, which count down `left` of the batches; this thread
 *          alone exchanges. Without a plug-in this thread reads a batch before its round.
 * The stream never waits for a member while memory is taken or given back (plugin.h,
 * load_begin): each round is settled before the next. */
#include "graphs/team_load.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "kernels/comm_body.h"

#define ALIGN ((size_t)256)
#define GRAIN ((int64_t)128) /* elements: 256 bytes of the smallest */
#define MOST_SLOT ((size_t)64 << 20)
enum { READERS = 16 };

typedef struct {
    int piece, batch;
    int64_t first, count; /* elements of the piece */
    size_t in_slot;
} cut;

/* Cuts that follow each other in device memory: they travel together. */
typedef struct {
    char *data;
    size_t bytes, in_slot;
} run;

typedef struct {
    const sl_team_load *t;
    const sl_load_piece *pieces;
    int n;
    char *window;
    size_t slot;
    cut *cuts;
    int count, room;
    int from[SL_RANKS + 1]; /* member m's cuts: from[m] .. from[m + 1] */
    int rounds, taken;      /* of all; that are over here */
    sl_load_piece *own;     /* this rank's cuts */
    _Atomic int64_t *left;  /* elements of its batches that are still to be read */
    sl_load *load;          /* the plug-in's; NULL: not begun */
    int read;               /* of own, without a plug-in */
    sl_err err;             /* of reading, likewise */
    sl_team_load_figures *figures;
} job;

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* ---- cuts ---- */

static size_t bytes_of(const job *j, const cut *c)
{
    return (size_t)c->count * sl_dtype_size(j->pieces[c->piece].to);
}

static char *place_of(const job *j, const cut *c)
{
    const sl_load_piece *p = &j->pieces[c->piece];
    return (char *)p->dst + (size_t)c->first * sl_dtype_size(p->to);
}

/* The cut as a piece of its own. */
static sl_load_piece piece_of(const job *j, const cut *c)
{
    sl_load_piece p = j->pieces[c->piece];
    p.offset += c->first * (int64_t)sl_dtype_size(p.from);
    p.dst = place_of(j, c);
    p.count = c->count;
    return p;
}

static uint64_t file_bytes(const sl_load_piece *pieces, int n)
{
    uint64_t bytes = 0;
    for (int i = 0; i < n; i++) bytes += (uint64_t)pieces[i].count * sl_dtype_size(pieces[i].from);
    return bytes;
}

static bool add_cut(job *j, const cut *c)
{
    if (j->count == j->room) {
        const int room = j->room ? 2 * j->room : 1024;
        cut *more = realloc(j->cuts, (size_t)room * sizeof *more);
        if (!more) return false;
        j->cuts = more;
        j->room = room;
    }
    j->cuts[j->count++] = *c;
    return true;
}

/* As much of `left` elements as `bytes` have room for: all, or whole grains. */
static int64_t fit(int64_t left, int64_t bytes, size_t size)
{
    const int64_t whole = bytes > 0 ? bytes / (int64_t)size / GRAIN * GRAIN : 0;
    return left <= whole ? left : whole;
}

static bool make_cuts(job *j)
{
    const int size = j->t->team->size;
    const int64_t total = (int64_t)file_bytes(j->pieces, j->n), each = total / size;
    int64_t at = 0; /* in the row of all bytes */
    size_t used = 0;
    int m = 0, batch = 0;
    for (int i = 0; i < j->n; i++) {
        const sl_load_piece *p = &j->pieces[i];
        const size_t in = sl_dtype_size(p->from), out = sl_dtype_size(p->to);
        for (int64_t first = 0; first < p->count;) {
            int64_t n = p->count - first;
            if (m + 1 < size) n = fit(n, each * (m + 1) - at, in);
            if (!n) {
                j->from[++m] = j->count;
                used = 0, batch = 0;
                continue;
            }
            if (!(n = fit(n, (int64_t)(j->slot - used), out))) {
                used = 0, batch++;
                continue;
            }
            const cut c = {.piece = i, .batch = batch, .first = first, .count = n, .in_slot = used};
            if (!add_cut(j, &c)) return false;
            if (batch >= j->rounds) j->rounds = batch + 1;
            used += aligned((size_t)n * out);
            at += n * (int64_t)in;
            first += n;
        }
    }
    while (m < size) j->from[++m] = j->count;
    return true;
}

static sl_code prepare(job *j, sl_err *err)
{
    const int size = j->t->team->size, me = j->t->team->me;
    size_t bytes;
    j->window = sl_comm_window(j->t->comm, &bytes);
    if (bytes < (size_t)size * SL_TEAM_LOAD_MIN)
        return sl_fail(err, SL_ARG,
                       "loading shared by %d ranks: a window of %zu bytes, want at least %zu", size,
                       bytes, (size_t)size * SL_TEAM_LOAD_MIN);
    j->slot = (bytes - (size_t)(size + 1) * ALIGN) / (size_t)(2 * size) / ALIGN * ALIGN;
    if (j->slot > MOST_SLOT) j->slot = MOST_SLOT;
    bool whole = make_cuts(j);
    const int count = whole ? j->from[me + 1] - j->from[me] : 0;
    whole = whole && (j->own = malloc(((size_t)count + 1) * sizeof *j->own)) &&
            (j->left = calloc((size_t)j->rounds + 1, sizeof *j->left));
    if (!whole) return sl_fail(err, SL_NOMEM, "no memory for a list of %d pieces", j->n);
    for (int i = 0; i < count; i++) {
        const cut *c = &j->cuts[j->from[me] + i];
        j->own[i] = piece_of(j, c);
        j->left[c->batch] += c->count;
    }
    return SL_OK;
}

/* ---- the team ---- */

/* What must be the same on all members for the bytes to be right. */
static uint64_t word_of(const job *j)
{
    uint64_t h = 14695981039346656037u; /* FNV-1a over 64-bit words */
#define MIX(x) (h = (h ^ (uint64_t)(x)) * 1099511628211u, h ^= h >> 29)
    MIX(j->t->list), MIX(j->slot), MIX(j->n);
    for (int i = 0; i < j->n; i++) {
        const sl_load_piece *p = &j->pieces[i];
        MIX(p->offset), MIX(p->count), MIX(p->from), MIX(p->to);
        MIX((char *)p->dst - (char *)j->pieces[0].dst);
    }
#undef MIX
    return h;
}

static sl_tensor line_of(const job *j, int i)
{
    return sl_view1(j->window + (size_t)i * ALIGN, SL_U8, sizeof(uint64_t));
}

/* All members have the same list. False: they do not, or a member is lost. */
static bool agree(job *j)
{
    const sl_team_load *t = j->t;
    const uint64_t word = word_of(j);
    uint64_t his;
    const sl_tensor mine = line_of(j, t->team->size);
    if (sl_comm_team(t->comm, t->lane)->key != t->team->key)
        sl_comm_begin(t->ctx, t->comm, t->lane, t->team);
    sl_upload(t->ctx, &mine, &word);
    for (int m = 0; m < t->team->size; m++) {
        const sl_tensor y = line_of(j, m);
        sl_comm_broadcast(t->ctx, t->comm, t->lane, &y, &mine, m);
    }
    sl_comm_wait(t->ctx, t->comm, t->lane, 0);
    sl_comm_settle(t->ctx, t->comm);
    for (int m = 0; m < t->team->size && sl_ok(t->ctx); m++) {
        const sl_tensor y = line_of(j, m);
        sl_download(t->ctx, &his, &y);
        if (!sl_ok(t->ctx) || his == word) continue;
        sl_fail(&j->figures->ended, SL_FORMAT,
                "rank %d asks for other weights than rank %d, or finds other files",
                t->team->member[m], t->team->member[t->team->me]);
        return false;
    }
    return sl_ok(t->ctx);
}

/* This rank's attempt is over: nothing is queued any more, and ctx is as good as new. *why (may
 * be NULL) gets what ended it, unless it is known. */
static void part(const job *j, sl_err *why)
{
    const sl_team_load *t = j->t;
    sl_err e = {0};
    sl_comm_abort(t->comm, t->team);
    sl_comm_settle(t->ctx, t->comm);
    sl_ctx_error(t->ctx, &e);
    if (why && !why->code) *why = e;
}

/* ---- reading ---- */

static void has_read(void *user, int piece, int64_t count)
{
    job *j = user;
    const cut *c = &j->cuts[j->from[j->t->team->me] + piece];
    atomic_fetch_sub_explicit(&j->left[c->batch], count, memory_order_release);
}

/* Of the processors, which the members share. */
static int reader_count(int ranks)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    const int n = sched_getaffinity(0, sizeof set, &set) ? 0 : CPU_COUNT(&set) / ranks;
    return n < 2 ? 2 : n > READERS ? READERS : n;
}

static sl_code start_reading(job *j, sl_err *err)
{
    const sl_team_load *t = j->t;
    const int count = j->from[t->team->me + 1] - j->from[t->team->me];
    if (!t->plugin) return SL_OK;
    return t->plugin->load_begin(&j->load, j->own, count, reader_count(t->team->size),
                                 t->ctx->cancel, has_read, j, err);
}

/* This rank's batch r has been read. False: reading has failed. */
static bool read_batch(job *j, int r)
{
    const sl_team_load *t = j->t;
    const int me = t->team->me, count = j->from[me + 1] - j->from[me];
    int n = 0;
    while (t->plugin && atomic_load_explicit(&j->left[r], memory_order_acquire) > 0) {
        const struct timespec nap = {0, 50000};
        if (t->plugin->load_over(j->load))
            return atomic_load_explicit(&j->left[r], memory_order_acquire) <= 0;
        sl_comm_beat(t->comm);
        nanosleep(&nap, NULL);
    }
    if (t->plugin) return true;
    while (j->read + n < count && j->cuts[j->from[me] + j->read + n].batch == r) n++;
    if (n && t->read(t->user, j->own + j->read, n, &j->err)) return false;
    j->read += n;
    return true;
}

/* All that is this rank's to read has been read, or reading has failed. */
static sl_code end_reading(job *j, sl_err *err)
{
    const sl_team_load *t = j->t;
    const int count = j->from[t->team->me + 1] - j->from[t->team->me];
    if (j->load) return t->plugin->load_end(&j->load, NULL, err);
    if (!j->err.code && j->read < count)
        t->read(t->user, j->own + j->read, count - j->read, &j->err);
    if (j->err.code && err) *err = j->err;
    return j->err.code;
}

static sl_code read_now(job *j, const sl_load_piece *pieces, int n, sl_err *err)
{
    const sl_team_load *t = j->t;
    j->figures->read += file_bytes(pieces, n);
    if (!n) return SL_OK;
    return t->plugin ? t->plugin->load(pieces, n, 0, t->ctx->cancel, NULL, err)
                     : t->read(t->user, pieces, n, err);
}

/* What the others have not sent. */
static sl_code read_rest(job *j, sl_err *err)
{
    sl_load_piece *rest = malloc(((size_t)j->count + 1) * sizeof *rest);
    int n = 0;
    if (!rest) return sl_fail(err, SL_NOMEM, "no memory for a list of %d pieces", j->count);
    for (int m = 0; m < j->t->team->size; m++)
        for (int i = j->from[m]; i < j->from[m + 1]; i++)
            if (m != j->t->team->me && j->cuts[i].batch >= j->taken)
                rest[n++] = piece_of(j, &j->cuts[i]);
    sl_code rc = read_now(j, rest, n, err);
    free(rest);
    return rc;
}

/* ---- rounds ---- */

/* The run that begins with cut *k of member m in round r; *k becomes the cut behind it. */
static bool next_run(const job *j, int m, int r, int *k, run *out)
{
    const int end = j->from[m + 1];
    if (*k == end || j->cuts[*k].batch != r) return false;
    const cut *c = &j->cuts[*k];
    *out = (run){place_of(j, c), bytes_of(j, c), c->in_slot};
    while (++*k < end && (c = &j->cuts[*k])->batch == r &&
           place_of(j, c) == out->data + aligned(out->bytes))
        out->bytes = aligned(out->bytes) + bytes_of(j, c);
    return true;
}

static sl_tensor in_window(const job *j, int m, int r, const run *x)
{
    const size_t size = (size_t)j->t->team->size, line = (size + 1) * ALIGN,
                 slot = (size_t)(r % 2) * size + (size_t)m;
    return sl_view1(j->window + line + slot * j->slot + x->in_slot, SL_U8, (int64_t)x->bytes);
}

/* Round r of member m, from cut k on: sent, or, if `copies`, taken out of the window. Returns
 * the cut behind it. */
static int pass(const job *j, int m, int r, int k, bool copies)
{
    const sl_team_load *t = j->t;
    const bool mine = m == t->team->me;
    run x;
    while (next_run(j, m, r, &k, &x)) {
        const sl_tensor y = in_window(j, m, r, &x),
                        there = sl_view1(x.data, SL_U8, (int64_t)x.bytes);
        if (!copies) sl_comm_broadcast(t->ctx, t->comm, t->lane, &y, &there, m);
        else if (!mine) sl_copy(t->ctx, &there, &y);
    }
    return k;
}

/* All rounds, or as many as go well: j->taken. */
static void exchange(job *j)
{
    const sl_team_load *t = j->t;
    int next[SL_RANKS];
    memcpy(next, j->from, sizeof next);
    for (int r = 0; r < j->rounds && read_batch(j, r); r++) {
        const int64_t t0 = sl_now_ns();
        for (int m = 0; m < t->team->size; m++) pass(j, m, r, next[m], false);
        sl_comm_wait(t->ctx, t->comm, t->lane, 0);
        for (int m = 0; m < t->team->size; m++) next[m] = pass(j, m, r, next[m], true);
        sl_comm_settle(t->ctx, t->comm);
        j->figures->waited_ns += sl_now_ns() - t0;
        if (!sl_ok(t->ctx)) return;
        j->taken = r + 1;
    }
}

/* What has gone from device to device. */
static void count_bytes(job *j)
{
    const sl_team *team = j->t->team;
    for (int m = 0; m < team->size; m++)
        for (int i = j->from[m]; i < j->from[m + 1]; i++) {
            const cut *c = &j->cuts[i];
            if (c->batch >= j->taken) break;
            if (m != team->me) j->figures->received += bytes_of(j, c);
            else j->figures->sent += bytes_of(j, c) * (uint64_t)(team->size - 1);
        }
}

static sl_code share(job *j, sl_err *err)
{
    const sl_team_load *t = j->t;
    const int me = t->team->me;
    sl_code rc = start_reading(j, err);
    if (!rc) exchange(j);
    if (j->taken < j->rounds) part(j, &j->figures->ended); /* before memory is given back */
    if (rc) return rc;
    j->figures->read += file_bytes(j->own, j->from[me + 1] - j->from[me]);
    count_bytes(j);
    if ((rc = end_reading(j, err))) return rc;
    if (!sl_ok(t->ctx)) return sl_ctx_error(t->ctx, err);
    if (j->taken < j->rounds) return read_rest(j, err);
    /* the windows are free again; whoever fails from here on has sent all */
    sl_comm_barrier(t->ctx, t->comm, t->lane);
    if (!sl_ok(t->ctx)) part(j, NULL);
    return SL_OK;
}

sl_code sl_team_load_run(const sl_team_load *t, const sl_load_piece *pieces, int n,
                         sl_team_load_figures *figures, sl_err *err)
{
    job j = {.t = t, .pieces = pieces, .n = n, .figures = figures};
    *figures = (sl_team_load_figures){0};
    sl_code rc = prepare(&j, err);
    if (!rc && agree(&j)) rc = share(&j, err);
    else if (!rc) {
        part(&j, &figures->ended);
        rc = sl_ok(t->ctx) ? read_now(&j, pieces, n, err) : sl_ctx_error(t->ctx, err);
    }
    if (rc) sl_comm_abort(t->comm, t->team);
    free(j.left);
    free(j.own);
    free(j.cuts);
    return rc;
}
