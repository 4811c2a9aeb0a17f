/* fuzz_prompt.c - any bytes as a prompt: refused, or cleaned to valid text without white
 * space at its ends. */
#include "common/prompt.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_err err = {0};
    char *clean = NULL, *again = NULL;
    if (sl_prompt_clean(&clean, (const char *)data, size, &err)) return 0;
    size_t n = strlen(clean);
    if (n && (clean[0] == ' ' || clean[n - 1] == ' ')) abort();
    if (n <= SL_PROMPT_MAX && sl_prompt_clean(&again, clean, n, &err)) abort();
    free(again);
    free(clean);
    return 0;
}
