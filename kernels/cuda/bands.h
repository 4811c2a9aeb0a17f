/* bands.h - in which order attention takes tiles of rows when others wait for parts of them:
 * plain C, since a test without a GPU holds the numbers.
 *
 * Tiles go band by band, in a band head after head. The first band begins with the tile of the row
 * behind the part that goes last; a band has as many tiles of each head as any part that is waited
 * for touches, so that the first such part is whole when the first band is. */
#ifndef SL_BANDS_H
#define SL_BANDS_H

#include <stdint.h>

typedef struct {
    int tiles; /* of all rows */
    int band;  /* tiles in a band; the last has what is left */
    int bands;
    int from; /* the first tile taken; after the last comes tile 0 */
} sl_bands;

/* For rows in `parts` parts, part i the rows [first[i], first[i + 1]), and tiles of `tile` rows, at
 * least one. */
static inline sl_bands sl_bands_of(int tile, int parts, const int64_t *first, int last)
{
    const int64_t n = first[parts];
    sl_bands b = {(int)((n + tile - 1) / tile), 1, 0, 0};
    if (first[last + 1] < n) b.from = (int)(first[last + 1] / tile);
    for (int i = 0; i < parts; i++) {
        if (i == last || first[i + 1] == first[i]) continue;
        const int touched = (int)((first[i + 1] - 1) / tile - first[i] / tile) + 1;
        if (touched > b.band) b.band = touched;
    }
    if (parts == 1) b.band = b.tiles;
    b.bands = (b.tiles + b.band - 1) / b.band;
    return b;
}

/* The band that a tile is in. */
static inline int sl_band_at(const sl_bands *b, int tile)
{
    return (tile - b->from + b->tiles) % b->tiles / b->band;
}

#endif
