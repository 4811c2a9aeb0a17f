/* sha256.h - SHA-256 (FIPS 180-4) and HMAC with it (RFC 2104): to sign requests, and to know that
 * bytes which went over a network are the ones that were sent. */
#ifndef SL_SHA256_H
#define SL_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SL_SHA256 32     /* bytes of a digest */
#define SL_SHA256_HEX 65 /* of one as lower-case hex digits, its NUL included */

/* A digest that grows: begin, add as often as there is something, end once. One thread. */
typedef struct {
    uint32_t state[8];
    uint64_t bytes;
    unsigned char rest[64];
} sl_sha256;

void sl_sha256_begin(sl_sha256 *h);
void sl_sha256_add(sl_sha256 *h, const void *bytes, size_t size);
void sl_sha256_end(sl_sha256 *h, unsigned char out[SL_SHA256]);

/* Of `size` bytes that are all there. */
void sl_sha256_hex(char out[SL_SHA256_HEX], const void *bytes, size_t size);
void sl_sha256_to_hex(char out[SL_SHA256_HEX], const unsigned char digest[SL_SHA256]);
void sl_hmac_sha256(unsigned char out[SL_SHA256], const void *key, size_t key_size,
                    const void *bytes, size_t size);

#endif
