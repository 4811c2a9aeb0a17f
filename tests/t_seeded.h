/* t_seeded.h - golden weights that are made again from their seed instead of being shipped.
 *
 * FOLDER/weights.txt, written by tests/golden/trim.py, lists the parameters of a transformer in the
 * order of their names, one `torch.randn` each; those of the blocks that were cut off are drawn too
 * and dropped:
 *   seed S
 *   keep|skip NAME EXTENT...
 *   fix P I BITS     bf16 bits of element I of parameter P (from 0): close to where two roundings
 *                    part, so that libm's last bits could decide it, or torch's have
 *   hash H           FNV-1a of the kept parameters' bytes, in order
 * Scales by name: the rules with which they were made (golden README.md). */
#ifndef T_SEEDED_H
#define T_SEEDED_H

#include "tests/t.h"

#include <math.h>
#include <unistd.h>

#include "common/safetensors.h"
#include "graphs/randn.h"

#define T_SEEDED_TENSORS 256

typedef struct {
    int count; /* drawn so far */
    struct {
        bool kept;
        char name[96];
        sl_tensor t; /* BF16, owned */
    } at[T_SEEDED_TENSORS];
} t_seeded_weights;

/* One parameter's number x, as the model has it. */
static inline float t_seeded_scale(const char *name, const sl_tensor *t, float x)
{
    const size_t n = strlen(name);
    if (strstr(name, "scale_shift_table")) return x * 0.2f;
    if (n > 4 && !strcmp(name + n - 4, "bias")) return x * 0.05f;
    if (t->rank == 1) return 1 + 0.15f * x;
    return x * (float)(1 / sqrt((double)(sl_count(t) / t->shape[0])));
}

/* "NAME EXTENT..." */
static inline void t_seeded_draw(t_seeded_weights *w, sl_rng *g, const char *text, bool keep)
{
    int used, rank = 0;
    int64_t shape[SL_MAX_RANK];
    long long extent;
    assert_true(w->count < T_SEEDED_TENSORS);
    assert_int_equal(sscanf(text, "%95s%n", w->at[w->count].name, &used), 1);
    for (text += used; rank < SL_MAX_RANK && sscanf(text, "%lld%n", &extent, &used) == 1;
         text += used)
        shape[rank++] = extent;
    sl_tensor *t = &w->at[w->count].t;
    *t = sl_view(NULL, SL_BF16, rank, shape);
    const int64_t n = sl_count(t);
    float *x = malloc((size_t)n * sizeof *x);
    uint16_t *y = malloc((size_t)n * sizeof *y);
    sl_rng_normal(g, x, n);
    for (int64_t i = 0; i < n; i++)
        y[i] = sl_to_bf16(t_seeded_scale(w->at[w->count].name, t, x[i]));
    free(x);
    t->data = y;
    w->at[w->count++].kept = keep;
}

/* The weights of FOLDER/weights.txt, and its config.json, in a folder of their own: `dir`, 256
 * bytes, is the caller's to t_rmdir. */
static inline void t_seeded(char dir[256], const char *folder)
{
    static t_seeded_weights w;
    static sl_rng g;
    const char *names[T_SEEDED_TENSORS];
    sl_tensor kept[T_SEEDED_TENSORS];
    char path[1024], target[1100], line[512];
    unsigned long long hash = 14695981039346656037u, want = 0, seed, i;
    unsigned p, bits;
    int n = 0;
    sl_err err = {0};
    memset(&w, 0, sizeof w);
    snprintf(path, sizeof path, "%s/weights.txt", folder);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "seed %llu", &seed) == 1) sl_rng_seed(&g, seed);
        else if (!strncmp(line, "keep ", 5) || !strncmp(line, "skip ", 5))
            t_seeded_draw(&w, &g, line + 5, *line == 'k');
        else if (sscanf(line, "fix %u %llu %x", &p, &i, &bits) == 3) {
            assert_true(p < (unsigned)w.count && i < (unsigned long long)sl_count(&w.at[p].t));
            ((uint16_t *)w.at[p].t.data)[i] = (uint16_t)bits;
        } else assert_int_equal(sscanf(line, "hash %llx", &want), 1);
    }
    fclose(f);
    for (int k = 0; k < w.count; k++) {
        if (!w.at[k].kept) continue;
        names[n] = w.at[k].name;
        kept[n] = w.at[k].t;
        const unsigned char *b = kept[n].data;
        for (size_t j = 0; j < sl_bytes(&kept[n]); j++) hash = (hash ^ b[j]) * 1099511628211u;
        n++;
    }
    if (hash != want) fail_msg("%s: hash %016llx, want %016llx", path, hash, want);
    snprintf(dir, 256, "%s", t_tmpdir());
    snprintf(target, sizeof target, "%s/diffusion_pytorch_model.safetensors", dir);
    T_OK(sl_st_save(target, n, names, kept, &err));
    for (int k = 0; k < w.count; k++) free(w.at[k].t.data);
    snprintf(path, sizeof path, "%s/config.json", folder);
    char *config = realpath(path, NULL);
    assert_non_null(config);
    snprintf(target, sizeof target, "%s/config.json", dir);
    assert_int_equal(symlink(config, target), 0);
    free(config);
}

#endif
