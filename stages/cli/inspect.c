/* inspect.c - `sluice inspect DIR`: what a checkpoint holds, what is missing or odd; and
 * the check of headers before a run. */
#include "stages/cli/cli.h"

#include <stdlib.h>
#include <string.h>

#include "graphs/clip.h"
#include "graphs/umt5.h"
#include "graphs/vae.h"
#include "graphs/wan_dit.h"
#include "stages/text/tokenizer.h"

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

static const component COMPONENTS[] = {{"text_encoder", "model", load_text},
                                       {"image_encoder", "model", load_clip},
                                       {"transformer", "diffusion_pytorch_model", load_dit},
                                       {"transformer_2", "diffusion_pytorch_model", load_dit_2},
                                       {"vae", "diffusion_pytorch_model", load_vae}};
#define COMPONENT_COUNT ((int)(sizeof COMPONENTS / sizeof *COMPONENTS))

#define SPIECE "tokenizer/spiece.model"

static bool present(const sl_model *m, const component *c)
{
    if (c->load == load_clip) return m->family.clip;
    if (c->load == load_dit_2) return m->family.experts > 1;
    return true;
}

const component *component_at(const sl_model *model, int i)
{
    for (int k = 0; k < COMPONENT_COUNT; k++)
        if (present(model, &COMPONENTS[k]) && i-- == 0) return &COMPONENTS[k];
    return NULL;
}

sl_code check_weights(const sl_model *model, sl_err *err)
{
    char dir[SL_PATH], spiece[SL_PATH];
    sl_ctx plan = {0};
    sl_code rc = sl_path_join(spiece, model->dir, SPIECE, err);
    if (rc || (rc = regular_file(spiece, err)) || (rc = sl_ctx_open(&plan, &sl_ops_plan, 0, err)))
        return rc;
    for (int i = 0; i < COMPONENT_COUNT && !rc; i++) {
        const component *c = &COMPONENTS[i];
        sl_loader *l = NULL;
        if (!present(model, c)) continue;
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

static void print_model(const sl_model *m)
{
    const sl_dit_config *d = &m->dit[0];
    printf("%s\n  pipeline       %s%s%s\n", m->dir, m->pipeline,
           m->family.last_picture ? " (first and last frame)" : "",
           m->family.experts > 1 ? " (two experts)" : "");
    printf("  transformer    %d layers, %d heads x %d = %d, ffn %d, %d -> %d channels%s\n",
           d->layers, d->heads, d->head_dim, d->dim, d->ffn_dim, d->in_channels, d->out_channels,
           d->image_dim ? ", image cross-attention" : "");
    printf("  text_encoder   UMT5, %d layers, %d wide, %d pieces\n", m->umt5.layers,
           m->umt5.d_model, m->umt5.vocab);
    if (m->family.clip)
        printf("  image_encoder  CLIP, %d layers, %d wide, %d x %d pixels in patches of %d\n",
               m->clip.layers, m->clip.hidden, m->clip.image, m->clip.image, m->clip.patch);
    printf("  vae            base %d, %d latent channels\n", m->vae.base, m->vae.z);
    printf("  scheduler      %s, flow shift %g\n",
           m->scheduler.kind == SL_SAMPLER_EULER ? "flow-match Euler" : "UniPC",
           m->scheduler.flow_shift);
    if (m->family.experts > 1)
        printf("  boundary       expert 1 from timestep %g up, expert 2 below\n",
               m->boundary_ratio * 1000);
}

/* What the checkpoint's sluice.json gives, or what is wrong with it. */
static sl_code print_defaults(const sl_model *m)
{
    cli_job d;
    sl_err err = {0};
    sl_code rc = defaults_read(&d, m->dir, &err);
    if (rc) printf("  %-14s %s\n", MODEL_DEFAULTS, err.msg);
    else if (defaults_print(&d, "  " MODEL_DEFAULTS "    ", stdout)) printf("\n");
    sl_job_free(&d.spec);
    return rc;
}

int cli_inspect(int argc, char **argv)
{
    sl_model model;
    sl_err err = {0};
    sl_ctx plan = {0};
    bool deep = argc == 2 && !strcmp(argv[1], "--deep");
    int bad = 0;
    if (argc < 1 || argc > 2 || (argc == 2 && !deep)) {
        complain("inspect wants one checkpoint folder: sluice inspect DIR [--deep]");
        return EXIT_REFUSED;
    }
    if (sl_model_open(&model, argv[0], &err) || sl_ctx_open(&plan, &sl_ops_plan, 0, &err)) {
        complain("%s", err.msg);
        return EXIT_REFUSED;
    }
    print_model(&model);
    bad += print_defaults(&model) != SL_OK;
    printf("\n  %-14s %12s %16s  %s\n", "component", "MB stored", "parameters", "findings");
    for (int i = 0; i < COMPONENT_COUNT; i++) {
        const component *c = &COMPONENTS[i];
        char dir[SL_PATH];
        sl_loader *l = NULL;
        int findings = 0;
        if (!present(&model, c)) continue;
        if (sl_path_join(dir, model.dir, c->name, &err) ||
            sl_loader_inspect(&l, &plan, dir, c->stem, c->name, &err)) {
            printf("  %-14s %s\n", c->name, err.msg);
            bad++;
            continue;
        }
        c->load(&model, l);
        sl_loader_finish(l, &err); /* findings are complete now, and hold what it says */
        while (sl_loader_finding(l, findings)) findings++;
        printf("  %-14s %12.1f %16lld  %s\n", c->name, (double)sl_loader_bytes(l) * 1e-6,
               (long long)sl_loader_parameters(l), findings ? "" : "none");
        for (int k = 0; k < findings; k++) {
            printf("      %s\n", sl_loader_finding(l, k));
            if (strncmp(sl_loader_finding(l, k), "unexpected", 10)) bad++;
        }
        if (deep && sl_loader_check_finite(l, &err)) {
            printf("      %s\n", err.msg);
            bad++;
        }
        sl_loader_close(&l);
    }
    sl_ctx_close(&plan);
    sl_tokenizer *tokenizer = NULL;
    char spiece[SL_PATH];
    sl_code rc = sl_path_join(spiece, model.dir, SPIECE, &err);
    if (!rc) rc = sl_tokenizer_open(&tokenizer, spiece, &err);
    printf("  %-14s %12s %16s  %s\n", "tokenizer", "", "", rc ? err.msg : "none");
    sl_tokenizer_close(&tokenizer);
    bad += rc != SL_OK;
    printf(bad ? "\n%d problem%s: this checkpoint does not run as it is\n" : "\nno problems\n", bad,
           bad == 1 ? "" : "s");
    return bad ? EXIT_FAILED : EXIT_OK;
}
