/* protocol.h - the protocol of stages as JSON, for programs that are not written in C: messages,
 * kinds of fields, codes, dtypes, roles, hand-overs, spans, and the memory of a pool. All of it
 * comes from the lists by which the programs themselves work. `sluice protocol --json` prints it;
 * docs/protocol.md is made from it, as Markdown. */
#ifndef SL_PROTOCOL_H
#define SL_PROTOCOL_H

#include <stdio.h>

#include "common/err.h"

/* The whole as one JSON object. The caller's to free; NULL: no memory.
 *   magic, version, header   of every message; header: its fields
 *   kinds      NAME: {bytes} of a plain one; `fields` of one that is made of others: name, kind
 *              and how many times
 *   messages   number, name, bytes of the body, fields: name and kind
 *   codes, dtypes, roles, handovers, spans, turns, ways   rows of the lists; the number is what
 *              travels
 *   pool       the memory that a pool's owner and its senders share: `block`, `slot` and `tensor`
 *              with their bytes and the offset and bytes of each field; states of a slot */
char *sl_protocol_json(void);
/* The tables of messages and kinds as Markdown. Errors: SL_SYS, SL_NOMEM. */
sl_code sl_protocol_markdown(FILE *to, sl_err *err);

#endif
