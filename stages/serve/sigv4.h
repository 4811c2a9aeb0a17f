/* sigv4.h - AWS Signature Version 4: a request's headers, or a link that whoever has it may use.
 *
 * The one signer for both: libcurl's own (CURLOPT_AWS_SIGV4) signs no links, and before 8.0 neither
 * sorts nor escapes a query. Nothing here talks to anybody. Any thread. */
#ifndef SL_SIGV4_H
#define SL_SIGV4_H

#include <stdbool.h>
#include <stdio.h>
#include <time.h>

#include "common/err.h"

#define SL_SIGV4_UNSIGNED "UNSIGNED-PAYLOAD"
#define SL_SIGV4_PARTS 32 /* headers, and parameters of a query, at most */

typedef struct {
    char id[132], secret[132];
    char token[4096]; /* of keys that end after a while; "": none */
} sl_sigv4_keys;

typedef struct {
    const char *method, *host;  /* as the head of the request says them */
    const char *path;           /* from '/' on, escaped */
    const char *query;          /* NAME=VALUE with & between, escaped, in any order; "": none */
    const char *const *headers; /* "name: value" lines that are signed too, names in lower case, in
                                 * any order, without host and those that are made here; NULL: none,
                                 * else it ends with NULL */
    const char *payload;        /* hex SHA-256 of the body, or SL_SIGV4_UNSIGNED */
    const char *region, *service;
    time_t now;
} sl_sigv4_ask;

/* Unreserved characters as they are, all others as %XX; slash: a '/' stays, too. */
void sl_sigv4_escape(FILE *to, const char *text, bool slash);

/* The headers that the request is to have beside those of the ask and host: "authorization",
 * "x-amz-date", with a token "x-amz-security-token"; lines with '\n' behind each. *lines is the
 * caller's to free, and a secret. Errors: SL_ARG more than SL_SIGV4_PARTS; SL_NOMEM. */
sl_code sl_sigv4_sign(char **lines, const sl_sigv4_keys *k, const sl_sigv4_ask *a, sl_err *err);
/* The query of a link that is good for so many seconds: the ask's and the signature. Likewise. */
sl_code sl_sigv4_link(char **query, const sl_sigv4_keys *k, const sl_sigv4_ask *a, int seconds,
                      sl_err *err);

#endif
