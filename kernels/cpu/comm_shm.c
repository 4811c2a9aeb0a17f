/* comm_shm.c - ranks on the CPU: a rank's window is shared memory behind its control
 * block, which the others map and write to with memcpy. Operations are over when they
 * return, but for the marks of the others. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/comm_body.h"

static sl_code map_window(sl_comm *c, int rank, int fd, size_t bytes, sl_err *err)
{
    if (!bytes) return SL_OK;
    void *w = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, SL_COMM_PAGE);
    if (w == MAP_FAILED) return sl_fail_errno(err, errno, "comm: window of %zu bytes", bytes);
    sl_comm_set_window(c, rank, w, bytes);
    return SL_OK;
}

static sl_code shm_open_window(sl_comm *c, sl_comm_handle *h, sl_err *err)
{
    size_t bytes = (size_t)h->window_bytes;
    if (ftruncate(sl_comm_fd(c), (off_t)(SL_COMM_PAGE + bytes)))
        return sl_fail_errno(err, errno, "comm: window of %zu bytes", bytes);
    return map_window(c, sl_comm_rank(c), sl_comm_fd(c), bytes, err);
}

static sl_code shm_connect(sl_comm *c, const sl_comm_handle *h, sl_err *err)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", h->pid, h->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return sl_fail(err, SL_GONE, "comm: rank %d has ended", h->rank);
    sl_code rc = map_window(c, h->rank, fd, (size_t)h->window_bytes, err);
    close(fd);
    return rc;
}

static void shm_disconnect(sl_comm *c, int rank)
{
    void *w = sl_comm_window_of(c, rank);
    if (w) munmap(w, sl_comm_window_bytes(c, rank));
    sl_comm_set_window(c, rank, NULL, 0);
}

static void shm_close(sl_comm *c)
{
    shm_disconnect(c, sl_comm_rank(c));
}

static void shm_settle(sl_ctx *ctx, sl_comm *c)
{
    (void)ctx; /* nothing is ever queued */
    sl_comm_beat(c);
}

static void copy_rows(char *to, size_t to_pitch, const sl_comm_part *p)
{
    for (size_t i = 0; i < p->rows; i++)
        memcpy(to + i * to_pitch, p->from + i * p->from_pitch, p->width);
}

static void shm_exchange(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value, int n,
                         const sl_comm_part parts[])
{
    (void)ctx;
    for (int i = 0; i < n; i++) {
        const sl_comm_part *p = &parts[i];
        copy_rows(sl_comm_window_of(c, p->rank) + p->to, p->to_pitch, p);
        if (p->rank != sl_comm_rank(c)) sl_comm_set_mark(c, p->rank, lane, value);
    }
}

const sl_comm_body sl_comm_shm = {.name = "shm",
                                  .open = shm_open_window,
                                  .connect = shm_connect,
                                  .disconnect = shm_disconnect,
                                  .close = shm_close,
                                  .exchange = shm_exchange,
                                  .wait = sl_comm_wait_marks,
                                  .settle = shm_settle};
