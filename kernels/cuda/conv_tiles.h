/* conv_tiles.h - the arithmetic of the convolutions' packed weights and tiles, shared by
 * the kernels, their host side and a test on the CPU.
 *
 * PACKED WEIGHTS: bf16 [rows][pitch], row o the weights of output channel o in the order
 * (kt, kh, kw, Ci), rows a multiple of 8, pitch a multiple of 32, zeros where there is
 * nothing. Behind it, for a kernel of 1 x 3 x 3 (which may be asked to double its frames
 * first), the same for each of the four output phases (a, b) = (row & 1, column & 1):
 * over a doubled frame every tap of 3 x 3 falls on one of 2 x 2 stored pixels, so the
 * taps that meet the same pixel are added in float32 and rounded once: [4 * rows][4 * Ci
 * rounded up to 32].
 *
 * TILES of the fast kernel: 256 output pixels in four blocks of 64, a block 4 x 16 pixels
 * of one frame. A tile covers `ft` consecutive frames (1, 2, 4) of 4 / ft places; places
 * count through (group of ft frames, block row, block column).
 *
 * STEPS of a tile: (tap in time if `kts` is 1, dx, chunk of 32 channels). What a block
 * reads in a step is one SLOT: the box of 4 + kh - 1 rows of 16 pixels at shifted
 * coordinates, 1 KiB a row; tap dy begins dy rows into it. With `kts` = 3 a step has the
 * slots of ft + 2 frames, which the three taps in time share. The weights of a step come
 * in kh parts, one a dy, each of `kts` matrices [n, 32]. */
#ifndef SL_CONV_TILES_H
#define SL_CONV_TILES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#include "kernels/ops.h"
#ifdef __cplusplus
}
#endif

#ifdef __CUDACC__
#define SL_HD static inline __host__ __device__
#else
#define SL_HD static inline
#endif

enum {
    SL_CONV_BLOCK_H = 4,
    SL_CONV_BLOCK_W = 16,
    SL_CONV_BLOCK = 64,
    SL_CONV_BLOCKS = 4,
    SL_CONV_KC = 32
};
enum {
    SL_CONV_ROW = SL_CONV_BLOCK_W * SL_CONV_KC * 2,
    SL_CONV_SLOT = (SL_CONV_BLOCK_H + 2) * SL_CONV_ROW
}; /* bytes; kh is at most 3 */

SL_HD int64_t sl_conv_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

SL_HD int64_t sl_conv_rows(int64_t co)
{
    return sl_conv_up(co, 8);
}

SL_HD int64_t sl_conv_pitch(int64_t ci, int64_t taps)
{
    return sl_conv_up(ci * taps, 32);
}

SL_HD int sl_conv_has_phases(const int64_t s[5])
{
    return s[2] == 1 && s[3] == 3 && s[4] == 3;
}

/* Elements before the phases' part. */
SL_HD int64_t sl_conv_direct_count(const int64_t s[5])
{
    return sl_conv_rows(s[0]) * sl_conv_pitch(s[1], s[2] * s[3] * s[4]);
}

SL_HD size_t sl_conv_packed_bytes(const int64_t s[5])
{
    int64_t n = sl_conv_direct_count(s);
    if (sl_conv_has_phases(s)) n += 4 * sl_conv_rows(s[0]) * sl_conv_pitch(s[1], 4);
    return 2 * (size_t)n;
}

/* The taps [*first, *last] of three that tap d of two stands for, in phase a. */
SL_HD void sl_conv_phase_taps(int a, int d, int *first, int *last)
{
    *first = a ? 2 * d : d;
    *last = a ? 1 + d : 2 * d;
}

/* Element `at` of the packed weights, from the checkpoint's order [Co,Ci,kt,kh,kw]. */
SL_HD float sl_conv_packed_value(const float *src, const int64_t s[5], int64_t at)
{
    int64_t co = s[0], ci = s[1], taps = s[2] * s[3] * s[4], direct = sl_conv_direct_count(s);
    if (at < direct) {
        int64_t pitch = sl_conv_pitch(ci, taps), o = at / pitch, k = at % pitch;
        return o < co && k < ci * taps ? src[(o * ci + k % ci) * taps + k / ci] : 0;
    }
    int64_t pitch = sl_conv_pitch(ci, 4), row = (at - direct) / pitch, k = (at - direct) % pitch;
    int64_t rows = sl_conv_rows(co), phase = row / rows, o = row % rows, c = k % ci, tap = k / ci;
    if (o >= co || tap >= 4) return 0;
    int y0, y1, x0, x1;
    float sum = 0;
    sl_conv_phase_taps((int)(phase >> 1), (int)(tap >> 1), &y0, &y1);
    sl_conv_phase_taps((int)(phase & 1), (int)(tap & 1), &x0, &x1);
    for (int y = y0; y <= y1; y++)
        for (int x = x0; x <= x1; x++) sum += src[(o * ci + c) * 9 + y * 3 + x];
    return sum;
}

/* A convolution as the fast kernel sees it. */
typedef struct {
    int frames, oh, ow, co; /* y */
    int grid_h, grid_w;     /* pixels of one phase */
    int step, phases;       /* 2 and 4: y's pixel (i, j) of phase (a, b) is (2i+a, 2j+b); else 1
                             * and 1 */
    int kt, kh, kw, stride_t, before, pad; /* 2 x 2 taps when phases is 4 */
    int first_dt;                          /* taps in time before this one meet only zeros */
    int has_history; /* frames before x's first are in the history; 0: they are zeros */
    int chunks;      /* of 32 channels: Ci / 32 */
    int ft, kts;     /* frames of a tile, taps in time of a step */
    int block_rows, block_cols, places; /* places: blocks of one phase divided by ft */
    int n;                              /* output channels of a tile */
    int n_tiles, m_tiles;               /* tiles along channels, along places */
    int weight_rows;                    /* rows of packed weights of one phase */
} sl_conv_tiles;

SL_HD int sl_conv_tile_count(const sl_conv_tiles *p)
{
    return p->n_tiles * p->phases * p->m_tiles;
}

/* Steps of one tile. */
SL_HD int sl_conv_steps(const sl_conv_tiles *p)
{
    return (p->kts == 1 ? p->kt - p->first_dt : 1) * p->kw * p->chunks;
}

/* Step `at` of a tile: its tap in time (0 with kts 3), dx and chunk, the last fastest. */
SL_HD void sl_conv_step_at(const sl_conv_tiles *p, int at, int *dt, int *dx, int *chunk)
{
    *chunk = at % p->chunks;
    *dx = at / p->chunks % p->kw;
    *dt = at / p->chunks / p->kw + (p->kts == 1 ? p->first_dt : 0);
}

/* Where in a row of weights the 32 of a tap's chunk begin. */
SL_HD int sl_conv_weight_k(const sl_conv_tiles *p, int dt, int dy, int dx, int chunk)
{
    return (((dt * p->kh + dy) * p->kw + dx) * p->chunks + chunk) * SL_CONV_KC;
}

/* How a convolution that the fast kernel can do (Ci a multiple of 32, Co of 96 or at most
 * 8, kh at most 3, no stride in space) is cut for `sms` multiprocessors: y [frames, oh,
 * ow, co]. */
static inline void sl_conv_plan(sl_conv_tiles *p, const sl_conv *k, int frames, int oh, int ow,
                                int ci, int co, int has_history, int sms)
{
    const int shares = k->kt == 3 && k->stride_t == 1, per = k->upsample ? 2 : 1;
    p->frames = frames, p->oh = oh, p->ow = ow, p->co = co;
    p->step = per;
    p->phases = per * per;
    p->grid_h = oh / per, p->grid_w = ow / per;
    p->kt = k->kt;
    p->kh = k->upsample ? 2 : k->kh, p->kw = k->upsample ? 2 : k->kw;
    p->pad = k->pad;
    p->stride_t = k->stride_t;
    p->before = k->stride_t == 1 ? k->kt - 1 : 1;
    p->has_history = has_history;
    p->chunks = ci / SL_CONV_KC;
    p->ft = shares && frames % 4 == 0 ? 4 : shares && frames % 2 == 0 ? 2 : 1;
    p->kts = p->ft == 1 ? 1 : 3;
    p->first_dt = frames == 1 && k->stride_t == 1 && !has_history ? k->kt - 1 : 0;
    p->block_rows = (p->grid_h + SL_CONV_BLOCK_H - 1) / SL_CONV_BLOCK_H;
    p->block_cols = (p->grid_w + SL_CONV_BLOCK_W - 1) / SL_CONV_BLOCK_W;
    p->places = frames / p->ft * p->block_rows * p->block_cols;
    p->m_tiles = (p->places + SL_CONV_BLOCKS / p->ft - 1) / (SL_CONV_BLOCKS / p->ft);
    p->weight_rows = (int)sl_conv_rows(co);
    p->n = co <= 8 ? 8 : 96;
    /* twice as wide: less traffic, unless the last round of tiles then leaves too many
     * multiprocessors idle */
    if (co % 192 == 0) {
        int64_t work = (int64_t)p->m_tiles * p->phases, narrow = (work * (co / 96) + sms - 1) / sms,
                wide = (work * (co / 192) + sms - 1) / sms * 2;
        if (10 * wide <= 11 * narrow) p->n = 192;
    }
    p->n_tiles = (co + p->n - 1) / p->n;
}

/* What one tile is. */
typedef struct {
    int n0, phase_y, phase_x, weight_row, place; /* place: the tile's first */
} sl_conv_tile;

SL_HD sl_conv_tile sl_conv_tile_at(const sl_conv_tiles *p, int tile)
{
    sl_conv_tile t;
    int n = tile % p->n_tiles, rest = tile / p->n_tiles, phase = rest % p->phases;
    t.n0 = n * p->n;
    t.phase_y = phase >> 1;
    t.phase_x = phase & 1;
    t.weight_row = phase * p->weight_rows + t.n0;
    t.place = rest / p->phases * (SL_CONV_BLOCKS / p->ft);
    return t;
}

/* First frame of y, row and column (in the phase's grid) of a place. Past the end the
 * frame lies behind the last. */
SL_HD void sl_conv_place_at(const sl_conv_tiles *p, int place, int *frame, int *row, int *col)
{
    int area = p->block_rows * p->block_cols, group = place / area, at = place - group * area;
    *frame = group * p->ft;
    *row = at / p->block_cols * SL_CONV_BLOCK_H;
    *col = at % p->block_cols * SL_CONV_BLOCK_W;
}

/* Slots of a step; the slot of block m (0 .. 3) for tap dt of the kts in a step. */
SL_HD int sl_conv_slots(int ft, int kts)
{
    return SL_CONV_BLOCKS / ft * (ft + kts - 1);
}

SL_HD int sl_conv_slot_of(int ft, int kts, int m, int dt)
{
    return m / ft * (ft + kts - 1) + m % ft + dt;
}

/* Input frame of slot j of a place whose first frame of y is `frame`; dt is the step's
 * tap in time (0 with kts 3). Negative: before x's first. */
SL_HD int sl_conv_slot_frame(const sl_conv_tiles *p, int frame, int j, int dt)
{
    return frame * p->stride_t + j + dt - p->before;
}

/* Byte of element (row, k) in a tile of rows of 64 bytes (32 bf16) in the 64-byte
 * swizzle: the copy engine's and wgmma's pattern, which exchanges 16-byte pieces by
 * address bits 7 and 8. The tile begins at a multiple of 512. */
SL_HD int sl_conv_swizzled(int row, int k)
{
    int byte = row * 64 + k * 2;
    return byte ^ ((byte >> 7 & 3) << 4);
}

#endif
