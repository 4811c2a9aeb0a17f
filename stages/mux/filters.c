/* filters.c - libavfilter by dlopen. */
#include "stages/mux/filters.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <string.h>

#define QUOTED(x) #x
#define VALUE(x) QUOTED(x)
#define NAME "libavfilter.so." VALUE(LIBAVFILTER_VERSION_MAJOR)

sl_code sl_filters_load(const sl_filters **out, sl_err *err)
{
    static sl_filters filters;
    static bool loaded;
    void *library = loaded ? NULL : dlopen(NAME, RTLD_NOW | RTLD_LOCAL);
    void *found;
    *out = &filters;
    if (loaded) return SL_OK;
    if (!library) return sl_fail(err, SL_SYS, "GIF: %s, want libavfilter", dlerror());
        /* a function's address is copied: ISO C has no cast to it */
#define FIND(name)                                                                                 \
    if (!(found = dlsym(library, #name)))                                                          \
        return sl_fail(err, SL_SYS, "GIF: " NAME " has no %s", #name);                             \
    memcpy(&filters.name, &found, sizeof found);
    SL_FILTERS(FIND)
#undef FIND
    loaded = true;
    return SL_OK;
}
