/* terminal.c - columns and widths. */
#include "stages/cli/terminal.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <utf8proc.h>

#include "common/json.h"

int sl_terminal_columns(void)
{
    struct winsize w;
    if (!isatty(1)) return 0;
    return !ioctl(1, TIOCGWINSZ, &w) && w.ws_col > 0 ? w.ws_col : 80;
}

/* The next character: its bytes, and its columns; -1 columns: one that is not shown as it is. */
static int next(const char *text, int *columns)
{
    utf8proc_int32_t c;
    utf8proc_ssize_t n =
        utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)strnlen(text, 4), &c);
    if (n <= 0) {
        *columns = -1;
        return 1;
    }
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: *columns = -1; break;
    default: *columns = utf8proc_charwidth(c);
    }
    return (int)n;
}

static int width(const char *text)
{
    int sum = 0, columns;
    while (*text) {
        text += next(text, &columns);
        sum += columns < 0 ? 1 : columns;
    }
    return sum;
}

void sl_print_text(FILE *to, const char *text, int room)
{
    const bool cut = room > 0 && width(text) > room;
    int used = 0, columns;
    while (*text) {
        int n = next(text, &columns);
        if (cut && used + (columns < 0 ? 1 : columns) > room - 3) break;
        if (columns < 0) fputc('?', to);
        else fwrite(text, 1, (size_t)n, to);
        used += columns < 0 ? 1 : columns;
        text += n;
    }
    if (cut) fprintf(to, "%.*s", room < 3 ? room : 3, "...");
}

void sl_format_seconds(char out[16], double s)
{
    if (!(s >= 0 && s < 1e9)) snprintf(out, 16, "-");
    else if (s < 120) snprintf(out, 16, "%.0f s", s);
    else if (s < 7200) snprintf(out, 16, "%.0f min", s / 60);
    else if (s < 172800) snprintf(out, 16, "%.1f h", s / 3600);
    else snprintf(out, 16, "%.1f d", s / 86400);
}

void sl_format_bytes(char out[16], double n)
{
    if (!(n >= 0 && n < 1e18)) snprintf(out, 16, "-");
    else if (n < 1000) snprintf(out, 16, "%.0f B", n);
    else if (n < 1e6) snprintf(out, 16, "%.1f kB", n * 1e-3);
    else if (n < 1e9) snprintf(out, 16, "%.2f MB", n * 1e-6);
    else snprintf(out, 16, "%.2f GB", n * 1e-9);
}

sl_code sl_json_to_file(json_t *o, const char *path, sl_err *err)
{
    const size_t ascii = isatty(1) ? JSON_ENSURE_ASCII : 0;
    if (strcmp(path, "-")) return sl_json_write(json_incref(o), path, JSON_INDENT(2), "JSON", err);
    errno = 0;
    if (!json_dumpf(o, stdout, JSON_INDENT(2) | ascii) && putchar('\n') >= 0 && !fflush(stdout))
        return SL_OK;
    return sl_fail_errno(err, errno ? errno : EIO, "stdout");
}
