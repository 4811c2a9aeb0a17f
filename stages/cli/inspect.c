/* inspect.c - `sluice inspect FILE|FOLDER`: what it is, what it holds, what is missing or odd.
 *
 * A folder, or a transformer's file, is opened as a run would open it, and every network is asked
 * for its tensors. Any other file is told by the tensors in it. */
#include "stages/cli/verbs.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checkpoint.h"
#include "common/log.h"
#include "common/lora.h"
#include "common/tokenizer.h"
#include "stages/job/components.h"
#include "stages/job/defaults.h"
#include "stages/job/distilled.h"
#include "stages/job/files.h"

typedef struct {
    const char *path; /* as it was given; "": named files alone */
    sl_model_files files;
    bool deep, lenient;
} inspection;

/* ---- dtypes ---- */

#define TAGS 8
typedef struct {
    const char *tag[TAGS];
    uint64_t bytes[TAGS];
    int scaled; /* 8-bit weights with a scale */
    int count;
} dtypes;

static void count_dtypes(dtypes *d, const sl_st *st)
{
    *d = (dtypes){0};
    for (int i = 0; i < sl_st_size(st); i++) {
        const sl_st_entry *e = sl_st_at(st, i);
        int k = 0;
        while (k < d->count && strcmp(d->tag[k], e->dtype)) k++;
        if (k == TAGS) continue;
        if (k == d->count) d->tag[d->count++] = e->dtype;
        d->bytes[k] += sl_st_stored(e);
        d->scaled += e->scale_count > 0;
    }
}

static uint64_t all_bytes(const dtypes *d)
{
    uint64_t all = 0;
    for (int i = 0; i < d->count; i++) all += d->bytes[i];
    return all;
}

/* "F8_E4M3 (scaled) 93 %, F16 7 %", the largest first. */
static const char *dtypes_text(const sl_st *st, char *out, size_t size)
{
    dtypes d;
    count_dtypes(&d, st);
    *out = 0;
    const uint64_t all = all_bytes(&d);
    for (int shown = 0; shown < d.count && shown < 4; shown++) {
        int most = 0;
        for (int i = 1; i < d.count; i++)
            if (d.tag[most] == NULL || (d.tag[i] && d.bytes[i] > d.bytes[most])) most = i;
        const size_t at = strlen(out);
        const double part = all ? 100.0 * (double)d.bytes[most] / (double)all : 0;
        const bool f8 = !strncmp(d.tag[most], "F8_", 3);
        if (at < size)
            snprintf(out + at, size - at, part >= 99.95 ? "%s%s%s" : "%s%s%s %.1f %%",
                     shown ? ", " : "", d.tag[most],
                     !f8        ? ""
                     : d.scaled ? " (scaled)"
                                : " (no scales)",
                     part);
        d.tag[most] = NULL;
        d.bytes[most] = 0;
        if (part >= 99.95) break;
    }
    return out;
}

/* A transformer's E4M3 weights are those of --precision fp8-linear. */
static void print_eight(const dtypes *d, sl_part_id part)
{
    bool e4m3 = false;
    for (int i = 0; i < d->count; i++) e4m3 |= !strcmp(d->tag[i], sl_coding_tag(SL_F8_E4M3));
    if (e4m3 && (part == SL_PART_DIT || part == SL_PART_DIT_2))
        printf("      --precision %s takes its blocks' F8_E4M3 matrices as they are\n",
               sl_precision_name(SL_PRECISION_FP8_LINEAR));
}

/* ---- a model ---- */

/* "Wan2.1 I2V", by what the networks take. */
static const char *family_name(int latents, bool picture, bool clip, bool last, int experts)
{
    if (latents == 48) return "Wan2.2 TI2V-5B";
    if (last) return "Wan2.1 FLF2V";
    if (clip) return "Wan2.1 I2V";
    if (experts > 1) return picture ? "Wan2.2 I2V-A14B" : "Wan2.2 T2V-A14B";
    return picture ? "one expert of Wan2.2 I2V-A14B"
                   : "Wan2.1 T2V, or one expert of Wan2.2 T2V-A14B";
}

static const char *size_name(int dim)
{
    return dim == 5120 ? ", 14B" : dim == 3072 ? ", 5B" : dim == 1536 ? ", 1.3B" : "";
}

static const char *layout_name(const sl_layout *l)
{
    if (l->kind == SL_LAYOUT_DIFFUSERS)
        return l->hub ? "Diffusers, in the Hub's cache" : "Diffusers";
    if (l->kind == SL_LAYOUT_WAN)
        return l->hub ? "Wan-AI's own, in the Hub's cache" : "Wan-AI's own";
    return "single files";
}

static void print_model(const sl_model *m)
{
    const sl_dit_config *d = &m->dit[0];
    char name[256];
    const char *word = sl_distilled_model(&m->layout, name);
    printf("%s\n  layout         %s\n  family         %s%s\n", m->dir, layout_name(&m->layout),
           family_name(m->vae.z, m->family.picture, m->family.clip,
                       m->family.last_picture == SL_ALWAYS, m->family.experts),
           size_name(d->dim));
    if (word) printf("  distilled      by its name (\"%s\"): few steps, guidance 1\n", word);
    printf("  pipeline       %s%s%s\n", m->pipeline,
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
    printf("  scheduler      %s, flow shift %g%s\n",
           m->scheduler.kind == SL_SAMPLER_EULER ? "flow-match Euler" : "UniPC",
           m->scheduler.flow_shift,
           m->layout.kind == SL_LAYOUT_DIFFUSERS ? "" : " (Wan-AI's for this family)");
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

#define SHOWN 8 /* findings of a kind that are shown */

/* The findings of one loader; *left: weights without a place. Returns the others' number. */
static int print_findings(const sl_loader *l, int *left)
{
    int bad = 0, odd = 0;
    for (int k = 0; sl_loader_finding(l, k); k++) {
        const char *f = sl_loader_finding(l, k);
        int *n = strncmp(f, "unexpected", 10) ? &bad : &odd;
        if ((*n)++ < SHOWN) printf("      %s\n", f);
    }
    if (bad > SHOWN) printf("      ... %d missing, misshapen or unusable in all\n", bad);
    if (odd > SHOWN) printf("      ... %d unexpected in all\n", odd);
    *left += odd;
    return bad;
}

/* One component's row and what is wrong with it. */
static int inspect_component(const sl_model *m, const sl_component *c, sl_ctx *plan, bool deep,
                             int *left)
{
    char types[120] = "";
    dtypes d = {0};
    sl_err err = {0};
    sl_st *st = NULL;
    sl_loader *l = NULL;
    int bad = 0;
    sl_code rc = sl_part_open(&st, &m->layout, c->id, &err);
    if (!rc) count_dtypes(&d, st);
    if (!rc) dtypes_text(st, types, sizeof types);
    if (rc || (rc = sl_loader_inspect_set(&l, plan, &st, c->name, &err))) {
        printf("  %-14s %s\n", c->name, err.msg);
        return 1;
    }
    c->load(m, l);
    sl_loader_finish(l, &err); /* findings are complete now, and hold what it says */
    printf("  %-14s %12.1f %16lld  %-24s  %s\n", c->name, (double)all_bytes(&d) * 1e-6,
           (long long)sl_loader_parameters(l), types, sl_loader_finding(l, 0) ? "" : "none");
    if (m->layout.kind != SL_LAYOUT_DIFFUSERS || m->layout.parts[c->id].named)
        printf("      from %s\n", m->layout.parts[c->id].path);
    print_eight(&d, c->id);
    bad = print_findings(l, left);
    if (deep && sl_loader_check_finite(l, &err)) {
        printf("      %s\n", err.msg);
        bad++;
    }
    sl_loader_close(&l);
    return bad;
}

static int inspect_tokenizer(const sl_model *m)
{
    sl_tokenizer *tokenizer = NULL;
    sl_err err = {0};
    const char *from = m->layout.tokenizer;
    sl_code rc = *from ? sl_tokenizer_open(&tokenizer, from, &err)
                       : sl_fail(&err, SL_SYS,
                                 "missing, want --tokenizer FILE (google/umt5-xxl/spiece.model in "
                                 "any Wan-AI repository)");
    printf("  %-14s %12s %16s  %-24s  %s\n", "tokenizer", "", "", rc ? "" : sl_path_last(from),
           rc ? err.msg : "none");
    sl_tokenizer_close(&tokenizer);
    return rc != SL_OK;
}

static int inspect_model(const sl_model *m, const inspection *i)
{
    sl_ctx plan;
    sl_err err = {0};
    const sl_component *c;
    int bad = 0, left = 0;
    if (sl_ctx_open(&plan, &sl_ops_plan, 0, &err)) {
        sl_complain("%s", err.msg);
        return SL_EXIT_REFUSED;
    }
    print_model(m);
    bad += print_defaults(m) != SL_OK;
    printf("\n  %-14s %12s %16s  %-24s  %s\n", "component", "MB stored", "parameters", "stored as",
           "findings");
    for (int k = 0; (c = sl_component_at(m, k)); k++)
        bad += inspect_component(m, c, &plan, i->deep, &left);
    sl_ctx_close(&plan);
    bad += inspect_tokenizer(m);
    if (bad)
        printf("\n%d problem%s: this checkpoint does not run as it is\n", bad, bad == 1 ? "" : "s");
    if (left)
        printf("%s%d weight%s without a place%s\n", bad ? "" : "\n", left, left == 1 ? "" : "s",
               i->lenient ? "" : ": it runs without them (--lenient: that is fine)");
    if (!bad && !left) printf("\nno problems\n");
    return bad || (left && !i->lenient) ? SL_EXIT_FAILED : SL_EXIT_OK;
}

/* ---- a model of which parts are missing ---- */

/* A transformer in single files that cannot be opened as a model: what there is of it, and why. */
static int inspect_parts(const sl_layout *l, const sl_err *why)
{
    char shown[SL_PATH + 64], types[120];
    json_t *c = NULL;
    if (!sl_layout_json(&c, shown, l, "transformer/config.json", NULL)) {
        const json_int_t in = json_integer_value(json_object_get(c, "in_channels")),
                         out = json_integer_value(json_object_get(c, "out_channels")),
                         heads = json_integer_value(json_object_get(c, "num_attention_heads"));
        printf("%s\n  layout         %s\n  family         %s\n  transformer    %lld layers, %lld "
               "wide%s, %lld channels in%s\n",
               l->dir, layout_name(l),
               family_name((int)out, in != out, json_is_integer(json_object_get(c, "image_dim")),
                           json_is_integer(json_object_get(c, "pos_embed_seq_len")),
                           *l->parts[SL_PART_DIT_2].path ? 2 : 1),
               (long long)json_integer_value(json_object_get(c, "num_layers")),
               (long long)heads * 128, size_name((int)heads * 128), (long long)in,
               json_is_integer(json_object_get(c, "image_dim")) ? ", image cross-attention" : "");
        json_decref(c);
    }
    char name[256];
    const char *word = sl_distilled_model(l, name);
    if (word) printf("  distilled      by its name (\"%s\"): few steps, guidance 1\n", word);
    for (int i = 0; i < SL_PART_COUNT; i++) {
        sl_st *st = NULL;
        sl_err err = {0};
        if (!*l->parts[i].path && i == SL_PART_DIT_2) continue;
        if (sl_part_open(&st, l, (sl_part_id)i, &err))
            printf("  %-14s %s\n", sl_part_name((sl_part_id)i), err.msg);
        else
            printf("  %-14s %s, %s\n", sl_part_name((sl_part_id)i),
                   dtypes_text(st, types, sizeof types), l->parts[i].path);
        sl_st_close(&st);
    }
    printf("\nthis checkpoint does not run as it is: %s\n", why->msg);
    return SL_EXIT_FAILED;
}

/* ---- a file by itself ---- */

static const char *naming_name(sl_naming n)
{
    return n == SL_NAMING_KOHYA      ? "kohya's"
           : n == SL_NAMING_ORIGINAL ? "Wan-AI's (ComfyUI's)"
                                     : "Diffusers' (PEFT's)";
}

static void print_lora(const sl_lora *l, const char *path, const sl_st *st)
{
    char types[120];
    sl_lora_facts f;
    const char *by, *word = sl_distilled_lora(path, &by);
    sl_lora_describe(l, &f);
    printf("%s\n  what           a LoRA, no model: sluice run --model MODEL --lora %s\n", path,
           path);
    if (f.rank_lo == f.rank_hi) printf("  rank           %d\n", f.rank_hi);
    else printf("  rank           %d to %d\n", f.rank_lo, f.rank_hi);
    printf("  modules        %d of them%s", f.products, f.differences ? ", and " : "\n");
    if (f.differences) printf("%d differences of whole tensors\n", f.differences);
    printf("  names          %s%s%s%s\n", naming_name(f.naming), *f.prefix ? ", behind \"" : "",
           f.prefix, *f.prefix ? "\"" : "");
    printf("  alpha          %s\n", !f.alpha ? "none: as the rank"
                                    : sl_lora_metadata(l, "lora_adapter_metadata")
                                        ? "in the file's metadata"
                                        : "a tensor a module");
    if (f.width)
        printf("  for            a transformer %lld wide%s\n", (long long)f.width,
               size_name((int)f.width));
    printf("  stored as      %s\n", dtypes_text(st, types, sizeof types));
    if (word) printf("  distilled      by its %s (\"%s\"): few steps, guidance 1\n", by, word);
}

static int inspect_lora(const char *path, const sl_st *st)
{
    sl_lora *l = NULL;
    sl_err err = {0};
    int strays = 0;
    if (sl_lora_open(&l, path, &err)) {
        printf("%s\n  what           a LoRA, which cannot be used: %s\n", path, err.msg);
        return SL_EXIT_FAILED;
    }
    print_lora(l, path, st);
    while (sl_lora_stray(l, strays)) strays++;
    if (strays)
        printf("\n%d tensor%s for modules that the transformer does not have, the first is %s\n",
               strays, strays == 1 ? "" : "s", sl_lora_stray(l, 0));
    sl_lora_close(&l);
    return strays ? SL_EXIT_FAILED : SL_EXIT_OK;
}

static int inspect_part(const char *path, sl_net net)
{
    char types[120];
    sl_st *st = NULL;
    sl_err err = {0};
    if (sl_checkpoint_open(&st, net, path, NULL, &err)) {
        sl_complain("%s", err.msg);
        return SL_EXIT_REFUSED;
    }
    int left = 0;
    sl_name n;
    printf("%s\n  what           %s alone, %d tensors\n  stored as      %s\n", path,
           net == SL_NET_VAE    ? "a VAE"
           : net == SL_NET_CLIP ? "an image encoder (CLIP)"
           : net == SL_NET_UMT5 ? "a text encoder (UMT5)"
                                : "a transformer",
           sl_st_size(st), dtypes_text(st, types, sizeof types));
    for (int i = 0; i < sl_st_size(st); i++)
        if (!sl_names_find(net, sl_st_at(st, i)->name, 0, &n) && left++ < SHOWN)
            printf("      unexpected %s\n", sl_st_at(st, i)->name);
    if (left) printf("%d weight%s without a place\n", left, left == 1 ? "" : "s");
    printf("  use            with a model: --%s %s\n",
           net == SL_NET_VAE    ? "vae"
           : net == SL_NET_CLIP ? "image-encoder"
           : net == SL_NET_UMT5 ? "text-encoder"
                                : "transformer",
           path);
    sl_st_close(&st);
    return left ? SL_EXIT_FAILED : SL_EXIT_OK;
}

/* A file. *is_dit: it is a transformer, which is inspected with what lies around it. */
static int inspect_file(const char *path, bool *is_dit)
{
    sl_st *st = NULL;
    sl_err err = {0};
    bool lora;
    int status;
    *is_dit = false;
    if (sl_st_open_file(&st, path, &err)) {
        sl_complain("%s", err.msg);
        return SL_EXIT_REFUSED;
    }
    const sl_net net = sl_layout_net(st, &lora);
    if (lora) status = inspect_lora(path, st);
    else if (net == SL_NET_DIT) {
        *is_dit = true;
        status = SL_EXIT_OK;
    } else if (net != SL_NET_COUNT) status = inspect_part(path, net);
    else {
        printf("%s\n  what           none of Wan's networks: %d tensors%s%s\n", path,
               sl_st_size(st), sl_st_size(st) ? ", the first " : "",
               sl_st_size(st) ? sl_st_at(st, 0)->name : "");
        status = SL_EXIT_FAILED;
    }
    sl_st_close(&st);
    return status;
}

/* ---- the command ---- */

static sl_code parse(inspection *i, int argc, char **argv, sl_err *err)
{
    static const struct option OPTIONS[] = {
        {"deep", 0, 0, 'd'}, {"lenient", 0, 0, 'l'}, SL_CLI_FILES, {0}};
    static const char usage[] =
        "inspect wants one checkpoint folder or file: sluice inspect FOLDER|FILE [--deep] "
        "[--lenient] [--vae FILE ...]";
    sl_code rc;
    int o, index = 0;
    opterr = 0;
    optind = 1;
    while ((o = getopt_long(argc, argv, ":", OPTIONS, &index)) >= 0) {
        if (o == 'd') i->deep = true;
        else if (o == 'l') i->lenient = true;
        else if (o == 'f') {
            char *at = sl_component_file(&i->files, OPTIONS[index].name);
            if ((rc = sl_absolute_path(at, optarg, err))) return rc;
        } else return sl_fail(err, SL_ARG, "%s", usage);
    }
    if (argc - optind > 1 || (argc == optind && !*i->files.part[SL_PART_DIT]))
        return sl_fail(err, SL_ARG, "%s", usage);
    i->path = optind < argc ? argv[optind] : "";
    return SL_OK;
}

int sl_cli_inspect(int argc, char **argv)
{
    inspection *i = calloc(1, sizeof *i);
    sl_model *m = calloc(1, sizeof *m);
    sl_err err = {0};
    struct stat info;
    bool is_dit = true;
    int status = SL_EXIT_REFUSED;
    if (!i || !m) sl_fail(&err, SL_NOMEM, "inspect: no memory");
    /* getopt looks from the second word on */
    else if (!parse(i, argc + 1, argv - 1, &err)) {
        if (*i->path && !stat(i->path, &info) && S_ISREG(info.st_mode))
            status = inspect_file(i->path, &is_dit);
        if (is_dit) {
            status = SL_EXIT_REFUSED;
            if (!sl_model_open_files(m, i->path, &i->files, &err)) status = inspect_model(m, i);
            else if (m->layout.kind == SL_LAYOUT_FILES && *m->layout.parts[SL_PART_DIT].path) {
                status = inspect_parts(&m->layout, &err);
                err.code = SL_OK;
            }
        }
    }
    if (err.code) sl_complain("%s", err.msg);
    free(m);
    free(i);
    return status;
}
