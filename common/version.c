/* version.c - which Sluice this is. The Makefile says it to this file alone. */
#include "common/version.h"

#ifndef SL_COMMIT
#define SL_COMMIT "unknown"
#endif

const char *sl_version(void)
{
    return SL_COMMIT;
}
