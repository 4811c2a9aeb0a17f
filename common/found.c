/* found.c - what stands in the place of a model's file. */
#include "common/found.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/path.h"

static size_t first_bytes(const char *path, char *to, size_t n)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t got = fd < 0 ? 0 : read(fd, to, n);
    if (fd >= 0) close(fd);
    return got > 0 ? (size_t)got : 0;
}

bool sl_found(const char *path, char *out, size_t size)
{
    static const struct {
        const char *bytes;
        size_t at, n;
        const char *is;
    } KINDS[] = {
        {"version https://git-lfs", 0, 23, "a Git LFS pointer (`git lfs pull` fetches the file)"},
        {"GGUF", 0, 4, "a GGUF file (want a folder of safetensors)"},
        {"PK\3\4", 0, 4, "a PyTorch pickle in a zip (want safetensors)"},
        {"\x80\2", 0, 2, "a Python pickle (want safetensors)"},
        {"<!DOCTYPE", 0, 9, "a web page, not the file itself"},
        {"<html", 0, 5, "a web page, not the file itself"},
        {"{\"", 8, 2, "a single safetensors file (want a checkpoint folder)"},
    };
    char head[64] = "", target[SL_PATH];
    struct stat st;
    *out = 0;
    if (lstat(path, &st)) return false;
    if (S_ISLNK(st.st_mode) && stat(path, &st)) {
        ssize_t n = readlink(path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = 0;
        snprintf(out, size, "a dangling link to %.300s", target);
        return true;
    }
    if (!S_ISREG(st.st_mode)) return false;
    if (st.st_size == 0) return snprintf(out, size, "an empty file"), true;
    const size_t n = first_bytes(path, head, sizeof head);
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (n >= KINDS[i].at + KINDS[i].n &&
            !memcmp(head + KINDS[i].at, KINDS[i].bytes, KINDS[i].n))
            return snprintf(out, size, "%s", KINDS[i].is), true;
    return false;
}

static bool ends_with(const char *s, const char *tail)
{
    const size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcmp(s + n - m, tail);
}

bool sl_found_weights(const char *dir, const char *stem, char *out, size_t size)
{
    static const char *const OTHERS[] = {".bin", ".bin.index.json", ".ckpt", ".pth", ".pt",
                                         ".gguf"};
    char path[SL_PATH], what[512];
    int best = 0;
    DIR *d = opendir(dir);
    *out = 0;
    for (const struct dirent *e; d && (e = readdir(d));) {
        const char *name = e->d_name;
        int rank = 0;
        if (*name == '.') continue;
        const bool dangling = !sl_path_join(path, dir, name, NULL) && access(path, F_OK) &&
                              sl_found(path, what, sizeof what);
        if (dangling && !strncmp(name, stem, strlen(stem))) rank = 4;
        else if (ends_with(name, ".safetensors")) rank = !strncmp(name, stem, strlen(stem)) ? 3 : 2;
        for (int i = 0; i < 6 && !rank; i++) rank = ends_with(name, OTHERS[i]);
        if (rank <= best) continue;
        best = rank;
        if (rank == 4) snprintf(out, size, "%s is %s", name, what);
        else if (rank == 3)
            snprintf(out, size, "%s is there: a variant, or a shard without its index", name);
        else if (rank == 2) snprintf(out, size, "%s is there: weights under another name", name);
        else snprintf(out, size, "%s is there: weights of another kind", name);
    }
    if (d) closedir(d);
    return best > 0;
}
