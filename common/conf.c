/* conf.c - the settings of a deployment: one table of keys, and reading, checking and
 * printing that follow it. */
#include "common/conf.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <libconfig.h>

#include "common/job.h"
#include "common/text.h"

#define FILE_BYTES (1 << 20) /* longest file */

typedef enum {
    INT,
    INT64,
    FLOAT,
    TEXT,
    WORD,
    WORDS,
    PROGRAM,
    DEVICE,
    DEVICES,
    TEAM,
    ARGS
} key_type;

/* Where a value goes, what it may be and what it means. Numbers use lo, hi and number;
 * the others use text. */
typedef struct {
    const char *path; /* group.key; a key of a stage has no group */
    key_type type;
    size_t at;   /* offset in sl_conf or sl_conf_stage; DEVICES, ARGS: no use of it */
    size_t size; /* TEXT, WORDS: bytes there */
    double lo, hi, number;
    const char *text;  /* default */
    const char *words; /* separated by '|'; WORD stores the index in this list, WORDS the word */
    const char *unit;  /* "" for none */
    const char *what;
} key;

#define AT(field) offsetof(sl_conf, field)
#define ROOM(field) sizeof(((sl_conf *)0)->field)
#define NUM(path, type, field, lo, hi, number, unit, what)                                         \
    {                                                                                              \
        path, type, AT(field), 0, lo, hi, number, NULL, NULL, unit, what                           \
    }
#define TXT(path, field, text, what)                                                               \
    {                                                                                              \
        path, TEXT, AT(field), ROOM(field), 0, 0, 0, text, NULL, "", what                          \
    }
#define X(name, text) "|" text
#define LEVELS SL_LOG_LEVELS(X)
#define FORMATS SL_LOG_FORMATS(X)
#define ROLE(NAME, name, where) "|" name
#define ROLES SL_ROLES(ROLE)
#define PRESETS "|ultrafast|superfast|veryfast|faster|fast|medium|slow|slower|veryslow|placebo"

static const key KEYS[] = {
    TXT("run.dir", run.dir, "",
        "folder for sockets and spool (\"\": a private one is made and removed)"),
    TXT("run.spool", run.spool, "",
        "folder of finished hand-overs, from which a killed stage's jobs go on (\"\": in run.dir)"),
    {"run.log", WORD, AT(run.log), 0, 0, 0, 0, "info", LEVELS, "",
     "the least grave messages shown"},
    {"run.log_format", WORD, AT(run.log_format), 0, 0, 0, 0, "text", FORMATS, "",
     "lines of messages: text for people, json for machines, one object a line with the job's "
     "name"},
    NUM("limits.pixels", INT64, limits.pixels, 256, 1 << 26, 921600, "",
        "largest width * height of a video"),
    NUM("limits.frames", INT, limits.frames, 1, 4097, 81, "", "most frames of a video"),
    NUM("limits.jobs", INT, limits.jobs, 1, 100000, 64, "",
        "most jobs held at once, waiting ones included"),
    NUM("limits.prompt_bytes", INT, limits.prompt_bytes, 1, 1 << 20, 65536, "bytes",
        "longest prompt"),
    NUM("limits.memory_bytes", INT64, limits.memory_bytes, 0, 1e15, 0, "bytes",
        "host memory that a run may take, weights that stay mapped not counted (0: what the "
        "machine has free)"),
    NUM("model.random", INT, model.random, 0, 1, 0, "",
        "1: random weights, the model's folder holds configurations and a tokenizer only (to "
        "measure with: what comes out shows "
        "nothing)"),
    TXT("model.transformer", model.files.part[SL_PART_DIT], "",
        "file in place of the checkpoint's transformer; with two experts the high-noise one"),
    TXT("model.transformer_2", model.files.part[SL_PART_DIT_2], "",
        "likewise the low-noise expert"),
    TXT("model.text_encoder", model.files.part[SL_PART_TEXT], "", "likewise the text encoder"),
    TXT("model.image_encoder", model.files.part[SL_PART_IMAGE], "", "likewise CLIP"),
    TXT("model.vae", model.files.part[SL_PART_VAE], "", "likewise the VAE"),
    TXT("model.tokenizer", model.files.tokenizer, "",
        "likewise the tokenizer: spiece.model or tokenizer.json"),
    NUM("denoise.state_every", INT, denoise.state_every, 0, 1000, 5, "steps",
        "distance between spooled states, from which a killed denoiser goes on (0: none)"),
    {"denoise.rope", WORDS, AT(denoise.rope), ROOM(denoise.rope), 0, 0, 0, "float32",
     "|float32|bfloat16", "",
     "rotary tables: float32 as the pipeline has them; bfloat16 as a model cast as a whole, the "
     "golden ones among them"},
    NUM("fbcache.threshold", FLOAT, fbcache.threshold, 0, SL_FBCACHE_MOST, 0, "",
        "First Block Cache: reuse up to this relative change of the first block (0: off)"),
    NUM("fbcache.warmup", INT, fbcache.warmup, 0, 1000, 0, "",
        "steps at the beginning that always compute"),
    NUM("fbcache.max_hits", INT, fbcache.max_hits, 0, 1000, 0, "",
        "most steps in a row that reuse (0: no limit)"),
    NUM("fbcache.final", INT, fbcache.final, 0, 1000, 0, "",
        "steps at the end that always compute"),
    NUM("video.fps", FLOAT, video.fps, 0, 240, 0, "frames/s",
        "rate of the video (0: what the model was made for, 16 or 24)"),
    NUM("video.crf", INT, video.crf, 0, 51, 18, "", "quality of x264: 0 is lossless, 51 the worst"),
    {"video.preset", WORDS, AT(video.preset), ROOM(video.preset), 0, 0, 0, "medium", PRESETS, "",
     "time against size of x264"},
    NUM("video.threads", INT, video.threads, 0, 64, 0, "",
        "threads of the video encoder, on which its bytes depend (0: the machine's, 4 to 16)"),
    NUM("supervise.restarts", INT, supervise.restarts, 0, 1000, 5, "",
        "restarts of a stage in a row before giving up"),
    NUM("supervise.backoff_ms", INT, supervise.backoff_ms, 1, 60000, 100, "ms",
        "wait before the first restart, doubled each time"),
    NUM("supervise.heartbeat_ms", INT, supervise.heartbeat_ms, 10, 60000, 500, "ms",
        "distance between a stage's signs of life"),
    NUM("supervise.stall_s", INT, supervise.stall_s, 1, 86400, 30, "s",
        "time without a sign of life after which a stage is killed"),
    NUM("supervise.drain_s", INT, supervise.drain_s, 0, 86400, 60, "s",
        "time to finish what is running after SIGTERM"),
    {"dispatch.turns", WORDS, AT(dispatch.turns), ROOM(dispatch.turns), 0, 0, 0, "gpu",
     "|gpu|always|never", "",
     "stages that compute one at a time, a step or a chunk each: gpu those that share a GPU, "
     "always those that share any device"},
    NUM("dispatch.turn_timeout_s", INT, dispatch.turn_timeout_s, 1, 86400, 120, "s",
        "a longer turn is warned of, and a denoising step that has waited for longer goes first"),
    NUM("serve.queue", INT, serve.queue, 1, 100000, 1000, "",
        "jobs that wait at a server; more are refused (429)"),
    NUM("serve.queue_per_token", INT, serve.queue_per_token, 0, 100000, 0, "",
        "jobs of one token that wait (0: no limit of its own)"),
    NUM("serve.ahead", INT, serve.ahead, 0, 256, 0, "",
        "jobs in the pipeline at a time, the others wait in the journal (0: the denoisers and 3)"),
    NUM("serve.body_bytes", INT64, serve.body_bytes, 4096, 1ll << 30, 33554432, "bytes",
        "largest request, its pictures included"),
    NUM("serve.bodies_bytes", INT64, serve.bodies_bytes, 4096, 1ll << 40, 536870912, "bytes",
        "memory for all requests that are being read; more are told to come again (503)"),
    NUM("serve.connections", INT, serve.connections, 1, 100000, 1024, "",
        "connections at a time, further ones are closed"),
    NUM("serve.connections_per_address", INT, serve.connections_per_address, 1, 100000, 512, "",
        "connections of one address at a time"),
    NUM("serve.header_s", INT, serve.header_s, 1, 3600, 20, "s",
        "time to send a request's head, and between two requests of a connection"),
    NUM("serve.body_rate", INT, serve.body_rate, 1, 1 << 30, 16384, "bytes/s",
        "slowest body and slowest reader of an answer, 30 s given to each"),
    NUM("serve.keep_s", INT, serve.keep_s, 1, 315360000, 604800, "s",
        "time that a finished job and its video are kept"),
    NUM("serve.quota_bytes", INT64, serve.quota_bytes, 0, 1e15, 0, "bytes",
        "room of all finished jobs; the oldest go first (0: no limit)"),
    NUM("serve.reserve_bytes", INT64, serve.reserve_bytes, 0, 1e15, 268435456, "bytes",
        "free room of the state's disk below which new jobs are refused (507)"),
    NUM("serve.preview", INT, serve.preview, 0, 1, 1, "",
        "1: a small picture of the latents after each step"),
    TXT("serve.hosts", serve.hosts, "",
        "names, with commas between, that requests without a token may be sent to, beside the "
        "loopback's"),
    TXT("serve.image_hosts", serve.image_hosts, "",
        "hosts, with commas between, from which a request's picture may be fetched (\"\": none)"),
};
#undef AT
#undef ROOM
#define AT(field) offsetof(sl_conf_stage, field)
#define ROOM(field) sizeof(((sl_conf_stage *)0)->field)
static const key STAGE_KEYS[] = {
    {"name", WORD, AT(role), 0, 0, 0, 0, "", ROLES, "", "the role that the stage plays"},
    {"program", PROGRAM, AT(program), ROOM(program), 0, 0, 0, "", NULL, "",
     "a path, or the name of a program beside sluice"},
    {"device", DEVICE, AT(device), ROOM(device), 0, 0, 0, "cpu", NULL, "", "where it computes"},
    {"devices", DEVICES, 0, 0, 0, 0, 0, "", NULL, "",
     "in place of device: one process for each, all of this role"},
    NUM("threads", INT, threads, 0, 1024, 0, "", "OpenMP threads (0: a share of the machine's)"),
    NUM("slots", INT, slots, 1, 64, 2, "",
        "slots of each pool that it receives in: hand-overs that may wait for it (frames: 24)"),
    {"team", TEAM, AT(team), 0, 1, SL_RANKS, 0, "", NULL, "",
     "of denoise: instances that work on one job together (auto: as many as waiting jobs leave, "
     "changed between steps)"},
    {"comm", WORDS, AT(comm), ROOM(comm), 0, 0, 0, "auto", "|auto|ipc|nccl|shm", "",
     "of denoise: how a team's members reach each other (auto: ipc on GPUs that can map each "
     "other, else nccl; shm on the CPU)"},
    {"args", ARGS, 0, 0, 0, 0, 0, "", NULL, "", "more arguments for the program"},
};
#undef X
#undef AT
#undef ROOM
#define AT(field) offsetof(sl_conf_lora, field)
#define ROOM(field) sizeof(((sl_conf_lora *)0)->field)
static const key LORA_KEYS[] = {
    TXT("name", name, "", "what a request calls it"),
    TXT("file", file, "", "for the transformer (\"\": none)"),
    TXT("file_2", file_2, "", "for the second expert of A14B (\"\": none)"),
    NUM("strength", FLOAT, strength, -100, 100, 1, "",
        "of file, times that of the request (NAME:STRENGTH)"),
    NUM("strength_2", FLOAT, strength_2, -100, 100, 1, "", "of file_2, likewise"),
};
enum {
    KEY_COUNT = sizeof KEYS / sizeof *KEYS,
    STAGE_KEY_COUNT = sizeof STAGE_KEYS / sizeof *STAGE_KEYS,
    LORA_KEY_COUNT = sizeof LORA_KEYS / sizeof *LORA_KEYS,
};

const sl_conf_stage *sl_conf_find(const sl_conf *conf, sl_role role)
{
    for (int i = 0; i < conf->stage_count; i++)
        if (conf->stages[i].role == role) return &conf->stages[i];
    return NULL;
}

int sl_conf_instances(const sl_conf *conf, sl_role role)
{
    int n = 0;
    for (int i = 0; i < conf->stage_count; i++) n += conf->stages[i].role == role;
    return n;
}

bool sl_conf_teamed(const sl_conf *conf, sl_role role)
{
    const sl_conf_stage *first = sl_conf_find(conf, role);
    return first && sl_role_has_teams(role) && first->team != 1 &&
           sl_conf_instances(conf, role) > 1;
}

const char *sl_conf_name(const sl_conf *conf, const sl_conf_stage *stage, char out[SL_CONF_NAME])
{
    const char *role = sl_role_name(stage->role);
    if (sl_conf_instances(conf, stage->role) > 1)
        snprintf(out, SL_CONF_NAME, "%.15s.%d", role, stage->instance % SL_CONF_SEATS);
    else snprintf(out, SL_CONF_NAME, "%.15s", role);
    return out;
}

/* ---- words of a list "|error|warn" ---- */

static int word_index(const char *words, const char *word)
{
    size_t n = strlen(word);
    for (int i = 0; *words; i++) {
        size_t len = strcspn(++words, "|");
        if (len == n && !memcmp(words, word, n)) return i;
        words += len;
    }
    return -1;
}

/* "error, warn, info, debug" */
static void word_list(const char *words, char *out, size_t size)
{
    size_t used = 0;
    out[0] = 0;
    while (*words && used < size) {
        size_t len = strcspn(++words, "|");
        int n = snprintf(out + used, size - used, "%s%.*s", used ? ", " : "", (int)len, words);
        used += n > 0 ? (size_t)n : size;
        words += len;
    }
}

static void word_at(const char *words, int index, char *out, size_t size)
{
    while (index-- > 0 && *words) words += 1 + strcspn(words + 1, "|");
    snprintf(out, size, "%.*s", *words ? (int)strcspn(words + 1, "|") : 0, words + (*words != 0));
}

/* ---- defaults ---- */

static void store_number(const key *k, void *base, double v)
{
    char *at = (char *)base + k->at;
    if (k->type == INT || k->type == TEAM) *(int *)at = (int)v;
    if (k->type == INT64) *(int64_t *)at = (int64_t)v;
    if (k->type == FLOAT) *(double *)at = v;
}

static void store_text(const key *k, void *base, const char *text)
{
    char *at = (char *)base + k->at;
    if (k->type == WORD) *(unsigned *)at = (unsigned)word_index(k->words, text);
    else snprintf(at, k->size, "%s", text);
}
_Static_assert(sizeof(sl_log_level) == sizeof(unsigned) && sizeof(sl_role) == sizeof(unsigned) &&
                   sizeof(sl_log_format) == sizeof(unsigned),
               "store_text writes these enums");

static bool is_number(const key *k)
{
    return k->type == INT || k->type == INT64 || k->type == FLOAT || k->type == TEAM;
}

/* The key means something for stages of this role. */
static bool is_of_role(const key *k, sl_role role)
{
    return (strcmp(k->path, "team") && strcmp(k->path, "comm")) || sl_role_has_teams(role);
}

static void lora_defaults(sl_conf_lora *l)
{
    memset(l, 0, sizeof *l);
    for (int i = 0; i < LORA_KEY_COUNT; i++)
        if (is_number(&LORA_KEYS[i])) store_number(&LORA_KEYS[i], l, LORA_KEYS[i].number);
}

static void stage_defaults(sl_conf_stage *s, sl_role role)
{
    memset(s, 0, sizeof *s);
    for (int i = 0; i < STAGE_KEY_COUNT; i++)
        if (is_number(&STAGE_KEYS[i])) store_number(&STAGE_KEYS[i], s, STAGE_KEYS[i].number);
        else if (STAGE_KEYS[i].type == WORDS) store_text(&STAGE_KEYS[i], s, STAGE_KEYS[i].text);
    s->slots = sl_default_slots(role);
    s->role = role;
    snprintf(s->program, sizeof s->program, "sluice-%s", sl_role_name(role));
    snprintf(s->device, sizeof s->device, "cpu");
}

void sl_conf_defaults(sl_conf *out)
{
    memset(out, 0, sizeof *out);
    for (int i = 0; i < KEY_COUNT; i++) {
        if (is_number(&KEYS[i])) store_number(&KEYS[i], out, KEYS[i].number);
        else store_text(&KEYS[i], out, KEYS[i].text);
    }
    out->stage_count = SL_ROLE_COUNT;
    for (int i = 0; i < SL_ROLE_COUNT; i++) stage_defaults(&out->stages[i], (sl_role)i);
}

/* ---- what a key wants, in words ---- */

/* What may stand there: "an integer from 1 to 4097". */
static const char *values(const key *k, char *out, size_t size)
{
    char list[256];
    switch (k->type) {
    case INT:
    case INT64: snprintf(out, size, "an integer from %.0f to %.0f", k->lo, k->hi); break;
    case FLOAT: snprintf(out, size, "a number from %g to %g", k->lo, k->hi); break;
    case WORD:
    case WORDS:
        word_list(k->words, list, sizeof list);
        snprintf(out, size, "one of %s", list);
        break;
    case TEXT: snprintf(out, size, "a string of at most %zu bytes", k->size - 1); break;
    case PROGRAM: snprintf(out, size, "a string of 1 to %zu bytes", k->size - 1); break;
    case DEVICE: snprintf(out, size, "\"cpu\" or \"cuda:N\" with N from 0 to 63"); break;
    case DEVICES:
        snprintf(out, size, "1 to %d of \"cpu\" or \"cuda:N\" with N from 0 to 63", SL_CONF_SEATS);
        break;
    case TEAM: snprintf(out, size, "\"auto\" or an integer from 1 to %d", SL_RANKS); break;
    case ARGS:
        snprintf(out, size, "at most %d strings of at most %d bytes", SL_CONF_ARGS,
                 SL_CONF_ARG - 1);
        break;
    }
    return out;
}

/* What it means: "most frames of a video; default 81", with the unit where there is one. */
static const char *meaning(const key *k, char *out, size_t size)
{
    char otherwise[64] = "";
    if (k->type == TEAM) snprintf(otherwise, sizeof otherwise, "; default \"auto\"");
    else if (is_number(k)) snprintf(otherwise, sizeof otherwise, "; default %.10g", k->number);
    else if (k->text[0]) snprintf(otherwise, sizeof otherwise, "; default \"%s\"", k->text);
    snprintf(out, size, "%s%s%s%s", k->what, k->unit[0] ? ", in " : "", k->unit, otherwise);
    return out;
}

/* ---- reading ---- */

typedef struct {
    const char *name; /* of the file */
    sl_err *err;
} reader;

static int line_of(const config_setting_t *s)
{
    return (int)config_setting_source_line(s);
}

/* The value as the file has it, short. */
static const char *found(const config_setting_t *s, char *out, size_t size)
{
    switch (config_setting_type(s)) {
    case CONFIG_TYPE_INT:
    case CONFIG_TYPE_INT64: snprintf(out, size, "%lld", config_setting_get_int64(s)); break;
    case CONFIG_TYPE_FLOAT: snprintf(out, size, "%g", config_setting_get_float(s)); break;
    case CONFIG_TYPE_BOOL:
        snprintf(out, size, "%s", config_setting_get_bool(s) ? "true" : "false");
        break;
    case CONFIG_TYPE_STRING: {
        const char *text = config_setting_get_string(s);
        snprintf(out, size, strlen(text) > 60 ? "\"%.60s...\"" : "\"%.60s\"", text);
        break;
    }
    case CONFIG_TYPE_GROUP: snprintf(out, size, "a group"); break;
    case CONFIG_TYPE_ARRAY: snprintf(out, size, "an array"); break;
    case CONFIG_TYPE_LIST: snprintf(out, size, "a list"); break;
    default: snprintf(out, size, "nothing"); break;
    }
    for (char *c = out; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) *c = '?';
    return out;
}

/* "file:12: limits.frames is 0, want ..."; `path` names the key, in a stage
 * "stages[1].device". */
static sl_code refuse(const reader *r, const config_setting_t *s, const key *k, const char *path)
{
    char have[80], want[320], what[256];
    return sl_fail(r->err, SL_ARG, "%s:%d: %s is %s, want %s (%s)", r->name, line_of(s), path,
                   found(s, have, sizeof have), values(k, want, sizeof want),
                   meaning(k, what, sizeof what));
}

static bool is_device(const char *text)
{
    if (!strcmp(text, "cpu")) return true;
    if (strncmp(text, "cuda:", 5)) return false;
    const char *n = text + 5;
    size_t digits = strspn(n, "0123456789");
    return digits >= 1 && digits <= 2 && !n[digits] && !(digits == 2 && n[0] == '0') &&
           atoi(n) < 64;
}

static bool is_control_free(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 127) return false;
    return true;
}

/* A group of the list `stages`: one stage, but for its devices. */
typedef struct {
    sl_conf_stage stage; /* first: keys find their place in it */
    int device_count;    /* 0: the stage's own */
    char devices[SL_CONF_SEATS][sizeof((sl_conf_stage *)0)->device];
} stage_group;

static bool is_list(const config_setting_t *s)
{
    return config_setting_type(s) == CONFIG_TYPE_ARRAY ||
           config_setting_type(s) == CONFIG_TYPE_LIST;
}

/* The i-th of a list of strings. */
static sl_code read_item(const reader *r, const config_setting_t *s, const key *k, const char *path,
                         int i, const char **out)
{
    const config_setting_t *e = config_setting_get_elem(s, (unsigned)i);
    char item[128];
    *out = config_setting_type(e) == CONFIG_TYPE_STRING ? config_setting_get_string(e) : NULL;
    if (*out && (k->type == DEVICES ? is_device(*out) : strlen(*out) < SL_CONF_ARG)) return SL_OK;
    snprintf(item, sizeof item, "%s[%d]", path, i);
    return refuse(r, e, k, item);
}

static sl_code read_args(const reader *r, const config_setting_t *s, const key *k, const char *path,
                         sl_conf_stage *out)
{
    int n = config_setting_length(s);
    if (!is_list(s) || n > SL_CONF_ARGS) return refuse(r, s, k, path);
    out->arg_count = n;
    for (int i = 0; i < n; i++) {
        const char *text;
        sl_code rc = read_item(r, s, k, path, i, &text);
        if (rc) return rc;
        snprintf(out->args[i], sizeof out->args[i], "%s", text);
    }
    return SL_OK;
}

static sl_code read_devices(const reader *r, const config_setting_t *s, const key *k,
                            const char *path, stage_group *out)
{
    int n = config_setting_length(s);
    if (!is_list(s) || n < 1 || n > SL_CONF_SEATS) return refuse(r, s, k, path);
    out->device_count = n;
    for (int i = 0; i < n; i++) {
        const char *text;
        sl_code rc = read_item(r, s, k, path, i, &text);
        if (rc) return rc;
        snprintf(out->devices[i], sizeof out->devices[i], "%s", text);
    }
    return SL_OK;
}

/* Check one setting against its key and store it. */
static sl_code read_key(const reader *r, const config_setting_t *s, const key *k, const char *path,
                        void *base)
{
    int type = config_setting_type(s);
    if (k->type == ARGS) return read_args(r, s, k, path, base);
    if (k->type == DEVICES) return read_devices(r, s, k, path, base);
    if (k->type == TEAM && type == CONFIG_TYPE_STRING &&
        !strcmp(config_setting_get_string(s), "auto")) {
        store_number(k, base, 0);
        return SL_OK;
    }
    if (is_number(k)) {
        bool whole = type == CONFIG_TYPE_INT || type == CONFIG_TYPE_INT64;
        if (!whole && !(k->type == FLOAT && type == CONFIG_TYPE_FLOAT))
            return refuse(r, s, k, path);
        double v = whole ? (double)config_setting_get_int64(s) : config_setting_get_float(s);
        if (!(v >= k->lo && v <= k->hi)) return refuse(r, s, k, path);
        store_number(k, base, v);
        return SL_OK;
    }
    const char *text = type == CONFIG_TYPE_STRING ? config_setting_get_string(s) : NULL;
    if (!text || !is_control_free(text)) return refuse(r, s, k, path);
    if (k->words ? word_index(k->words, text) < 0 || strchr(text, '|') : strlen(text) >= k->size)
        return refuse(r, s, k, path);
    if ((k->type == PROGRAM && !text[0]) || (k->type == DEVICE && !is_device(text)))
        return refuse(r, s, k, path);
    store_text(k, base, text);
    return SL_OK;
}

/* ---- the nearest known key ---- */

static void consider(const char *known, const char *unknown, int cost, const char **best,
                     int *best_cost)
{
    cost += sl_text_distance(known, unknown);
    if (cost < *best_cost) {
        *best_cost = cost;
        *best = known;
    }
}

/* A key that is right but stands in the wrong group counts as near: 1 and the distance of
 * the last parts. */
static sl_code unknown_key(const reader *r, const config_setting_t *s, const char *path,
                           const key *keys, int count)
{
    const char *last = strrchr(path, '.'), *best = "";
    int cost = 1 << 20;
    last = last ? last + 1 : path;
    for (int i = 0; i < count; i++) {
        const char *dot = strchr(keys[i].path, '.');
        consider(keys[i].path, dot ? path : last, 0, &best, &cost);
        int apart = 1 + sl_text_distance(dot ? dot + 1 : keys[i].path, last);
        if (apart < cost) {
            cost = apart;
            best = keys[i].path;
        }
    }
    return sl_fail(r->err, SL_ARG, "%s:%d: unknown key %.100s, the nearest known one is %s",
                   r->name, line_of(s), path, best);
}

static sl_code unknown_group(const reader *r, const config_setting_t *s)
{
    const char *name = config_setting_name(s), *best = "stages";
    char group[64], nearest[64] = "stages";
    int cost = sl_text_distance("stages", name);
    if (config_setting_type(s) != CONFIG_TYPE_GROUP && config_setting_type(s) != CONFIG_TYPE_LIST)
        return unknown_key(r, s, name, KEYS, KEY_COUNT);
    for (int i = 0; i < KEY_COUNT; i++) {
        int before = cost;
        snprintf(group, sizeof group, "%.*s", (int)strcspn(KEYS[i].path, "."), KEYS[i].path);
        consider(group, name, 0, &best, &cost);
        if (cost < before) snprintf(nearest, sizeof nearest, "%s", group);
    }
    return sl_fail(r->err, SL_ARG, "%s:%d: unknown group %.100s, the nearest known one is %s",
                   r->name, line_of(s), name, nearest);
}

/* ---- groups ---- */

static const key *find_key(const key *keys, int count, const char *path)
{
    for (int i = 0; i < count; i++)
        if (!strcmp(keys[i].path, path)) return &keys[i];
    return NULL;
}

static bool is_group(const char *name)
{
    size_t n = strlen(name);
    for (int i = 0; i < KEY_COUNT; i++)
        if (!strncmp(KEYS[i].path, name, n) && KEYS[i].path[n] == '.') return true;
    return false;
}

static sl_code read_group(const reader *r, const config_setting_t *group, sl_conf *out)
{
    char have[80];
    if (config_setting_type(group) != CONFIG_TYPE_GROUP)
        return sl_fail(r->err, SL_ARG, "%s:%d: %s is %s, want a group { ... }", r->name,
                       line_of(group), config_setting_name(group), found(group, have, sizeof have));
    for (int i = 0; i < config_setting_length(group); i++) {
        const config_setting_t *s = config_setting_get_elem(group, (unsigned)i);
        char path[160];
        snprintf(path, sizeof path, "%s.%.100s", config_setting_name(group),
                 config_setting_name(s));
        const key *k = find_key(KEYS, KEY_COUNT, path);
        if (!k) return unknown_key(r, s, path, KEYS, KEY_COUNT);
        sl_code rc = read_key(r, s, k, path, out);
        if (rc) return rc;
    }
    return SL_OK;
}

static sl_code read_stage(const reader *r, const config_setting_t *group, int index,
                          stage_group *out)
{
    char path[160], have[80], want[320];
    sl_code rc;
    if (config_setting_type(group) != CONFIG_TYPE_GROUP)
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: stages[%d] is %s, want a group { name = \"text\"; ... }", r->name,
                       line_of(group), index, found(group, have, sizeof have));
    const config_setting_t *name = config_setting_get_member(group, "name");
    if (!name)
        return sl_fail(r->err, SL_ARG, "%s:%d: stages[%d] has no name, want %s", r->name,
                       line_of(group), index, values(&STAGE_KEYS[0], want, sizeof want));
    snprintf(path, sizeof path, "stages[%d].name", index);
    if ((rc = read_key(r, name, &STAGE_KEYS[0], path, out))) return rc;
    stage_defaults(&out->stage, out->stage.role);
    for (int i = 0; i < config_setting_length(group); i++) {
        const config_setting_t *s = config_setting_get_elem(group, (unsigned)i);
        snprintf(path, sizeof path, "stages[%d].%.100s", index, config_setting_name(s));
        const key *k = find_key(STAGE_KEYS, STAGE_KEY_COUNT, config_setting_name(s));
        if (!k) return unknown_key(r, s, path, STAGE_KEYS, STAGE_KEY_COUNT);
        if (!is_of_role(k, out->stage.role))
            return sl_fail(r->err, SL_ARG,
                           "%s:%d: %s: %s forms no teams, want this key of denoise only", r->name,
                           line_of(s), path, sl_role_name(out->stage.role));
        if ((rc = read_key(r, s, k, path, out))) return rc;
    }
    if (out->device_count && config_setting_get_member(group, "device"))
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: stages[%d] has both device and devices, want one of them", r->name,
                       line_of(group), index);
    return SL_OK;
}

static sl_code read_stages(const reader *r, const config_setting_t *list, sl_conf *out)
{
    char have[80];
    int n = config_setting_length(list);
    if (config_setting_type(list) != CONFIG_TYPE_LIST || !n)
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: stages is %s, want a list of one or more groups ( { name = "
                       "\"text\"; ... }, ... )",
                       r->name, line_of(list),
                       n || config_setting_type(list) != CONFIG_TYPE_LIST
                           ? found(list, have, sizeof have)
                           : "empty");
    out->stage_count = 0;
    for (int i = 0; i < n; i++) {
        const config_setting_t *s = config_setting_get_elem(list, (unsigned)i);
        stage_group g = {0};
        sl_code rc = read_stage(r, s, i, &g);
        if (rc) return rc;
        int more = g.device_count ? g.device_count : 1;
        if (out->stage_count + more > SL_CONF_SEATS)
            return sl_fail(r->err, SL_ARG,
                           "%s:%d: stages[%d] makes them %d processes, want at most %d in all",
                           r->name, line_of(s), i, out->stage_count + more, SL_CONF_SEATS);
        for (int d = 0; d < more; d++) {
            if (g.device_count) memcpy(g.stage.device, g.devices[d], sizeof g.stage.device);
            g.stage.instance = sl_conf_instances(out, g.stage.role);
            out->stages[out->stage_count++] = g.stage;
        }
    }
    return SL_OK;
}

static sl_code read_lora(const reader *r, const config_setting_t *group, int index, sl_conf *out)
{
    char path[160], have[80];
    sl_conf_lora *l = &out->lora[index];
    if (config_setting_type(group) != CONFIG_TYPE_GROUP)
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: lora[%d] is %s, want a group { name = \"NAME\"; ... }", r->name,
                       line_of(group), index, found(group, have, sizeof have));
    lora_defaults(l);
    for (int i = 0; i < config_setting_length(group); i++) {
        const config_setting_t *s = config_setting_get_elem(group, (unsigned)i);
        snprintf(path, sizeof path, "lora[%d].%.100s", index, config_setting_name(s));
        const key *k = find_key(LORA_KEYS, LORA_KEY_COUNT, config_setting_name(s));
        if (!k) return unknown_key(r, s, path, LORA_KEYS, LORA_KEY_COUNT);
        sl_code rc = read_key(r, s, k, path, l);
        if (rc) return rc;
    }
    if (!*l->name || strpbrk(l->name, ": ,") || (!*l->file && !*l->file_2))
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: lora[%d] has %s, want a name without space, comma and colon, and "
                       "file or file_2",
                       r->name, line_of(group), index,
                       !*l->name                 ? "no name"
                       : strpbrk(l->name, ": ,") ? "a name with one of them"
                                                 : "no file");
    for (int i = 0; i < index; i++)
        if (!strcmp(out->lora[i].name, l->name))
            return sl_fail(r->err, SL_ARG, "%s:%d: lora[%d].name is \"%s\", as that of lora[%d] is",
                           r->name, line_of(group), index, l->name, i);
    return SL_OK;
}

static sl_code read_loras(const reader *r, const config_setting_t *list, sl_conf *out)
{
    char have[80];
    const int n = config_setting_length(list);
    if (config_setting_type(list) != CONFIG_TYPE_LIST || n > SL_CONF_LORAS)
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: lora is %s, want a list of at most %d groups ( { name = \"NAME\"; "
                       "file = \"FILE\"; }, ... )",
                       r->name, line_of(list), found(list, have, sizeof have), SL_CONF_LORAS);
    for (int i = 0; i < n; i++) {
        sl_code rc = read_lora(r, config_setting_get_elem(list, (unsigned)i), i, out);
        if (rc) return rc;
    }
    out->lora_count = n;
    return SL_OK;
}

/* Instances that may work together are told alike, and are no more than a team can have. */
static sl_code check_teams(const reader *r, const sl_conf *c)
{
    for (int i = 0; i < c->stage_count; i++) {
        const sl_conf_stage *s = &c->stages[i], *first = sl_conf_find(c, s->role);
        const char *role = sl_role_name(s->role);
        int n = sl_conf_instances(c, s->role);
        if (!sl_role_has_teams(s->role)) continue;
        if (s->team != first->team || strcmp(s->comm, first->comm))
            return sl_fail(r->err, SL_ARG,
                           "%s: %s.%d has another team or comm than %s.0, want the same of all",
                           r->name, role, s->instance, role);
        if (s->team > n)
            return sl_fail(r->err, SL_ARG, "%s: %s has a team of %d and %d device%s, want as many",
                           r->name, role, s->team, n, n > 1 ? "s" : "");
        if (n > SL_RANKS)
            return sl_fail(r->err, SL_ARG, "%s: %s has %d devices, want at most %d", r->name, role,
                           n, SL_RANKS);
    }
    return SL_OK;
}

/* What single keys cannot say. */
static sl_code check_together(const reader *r, const sl_conf *c)
{
    sl_code rc = check_teams(r, c);
    if (rc) return rc;
    if ((int64_t)c->supervise.stall_s * 1000 < 2 * (int64_t)c->supervise.heartbeat_ms)
        return sl_fail(r->err, SL_ARG,
                       "%s: supervise.stall_s is %d, want at least two heartbeats "
                       "(supervise.heartbeat_ms is %d)",
                       r->name, c->supervise.stall_s, c->supervise.heartbeat_ms);
    return SL_OK;
}

static sl_code read_root(const reader *r, const config_setting_t *root, sl_conf *out)
{
    for (int i = 0; i < config_setting_length(root); i++) {
        const config_setting_t *s = config_setting_get_elem(root, (unsigned)i);
        const char *name = config_setting_name(s);
        sl_code rc;
        if (!strcmp(name, "stages")) rc = read_stages(r, s, out);
        else if (!strcmp(name, "lora")) rc = read_loras(r, s, out);
        else if (is_group(name)) rc = read_group(r, s, out);
        else rc = unknown_group(r, s);
        if (rc) return rc;
    }
    return check_together(r, out);
}

/* libconfig's scanner ends the process when an included file cannot be read (a folder):
 * such lines never reach it. */
static int include_line(const char *text)
{
    for (int line = 1; *text; line++) {
        text += strspn(text, " \t");
        if (!strncmp(text, "@include", 8)) return line;
        text += strcspn(text, "\n");
        text += *text == '\n';
    }
    return 0;
}

sl_code sl_conf_read_string(sl_conf *conf, const char *text, const char *name, sl_err *err)
{
    reader r = {.name = name, .err = err};
    sl_conf next = *conf;
    config_t c;
    sl_code rc;
    char *whole = NULL;
    int include = include_line(text);
    if (include)
        return sl_fail(err, SL_ARG,
                       "%s:%d: @include is not supported, want all settings in one file", name,
                       include);
    /* a last line may lack its end */
    if (asprintf(&whole, "%s\n", text) < 0) return sl_fail(err, SL_NOMEM, "%s: no memory", name);
    config_init(&c);
    if (config_read_string(&c, whole)) rc = read_root(&r, config_root_setting(&c), &next);
    else rc = sl_fail(err, SL_ARG, "%s:%d: %s", name, config_error_line(&c), config_error_text(&c));
    config_destroy(&c);
    free(whole);
    if (!rc) *conf = next;
    return rc;
}

/* The whole file as text, the caller's to free. */
static sl_code load(const char *path, char **out, sl_err *err)
{
    struct stat st;
    char *text = NULL;
    size_t got = 0;
    sl_code rc = SL_OK;
    /* a FIFO must not block before it is refused */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    *out = NULL;
    if (fd < 0) return sl_fail_errno(err, errno, "%s", path);
    if (fstat(fd, &st)) rc = sl_fail_errno(err, errno, "%s", path);
    else if (!S_ISREG(st.st_mode)) rc = sl_fail(err, SL_SYS, "%s: not a regular file", path);
    else if (st.st_size > FILE_BYTES)
        rc = sl_fail(err, SL_SYS, "%s: %lld bytes, want at most %d", path, (long long)st.st_size,
                     FILE_BYTES);
    else if (!(text = malloc((size_t)st.st_size + 1)))
        rc = sl_fail(err, SL_NOMEM, "%s: no memory", path);
    for (ssize_t n = 1; !rc && n > 0 && got < (size_t)st.st_size; got += (size_t)n) {
        n = read(fd, text + got, (size_t)st.st_size - got);
        if (n < 0) rc = sl_fail_errno(err, errno, "%s", path), n = 0;
    }
    close(fd);
    if (!rc && memchr(text, 0, got))
        rc = sl_fail(err, SL_ARG, "%s: holds a NUL byte, want text", path);
    if (rc) {
        free(text);
        return rc;
    }
    text[got] = 0;
    *out = text;
    return SL_OK;
}

sl_code sl_conf_read_file(sl_conf *conf, const char *path, sl_err *err)
{
    char *text;
    sl_code rc = load(path, &text, err);
    if (rc) return rc;
    rc = sl_conf_read_string(conf, text, path, err);
    free(text);
    return rc;
}

/* ---- printing ---- */

static void print_string(FILE *to, const char *text)
{
    fputc('"', to);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') fprintf(to, "\\%c", c);
        else if (c < ' ' || c == 127) fprintf(to, "\\x%02x", c);
        else fputc(c, to);
    }
    fputc('"', to);
}

static void print_args(FILE *to, const sl_conf_stage *s)
{
    fputs("[", to);
    for (int i = 0; i < s->arg_count; i++) {
        if (i) fputs(", ", to);
        print_string(to, s->args[i]);
    }
    fputs("]", to);
}

static void print_value(FILE *to, const key *k, const void *base)
{
    const char *at = (const char *)base + k->at;
    char text[64];
    switch (k->type) {
    case INT: fprintf(to, "%d", *(const int *)at); break;
    case INT64:
        fprintf(to, *(const int64_t *)at > 0x7fffffff ? "%lldL" : "%lld",
                (long long)*(const int64_t *)at);
        break;
    case FLOAT:
        /* the shortest that reads back as the same number */
        for (int digits = 6; digits <= 17; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, *(const double *)at);
            if (strtod(text, NULL) == *(const double *)at) break;
        }
        fprintf(to, "%s%s", text, strpbrk(text, ".e") ? "" : ".0");
        break;
    case WORD:
        word_at(k->words, *(const int *)at, text, sizeof text);
        print_string(to, text);
        break;
    case ARGS: print_args(to, base); break;
    case TEAM:
        if (*(const int *)at) fprintf(to, "%d", *(const int *)at);
        else print_string(to, "auto");
        break;
    case DEVICES: break; /* each process is printed with its own */
    case TEXT:
    case WORDS:
    case PROGRAM:
    case DEVICE: print_string(to, at); break;
    }
}

static void print_keys(FILE *to, const sl_conf *conf)
{
    char want[320], what[256], group[64] = "";
    for (int i = 0; i < KEY_COUNT; i++) {
        const key *k = &KEYS[i];
        int n = (int)strcspn(k->path, ".");
        if (strncmp(k->path, group, (size_t)n) || group[n]) {
            if (group[0]) fputs("};\n\n", to);
            snprintf(group, sizeof group, "%.*s", n, k->path);
            fprintf(to, "%s:\n{\n", group);
        }
        fprintf(to, "    # %s\n    #   %s\n    %s = ", meaning(k, what, sizeof what),
                values(k, want, sizeof want), k->path + n + 1);
        print_value(to, k, conf);
        fputs(";\n", to);
    }
    fputs("};\n\n", to);
}

static void print_loras(FILE *to, const sl_conf *conf)
{
    char want[320], what[256];
    fputs("# LoRA that requests over HTTP may ask for, by name. Keys of one:\n", to);
    for (int i = 0; i < LORA_KEY_COUNT; i++)
        fprintf(to, "#   %-10s %s\n#              %s\n", LORA_KEYS[i].path,
                meaning(&LORA_KEYS[i], what, sizeof what),
                values(&LORA_KEYS[i], want, sizeof want));
    fputs("lora:\n(\n", to);
    for (int i = 0; i < conf->lora_count; i++) {
        fputs("    { ", to);
        for (int k = 0; k < LORA_KEY_COUNT; k++) {
            fprintf(to, "%s = ", LORA_KEYS[k].path);
            print_value(to, &LORA_KEYS[k], &conf->lora[i]);
            fputs("; ", to);
        }
        fputs(i + 1 < conf->lora_count ? "},\n" : "}\n", to);
    }
    fputs(");\n\n", to);
}

static void print_stages(FILE *to, const sl_conf *conf)
{
    char want[320], what[256];
    fputs("# The stages, a process each. A role that is not listed is not run; one that is listed "
          "more than once works on\n"
          "# as many jobs at a time. Keys of a stage:\n",
          to);
    for (int i = 0; i < STAGE_KEY_COUNT; i++)
        fprintf(to, "#   %-8s %s\n#            %s\n", STAGE_KEYS[i].path,
                meaning(&STAGE_KEYS[i], what, sizeof what),
                values(&STAGE_KEYS[i], want, sizeof want));
    fputs("stages:\n(\n", to);
    for (int i = 0; i < conf->stage_count; i++) {
        fputs("    { ", to);
        for (int j = 0; j < STAGE_KEY_COUNT; j++) {
            if (STAGE_KEYS[j].type == DEVICES || !is_of_role(&STAGE_KEYS[j], conf->stages[i].role))
                continue;
            fprintf(to, "%s = ", STAGE_KEYS[j].path);
            print_value(to, &STAGE_KEYS[j], &conf->stages[i]);
            fputs("; ", to);
        }
        fputs(i + 1 < conf->stage_count ? "},\n" : "}\n", to);
    }
    fputs(");\n", to);
}

sl_code sl_conf_print(const sl_conf *conf, FILE *to, sl_err *err)
{
    fputs("# Settings of Sluice, every key with its meaning, its range and its default. A key that "
          "is left out has its default;\n"
          "# one that is not known is refused.\n\n",
          to);
    print_keys(to, conf);
    print_loras(to, conf);
    print_stages(to, conf);
    if (fflush(to) || ferror(to)) return sl_fail_errno(err, errno, "write settings");
    return SL_OK;
}
