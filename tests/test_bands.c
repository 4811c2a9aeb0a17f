/* test_bands.c - the order of attention's tiles for parts that others wait for: every tile once,
 * and a part is there when the parts before it, itself and little more have been computed. */
#include "t.h"

#include <stdlib.h>

#include "kernels/comm.h"
#include "kernels/cuda/bands.h"

enum { TILE = 192 };

/* Tiles of a head that are taken until all bands that part i touches are whole. */
static int tiles_until(const sl_bands *b, const int64_t *first, int i)
{
    int band = 0;
    for (int64_t t = first[i] / TILE; t <= (first[i + 1] - 1) / TILE; t++)
        if (sl_band_at(b, (int)t) > band) band = sl_band_at(b, (int)t);
    return (band + 1) * b->band < b->tiles ? (band + 1) * b->band : b->tiles;
}

static void every_tile_is_in_a_band(const sl_bands *b)
{
    int *in = calloc((size_t)b->bands, sizeof *in);
    assert_non_null(in);
    for (int t = 0; t < b->tiles; t++) {
        assert_in_range(sl_band_at(b, t), 0, b->bands - 1);
        in[sl_band_at(b, t)]++;
    }
    for (int k = 0; k < b->bands; k++)
        assert_int_equal(in[k], k + 1 < b->bands ? b->band : b->tiles - k * b->band);
    free(in);
}

static void a_part_is_there_in_its_turn(void **state)
{
    static const int64_t TOKENS[] = {32760, 48384, 75600, 1953, 385, 193, 45};
    (void)state;
    for (size_t n = 0; n < sizeof TOKENS / sizeof *TOKENS; n++)
        for (int parts = 1; parts <= 8; parts++)
            for (int last = 0; last < 2 * parts; last++) {
                int64_t first[9];
                /* shares are equal, or the first ones as large as they may be */
                sl_team team = {.size = parts};
                for (int i = 0, left = 64 * parts; i < parts && last >= parts;
                     left -= team.weight[i++])
                    team.weight[i] = (uint8_t)(left < SL_SHARE_MOST ? left : SL_SHARE_MOST);
                for (int i = 0; i < parts; i++) first[i] = sl_share_of(&team, TOKENS[n], i).first;
                first[parts] = TOKENS[n];
                const sl_bands b = sl_bands_of(TILE, parts, first, last % parts);
                every_tile_is_in_a_band(&b);
                for (int turn = 1; turn < parts; turn++) {
                    const int i = (last + turn) % parts;
                    if (first[i] == first[i + 1]) continue;
                    const int until = tiles_until(&b, first, i), most = turn * (b.band + 2);
                    if (until > most)
                        fail_msg("%lld tokens, %d parts, %d last: part %d is there after %d of %d "
                                 "tiles, want at most %d",
                                 (long long)TOKENS[n], parts, last, i, until, b.tiles, most);
                }
            }
}

/* What two ranks of the 14B model wait for is half of the work, and a tile. */
static void two_wait_for_half(void **state)
{
    static const int64_t TOKENS[] = {32760, 48384, 75600};
    (void)state;
    for (int n = 0; n < 3; n++)
        for (int last = 0; last < 2; last++) {
            const int64_t first[] = {0, sl_share_of(&(sl_team){.size = 2}, TOKENS[n], 1).first,
                                     TOKENS[n]};
            const sl_bands b = sl_bands_of(TILE, 2, first, last);
            assert_int_equal(b.bands, 2);
            assert_in_range(tiles_until(&b, first, !last), b.tiles / 2, b.tiles / 2 + 2);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_part_is_there_in_its_turn),
                                       cmocka_unit_test(two_wait_for_half)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
