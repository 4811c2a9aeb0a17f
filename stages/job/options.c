/* options.c - the table, and values from text and from JSON by it. */
#include "stages/job/options.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/lora.h"
#include "common/text.h"
#include "stages/job/params.h"

#define AT(type, field) offsetof(type, field), sizeof(((type *)0)->field)
#define JOB(field) SL_OPTION_OF_JOB, AT(sl_request, spec.field), 0
#define JOB_HAS(field)                                                                             \
    SL_OPTION_OF_JOB, AT(sl_request, spec.field), offsetof(sl_request, has_##field)
#define OUTSIDE(field) SL_OPTION_OF_JOB, AT(sl_request, field), 0
#define MODEL(field)                                                                               \
    SL_OPTION_OF_MODEL, AT(sl_request, spec.field), offsetof(sl_request, has_##field)
#define RUN(field) SL_OPTION_OF_RUN, AT(sl_batch, field), 0

static const sl_option OPTIONS[] = {
    {"model", SL_OPTION_PATH, JOB(model), "DIR",
     "the checkpoint: a folder or file, in any layout that inspect knows"},
    {"transformer", SL_OPTION_PATH, RUN(files.part[SL_PART_DIT]), "FILE",
     "in place of the checkpoint's: safetensors, GGUF or .pth of any maker; the high-noise expert"},
    {"transformer-2", SL_OPTION_PATH, RUN(files.part[SL_PART_DIT_2]), "FILE",
     "likewise the low-noise expert"},
    {"text-encoder", SL_OPTION_PATH, RUN(files.part[SL_PART_TEXT]), "FILE", "likewise UMT5"},
    {"image-encoder", SL_OPTION_PATH, RUN(files.part[SL_PART_IMAGE]), "FILE", "likewise CLIP"},
    {"vae", SL_OPTION_PATH, RUN(files.part[SL_PART_VAE]), "FILE", "likewise the VAE"},
    {"tokenizer", SL_OPTION_PATH, RUN(files.tokenizer), "FILE",
     "likewise spiece.model or tokenizer.json"},
    {"image", SL_OPTION_PATH, JOB_HAS(image), "FILE",
     "the picture: PNG, JPEG, WebP, GIF, TIFF, AVIF, ...; - is standard input"},
    {"last-image", SL_OPTION_PATH, JOB_HAS(last_image), "FILE",
     "the last frame's picture (FLF2V checkpoints)"},
    {"prompt", SL_OPTION_TEXT, JOB_HAS(prompt), "TEXT", "what shall happen"},
    {"negative", SL_OPTION_TEXT, MODEL(negative), "TEXT",
     "what shall not (default: the checkpoint's, else empty)"},
    {"output", SL_OPTION_PATH, JOB(output), "FILE",
     "the video, also -o (default out.mp4): .mp4 .m4v .mov .mkv .webm .gif .webp .apng; - is "
     "standard output"},
    {"width", SL_OPTION_INT, MODEL(width), "W",
     "pixels, a multiple of 16 (TI2V-5B: 32), with --height"},
    {"height", SL_OPTION_INT, MODEL(height), "H",
     "pixels, a multiple of 16 (TI2V-5B: 32), with --width"},
    {"max-area", SL_OPTION_I64, SL_OPTION_OF_MODEL, AT(sl_request, max_area),
     offsetof(sl_request, has_max_area), "PIXELS",
     "without a size: the picture's aspect under this area (default: the checkpoint's, else "
     "399360)"},
    {"frames", SL_OPTION_INT, MODEL(frames), "N", "4k + 1 (default: the checkpoint's, else 81)"},
    {"fps", SL_OPTION_RATE, MODEL(fps), "N",
     "frames a second, also 23.976 or 30000/1001 (default: the checkpoint's, else 16; TI2V-5B: "
     "24)"},
    {"steps", SL_OPTION_INT, MODEL(steps), "N",
     "sampler steps (default: the checkpoint's, else 50)"},
    {"guidance", SL_OPTION_REAL, MODEL(guidance), "G",
     "classifier-free guidance, 1 or less is off (default: the checkpoint's, else 5)"},
    {"guidance-2", SL_OPTION_REAL, MODEL(guidance_2), "G",
     "the low-noise expert's (default: as --guidance, if that is given, else the checkpoint's)"},
    {"shift", SL_OPTION_REAL, MODEL(shift), "S",
     "timestep shift (default: the checkpoint's, else its scheduler's)"},
    {"sampler", SL_OPTION_WORD, MODEL(sampler), "NAME",
     "unipc, euler or lightx2v (default: the checkpoint's, else its scheduler's)"},
    {"seed", SL_OPTION_SEED, JOB_HAS(seed), "N",
     "as torch.Generator(\"cpu\"), 64 bits; -1: random, as without one"},
    {"noise", SL_OPTION_PATH, JOB_HAS(noise), "FILE",
     "safetensors with `noise` [16, T, h/8, w/8] F32 (TI2V-5B: [48, T, h/16, w/16]), instead of a "
     "seed"},
    {"precision", SL_OPTION_WORD, JOB_HAS(precision), "NAME",
     "bf16; fp8-linear: the transformer's large products in 8 bits, which is faster and takes half "
     "the memory; or fp8: attention too (default: the configuration's, else bf16)"},
    {"fbcache", SL_OPTION_REAL, MODEL(fbcache), "THRESHOLD",
     "First Block Cache, up to 10, 0 is off (default: the checkpoint's, else 0)"},
    {"fbcache-warmup", SL_OPTION_INT, MODEL(fbcache_warmup), "N",
     "first steps that always compute"},
    {"fbcache-max-hits", SL_OPTION_INT, MODEL(fbcache_max_hits), "N",
     "most steps in a row that are skipped, 0: no cap"},
    {"fbcache-final", SL_OPTION_INT, MODEL(fbcache_final), "N", "last steps that always compute"},
    {"lora", SL_OPTION_LORA, JOB_HAS(lora), "FILE[:STRENGTH]",
     "a LoRA for the transformer, any naming; several add up (default strength 1)"},
    {"lora-2", SL_OPTION_LORA, JOB_HAS(lora_2), "FILE[:STRENGTH]",
     "likewise for the low-noise expert (A14B)"},
    {"lora-lenient", SL_OPTION_FLAG, JOB(lora_lenient), NULL,
     "leave out what a LoRA holds that the model has no place for"},
    {"crf", SL_OPTION_INT, JOB_HAS(crf), "N", "x264 quality, lower is better (default 18)"},
    {"set", SL_OPTION_SET, JOB(params), "KEY=VALUE",
     "tell stages of your own: VALUE is JSON, or else a text; several add up"},
    {"params", SL_OPTION_PARAMS, JOB(params), "JSON",
     "likewise, an object with all of it: {\"KEY\": VALUE, ...}"},
    {"dump", SL_OPTION_PATH, OUTSIDE(dump_dir), "DIR", "write every hand-over there"},
    {"dump-steps", SL_OPTION_FLAG, JOB(dump_steps), NULL,
     "with --dump: also the latents after each step"},
    {"dump-blocks", SL_OPTION_FLAG, JOB(dump_blocks), NULL,
     "with --dump: also the tokens after each block of the first forward (large)"},
    {"dump-blocks-of", SL_OPTION_TEXT, JOB(dump_blocks_of), "WHICH",
     "of other forwards: words as \"steps=0,10-12 branches=cond,uncond blocks=3-5 attention\""},
    {"preview", SL_OPTION_PATH, JOB(preview), "FILE",
     "after each step a PNG of the video's middle as it looks so far"},
    {"json", SL_OPTION_PATH, OUTSIDE(json), "FILE", "the report"},
    {"trace", SL_OPTION_PATH, OUTSIDE(trace), "FILE",
     "where the time went, for chrome://tracing and ui.perfetto.dev"},
    {"conf", SL_OPTION_PATH, RUN(conf), "FILE",
     "deployment settings (conf/demo.cfg shows them all)"},
    {"device", SL_OPTION_PATH, RUN(device), "D[,D...]",
     "cpu or cuda:N, for all stages; of several, each denoises"},
    {"jobs", SL_OPTION_PATH, RUN(jobs_file), "FILE",
     "many jobs: one JSON object a line, with these options as keys; - is standard input"},
    {"resume", SL_OPTION_FLAG, RUN(resume), NULL,
     "go on with the jobs that killed runs left in run.spool of --conf"},
    {"from", SL_OPTION_PATH, RUN(from), "STAGE",
     "replay: text, image, denoise or decode; stage: the dump's folder"},
    {"step", SL_OPTION_INT, RUN(step), "K",
     "replay --from denoise: from step K on, of a dump with --dump-steps, with what is given "
     "besides"},
    {"results", SL_OPTION_PATH, RUN(results), "FILE",
     "the report of each job as it ends, one JSON object a line; - is standard output"},
    {"wire", SL_OPTION_PATH, RUN(wire), "FILE",
     "every message between the dispatcher and the others, one JSON object a line"},
    {"log", SL_OPTION_PATH, RUN(log), "LEVEL",
     "the least grave messages shown: error, warn, info or debug (default: run.log of --conf)"},
    {"quiet", SL_OPTION_FLAG, RUN(quiet), NULL, "no progress, no table"},
};
#define OPTION_COUNT ((int)(sizeof OPTIONS / sizeof *OPTIONS))

const sl_option *sl_option_at(int i)
{
    return i >= 0 && i < OPTION_COUNT ? &OPTIONS[i] : NULL;
}

/* ---- values ---- */

/* A number as people write it: no leading space, no hexadecimal, no words, which strtod
 * and strtoull would take. */
static bool is_plain_number(const char *v, bool real)
{
    size_t sign = *v == '-' || *v == '+';
    return v[sign] && strspn(v + sign, real ? "0123456789.eE+-" : "0123456789") == strlen(v + sign);
}

/* *field becomes the rows `before` and one more. */
static sl_code add_lora(char **field, const char *before, const char *v, sl_err *err)
{
    sl_lora_use uses[SL_LORA_MOST + 1];
    const int n = sl_lora_uses(uses, before, err);
    sl_code rc;
    if (n < 0) return err ? err->code : SL_FORMAT;
    if (n == SL_LORA_MOST)
        return sl_fail(err, SL_ARG, "more than %d files, want at most so many", SL_LORA_MOST);
    if ((rc = sl_lora_use_parse(&uses[n], v, err))) return rc;
    char *rows = sl_lora_field(uses, n + 1);
    if (!rows) return sl_fail(err, SL_NOMEM, "no memory");
    free(*field);
    *field = rows;
    return SL_OK;
}

/* A job remembers which of its options were said. */
static void note_given(void *owner, const sl_option *o)
{
    _Static_assert(OPTION_COUNT <= 64, "an option a bit");
    if (o->owner == SL_OPTION_OF_RUN || o < OPTIONS || o >= OPTIONS + OPTION_COUNT) return;
    ((sl_request *)owner)->given |= (uint64_t)1 << (o - OPTIONS);
}

bool sl_request_given(const sl_request *r, const char *name)
{
    for (int i = 0; i < OPTION_COUNT; i++)
        if (!strcmp(OPTIONS[i].name, name)) return r->given >> i & 1;
    return false;
}

sl_code sl_option_set(void *owner, const sl_option *o, const char *v, sl_err *err)
{
    char *at = (char *)owner + o->at, *end = NULL;
    errno = 0;
    switch (o->kind) {
    case SL_OPTION_INT:
    case SL_OPTION_I64: {
        long long n = strtoll(v, &end, 10);
        if (!is_plain_number(v, false) || *end || errno ||
            (o->kind == SL_OPTION_INT && (n < INT_MIN || n > INT_MAX)))
            return sl_fail(err, SL_ARG, "--%s is \"%.60s\", want an integer (%s)", o->name, v,
                           o->what);
        if (o->kind == SL_OPTION_INT) *(int *)at = (int)n;
        else *(int64_t *)at = n;
        /* no size is none given */
        if (!n && o->given && (!strcmp(o->name, "width") || !strcmp(o->name, "height"))) {
            *((bool *)owner + o->given) = false;
            return SL_OK;
        }
        break;
    }
    case SL_OPTION_SEED: {
        sl_request *r = owner;
        if ((r->random_seed = !strcmp(v, "-1"))) break;
        unsigned long long n = strtoull(v, &end, 10);
        if (!is_plain_number(v, false) || *v == '-' || *end || errno)
            return sl_fail(
                err, SL_ARG,
                "--%s is \"%.60s\", want an integer from 0 to 18446744073709551615, or -1", o->name,
                v);
        *(uint64_t *)at = n;
        break;
    }
    case SL_OPTION_REAL: {
        double x = strtod(v, &end);
        if (!is_plain_number(v, true) || *end || !isfinite(x))
            return sl_fail(err, SL_ARG, "--%s is \"%.60s\", want a number (%s)", o->name, v,
                           o->what);
        *(double *)at = x;
        break;
    }
    case SL_OPTION_RATE: {
        double x = strtod(v, &end);
        const bool ratio = *end == '/' && end > v;
        const double by = ratio ? strtod(end + 1, &end) : 1;
        if (strspn(v, "0123456789./") != strlen(v) || *end || end == v || !(by > 0) ||
            !isfinite(x / by))
            return sl_fail(err, SL_ARG, "--%s is \"%.60s\", want a number or a ratio (%s)", o->name,
                           v, o->what);
        *(double *)at = x / by;
        break;
    }
    case SL_OPTION_PATH:
    case SL_OPTION_WORD:
        if (!*v)
            return sl_fail(err, SL_ARG, "--%s is empty, want %s (%s)", o->name, o->arg, o->what);
        if (strlen(v) >= o->room)
            return sl_fail(err, SL_ARG, "--%s has %zu bytes, want at most %zu", o->name, strlen(v),
                           o->room - 1);
        memcpy(at, v, strlen(v) + 1);
        break;
    case SL_OPTION_TEXT: {
        sl_code rc = sl_job_set_text((char **)at, v, err);
        if (rc) return rc;
        break;
    }
    case SL_OPTION_LORA: {
        const bool more = o->given && *((bool *)owner + o->given);
        sl_code rc = add_lora((char **)at, more ? *(char **)at : "", v, err);
        if (rc) return sl_context(err, rc, "--%s", o->name);
        break;
    }
    case SL_OPTION_PARAMS:
    case SL_OPTION_SET: {
        sl_code rc = o->kind == SL_OPTION_SET ? sl_params_set((char **)at, v, err)
                                              : sl_params_parse((char **)at, v, err);
        if (rc) return sl_context(err, rc, "--%s", o->name);
        break;
    }
    case SL_OPTION_FLAG:
        if (o->owner == SL_OPTION_OF_RUN) *(bool *)at = true;
        else *(sl_job_flag *)at = 1;
        break;
    }
    if (o->given) *((bool *)owner + o->given) = true;
    note_given(owner, o);
    return SL_OK;
}

/* ---- names ---- */

/* What other programs call an option; "cfg" and its like are short of any distance. */
static const char *const MEANT[][2] = {
    {"num-frames", "frames"},
    {"length", "frames"},
    {"frame-num", "frames"},
    {"video-length", "frames"},
    {"guidance-scale", "guidance"},
    {"cfg", "guidance"},
    {"cfg-scale", "guidance"},
    {"guide-scale", "guidance"},
    {"sample-guide-scale", "guidance"},
    {"guidance-scale-2", "guidance-2"},
    {"negative-prompt", "negative"},
    {"n-prompt", "negative"},
    {"neg-prompt", "negative"},
    {"flow-shift", "shift"},
    {"sample-shift", "shift"},
    {"num-inference-steps", "steps"},
    {"sample-steps", "steps"},
    {"num-steps", "steps"},
    {"infer-steps", "steps"},
    {"base-seed", "seed"},
    {"noise-seed", "seed"},
    {"image-path", "image"},
    {"input-image", "image"},
    {"input", "image"},
    {"i", "image"},
    {"first-frame", "image"},
    {"end-image", "last-image"},
    {"last-frame", "last-image"},
    {"save-file", "output"},
    {"output-path", "output"},
    {"out", "output"},
    {"ckpt-dir", "model"},
    {"checkpoint", "model"},
    {"model-path", "model"},
    {"frame-rate", "fps"},
    {"sample-solver", "sampler"},
    {"scheduler", "sampler"},
    {"sampler-name", "sampler"},
    {"teacache", "fbcache"},
    {"lora-path", "lora"},
    {"p", "prompt"},
    {"text", "prompt"},
    {"gpu", "device"},
    {"devices", "device"},
    {"config", "conf"},
    {"quality", "crf"},
    {"resolution", "max-area"},
    {"size", "width"},
};

static const char *meant_by(const char *name)
{
    for (size_t i = 0; i < sizeof MEANT / sizeof *MEANT; i++)
        if (!strcmp(MEANT[i][0], name)) return MEANT[i][1];
    return NULL;
}

sl_code sl_option_find(const sl_option **out, const char *name, sl_option_owner least, sl_err *err)
{
    const sl_option *near = NULL;
    int best = 99;
    char dashed[64], keys[256] = "";
    snprintf(dashed, sizeof dashed, "%s", name);
    for (char *c = dashed; *c; c++)
        if (*c == '_') *c = '-';
    for (int i = 0; i < OPTION_COUNT; i++) {
        const sl_option *o = &OPTIONS[i];
        int d = sl_text_distance(dashed, o->name);
        if (o->owner < least) continue;
        if (!d) {
            *out = o;
            return SL_OK;
        }
        if (d < best) best = d, near = o;
        snprintf(keys + strlen(keys), sizeof keys - strlen(keys), "%s%s", *keys ? ", " : "",
                 o->name);
    }
    const char *meant = meant_by(dashed);
    for (int i = 0; i < OPTION_COUNT && meant; i++)
        if (!strcmp(OPTIONS[i].name, meant) && OPTIONS[i].owner >= least)
            near = &OPTIONS[i], best = 0;
    const char *kind = least > SL_OPTION_OF_RUN ? "key " : "option --",
               *dashes = least > SL_OPTION_OF_RUN ? "" : "--";
    if (least == SL_OPTION_OF_MODEL && !sl_option_find(out, name, SL_OPTION_OF_RUN, NULL))
        return sl_fail(err, SL_ARG, "key %s has no place here, want some of %s", name, keys);
    if (near && best <= 3)
        return sl_fail(err, SL_ARG, "unknown %s%.60s, did you mean %s%s?", kind, name, dashes,
                       near->name);
    if (least == SL_OPTION_OF_MODEL)
        return sl_fail(err, SL_ARG, "unknown key %.60s, want some of %s", name, keys);
    return sl_fail(err, SL_ARG, "unknown %s%.60s (sluice help lists them)", kind, name);
}

/* ---- JSON objects with options as keys ---- */

static sl_code wrong_type(const char *key, const json_t *v, const char *want, sl_err *err)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    sl_code rc = sl_fail(err, SL_ARG, "%s is %.60s, want %s", key, text ? text : "?", want);
    free(text);
    return rc;
}

/* A text, or an array of them; they replace what the job had before. */
static sl_code json_lora(sl_request *job, const sl_option *o, const char *key, const json_t *v,
                         sl_err *err)
{
    const size_t n = json_is_array(v) ? json_array_size(v) : 1;
    sl_code rc = sl_job_set_text((char **)((char *)job + o->at), "", err);
    for (size_t i = 0; i < n && !rc; i++) {
        const json_t *one = json_is_array(v) ? json_array_get(v, i) : v;
        const char *text = json_string_value(one);
        if (!text || strlen(text) != json_string_length(one))
            return wrong_type(key, one, "a text, FILE[:STRENGTH], or an array of them", err);
        if (!i) *((bool *)job + o->given) = false; /* the first replaces */
        rc = sl_option_set(job, o, text, err);
    }
    *((bool *)job + o->given) = true;
    return rc;
}

static sl_code json_option(sl_request *job, sl_option_owner least, const char *key, const json_t *v,
                           sl_err *err)
{
    const sl_option *o = NULL;
    char number[64];
    const char *text = json_string_value(v);
    sl_code rc = sl_option_find(&o, key, least, err);
    if (rc) return rc;
    if (o->kind == SL_OPTION_LORA) return json_lora(job, o, key, v, err);
    if (o->kind == SL_OPTION_PARAMS && json_is_object(v)) {
        note_given(job, o);
        return sl_params_put((char **)((char *)job + o->at), v, err);
    }
    if (o->kind == SL_OPTION_FLAG) {
        if (!json_is_boolean(v)) return wrong_type(key, v, "true or false", err);
        if (json_is_true(v)) return sl_option_set(job, o, "", err);
        *(sl_job_flag *)((char *)job + o->at) = 0;
        return SL_OK;
    }
    if (json_is_integer(v))
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(v)), text = number;
    else if (json_is_real(v))
        snprintf(number, sizeof number, "%.17g", json_real_value(v)), text = number;
    else if (!text || strlen(text) != json_string_length(v))
        return wrong_type(key, v, "a text or a number", err);
    return sl_option_set(job, o, text, err);
}

sl_code sl_request_read_json(sl_request *job, sl_option_owner least, json_t *object, sl_err *err)
{
    const char *key;
    json_t *v;
    sl_code rc = SL_OK;
    json_object_foreach(object, key, v)
    {
        if ((rc = json_option(job, least, strcmp(key, "o") ? key : "output", v, err))) break;
    }
    return rc;
}
