/* fuzz_conf.c - any text as a settings file: refused with a message or read, and then
 * printed and read back the same. */
#include <stdlib.h>
#include <string.h>

#include "common/conf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__lsan_default_suppressions(void);

/* libconfig 1.5 loses its scanner's 64-byte buffer when a file ends inside a string: its
 * leak, at most one a process here, which ends on a bad file. */
const char *__lsan_default_suppressions(void)
{
    return "leak:libconfig.so";
}

static char *printed(const sl_conf *c)
{
    char *text = NULL;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    if (!f || sl_conf_print(c, f, NULL)) abort();
    fclose(f);
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_conf c, again;
    sl_err err = {0};
    char *text = malloc(size + 1);
    memcpy(text, data, size);
    text[size] = 0;
    sl_conf_defaults(&c);
    sl_code rc = sl_conf_read_string(&c, text, "fuzz.cfg", &err);
    free(text);
    if (rc) {
        if (rc != err.code || strncmp(err.msg, "fuzz.cfg:", 9) || strchr(err.msg, '\n')) abort();
        return 0;
    }
    char *first = printed(&c);
    sl_conf_defaults(&again);
    if (sl_conf_read_string(&again, first, "printed", &err)) abort();
    char *second = printed(&again);
    if (strcmp(first, second)) abort();
    free(first);
    free(second);
    return 0;
}
