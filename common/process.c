/* process.c - /proc/PID/stat, /proc/PID/io, /proc/vmstat. */
#include "common/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t io_of(pid_t pid)
{
    char path[64], text[512];
    uint64_t in = 0, out = 0;
    snprintf(path, sizeof path, "/proc/%d/io", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0) close(fd);
    if (n <= 0) return 0;
    text[n] = 0;
    return sscanf(text, "rchar: %" SCNu64 " wchar: %" SCNu64, &in, &out) == 2 ? in + out : 0;
}

/* All but io_bytes. */
static bool stat_of(sl_process *out, pid_t pid)
{
    char path[64], text[1024];
    uint64_t minor, major;
    int parent;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0) close(fd);
    if (n <= 0) return false;
    text[n] = 0;
    const char *end = strrchr(text, ')'); /* of the name, which may hold anything */
    if (!end ||
        sscanf(end + 1,
               " %c %d %*d %*d %*d %*d %*u %" SCNu64 " %*u %" SCNu64 " %*u %" SCNu64 " %" SCNu64,
               &out->state, &parent, &minor, &major, &out->user_ticks, &out->system_ticks) != 6)
        return false;
    out->parent = parent;
    out->faults = minor + major;
    out->io_bytes = 0;
    return true;
}

bool sl_process_look(sl_process *out, pid_t pid)
{
    if (!stat_of(out, pid)) return false;
    out->io_bytes = io_of(pid);
    return true;
}

bool sl_process_is_of(pid_t pid, pid_t ancestor, int generations)
{
    sl_process p;
    while (pid != ancestor && generations-- > 0 && stat_of(&p, pid)) pid = p.parent;
    return pid > 0 && pid == ancestor;
}

typedef struct {
    pid_t pid, parent;
} kinship;

/* Every process of the machine, the caller's to free; NULL: no memory, or no /proc. */
static kinship *all_processes(size_t *count)
{
    DIR *d = opendir("/proc");
    struct dirent *e;
    kinship *all = NULL;
    size_t room = 0;
    sl_process p;
    *count = 0;
    while (d && (e = readdir(d))) {
        const pid_t pid = (pid_t)strtol(e->d_name, NULL, 10);
        if (pid <= 0 || !stat_of(&p, pid)) continue;
        if (*count == room) {
            kinship *more = realloc(all, (room += 256) * sizeof *all);
            if (!more) break;
            all = more;
        }
        all[(*count)++] = (kinship){pid, p.parent};
    }
    if (d) closedir(d);
    return all;
}

int sl_process_offspring(pid_t pid, pid_t *out, int room)
{
    size_t count;
    kinship *all = all_processes(&count);
    int n = 0;
    for (int at = -1; all && at < n; at++) /* children of pid, then those of each that was found */
        for (size_t i = 0; i < count && n < room; i++)
            if (all[i].parent == (at < 0 ? pid : out[at])) out[n++] = all[i].pid;
    free(all);
    return n;
}

uint64_t sl_out_of_memory_kills(void)
{
    FILE *f = fopen("/proc/vmstat", "re");
    char line[128];
    unsigned long long n = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "oom_kill %llu", &n) == 1) break;
    if (f) fclose(f);
    return n;
}
