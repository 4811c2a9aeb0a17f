/* fetch.h - a picture from another host, if the configuration names that host. */
#ifndef SL_FETCH_H
#define SL_FETCH_H

#include <stddef.h>

#include "common/err.h"

/* *bytes is the caller's to free. hosts: names with commas between, compared whole; "": nothing is
 * fetched. No redirects, http and https alone, 20 s in all. Errors: SL_ARG the host is not named,
 * no such URL; SL_SYS it did not answer with 200; SL_FORMAT more than `most` bytes. */
sl_code sl_fetch(char **bytes, size_t *size, const char *url, const char *hosts, size_t most,
                 sl_err *err);

#endif
