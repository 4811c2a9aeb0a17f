/* av.h - libavutil and libavcodec, loaded when a picture or a video format asks for them
 * (library.h). The mux, which writes videos, is linked with them. */
#ifndef SL_AV_H
#define SL_AV_H

#include <libavcodec/avcodec.h>
#include <libavutil/pixdesc.h>

#include "common/library.h"

/* What is called of each. */
#define SL_AVUTIL(F)                                                                               \
    F(av_frame_alloc)                                                                              \
    F(av_frame_free)                                                                               \
    F(av_frame_get_buffer)                                                                         \
    F(av_get_pix_fmt_name)                                                                         \
    F(av_log_set_level)                                                                            \
    F(av_pix_fmt_desc_get)                                                                         \
    F(av_read_image_line2)                                                                         \
    F(av_strerror)
#define SL_AVCODEC(F)                                                                              \
    F(av_new_packet)                                                                               \
    F(av_packet_alloc)                                                                             \
    F(av_packet_free)                                                                              \
    F(av_packet_unref)                                                                             \
    F(av_shrink_packet)                                                                            \
    F(avcodec_alloc_context3)                                                                      \
    F(avcodec_find_decoder)                                                                        \
    F(avcodec_find_decoder_by_name)                                                                \
    F(avcodec_find_encoder)                                                                        \
    F(avcodec_find_encoder_by_name)                                                                \
    F(avcodec_free_context)                                                                        \
    F(avcodec_open2)                                                                               \
    F(avcodec_parameters_to_context)                                                               \
    F(avcodec_receive_frame)                                                                       \
    F(avcodec_receive_packet)                                                                      \
    F(avcodec_send_frame)                                                                          \
    F(avcodec_send_packet)                                                                         \
    F(avcodec_version)

typedef struct {
    SL_AVUTIL(SL_LIBRARY_FIELD)
    SL_AVCODEC(SL_LIBRARY_FIELD)
} sl_av;

/* *out stays for as long as the process; any thread. Errors: SL_SYS one of them is not there. */
sl_code sl_av_load(const sl_av **out, sl_err *err);

#endif
