/* layout.c - find the parts of a checkpoint: which kind of folder it is, then which file is what.
 *
 * Order: what the user names; model_index.json (Diffusers); Wan-AI's shards; then every tensor file
 * in the folder and in its folders, by the tensors in it. */
#include "common/layout.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checkpoint.h"
#include "common/json.h"

#define FILES_MAX 512 /* tensor files looked into, in one folder */

static const struct {
    const char *name, *stem;
    sl_net net;
} PARTS[SL_PART_COUNT] = {
#define X(id, name, stem, net) [SL_PART_##id] = {name, stem, SL_NET_##net},
    SL_PARTS(X)
#undef X
};
/* option; a file and the repository on huggingface.co that has it */
static const char *const GET[SL_PART_COUNT][2] = {
    [SL_PART_TEXT] = {"--text-encoder", "umt5_xxl_*.safetensors in "
                                        "Comfy-Org/Wan_2.1_ComfyUI_repackaged, or "
                                        "models_t5_umt5-xxl-enc-bf16.pth in any Wan-AI repository"},
    [SL_PART_IMAGE] = {"--image-encoder",
                       "clip_vision_h.safetensors in Comfy-Org/Wan_2.1_ComfyUI_repackaged"},
    [SL_PART_DIT] = {"--transformer", "the model itself"},
    [SL_PART_DIT_2] = {"--transformer-2", "the low-noise expert, beside the high-noise one"},
    [SL_PART_VAE] = {"--vae", "wan_2.1_vae.safetensors in Comfy-Org/Wan_2.1_ComfyUI_repackaged "
                              "(for TI2V-5B wan2.2_vae.safetensors in its 2.2)"},
};

const char *sl_part_name(sl_part_id id)
{
    return PARTS[id].name;
}

sl_net sl_part_net(sl_part_id id)
{
    return PARTS[id].net;
}

/* ---- paths ---- */

static bool is_folder(const char *path)
{
    struct stat st;
    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

/* DIR/NAME is there; a path that is too long is not. */
static bool holds(const char *dir, const char *name)
{
    char path[SL_PATH];
    return !sl_path_join(path, dir, name, NULL) && sl_path_there(path);
}

static bool holds_stem(const char *dir, const char *stem)
{
    char name[80];
    snprintf(name, sizeof name, "%s.safetensors", stem);
    if (holds(dir, name)) return true;
    snprintf(name, sizeof name, "%s.safetensors.index.json", stem);
    return holds(dir, name);
}

static sl_code set_path(char out[SL_PATH], const char *path, sl_err *err)
{
    if (strlen(path) >= SL_PATH)
        return sl_fail(err, SL_ARG, "model: path of %zu bytes, want at most %d", strlen(path),
                       SL_PATH - 1);
    memcpy(out, path, strlen(path) + 1);
    return SL_OK;
}

static sl_code set_folder(sl_part *p, const char *dir, const char *name, const char *stem,
                          sl_err *err)
{
    snprintf(p->stem, sizeof p->stem, "%s", stem);
    return *name ? sl_path_join(p->path, dir, name, err) : set_path(p->path, dir, err);
}

/* ---- the Hub's cache ---- */

/* The one folder in `snapshots`, where refs/main is not there. */
static bool only_snapshot(char name[64], const char *snapshots)
{
    DIR *d = opendir(snapshots);
    struct dirent *e;
    int n = 0;
    while (d && (e = readdir(d)))
        if (*e->d_name != '.' && strlen(e->d_name) < 64) {
            snprintf(name, 64, "%.63s", e->d_name);
            n++;
        }
    if (d) closedir(d);
    return n == 1;
}

/* From models--ORG--NAME to the snapshot that refs/main names. */
static sl_code enter_cache(sl_layout *l, sl_err *err)
{
    char path[SL_PATH], commit[64] = "", top[SL_PATH];
    sl_code rc;
    memcpy(top, l->dir, sizeof top);
    if ((rc = sl_path_join(path, top, "refs/main", err))) return rc;
    FILE *f = fopen(path, "r");
    if (f && !fgets(commit, sizeof commit, f)) *commit = 0;
    if (f) fclose(f);
    commit[strcspn(commit, " \r\n")] = 0;
    if ((rc = sl_path_join(path, top, "snapshots", err))) return rc;
    if (!*commit && !only_snapshot(commit, path))
        return sl_fail(err, SL_SYS,
                       "%s: refs/main names no snapshot, want a snapshot's folder as the model",
                       top);
    if (strchr(commit, '/') || *commit == '.')
        return sl_fail(err, SL_FORMAT, "%s: refs/main is \"%s\", want a commit", top, commit);
    if ((rc = sl_path_join(l->dir, path, commit, err))) return rc;
    l->hub = true;
    if (!is_folder(l->dir))
        return sl_fail(err, SL_SYS,
                       "%s: refs/main names snapshot %s, which is not there: the download was cut "
                       "short",
                       top, commit);
    return SL_OK;
}

/* ---- single files ---- */

typedef struct {
    char path[SL_PATH];
    sl_net net;
    int64_t latents; /* of a transformer or a VAE: channels; 0: not to be told */
    bool high, low;  /* by the name */
} candidate;

typedef struct {
    candidate *at;
    int count;
} candidates;

static bool is_tensor_file(const char *name)
{
    static const char *const ENDS[] = {".safetensors", ".sft", ".gguf", ".pth", ".pt"};
    for (size_t i = 0; i < sizeof ENDS / sizeof *ENDS; i++)
        if (sl_ends_with(name, ENDS[i])) return true;
    return false;
}

/* "-00002-of-00005.": a shard, which its index leads to. */
static bool is_shard(const char *name)
{
    const char *of = strstr(name, "-of-");
    return of && of - name >= 6 && of[-6] == '-' && isdigit((unsigned char)of[4]);
}

static bool has_word(const char *name, const char *word)
{
    const size_t n = strlen(word);
    for (; *name; name++)
        if (!strncasecmp(name, word, n)) return true;
    return false;
}

static const sl_st_entry *find_tensor(const sl_st *st, sl_net net, const char *ours)
{
    char name[SL_NAME_BYTES + 16];
    for (int i = 0; i < sl_st_size(st); i++)
        if (sl_names_tensor(net, sl_st_at(st, i)->name, 0, name, sizeof name) &&
            !strcmp(name, ours))
            return sl_st_at(st, i);
    return NULL;
}

static bool is_lora(const sl_st *st)
{
    int n = 0;
    for (int i = 0; i < sl_st_size(st); i++) {
        const char *name = sl_st_at(st, i)->name;
        n += strstr(name, "lora_") || strstr(name, ".lora.") || strstr(name, "_lora.") ||
             sl_ends_with(name, ".diff") || sl_ends_with(name, ".diff_b") ||
             strstr(name, "hada_") || strstr(name, "lokr_");
    }
    return n * 2 > sl_st_size(st);
}

sl_net sl_layout_net(const sl_st *st, bool *lora)
{
    static const char *const SIGN[SL_NET_COUNT][2] = {
        [SL_NET_DIT] = {"patch_embedding.weight", "scale_shift_table"},
        [SL_NET_UMT5] = {"shared.weight", "encoder.final_layer_norm.weight"},
        [SL_NET_CLIP] = {"vision_model.embeddings.class_embedding",
                         "vision_model.pre_layrnorm.weight"},
        [SL_NET_VAE] = {"decoder.conv_in.weight", "decoder.conv_out.weight"}};
    *lora = is_lora(st);
    for (int net = 0; net < SL_NET_COUNT && !*lora; net++)
        if (find_tensor(st, (sl_net)net, SIGN[net][0]) &&
            find_tensor(st, (sl_net)net, SIGN[net][1]))
            return (sl_net)net;
    return SL_NET_COUNT;
}

static int64_t latents_of(const sl_st *st, sl_net net)
{
    const sl_st_entry *e = net == SL_NET_DIT   ? find_tensor(st, net, "proj_out.weight")
                           : net == SL_NET_VAE ? find_tensor(st, net, "decoder.conv_in.weight")
                                               : NULL;
    if (!e || sl_st_shape(e)->rank < 2) return 0;
    return net == SL_NET_DIT ? sl_st_shape(e)->shape[0] / 4 : sl_st_shape(e)->shape[1];
}

/* Look into one file; what is no network of these is passed over, so are files that are damaged
 * (they are told of when they are asked for). */
static void look_into(candidates *c, const char *path)
{
    sl_st *st = NULL;
    bool lora;
    if (c->count == FILES_MAX || sl_st_open_file(&st, path, NULL)) return;
    const sl_net net = sl_layout_net(st, &lora);
    if (net != SL_NET_COUNT) {
        candidate *to = &c->at[c->count++];
        *to = (candidate){.net = net,
                          .latents = latents_of(st, net),
                          .high = has_word(sl_path_last(path), "high"),
                          .low = has_word(sl_path_last(path), "low")};
        snprintf(to->path, sizeof to->path, "%s", path);
    }
    sl_st_close(&st);
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const candidate *)a)->path, ((const candidate *)b)->path);
}

/* The tensor files of a folder, and of the folders in it down to `depth`. */
static void scan(candidates *c, const char *dir, int depth)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    char path[SL_PATH];
    while (d && (e = readdir(d))) {
        if (*e->d_name == '.' || sl_path_join(path, dir, e->d_name, NULL)) continue;
        if (is_folder(path)) {
            if (depth) scan(c, path, depth - 1);
        } else if (is_tensor_file(e->d_name) && !is_shard(e->d_name)) look_into(c, path);
    }
    if (d) closedir(d);
}

/* "a.safetensors, b.safetensors and 2 more" */
static const char *list(const candidates *c, sl_net net, char *out, size_t size)
{
    int n = 0, shown = 0;
    *out = 0;
    for (int i = 0; i < c->count; i++) n += c->at[i].net == net;
    for (int i = 0; i < c->count; i++) {
        const size_t at = strlen(out);
        const char *name = sl_path_last(c->at[i].path);
        if (c->at[i].net != net || at + strlen(name) + 20 > size) continue;
        snprintf(out + at, size - at, "%s%s", shown ? ", " : "", name);
        shown++;
    }
    if (shown < n) snprintf(out + strlen(out), size - strlen(out), " and %d more", n - shown);
    return out;
}

/* The one file for a part; several are an error, none is not. */
static sl_code choose(sl_layout *l, const candidates *c, sl_part_id id, int64_t latents,
                      sl_err *err)
{
    const candidate *found = NULL;
    sl_part *p = &l->parts[id];
    char names[sizeof p->several];
    int n = 0;
    if (*p->path) return SL_OK;
    for (int i = 0; i < c->count; i++)
        if (c->at[i].net == PARTS[id].net &&
            !(id == SL_PART_VAE && latents && c->at[i].latents && c->at[i].latents != latents)) {
            found = &c->at[i];
            n++;
        }
    list(c, PARTS[id].net, names, sizeof names);
    if (n > 1 && id != SL_PART_DIT) {
        memcpy(p->several, names, sizeof names);
        return SL_OK;
    }
    if (n > 1)
        return sl_fail(err, SL_ARG, "%s: holds %d transformers (%s), want one named by %s FILE",
                       l->dir, n, names, GET[id][0]);
    return found ? set_path(p->path, found->path, err) : SL_OK;
}

/* Two transformers, one "high" and one "low" by their names, are the experts. */
static sl_code choose_experts(sl_layout *l, const candidates *c, sl_err *err)
{
    const candidate *high = NULL, *low = NULL;
    int n = 0;
    if (*l->parts[SL_PART_DIT].path || *l->parts[SL_PART_DIT_2].path) return SL_OK;
    for (int i = 0; i < c->count; i++) {
        const candidate *k = &c->at[i];
        if (k->net != SL_NET_DIT) continue;
        n++;
        if (k->high && !k->low) high = k;
        if (k->low && !k->high) low = k;
    }
    if (n != 2 || !high || !low) return SL_OK;
    sl_code rc = set_path(l->parts[SL_PART_DIT].path, high->path, err);
    return rc ? rc : set_path(l->parts[SL_PART_DIT_2].path, low->path, err);
}

static int64_t latents_at(const sl_part *p)
{
    sl_st *st = NULL;
    if (!*p->path || (*p->stem ? sl_st_open_dir(&st, p->path, p->stem, NULL)
                               : sl_st_open_file(&st, p->path, NULL)))
        return 0;
    const int64_t n = latents_of(st, SL_NET_DIT);
    sl_st_close(&st);
    return n;
}

static sl_code choose_files(sl_layout *l, sl_err *err)
{
    candidates c = {.at = calloc(FILES_MAX, sizeof *c.at)};
    sl_code rc;
    if (!c.at) return sl_fail(err, SL_NOMEM, "%s: no memory for its files", l->dir);
    scan(&c, l->dir, 1);
    qsort(c.at, (size_t)c.count, sizeof *c.at, by_path);
    if (!(rc = choose_experts(l, &c, err)) && !(rc = choose(l, &c, SL_PART_DIT, 0, err)) &&
        !(rc = choose(l, &c, SL_PART_TEXT, 0, err)) && !(rc = choose(l, &c, SL_PART_IMAGE, 0, err)))
        rc = choose(l, &c, SL_PART_VAE, latents_at(&l->parts[SL_PART_DIT]), err);
    free(c.at);
    return rc;
}

/* ---- kinds of folders ---- */

static sl_code use_diffusers(sl_layout *l, sl_err *err)
{
    l->kind = SL_LAYOUT_DIFFUSERS;
    for (int i = 0; i < SL_PART_COUNT; i++) {
        sl_code rc;
        if (!l->parts[i].named &&
            (rc = set_folder(&l->parts[i], l->dir, PARTS[i].name, PARTS[i].stem, err)))
            return rc;
    }
    return SL_OK;
}

/* The folder's files of this stem are a transformer; one that cannot be opened counts, so that it
 * is told why. */
static bool holds_dit(const char *dir, const char *stem)
{
    sl_st *st = NULL;
    bool lora;
    if (!holds_stem(dir, stem)) return false;
    if (sl_st_open_dir(&st, dir, stem, NULL)) return true;
    const sl_net net = sl_layout_net(st, &lora);
    sl_st_close(&st);
    return net == SL_NET_DIT;
}

/* Wan-AI's: experts in folders, or shards at the top. */
static sl_code use_wan(sl_layout *l, bool *is_it, sl_err *err)
{
    static const char STEM[] = "diffusion_pytorch_model";
    sl_part *dit = &l->parts[SL_PART_DIT], *dit_2 = &l->parts[SL_PART_DIT_2];
    sl_code rc = SL_OK;
    if (holds(l->dir, "high_noise_model") && holds(l->dir, "low_noise_model")) {
        *is_it = true;
        if (!dit->named) rc = set_folder(dit, l->dir, "high_noise_model", STEM, err);
        if (!rc && !dit_2->named) rc = set_folder(dit_2, l->dir, "low_noise_model", STEM, err);
    } else if (holds_dit(l->dir, STEM)) {
        *is_it = true;
        if (!dit->named) rc = set_folder(dit, l->dir, "", STEM, err);
    }
    if (*is_it) l->kind = SL_LAYOUT_WAN;
    return rc;
}

/* spiece.model before tokenizer.json, in the places where they are kept; else in the weights. */
static sl_code find_tokenizer(sl_layout *l, sl_err *err)
{
    static const char *const AT[] = {"tokenizer/spiece.model",
                                     "google/umt5-xxl/spiece.model",
                                     "spiece.model",
                                     "text_encoders/spiece.model",
                                     "tokenizer/tokenizer.json",
                                     "google/umt5-xxl/tokenizer.json",
                                     "tokenizer.json",
                                     "text_encoders/tokenizer.json"};
    const sl_part *text = &l->parts[SL_PART_TEXT];
    for (size_t i = 0; *l->dir && i < sizeof AT / sizeof *AT; i++)
        if (holds(l->dir, AT[i])) return sl_path_join(l->tokenizer, l->dir, AT[i], err);
    if (l->kind == SL_LAYOUT_DIFFUSERS) /* so that what is missing is named as it should be */
        return sl_path_join(l->tokenizer, l->dir, AT[0], err);
    sl_st *st = NULL;
    if (*text->path && !*text->stem && !sl_st_open_file(&st, text->path, NULL)) {
        const bool inside = sl_st_find(st, "spiece_model") ||
                            sl_st_find(st, "text_encoders.umt5xxl.transformer.spiece_model") ||
                            sl_st_find(st, "text_encoders.umt5xxl.spiece_model");
        sl_st_close(&st);
        if (inside) return set_path(l->tokenizer, text->path, err);
    }
    return SL_OK;
}

static sl_code use_named(sl_layout *l, const sl_model_files *files, sl_err *err)
{
    for (int i = 0; files && i < SL_PART_COUNT; i++) {
        sl_code rc;
        if (!*files->part[i]) continue;
        if ((rc = set_path(l->parts[i].path, files->part[i], err))) return rc;
        l->parts[i].named = true;
    }
    if (files && *files->tokenizer) return set_path(l->tokenizer, files->tokenizer, err);
    return SL_OK;
}

/* The folder that a file's siblings are in: ComfyUI keeps each kind in a folder of its own. */
static void folder_of(char out[SL_PATH], const char *path)
{
    static const char *const KINDS[] = {"diffusion_models", "unet", "checkpoints"};
    char parent[SL_PATH];
    snprintf(out, SL_PATH, "%s", path);
    out[sl_path_last(out) > out ? sl_path_last(out) - out - 1 : 0] = 0;
    if (!*out) snprintf(out, SL_PATH, "%s", *path == '/' ? "/" : ".");
    memcpy(parent, out, SL_PATH);
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (!strcmp(sl_path_last(parent), KINDS[i]) && sl_path_last(parent) > parent + 1) {
            snprintf(out, SL_PATH, "%s", parent);
            out[sl_path_last(out) - out - 1] = 0;
        }
}

/* --model FILE: that file is its part. */
static sl_code use_file(sl_layout *l, const char *path, sl_err *err)
{
    sl_st *st = NULL;
    bool lora;
    sl_code rc = sl_st_open_file(&st, path, err);
    if (rc) return rc;
    const sl_net net = sl_layout_net(st, &lora);
    sl_st_close(&st);
    if (lora)
        return sl_fail(err, SL_ARG, "%s: is a LoRA, no model: want --lora %s with a model", path,
                       path);
    if (net == SL_NET_COUNT) return sl_fail(err, SL_ARG, "%s: holds none of Wan's networks", path);
    for (int i = 0; i < SL_PART_COUNT; i++)
        if (PARTS[i].net == net && i != SL_PART_DIT_2 && !l->parts[i].named) {
            if ((rc = set_path(l->parts[i].path, path, err))) return rc;
            l->parts[i].named = true;
        }
    folder_of(l->dir, path);
    return SL_OK;
}

sl_code sl_layout_find(sl_layout *l, const char *dir, const sl_model_files *files, sl_err *err)
{
    bool wan = false;
    sl_code rc;
    *l = (sl_layout){.kind = SL_LAYOUT_FILES};
    if ((rc = set_path(l->dir, dir, err)) || (rc = use_named(l, files, err))) return rc;
    for (size_t n = strlen(l->dir); n > 1 && l->dir[n - 1] == '/'; n--) l->dir[n - 1] = 0;
    if (*dir && !is_folder(dir)) {
        if (!sl_path_there(dir)) return sl_fail_errno(err, ENOENT, "%s", dir);
        if ((rc = use_file(l, dir, err))) return rc;
    }
    if (!*dir && *l->parts[SL_PART_DIT].path) folder_of(l->dir, l->parts[SL_PART_DIT].path);
    if (*l->dir) {
        if (!holds(l->dir, "model_index.json") && holds(l->dir, "snapshots") &&
            (rc = enter_cache(l, err)))
            return rc;
        if (strstr(l->dir, "/snapshots/")) l->hub = true;
        if (holds(l->dir, "model_index.json")) rc = use_diffusers(l, err);
        else if (!(rc = use_wan(l, &wan, err))) rc = choose_files(l, err);
        if (rc) return rc;
    }
    if (!*l->parts[SL_PART_DIT].path)
        return sl_fail(err, SL_SYS,
                       "%s: holds no model_index.json and no transformer of Wan, want a folder of "
                       "Diffusers (as Wan2.1-I2V-14B-720P-Diffusers), of Wan-AI or of ComfyUI's "
                       "files, or --transformer FILE",
                       *dir ? dir : "model");
    return *l->tokenizer ? SL_OK : find_tokenizer(l, err);
}

/* ---- opening ---- */

static sl_code absent(const sl_layout *l, sl_part_id id, sl_err *err)
{
    const char *several = l->parts[id].several;
    if (*several)
        return sl_fail(err, SL_ARG,
                       "%s: holds several files for %s (%s), want one named by %s FILE", l->dir,
                       PARTS[id].name, several, GET[id][0]);
    return sl_fail(err, SL_SYS, "no %s%s%s, want %s FILE (%s)", PARTS[id].name,
                   *l->dir ? " in " : "", l->dir, GET[id][0], GET[id][1]);
}

sl_code sl_part_open(sl_st **out, const sl_layout *l, sl_part_id id, sl_err *err)
{
    const sl_part *p = &l->parts[id];
    *out = NULL;
    if (!*p->path) return absent(l, id, err);
    return sl_checkpoint_open(out, PARTS[id].net, p->path, *p->stem ? p->stem : NULL, err);
}

bool sl_part_has_weights(const sl_layout *l, sl_part_id id)
{
    const sl_part *p = &l->parts[id];
    return *p->path && (*p->stem ? holds_stem(p->path, p->stem) : sl_path_there(p->path));
}
