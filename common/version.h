/* version.h - which Sluice this is. */
#ifndef SL_VERSION_H
#define SL_VERSION_H

/* The commit that it was built from, "-dirty" behind it if files had changed; "unknown" outside a
 * repository. */
const char *sl_version(void);

#endif
