/* distilled.h - is a job asked for in a way that its model was not made for? Distilled models and
 * LoRA want few steps and no guidance; they are known by what they are called. */
#ifndef SL_DISTILLED_H
#define SL_DISTILLED_H

#include <stdbool.h>
#include <stddef.h>

#include "common/job.h"
#include "common/layout.h"

/* The word that says it: "lightx2v", "4step", "distill" ... anywhere in the text, whatever its
 * case, with `-`, `_` or a space where a word may have them. NULL: none, and for NULL. */
const char *sl_distilled_word(const char *text);

/* The same of a checkpoint, by its transformers' files where it is single files, else its folder or
 * the Hub's folder of it. name: what was looked at last, which has the word if there is one. */
const char *sl_distilled_model(const sl_layout *l, char name[256]);
/* And of a LoRA's file. *by: what says it, "name" or "header". A file that cannot be read has a
 * name alone. */
const char *sl_distilled_lora(const char *path, const char **by);

/* A line for whoever asked, where the checkpoint or a LoRA is called as a distilled model and the
 * job steps or is guided as one that is not: more than SL_DISTILLED_MOST steps, or guidance. false,
 * and out is "": there is nothing to say. */
#define SL_DISTILLED_MOST 8
bool sl_distilled_hint(const sl_job *job, const sl_layout *layout, char *out, size_t size);

#endif
