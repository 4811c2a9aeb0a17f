/* t_cases.h - what a test that goes over many cases uses: each of a list, what a case is
 * called, a number that nothing computes. */
#ifndef T_CASES_H
#define T_CASES_H

#include "tests/t.h"

/* What lies beside a view before the operation, and after it. */
#define SENTINEL 77.0f

#define EACH(i, list) for (size_t i = 0; i < sizeof list / sizeof *list; i++)

/* The text of one case. Static buffer. */
static inline const char *say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static inline const char *say(const char *fmt, ...)
{
    static char text[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return text;
}

#endif
