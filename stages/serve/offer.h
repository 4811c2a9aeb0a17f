/* offer.h - what a server of a shared queue offers, and what a job needs of one.
 *
 * A worker offers what its settings allow, which was found to fit its memory at the start
 * (stages/job/plan.h): pixels and frames at most, the precisions in which its weights compute, its
 * LoRA. A LoRA stands there twice: by its name, and as NAME=KEY, where KEY is a number of the
 * contents and strengths of its files. A front end that has the LoRA itself asks for its very key,
 * so no server with another file of that name takes the job; one that has not asks for the name.
 *
 * What is offered and told is the main thread's; the rest is any thread's. */
#ifndef SL_OFFER_H
#define SL_OFFER_H

#include "stages/serve/form.h"
#include "stages/serve/server.h"

/* Offer what the settings allow, and tell of this server; of a queue of one machine: nothing. To be
 * called again when something of it changes. Takes the settings' lock to read. */
void sl_offer_tell(sl_server *s);
/* What is told of this server, as others read it (/v1/fleet); the caller's. */
json_t *sl_offer_says(sl_server *s);

/* What a checked job needs of its server; "" of a queue of one machine. Errors: SL_ARG too long. */
sl_code sl_offer_needs(char out[SL_JOURNAL_NEEDS], sl_server *s, const sl_form *f, sl_err *err);

/* Before a form is checked: LoRA and a precision that it asks for and that this server does not
 * have, but another one that is up, or was within a day, are noted in the form; a name that nobody
 * had is left for the check to refuse. Errors: SL_SYS, SL_TIMEOUT the queue is away, and nobody
 * knows. */
sl_code sl_offer_look_elsewhere(sl_server *s, sl_form *f, sl_err *err);

/* The LoRA of a job that another server took, by the names in its request, as this server has them.
 * Errors: SL_ARG a name that is not there; SL_NOMEM. */
sl_code sl_offer_use_loras(sl_server *s, sl_job *job, const char *request, sl_err *err);

#endif
