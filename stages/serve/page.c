/* page.c - files taken in by the assembler, from the top of the tree. */
#include "stages/serve/page.h"

#include <string.h>

#define TAKE_IN(name, file)                                                                        \
    __asm__(".section .rodata\n"                                                                   \
            ".global sl_page_" #name "\nsl_page_" #name ":\n.incbin \"stages/serve/page/" file     \
            "\"\n.global sl_page_" #name "_end\nsl_page_" #name "_end:\n.byte 0\n.previous\n");    \
    extern const char sl_page_##name[], sl_page_##name##_end[]

TAKE_IN(html, "index.html");
TAKE_IN(css, "page.css");
TAKE_IN(js, "page.js");
TAKE_IN(base, "base.js");
TAKE_IN(fleet, "fleet.html");
TAKE_IN(fleet_js, "fleet.js");

static const sl_page FILES[] = {
    {"/", "text/html; charset=utf-8", sl_page_html, sl_page_html_end},
    {"/page.css", "text/css; charset=utf-8", sl_page_css, sl_page_css_end},
    {"/fleet", "text/html; charset=utf-8", sl_page_fleet, sl_page_fleet_end},
    {"/fleet.js", "text/javascript; charset=utf-8", sl_page_fleet_js, sl_page_fleet_js_end},
    {"/base.js", "text/javascript; charset=utf-8", sl_page_base, sl_page_base_end},
    {"/page.js", "text/javascript; charset=utf-8", sl_page_js, sl_page_js_end},
};

const sl_page *sl_page_find(const char *path)
{
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++)
        if (!strcmp(FILES[i].path, path)) return &FILES[i];
    return FILES;
}
