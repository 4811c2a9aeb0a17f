/* process.h - what the kernel says of processes. */
#ifndef SL_PROCESS_H
#define SL_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct {
    char state; /* R, S, D, T (stopped), t (traced), Z ... */
    pid_t parent;
    uint64_t faults;   /* pages that it touched anew, of memory or of files */
    uint64_t io_bytes; /* read and written, by whatever call; 0: not known */
    uint64_t user_ticks,
        system_ticks; /* CPU time of all its threads, in 1 / sysconf(_SC_CLK_TCK) s */
} sl_process;

/* false: there is no such process, or no /proc. */
bool sl_process_look(sl_process *out, pid_t pid);

/* The process is `ancestor`, or comes from it within `generations`. */
bool sl_process_is_of(pid_t pid, pid_t ancestor, int generations);
/* The processes that come from this one: its children, theirs, and so on, without itself; at most
 * `room` of them. Returns how many. They may have ended by then. */
int sl_process_offspring(pid_t pid, pid_t *out, int room);

/* How many processes of this machine the kernel has killed for want of memory (/proc/vmstat,
 * oom_kill); 0 where it does not tell. */
uint64_t sl_out_of_memory_kills(void);

#endif
