/* protocol.c - `sluice protocol`: the protocol of stages, for programs and for people. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/protocol.h"
#include "stages/cli/verbs.h"

static int print_json(void)
{
    char *text = sl_protocol_json();
    if (!text) sl_complain("protocol: no memory");
    else puts(text);
    free(text);
    return text && !fflush(stdout) ? SL_EXIT_OK : SL_EXIT_FAILED;
}

int sl_cli_protocol(int argc, char **argv)
{
    sl_err err = {0};
    if (argc > 1 || (argc && strcmp(argv[0], "--json") && strcmp(argv[0], "--markdown"))) {
        sl_complain("protocol: unknown word \"%.60s\", want --json or --markdown", argv[argc - 1]);
        return SL_EXIT_REFUSED;
    }
    if (!argc || !strcmp(argv[0], "--json")) return print_json();
    if (!sl_protocol_markdown(stdout, &err) && !fflush(stdout)) return SL_EXIT_OK;
    sl_complain("%s", err.msg);
    return SL_EXIT_FAILED;
}
