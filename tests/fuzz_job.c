/* fuzz_job.c - any bytes as job.json: refused with one line, or read; what is read and
 * passes the checks must write and read back. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/job.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];

static void forget(void)
{
    unlink(path);
}

#define SAME_text(a, b) (!strcmp(a, b))
#define SAME_object(a, b) SAME_text(a, b)
#define SAME_path(a, b) (!strcmp(a, b))
#define SAME_int(a, b) ((a) == (b))
#define SAME_u64(a, b) ((a) == (b))
#define SAME_real(a, b) ((a) == (b))
#define SAME_flag(a, b) ((a) == (b))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_job job, again;
    sl_err err = {0};
    if (!*path) {
        /* in memory where there is some: the file is written often */
        snprintf(path, sizeof path, "%s/fuzz-job-%d.json",
                 access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm", (int)getpid());
        atexit(forget);
    }
    if (sl_job_init(&job, &err)) abort();
    if (sl_job_parse(&job, (const char *)data, size, "x", &err)) {
        if (!err.msg[0] || strchr(err.msg, '\n')) abort();
        sl_job_free(&job);
        return 0;
    }
    if (sl_job_check(&job, &err) && (!err.msg[0] || strchr(err.msg, '\n'))) abort();
    if (sl_job_write(&job, path, &err) || sl_job_read(&again, path, &err)) abort();
#define X(kind, name, def)                                                                         \
    if (!SAME_##kind(job.name, again.name)) abort();
    SL_JOB_FIELDS(X)
#undef X
    sl_job_free(&job);
    sl_job_free(&again);
    return 0;
}
