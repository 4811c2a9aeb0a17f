/* inspect.c - `sluice inspect DIR`: what a checkpoint holds, what is missing or odd. */
#include "stages/cli/verbs.h"

#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/tokenizer.h"
#include "stages/job/components.h"
#include "stages/job/defaults.h"

static void print_model(const sl_model *m)
{
    const sl_dit_config *d = &m->dit[0];
    printf("%s\n  pipeline       %s%s%s\n", m->dir, m->pipeline,
           m->family.last_picture     ? " (first and last frame)"
           : m->family.time_per_token ? " (from text, or a picture as the first frame)"
                                      : "",
           m->family.experts > 1 ? " (two experts)" : "");
    printf("  transformer    %d layers, %d heads x %d = %d, ffn %d, %d -> %d channels%s\n",
           d->layers, d->heads, d->head_dim, d->dim, d->ffn_dim, d->in_channels, d->out_channels,
           d->image_dim ? ", image cross-attention" : "");
    printf("  text_encoder   UMT5, %d layers, %d wide, %d pieces\n", m->umt5.layers,
           m->umt5.d_model, m->umt5.vocab);
    if (m->family.clip)
        printf("  image_encoder  CLIP, %d layers, %d wide, %d x %d pixels in patches of %d\n",
               m->clip.layers, m->clip.hidden, m->clip.image, m->clip.image, m->clip.patch);
    printf("  vae            base %d", m->vae.base);
    if (m->vae.decoder_base != m->vae.base) printf(" (decoder %d)", m->vae.decoder_base);
    printf(", %d latent channels of %d x %d pixels\n", m->vae.z, m->vae.spatial, m->vae.spatial);
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
    sl_request d;
    sl_err err = {0};
    sl_code rc = sl_request_read_defaults(&d, m->dir, &err);
    if (rc) printf("  %-14s %s\n", SL_MODEL_DEFAULTS, err.msg);
    else if (sl_request_print_defaults(&d, "  " SL_MODEL_DEFAULTS "    ", stdout)) printf("\n");
    sl_job_free(&d.spec);
    return rc;
}

int sl_cli_inspect(int argc, char **argv)
{
    sl_model model;
    sl_err err = {0};
    sl_ctx plan = {0};
    bool deep = argc == 2 && !strcmp(argv[1], "--deep");
    int bad = 0;
    if (argc < 1 || argc > 2 || (argc == 2 && !deep)) {
        sl_complain("inspect wants one checkpoint folder: sluice inspect DIR [--deep]");
        return SL_EXIT_REFUSED;
    }
    if (sl_model_open(&model, argv[0], &err) || sl_ctx_open(&plan, &sl_ops_plan, 0, &err)) {
        sl_complain("%s", err.msg);
        return SL_EXIT_REFUSED;
    }
    print_model(&model);
    bad += print_defaults(&model) != SL_OK;
    printf("\n  %-14s %12s %16s  %s\n", "component", "MB stored", "parameters", "findings");
    const sl_component *c;
    for (int i = 0; (c = sl_component_at(&model, i)); i++) {
        sl_loader *l = NULL;
        int findings = 0;
        if (sl_component_inspect(&l, &model, c, &plan, &err)) {
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
    sl_code rc = sl_tokenizer_open(&tokenizer, model.layout.tokenizer, &err);
    printf("  %-14s %12s %16s  %s\n", "tokenizer", "", "", rc ? err.msg : "none");
    sl_tokenizer_close(&tokenizer);
    bad += rc != SL_OK;
    printf(bad ? "\n%d problem%s: this checkpoint does not run as it is\n" : "\nno problems\n", bad,
           bad == 1 ? "" : "s");
    return bad ? SL_EXIT_FAILED : SL_EXIT_OK;
}
