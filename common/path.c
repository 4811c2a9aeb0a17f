/* path.c - file paths of bounded length. */
#include "common/path.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

sl_code sl_path_join(char out[SL_PATH], const char *dir, const char *name, sl_err *err)
{
    int n = snprintf(out, SL_PATH, "%s/%s", dir, name);
    if (n < 0 || n >= SL_PATH)
        return sl_fail(err, SL_ARG, "path %.60s.../%s is longer than %d bytes", dir, name,
                       SL_PATH - 1);
    return SL_OK;
}

const char *sl_path_last(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool sl_ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcasecmp(name + n - m, end);
}

bool sl_path_there(const char *path)
{
    struct stat st;
    return !lstat(path, &st);
}
