/* options.c - the command line of `sluice run` and `sluice replay`, the lines of a jobs
 * file, and a checkpoint's own defaults, by one table. */
#include "stages/cli/cli.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/json.h"

typedef enum { OPT_INT, OPT_I64, OPT_U64, OPT_REAL, OPT_PATH, OPT_TEXT, OPT_FLAG } opt_kind;
/* Whose an option is: the whole run's; a job's, which may stand in a jobs file; a job's
 * that a checkpoint's sluice.json may give, too. */
typedef enum { OF_RUN, OF_JOB, OF_MODEL } opt_owner;

typedef struct {
    const char *name;
    opt_kind kind;
    opt_owner owner;
    size_t at;    /* in cli_job or cli_options */
    size_t given; /* a bool that becomes true; 0: none */
    const char *arg, *what;
} opt;

#define JOB(field) OF_JOB, offsetof(cli_job, spec.field), 0
#define JOB_HAS(field) OF_JOB, offsetof(cli_job, spec.field), offsetof(cli_job, has_##field)
#define CLI(field) OF_JOB, offsetof(cli_job, field), 0
#define MODEL(field) OF_MODEL, offsetof(cli_job, spec.field), offsetof(cli_job, has_##field)
#define RUN(field) OF_RUN, offsetof(cli_options, field), 0

static const opt OPTIONS[] = {
    {"model", OPT_PATH, JOB(model), "DIR", "checkpoint folder in the Diffusers layout"},
    {"image", OPT_PATH, JOB_HAS(image), "FILE", "the picture: PNG, JPEG or WebP"},
    {"last-image", OPT_PATH, JOB_HAS(last_image), "FILE",
     "the last frame's picture (FLF2V checkpoints)"},
    {"prompt", OPT_TEXT, JOB_HAS(prompt), "TEXT", "what shall happen"},
    {"negative", OPT_TEXT, MODEL(negative), "TEXT",
     "what shall not (default: the checkpoint's, else empty)"},
    {"output", OPT_PATH, JOB(output), "FILE", "the video, also -o (default out.mp4)"},
    {"width", OPT_INT, MODEL(width), "W", "pixels, a multiple of 16, with --height"},
    {"height", OPT_INT, MODEL(height), "H", "pixels, a multiple of 16, with --width"},
    {"max-area", OPT_I64, OF_MODEL, offsetof(cli_job, max_area), offsetof(cli_job, has_max_area),
     "PIXELS",
     "without a size: the picture's aspect under this area (default: the checkpoint's, else "
     "399360)"},
    {"frames", OPT_INT, MODEL(frames), "N", "4k + 1 (default: the checkpoint's, else 81)"},
    {"fps", OPT_INT, MODEL(fps), "N", "frames a second (default: the checkpoint's, else 16)"},
    {"steps", OPT_INT, MODEL(steps), "N", "sampler steps (default: the checkpoint's, else 50)"},
    {"guidance", OPT_REAL, MODEL(guidance), "G",
     "classifier-free guidance, 1 or less is off (default: the checkpoint's, else 5)"},
    {"guidance-2", OPT_REAL, MODEL(guidance_2), "G",
     "the low-noise expert's (default: as --guidance, if that is given, else the checkpoint's)"},
    {"shift", OPT_REAL, MODEL(shift), "S",
     "timestep shift (default: the checkpoint's, else its scheduler's)"},
    {"sampler", OPT_PATH, MODEL(sampler), "NAME",
     "unipc or euler (default: the checkpoint's, else its scheduler's)"},
    {"seed", OPT_U64, JOB_HAS(seed), "N", "as torch.Generator(\"cpu\") (default: random)"},
    {"noise", OPT_PATH, JOB_HAS(noise), "FILE",
     "safetensors with `noise` [16, T, h/8, w/8] F32, instead of a seed"},
    {"fbcache", OPT_REAL, MODEL(fbcache), "THRESHOLD",
     "First Block Cache, 0 is off (default: the checkpoint's, else 0)"},
    {"fbcache-warmup", OPT_INT, MODEL(fbcache_warmup), "N", "first steps that always compute"},
    {"fbcache-max-hits", OPT_INT, MODEL(fbcache_max_hits), "N",
     "most steps in a row that are skipped, 0: no cap"},
    {"fbcache-final", OPT_INT, MODEL(fbcache_final), "N", "last steps that always compute"},
    {"crf", OPT_INT, JOB_HAS(crf), "N", "x264 quality, lower is better (default 18)"},
    {"dump", OPT_PATH, CLI(dump_dir), "DIR", "write every hand-over there"},
    {"dump-steps", OPT_FLAG, JOB(dump_steps), NULL,
     "with --dump: also the latents after each step"},
    {"dump-blocks", OPT_FLAG, JOB(dump_blocks), NULL,
     "with --dump: also the tokens after each block of the first forward (large)"},
    {"json", OPT_PATH, CLI(json), "FILE", "the report"},
    {"conf", OPT_PATH, RUN(conf), "FILE", "deployment settings (conf/demo.cfg shows them all)"},
    {"device", OPT_PATH, RUN(device), "D", "cpu or cuda:N, for all stages"},
    {"jobs", OPT_PATH, RUN(jobs_file), "FILE",
     "many jobs: one JSON object a line, with these options as keys"},
    {"from", OPT_PATH, RUN(from), "STAGE", "replay: text, image, denoise or decode"},
    {"quiet", OPT_FLAG, RUN(quiet), NULL, "no progress, no table"},
};
#define OPTION_COUNT ((int)(sizeof OPTIONS / sizeof *OPTIONS))

void cli_usage(FILE *to)
{
    fprintf(to, "sluice - picture and prompt in, video out\n\n"
                "  sluice run --model DIR --image FILE --prompt TEXT [-o out.mp4] [options]\n"
                "  sluice run --model DIR --jobs FILE.jsonl [options]\n"
                "  sluice replay DIR --from text|image|denoise|decode [options]   run on from "
                "dumped hand-overs\n"
                "  sluice inspect DIR [--deep]                                    what a "
                "checkpoint holds, what is missing or odd\n"
                "  sluice plan --model DIR [options of run]                       the memory that "
                "a run takes, by stage and device\n"
                "  sluice pack --model DIR -o DIR2 [--dtype bf16|f32] [--quiet]    a copy of a "
                "checkpoint in the form that loads "
                "fastest\n"
                "  sluice pack --random [--component NAME]... --model DIR -o DIR2  random weights "
                "for DIR's configurations, to measure "
                "with\n"
                "  sluice bench [WHAT...] [--device cuda:N]                       how fast it runs "
                "here: sluice bench --help\n\n");
    for (int i = 0; i < OPTION_COUNT; i++) {
        char left[48];
        snprintf(left, sizeof left, "--%s %s", OPTIONS[i].name,
                 OPTIONS[i].arg ? OPTIONS[i].arg : "");
        fprintf(to, "  %-24s %s\n", left, OPTIONS[i].what);
    }
    fprintf(to, "\nThe checkpoint's: DIR/" MODEL_DEFAULTS
                ", if it is there, a JSON object with options as keys: max-area, width, height, "
                "frames, fps,\n"
                "steps, guidance, guidance-2, shift, sampler, negative and those of the cache.\n");
    fprintf(
        to,
        "\nExit status: 0 done; 1 a job failed; 2 bad usage or input, refused before any work.\n");
}

/* ---- values ---- */

/* A number as people write it: no leading space, no hexadecimal, no words, which strtod
 * and strtoull would take. */
static bool plain_number(const char *v, bool real)
{
    size_t sign = *v == '-' || *v == '+';
    return v[sign] && strspn(v + sign, real ? "0123456789.eE+-" : "0123456789") == strlen(v + sign);
}

static sl_code set_value(void *owner, const opt *o, const char *v, sl_err *err)
{
    char *at = (char *)owner + o->at, *end = NULL;
    size_t room = SL_PATH;
    errno = 0;
    switch (o->kind) {
    case OPT_INT:
    case OPT_I64: {
        long long n = strtoll(v, &end, 10);
        if (!plain_number(v, false) || *end || errno ||
            (o->kind == OPT_INT && (n < INT_MIN || n > INT_MAX)))
            return sl_fail(err, SL_ARG, "--%s is \"%.60s\", want an integer (%s)", o->name, v,
                           o->what);
        if (o->kind == OPT_INT) *(int *)at = (int)n;
        else *(int64_t *)at = n;
        break;
    }
    case OPT_U64: {
        unsigned long long n = strtoull(v, &end, 10);
        if (!plain_number(v, false) || *v == '-' || *end || errno)
            return sl_fail(err, SL_ARG,
                           "--%s is \"%.60s\", want an integer from 0 to 18446744073709551615",
                           o->name, v);
        *(uint64_t *)at = n;
        break;
    }
    case OPT_REAL: {
        double x = strtod(v, &end);
        if (!plain_number(v, true) || *end || !isfinite(x))
            return sl_fail(err, SL_ARG, "--%s is \"%.60s\", want a number (%s)", o->name, v,
                           o->what);
        *(double *)at = x;
        break;
    }
    case OPT_PATH:
        if (at == (char *)owner + offsetof(cli_options, device) && o->owner == OF_RUN)
            room = sizeof((cli_options *)0)->device;
        if (at == (char *)owner + offsetof(cli_options, from) && o->owner == OF_RUN)
            room = sizeof((cli_options *)0)->from;
        if (!*v)
            return sl_fail(err, SL_ARG, "--%s is empty, want %s (%s)", o->name, o->arg, o->what);
        if (strlen(v) >= room)
            return sl_fail(err, SL_ARG, "--%s has %zu bytes, want at most %zu", o->name, strlen(v),
                           room - 1);
        memcpy(at, v, strlen(v) + 1);
        break;
    case OPT_TEXT: {
        sl_code rc = sl_job_set_text((char **)at, v, err);
        if (rc) return rc;
        break;
    }
    case OPT_FLAG:
        if (o->owner == OF_RUN) *(bool *)at = true;
        else *(sl_job_flag *)at = 1;
        break;
    }
    if (o->given) *((bool *)owner + o->given) = true;
    return SL_OK;
}

static int distance(const char *a, const char *b)
{
    int row[64], n = (int)strlen(b);
    if (n > 62 || strlen(a) > 62) return 99;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diag = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int up = row[j], best = diag + (a[i - 1] != b[j - 1]);
            if (up + 1 < best) best = up + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diag = up;
            row[j] = best;
        }
    }
    return row[n];
}

/* An option that may stand where those of `least` may. */
static sl_code find_option(const char *name, opt_owner least, const opt **out, sl_err *err)
{
    const opt *near = NULL;
    int best = 99;
    char dashed[64], keys[256] = "";
    snprintf(dashed, sizeof dashed, "%s", name);
    for (char *c = dashed; *c; c++)
        if (*c == '_') *c = '-';
    for (int i = 0; i < OPTION_COUNT; i++) {
        const opt *o = &OPTIONS[i];
        int d = distance(dashed, o->name);
        if (o->owner < least) continue;
        if (!d) {
            *out = o;
            return SL_OK;
        }
        if (d < best) best = d, near = o;
        snprintf(keys + strlen(keys), sizeof keys - strlen(keys), "%s%s", *keys ? ", " : "",
                 o->name);
    }
    const char *kind = least > OF_RUN ? "key " : "option --", *dashes = least > OF_RUN ? "" : "--";
    if (least == OF_MODEL && !find_option(name, OF_RUN, out, NULL))
        return sl_fail(err, SL_ARG, "key %s has no place here, want some of %s", name, keys);
    if (near && best <= 3)
        return sl_fail(err, SL_ARG, "unknown %s%.60s, did you mean %s%s?", kind, name, dashes,
                       near->name);
    if (least == OF_MODEL)
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

static sl_code json_option(cli_job *job, opt_owner least, const char *key, const json_t *v,
                           sl_err *err)
{
    const opt *o = NULL;
    char number[64];
    const char *text = json_string_value(v);
    sl_code rc = find_option(key, least, &o, err);
    if (rc) return rc;
    if (o->kind == OPT_FLAG) {
        if (!json_is_boolean(v)) return wrong_type(key, v, "true or false", err);
        if (json_is_true(v)) return set_value(job, o, "", err);
        *(sl_job_flag *)((char *)job + o->at) = 0;
        return SL_OK;
    }
    if (json_is_integer(v))
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(v)), text = number;
    else if (json_is_real(v))
        snprintf(number, sizeof number, "%.17g", json_real_value(v)), text = number;
    else if (!text || strlen(text) != json_string_length(v))
        return wrong_type(key, v, "a text or a number", err);
    return set_value(job, o, text, err);
}

static sl_code json_options(cli_job *job, opt_owner least, json_t *object, sl_err *err)
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

/* ---- a jobs file ---- */

static sl_code copy_job(cli_job *to, const cli_job *from, sl_err *err)
{
    *to = *from;
    to->spec.prompt = to->spec.negative = NULL;
    sl_code rc = sl_job_set_text(&to->spec.prompt, from->spec.prompt, err);
    return rc ? rc : sl_job_set_text(&to->spec.negative, from->spec.negative, err);
}

static sl_code json_line(cli_job *job, const char *line, size_t n, const char *file, int number,
                         sl_err *err)
{
    json_error_t je;
    json_t *root = json_loadb(line, n, JSON_REJECT_DUPLICATES, &je);
    sl_code rc;
    if (!root || !json_is_object(root))
        rc = sl_fail(err, SL_FORMAT, "%s:%d: want one JSON object a line: %.200s", file, number,
                     root ? "this is none" : je.text);
    else if ((rc = json_options(job, OF_JOB, root, err)))
        sl_context(err, rc, "%s:%d", file, number);
    json_decref(root);
    return rc;
}

static sl_code read_jobs_file(cli_options *o, sl_err *err)
{
    FILE *f = fopen(o->jobs_file, "re");
    char *line = NULL;
    size_t size = 0;
    ssize_t n;
    sl_code rc = SL_OK;
    if (!f) return sl_fail_errno(err, errno, "--jobs %s", o->jobs_file);
    for (int number = 1; !rc && (n = getline(&line, &size, f)) >= 0; number++) {
        if (strspn(line, " \t\r\n") == (size_t)n) continue;
        if (o->job_count == MAX_RUN_JOBS) {
            rc = sl_fail(err, SL_ARG, "%s has more than %d jobs", o->jobs_file, MAX_RUN_JOBS);
            break;
        }
        cli_job *j = &o->jobs[o->job_count++];
        if ((rc = copy_job(j, &o->base, err))) break;
        j->line = number;
        rc = json_line(j, line, (size_t)n, o->jobs_file, number, err);
        if (!rc && !*j->spec.output) snprintf(j->spec.output, SL_PATH, "out-%d.mp4", o->job_count);
    }
    if (!rc && ferror(f)) rc = sl_fail_errno(err, errno, "--jobs %s", o->jobs_file);
    if (!rc && !o->job_count) rc = sl_fail(err, SL_ARG, "%s holds no job", o->jobs_file);
    free(line);
    fclose(f);
    return rc;
}

/* ---- a checkpoint's own defaults ---- */

sl_code check_size(const cli_job *j, sl_err *err)
{
    const sl_job *s = &j->spec;
    if (!s->width != !s->height)
        return sl_fail(err, SL_ARG, "--width is %d and --height %d, want both or neither", s->width,
                       s->height);
    if (s->width && j->has_max_area)
        return sl_fail(err, SL_ARG,
                       "--max-area is given beside --width and --height, want one of the two");
    if (j->has_max_area && (j->max_area < 256 || j->max_area > (int64_t)8192 * 8192))
        return sl_fail(err, SL_ARG, "--max-area is %lld, want 256 to 67108864 pixels",
                       (long long)j->max_area);
    return SL_OK;
}

static bool given(const cli_job *j, const opt *o)
{
    return *((const bool *)j + o->given);
}

sl_code defaults_read(cli_job *out, const char *dir, sl_err *err)
{
    char path[SL_PATH];
    struct stat st;
    json_t *root = NULL;
    memset(out, 0, sizeof *out);
    sl_code rc = sl_path_join(path, dir, MODEL_DEFAULTS, err);
    if (rc || (rc = sl_job_init(&out->spec, err)) || (lstat(path, &st) && errno == ENOENT))
        return rc;
    if ((rc = sl_json_read(&root, path, MODEL_DEFAULTS_BYTES, err))) return rc;
    if (!(rc = json_options(out, OF_MODEL, root, err)) && !(rc = check_size(out, err))) {
        sl_job s = out->spec; /* its ranges are a job's, and a job has a size */
        if (!out->has_width) s.width = s.height = 16;
        rc = sl_job_check(&s, err);
    }
    if (rc) sl_context(err, rc, "%s", path);
    sl_one_line(err);
    json_decref(root);
    return rc;
}

static sl_code copy_value(cli_job *to, const cli_job *from, const opt *o, sl_err *err)
{
    char *a = (char *)to + o->at;
    const char *b = (const char *)from + o->at;
    if (o->kind == OPT_TEXT) return sl_job_set_text((char **)a, *(char *const *)b, err);
    /* a real has as many bytes */
    memcpy(a, b,
           o->kind == OPT_PATH  ? SL_PATH
           : o->kind == OPT_INT ? sizeof(int)
                                : sizeof(int64_t));
    return SL_OK;
}

sl_code defaults_apply(cli_job *j, const cli_job *defaults, sl_err *err)
{
    const bool sized = j->has_width || j->has_height || j->has_max_area, guided = j->has_guidance;
    sl_code rc;
    for (int i = 0; i < OPTION_COUNT; i++) {
        const opt *o = &OPTIONS[i];
        const bool size =
            !strcmp(o->name, "width") || !strcmp(o->name, "height") || !strcmp(o->name, "max-area");
        if (o->owner != OF_MODEL || !given(defaults, o) || given(j, o) || (sized && size) ||
            (guided && !strcmp(o->name, "guidance-2")))
            continue;
        if ((rc = copy_value(j, defaults, o, err))) return rc;
        *((bool *)j + o->given) = true;
    }
    return SL_OK;
}

bool defaults_print(const cli_job *d, const char *before, FILE *to)
{
    int n = 0;
    for (int i = 0; i < OPTION_COUNT; i++) {
        const opt *o = &OPTIONS[i];
        const char *at = (const char *)d + o->at;
        if (o->owner != OF_MODEL || !given(d, o)) continue;
        fprintf(to, "%s%s ", n++ ? ", " : before, o->name);
        switch (o->kind) {
        case OPT_INT: fprintf(to, "%d", *(const int *)at); break;
        case OPT_I64: fprintf(to, "%lld", (long long)*(const int64_t *)at); break;
        case OPT_REAL: fprintf(to, "%g", *(const double *)at); break;
        case OPT_TEXT: fprintf(to, "of %zu bytes", strlen(*(char *const *)at)); break;
        default: fprintf(to, "%s", at);
        }
    }
    return n > 0;
}

/* ---- the command line ---- */

static sl_code parse_arguments(cli_options *o, int argc, char **argv, sl_err *err)
{
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i], *value = NULL;
        char name[64];
        const opt *option = NULL;
        sl_code rc;
        if (!strcmp(a, "-o")) a = "--output";
        if (strncmp(a, "--", 2))
            return sl_fail(err, SL_ARG,
                           "\"%.60s\" is no option, want --NAME VALUE (sluice help lists them)", a);
        size_t n = strcspn(a + 2, "=");
        if (n >= sizeof name)
            return sl_fail(err, SL_ARG, "unknown option %.60s... (sluice help lists them)", a);
        memcpy(name, a + 2, n);
        name[n] = 0;
        if ((rc = find_option(name, OF_RUN, &option, err))) return rc;
        if (option->kind != OPT_FLAG) {
            if (a[2 + n] == '=') value = a + 2 + n + 1;
            else if (++i < argc) value = argv[i];
            else
                return sl_fail(err, SL_ARG, "--%s wants a value: %s (%s)", name, option->arg,
                               option->what);
        } else if (a[2 + n] == '=') return sl_fail(err, SL_ARG, "--%s takes no value", name);
        if ((rc = set_value(option->owner == OF_RUN ? (void *)o : (void *)&o->base, option,
                            value ? value : "", err)))
            return rc;
    }
    return SL_OK;
}

/* replay: the dumped job is where options start from; its noise is used unless another
 * one is asked for. */
static sl_code start_from_dump(cli_options *o, const char *dir, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc;
    if (strlen(dir) >= sizeof o->replay_dir)
        return sl_fail(err, SL_ARG, "replay: path %.60s... is too long", dir);
    snprintf(o->replay_dir, sizeof o->replay_dir, "%s", dir);
    snprintf(o->base.replay_dir, sizeof o->base.replay_dir, "%s", dir);
    sl_job_free(&o->base.spec);
    if ((rc = sl_path_join(path, dir, "job.json", err))) return rc;
    if (access(path, F_OK))
        return sl_fail(err, SL_ARG,
                       "replay: %.400s is no folder that --dump wrote: no job.json in it", dir);
    if ((rc = sl_job_read(&o->base.spec, path, err))) return sl_context(err, rc, "replay");
    cli_job *b = &o->base;
    b->has_prompt = b->has_shift = b->has_guidance_2 = b->has_fps = b->has_crf = b->has_fbcache =
        b->has_sampler = true;
    b->has_fbcache_warmup = b->has_fbcache_max_hits = b->has_fbcache_final = true;
    *b->spec.output = 0;
    b->spec.dump = b->spec.dump_steps = b->spec.dump_blocks = 0;
    if ((rc = sl_path_join(b->spec.noise, dir, "denoise.safetensors", err))) return rc;
    return SL_OK;
}

sl_code cli_parse(cli_options *o, bool replay, int argc, char **argv, sl_err *err)
{
    sl_code rc;
    memset(o, 0, sizeof *o);
    if ((rc = sl_job_init(&o->base.spec, err))) return rc;
    if (!(o->jobs = calloc(MAX_RUN_JOBS, sizeof *o->jobs)))
        return sl_fail(err, SL_NOMEM, "no memory");
    if (replay) {
        if (argc < 1 || !strncmp(argv[0], "-", 1))
            return sl_fail(
                err, SL_ARG,
                "replay wants the folder that --dump wrote: sluice replay DIR --from STAGE");
        if ((rc = start_from_dump(o, argv[0], err))) return rc;
        argc--, argv++;
    }
    if ((rc = parse_arguments(o, argc, argv, err))) return rc;
    if (replay && o->base.has_seed && !o->base.has_noise) *o->base.spec.noise = 0;
    if (replay) o->base.has_seed = true;
    if (replay && strcmp(o->from, "text") && strcmp(o->from, "image") &&
        strcmp(o->from, "denoise") && strcmp(o->from, "decode"))
        return sl_fail(err, SL_ARG, "--from is \"%s\", want text, image, denoise or decode",
                       o->from);
    if (!replay && *o->from) return sl_fail(err, SL_ARG, "--from belongs to sluice replay");
    if (*o->jobs_file) return read_jobs_file(o, err);
    o->job_count = 1;
    if ((rc = copy_job(&o->jobs[0], &o->base, err))) return rc;
    if (!*o->jobs[0].spec.output) snprintf(o->jobs[0].spec.output, SL_PATH, "out.mp4");
    return SL_OK;
}

void cli_options_free(cli_options *o)
{
    sl_job_free(&o->base.spec);
    for (int i = 0; i < o->job_count; i++) sl_job_free(&o->jobs[i].spec);
    free(o->jobs);
    memset(o, 0, sizeof *o);
}
