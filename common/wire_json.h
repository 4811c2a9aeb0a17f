/* wire_json.h - a message of common/wire.h as JSON, for who reads along. */
#ifndef SL_WIRE_JSON_H
#define SL_WIRE_JSON_H

#include <jansson.h>

#include "common/wire.h"

/* An object with the message's fields under their names, in their order; the caller's; NULL: no
 * memory. Numbers above 2^53 and pools (16 hexadecimal digits) are texts, NaN is null, lists of
 * hand-overs name them. */
json_t *sl_wire_json(const sl_msg *msg);

#endif
