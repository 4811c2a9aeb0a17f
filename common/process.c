/* process.c - /proc/PID/stat, /proc/PID/io, /proc/vmstat. */
#include "common/process.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
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

bool sl_process_look(sl_process *out, pid_t pid)
{
    char path[64], text[1024];
    uint64_t minor, major;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0) close(fd);
    if (n <= 0) return false;
    text[n] = 0;
    const char *end = strrchr(text, ')'); /* of the name, which may hold anything */
    if (!end ||
        sscanf(end + 1,
               " %c %*d %*d %*d %*d %*d %*u %" SCNu64 " %*u %" SCNu64 " %*u %" SCNu64 " %" SCNu64,
               &out->state, &minor, &major, &out->user_ticks, &out->system_ticks) != 5)
        return false;
    out->faults = minor + major;
    out->io_bytes = io_of(pid);
    return true;
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
