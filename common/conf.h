/* conf.h - the settings of a deployment: a libconfig file read into one plain struct.
 *
 * Every key stands once in a table in conf_keys.c with its range, default, unit and meaning;
 * reading, checking, the messages and the annotated file (conf/demo.cfg) all come from
 * that table. A mistake is an error, never a guess, and names file, line, key, value and
 * range; an unknown key offers the nearest known one:
 *     conf/demo.cfg:12: limits.frames is 0, want an integer from 1 to 4097
 *         (most frames of a video; default 81)
 * Use: sl_conf_defaults, then sl_conf_read_file; keys that the file lacks keep their
 * value. Nothing is allocated. Files stand alone: @include is refused. */
#ifndef SL_CONF_H
#define SL_CONF_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/err.h"
#include "common/layout.h"
#include "common/log.h"
#include "common/pipeline.h"

#define SL_CONF_PATH 1024 /* bytes of a path, its NUL included */
#define SL_CONF_ARGS 16   /* most extra arguments of a stage */
#define SL_CONF_ARG 256   /* bytes of an extra argument, its NUL included */
#define SL_CONF_SEATS 32  /* most processes of stages in all */

/* One process: an instance of a role. A group with `devices` gives one for each of them. */
typedef struct {
    sl_role role;               /* key: name */
    int instance;               /* number among its role's, from 0, in the file's order */
    char program[SL_CONF_PATH]; /* a path, or a name looked up beside the sluice binary */
    char device[16];            /* "cpu" or "cuda:N" */
    int threads;                /* OpenMP threads; 0: an equal share of the machine's */
    int slots;                  /* slots of each pool in which the stage receives */
    int team;                   /* instances that work on one job together; 0: auto */
    char comm[8];               /* how they reach each other: "auto", "ipc", "nccl", "shm" */
    int arg_count;
    char args[SL_CONF_ARGS][SL_CONF_ARG]; /* extra arguments */
} sl_conf_stage;

/* A filter of a hand-over (common/pipeline.h): its process is a stage, too. */
typedef struct {
    sl_conf_stage stage; /* first: keys find their place in it; role and instance are its own */
    sl_filter_row is;
    int runs; /* 0: a replay has what the filter made, and its process is not started */
} sl_conf_filter;

/* A LoRA that requests over HTTP may ask for by its name: a client gives no path. */
#define SL_CONF_LORAS 32
typedef struct {
    char name[64];
    char file[SL_CONF_PATH];   /* for the transformer; "": none */
    char file_2[SL_CONF_PATH]; /* for the second expert; "": none */
    double strength, strength_2;
} sl_conf_lora;

/* An S3-compatible store of jobs' files (serve --blobs s3://BUCKET). */
typedef struct {
    char endpoint[SL_CONF_PATH];      /* "": AWS's, of the region */
    char link_endpoint[SL_CONF_PATH]; /* as clients reach it; "": as the server does */
    char region[64];                  /* "": AWS_REGION's, else us-east-1 */
    char addressing[8];               /* "auto", "path", "virtual" */
    char credentials[SL_CONF_PATH];   /* file; "": the environment's */
    char ca[SL_CONF_PATH];            /* certificates; "": the system's */
    int64_t part_bytes;               /* of a larger file's upload */
    int try_s;                        /* for which a request that fails is made again */
    char content[12];                 /* "proxy", "redirect": how a client gets its video */
    int link_s;                       /* that a link is good for */
} sl_conf_s3;

typedef struct {
    struct {
        char dir[SL_CONF_PATH];   /* run directory; "": a private one is made */
        char spool[SL_CONF_PATH]; /* "": in the run directory */
        sl_log_level log;
        sl_log_format log_format;
    } run;
    struct {
        int64_t pixels; /* largest width * height */
        int frames;     /* most frames of a video */
        int jobs;       /* most jobs held at once */
        int prompt_bytes;
        int64_t memory_bytes; /* 0: ask the machine */
    } limits;
    struct {
        int random;           /* 1: the folder holds configurations only, weights are random */
        sl_model_files files; /* in place of what the checkpoint's folder holds */
    } model;
    struct {
        int state_every;        /* steps between spooled states; 0: never */
        char rope[16];          /* rotary tables: "float32"; "bfloat16" as in a model cast whole */
        char precision[16];     /* of common/precision.h: how the weights are kept */
        char bf16_blocks[1024]; /* blocks that stay in bf16 all the same: "0,39" */
        char fp8_attention_steps[32]; /* whose attention is in 8 bits with fp8: "4-26"; "": all */
        char fp8_sums[16];            /* of products in 8 bits: "fast" or "float32" */
    } denoise;
    struct {
        double threshold; /* 0: off */
        int warmup, max_hits, final;
    } fbcache;
    struct {
        double fps;
        int crf;
        char preset[16]; /* x264 */
        int threads;
    } video;
    struct {
        int restarts;     /* of a stage in a row before giving up */
        int backoff_ms;   /* before the first restart; doubles */
        int heartbeat_ms; /* between a stage's signs of life */
        int stall_s;      /* without a sign of life before a stage is killed */
        int quiet_s;      /* of silence about a job, without computing, that is told of a stage */
        int piece_s;      /* of silence about a job, computing, after which a stage is killed */
        int drain_s;      /* to finish what is running, after SIGTERM */
    } supervise;
    struct {
        char turns[16];     /* who computes one at a time: "gpu" stages on one GPU, "always" stages
                             * on one device of any kind, "never" nobody */
        int turn_timeout_s; /* after which a turn is too long */
    } dispatch;
    struct {
        int queue;                      /* most jobs that wait */
        int queue_per_token;            /* of one owner; 0: no limit of its own */
        int ahead;                      /* jobs in the pipeline at a time; 0: as it needs */
        int64_t body_bytes;             /* of a request */
        int64_t bodies_bytes;           /* of all requests together, while they are read */
        int connections;                /* at a time */
        int connections_per_address;    /* likewise, of one address */
        int header_s;                   /* to send a request's head, and between two requests */
        int body_rate;                  /* bytes a second that a body or an answer must get on by */
        int keep_s;                     /* age of finished jobs */
        int64_t quota_bytes;            /* of all finished jobs; 0: no limit */
        int64_t reserve_bytes;          /* free bytes of the disk below which no job is taken */
        int preview;                    /* 1: a picture of the latents after each step */
        int retries;                    /* of a job that its servers die with; 0: without an end */
        char hosts[SL_CONF_PATH];       /* names that a request without a token may be sent to */
        char image_hosts[SL_CONF_PATH]; /* hosts that pictures may be fetched from */
    } serve;
    struct {
        int lease_s;        /* silence after which a server's jobs go to others */
        int64_t spool_rate; /* bytes a second into the shared folder, at most; 0: no limit */
        int spool_s;        /* between two spools of a running job into it, at least */
    } queue;
    sl_conf_s3 s3;
    int lora_count;
    sl_conf_lora lora[SL_CONF_LORAS]; /* in the file's order */
    int filter_count;
    sl_conf_filter filters[SL_FILTERS]; /* in the file's order, in which they stand */
    int stage_count;
    sl_conf_stage stages[SL_CONF_SEATS]; /* in the file's order, then the filters that run */
} sl_conf;

/* Every key's default, one stage of each role, no filter. */
void sl_conf_defaults(sl_conf *out);
/* This process's pipeline has the filters of conf (sl_pipeline_use). */
void sl_conf_use(const sl_conf *conf);

/* Read a file over *conf, which stays as it is on error. Errors: SL_SYS cannot be read,
 * not a regular file or over 1 MiB; SL_ARG a mistake in it. */
sl_code sl_conf_read_file(sl_conf *conf, const char *path, sl_err *err);
/* Read settings over *conf from text (NUL-terminated); `name` stands for the file in
 * messages. */
sl_code sl_conf_read_string(sl_conf *conf, const char *text, const char *name, sl_err *err);

/* Write a file that reads back as *conf, each key with its meaning, unit, range and
 * default. Errors: SL_SYS. */
sl_code sl_conf_print(const sl_conf *conf, FILE *to, sl_err *err);

/* The role's first instance; NULL: this deployment does not run it. */
const sl_conf_stage *sl_conf_find(const sl_conf *conf, sl_role role);
/* The number of the role's instances in this deployment. */
int sl_conf_instances(const sl_conf *conf, sl_role role);
/* The role's instances here are ranks, which work on jobs in teams: there are several, and `team`
 * does not say 1. */
bool sl_conf_teamed(const sl_conf *conf, sl_role role);
#define SL_CONF_NAME 20 /* bytes of a stage's name, the NUL included */
/* What a stage of conf is called: "mux", or "mux.1" where the role has several instances. */
const char *sl_conf_name(const sl_conf *conf, const sl_conf_stage *stage, char out[SL_CONF_NAME]);

#endif
