/* serve.c - `sluice serve`: this process becomes sluice-serve. */
#include "stages/cli/verbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/path.h"
#include "stages/job/files.h"

int sl_cli_serve(int argc, char **argv)
{
    char dir[SL_PATH], path[SL_PATH], **words = calloc((size_t)argc + 2, sizeof *words);
    sl_err err = {0};
    if (!words) sl_fail(&err, SL_NOMEM, "no memory");
    else if (!sl_program_dir(dir, &err) && !sl_path_join(path, dir, "sluice-serve", &err)) {
        words[0] = path;
        memcpy(words + 1, argv, (size_t)argc * sizeof *words);
        execv(path, words);
        sl_fail_errno(&err, errno, "%s cannot be started", path);
    }
    free(words);
    sl_complain("%s", err.msg);
    return SL_EXIT_REFUSED;
}
