/* picture_pnm.c - PBM, PGM and PPM, plain and raw (netpbm's pbm(5), pgm(5), ppm(5)). Samples are
 * scaled to 255 and rounded, as Pillow's PpmImagePlugin does; so are those of a PGM of 16 bits,
 * which Pillow would clip. */
#include "common/picture_parts.h"

typedef struct {
    sl_span_of s;
    size_t at;
    int type; /* 1 to 6 */
    int64_t w, h, most;
} pnm;

/* The next number, behind white space and comments; -1 for none, or for one of more than 9
 * digits. */
static int64_t number(pnm *p)
{
    int64_t v = -1;
    int digits = 0;
    for (; p->at < p->s.n; p->at++) {
        const uint8_t c = p->s.at[p->at];
        if (c == '#')
            while (p->at + 1 < p->s.n && p->s.at[p->at] != '\n') p->at++;
        else if (c != ' ' && (c < '\t' || c > '\r')) break;
    }
    for (; p->at < p->s.n && p->s.at[p->at] >= '0' && p->s.at[p->at] <= '9'; p->at++) {
        if (++digits > 9) return -1;
        v = (v < 0 ? 0 : v) * 10 + p->s.at[p->at] - '0';
    }
    return v;
}

/* Stands behind the header afterwards. */
static bool open_pnm(pnm *p, sl_span_of s)
{
    *p = (pnm){.s = s, .at = 2, .most = 1};
    if (!sl_has(s, 0, 3) || s.at[0] != 'P' || s.at[1] < '1' || s.at[1] > '6') return false;
    p->type = s.at[1] - '0';
    p->w = number(p);
    p->h = number(p);
    if (p->type % 3 != 1) p->most = number(p);
    p->at++; /* one white space */
    return p->w > 0 && p->h > 0 && p->most >= 1 && p->most <= 65535;
}

static int channels(const pnm *p)
{
    return p->type % 3 ? 1 : 3;
}

bool sl_pnm_header(sl_span_of file, int64_t *w, int64_t *h, bool *whole)
{
    pnm p;
    if (!open_pnm(&p, file)) return false;
    *w = p.w;
    *h = p.h;
    *whole = true;
    if (p.w > SL_PICTURE_MAX_SIDE || p.h > SL_PICTURE_MAX_SIDE) return true; /* refused as such */
    const int64_t n = p.w * p.h * channels(&p);
    if (p.type == 4) *whole = sl_has(file, p.at, (size_t)((p.w + 7) / 8 * p.h));
    else if (p.type > 4) *whole = sl_has(file, p.at, (size_t)(n * (p.most > 255 ? 2 : 1)));
    else if (p.type == 1) {
        int64_t seen = 0; /* digits may stand without a space between */
        for (size_t i = p.at; i < file.n; i++) seen += file.at[i] == '0' || file.at[i] == '1';
        *whole = seen >= n;
    } else {
        int64_t seen = 0;
        while (seen < n && number(&p) >= 0) seen++;
        *whole = seen == n;
    }
    return true;
}

/* One sample of a plain bitmap: its next digit. */
static int64_t bit(pnm *p)
{
    for (; p->at < p->s.n; p->at++) {
        const uint8_t c = p->s.at[p->at];
        if (c == '#')
            while (p->at + 1 < p->s.n && p->s.at[p->at] != '\n') p->at++;
        else if (c == '0' || c == '1') return p->at++, c - '0';
        else if (c != ' ' && (c < '\t' || c > '\r')) return -1;
    }
    return -1;
}

static int64_t sample(pnm *p, int64_t x)
{
    int64_t v;
    switch (p->type) {
    case 1: return bit(p);
    case 4:
        v = sl_has(p->s, p->at, 1) ? p->s.at[p->at] >> (7 - x % 8) & 1 : -1;
        if (x % 8 == 7 || x == p->w - 1) p->at++;
        return v;
    case 2:
    case 3: return number(p);
    default:
        if (!sl_has(p->s, p->at, p->most > 255 ? 2 : 1)) return -1;
        v = p->most > 255 ? sl_be16(p->s.at + p->at) : p->s.at[p->at];
        p->at += p->most > 255 ? 2 : 1;
        return v;
    }
}

/* Python's round(v / most * 255): a half goes to the even side */
static uint8_t scaled(int64_t v, int64_t most)
{
    const int64_t twice = 2 * v * 255 + most;
    int64_t q = twice / (2 * most);
    if (twice % (2 * most) == 0 && q % 2) q--;
    return (uint8_t)(q > 255 ? 255 : q);
}

bool sl_pnm_decode(uint8_t *rgb, sl_span_of file)
{
    pnm p;
    if (!open_pnm(&p, file)) return false;
    const int n = channels(&p);
    for (int64_t y = 0; y < p.h; y++)
        for (int64_t x = 0; x < p.w; x++, rgb += 3)
            for (int c = 0; c < n; c++) {
                const int64_t v = sample(&p, x);
                if (v < 0 || (v > p.most && p.type < 4)) return false;
                rgb[c] = p.type % 3 == 1 ? (v ? 0 : 255) : scaled(v, p.most);
                if (n == 1) rgb[1] = rgb[2] = rgb[0];
            }
    return true;
}
