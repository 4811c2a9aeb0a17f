/* terminal.h - what others wrote, on a terminal: without control characters, by columns. */
#ifndef SL_CLI_TERMINAL_H
#define SL_CLI_TERMINAL_H

#include <stdio.h>

#include <jansson.h>

#include "common/err.h"

/* Columns of stdout's terminal; 0: stdout is none. */
int sl_terminal_columns(void);
/* UTF-8 text in at most `columns` columns (0: all of it), cut with "..."; what would move the
 * cursor, end the line or turn the direction of text becomes '?'. */
void sl_print_text(FILE *to, const char *text, int columns);
/* "12 s", "35 min", "2.1 h", "4.0 d". */
void sl_format_seconds(char out[16], double s);
/* "831 B", "12.3 kB", "4.56 MB". */
void sl_format_bytes(char out[16], double bytes);
/* JSON, indented, into a file; "-": to stdout, in ASCII where that is a terminal. Errors:
 * SL_SYS. */
sl_code sl_json_to_file(json_t *o, const char *path, sl_err *err);

#endif
