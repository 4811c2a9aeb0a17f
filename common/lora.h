/* lora.h - a LoRA file: which tensors of the transformer it changes, and by what.
 *
 * A module y = W x + b becomes y = (W + w s U D) x + b + w d: s = alpha / rank, w the user's
 * strength. Every naming in use is read (names.h: Diffusers', Wan-AI's, kohya's, each behind any
 * prefix), and what a file changes comes out under the name that Diffusers gives the tensor:
 *   U, D   `lora_B`/`lora_A`, `lora_up`/`lora_down`, with or without `.weight` and `.default`
 *   alpha  `.alpha` tensors; else the header's `lora_adapter_metadata`, as peft writes it
 *          (lora_alpha, alpha_pattern, use_rslora); else, and where alpha is 0, s is 1
 *   d      `.diff` (weight), `.diff_b` (bias), `.diff_m` (modulation, LightX2V), `lora_B.bias`:
 *          full differences, which alpha does not scale but for the last
 * All of a file counts: diffusers leaves out LightX2V's differences of norms, modulations and of
 * the patch embedding without a word. Refused by name: DoRA, LoHa, LoKr, LoCon's `lora_mid`.
 * The file stays mapped as long as it is open; nothing of it is copied. Plain data, no locks. */
#ifndef SL_LORA_H
#define SL_LORA_H

#include "common/names.h"
#include "common/path.h"
#include "common/tensor.h"

#define SL_LORA_TARGET (SL_NAME_BYTES + 16) /* bytes of a tensor's name, its NUL included */

/* One change of one tensor. Views of the file, F32, BF16 or F16, which may be unaligned. */
typedef struct {
    char target[SL_LORA_TARGET]; /* "blocks.0.attn1.to_q.weight", in Diffusers' naming */
    const char *name;            /* of the file's tensor, for messages */
    sl_tensor up;                /* [N, r]; rank 0: `down` is a difference, of the target's shape */
    sl_tensor down;              /* [r, K], K all but the target's first extent */
    float scale;                 /* s; 1 for a difference */
} sl_lora_change;

typedef struct sl_lora sl_lora;

/* *out is the caller's to close. Errors, one line with the file's name: SL_SYS, SL_FORMAT (see
 * safetensors.h; a factor without the other, no tensor of a LoRA, metadata that is no JSON),
 * SL_SHAPE (factors that do not belong together, an alpha that is no number), SL_ARG (DoRA and the
 * like). */
sl_code sl_lora_open(sl_lora **out, const char *path, sl_err *err);
void sl_lora_close(sl_lora **l); /* NULL is fine */

const char *sl_lora_path(const sl_lora *l);
/* As sl_fail, with the file's name before the message, which stays on one line. */
sl_code sl_lora_wrong(const sl_lora *l, sl_err *err, sl_code code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The i-th change, in the order of targets; NULL past the last. */
const sl_lora_change *sl_lora_at(const sl_lora *l, int i);
/* The i-th of the file's tensors that are of no module of a transformer; NULL past the last. */
const char *sl_lora_stray(const sl_lora *l, int i);

/* What the file is, for a line about it. ranks: of its factors, both 0 without any. */
typedef struct {
    sl_naming naming;
    char prefix[40]; /* before a module's name, "diffusion_model."; "": none */
    int64_t width;   /* of the transformer; 0: no factor tells it */
    int rank_lo, rank_hi;
    int products, differences; /* changes of either kind */
    bool alpha;                /* s comes from the file */
} sl_lora_facts;
void sl_lora_describe(const sl_lora *l, sl_lora_facts *out);
/* What the header's metadata says under this key; NULL: nothing. */
const char *sl_lora_metadata(const sl_lora *l, const char *key);

/* Reads the whole file: the first NaN or infinity is SL_NUMERIC, one line; *id becomes a number of
 * names, shapes, scales and values, the same for equal content wherever it lies. */
sl_code sl_lora_read(const sl_lora *l, uint64_t *id, sl_err *err);

/* ---- what a job asks for ---- */

#define SL_LORA_MOST 16      /* files of an expert */
#define SL_LORA_STRENGTH 100 /* most of a strength, either way */

/* A row of a job's `lora`: a file and its strength. */
typedef struct {
    char file[SL_PATH];
    double strength;
    uint64_t id; /* of sl_lora_read; 0: not known yet */
} sl_lora_use;

/* "FILE[:STRENGTH]" as a user writes it. What follows the last colon is a strength if it is a
 * number. Errors: SL_ARG. */
sl_code sl_lora_use_parse(sl_lora_use *out, const char *text, sl_err *err);
/* Rows of a job's field, one a line: "STRENGTH ID FILE". n of them; -1 and an error:
 * SL_FORMAT; SL_ARG more than SL_LORA_MOST. */
int sl_lora_uses(sl_lora_use out[SL_LORA_MOST], const char *field, sl_err *err);
/* The field that these rows make; malloc'd, NULL: no memory. */
char *sl_lora_field(const sl_lora_use *uses, int n);
/* Strengths and ids of a field, in one number: weights that were merged under one are right for a
 * job of the same. 0: no rows, or none that can be read. */
uint64_t sl_lora_key(const char *field);

/* A field's files, open. {0} is empty. */
typedef struct {
    int n;
    sl_lora_use use[SL_LORA_MOST];
    sl_lora *file[SL_LORA_MOST];
    double strength[SL_LORA_MOST];
} sl_lora_set;
/* Errors: as sl_lora_open, sl_lora_uses; close in any case. */
sl_code sl_lora_set_open(sl_lora_set *s, const char *field, sl_err *err);
void sl_lora_set_close(sl_lora_set *s);
/* Read them all: the files are finite, and those whose row has an id are what they were then;
 * others get theirs. Errors: SL_NUMERIC; SL_GONE a file has changed; as sl_lora_read. */
sl_code sl_lora_set_read(sl_lora_set *s, sl_err *err);

#endif
