/* base64.c - four characters are three bytes. */
#include "common/base64.h"

/* 64: none of its characters. */
static unsigned digit(char c)
{
    if (c >= 'A' && c <= 'Z') return (unsigned)(c - 'A');
    if (c >= 'a' && c <= 'z') return (unsigned)(c - 'a' + 26);
    if (c >= '0' && c <= '9') return (unsigned)(c - '0' + 52);
    return c == '+' ? 62 : c == '/' ? 63 : 64;
}

bool sl_base64_decode(uint8_t *to, size_t *size, const char *text, size_t n)
{
    *size = 0;
    if (n && n % 4 == 0 && text[n - 1] == '=') n -= text[n - 2] == '=' ? 2 : 1;
    if (n % 4 == 1) return false; /* 6 bits are no byte */
    for (size_t i = 0; i < n; i += 4) {
        const size_t here = n - i < 4 ? n - i : 4;
        uint32_t bits = 0;
        for (size_t k = 0; k < 4; k++) {
            const unsigned d = k < here ? digit(text[i + k]) : 0;
            if (d > 63) return false;
            bits = bits << 6 | d;
        }
        for (size_t k = 0; k + 1 < here; k++) to[(*size)++] = (uint8_t)(bits >> (16 - 8 * k));
    }
    return true;
}
