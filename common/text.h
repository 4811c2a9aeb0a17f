/* text.h - comparing words. */
#ifndef SL_TEXT_H
#define SL_TEXT_H

/* Levenshtein distance of the first 63 bytes of each: for "did you mean ...?". */
int sl_text_distance(const char *a, const char *b);

#endif
