/* team_load.c - who reads what, the rounds, and going on alone.
 *
 * CUTS     parts of pieces, in the order of the files; those of a member follow each other,
 *          and those of a batch. A cut is a whole piece, or ends at a multiple of GRAIN
 *          elements. Every member makes the same list.
 * WINDOW   two sets of slots, a slot a member; round r uses set r % 2. A set may be
 *          written again once its readers have copied it out: a member starts round r after
 *          its wait for round r - 1, in which the others' parts began after they had copied
 *          out round r - 2.
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
} stretch;

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
} loading;

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* ---- cuts ---- */

static size_t bytes_of(const loading *l, const cut *c)
{
    return (size_t)c->count * sl_dtype_size(l->pieces[c->piece].to);
}

static char *place_of(const loading *l, const cut *c)
{
    const sl_load_piece *p = &l->pieces[c->piece];
    return (char *)p->dst + (size_t)c->first * sl_dtype_size(p->to);
}

/* The cut as a piece of its own. */
static sl_load_piece piece_of(const loading *l, const cut *c)
{
    sl_load_piece p = l->pieces[c->piece];
    p.offset += c->first * (int64_t)sl_dtype_size(p.from);
    p.dst = place_of(l, c);
    p.count = c->count;
    return p;
}

static uint64_t file_bytes(const sl_load_piece *pieces, int n)
{
    uint64_t bytes = 0;
    for (int i = 0; i < n; i++) bytes += (uint64_t)pieces[i].count * sl_dtype_size(pieces[i].from);
    return bytes;
}

static bool add_cut(loading *l, const cut *c)
{
    if (l->count == l->room) {
        const int room = l->room ? 2 * l->room : 1024;
        cut *more = realloc(l->cuts, (size_t)room * sizeof *more);
        if (!more) return false;
        l->cuts = more;
        l->room = room;
    }
    l->cuts[l->count++] = *c;
    return true;
}

/* As much of `left` elements as `bytes` have room for: all, or whole grains. */
static int64_t fit(int64_t left, int64_t bytes, size_t size)
{
    const int64_t whole = bytes > 0 ? bytes / (int64_t)size / GRAIN * GRAIN : 0;
    return left <= whole ? left : whole;
}

static bool make_cuts(loading *l)
{
    const int size = l->t->team->size;
    const int64_t total = (int64_t)file_bytes(l->pieces, l->n), each = total / size;
    int64_t at = 0; /* in the row of all bytes */
    size_t used = 0;
    int m = 0, batch = 0;
    for (int i = 0; i < l->n; i++) {
        const sl_load_piece *p = &l->pieces[i];
        const size_t in = sl_dtype_size(p->from), out = sl_dtype_size(p->to);
        for (int64_t first = 0; first < p->count;) {
            int64_t n = p->count - first;
            if (m + 1 < size) n = fit(n, each * (m + 1) - at, in);
            if (!n) {
                l->from[++m] = l->count;
                used = 0, batch = 0;
                continue;
            }
            if (!(n = fit(n, (int64_t)(l->slot - used), out))) {
                used = 0, batch++;
                continue;
            }
            const cut c = {.piece = i, .batch = batch, .first = first, .count = n, .in_slot = used};
            if (!add_cut(l, &c)) return false;
            if (batch >= l->rounds) l->rounds = batch + 1;
            used += aligned((size_t)n * out);
            at += n * (int64_t)in;
            first += n;
        }
    }
    while (m < size) l->from[++m] = l->count;
    return true;
}

static sl_code prepare(loading *l, sl_err *err)
{
    const int size = l->t->team->size, me = l->t->team->me;
    size_t bytes;
    l->window = sl_comm_window(l->t->comm, &bytes);
    if (bytes < (size_t)size * SL_TEAM_LOAD_MIN)
        return sl_fail(err, SL_ARG,
                       "loading shared by %d ranks: a window of %zu bytes, want at least %zu", size,
                       bytes, (size_t)size * SL_TEAM_LOAD_MIN);
    l->slot = bytes / (size_t)(2 * size) / ALIGN * ALIGN;
    if (l->slot > MOST_SLOT) l->slot = MOST_SLOT;
    bool whole = make_cuts(l);
    const int count = whole ? l->from[me + 1] - l->from[me] : 0;
    whole = whole && (l->own = malloc(((size_t)count + 1) * sizeof *l->own)) &&
            (l->left = calloc((size_t)l->rounds + 1, sizeof *l->left));
    if (!whole) return sl_fail(err, SL_NOMEM, "no memory for a list of %d pieces", l->n);
    for (int i = 0; i < count; i++) {
        const cut *c = &l->cuts[l->from[me] + i];
        l->own[i] = piece_of(l, c);
        l->left[c->batch] += c->count;
    }
    return SL_OK;
}

/* ---- the team ---- */

static uint64_t mix(uint64_t h, int64_t x) /* FNV-1a, eight bytes at a time */
{
    h = (h ^ (uint64_t)x) * 1099511628211u;
    return h ^ h >> 29;
}

/* What must be the same on all members for the bytes to be right. */
static uint64_t word_of(const loading *l)
{
    uint64_t h = mix(mix(l->t->list, (int64_t)l->slot), l->n);
    for (int i = 0; i < l->n; i++) {
        const sl_load_piece *p = &l->pieces[i];
        h = mix(mix(mix(mix(h, p->offset), p->count), p->from), p->to);
        h = mix(h, (char *)p->dst - (char *)l->pieces[0].dst);
    }
    return h;
}

/* All members have the same list. False: they do not, or a member is lost. */
static bool agree(loading *l)
{
    const sl_team_load *t = l->t;
    const sl_team *team = t->team;
    const uint64_t mine = word_of(l);
    uint64_t words[SL_RANKS];
    if (sl_comm_team(t->comm, t->lane)->key != team->key)
        sl_comm_begin(t->ctx, t->comm, t->lane, team);
    sl_comm_tell(t->ctx, t->comm, t->lane, mine, words);
    for (int m = 0; m < team->size && sl_ok(t->ctx); m++) {
        if (words[m] == mine) continue;
        sl_fail(&l->figures->ended, SL_FORMAT,
                "rank %d asks for other weights than rank %d, or finds other files",
                team->member[m], team->member[team->me]);
        return false;
    }
    return sl_ok(t->ctx);
}

/* This rank's attempt is over: nothing is queued any more, and ctx is as good as new. *why (may
 * be NULL) gets what ended the attempt, unless it is known. */
static void part(const loading *l, sl_err *why)
{
    const sl_team_load *t = l->t;
    sl_err e = {0};
    sl_comm_abort(t->comm, t->team);
    sl_comm_end(t->ctx, t->comm);
    sl_ctx_error(t->ctx, &e);
    if (why && !why->code) *why = e;
}

/* ---- reading ---- */

static void has_read(void *user, int piece, int64_t count)
{
    loading *l = user;
    const cut *c = &l->cuts[l->from[l->t->team->me] + piece];
    atomic_fetch_sub_explicit(&l->left[c->batch], count, memory_order_release);
}

/* Of the processors, which the members share. */
static int reader_count(int ranks)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    const int n = sched_getaffinity(0, sizeof set, &set) ? 0 : CPU_COUNT(&set) / ranks;
    return n < 2 ? 2 : n > READERS ? READERS : n;
}

static sl_code start_reading(loading *l, sl_err *err)
{
    const sl_team_load *t = l->t;
    const int count = l->from[t->team->me + 1] - l->from[t->team->me];
    if (!t->plugin) return SL_OK;
    return t->plugin->load_begin(&l->load, l->own, count, reader_count(t->team->size),
                                 t->ctx->cancel, has_read, l, err);
}

/* This rank's batch r has been read. False: reading has failed. */
static bool read_batch(loading *l, int r)
{
    const sl_team_load *t = l->t;
    const int me = t->team->me, count = l->from[me + 1] - l->from[me];
    int n = 0;
    while (t->plugin && atomic_load_explicit(&l->left[r], memory_order_acquire) > 0) {
        const struct timespec nap = {0, 50000};
        if (t->plugin->load_over(l->load))
            return atomic_load_explicit(&l->left[r], memory_order_acquire) <= 0;
        sl_comm_beat(t->comm);
        nanosleep(&nap, NULL);
    }
    if (t->plugin) return true;
    while (l->read + n < count && l->cuts[l->from[me] + l->read + n].batch == r) n++;
    if (n && t->read(t->user, l->own + l->read, n, &l->err)) return false;
    l->read += n;
    return true;
}

/* All that is this rank's to read has been read, or reading has failed. */
static sl_code end_reading(loading *l, sl_err *err)
{
    const sl_team_load *t = l->t;
    const int count = l->from[t->team->me + 1] - l->from[t->team->me];
    if (l->load) return t->plugin->load_end(&l->load, NULL, err);
    if (!l->err.code && l->read < count)
        t->read(t->user, l->own + l->read, count - l->read, &l->err);
    if (l->err.code && err) *err = l->err;
    return l->err.code;
}

static sl_code read_now(loading *l, const sl_load_piece *pieces, int n, sl_err *err)
{
    const sl_team_load *t = l->t;
    l->figures->read += file_bytes(pieces, n);
    if (!n) return SL_OK;
    return t->plugin ? t->plugin->load(pieces, n, 0, t->ctx->cancel, NULL, err)
                     : t->read(t->user, pieces, n, err);
}

/* What the others have not sent. */
static sl_code read_rest(loading *l, sl_err *err)
{
    sl_load_piece *rest = malloc(((size_t)l->count + 1) * sizeof *rest);
    int n = 0;
    if (!rest) return sl_fail(err, SL_NOMEM, "no memory for a list of %d pieces", l->count);
    for (int m = 0; m < l->t->team->size; m++)
        for (int i = l->from[m]; i < l->from[m + 1]; i++)
            if (m != l->t->team->me && l->cuts[i].batch >= l->taken)
                rest[n++] = piece_of(l, &l->cuts[i]);
    sl_code rc = read_now(l, rest, n, err);
    free(rest);
    return rc;
}

/* ---- rounds ---- */

/* The stretch that begins with cut *k of member m in round r; *k becomes the cut behind it. */
static bool next_stretch(const loading *l, int m, int r, int *k, stretch *out)
{
    const int end = l->from[m + 1];
    if (*k == end || l->cuts[*k].batch != r) return false;
    const cut *c = &l->cuts[*k];
    *out = (stretch){place_of(l, c), bytes_of(l, c), c->in_slot};
    while (++*k < end && (c = &l->cuts[*k])->batch == r &&
           place_of(l, c) == out->data + aligned(out->bytes))
        out->bytes = aligned(out->bytes) + bytes_of(l, c);
    return true;
}

static sl_tensor in_window(const loading *l, int m, int r, const stretch *x)
{
    const size_t slot = (size_t)(r % 2) * (size_t)l->t->team->size + (size_t)m;
    return sl_view1(l->window + slot * l->slot + x->in_slot, SL_U8, (int64_t)x->bytes);
}

/* Round r of member m, from cut k on: sent, or, if `copies`, taken out of the window. Returns
 * the cut behind it. */
static int pass(const loading *l, int m, int r, int k, bool copies)
{
    const sl_team_load *t = l->t;
    const bool mine = m == t->team->me;
    stretch x;
    while (next_stretch(l, m, r, &k, &x)) {
        const sl_tensor y = in_window(l, m, r, &x),
                        there = sl_view1(x.data, SL_U8, (int64_t)x.bytes);
        if (!copies) sl_comm_broadcast(t->ctx, t->comm, t->lane, &y, &there, m);
        else if (!mine) sl_copy(t->ctx, &there, &y);
    }
    return k;
}

/* All rounds, or as many as go well: l->taken. */
static void exchange(loading *l)
{
    const sl_team_load *t = l->t;
    int next[SL_RANKS];
    memcpy(next, l->from, sizeof next);
    for (int r = 0; r < l->rounds && read_batch(l, r); r++) {
        const int64_t t0 = sl_now_ns();
        for (int m = 0; m < t->team->size; m++) pass(l, m, r, next[m], false);
        sl_comm_wait(t->ctx, t->comm, t->lane, 0);
        for (int m = 0; m < t->team->size; m++) next[m] = pass(l, m, r, next[m], true);
        sl_comm_settle(t->ctx, t->comm);
        l->figures->waited_ns += sl_now_ns() - t0;
        if (!sl_ok(t->ctx)) return;
        l->taken = r + 1;
    }
}

/* What has gone from device to device. */
static void count_bytes(loading *l)
{
    const sl_team *team = l->t->team;
    for (int m = 0; m < team->size; m++)
        for (int i = l->from[m]; i < l->from[m + 1]; i++) {
            const cut *c = &l->cuts[i];
            if (c->batch >= l->taken) break;
            if (m != team->me) l->figures->received += bytes_of(l, c);
            else l->figures->sent += bytes_of(l, c) * (uint64_t)(team->size - 1);
        }
}

static sl_code share(loading *l, sl_err *err)
{
    const sl_team_load *t = l->t;
    const int me = t->team->me;
    sl_code rc = start_reading(l, err);
    if (!rc) exchange(l);
    if (l->taken < l->rounds) part(l, &l->figures->ended); /* before memory is given back */
    if (rc) return rc;
    l->figures->read += file_bytes(l->own, l->from[me + 1] - l->from[me]);
    count_bytes(l);
    if ((rc = end_reading(l, err))) return rc;
    if (!sl_ok(t->ctx)) return sl_ctx_error(t->ctx, err);
    if (l->taken < l->rounds) return read_rest(l, err);
    /* the windows are free again; whoever fails from here on has sent all */
    sl_comm_barrier(t->ctx, t->comm, t->lane);
    if (!sl_ok(t->ctx)) part(l, NULL);
    return SL_OK;
}

sl_code sl_team_load_run(const sl_team_load *t, const sl_load_piece *pieces, int n,
                         sl_team_load_figures *figures, sl_err *err)
{
    loading l = {.t = t, .pieces = pieces, .n = n, .figures = figures};
    *figures = (sl_team_load_figures){0};
    sl_code rc = prepare(&l, err);
    if (!rc && agree(&l)) rc = share(&l, err);
    else if (!rc) {
        part(&l, &figures->ended);
        rc = sl_ok(t->ctx) ? read_now(&l, pieces, n, err) : sl_ctx_error(t->ctx, err);
    }
    if (rc) sl_comm_abort(t->comm, t->team);
    free(l.left);
    free(l.own);
    free(l.cuts);
    return rc;
}
