/* files.c - what a client does with files: copies, private directories, cleaning
 * up. */
#include "stages/job/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"

#define RUN_BASE                                                                                   \
    (SL_PATH - 256) /* most bytes of what holds run directories, so that what lies in
                                  * a job's folder has a path, too */

sl_code sl_copy_file(const char *from, const char *to, sl_err *err)
{
    char buf[1 << 16];
    int in = open(from, O_RDONLY | O_CLOEXEC), out = -1;
    ssize_t n = 0;
    sl_code rc = SL_OK;
    if (in < 0) return sl_fail_errno(err, errno, "%s", from);
    if ((out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)) < 0)
        rc = sl_fail_errno(err, errno, "%s", to);
    while (!rc && (n = read(in, buf, sizeof buf)) > 0)
        for (ssize_t at = 0, put; at < n && !rc; at += put)
            if ((put = write(out, buf + at, (size_t)(n - at))) < 0)
                rc = sl_fail_errno(err, errno, "%s", to), put = 0;
    if (!rc && n < 0) rc = sl_fail_errno(err, errno, "%s", from);
    close(in);
    if (out >= 0 && close(out) && !rc) rc = sl_fail_errno(err, errno, "%s", to);
    if (rc && out >= 0) unlink(to);
    return rc;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    remove(path);
    return 0;
}

void sl_remove_tree(const char *dir)
{
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

sl_code sl_make_dirs(const char *dir, sl_err *err)
{
    char path[SL_PATH];
    snprintf(path, sizeof path, "%s", dir);
    for (char *p = path + 1;; p++)
        if (*p == '/' || !*p) {
            char keep = *p;
            *p = 0;
            if (mkdir(path, 0777) && errno != EEXIST) return sl_fail_errno(err, errno, "%s", path);
            *p = keep;
            if (!keep) break;
        }
    struct stat st;
    if (stat(dir, &st) || !S_ISDIR(st.st_mode))
        return sl_fail(err, SL_SYS, "%s is no directory", dir);
    return SL_OK;
}

sl_code sl_absolute_path(char out[SL_PATH], const char *path, sl_err *err)
{
    char cwd[SL_PATH];
    if (*path == '/') {
        if (snprintf(out, SL_PATH, "%s", path) < SL_PATH) return SL_OK;
        return sl_fail(err, SL_ARG, "path %.60s... is longer than %d bytes", path, SL_PATH - 1);
    }
    if (!getcwd(cwd, sizeof cwd)) return sl_fail_errno(err, errno, "current directory");
    return sl_path_join(out, cwd, path, err);
}

sl_code sl_program_dir(char out[SL_PATH], sl_err *err)
{
    ssize_t n = readlink("/proc/self/exe", out, SL_PATH - 1);
    if (n < 0) return sl_fail_errno(err, errno, "/proc/self/exe");
    out[n] = 0;
    *strrchr(out, '/') = 0;
    return SL_OK;
}

sl_code sl_state_dir(char out[SL_PATH], sl_err *err)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    if (state && *state == '/') return sl_path_join(out, state, "sluice", err);
    if (!home || *home != '/') {
        const struct passwd *me = getpwuid(geteuid());
        home = me ? me->pw_dir : NULL;
    }
    if (!home || *home != '/')
        return sl_fail(err, SL_ARG, "no home directory that would hold a server's state");
    return sl_path_join(out, home, ".local/state/sluice", err);
}

sl_code sl_regular_file(const char *path, sl_err *err)
{
    struct stat st;
    if (stat(path, &st)) return sl_fail_errno(err, errno, "%s", path);
    if (S_ISREG(st.st_mode)) return SL_OK;
    return sl_fail(err, SL_ARG, "%s is %s, want a file", path,
                   S_ISDIR(st.st_mode)    ? "a directory"
                   : S_ISFIFO(st.st_mode) ? "a pipe"
                                          : "a device or socket");
}

sl_code sl_can_write_file(const char *path, const char *what, bool stream, sl_err *err)
{
    char probe[SL_PATH + 16];
    struct stat st;
    if (stream && !stat(path, &st) && (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode)) &&
        !access(path, W_OK))
        return SL_OK;
    if (!access(path, F_OK) && sl_regular_file(path, err))
        return sl_context(err, SL_ARG, "%s", what);
    if (lstat(path, &st) && errno == ENAMETOOLONG)
        return sl_fail(err, SL_ARG, "%s %s cannot be written: %s", what, path, strerror(errno));
    const char *slash = strrchr(path, '/');
    snprintf(probe, sizeof probe, "%.*s.probe%d", slash ? (int)(slash + 1 - path) : 0, path,
             (int)getpid());
    int fd = open(probe, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return sl_fail(err, SL_ARG, "%s %s cannot be written: %s", what, path, strerror(errno));
    close(fd);
    unlink(probe);
    return SL_OK;
}

sl_code sl_can_make_dir(const char *path, sl_err *err)
{
    char at[SL_PATH];
    struct stat st;
    sl_code rc = sl_absolute_path(at, path, err);
    if (rc) return rc;
    while (stat(at, &st)) { /* the nearest ancestor that is there */
        if (errno != ENOENT) return sl_fail_errno(err, errno, "%s", at);
        char *slash = strrchr(at, '/');
        slash[slash == at] = 0;
    }
    if (!S_ISDIR(st.st_mode)) return sl_fail(err, SL_ARG, "%s is no directory", at);
    char probe[SL_PATH + 32];
    snprintf(probe, sizeof probe, "%s/.sluice-probe-XXXXXX", at);
    if (!mkdtemp(probe))
        return sl_fail(err, SL_ARG, "%s cannot be written: %s", at, strerror(errno));
    rmdir(probe);
    return SL_OK;
}

bool sl_same_file(const char *a, const char *b)
{
    char dir_a[SL_PATH], dir_b[SL_PATH];
    struct stat sa, sb;
    if (!*a || !*b) return false;
    if (!stat(a, &sa) && !stat(b, &sb)) return sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
    if (sl_absolute_path(dir_a, a, NULL) || sl_absolute_path(dir_b, b, NULL)) return false;
    char *slash_a = strrchr(dir_a, '/'), *slash_b = strrchr(dir_b, '/');
    if (strcmp(slash_a, slash_b)) return false;
    slash_a[slash_a == dir_a] = slash_b[slash_b == dir_b] = 0;
    return !stat(dir_a, &sa) && !stat(dir_b, &sb) && sa.st_dev == sb.st_dev &&
           sa.st_ino == sb.st_ino;
}

/* The owner of this directory holds its lock for as long as it lives. */
static bool is_abandoned(const char *dir)
{
    char lock[SL_PATH + 8];
    struct stat st;
    if (lstat(dir, &st) || !S_ISDIR(st.st_mode) || st.st_uid != getuid()) return false;
    if (time(NULL) - st.st_mtime < 10) return false; /* perhaps it is being made right now */
    snprintf(lock, sizeof lock, "%s/lock", dir);
    int fd = open(lock, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    bool free_now = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (fd >= 0) close(fd);
    return free_now;
}

static void sweep(const char *base, const char *prefix)
{
    DIR *d = opendir(base);
    struct dirent *e;
    char path[SL_PATH];
    while (d && (e = readdir(d)))
        if (!strncmp(e->d_name, prefix, strlen(prefix)) &&
            snprintf(path, sizeof path, "%s/%s", base, e->d_name) < SL_PATH && is_abandoned(path))
            sl_remove_tree(path);
    if (d) closedir(d);
}

/* Where run directories are made. TMPDIR is not passed over without a word. */
static const char *base_of_runs(void)
{
    const char *tmp = getenv("TMPDIR"), *base = access("/var/tmp", W_OK) ? "/tmp" : "/var/tmp";
    const size_t n = tmp ? strlen(tmp) : 0;
    if (!n) return base;
    if (n > RUN_BASE)
        sl_log(SL_LOG_WARN, "TMPDIR has %zu bytes, want at most %d: the run's folder is in %s", n,
               RUN_BASE, base);
    else if (!strncmp(tmp, "/run/user/", 10)) /* likewise XDG_RUNTIME_DIR, which nobody asks */
        sl_log(SL_LOG_WARN,
               "TMPDIR is %s, which goes at the last logout, and a job may outlive it: the run's "
               "folder is in %s",
               tmp, base);
    else if (access(tmp, W_OK))
        sl_log(SL_LOG_WARN, "TMPDIR %s cannot be written: %s; the run's folder is in %s", tmp,
               strerror(errno), base);
    else return tmp;
    return base;
}

sl_code sl_make_run_dir(char out[SL_PATH], const char *wanted, sl_err *err)
{
    char prefix[48], lock[SL_PATH];
    sl_code rc;
    if (*wanted) {
        if ((rc = sl_absolute_path(out, wanted, err)) || (rc = sl_make_dirs(out, err))) return rc;
        if (chmod(out, 0700)) return sl_fail_errno(err, errno, "%s", out);
    } else {
        const char *base = base_of_runs();
        snprintf(prefix, sizeof prefix, "sluice-%u-", (unsigned)getuid());
        sweep(base, prefix);
        snprintf(out, SL_PATH, "%.*s/%sXXXXXX", RUN_BASE, base, prefix);
        if (!mkdtemp(out)) return sl_fail_errno(err, errno, "%s", out);
    }
    if ((rc = sl_path_join(lock, out, "lock", err))) return rc;
    /* kept open: the lock ends with this process */
    int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB)) {
        rc = errno == EWOULDBLOCK
                 ? sl_fail(err, SL_BUSY, "run directory %s belongs to another running sluice", out)
                 : sl_fail_errno(err, errno, "%s", lock);
        if (fd >= 0) close(fd);
    }
    return rc;
}
