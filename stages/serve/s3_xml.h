/* s3_xml.h - what an S3-compatible store says in XML: elements by their names, one after another.
 *
 * No parser of XML: the answers that are read have no attributes that count, no comments and no
 * element within one of its own name. Text comes from outside and may be anything. Any thread. */
#ifndef SL_S3_XML_H
#define SL_S3_XML_H

#include <stdbool.h>
#include <stddef.h>

/* A piece of somebody's text. */
typedef struct {
    const char *at;
    size_t size;
} sl_s3_text;

/* The next element TAG of *in: what stands in it becomes *out, and *in what follows. false: there
 * is none; *in stays. */
bool sl_s3_xml_next(sl_s3_text *in, const char *tag, sl_s3_text *out);
/* The first element TAG of `in` as plain text, entities resolved. false: there is none, or it does
 * not fit; out is "" then. */
bool sl_s3_xml_get(sl_s3_text in, const char *tag, char *out, size_t room);

#endif
