/* once.c - warnings that are said once. */
#include "stages/dispatch/once.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"

void sl_once_warn(sl_once *o, const char *fmt, ...)
{
    char text[SL_ONCE_TEXT];
    va_list ap;
    int i = 0;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    while (i < o->count && strcmp(o->at[i].text, text)) i++;
    if (i == SL_ONCE) {
        o->others++;
        return;
    }
    if (i == o->count) {
        memcpy(o->at[o->count++].text, text, sizeof text);
        sl_log(SL_LOG_WARN, "%s", text);
    }
    o->at[i].times++;
}

void sl_once_tell(const sl_once *o)
{
    for (int i = 0; i < o->count; i++)
        if (o->at[i].times > 1)
            sl_log(SL_LOG_WARN, "%d times in all: %s", o->at[i].times, o->at[i].text);
    if (o->others)
        sl_log(SL_LOG_WARN, "%d more warnings, of other texts, were not said", o->others);
}
