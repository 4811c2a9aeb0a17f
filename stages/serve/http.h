/* http.h - HTTP in front of the server, through libmicrohttpd: what protects it from its clients,
 * and what handlers see of a request.
 *
 * A CONNECTION has a deadline at every moment, and is shut down when it passes: to send a
 * request's head, to send the body at a rate, to read the answer at a rate. Bodies are bounded
 * before they are read, one by one and all together. A request that two parties could understand
 * in two ways (two lengths, a length beside chunks) is refused. Without tokens only requests to
 * this host, from pages of this host, are answered, so that no web page elsewhere can use a server
 * on the loopback.
 *
 *   MHD's threads   heads, bodies, answers; handlers that only look
 *   workers         handlers that write (sl_route.slow): the connection sleeps meanwhile
 *   janitor         sl_http_tick: shuts down connections that are too slow
 *
 * A route is method, path, what it takes, a handler; routes.h has the table. */
#ifndef SL_HTTP_H
#define SL_HTTP_H

#include <jansson.h>
#include <microhttpd.h>

#include "stages/serve/server.h"

typedef struct sl_http sl_http;
typedef struct sl_http_connection sl_http_connection;
typedef struct sl_ask sl_ask;

typedef enum {
    SL_ROUTE_OPEN,  /* anybody, without a token */
    SL_ROUTE_TOKEN, /* whoever has a token, where there are tokens */
} sl_route_who;

typedef struct {
    const char *method, *path; /* {id} and {name} stand for one segment each */
    sl_route_who who;
    bool body; /* it takes one */
    bool slow; /* it waits for the disk or for others: it is handled by a thread beside MHD's */
    void (*handle)(sl_ask *a);
    const char *what;   /* for people: openapi.json */
    const char *query;  /* names of query parameters, with spaces between; NULL: none */
    const char *answer; /* what it answers: "video", "list", ... (openapi.c); NULL: no JSON */
    const char *codes;  /* of errors, with spaces between */
} sl_route;

/* One request. Handlers read it and answer once. */
struct sl_ask {
    sl_server *server;
    struct MHD_Connection *mhd;
    sl_http *http;
    sl_http_connection *connection;
    const sl_route *route;
    char id[SL_JOURNAL_ID], name[64]; /* of the path */
    char owner[SL_JOURNAL_OWNER];     /* whose token it is; "": the machine's own */
    bool everyone;                    /* sees the jobs of all owners */
    int priority;                     /* the largest that it may ask for */
    char *body;
    size_t size, room;
    int retry_s; /* for Retry-After; 0: none */
    /* for http.c: */
    int64_t t0_ns;
    size_t thrown; /* bytes of the body that nobody wants */
    bool head;     /* the method is HEAD, which routes have as GET */
    bool discard, answered, counted;
    int code;               /* of the answer */
    int early_code;         /* an error that was found before the body was read; 0: none */
    const char *early_name; /* its code's name */
    char early[256];        /* its message */
    enum MHD_Result queued;
    bool working; /* it is a worker's; its answer waits here until the connection is awake: */
    struct MHD_Response *response;
    sl_ask *next; /* in the workers' queue */
};

/* ---- answers, one a request ---- */

/* `body` is taken over; NULL: no memory, 500. */
void sl_answer_json(sl_ask *a, int code, json_t *body);
/* {"error": {...}}: type from the code; param NULL: of no field. The message is made one line. */
void sl_answer_error(sl_ask *a, int code, const char *error_code, const char *param,
                     const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* Text that is taken over (malloc'd). */
void sl_answer_text(sl_ask *a, int code, const char *type, char *text, size_t size);
/* Bytes that live as long as the program. policy: Content-Security-Policy; NULL: none. */
void sl_answer_static(sl_ask *a, const char *type, const void *bytes, size_t size,
                      const char *policy);
/* A response that the handler made, and that is taken over; size: bytes that its reader has time
 * for. */
void sl_answer(sl_ask *a, int code, struct MHD_Response *r);
void sl_answer_sized(sl_ask *a, int code, struct MHD_Response *r, uint64_t size);

/* A header or a query parameter; NULL: it is absent. */
const char *sl_ask_header(const sl_ask *a, const char *name);
const char *sl_ask_query(const sl_ask *a, const char *name);

/* A stream lives as long as it is read: its deadline begins anew. */
void sl_ask_alive(sl_ask *a);

/* ---- the server ---- */

/* The route of a path and a method (HEAD is GET). id and name get what stands for {id} and {name}:
 * letters, digits, '_', '-' and '.', or there is no such route. NULL: none; *known: the path has
 * other methods. */
typedef const sl_route *sl_route_find_fn(const char *path, const char *method, char *id,
                                         size_t id_room, char *name, size_t name_room, bool *known);

/* Listen on HOST:PORT ("127.0.0.1:8080", "[::1]:0", ":8080") and on the socket file; answer from
 * threads of its own. Errors: SL_ARG no such address, or one that is not the loopback's without
 * tokens; SL_SYS. *out is the caller's to close. */
sl_code sl_http_open(sl_http **out, sl_server *s, sl_route_find_fn *find, const char *listen,
                     sl_err *err);
/* "http://127.0.0.1:8080": the port that it really is. */
const char *sl_http_url(const sl_http *h);
void sl_http_tick(sl_http *h);
int sl_http_connections(sl_http *h);
/* No new connections, streams end, answers that are on their way leave. NULL is fine. */
void sl_http_close(sl_http **h);

#endif
