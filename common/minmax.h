/* minmax.h - the smaller and the larger of two numbers. */
#ifndef SL_MINMAX_H
#define SL_MINMAX_H

#include <stdint.h>

static inline int64_t sl_smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t sl_larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

#endif
