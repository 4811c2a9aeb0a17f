/* components.c - the parts of a checkpoint that hold weights, and the check of their headers
 * before a run. */
#include "stages/job/components.h"

#include <string.h>

#include "common/path.h"
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

static const sl_component COMPONENTS[] = {{"text_encoder", "model", load_text},
                                          {"image_encoder", "model", load_clip},
                                          {"transformer", "diffusion_pytorch_model", load_dit},
                                          {"transformer_2", "diffusion_pytorch_model", load_dit_2},
                                          {"vae", "diffusion_pytorch_model", load_vae}};
#define COMPONENT_COUNT ((int)(sizeof COMPONENTS / sizeof *COMPONENTS))

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
    char spiece[SL_PATH];
    sl_code rc = sl_path_join(spiece, model->dir, SL_SPIECE, err);
    if (!rc) rc = sl_regular_file(spiece, err);
    return rc ? sl_context(err, rc, "no tokenizer") : SL_OK;
}

sl_code sl_components_check(const sl_model *model, sl_err *err)
{
    char dir[SL_PATH];
    sl_ctx plan = {0};
    sl_code rc = sl_components_check_tokenizer(model, err);
    if (rc || (rc = sl_ctx_open(&plan, &sl_ops_plan, 0, err))) return rc;
    for (int i = 0; i < COMPONENT_COUNT && !rc; i++) {
        const sl_component *c = &COMPONENTS[i];
        sl_loader *l = NULL;
        if (!is_part_of(model, c)) continue;
        if (!(rc = sl_path_join(dir, model->dir, c->name, err)) &&
            !(rc = sl_loader_inspect(&l, &plan, dir, c->stem, c->name, err))) {
            sl_err ignored = {0};
            c->load(model, l);
            sl_loader_finish(l, &ignored); /* findings are complete now */
            for (int k = 0; sl_loader_finding(l, k) && !rc; k++)
                if (strncmp(sl_loader_finding(l, k), "unexpected", 10))
                    rc = sl_fail(err, SL_FORMAT, "%s: %s", c->name, sl_loader_finding(l, k));
        }
        sl_loader_close(&l);
    }
    sl_ctx_close(&plan);
    return rc;
}
