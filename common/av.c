/* av.c - the two libraries' functions in one table. */
#include "common/av.h"

static sl_av av;

#define ROW(name) {#name, &av.name},
static const sl_library_function UTIL[] = {SL_AVUTIL(ROW)}, CODEC[] = {SL_AVCODEC(ROW)};
static sl_library util = SL_LIBRARY(libavutil, LIBAVUTIL_VERSION_MAJOR, UTIL),
                  codec = SL_LIBRARY(libavcodec, LIBAVCODEC_VERSION_MAJOR, CODEC);

sl_code sl_av_load(const sl_av **out, sl_err *err)
{
    sl_code rc = sl_library_load(&util, err);
    if (!rc) rc = sl_library_load(&codec, err);
    *out = rc ? NULL : &av;
    return rc;
}
