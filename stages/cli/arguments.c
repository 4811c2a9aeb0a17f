/* arguments.c - the command line of `sluice run`, `replay` and `plan`, by the table of options. */
#include "stages/cli/arguments.h"

#include <string.h>

#include "stages/job/defaults.h"
#include "stages/job/intake.h"
#include "stages/job/options.h"

void sl_cli_usage(FILE *to)
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
                "  sluice bench [WHAT...] [--device cuda:N[,cuda:M...]]           how fast it runs "
                "here: sluice bench --help\n\n");
    const sl_option *o;
    for (int i = 0; (o = sl_option_at(i)); i++) {
        char left[48];
        snprintf(left, sizeof left, "--%s %s", o->name, o->arg ? o->arg : "");
        fprintf(to, "  %-24s %s\n", left, o->what);
    }
    fprintf(to, "\nThe checkpoint's: DIR/" SL_MODEL_DEFAULTS
                ", if it is there, a JSON object with options as keys: max-area, width, height, "
                "frames, fps,\n"
                "steps, guidance, guidance-2, shift, sampler, negative and those of the cache.\n");
    fprintf(
        to,
        "\nExit status: 0 done; 1 a job failed; 2 bad usage or input, refused before any work.\n");
}

static sl_code parse_arguments(sl_batch *b, int argc, char **argv, sl_err *err)
{
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i], *value = NULL;
        char name[64];
        const sl_option *option = NULL;
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
        if ((rc = sl_option_find(&option, name, SL_OPTION_OF_RUN, err))) return rc;
        if (option->kind != SL_OPTION_FLAG) {
            if (a[2 + n] == '=') value = a + 2 + n + 1;
            else if (++i < argc) value = argv[i];
            else
                return sl_fail(err, SL_ARG, "--%s wants a value: %s (%s)", name, option->arg,
                               option->what);
        } else if (a[2 + n] == '=') return sl_fail(err, SL_ARG, "--%s takes no value", name);
        if ((rc = sl_option_set(option->owner == SL_OPTION_OF_RUN ? (void *)b : (void *)&b->base,
                                option, value ? value : "", err)))
            return rc;
    }
    return SL_OK;
}

sl_code sl_cli_parse(sl_batch *b, bool replay, int argc, char **argv, sl_err *err)
{
    sl_code rc = sl_batch_init(b, err);
    if (rc) return rc;
    if (replay) {
        if (argc < 1 || !strncmp(argv[0], "-", 1))
            return sl_fail(
                err, SL_ARG,
                "replay wants the folder that --dump wrote: sluice replay DIR --from STAGE");
        if ((rc = sl_batch_replay(b, argv[0], err))) return rc;
        argc--, argv++;
    }
    if ((rc = parse_arguments(b, argc, argv, err))) return rc;
    return sl_batch_expand(b, err);
}
