/* t_layouts.h - the golden checkpoints as other programs have them, in a folder of the test's own:
 * a copy of build/layouts, where `make layouts` has them made by tests/golden/layouts/build.py, and
 * gguf/transformer.gguf and umt5.gguf, with .safetensors of their numbers, by
 * tests/golden/gguf/model.py. */
#ifndef T_LAYOUTS_H
#define T_LAYOUTS_H

#include "tests/t.h"

#define T_TINY "tests/golden/tiny-i2v/model"
#define T_HUB "hf-cache/hub/models--Wan-AI--Wan2.1-I2V-14B-480P-Diffusers"
#define T_COMFY "comfy/diffusion_models/wan2.1_i2v_480p_14B_"

static char t_layouts[300]; /* the folder */

/* NAME under it. One of eight static buffers. */
static inline const char *t_at(const char *name)
{
    static char buf[8][600];
    static int k;
    k = (k + 1) % 8;
    snprintf(buf[k], sizeof buf[k], "%s/%s", t_layouts, name);
    return buf[k];
}

static inline void t_shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static inline void t_shell(const char *fmt, ...)
{
    char command[4000];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    if (system(command)) fail_msg("failed: %s", command);
}

static inline int t_layouts_make(void **state)
{
    (void)state;
    if (access("build/layouts/made", F_OK)) fail_msg("no build/layouts, want: make layouts");
    snprintf(t_layouts, sizeof t_layouts, "%s/l", t_tmpdir());
    t_shell("cp -a build/layouts %s", t_layouts);
    /* CLIP's heads are not to be told from a tiny tower's shapes */
    t_shell("cp " T_TINY "/image_encoder/config.json %s", t_at("comfy/clip_vision/config.json"));
    t_shell("cp " T_TINY "/image_encoder/config.json %s",
            t_at("wan-original/models_clip_open-clip-xlm-roberta-large-vit-huge-14.json"));
    return 0;
}

static inline int t_layouts_remove(void **state)
{
    (void)state;
    t_layouts[strlen(t_layouts) - 2] = 0;
    t_rmdir(t_layouts);
    return 0;
}

#endif
