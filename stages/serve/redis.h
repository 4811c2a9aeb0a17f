/* redis.h - one connection to Redis (or Valkey): commands with deadlines, and news.
 *
 * hiredis writes commands and reads replies; libcurl (CONNECT_ONLY) is the way there, plain, TLS or
 * a UNIX socket, so that every wait has a deadline whichever hiredis there is. A connection belongs
 * to one thread at a time. After SL_SYS or SL_TIMEOUT it is good for nothing but to be closed:
 * whether the command was carried out is unknown. Descriptors are not inherited by exec. */
#ifndef SL_REDIS_H
#define SL_REDIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <hiredis/hiredis.h>

#include "common/err.h"

#define SL_REDIS_URLS                                                                              \
    "redis://[USER:PASSWORD@]HOST[:PORT][/N], rediss:// for TLS (?ca=FILE&cert=FILE&key=FILE), "   \
    "unix://[USER:PASSWORD@]/SOCKET[?db=N]"

typedef struct {
    char host[256], path[108]; /* path: of a UNIX socket, in the place of host and port */
    char user[128], password[512];
    char ca[512], cert[512], key[512]; /* of TLS: files; "": the system's, none */
    int port, db;
    bool tls;
    char shown[400]; /* as messages call it: without the password */
} sl_redis_at;

/* Errors: SL_ARG no such address; the message has no password in it. */
sl_code sl_redis_parse(sl_redis_at *out, const char *url, sl_err *err);

typedef struct sl_redis sl_redis;

/* Connect, say who one is, choose the database; all within wait_ms. *at is borrowed for the call.
 * *out is the caller's to close. Errors: SL_SYS nobody there, cut off; SL_TIMEOUT; SL_ARG Redis
 * does not let this user in, or has no such database. */
sl_code sl_redis_open(sl_redis **out, const sl_redis_at *at, int wait_ms, sl_err *err);
void sl_redis_close(sl_redis **r); /* NULL is fine */

/* A command of n words, sizes[n] NULL: they end with NUL. *out is the caller's (freeReplyObject);
 * it may be REDIS_REPLY_ERROR. Errors: SL_SYS, SL_TIMEOUT, SL_NOMEM. */
sl_code sl_redis_ask(sl_redis *r, redisReply **out, int wait_ms, int n, const char *const *words,
                     const size_t *sizes, sl_err *err);
/* What came by itself (a message of a channel), within wait_ms. Errors: SL_BUSY nothing did;
 * SL_SYS. */
sl_code sl_redis_hear(sl_redis *r, redisReply **out, int wait_ms, sl_err *err);

#endif
