/* balance.c - how many rows each rank of a team should have. */
#include "graphs/balance.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- shares that were given ---- */

/* One list of `text`, up to ',' or its end: its weights, how many, and what is behind it. NULL: no
 * list. */
static const char *read_list(const char *text, uint8_t weight[SL_RANKS], int *count)
{
    memset(weight, 0, SL_RANKS);
    for (*count = 0;; text++) {
        char *end;
        const long n = *text >= '0' && *text <= '9' ? strtol(text, &end, 10) : -1;
        if (n < 1 || n > SL_SHARE_MOST || *count == SL_RANKS) return NULL;
        weight[(*count)++] = (uint8_t)n;
        text = end;
        if (*text != ':') break;
    }
    return *text == ',' ? text + 1 : *text ? NULL : text;
}

/* The weights of the list whose turn it is among those of the team's size. */
static void take_given(sl_balance *b)
{
    uint8_t list[SL_RANKS], mine[SL_RANKS] = {0};
    int count, fit = 0;
    for (const char *p = b->given; *p && (p = read_list(p, list, &count));) fit += count == b->size;
    int left = fit ? b->turn++ % fit : -1;
    for (const char *p = b->given; left >= 0 && *p && (p = read_list(p, list, &count));)
        if (count == b->size && !left--) memcpy(mine, list, sizeof mine);
    for (int i = 0; i < b->size; i++) b->weight[i] = fit ? mine[i] : SL_SHARE_EQUAL;
}

static sl_code check_given(const char *given, sl_err *err)
{
    uint8_t list[SL_RANKS];
    int count;
    const char *p = given;
    do {
        const char *from = p;
        p = read_list(p, list, &count);
        if (!p || !sl_shares_fit(list, count))
            return sl_fail(
                err, SL_ARG,
                "SLUICE_SHARES=%.40s, want weights such as 72:56, of each member 1 to %d, in "
                "the mean %d",
                from, SL_SHARE_MOST, SL_SHARE_EQUAL);
    } while (*p || p[-1] == ',');
    return SL_OK;
}

sl_code sl_balance_begin(sl_balance *b, int size, const uint8_t last[], const char *given,
                         sl_err *err)
{
    const bool known = last && sl_shares_fit(last, size) && last[0];
    *b = (sl_balance){.size = size, .skip = 1};
    for (int i = 0; i < size; i++) b->weight[i] = known ? last[i] : SL_SHARE_EQUAL;
    if (!given) return SL_OK;
    const sl_code rc = check_given(given, err);
    if (rc) return rc;
    b->given = given;
    b->settled = true;
    take_given(b);
    return SL_OK;
}

/* ---- shares that follow what is measured ---- */

static bool make_sense(int size, double part, const double busy_s[])
{
    double least = INFINITY, most = 0;
    for (int i = 0; i < size; i++) {
        if (!(busy_s[i] > 0 && busy_s[i] < SL_BALANCE_MOST_S)) return false;
        least = fmin(least, busy_s[i]);
        most = fmax(most, busy_s[i]);
    }
    return part > 0 && part <= 1 && most <= SL_BALANCE_MOST_RATIO * least;
}

/* How long a rank computes with a weight, beside an equal share of its own. */
static double load(double part, double weight)
{
    return 1 - part + part * weight / SL_SHARE_EQUAL;
}

/* Whole weights for the wanted ones, with the same sum: who loses most by it has one more. */
static void round_weights(int size, const double want[], uint8_t weight[])
{
    int left = size * SL_SHARE_EQUAL;
    for (int i = 0; i < size; i++) {
        weight[i] = (uint8_t)floor(want[i]);
        left -= weight[i];
    }
    for (; left > 0; left--) {
        int best = 0;
        for (int i = 1; i < size; i++)
            if (want[i] - weight[i] > want[best] - weight[best]) best = i;
        weight[best]++;
    }
}

/* Weights with which members of this pace, seconds of an equal share, come nearer to one end: part
 * of the way, and as far as the bounds allow all of them. */
static void aim(const sl_balance *b, double part, const double pace[], uint8_t weight[])
{
    double rate = 0, by[SL_RANKS], want[SL_RANKS], way = SL_BALANCE_WAY;
    for (int i = 0; i < b->size; i++) rate += 1 / pace[i];
    const double level = b->size / rate; /* where all would end, for loads add up to size */
    for (int i = 0; i < b->size; i++) {
        const double target = (level / pace[i] - (1 - part)) / part * SL_SHARE_EQUAL;
        by[i] = target - b->weight[i];
        const double room =
            by[i] > 0 ? SL_SHARE_MOST - b->weight[i] : b->weight[i] - SL_BALANCE_LEAST;
        if (fabs(by[i]) * way > room) way = fmax(room, 0) / fabs(by[i]);
    }
    for (int i = 0; i < b->size; i++) want[i] = b->weight[i] + way * by[i];
    round_weights(b->size, want, weight);
}

bool sl_balance_next(sl_balance *b, double part, const double busy_s[])
{
    uint8_t weight[SL_RANKS] = {0}, before[SL_RANKS];
    double pace[SL_RANKS], now = 0, then = 0;
    if (b->given) {
        memcpy(before, b->weight, sizeof before);
        take_given(b);
        return memcmp(before, b->weight, sizeof before) != 0;
    }
    if (!make_sense(b->size, part, busy_s)) return false;
    if (b->skip) {
        b->skip--;
        return false;
    }
    for (int i = 0; i < b->size; i++) b->busy_s[i] += busy_s[i];
    if (++b->seen < SL_BALANCE_FIRST << b->changes) return false;

    for (int i = 0; i < b->size; i++) pace[i] = b->busy_s[i] / b->seen / load(part, b->weight[i]);
    aim(b, part, pace, weight);
    for (int i = 0; i < b->size; i++) {
        now = fmax(now, pace[i] * load(part, b->weight[i]));
        then = fmax(then, pace[i] * load(part, weight[i]));
        b->busy_s[i] = 0;
    }
    b->seen = 0;
    b->settled = then > now * (1 - SL_BALANCE_GAIN) || b->changes == SL_BALANCE_MOST_CHANGES;
    if (b->settled) return false;
    memcpy(b->weight, weight, sizeof b->weight);
    b->changes++;
    b->skip = 1;
    return true;
}
