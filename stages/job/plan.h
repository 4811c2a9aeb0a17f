/* plan.h - the bytes that a run takes, before it takes anything; and the refusal of what does
 * not fit. */
#ifndef SL_PLAN_H
#define SL_PLAN_H

#include "common/conf.h"
#include "stages/job/request.h"

/* The bytes of one process, an entry of conf's stages. */
typedef struct {
    bool runs; /* some job of the model has work for the process */
    sl_role role;
    char name[SL_CONF_NAME];
    char device[16];
    size_t mapped;  /* weights that stay in their files, mapped (CPU): page cache, which the
                     * machine may take back */
    size_t weights; /* weights in memory of their own */
    size_t kept;    /* of the arena: what a job keeps from its beginning to its end */
    size_t work;    /* of the arena: the most beside `kept` */
    size_t slots;   /* of the pools in which the stage receives: in host memory as far as these jobs
                     * fill them, on a device for conf's limits */
    size_t device_slots; /* those of `slots` that are device memory; the rest is the host's */
    size_t window;       /* of a rank: what the others of a team write to, for conf's limits */
    size_t context;      /* on a GPU: what driver and libraries take for the process, and the most
                     * that operations take beside the arena */
    size_t host;         /* host memory beside all that: pictures, latents, the encoder, the process
                     * itself */
} sl_stage_plan;

typedef struct {
    int count;
    sl_stage_plan stages[SL_CONF_SEATS]; /* as conf's; of the job that takes most of each */
    bool from_files; /* weights count as they are stored; false: some are not there and count in
                      * the activations' type */
} sl_run_plan;

/* Bytes of every stage for the jobs' sizes, steps and caches; b->from leaves out what a
 * replay does not compute. A rank counts with the team that the configuration fixes, else alone,
 * which takes most. Errors: SL_SHAPE, SL_FORMAT a checkpoint that does not hold
 * what the networks need. */
sl_code sl_plan_make(sl_run_plan *out, const sl_batch *b, const sl_model *model,
                     const sl_conf *conf, sl_err *err);
/* What a stage takes of "cpu" or "cuda:N", mapped weights left out. */
size_t sl_plan_private(const sl_stage_plan *s, const char *device);
/* Mapped weights of the i-th stage, unless an earlier one has mapped the same files. */
size_t sl_plan_mapped(const sl_run_plan *plan, int i);

typedef struct {
    uint64_t total, available; /* MemTotal, MemAvailable */
    uint64_t group; /* what the tightest cgroup (v1 or v2) around this process still gives, its page
                     * cache counted as free; UINT64_MAX: no limit below `total` */
    uint64_t address; /* of one process (ulimit -v); UINT64_MAX: no limit */
    uint64_t gives;   /* the smaller of `available` and `group` */
} sl_machine_memory;
/* Ask the machine. Files under `root` ("" for this machine): proc/meminfo, proc/self/cgroup,
 * sys/fs/cgroup. Errors: SL_SYS. */
sl_code sl_plan_machine(sl_machine_memory *out, const char *root, sl_err *err);

/* What memory has for the weights of a run that fits. */
typedef struct {
    uint64_t mapped; /* bytes of weights that stay in their files, mapped */
    uint64_t held;   /* those of `mapped` that memory holds; the rest is read at every step */
} sl_admission;

/* Refuse what does not fit in host memory or on a GPU (b->gpus): SL_NOMEM with bytes
 * wanted, bytes there, the largest stage. Errors also: as sl_plan_make, sl_plan_machine. */
sl_code sl_plan_admit(sl_admission *out, const sl_batch *b, const sl_model *model,
                      const sl_conf *conf, sl_err *err);

#endif
