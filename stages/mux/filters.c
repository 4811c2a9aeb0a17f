/* filters.c - the table of libavfilter's functions. */
#include "stages/mux/filters.h"

static sl_filters filters;

#define ROW(name) {#name, &filters.name},
static const sl_library_function ROWS[] = {SL_FILTERS(ROW)};
static sl_library library = SL_LIBRARY(libavfilter, LIBAVFILTER_VERSION_MAJOR, ROWS);

sl_code sl_filters_load(const sl_filters **out, sl_err *err)
{
    const sl_code rc = sl_library_load(&library, err);
    *out = &filters;
    return rc ? sl_context(err, rc, "GIF") : SL_OK;
}
