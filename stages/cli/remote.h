/* remote.h - a connection to a server (`sluice serve`): HTTP through libcurl, JSON through
 * jansson.
 *
 * A server is a URL (http or https) or a socket in its state folder. Nothing is trusted that comes
 * from it: answers are bounded, redirects are not followed, texts become one line.
 *
 * Deadlines: SL_REMOTE_CONNECT_S to connect, SL_REMOTE_IDLE_S without a byte in either direction,
 * and `until_ns` for all that is done with the connection, if its user sets one. A server that has
 * no room (429) or is not ready (503) is asked again when it says, for at most `retry_s` seconds
 * altogether; so is one whose connection is lost while it answers.
 *
 * Errors, for all functions here, one line each:
 *   SL_ARG        the server refuses (4xx), in its words; or what was given is wrong
 *   SL_BUSY       429 or 503, and `retry_s` has passed
 *   SL_GONE       no server, the connection is lost, or the server failed (5xx)
 *   SL_TIMEOUT    a deadline has passed
 *   SL_FORMAT     the answer is none of a Sluice server, or too large
 *   SL_CANCELLED  `interrupt_fd` was readable
 *   SL_SYS        a file here
 * A connection belongs to one thread. */
#ifndef SL_CLI_REMOTE_H
#define SL_CLI_REMOTE_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "common/path.h"
#include "stages/cli/buffer.h"

#define SL_REMOTE_CONNECT_S 10
#define SL_REMOTE_IDLE_S 60
#define SL_REMOTE_JSON_MAX ((size_t)64 << 20) /* bytes of an answer that is kept in memory */

/* How a command ends that needs a server, besides SL_EXIT_... of common/err.h: there is none, or
 * it fails; a deadline of --timeout has passed, as timeout(1) says it. */
enum { SL_EXIT_NO_SERVER = 3, SL_EXIT_TIMEOUT = 124 };

typedef struct {
    char name[SL_PATH];   /* for messages: the URL, or the socket's path */
    char url[SL_PATH];    /* without a slash at the end */
    char socket[SL_PATH]; /* "" none */
    char token[256];      /* "" none */
    char ca_file[SL_PATH];
    bool direct; /* on this machine: no proxy is asked */
    bool clear;  /* over a network and not encrypted: the token can be read on the way */
    int connect_s, idle_s;
    double retry_s;
    bool quiet;       /* nothing is said on stderr while a server is waited for */
    int interrupt_fd; /* a signalfd; -1: none */
    int64_t until_ns; /* of sl_now_ns; 0: never */
    /* of the newest answer */
    long status; /* 0: none came */
    char type[64], etag[96];
    /* inside */
    bool met; /* it has answered before */
    void *multi;
} sl_remote;

/* `where`: a URL, a state folder or a socket; "": $SLUICE_SERVER, else the default state folder
 * (sl_state_dir). `token_file`: a file of mode 0600 with the token in it; "": $SLUICE_TOKEN, else
 * none. `ca_file`: the certificates that an https server is believed by; "": the system's. Nothing
 * is connected yet. sl_remote_close, also after an error; a zeroed one is fine. */
sl_code sl_remote_open(sl_remote *r, const char *where, const char *token_file, const char *ca_file,
                       sl_err *err);
void sl_remote_close(sl_remote *r);

/* The exit status that says this code. */
int sl_remote_exit(const sl_remote *r, sl_code code);
/* Is another try of the same call of use? */
bool sl_remote_passes(sl_code code);
/* Wait. Errors: SL_CANCELLED, SL_TIMEOUT `until_ns` has passed. */
sl_code sl_remote_sleep(sl_remote *r, double s, sl_err *err);

/* A field of a form: a text, or the bytes of a file. */
typedef struct {
    const char *name, *text, *file; /* text or file, the other is NULL */
} sl_remote_part;

/* One call, with an answer that is a JSON object. `parts` [count]: the body, a form; count 0: none.
 * `key`: Idempotency-Key, NULL for none; a call with one, or without parts, is made again if its
 * answer is lost. *out is the caller's to json_decref; out may be NULL. */
sl_code sl_remote_call(sl_remote *r, const char *method, const char *path,
                       const sl_remote_part *parts, int count, const char *key, json_t **out,
                       sl_err *err);
/* GET, an answer of any kind up to `max` bytes; *out is emptied before. */
sl_code sl_remote_get(sl_remote *r, const char *path, size_t max, sl_buffer *out, sl_err *err);
/* GET, an answer that is taken as it comes, once. A sink that returns a code ends it with that
 * code. Errors: SL_GONE also when the connection ends before the answer does. */
typedef sl_code sl_remote_sink(void *ctx, const char *bytes, size_t n, sl_err *err);
sl_code sl_remote_stream(sl_remote *r, const char *path, const char *accept, sl_remote_sink *sink,
                         void *ctx, sl_err *err);
/* GET into a file, which has its name only when it is whole; "-": to stdout, in one try. A
 * connection that is lost is taken up where it was, for at most retry_s seconds without a byte.
 * `want`: bytes that the file must have; 0: not known, and at most 1 TiB. */
sl_code sl_remote_file(sl_remote *r, const char *path, const char *file, uint64_t want,
                       sl_err *err);

/* Ids of jobs stand in paths and on terminals: 1 to 64 letters, digits, '_' and '-'. */
bool sl_remote_is_id(const char *id);

#endif
