/* fuzz_s3.c - a store's XML, whatever it is: pieces lie inside of what was given, text fits. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "stages/serve/s3_xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *copy = malloc(size ? size : 1), text[16];
    if (!copy) return 0;
    if (size) memcpy(copy, data, size); /* no byte behind it is its own */
    sl_s3_text all = {copy, size}, one;
    while (sl_s3_xml_next(&all, "Contents", &one)) {
        if (one.at < copy || one.at + one.size > copy + size || all.at <= one.at) abort();
        if (!sl_s3_xml_get(one, "Key", text, sizeof text) && *text) abort();
        if (strlen(text) >= sizeof text) abort();
    }
    sl_s3_xml_get((sl_s3_text){copy, size}, "Code", text, sizeof text);
    free(copy);
    return 0;
}
