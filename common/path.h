/* path.h - file paths of bounded length. */
#ifndef SL_PATH_H
#define SL_PATH_H

#include "common/err.h"

#include <stdbool.h>

#define SL_PATH 1024 /* bytes of a path, its NUL included */

/* "DIR/NAME" into out. Errors: SL_ARG longer than SL_PATH - 1 bytes; out is cut then. */
sl_code sl_path_join(char out[SL_PATH], const char *dir, const char *name, sl_err *err);

/* What stands behind the path's last '/', in path; without one all of it. */
const char *sl_path_last(const char *path);

/* A name, of a file or a tensor, ends so, in any case of its letters: "model.SFT" in ".sft". */
bool sl_ends_with(const char *name, const char *end);

/* Something lies there; a link that leads nowhere does. */
bool sl_path_there(const char *path);

#endif
