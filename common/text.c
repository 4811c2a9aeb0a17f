/* text.c - comparing words. */
#include "common/text.h"

#include <string.h>

static int least(int a, int b)
{
    return a < b ? a : b;
}

int sl_text_distance(const char *a, const char *b)
{
    int row[64], n = (int)strnlen(b, 63), m = (int)strnlen(a, 63);
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; i <= m; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int up = row[j];
            row[j] = least(least(row[j], row[j - 1]) + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = up;
        }
    }
    return row[n];
}
