/* replay.c - the options of a job and the stages that they speak to. */
#include "stages/job/replay.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "stages/job/options.h"

#define NONE SL_ROLES_MOST
#define SIZE (SL_ROLES_MOST + 1) /* the picture's stage, where there is one, else the denoiser */

/* Of every option that describes a job (tests/test_request.c holds it to the table of options). */
static const struct {
    const char *option;
    int role;
} SPEAKS_TO[] = {
    {"model", NONE},
    {"image", SL_ROLE_IMAGE},
    {"last-image", SL_ROLE_IMAGE},
    {"prompt", SL_ROLE_TEXT},
    {"negative", SL_ROLE_TEXT},
    {"output", SL_ROLE_MUX},
    {"width", SIZE},
    {"height", SIZE},
    {"max-area", SIZE},
    {"frames", SIZE},
    {"fps", SL_ROLE_MUX},
    {"steps", SL_ROLE_DENOISE},
    {"guidance", SL_ROLE_DENOISE},
    {"guidance-2", SL_ROLE_DENOISE},
    {"shift", SL_ROLE_DENOISE},
    {"sampler", SL_ROLE_DENOISE},
    {"seed", SL_ROLE_DENOISE},
    {"noise", SL_ROLE_DENOISE},
    {"precision", SL_ROLE_DENOISE},
    {"fbcache", SL_ROLE_DENOISE},
    {"fbcache-warmup", SL_ROLE_DENOISE},
    {"fbcache-max-hits", SL_ROLE_DENOISE},
    {"fbcache-final", SL_ROLE_DENOISE},
    {"lora", SL_ROLE_DENOISE},
    {"lora-2", SL_ROLE_DENOISE},
    {"lora-lenient", SL_ROLE_DENOISE},
    {"crf", SL_ROLE_MUX},
    {"set", NONE}, /* whichever stage it is meant for */
    {"params", NONE},
    {"dump", NONE},
    {"dump-steps", SL_ROLE_DENOISE},
    {"dump-blocks", SL_ROLE_DENOISE},
    {"dump-blocks-of", SL_ROLE_DENOISE},
    {"preview", SL_ROLE_DENOISE},
    {"json", NONE},
    {"trace", NONE},
};

sl_role sl_replay_role(const char *option, const sl_model *model, const sl_job *job)
{
    for (size_t i = 0; i < sizeof SPEAKS_TO / sizeof *SPEAKS_TO; i++) {
        if (strcmp(SPEAKS_TO[i].option, option)) continue;
        if (SPEAKS_TO[i].role != SIZE) return (sl_role)SPEAKS_TO[i].role;
        return sl_takes_picture(&model->family, job) ? SL_ROLE_IMAGE : SL_ROLE_DENOISE;
    }
    return NONE;
}

unsigned sl_replay_again(const sl_request *r)
{
    unsigned again = 0;
    for (size_t i = 0; i < sizeof SPEAKS_TO / sizeof *SPEAKS_TO; i++)
        if (SPEAKS_TO[i].role < SL_ROLE_DENOISE && sl_request_given(r, SPEAKS_TO[i].option))
            again |= 1u << SPEAKS_TO[i].role;
    return again;
}

/* ---- filters ---- */

/* Who stands before this filter, on its hand-over, in a list as sl_pipeline_text writes it: a
 * filter's name, "" nobody. false: the list has no such filter. */
static bool find_before(char before[SL_FILTER_NAME], const char *list, const char *on,
                        const char *name)
{
    const size_t n = strlen(on);
    *before = 0;
    for (const char *at = list; *at; at += strspn(at, " ")) {
        const size_t word = strcspn(at, " ");
        if (!strncmp(at, on, n) && at[n] == ':') {
            const char *found = at + n + 1;
            const size_t length = word - n - 1;
            if (length == strlen(name) && !strncmp(found, name, length)) return true;
            snprintf(before, SL_FILTER_NAME, "%.*s", (int)length, found);
        }
        at += word;
    }
    return false;
}

/* The folder from which r begins: the dump, or of a run that is gone on with the job's own. */
static const char *begins_in(const sl_request *r)
{
    return *r->replay_dir ? r->replay_dir : r->dir;
}

static bool has_file(const sl_request *r, int h)
{
    char file[64], path[SL_PATH];
    snprintf(file, sizeof file, "%s.safetensors", SL_HANDOVER[h].file);
    return !sl_path_join(path, begins_in(r), file, NULL) && !access(path, R_OK);
}

/* The folder has what the filter gave, behind the same filter as in this pipeline. */
static bool has_filtered(const sl_request *r, sl_role filter)
{
    const sl_handover_row *in = &SL_HANDOVER[sl_filter_takes(filter)];
    const char *own = sl_role_is_filter(in->from) ? sl_role_name(in->from) : "";
    char before[SL_FILTER_NAME];
    return find_before(before, r->spec.filters, SL_HANDOVER[in->kind].name, sl_role_name(filter)) &&
           !strcmp(before, own) && has_file(r, sl_filter_gives(filter));
}

unsigned sl_replay_filters(const sl_request *r, const char *from)
{
    const sl_role first = (sl_role)sl_role_by_name(from);
    unsigned again = r->again;
    for (int f = SL_ROLE_COUNT; f < sl_role_count(); f++) {
        const sl_role before = SL_HANDOVER[sl_filter_takes((sl_role)f)].from;
        const bool fresh = sl_role_follows(before, first) || again >> before & 1;
        if (!sl_role_follows((sl_role)f, first) && (fresh || !has_filtered(r, (sl_role)f)))
            again |= 1u << f;
    }
    for (int f = sl_role_count() - 1; f >= SL_ROLE_COUNT; f--) { /* who takes it stands behind */
        const sl_role to = SL_HANDOVER[sl_filter_gives((sl_role)f)].to;
        if (!sl_role_follows(to, first) && !(again >> to & 1)) again &= ~(1u << f);
    }
    return again;
}

bool sl_replay_takes(const sl_request *r, const char *from, sl_handover h)
{
    const sl_handover_row *row = &SL_HANDOVER[h];
    if (row->how != SL_WHOLE || sl_role_follows(row->from, (sl_role)sl_role_by_name(from)) ||
        r->again >> row->from & 1)
        return false;
    return !sl_role_is_filter(row->from) || has_filtered(r, row->from);
}

bool sl_replay_needs(const sl_request *r, const char *from, sl_handover h)
{
    const sl_role to = SL_HANDOVER[h].to, first = (sl_role)sl_role_by_name(from);
    return sl_replay_takes(r, from, h) && (sl_role_follows(to, first) || r->again >> to & 1);
}

uint32_t sl_replay_taken(const sl_request *r, const char *from)
{
    uint32_t taken = 0;
    for (int h = 0; h < sl_handover_count(); h++)
        if (sl_replay_takes(r, from, (sl_handover)h) && has_file(r, h)) taken |= 1u << h;
    return taken;
}

sl_code sl_replay_check_from(const char *from, sl_err *err)
{
    const char *names[SL_ROLES_MOST] = {0};
    char list[512] = "";
    int count = 0;
    for (int i = 0; i < sl_role_count(); i++) {
        const sl_role r = sl_role_in_order(i);
        if (sl_chunks_to(r) < 0) names[count++] = sl_role_name(r);
    }
    for (int i = 0; i < count; i++) {
        const size_t used = strlen(list);
        if (!strcmp(names[i], from)) return SL_OK;
        snprintf(list + used, sizeof list - used, "%s%s", names[i],
                 i < count - 2    ? ", "
                 : i == count - 2 ? " or "
                                  : "");
    }
    return sl_fail(err, SL_ARG, "--from is \"%s\", want %s", from, list);
}

/* ---- options ---- */

sl_code sl_replay_check_options(const sl_request *r, const char *from, const sl_model *model,
                                sl_err *err)
{
    const sl_role first = (sl_role)sl_role_by_name(from);
    const sl_option *o;
    for (int i = 0; (o = sl_option_at(i)); i++) {
        if (!(r->given >> i & 1)) continue;
        const sl_role role = sl_replay_role(o->name, model, &r->spec);
        if (role == NONE || sl_role_follows(role, first) || r->again >> role & 1) continue;
        return sl_fail(err, SL_ARG,
                       "--%s is given, but a replay from %s takes what the dump's %s made, want "
                       "--from %s",
                       o->name, from, sl_role_name(role), sl_role_name(role));
    }
    return SL_OK;
}

/* ---- the line that goes on with a job ---- */

/* The stage from which a replay makes all that `dir` lacks; NONE: there is none. */
static int first_lacking(const sl_job *job, const sl_model *model, const char *dir)
{
    int first = NONE, lacks[SL_HANDOVERS_MOST] = {0};
    char file[64], path[SL_PATH];
    for (int h = 0; h < sl_handover_count(); h++) {
        if (SL_HANDOVER[h].how != SL_WHOLE || !sl_handover_applies((sl_handover)h, model, job))
            continue;
        snprintf(file, sizeof file, "%s.safetensors", SL_HANDOVER[h].file);
        lacks[h] = sl_path_join(path, dir, file, NULL) || access(path, R_OK);
        if (lacks[h] && sl_role_place((int)SL_HANDOVER[h].from) < sl_role_place(first))
            first = (int)SL_HANDOVER[h].from;
    }
    for (int h = 0; h < sl_handover_count(); h++)
        if (lacks[h] && !sl_role_follows(SL_HANDOVER[h].from, (sl_role)first)) return NONE;
    return first == NONE ? SL_ROLE_DECODE : first;
}

/* A word more, as a shell reads it. */
static void put_word(char *out, size_t size, const char *word)
{
    size_t n = strlen(out);
    bool plain = *word;
    for (const char *c = word; *c; c++)
        plain = plain && (isalnum((unsigned char)*c) || strchr("_-./:,=+@%", *c));
    n += (size_t)snprintf(out + n, size - n, "%s%s", n ? " " : "", plain ? word : "'");
    if (n >= size) return;
    for (const char *c = word; !plain && *c && n + 8 < size; c++)
        n += (size_t)snprintf(out + n, size - n, *c == '\'' ? "'\\''" : "%c", *c);
    if (!plain && n < size) snprintf(out + n, size - n, "'");
}

static void put_option(char *out, size_t size, const char *name, const char *value)
{
    char dashed[64];
    snprintf(dashed, sizeof dashed, "--%s", name);
    put_word(out, size, dashed);
    put_word(out, size, value);
}

/* A replay's line has the run's option too: not what its jobs came from, nor where its own record
 * went. */
static bool is_repeated(const sl_option *o)
{
    static const char *const NOT[] = {"jobs", "from", "results", "wire", "log"};
    for (size_t i = 0; i < sizeof NOT / sizeof *NOT; i++)
        if (!strcmp(o->name, NOT[i])) return false;
    return true;
}

void sl_replay_line(char *out, size_t size, const sl_batch *b, const sl_request *r,
                    const sl_model *model, const char *dir)
{
    const int first = first_lacking(&r->spec, model, dir);
    const sl_option *o;
    *out = 0;
    if (first == NONE) return;
    snprintf(out, size, "sluice replay");
    put_word(out, size, dir);
    put_option(out, size, "from", sl_role_name((sl_role)first));
    for (int i = 0; (o = sl_option_at(i)); i++) {
        const char *value = (const char *)b + o->at;
        if (o->owner == SL_OPTION_OF_RUN && o->kind == SL_OPTION_PATH && is_repeated(o) && *value)
            put_option(out, size, o->name, value);
    }
    if (!r->streams) put_option(out, size, "output", r->spec.output);
    if (strlen(out) + 16 > size) *out = 0;
}
