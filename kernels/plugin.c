/* plugin.c - finds sluice_cuda.so beside the program, opens it once and hands out its
 * table. */
#include "kernels/plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "kernels/comm_body.h"

/* The plug-in calls these, whether or not the program does: one name of each object file
 * keeps that file in the program, and the link option -rdynamic shows all of its names to
 * the plug-in. */
typedef void any_function(void);
static any_function *const LENT[] __attribute__((used)) = {
    (any_function *)sl_fail, (any_function *)sl_log, (any_function *)sl_view,
    (any_function *)sl_ctx_fail, (any_function *)sl_comm_release};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const sl_plugin *plugin; /* NULL: `failure` says why */
static sl_err failure;

/* The file that this code lies in: the program, or libsluice-stage.so in somebody else's. */
static bool find_self(char *path, size_t size)
{
    Dl_info is;
    if (dladdr((void *)&once, &is) && is.dli_fname && strstr(is.dli_fname, ".so") &&
        realpath(is.dli_fname, path))
        return true;
    ssize_t n = readlink("/proc/self/exe", path, size - 1);
    if (n > 0) path[n] = 0;
    return n > 0;
}

/* SLUICE_CUDA, or sluice_cuda.so in the folder of this program or library. */
static sl_code find(char *path, size_t size)
{
    static const char name[] = "sluice_cuda.so";
    const char *given = getenv("SLUICE_CUDA");
    char self[PATH_MAX];
    if (given && *given) {
        if ((size_t)snprintf(path, size, "%s", given) < size) return SL_OK;
        return sl_fail(&failure, SL_ARG,
                       "SLUICE_CUDA: a path of %zu characters, want fewer than %zu", strlen(given),
                       size);
    }
    if (!find_self(self, sizeof self))
        return sl_fail(
            &failure, SL_SYS,
            "cannot find this program's folder, where %s lies: set SLUICE_CUDA to its path", name);
    char *slash = strrchr(self, '/');
    if (slash) slash[1] = 0;
    if ((size_t)snprintf(path, size, "%s%s", slash ? self : "", name) >= size)
        return sl_fail(&failure, SL_SYS, "%s: the folder's path is too long", self);
    return SL_OK;
}

/* dlerror's text without the path that it may begin with. */
static const char *reason(const char *path)
{
    const char *text = dlerror();
    size_t n = strlen(path);
    if (!text) return "no reason given";
    return strncmp(text, path, n) == 0 && strncmp(text + n, ": ", 2) == 0 ? text + n + 2 : text;
}

static void open_plugin(void)
{
    char path[4096];
    if (find(path, sizeof path)) return;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        sl_fail(&failure, SL_ARG, "CUDA plug-in %s: %s", path, reason(path));
        return;
    }
    const sl_plugin *found = dlsym(library, "sl_plugin_entry");
    if (!found) {
        sl_fail(&failure, SL_ARG,
                "CUDA plug-in %s: it has no sl_plugin_entry, so it is no plug-in of sluice", path);
        dlclose(library);
    } else if (found->abi != SL_PLUGIN_ABI) {
        sl_fail(&failure, SL_ARG,
                "CUDA plug-in %s: its interface is number %d, want %d: build program and plug-in "
                "together",
                path, found->abi, SL_PLUGIN_ABI);
        dlclose(library);
        /* never closed: contexts, slabs and CUDA's own threads live in it until the
         * process ends */
    } else plugin = found;
}

const sl_plugin *sl_plugin_cuda(sl_err *err)
{
    pthread_once(&once, open_plugin);
    if (!plugin && err) *err = failure;
    return plugin;
}
