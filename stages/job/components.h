/* components.h - the parts of a checkpoint that hold weights. */
#ifndef SL_COMPONENTS_H
#define SL_COMPONENTS_H

#include "common/model.h"
#include "graphs/weights.h"

/* A component: its folder, the stem of its files, and the networks that ask for them. */
typedef struct {
    const char *name, *stem;
    void (*load)(const sl_model *model, sl_loader *l);
} sl_component;
#define SL_MAX_COMPONENTS 5
#define SL_SPIECE "tokenizer/spiece.model" /* in a checkpoint's folder */

/* The i-th component that this model has; NULL past the last. */
const sl_component *sl_component_at(const sl_model *model, int i);

/* The tokenizer's file is there, which a model with random weights needs, too. */
sl_code sl_components_check_tokenizer(const sl_model *model, sl_err *err);
/* Headers of all components and the tokenizer's file: is everything there that networks ask
 * for, in the shapes they ask for? Errors: the first finding. */
sl_code sl_components_check(const sl_model *model, sl_err *err);

#endif
