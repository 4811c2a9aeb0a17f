/* library.h - a shared library that is loaded when its functions are first needed: FFmpeg's bring a
 * hundred others, which would be most of the time in which a program starts.
 *
 * The functions are fields of a struct, from a list of their names that is written once:
 *
 *     #define LIST(F) F(av_frame_alloc) F(av_frame_free)
 *     static struct { LIST(SL_LIBRARY_FIELD) } av;
 *     #define ROW(name) {#name, &av.name},
 *     static const sl_library_function ROWS[] = {LIST(ROW)};
 *     static sl_library library = SL_LIBRARY(libavutil, LIBAVUTIL_VERSION_MAJOR, ROWS); */
#ifndef SL_LIBRARY_H
#define SL_LIBRARY_H

#include "common/err.h"

#include <stdbool.h>

/* A field of the function's own type and name. */
#define SL_LIBRARY_FIELD(name) __typeof__(&name) name;

typedef struct {
    const char *name;
    void *field; /* a pointer to function */
} sl_library_function;

typedef struct {
    const char *file; /* where the loader looks, of the version that this was built with */
    const char *what; /* for people, as "FFmpeg's libavutil" */
    const sl_library_function *functions;
    int count;
    bool loaded;
} sl_library;

/* "libavutil.so.57" of (libavutil, LIBAVUTIL_VERSION_MAJOR). */
#define SL_LIBRARY_FILE(name, major) SL_LIBRARY_FILE_(name, major)
#define SL_LIBRARY_FILE_(name, major) #name ".so." #major

/* A library of FFmpeg with the functions of an array. */
#define SL_LIBRARY(name, major, rows)                                                              \
    {                                                                                              \
        SL_LIBRARY_FILE(name, major), "FFmpeg's " #name, rows, sizeof rows / sizeof *rows, false   \
    }

/* All fields are filled afterwards, for as long as the process lives; any thread, any number of
 * times. Errors: SL_SYS, the file or one of the functions is not there. */
sl_code sl_library_load(sl_library *l, sl_err *err);

#endif
