/* curl.h - libcurl, loaded by who asks a server (common/library.h): with its TLS and its name
 * services it would be most of the time in which the command starts. */
#ifndef SL_CLI_CURL_H
#define SL_CLI_CURL_H

#define CURL_DISABLE_TYPECHECK /* whose macros stand in the way of fields of these names */
#include <curl/curl.h>

#include "common/library.h"

/* What is called of it. */
#define SL_CURL(F)                                                                                 \
    F(curl_easy_cleanup)                                                                           \
    F(curl_easy_getinfo)                                                                           \
    F(curl_easy_init)                                                                              \
    F(curl_easy_setopt)                                                                            \
    F(curl_easy_strerror)                                                                          \
    F(curl_free)                                                                                   \
    F(curl_global_cleanup)                                                                         \
    F(curl_global_init)                                                                            \
    F(curl_mime_addpart)                                                                           \
    F(curl_mime_data)                                                                              \
    F(curl_mime_filedata)                                                                          \
    F(curl_mime_filename)                                                                          \
    F(curl_mime_free)                                                                              \
    F(curl_mime_init)                                                                              \
    F(curl_mime_name)                                                                              \
    F(curl_mime_type)                                                                              \
    F(curl_multi_add_handle)                                                                       \
    F(curl_multi_cleanup)                                                                          \
    F(curl_multi_info_read)                                                                        \
    F(curl_multi_init)                                                                             \
    F(curl_multi_perform)                                                                          \
    F(curl_multi_poll)                                                                             \
    F(curl_multi_remove_handle)                                                                    \
    F(curl_slist_append)                                                                           \
    F(curl_slist_free_all)                                                                         \
    F(curl_url)                                                                                    \
    F(curl_url_cleanup)                                                                            \
    F(curl_url_get)                                                                                \
    F(curl_url_set)

typedef struct {
    SL_CURL(SL_LIBRARY_FIELD)
} sl_curl;

/* *out stays for as long as the process. Errors: SL_SYS it is not there. */
sl_code sl_curl_load(const sl_curl **out, sl_err *err);

#endif
