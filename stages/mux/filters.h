/* filters.h - libavfilter, loaded when a GIF asks for it: it brings some twenty libraries, which
 * would be half of the time in which a mux starts. */
#ifndef SL_MUX_FILTERS_H
#define SL_MUX_FILTERS_H

#include <libavfilter/avfilter.h>
#include <libavfilter/buffersink.h>
#include <libavfilter/buffersrc.h>

#include "common/library.h"

/* What is called of it. */
#define SL_FILTERS(F)                                                                              \
    F(avfilter_graph_alloc)                                                                        \
    F(avfilter_graph_create_filter)                                                                \
    F(avfilter_graph_parse_ptr)                                                                    \
    F(avfilter_graph_config)                                                                       \
    F(avfilter_graph_free)                                                                         \
    F(avfilter_get_by_name)                                                                        \
    F(avfilter_inout_alloc)                                                                        \
    F(avfilter_inout_free)                                                                         \
    F(av_buffersrc_add_frame_flags)                                                                \
    F(av_buffersink_get_frame)

typedef struct {
    SL_FILTERS(SL_LIBRARY_FIELD)
} sl_filters;

/* *out is the library of the major version that this was built with; it stays for as long as the
 * process. Errors: SL_SYS, if it or a function of it is not there. */
sl_code sl_filters_load(const sl_filters **out, sl_err *err);

#endif
