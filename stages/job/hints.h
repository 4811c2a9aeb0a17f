/* hints.h - what a job was asked for and will not do, a line each. */
#ifndef SL_HINTS_H
#define SL_HINTS_H

#include "common/tokenizer.h"
#include "stages/job/request.h"

/* Calls say(to, line) for each: a prompt longer than the model reads, or decoded with the wrong
 * charset; options that others make void (a negative prompt without guidance, a second guidance
 * without a second expert, the cache's without a cache, a seed beside noise); a video that common
 * players do not play; a single file of weights beside shards, which is not read; a distilled model
 * asked in another way. The job is checked and complete.
 * `tokenizer`: the model's, which counts a long prompt's tokens; where *tokenizer is NULL one that
 * is needed is opened, which takes a moment, and is the caller's to close; NULL: nothing is
 * counted. */
void sl_request_hints(const sl_request *r, const sl_model *model, sl_tokenizer **tokenizer,
                      void (*say)(void *to, const char *line), void *to);

/* Does the text hold UTF-8 that was read as Windows-1252 ("cafÃ©")? */
bool sl_is_mojibake(const char *text);

#endif
