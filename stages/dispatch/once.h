/* once.h - warnings that a peer could cause again and again: said once each, then counted.
 *
 * The owner holds one sl_once, zeroed at first, and tells the counts at its end. One thread. */
#ifndef SL_DISPATCH_ONCE_H
#define SL_DISPATCH_ONCE_H

#define SL_ONCE 64 /* different lines that are remembered; others count as one */
#define SL_ONCE_TEXT 256

typedef struct {
    int count, others; /* others: lines that found no place, which are not said */
    struct {
        int times;
        char text[SL_ONCE_TEXT];
    } at[SL_ONCE];
} sl_once;

/* Warn in the log, unless this very line was said before. */
void sl_once_warn(sl_once *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Tell how often each line that came again has come. */
void sl_once_tell(const sl_once *o);

#endif
