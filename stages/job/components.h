/* components.h - the parts of a checkpoint that hold weights. */
#ifndef SL_COMPONENTS_H
#define SL_COMPONENTS_H

#include "common/model.h"
#include "graphs/weights.h"

/* A component: which part it is, and the networks that ask for its tensors. */
typedef struct {
    sl_part_id id;
    const char *name, *stem; /* in a Diffusers folder */
    void (*load)(const sl_model *model, sl_loader *l);
} sl_component;
#define SL_MAX_COMPONENTS SL_PART_COUNT

/* Where the path that the option --transformer, --transformer-2, --text-encoder, --image-encoder,
 * --vae or --tokenizer gives is kept, SL_PATH bytes; `option` without dashes before it. NULL: it is
 * none of these. */
char *sl_component_file(sl_model_files *files, const char *option);

/* The i-th component that this model has; NULL past the last. */
const sl_component *sl_component_at(const sl_model *model, int i);

/* A loader that looks at a part's headers (sl_loader_inspect). *out is the caller's to close. */
sl_code sl_component_inspect(sl_loader **out, const sl_model *model, sl_part_id part, sl_ctx *plan,
                             sl_err *err);

/* The tokenizer's file is there, which a model with random weights needs, too. */
sl_code sl_components_check_tokenizer(const sl_model *model, sl_err *err);

/* Headers of all components and the tokenizer's file: is everything there that networks ask
 * for, in the shapes they ask for? Weights that no network has a place for are counted, with
 * some of their names, in a warning to the log. Errors: the first finding. */
sl_code sl_components_check(const sl_model *model, sl_err *err);

#endif
