/* curl.c - the table of libcurl's functions. */
#include "stages/cli/curl.h"

static sl_curl curl;

#define ROW(name) {#name, &curl.name},
static const sl_library_function ROWS[] = {SL_CURL(ROW)};
static sl_library library = {"libcurl.so.4", "libcurl", ROWS, sizeof ROWS / sizeof *ROWS, false};

sl_code sl_curl_load(const sl_curl **out, sl_err *err)
{
    *out = &curl;
    return sl_library_load(&library, err);
}
