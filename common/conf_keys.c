/* conf_keys.c - the table of a configuration's keys: range, default, unit and meaning of each. */
#include "common/conf_keys.h"

#include <stddef.h>
#include <string.h>

#include "common/job.h"
#include "common/lora.h"

#define AT(field) offsetof(sl_conf, field)
#define ROOM(field) sizeof(((sl_conf *)0)->field)
#define NUM(path, type, field, lo, hi, number, unit, what)                                         \
    {                                                                                              \
        path, SL_KEY_##type, AT(field), 0, lo, hi, number, NULL, NULL, unit, what                  \
    }
#define TXT(path, field, text, what)                                                               \
    {                                                                                              \
        path, SL_KEY_TEXT, AT(field), ROOM(field), 0, 0, 0, text, NULL, "", what                   \
    }
#define X(name, text) "|" text
#define LEVELS SL_LOG_LEVELS(X)
#define FORMATS SL_LOG_FORMATS(X)
#define NAMED(upper, name) "|" name
#define PRECISIONS SL_PRECISIONS(NAMED)
#define ROLE(NAME, name, where) "|" name
#define ROLES SL_ROLES(ROLE)
#define HANDOVER(NAME, name, from, to, file, how) "|" name
#define HANDED SL_HANDOVERS(HANDOVER)
#define PRESETS "|ultrafast|superfast|veryfast|faster|fast|medium|slow|slower|veryslow|placebo"

static const sl_key KEYS[] = {
    TXT("run.dir", run.dir, "",
        "folder for sockets and spool (\"\": a private one is made and removed)"),
    TXT("run.spool", run.spool, "",
        "folder of finished hand-overs, from which a killed stage's jobs go on (\"\": in run.dir)"),
    {"run.log", SL_KEY_WORD, AT(run.log), 0, 0, 0, 0, "info", LEVELS, "",
     "the least grave messages shown"},
    {"run.log_format", SL_KEY_WORD, AT(run.log_format), 0, 0, 0, 0, "text", FORMATS, "",
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
    {"denoise.rope", SL_KEY_WORDS, AT(denoise.rope), ROOM(denoise.rope), 0, 0, 0, "float32",
     "|float32|bfloat16", "",
     "rotary tables: float32 as the pipeline has them; bfloat16 as a model cast as a whole, the "
     "golden ones among them"},
    {"denoise.precision", SL_KEY_WORDS, AT(denoise.precision), ROOM(denoise.precision), 0, 0, 0,
     "bf16", PRECISIONS, "",
     "numbers of the blocks' large products: bf16 as the device computes (float32 on the CPU); "
     "fp8-linear in 8 bits, fp8 with attention too, on GPUs of compute capability 9.0 and, to "
     "compare, on the "
     "CPU"},
    TXT("denoise.bf16_blocks", denoise.bf16_blocks, "",
        "with fp8-linear and fp8: blocks that stay in bf16 all the same, as \"0,39\" (\"\": none)"),
    TXT("denoise.fp8_attention_steps", denoise.fp8_attention_steps, "",
        "with fp8: steps whose attention is in 8 bits, counted from 1, as \"4-26\" (\"\": all)"),
    {"denoise.fp8_sums", SL_KEY_WORDS, AT(denoise.fp8_sums), ROOM(denoise.fp8_sums), 0, 0, 0,
     "fast", "|fast|float32", "",
     "with fp8-linear and fp8, on a GPU: sums of products; fast within the tensor cores, which "
     "keep "
     "some 13 bits of a sum; float32, for which a forward takes 4 to 5 % longer"},
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
    {"video.preset", SL_KEY_WORDS, AT(video.preset), ROOM(video.preset), 0, 0, 0, "faster", PRESETS,
     "", "time against size of x264"},
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
    NUM("supervise.quiet_s", INT, supervise.quiet_s, 1, 86400, 10, "s",
        "time in which a stage that has a job neither computes nor says anything of the job, after "
        "which that is told; after twice that the stage is killed, and the job tried once more"),
    NUM("supervise.piece_s", INT, supervise.piece_s, 1, 8640000, 21600, "s",
        "likewise of a stage that computes: longest piece of work (a step, a chunk) without a "
        "word"),
    NUM("supervise.drain_s", INT, supervise.drain_s, 0, 86400, 60, "s",
        "time to finish what is running after SIGTERM"),
    {"dispatch.turns", SL_KEY_WORDS, AT(dispatch.turns), ROOM(dispatch.turns), 0, 0, 0, "gpu",
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
    NUM("serve.retries", INT, serve.retries, 0, 1000, 5, "",
        "how often a job is tried again whose server died while it ran, without a hand-over or a "
        "state that was kept between; then it fails (0: without an end)"),
    TXT("serve.hosts", serve.hosts, "",
        "names, with commas between, that requests without a token may be sent to, beside the "
        "loopback's"),
    TXT("serve.image_hosts", serve.image_hosts, "",
        "hosts, with commas between, from which a request's picture may be fetched (\"\": none)"),
    NUM("queue.lease_s", INT, queue.lease_s, 1, 3600, 30, "s",
        "of a queue that servers share (serve --queue): silence after which a server's jobs go to "
        "others"),
    NUM("queue.spool_rate", INT64, queue.spool_rate, 0, 1e15, 0, "bytes/s",
        "fastest that a server writes into the shared folder or store (0: no limit)"),
    NUM("queue.spool_s", INT, queue.spool_s, 0, 3600, 2, "s",
        "least time between two spools of a running job there, hand-overs and denoising states: so "
        "much more of it may be computed again when its server dies"),
    TXT("s3.endpoint", s3.endpoint, "",
        "of serve --blobs s3://BUCKET: the store, as \"http://minio:9000\" (\"\": "
        "AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else AWS's of the region)"),
    TXT("s3.link_endpoint", s3.link_endpoint, "",
        "the same store as clients reach it, for links (\"\": s3.endpoint)"),
    TXT("s3.region", s3.region, "",
        "region (\"\": AWS_REGION, AWS_DEFAULT_REGION, else us-east-1)"),
    {"s3.addressing", SL_KEY_WORDS, AT(s3.addressing), ROOM(s3.addressing), 0, 0, 0, "auto",
     "|auto|path|virtual", "",
     "where a request names the bucket: path HOST/BUCKET, virtual BUCKET.HOST, auto virtual at AWS "
     "and path elsewhere"},
    TXT("s3.credentials", s3.credentials, "",
        "file of keys as AWS's tools have it, read again when it changes (\"\": AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, else AWS_SHARED_CREDENTIALS_FILE, else "
        "~/.aws/credentials); its part is AWS_PROFILE's, else default"),
    TXT("s3.ca", s3.ca, "",
        "file of certificates that the store's is held against (\"\": AWS_CA_BUNDLE, else the "
        "system's)"),
    NUM("s3.part_bytes", INT64, s3.part_bytes, 5242880, 1ll << 32, 16777216, "bytes",
        "a larger file is sent in parts of so many"),
    NUM("s3.try_s", INT, s3.try_s, 1, 300, 5, "s",
        "time for which a request that fails is made again"),
    {"s3.content", SL_KEY_WORDS, AT(s3.content), ROOM(s3.content), 0, 0, 0, "proxy",
     "|proxy|redirect", "",
     "how a client gets its video: proxy through the server, redirect by a link to the store "
     "(302)"},
    NUM("s3.link_s", INT, s3.link_s, 1, 604800, 300, "s", "time that such a link is good for"),
};
#undef AT
#undef ROOM
#define AT(field) offsetof(sl_conf_stage, field)
#define ROOM(field) sizeof(((sl_conf_stage *)0)->field)
static const sl_key STAGE_KEYS[] = {
    {"name", SL_KEY_WORD, AT(role), 0, 0, 0, 0, "", ROLES, "", "the role that the stage plays"},
    {"program", SL_KEY_PROGRAM, AT(program), ROOM(program), 0, 0, 0, "", NULL, "",
     "a path, the name of a program beside sluice, or a command (\"python3 mine.py\")"},
    {"device", SL_KEY_DEVICE, AT(device), ROOM(device), 0, 0, 0, "cpu", NULL, "",
     "where it computes"},
    {"devices", SL_KEY_DEVICES, 0, 0, 0, 0, 0, "", NULL, "",
     "in place of device: one process for each, all of this role"},
    NUM("threads", INT, threads, 0, 1024, 0, "", "OpenMP threads (0: a share of the machine's)"),
    NUM("slots", INT, slots, 1, 64, 2, "",
        "slots of each pool that it receives in: hand-overs that may wait for it (frames: 24)"),
    {"team", SL_KEY_TEAM, AT(team), 0, 1, SL_RANKS, 0, "", NULL, "",
     "of denoise: instances that work on one job together (auto: as many as waiting jobs leave, "
     "changed between steps)"},
    {"comm", SL_KEY_WORDS, AT(comm), ROOM(comm), 0, 0, 0, "auto", "|auto|ipc|nccl|shm", "",
     "of denoise: how a team's members reach each other (auto: ipc on GPUs that can map each "
     "other, else nccl; shm on the CPU)"},
    {"args", SL_KEY_ARGS, 0, 0, 0, 0, 0, "", NULL, "", "more arguments for the program"},
};
#undef X
#undef AT
#undef ROOM
#define AT(field) offsetof(sl_conf_filter, field)
#define ROOM(field) sizeof(((sl_conf_filter *)0)->field)
static const sl_key FILTER_KEYS[] = {
    {"on", SL_KEY_WORD, AT(is.on), 0, 0, 0, 0, "", HANDED, "",
     "the hand-over that it changes, or only looks at"},
    TXT("name", is.name, "",
        "what the log and the dump call it (\"\": as the program's file is called)"),
    {"program", SL_KEY_PROGRAM, AT(stage.program), ROOM(stage.program), 0, 0, 0, "", NULL, "",
     "a path, or a command (\"python3 mine.py\")"},
    {"device", SL_KEY_DEVICE, AT(stage.device), ROOM(stage.device), 0, 0, 0, "cpu", NULL, "",
     "where it computes; --device leaves it as it is"},
    NUM("threads", INT, stage.threads, 0, 1024, 0, "",
        "OpenMP threads (0: a share of the machine's)"),
    NUM("slots", INT, stage.slots, 1, 64, 2, "",
        "slots of the pool that it receives in (of frames: 24)"),
    NUM("scale", FLOAT, is.scale, 0.125, 8, 1, "",
        "of frames: their width and height, times this, are those of the frames that it gives; a "
        "multiple of 1/8"),
    NUM("runs", INT, runs, 0, 1, 1, "",
        "0: no process of it is started, since the jobs have what it made (a replay's)"),
    {"args", SL_KEY_ARGS, 0, 0, 0, 0, 0, "", NULL, "", "more arguments for the program"},
};
#undef AT
#undef ROOM
#define AT(field) offsetof(sl_conf_lora, field)
#define ROOM(field) sizeof(((sl_conf_lora *)0)->field)
static const sl_key LORA_KEYS[] = {
    TXT("name", name, "", "what a request calls it"),
    TXT("file", file, "", "for the transformer (\"\": none)"),
    TXT("file_2", file_2, "", "for the second expert of A14B (\"\": none)"),
    NUM("strength", FLOAT, strength, -SL_LORA_STRENGTH, SL_LORA_STRENGTH, 1, "",
        "of file, times that of the request (NAME:STRENGTH)"),
    NUM("strength_2", FLOAT, strength_2, -SL_LORA_STRENGTH, SL_LORA_STRENGTH, 1, "",
        "of file_2, likewise"),
};

#define TABLE(keys)                                                                                \
    {                                                                                              \
        keys, sizeof(keys) / sizeof *(keys)                                                        \
    }
const sl_keys SL_CONF_KEYS = TABLE(KEYS), SL_CONF_STAGE_KEYS = TABLE(STAGE_KEYS),
              SL_CONF_FILTER_KEYS = TABLE(FILTER_KEYS), SL_CONF_LORA_KEYS = TABLE(LORA_KEYS);

/* ---- words of a list "|error|warn" ---- */

int sl_key_word(const char *words, const char *word)
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

void sl_key_word_at(const char *words, int index, char *out, size_t size)
{
    while (index-- > 0 && *words) words += 1 + strcspn(words + 1, "|");
    snprintf(out, size, "%.*s", *words ? (int)strcspn(words + 1, "|") : 0, words + (*words != 0));
}

/* ---- defaults ---- */

void sl_key_store_number(const sl_key *k, void *base, double v)
{
    char *at = (char *)base + k->at;
    if (k->type == SL_KEY_INT || k->type == SL_KEY_TEAM) *(int *)at = (int)v;
    if (k->type == SL_KEY_INT64) *(int64_t *)at = (int64_t)v;
    if (k->type == SL_KEY_FLOAT) *(double *)at = v;
}

void sl_key_store_text(const sl_key *k, void *base, const char *text)
{
    char *at = (char *)base + k->at;
    if (k->type == SL_KEY_WORD) *(unsigned *)at = (unsigned)sl_key_word(k->words, text);
    else snprintf(at, k->size, "%s", text);
}
_Static_assert(sizeof(sl_log_level) == sizeof(unsigned) && sizeof(sl_role) == sizeof(unsigned) &&
                   sizeof(sl_handover) == sizeof(unsigned) &&
                   sizeof(sl_log_format) == sizeof(unsigned),
               "sl_key_store_text writes these enums");

bool sl_key_is_number(const sl_key *k)
{
    return k->type == SL_KEY_INT || k->type == SL_KEY_INT64 || k->type == SL_KEY_FLOAT ||
           k->type == SL_KEY_TEAM;
}

bool sl_key_is_of_role(const sl_key *k, sl_role role)
{
    return (strcmp(k->path, "team") && strcmp(k->path, "comm")) || sl_role_has_teams(role);
}

void sl_conf_lora_defaults(sl_conf_lora *l)
{
    memset(l, 0, sizeof *l);
    for (int i = 0; i < SL_CONF_LORA_KEYS.count; i++)
        if (sl_key_is_number(&LORA_KEYS[i]))
            sl_key_store_number(&LORA_KEYS[i], l, LORA_KEYS[i].number);
}

void sl_conf_stage_defaults(sl_conf_stage *s, sl_role role)
{
    memset(s, 0, sizeof *s);
    for (int i = 0; i < SL_CONF_STAGE_KEYS.count; i++)
        if (sl_key_is_number(&STAGE_KEYS[i]))
            sl_key_store_number(&STAGE_KEYS[i], s, STAGE_KEYS[i].number);
        else if (STAGE_KEYS[i].type == SL_KEY_WORDS)
            sl_key_store_text(&STAGE_KEYS[i], s, STAGE_KEYS[i].text);
    s->slots = sl_default_slots(role);
    s->role = role;
    snprintf(s->program, sizeof s->program, "sluice-%s", sl_role_name(role));
    snprintf(s->device, sizeof s->device, "cpu");
}

void sl_conf_filter_defaults(sl_conf_filter *f)
{
    const sl_handover on = f->is.on;
    memset(f, 0, sizeof *f);
    for (int i = 0; i < SL_CONF_FILTER_KEYS.count; i++)
        if (sl_key_is_number(&FILTER_KEYS[i]))
            sl_key_store_number(&FILTER_KEYS[i], f, FILTER_KEYS[i].number);
    f->is.on = on;
    f->stage.slots = sl_handover_slots(on);
    f->stage.team = 1;
    snprintf(f->stage.device, sizeof f->stage.device, "cpu");
}

void sl_conf_defaults(sl_conf *out)
{
    memset(out, 0, sizeof *out);
    for (int i = 0; i < SL_CONF_KEYS.count; i++) {
        if (sl_key_is_number(&KEYS[i])) sl_key_store_number(&KEYS[i], out, KEYS[i].number);
        else sl_key_store_text(&KEYS[i], out, KEYS[i].text);
    }
    out->stage_count = SL_ROLE_COUNT;
    for (int i = 0; i < SL_ROLE_COUNT; i++) sl_conf_stage_defaults(&out->stages[i], (sl_role)i);
}

/* ---- what a key wants, in words ---- */

const char *sl_key_values(const sl_key *k, char *out, size_t size)
{
    char list[256];
    switch (k->type) {
    case SL_KEY_INT:
    case SL_KEY_INT64: snprintf(out, size, "an integer from %.0f to %.0f", k->lo, k->hi); break;
    case SL_KEY_FLOAT: snprintf(out, size, "a number from %g to %g", k->lo, k->hi); break;
    case SL_KEY_WORD:
    case SL_KEY_WORDS:
        word_list(k->words, list, sizeof list);
        snprintf(out, size, "one of %s", list);
        break;
    case SL_KEY_TEXT: snprintf(out, size, "a string of at most %zu bytes", k->size - 1); break;
    case SL_KEY_PROGRAM: snprintf(out, size, "a string of 1 to %zu bytes", k->size - 1); break;
    case SL_KEY_DEVICE: snprintf(out, size, "\"cpu\" or \"cuda:N\" with N from 0 to 63"); break;
    case SL_KEY_DEVICES:
        snprintf(out, size, "1 to %d of \"cpu\" or \"cuda:N\" with N from 0 to 63", SL_CONF_SEATS);
        break;
    case SL_KEY_TEAM: snprintf(out, size, "\"auto\" or an integer from 1 to %d", SL_RANKS); break;
    case SL_KEY_ARGS:
        snprintf(out, size, "at most %d strings of at most %d bytes", SL_CONF_ARGS,
                 SL_CONF_ARG - 1);
        break;
    }
    return out;
}

const char *sl_key_meaning(const sl_key *k, char *out, size_t size)
{
    char otherwise[64] = "";
    if (k->type == SL_KEY_TEAM) snprintf(otherwise, sizeof otherwise, "; default \"auto\"");
    else if (sl_key_is_number(k))
        snprintf(otherwise, sizeof otherwise, "; default %.10g", k->number);
    else if (k->text[0]) snprintf(otherwise, sizeof otherwise, "; default \"%s\"", k->text);
    snprintf(out, size, "%s%s%s%s", k->what, k->unit[0] ? ", in " : "", k->unit, otherwise);
    return out;
}
