/* base64.h - bytes from base64 (RFC 4648, section 4). */
#ifndef SL_BASE64_H
#define SL_BASE64_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The n characters of `text`, with or without the padding at their end, as *size bytes in `to`,
 * which has room for (n + 3) / 4 * 3. False: they are not base64. */
bool sl_base64_decode(uint8_t *to, size_t *size, const char *text, size_t n);

#endif
