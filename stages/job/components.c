/* components.c - the parts of a checkpoint that hold weights, and the check of their headers
 * before a run. */
#include "stages/job/components.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "graphs/clip.h"
#include "graphs/umt5.h"
#include "graphs/vae.h"
#include "graphs/wan_dit.h"
#include "stages/job/files.h"

static void load_text(const sl_model *m, sl_loader *l)
{
    sl_umt5 *n = sl_umt5_new(&m->umt5, l);
    sl_umt5_free(&n);
}
static void load_clip(const sl_model *m, sl_loader *l)
{
    sl_clip *n = sl_clip_new(&m->clip, l);
    sl_clip_free(&n);
}
static void load_dit(const sl_model *m, sl_loader *l)
{
    sl_dit *n = sl_dit_new(&m->dit[0], l);
    sl_dit_free(&n);
}
static void load_dit_2(const sl_model *m, sl_loader *l)
{
    sl_dit *n = sl_dit_new(&m->dit[1], l);
    sl_dit_free(&n);
}
static void load_vae(const sl_model *m, sl_loader *l)
{
    sl_vae_encoder *e = sl_vae_encoder_new(&m->vae, l);
    sl_vae_decoder *d = sl_vae_decoder_new(&m->vae, l);
    sl_vae_encoder_free(&e);
    sl_vae_decoder_free(&d);
}

static const sl_component COMPONENTS[] = {
    {SL_PART_TEXT, "text_encoder", "model", load_text},
    {SL_PART_IMAGE, "image_encoder", "model", load_clip},
    {SL_PART_DIT, "transformer", "diffusion_pytorch_model", load_dit},
    {SL_PART_DIT_2, "transformer_2", "diffusion_pytorch_model", load_dit_2},
    {SL_PART_VAE, "vae", "diffusion_pytorch_model", load_vae}};
#define COMPONENT_COUNT ((int)(sizeof COMPONENTS / sizeof *COMPONENTS))

char *sl_component_file(sl_model_files *files, const char *option)
{
    char name[32];
    if (!strcmp(option, "tokenizer")) return files->tokenizer;
    for (int i = 0; i < SL_PART_COUNT; i++) { /* the option has dashes */
        snprintf(name, sizeof name, "%s", sl_part_name((sl_part_id)i));
        for (char *c = name; *c; c++) *c = *c == '_' ? '-' : *c;
        if (!strcmp(option, name)) return files->part[i];
    }
    return NULL;
}

static bool is_part_of(const sl_model *m, const sl_component *c)
{
    if (c->load == load_clip) return m->family.clip;
    if (c->load == load_dit_2) return m->family.experts > 1;
    return true;
}

const sl_component *sl_component_at(const sl_model *model, int i)
{
    for (int k = 0; k < COMPONENT_COUNT; k++)
        if (is_part_of(model, &COMPONENTS[k]) && i-- == 0) return &COMPONENTS[k];
    return NULL;
}

sl_code sl_components_check_tokenizer(const sl_model *model, sl_err *err)
{
    if (!*model->layout.tokenizer)
        return sl_fail(err, SL_SYS,
                       "no tokenizer in %s, want --tokenizer FILE (spiece.model or tokenizer.json, "
                       "from google/umt5-xxl in any Wan-AI repository)",
                       model->dir);
    const sl_code rc = sl_regular_file(model->layout.tokenizer, err);
    return rc ? sl_context(err, rc, "no tokenizer") : SL_OK;
}

sl_code sl_component_inspect(sl_loader **out, const sl_model *model, sl_part_id part, sl_ctx *plan,
                             sl_err *err)
{
    const char *name = sl_part_name(part);
    sl_st *st = NULL;
    sl_code rc = sl_part_open(&st, &model->layout, part, err);
    *out = NULL;
    return rc ? sl_context(err, rc, "%s", name) : sl_loader_inspect_set(out, plan, &st, name, err);
}

/* The first thing that is wrong; what is left over becomes a warning. */
static sl_code judge(const sl_component *c, const sl_loader *l, sl_err *err)
{
    static const char LEFT[] = "unexpected ";
    char names[160] = "";
    int left = 0;
    for (int k = 0; sl_loader_finding(l, k); k++) {
        const char *f = sl_loader_finding(l, k);
        if (strncmp(f, LEFT, sizeof LEFT - 1)) return sl_fail(err, SL_FORMAT, "%s: %s", c->name, f);
        f += sizeof LEFT - 1;
        const size_t at = strlen(names);
        const int n = (int)strcspn(f, " ");
        if (left++ < 3 && at + (size_t)n + 3 < sizeof names)
            snprintf(names + at, sizeof names - at, "%s%.*s", at ? ", " : "", n, f);
    }
    if (left)
        sl_log(SL_LOG_WARN, "%s: %d weight%s without a place, not used: %s%s", c->name, left,
               left == 1 ? "" : "s", names, left > 3 ? " ..." : "");
    return SL_OK;
}

sl_code sl_components_check(const sl_model *model, sl_err *err)
{
    sl_ctx plan = {0};
    sl_code rc = sl_components_check_tokenizer(model, err);
    if (rc || (rc = sl_ctx_open(&plan, &sl_ops_plan, 0, err))) return rc;
    for (int i = 0; i < COMPONENT_COUNT && !rc; i++) {
        const sl_component *c = &COMPONENTS[i];
        sl_loader *l = NULL;
        if (!is_part_of(model, c)) continue;
        if (!(rc = sl_component_inspect(&l, model, c->id, &plan, err))) {
            sl_err ignored = {0};
            c->load(model, l);
            sl_loader_finish(l, &ignored); /* findings are complete now */
            rc = judge(c, l, err);
        }
        sl_loader_close(&l);
    }
    sl_ctx_close(&plan);
    return rc;
}
