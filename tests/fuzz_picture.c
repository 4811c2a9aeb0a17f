/* fuzz_picture.c - any bytes as a picture: refused, or a picture of the size that it
 * says. */
#include "common/picture.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_err err = {0};
    sl_picture p = {0};
    unsigned sum = 0;
    if (sl_picture_decode(&p, data, size, "fuzz", &err)) return 0;
    if (p.w < 1 || p.h < 1 || (int64_t)p.w * p.h > SL_PICTURE_MAX_PIXELS) abort();
    for (size_t i = 0; i < (size_t)p.w * (size_t)p.h * 3; i++) sum += p.rgb[i];
    sl_picture_free(&p);
    return sum == 1 && p.rgb;
}
