/* word.h - words that nobody can guess, and nobody uses twice. */
#ifndef SL_WORD_H
#define SL_WORD_H

#define SL_WORD 33 /* bytes of one, its NUL included */

/* 128 bits of the kernel's random numbers as 32 hex digits. Waits, early after a boot, until there
 * are some; no errors. */
void sl_new_word(char out[SL_WORD]);

#endif
