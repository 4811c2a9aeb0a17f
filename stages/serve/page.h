/* page.h - the files of stages/serve/page/, as the compiler put them into the program. */
#ifndef SL_PAGE_H
#define SL_PAGE_H

typedef struct {
    const char *path, *type;
    const char *bytes, *end;
} sl_page;

/* The file that is served at this path; the first one if there is none. */
const sl_page *sl_page_find(const char *path);

#endif
