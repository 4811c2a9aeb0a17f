/* start.h - a stage's process: its command line, its environment, what it is before its program
 * runs. */
#ifndef SL_DISPATCH_START_H
#define SL_DISPATCH_START_H

#include "stages/dispatch/seats.h"

/* Start the process of a seat: its program, --connect ENDPOINT --conf FILE --model DIR --device D
 * and the configuration's arguments, with its number and threads in the environment; it dies with
 * this process. The seat that is attached has the wrapper's words before it, and the terminal; of
 * other programs than Sluice's own a voice says what they print. The seat's pid is set, the
 * caller's to collect, 0 after an error. Errors: SL_ARG the program is not there, with the seat's
 * name; SL_SYS fork. */
sl_code sl_start_process(sl_seats *s, int seat, sl_err *err);

#endif
