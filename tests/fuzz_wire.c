/* fuzz_wire.c - any bytes as a message: refused with one line, or decoded to what encodes
 * to the same bytes. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define X(number, NAME, lower) number,
static const uint8_t TYPES[] = {WIRE_ALL(X)};
#undef X

/* The header as it should be, so that random bytes get past it: the first byte picks the
 * type, the rest is its body. */
static void with_header(const uint8_t *data, size_t size)
{
    uint8_t bytes[SL_WIRE_MAX];
    sl_msg m = {.type = (sl_msg_type)TYPES[data[0] % sizeof TYPES]};
    size_t n = sl_wire_encode(bytes, &m),
           body = size - 1 < n - SL_WIRE_HEADER ? size - 1 : n - SL_WIRE_HEADER;
    memcpy(bytes + SL_WIRE_HEADER, data + 1, body);
    LLVMFuzzerTestOneInput(bytes, n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t again[SL_WIRE_MAX];
    char text[512];
    sl_err err = {0};
    sl_msg m;
    if (size && data[0] != 'S') {
        with_header(data, size);
        return 0;
    }
    if (sl_wire_decode(&m, data, size, &err)) {
        if (err.code != SL_FORMAT || !err.msg[0] || strchr(err.msg, '\n')) abort();
        return 0;
    }
    if (sl_wire_encode(again, &m) != size || memcmp(again, data, size)) abort();
    sl_wire_text_of(&m, text, sizeof text);
    if (!memchr(text, 0, sizeof text) ||
        strncmp(text, sl_wire_name(m.type), strlen(sl_wire_name(m.type))))
        abort();
    return 0;
}
