/* front.h - the main thread of a server that takes requests and makes no videos. */
#ifndef SL_FRONT_H
#define SL_FRONT_H

#include "stages/serve/server.h"

/* Run until SIGTERM or SIGINT: HTTP's threads do the work. reload, began and self as
 * sl_pipeline_run has them. Errors: SL_SYS. */
sl_code sl_front_run(sl_server *s, void (*reload)(void *self), void (*began)(void *self),
                     void *self, sl_err *err);

#endif
