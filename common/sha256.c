/* sha256.c - SHA-256 and HMAC, as the two standards write them down. */
#include "common/sha256.h"

#include <string.h>

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turn(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static uint32_t big_endian(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* One of the 64 rounds: two of the eight numbers change, and all have other names in the next. */
#define ROUND(a, b, c, d, e, f, g, h, t)                                                           \
    do {                                                                                           \
        h += (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + (g ^ (e & (f ^ g))) + K[t] + w[t];         \
        d += h;                                                                                    \
        h += (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) | (c & (a | b)));                 \
    } while (0)

static void add_block(uint32_t state[8], const unsigned char block[64])
{
    uint32_t w[64];
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int t = 0; t < 16; t++) w[t] = big_endian(block + 4 * t);
    for (int t = 16; t < 64; t++)
        w[t] = (turn(w[t - 2], 17) ^ turn(w[t - 2], 19) ^ w[t - 2] >> 10) + w[t - 7] +
               (turn(w[t - 15], 7) ^ turn(w[t - 15], 18) ^ w[t - 15] >> 3) + w[t - 16];
    for (int t = 0; t < 64; t += 8) {
        ROUND(a, b, c, d, e, f, g, h, t);
        ROUND(h, a, b, c, d, e, f, g, t + 1);
        ROUND(g, h, a, b, c, d, e, f, t + 2);
        ROUND(f, g, h, a, b, c, d, e, t + 3);
        ROUND(e, f, g, h, a, b, c, d, t + 4);
        ROUND(d, e, f, g, h, a, b, c, t + 5);
        ROUND(c, d, e, f, g, h, a, b, t + 6);
        ROUND(b, c, d, e, f, g, h, a, t + 7);
    }
    const uint32_t now[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++) state[i] += now[i];
}

void sl_sha256_begin(sl_sha256 *h)
{
    static const uint32_t FIRST[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(h->state, FIRST, sizeof FIRST);
    h->bytes = 0;
}

void sl_sha256_add(sl_sha256 *h, const void *bytes, size_t size)
{
    const unsigned char *at = bytes;
    while (size) {
        const size_t used = h->bytes % 64, n = size < 64 - used ? size : 64 - used;
        if (n == 64) add_block(h->state, at);
        else {
            memcpy(h->rest + used, at, n);
            if (used + n == 64) add_block(h->state, h->rest);
        }
        h->bytes += n;
        at += n;
        size -= n;
    }
}

void sl_sha256_end(sl_sha256 *h, unsigned char out[SL_SHA256])
{
    static const unsigned char PAD[64] = {0x80};
    const uint64_t bits = h->bytes * 8;
    const size_t used = h->bytes % 64;
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(bits >> (56 - 8 * i));
    sl_sha256_add(h, PAD, used < 56 ? 56 - used : 120 - used);
    sl_sha256_add(h, length, 8);
    for (int i = 0; i < SL_SHA256; i++)
        out[i] = (unsigned char)(h->state[i / 4] >> (24 - 8 * (i % 4)));
}

void sl_sha256_to_hex(char out[SL_SHA256_HEX], const unsigned char digest[SL_SHA256])
{
    static const char DIGITS[] = "0123456789abcdef";
    for (int i = 0; i < SL_SHA256; i++) {
        out[2 * i] = DIGITS[digest[i] >> 4];
        out[2 * i + 1] = DIGITS[digest[i] & 15];
    }
    out[2 * SL_SHA256] = 0;
}

void sl_sha256_hex(char out[SL_SHA256_HEX], const void *bytes, size_t size)
{
    sl_sha256 h;
    unsigned char digest[SL_SHA256];
    sl_sha256_begin(&h);
    sl_sha256_add(&h, bytes, size);
    sl_sha256_end(&h, digest);
    sl_sha256_to_hex(out, digest);
}

void sl_hmac_sha256(unsigned char out[SL_SHA256], const void *key, size_t key_size,
                    const void *bytes, size_t size)
{
    sl_sha256 h;
    unsigned char block[64] = {0}, inner[SL_SHA256];
    if (key_size > sizeof block) {
        sl_sha256_begin(&h);
        sl_sha256_add(&h, key, key_size);
        sl_sha256_end(&h, block);
    } else if (key_size) memcpy(block, key, key_size);
    for (size_t i = 0; i < sizeof block; i++) block[i] ^= 0x36;
    sl_sha256_begin(&h);
    sl_sha256_add(&h, block, sizeof block);
    sl_sha256_add(&h, bytes, size);
    sl_sha256_end(&h, inner);
    for (size_t i = 0; i < sizeof block; i++) block[i] ^= 0x36 ^ 0x5c;
    sl_sha256_begin(&h);
    sl_sha256_add(&h, block, sizeof block);
    sl_sha256_add(&h, inner, sizeof inner);
    sl_sha256_end(&h, out);
    explicit_bzero(block, sizeof block);
}
