/* program.h - how a configuration names the program of a stage: a path, the name of a program
 * beside sluice, or a command: words with spaces between, "python3 mine.py". */
#ifndef SL_PROGRAM_H
#define SL_PROGRAM_H

#include "common/path.h"

#define SL_PROGRAM_WORDS 16 /* of a command, at most */
#define SL_WRAPPER_WORDS 64 /* most that a wrapper (gdb --args) has, before the program */

typedef struct {
    char path[SL_PATH];               /* of the file to be executed, whether or not it is there */
    char text[SL_PATH];               /* holds the words */
    char *word[SL_PROGRAM_WORDS + 1]; /* as argv has them; NULL behind the last */
    int count;
} sl_program;

/* What `program` means. A file of this very name, spaces and all, is one word. Else the first word
 * is a path, if a '/' is in it, the name of a program in bin_dir, or one that PATH finds. Words
 * point into *out, which is not to be copied. Errors: SL_ARG too long, too many words. */
sl_code sl_program_find(sl_program *out, const char *program, const char *bin_dir, sl_err *err);

#endif
