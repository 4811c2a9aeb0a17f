/* replay.c - the options of a job and the stages that they speak to. */
#include "stages/job/replay.h"

#include <string.h>

#include "stages/job/options.h"

#define NONE SL_ROLE_COUNT
#define SIZE (SL_ROLE_COUNT + 1) /* the picture's stage, where there is one, else the denoiser */

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
    {"fbcache", SL_ROLE_DENOISE},
    {"fbcache-warmup", SL_ROLE_DENOISE},
    {"fbcache-max-hits", SL_ROLE_DENOISE},
    {"fbcache-final", SL_ROLE_DENOISE},
    {"lora", SL_ROLE_DENOISE},
    {"lora-2", SL_ROLE_DENOISE},
    {"lora-lenient", SL_ROLE_DENOISE},
    {"crf", SL_ROLE_MUX},
    {"dump", NONE},
    {"dump-steps", SL_ROLE_DENOISE},
    {"dump-blocks", SL_ROLE_DENOISE},
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

sl_code sl_replay_check_options(const sl_request *r, const char *from, const sl_model *model,
                                sl_err *err)
{
    const sl_role first = (sl_role)sl_role_by_name(from);
    const sl_option *o;
    for (int i = 0; (o = sl_option_at(i)); i++) {
        if (!(r->given >> i & 1)) continue;
        const sl_role role = sl_replay_role(o->name, model, &r->spec);
        if (role == NONE || sl_role_follows(role, first)) continue;
        return sl_fail(err, SL_ARG,
                       "--%s is given, but a replay from %s takes what the dump's %s made, want "
                       "--from %s",
                       o->name, from, sl_role_name(role), sl_role_name(role));
    }
    return SL_OK;
}
