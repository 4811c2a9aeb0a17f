/* temporary.c - finding and removing the temporaries of dead writers. */
#include "common/temporary.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void sl_temporary_sweep(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    char dir[PATH_MAX];
    if (snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - path + 1) : 2,
                 slash ? path : "./") >= (int)sizeof dir)
        return;
    DIR *d = opendir(dir);
    struct dirent *e;
    while (d && (e = readdir(d))) {
        int pid = 0, end = 0;
        unsigned count;
        if (strncmp(e->d_name, name, n) ||
            sscanf(e->d_name + n, ".tmp-%d-%u%n", &pid, &count, &end) != 2 ||
            e->d_name[n + (size_t)end] || pid <= 0)
            continue;
        if (kill(pid, 0) && errno == ESRCH) unlinkat(dirfd(d), e->d_name, 0);
    }
    if (d) closedir(d);
}
