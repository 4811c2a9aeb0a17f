/* cli.h - the parts of bin/sluice: options -> jobs, a running pipeline, the report. */
#ifndef SL_CLI_H
#define SL_CLI_H

#include "common/conf.h"
#include "common/job.h"
#include "common/trace.h"
#include "common/wire.h"
#include "graphs/weights.h"

#define EXIT_OK 0
#define EXIT_FAILED 1
#define EXIT_REFUSED 2

#define MAX_RUN_JOBS 1024

/* ---- devices.c ---- */

#define MAX_GPUS 64

typedef struct {
    int count; /* devices that are there */
    struct {
        uint64_t total, free; /* bytes; 0: nobody asked for this one */
        char name[96];
        int sm; /* 90 for H100 */
    } gpu[MAX_GPUS];
} gpu_machine;

/* ---- options.c ---- */

/* One job as the user gave it, then as it will run. */
typedef struct {
    sl_job spec;
    int64_t max_area;
    /* given by the user, or by the checkpoint's sluice.json; the others get their values
     * in the checks */
    bool has_prompt, has_negative, has_seed, has_noise, has_image, has_last_image, has_width,
        has_height, has_max_area, has_frames, has_fps, has_steps, has_guidance, has_guidance_2,
        has_shift, has_sampler, has_crf, has_fbcache, has_fbcache_warmup, has_fbcache_max_hits,
        has_fbcache_final;
    char dump_dir[SL_PATH], json[SL_PATH];
    int line; /* of the jobs file; 0: the command line */
    /* set by the checks */
    uint64_t id;
    char dir[SL_PATH];        /* in the spool */
    char replay_dir[SL_PATH]; /* dumped hand-overs to start from; "" none */
} cli_job;

typedef struct {
    cli_job base; /* from the command line; each line of a jobs file starts as a copy of it */
    char conf[SL_PATH], device[64], jobs_file[SL_PATH];
    bool quiet;
    char from[16], replay_dir[SL_PATH]; /* replay */
    int job_count;
    cli_job *jobs;
    gpu_machine gpus; /* set by the checks, for the devices that stages want */
} cli_options;

/* `sluice run` or `sluice replay` (with its DIR as first argument). Everything is parsed,
 * nothing looked at. *out is freed by the caller.
 * Errors: SL_ARG one line. */
sl_code cli_parse(cli_options *out, bool replay, int argc, char **argv, sl_err *err);
void cli_options_free(cli_options *o);
void cli_usage(FILE *to);

#define DEFAULT_AREA (832 * 480) /* the reference pipeline's own default size */
/* Width and height come together, and beside them no area. Errors: SL_ARG; an area out of
 * range. */
sl_code check_size(const cli_job *j, sl_err *err);

/* What the makers of a checkpoint mean it to be run with: DIR/sluice.json, one JSON
 * object with the keys of a jobs file's line that describe neither what is asked for nor
 * what is written (OF_MODEL in the table). Diffusers does not look at it. */
#define MODEL_DEFAULTS "sluice.json"
#define MODEL_DEFAULTS_BYTES (1 << 20) /* at most */
/* *out has what the file gives, has_... tell which; nothing if there is no file.
 * sl_job_free(&out->spec), also after an error.
 * Errors: SL_SYS, SL_FORMAT, SL_ARG one line with the file's name. */
sl_code defaults_read(cli_job *out, const char *dir, sl_err *err);
/* Where the user said nothing: a size or an area of the user's stands for all three keys,
 * --guidance for both experts'. */
sl_code defaults_apply(cli_job *j, const cli_job *defaults, sl_err *err);
bool defaults_print(const cli_job *defaults, const char *before,
                    FILE *to); /* "BEFOREframes 33, steps 12"; false: nothing, there is none */

/* --device, for all stages that compute on one. Errors: SL_ARG no such kind of device, or
 * a mux that is to work on a GPU. */
sl_code use_devices(const cli_options *o, sl_conf *conf, sl_err *err);
/* The GPUs that stages want. Nothing is asked if none does. Errors: SL_ARG the plug-in
 * cannot be opened (which file, why), a device is not there (how many are) or too old;
 * SL_CUDA; SL_TIMEOUT. */
sl_code ask_gpus(gpu_machine *out, const sl_conf *conf, sl_err *err);

/* ---- check.c: refuse before any work ---- */

/* The checkpoint's sluice.json beneath every job of a run or a plan; a replay's jobs are
 * complete without it. Errors: as defaults_read. */
sl_code use_defaults(cli_options *o, const sl_model *model, const sl_conf *conf, sl_err *err);

/* Complete every job from the checkpoint and configuration, and look at everything that
 * can be looked at without computing: checkpoint headers, pictures, noise, prompts,
 * outputs, limits. conf's limits grow to fit the jobs when no configuration file was
 * given. */
sl_code cli_check(cli_options *o, sl_model *model, sl_conf *conf, sl_err *err);

/* ---- report.c ---- */

typedef struct {
    double seconds, cond_metric, uncond_metric;
    /* 1, 0; -1: this step has no such branch, or is not known */
    int cond_computed, uncond_computed;
} step_record;

typedef struct {
    const cli_job *job;
    int64_t t0_ns, t1_ns;
    bool finished;
    sl_code code;
    char message[SL_TEXT];
    uint64_t bytes;
    step_record *steps; /* spec.steps of them */
    uint64_t peak_bytes[SL_ROLE_COUNT], arena_bytes[SL_ROLE_COUNT];
} job_record;

typedef struct {
    int count;
    job_record *jobs;
    sl_trace trace; /* spans of all jobs; job 0: of the processes */
    char device[SL_ROLE_COUNT][SL_STR64];
    uint64_t weight_bytes[SL_ROLE_COUNT];
    int restarts; /* of stages and dispatcher */
} report;

sl_code report_init(report *r, const cli_options *o, int64_t t0_ns, sl_err *err);
void report_free(report *r);
job_record *report_job(report *r, uint64_t id);
void report_message(report *r, const sl_msg *m); /* STEP, SPAN, STAGE */
/* JSON of one job, or {"jobs": [...]} of all when job is NULL. Errors: SL_SYS. */
sl_code report_write(const report *r, const job_record *job, const char *path, sl_err *err);
void report_print(const report *r, const job_record *job, FILE *to);

/* ---- run.c: the pipeline from start to end ---- */

/* Start the dispatcher, submit all jobs, watch, restart it when it dies, until every job
 * has ended. Returns an exit status; an error before any job ran is in *err. */
int cli_run(cli_options *o, const sl_model *model, sl_conf *conf, int64_t t0_ns, sl_err *err);

/* ---- files.c ---- */

sl_code copy_file(const char *from, const char *to, sl_err *err);
/* also to another file system; replaces `to` */
sl_code move_file(const char *from, const char *to, sl_err *err);
/* all files of one folder into another, which is made */
sl_code move_files(const char *from, const char *to, sl_err *err);
void remove_tree(const char *dir);
sl_code make_dirs(const char *dir, sl_err *err); /* mkdir -p */
sl_code absolute_path(char out[SL_PATH], const char *path, sl_err *err);
/* where this program lies, and the stages beside it */
sl_code program_dir(char out[SL_PATH], sl_err *err);
/* Refusals, without touching anything: SL_ARG "X is a directory, want a file"; a folder
 * that make_dirs could not make. */
sl_code regular_file(const char *path, sl_err *err);
sl_code can_make_dir(const char *path, sl_err *err);
/* Do two paths, there or still to be written, name the same file? "" is no file. */
bool same_file(const char *a, const char *b);
/* "sluice: ..." as one line on stderr, whatever bytes paths and messages hold. */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* A private run directory holding a lock for as long as this process lives; older ones
 * whose owner is dead are removed. */
sl_code make_run_dir(char out[SL_PATH], const char *wanted, sl_err *err);

/* ---- inspect.c ---- */

/* A part of a checkpoint that holds weights: its folder, the stem of its files, and the
 * networks that ask for them. */
typedef struct {
    const char *name, *stem;
    void (*load)(const sl_model *model, sl_loader *l);
} component;
#define MAX_COMPONENTS 5
/* the i-th that this model has; NULL past the last */
const component *component_at(const sl_model *model, int i);

int cli_inspect(int argc, char **argv);
/* Headers of all components of a checkpoint against what the networks need: the first
 * thing missing or misshapen. */
sl_code check_weights(const sl_model *model, sl_err *err);

/* ---- plan.c: what a run will take, before it takes anything ---- */

typedef struct {
    bool runs; /* the deployment has this stage */
    char device[16];
    /* weights that stay in their files, mapped: page cache, which the machine may take
     * back (CPU) */
    size_t mapped;
    size_t weights;      /* weights in memory of their own */
    size_t kept;         /* of the arena: what a job keeps from its beginning to its end */
    size_t work;         /* of the arena: the most beside that */
    size_t slots;        /* of the pools it receives in, as far as these jobs fill them */
    size_t device_slots; /* of these, what is its device's memory; the rest is the host's */
    size_t
        /* on a GPU: what driver and libraries take for the process, and the most that
         * operations take beside the arena */
        context;
    /* host memory beside all that: pictures, latents, the encoder, the process itself */
    size_t host;
} stage_plan;

typedef struct {
    stage_plan stages[SL_ROLE_COUNT]; /* of the job that takes most of it */
    /* weights as they are stored; false: some are not there and count as the activations'
     * type */
    bool from_files;
} run_plan;

/* Bytes of every stage for the jobs' sizes, steps and caches; o->from leaves out what a
 * replay does not compute. Errors: SL_SHAPE, SL_FORMAT a checkpoint that does not hold
 * what the networks need. */
sl_code plan_make(run_plan *out, const cli_options *o, const sl_model *model, const sl_conf *conf,
                  sl_err *err);
/* what a stage takes of "cpu" or "cuda:N", mapped weights left out */
size_t plan_private(const stage_plan *s, const char *device);

typedef struct {
    uint64_t total, available; /* MemTotal, MemAvailable */
    uint64_t
        /* what the tightest cgroup (v2) around this process still gives, its page cache
         * counted as free; UINT64_MAX: no limit */
        group;
    uint64_t gives; /* the smaller of the two */
} machine_memory;
/* Files under `root` ("" for this machine): proc/meminfo, proc/self/cgroup,
 * sys/fs/cgroup. Errors: SL_SYS. */
sl_code plan_machine(machine_memory *out, const char *root, sl_err *err);

/* Refuse what does not fit in host memory or on a GPU (o->gpus): SL_NOMEM with bytes
 * wanted, bytes there, the largest stage. */
sl_code plan_admit(const cli_options *o, const sl_model *model, const sl_conf *conf, sl_err *err);
int cli_plan(int argc, char **argv); /* `sluice plan` */

/* ---- pack.c ---- */

int cli_pack(int argc, char **argv); /* `sluice pack` */

/* ---- bench.c ---- */

int cli_bench(int argc, char **argv); /* `sluice bench` */

#endif
