/* download.h - a file as an answer: whole or a range of it, or that the client has it already. */
#ifndef SL_DOWNLOAD_H
#define SL_DOWNLOAD_H

#include "stages/serve/http.h"

/* A file of this machine, with ETag, ranges and conditions; `name` for a download, NULL: none. 404
 * `missing` if it is not there. */
void sl_answer_file(sl_ask *a, const char *path, const char *type, const char *name,
                    const char *missing);
/* Likewise a job's file, wherever it is: one in a store comes through this server (relay.h). 503 if
 * the store is away. Of slow routes alone: it waits for the store. */
void sl_answer_place(sl_ask *a, const sl_server_place *at, const char *type, const char *name,
                     const char *missing);
/* 302 to a link to it, which this server has signed. Errors: SL_ARG it is not in a store; SL_NOMEM;
 * nothing was answered then. */
sl_code sl_answer_link(sl_ask *a, const sl_server_place *at, const char *type, const char *name,
                       sl_err *err);

#endif
