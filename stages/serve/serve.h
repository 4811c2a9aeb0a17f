/* serve.h - `sluice serve`: a queue that survives, HTTP in front, the pipeline behind. */
#ifndef SL_SERVE_H
#define SL_SERVE_H

/* argv are the words after the verb. The exit status: 0 drained; 1 it could not go on; 2 refused
 * before any work, one line on stderr. */
int sl_serve_main(int argc, char **argv);

#endif
