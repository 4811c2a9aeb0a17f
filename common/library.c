/* library.c - dlopen, and dlsym for each function. */
#include "common/library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

static sl_code load(sl_library *l, sl_err *err)
{
    void *library = dlopen(l->file, RTLD_NOW | RTLD_LOCAL);
    if (!library) return sl_fail(err, SL_SYS, "%s, want %s", dlerror(), l->what);
    for (int i = 0; i < l->count; i++) {
        void *found = dlsym(library, l->functions[i].name);
        if (!found)
            return sl_fail(err, SL_SYS, "%s has no function %s, want %s", l->file,
                           l->functions[i].name, l->what);
        /* a function's address is copied: ISO C has no cast to it */
        memcpy(l->functions[i].field, &found, sizeof found);
    }
    l->loaded = true;
    return SL_OK;
}

sl_code sl_library_load(sl_library *l, sl_err *err)
{
    pthread_mutex_lock(&one);
    const sl_code rc = l->loaded ? SL_OK : load(l, err);
    pthread_mutex_unlock(&one);
    return rc;
}
