/* files.h - what a client does with files: copies, private directories, cleaning up. */
#ifndef SL_FILES_H
#define SL_FILES_H

#include <stdbool.h>

#include "common/path.h"

sl_code sl_copy_file(const char *from, const char *to, sl_err *err);
void sl_remove_tree(const char *dir);
sl_code sl_make_dirs(const char *dir, sl_err *err); /* mkdir -p */
sl_code sl_absolute_path(char out[SL_PATH], const char *path, sl_err *err);
/* The folder of this program, with the stages beside it. */
sl_code sl_program_dir(char out[SL_PATH], sl_err *err);
/* The state folder of a server that is given none: $XDG_STATE_HOME/sluice, else
 * ~/.local/state/sluice. Errors: SL_ARG neither is known. */
sl_code sl_state_dir(char out[SL_PATH], sl_err *err);

/* Refusals, without touching anything: SL_ARG "X is a directory, want a file"; a folder
 * that sl_make_dirs could not make. */
sl_code sl_regular_file(const char *path, sl_err *err);
sl_code sl_can_make_dir(const char *path, sl_err *err);
/* Can this file be made? Its folder must exist and take a new file; the file itself may exist.
 * `stream`: it may be a pipe or a terminal, too (a report; a video is renamed into place, and
 * would replace a device). `what` begins the message. */
sl_code sl_can_write_file(const char *path, const char *what, bool stream, sl_err *err);
/* Do two paths, there or still to be written, name the same file? "" is no file. */
bool sl_same_file(const char *a, const char *b);

/* A private run directory holding a lock for as long as this process lives; older ones
 * whose owner is dead are removed. `wanted`: its path; "" for a new one, in TMPDIR, or where that
 * will not do (which is logged) or is not set in /var/tmp, else /tmp. */
sl_code sl_make_run_dir(char out[SL_PATH], const char *wanted, sl_err *err);

#endif
