/* arguments.c - the command line of `sluice run`, `replay` and `plan`, by the table of options. */
#include "stages/cli/arguments.h"

#include <string.h>

#include "stages/job/intake.h"
#include "stages/job/options.h"

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
