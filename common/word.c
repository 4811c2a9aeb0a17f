/* word.c - words that nobody can guess. */
#include "common/word.h"

#include <stdint.h>
#include <stdio.h>
#include <sys/random.h>

void sl_new_word(char out[SL_WORD])
{
    uint8_t r[(SL_WORD - 1) / 2];
    size_t got = 0;
    while (got < sizeof r) {
        const ssize_t n = getrandom(r + got, sizeof r - got, 0);
        if (n > 0) got += (size_t)n;
    }
    for (size_t i = 0; i < sizeof r; i++) snprintf(out + 2 * i, 3, "%02x", r[i]);
}
