/* fuzz_sse.c - server-sent events, cut anywhere: the events do not depend on the cuts. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "stages/cli/sse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Events heard, as a sum over their bytes in order. */
typedef struct {
    uint64_t sum;
    size_t count;
} heard;

static void add(heard *h, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) h->sum = (h->sum ^ (unsigned char)bytes[i]) * 0x100000001b3u;
}

static void hear(void *ctx, const char *event, const char *data, size_t n)
{
    heard *h = ctx;
    if (data[n]) abort();
    add(h, event, strlen(event) + 1);
    add(h, data, n + 1);
    h->count++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_sse whole = {0}, cut = {0};
    heard a = {0}, b = {0};
    sl_code x = SL_OK, y;
    if (!size) return 0;
    const size_t piece = 1 + data[0] % 17;
    const char *bytes = (const char *)data + 1;
    size--;
    y = sl_sse_feed(&whole, bytes, size, hear, &a, NULL);
    for (size_t i = 0; i < size && !x; i += piece)
        x = sl_sse_feed(&cut, bytes + i, size - i < piece ? size - i : piece, hear, &b, NULL);
    if (x != y || a.sum != b.sum || a.count != b.count) abort();
    sl_sse_free(&whole);
    sl_sse_free(&cut);
    return 0;
}
