/* lora.c - names and scalars of a LoRA file become changes of tensors.
 *
 * Each tensor's name is cut into module and suffix (names.h), the suffix says what the tensor is:
 * a factor, an alpha, a difference. Factors of one module meet in one change. */
#include "common/lora.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "common/safetensors.h"

typedef enum { DOWN, UP, ALPHA, DIFF, DIFF_BIAS, UP_BIAS, REFUSED } part_kind;

/* What follows a module's name. */
static const struct {
    const char *suffix;
    part_kind kind;
} SUFFIXES[] = {
    {".lora_A.weight", DOWN},
    {".lora_B.weight", UP},
    {".lora_down.weight", DOWN},
    {".lora_up.weight", UP},
    {".lora_A.default.weight", DOWN},
    {".lora_B.default.weight", UP},
    {".lora.down.weight", DOWN},
    {".lora.up.weight", UP},
    {"_lora.down.weight", DOWN},
    {"_lora.up.weight", UP},
    {".lora_A", DOWN},
    {".lora_B", UP},
    {".alpha", ALPHA},
    {".diff", DIFF},
    {".diff_b", DIFF_BIAS},
    {".diff_m", DIFF},
    {".lora_B.bias", UP_BIAS},
    {".lora_B.default.bias", UP_BIAS},
    {".lora_up.bias", UP_BIAS},
    {".dora_scale", REFUSED},
    {".lora_magnitude_vector", REFUSED},
    {".lora_magnitude_vector.weight", REFUSED},
    {".lora_magnitude_vector.default.weight", REFUSED},
    {".lora_mid.weight", REFUSED},
    {".hada_w1_a", REFUSED},
    {".hada_w1_b", REFUSED},
    {".hada_w2_a", REFUSED},
    {".hada_w2_b", REFUSED},
    {".hada_t1", REFUSED},
    {".hada_t2", REFUSED},
    {".lokr_w1", REFUSED},
    {".lokr_w2", REFUSED},
    {".lokr_w1_a", REFUSED},
    {".lokr_w1_b", REFUSED},
    {".lokr_w2_a", REFUSED},
    {".lokr_w2_b", REFUSED},
    {".lokr_t2", REFUSED},
};

/* A tensor of the file, understood. */
typedef struct {
    part_kind kind;
    const sl_st_entry *entry;
    char module[SL_NAME_BYTES]; /* in Diffusers' naming */
    const char *own;            /* the module as the file calls it, without the prefix, */
    int own_length;             /* so many bytes */
} part;

struct sl_lora {
    char path[SL_PATH];
    sl_st *st;
    part *parts; /* sorted by module */
    int part_count;
    const char **strays;
    int stray_count;
    sl_lora_change *changes;
    int change_count;
    json_t *metadata; /* peft's; NULL: none */
    sl_lora_facts facts;
};

sl_code sl_lora_wrong(const sl_lora *l, sl_err *err, sl_code code, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    sl_fail(err, code, "%.300s: %s", l->path, text);
    sl_one_line(err);
    return code;
}

/* ---- names ---- */

/* LightX2V names the modulation by its owner: "blocks.3.diff_m", "head.diff_m". */
static void name_modulation(char out[512], const char *name, size_t n)
{
    snprintf(out, 512, "%.*s.modulation", (int)n, name);
}

/* Module and kind of a tensor's name; false: of no module. */
static bool understand(part *p, const char *name)
{
    const size_t length = strlen(name);
    for (size_t i = 0; i < sizeof SUFFIXES / sizeof *SUFFIXES; i++) {
        const size_t n = strlen(SUFFIXES[i].suffix);
        char module[512];
        sl_name found;
        if (length <= n || length >= 400 || strcmp(name + length - n, SUFFIXES[i].suffix)) continue;
        snprintf(module, sizeof module, "%.*s", (int)(length - n), name);
        if (!strcmp(SUFFIXES[i].suffix, ".diff_m")) name_modulation(module, name, length - n);
        if (!sl_names_find(SL_NET_DIT, module, 0, &found) || found.unneeded || *found.rest)
            continue;
        p->kind = SUFFIXES[i].kind;
        memcpy(p->module, found.module, sizeof p->module);
        p->own = name + found.prefix;
        p->own_length = (int)(length - n) - found.prefix;
        return true;
    }
    return false;
}

static int by_module(const void *a, const void *b)
{
    const part *x = a, *y = b;
    const int order = strcmp(x->module, y->module);
    return order ? order : (int)x->kind - (int)y->kind;
}

/* A parameter that stands alone has no ".weight". */
static bool is_alone(const char *module)
{
    const char *last = strrchr(module, '.');
    last = last ? last + 1 : module;
    return !strcmp(last, "scale_shift_table") || !strcmp(last, "pos_embed");
}

static void name_target(char out[SL_LORA_TARGET], const char *module, bool bias)
{
    snprintf(out, SL_LORA_TARGET, "%s%s", module,
             is_alone(module) ? ""
             : bias           ? ".bias"
                              : ".weight");
}

/* ---- peft's metadata ---- */

/* The value under `key`, with any prefix that ends in a dot. */
static json_t *metadata(const sl_lora *l, const char *key)
{
    const char *name;
    json_t *v;
    if (!l->metadata) return NULL;
    if ((v = json_object_get(l->metadata, key))) return v;
    json_object_foreach(l->metadata, name, v)
    {
        const char *dot = strrchr(name, '.');
        if (dot && !strcmp(dot + 1, key)) return v;
    }
    return NULL;
}

static sl_code read_metadata(sl_lora *l, sl_err *err)
{
    const char *text = sl_st_metadata(l->st, "lora_adapter_metadata");
    sl_err why = {0};
    if (!text || !*text) return SL_OK;
    if (sl_json_parse(&l->metadata, text, strlen(text), "lora_adapter_metadata", &why))
        return sl_lora_wrong(l, err, SL_FORMAT, "%.300s", why.msg);
    return SL_OK;
}

/* Does a key of alpha_pattern stand for this module? peft takes it for the module's last parts; "^"
 * before it and "\." in it say the same. */
static bool is_meant(const char *key, const char *module, size_t length)
{
    char plain[SL_NAME_BYTES];
    size_t n = 0;
    const bool whole = *key == '^';
    for (const char *k = key + whole; *k && n + 1 < sizeof plain; k++)
        if (*k != '\\' && !(*k == '$' && !k[1])) plain[n++] = *k;
    plain[n] = 0;
    return n && n <= length && !strncmp(module + length - n, plain, n) &&
           (n == length || (!whole && module[length - n - 1] == '.'));
}

/* The alpha that metadata gives this module; NAN: none. */
static sl_code alpha_of_metadata(const sl_lora *l, const part *p, double *alpha, sl_err *err)
{
    json_t *all = metadata(l, "lora_alpha"), *pattern = metadata(l, "alpha_pattern"), *v = all;
    const char *key;
    json_t *one;
    *alpha = NAN;
    json_object_foreach(pattern, key, one)
    {
        if (is_meant(key, p->own, (size_t)p->own_length) ||
            is_meant(key, p->module, strlen(p->module))) {
            v = one;
            break;
        }
    }
    if (!v || json_is_null(v)) return SL_OK;
    *alpha = json_number_value(v);
    if (!json_is_number(v) || !isfinite(*alpha))
        return sl_lora_wrong(l, err, SL_FORMAT,
                             "lora_adapter_metadata: alpha of %.100s is no finite number",
                             p->module);
    return SL_OK;
}

/* ---- changes ---- */

static bool is_float(const sl_st_entry *e)
{
    return e->t.rank && (e->t.dtype == SL_F32 || e->t.dtype == SL_BF16 || e->t.dtype == SL_F16);
}

/* s of the factors of this module. alpha: its tensor, or NULL. */
static sl_code scale_of(sl_lora *l, const part *down, const part *alpha, float *scale, sl_err *err)
{
    const double rank = (double)down->entry->t.shape[0];
    double a = NAN;
    bool root = false;
    sl_code rc;
    if (alpha) {
        const sl_st_entry *e = alpha->entry;
        int64_t whole = 0;
        int32_t half = 0;
        float x = 0;
        if (e->t.rank && sl_count(&e->t) != 1)
            return sl_lora_wrong(l, err, SL_SHAPE, "%.200s is no single number", e->name);
        if (e->t.rank && e->t.dtype == SL_I64) memcpy(&whole, e->t.data, 8), a = (double)whole;
        else if (e->t.rank && e->t.dtype == SL_I32) memcpy(&half, e->t.data, 4), a = half;
        else if (is_float(e) && !sl_to_floats(&x, e->t.data, e->t.dtype, 1, NULL)) a = x;
        else
            return sl_lora_wrong(l, err, SL_SHAPE,
                                 "%.200s has dtype %s, want F32, BF16, F16, I64 or I32", e->name,
                                 e->dtype);
        if (!isfinite(a))
            return sl_lora_wrong(l, err, SL_NUMERIC, "%.200s is %g, want a finite number", e->name,
                                 a);
    } else {
        if ((rc = alpha_of_metadata(l, down, &a, err))) return rc;
        root = json_is_true(metadata(l, "use_rslora"));
    }
    *scale = 1;
    if (isnan(a) || a == 0) return SL_OK;
    l->facts.alpha = true;
    *scale = (float)(a / (root ? sqrt(rank) : rank));
    return SL_OK;
}

static sl_lora_change *new_change(sl_lora *l, const part *p, bool bias)
{
    sl_lora_change *c = &l->changes[l->change_count++]; /* room for one a part */
    *c = (sl_lora_change){.name = p->entry->name, .scale = 1};
    name_target(c->target, p->module, bias);
    return c;
}

/* [r, K] and [N, r] of what the file has: a convolution's extents are folded. */
static sl_code join(sl_lora *l, const part *up, const part *down, float scale, sl_err *err)
{
    const sl_tensor *u = &up->entry->t, *d = &down->entry->t;
    char a[96], b[96];
    int64_t tail = 1;
    for (int i = 2; i < u->rank; i++) tail *= u->shape[i];
    if (d->rank < 2 || u->rank < 2 || tail != 1 || u->shape[1] != d->shape[0] || d->shape[0] < 1)
        return sl_lora_wrong(l, err, SL_SHAPE,
                             "%.120s has shape %s and %.120s %s, want [N, rank] and [rank, K]",
                             up->entry->name, sl_shape_text(u, a, sizeof a), down->entry->name,
                             sl_shape_text(d, b, sizeof b));
    if (u->dtype != d->dtype)
        return sl_lora_wrong(l, err, SL_SHAPE, "%.120s is %s and %.120s %s, want one dtype",
                             up->entry->name, up->entry->dtype, down->entry->name,
                             down->entry->dtype);
    sl_lora_change *c = new_change(l, down, false);
    const int64_t r = d->shape[0];
    c->up = sl_view2(u->data, u->dtype, u->shape[0], r);
    c->down = sl_view2(d->data, d->dtype, r, sl_count(d) / r);
    c->scale = scale;
    if (!l->facts.rank_lo || r < l->facts.rank_lo) l->facts.rank_lo = (int)r;
    if (r > l->facts.rank_hi) l->facts.rank_hi = (int)r;
    if (strstr(c->target, ".attn1.to_q.")) l->facts.width = c->down.shape[1];
    l->facts.products++;
    return SL_OK;
}

static void differ(sl_lora *l, const part *p, bool bias, float scale)
{
    sl_lora_change *c = new_change(l, p, bias);
    c->down = p->entry->t;
    c->scale = scale;
    l->facts.differences++;
}

/* All parts of one module. */
static sl_code take_module(sl_lora *l, const part *p, int n, sl_err *err)
{
    const part *of[REFUSED + 1] = {0};
    float scale = 1;
    sl_code rc;
    for (int i = 0; i < n; i++) {
        if (p[i].kind == REFUSED)
            return sl_lora_wrong(l, err, SL_ARG,
                                 "%.200s: DoRA, LoHa, LoKr and LoCon are not done here, want LoRA",
                                 p[i].entry->name);
        if (of[p[i].kind])
            return sl_lora_wrong(l, err, SL_FORMAT, "%.150s and %.150s are the same of one module",
                                 of[p[i].kind]->entry->name, p[i].entry->name);
        of[p[i].kind] = &p[i];
        if (p[i].kind != ALPHA && !is_float(p[i].entry))
            return sl_lora_wrong(l, err, SL_SHAPE, "%.200s has dtype %s, want F32, BF16 or F16",
                                 p[i].entry->name, p[i].entry->dtype);
    }
    if (!of[UP] != !of[DOWN])
        return sl_lora_wrong(l, err, SL_FORMAT, "%.200s has no %s beside it",
                             of[UP] ? of[UP]->entry->name : of[DOWN]->entry->name,
                             of[UP] ? "lora_down (lora_A)" : "lora_up (lora_B)");
    if (of[UP_BIAS] && !of[UP])
        return sl_lora_wrong(l, err, SL_FORMAT, "%.200s has no factors beside it",
                             of[UP_BIAS]->entry->name);
    if (of[DOWN] && ((rc = scale_of(l, of[DOWN], of[ALPHA], &scale, err)) ||
                     (rc = join(l, of[UP], of[DOWN], scale, err))))
        return rc;
    if (of[DIFF]) differ(l, of[DIFF], false, 1);
    if (of[DIFF_BIAS]) differ(l, of[DIFF_BIAS], true, 1);
    if (of[UP_BIAS]) differ(l, of[UP_BIAS], true, scale);
    return SL_OK;
}

static sl_code sort_out(sl_lora *l, sl_err *err)
{
    const size_t n = (size_t)sl_st_size(l->st) + 1;
    sl_code rc = SL_OK;
    l->parts = calloc(n, sizeof *l->parts);
    l->strays = calloc(n, sizeof *l->strays);
    l->changes = calloc(n, sizeof *l->changes);
    if (!l->parts || !l->strays || !l->changes) return sl_lora_wrong(l, err, SL_NOMEM, "no memory");
    for (int i = 0; i < sl_st_size(l->st); i++) {
        const sl_st_entry *e = sl_st_at(l->st, i);
        part *p = &l->parts[l->part_count];
        sl_name found = {0};
        p->entry = e;
        if (understand(p, e->name)) {
            if (!l->part_count++)
                snprintf(l->facts.prefix, sizeof l->facts.prefix, "%.*s", (int)(p->own - e->name),
                         e->name);
        } else l->strays[l->stray_count++] = e->name;
        if (sl_names_find(SL_NET_DIT, e->name, 0, &found) && found.naming > l->facts.naming)
            l->facts.naming = found.naming;
    }
    qsort(l->parts, (size_t)l->part_count, sizeof *l->parts, by_module);
    for (int i = 0, k; i < l->part_count && !rc; i = k) {
        for (k = i; k < l->part_count && !strcmp(l->parts[k].module, l->parts[i].module); k++) {
        }
        rc = take_module(l, &l->parts[i], k - i, err);
    }
    if (!rc && !l->change_count)
        rc = sl_lora_wrong(l, err, SL_FORMAT,
                           "none of its %d tensors is of a LoRA for a Wan transformer%s%s",
                           sl_st_size(l->st), l->stray_count ? ", the first is " : "",
                           l->stray_count ? l->strays[0] : "");
    return rc;
}

sl_code sl_lora_open(sl_lora **out, const char *path, sl_err *err)
{
    sl_lora *l = *out = calloc(1, sizeof *l);
    sl_code rc;
    if (!l) return sl_fail(err, SL_NOMEM, "%.300s: no memory", path);
    snprintf(l->path, sizeof l->path, "%s", path);
    if ((rc = sl_st_open_file(&l->st, path, err)) || (rc = read_metadata(l, err)) ||
        (rc = sort_out(l, err)))
        sl_lora_close(out);
    return rc;
}

void sl_lora_close(sl_lora **lp)
{
    sl_lora *l = *lp;
    *lp = NULL;
    if (!l) return;
    free(l->parts);
    free((void *)l->strays);
    free(l->changes);
    json_decref(l->metadata);
    sl_st_close(&l->st);
    free(l);
}

const char *sl_lora_path(const sl_lora *l)
{
    return l->path;
}

const sl_lora_change *sl_lora_at(const sl_lora *l, int i)
{
    return i >= 0 && i < l->change_count ? &l->changes[i] : NULL;
}

const char *sl_lora_stray(const sl_lora *l, int i)
{
    return i >= 0 && i < l->stray_count ? l->strays[i] : NULL;
}

void sl_lora_describe(const sl_lora *l, sl_lora_facts *out)
{
    *out = l->facts;
}

const char *sl_lora_metadata(const sl_lora *l, const char *key)
{
    return sl_st_metadata(l->st, key);
}

/* ---- content ---- */

static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

/* Four sequences beside each other: as fast as memory. */
static uint64_t mix_bytes(uint64_t h, const void *data, size_t n)
{
    const unsigned char *p = data;
    uint64_t lane[4] = {h, h + 1, h + 2, h + 3}, word[4];
    for (; n >= sizeof word; n -= sizeof word, p += sizeof word) {
        memcpy(word, p, sizeof word);
        for (int i = 0; i < 4; i++) lane[i] = mix(lane[i], word[i]);
    }
    memset(word, 0, sizeof word);
    memcpy(word, p, n);
    for (int i = 0; i < 4; i++) h = mix(mix(h, lane[i]), word[i]);
    return mix(h, n);
}

static sl_code check_finite(const sl_lora *l, const sl_lora_change *c, const sl_tensor *t,
                            sl_err *err)
{
    const int64_t at = t->rank ? sl_first_nonfinite(t->data, t->dtype, sl_count(t)) : -1;
    if (at < 0) return SL_OK;
    return sl_lora_wrong(l, err, SL_NUMERIC, "%.200s%s has NaN or infinity at element %lld",
                         c->name, t == &c->up ? " (its other factor)" : "", (long long)at);
}

sl_code sl_lora_read(const sl_lora *l, uint64_t *id, sl_err *err)
{
    uint64_t h = 1;
    sl_code rc;
    for (int i = 0; i < l->change_count; i++) {
        const sl_lora_change *c = &l->changes[i];
        if ((rc = check_finite(l, c, &c->up, err)) || (rc = check_finite(l, c, &c->down, err)))
            return rc;
        h = mix_bytes(h, c->target, strlen(c->target));
        h = mix_bytes(h, &c->scale, sizeof c->scale);
        for (int f = 0; f < 2; f++) {
            const sl_tensor *t = f ? &c->down : &c->up;
            h = mix(h, (uint64_t)t->dtype * 16 + (uint64_t)t->rank);
            if (t->rank) h = mix_bytes(mix(h, (uint64_t)t->shape[0]), t->data, sl_bytes(t));
        }
    }
    *id = h ? h : 1;
    return SL_OK;
}

/* ---- a job's rows ---- */

sl_code sl_lora_use_parse(sl_lora_use *out, const char *text, sl_err *err)
{
    const char *colon = strrchr(text, ':');
    char *end = NULL;
    size_t n = strlen(text);
    *out = (sl_lora_use){.strength = 1};
    if (colon && colon[1] && strspn(colon + 1, "0123456789.eE+-") == strlen(colon + 1)) {
        out->strength = strtod(colon + 1, &end);
        if (*end) out->strength = NAN;
        n = (size_t)(colon - text);
        if (!(fabs(out->strength) <= SL_LORA_STRENGTH))
            return sl_fail(err, SL_ARG, "LoRA \"%.200s\" has strength %.40s, want -%d to %d", text,
                           colon + 1, SL_LORA_STRENGTH, SL_LORA_STRENGTH);
    }
    if (!n || n >= sizeof out->file || memchr(text, '\n', n))
        return sl_fail(err, SL_ARG, "LoRA \"%.100s\" names no file, want FILE[:STRENGTH]",
                       memchr(text, '\n', n) ? "..." : text);
    memcpy(out->file, text, n);
    return SL_OK;
}

int sl_lora_uses(sl_lora_use out[SL_LORA_MOST], const char *field, sl_err *err)
{
    int n = 0;
    for (const char *line = field; line && *line; n++) {
        const size_t length = strcspn(line, "\n");
        char *end = NULL;
        sl_lora_use u = {0};
        u.strength = strtod(line, &end);
        if (end != line && *end == ' ') {
            const char *id = end + 1;
            u.id = strtoull(id, &end, 16);
            if (end == id) end = NULL;
        } else end = NULL;
        const size_t rest = end ? (size_t)(line + length - end) : 0;
        if (n == SL_LORA_MOST) {
            sl_fail(err, SL_ARG, "more than %d LoRA, want at most so many", SL_LORA_MOST);
            return -1;
        }
        if (!end || *end != ' ' || rest < 2 || rest > sizeof u.file ||
            !(fabs(u.strength) <= SL_LORA_STRENGTH)) {
            sl_fail(err, SL_FORMAT, "lora is \"%.100s\", want rows of STRENGTH ID FILE", line);
            sl_one_line(err);
            return -1;
        }
        memcpy(u.file, end + 1, rest - 1);
        out[n] = u;
        line += length + (line[length] == '\n');
    }
    return n;
}

char *sl_lora_field(const sl_lora_use *uses, int n)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) return NULL;
    for (int i = 0; i < n; i++)
        fprintf(f, "%s%.17g %016llx %s", i ? "\n" : "", uses[i].strength,
                (unsigned long long)uses[i].id, uses[i].file);
    if (!fclose(f)) return text;
    free(text);
    return NULL;
}

uint64_t sl_lora_key(const char *field)
{
    sl_lora_use uses[SL_LORA_MOST];
    const int n = sl_lora_uses(uses, field, NULL);
    uint64_t h = 7;
    for (int i = 0; i < n; i++) h = mix(mix_bytes(h, &uses[i].strength, 8), uses[i].id);
    return n > 0 ? h | 1 : 0;
}

sl_code sl_lora_set_open(sl_lora_set *s, const char *field, sl_err *err)
{
    sl_code rc = SL_OK;
    *s = (sl_lora_set){0};
    const int n = sl_lora_uses(s->use, field, err);
    if (n < 0) return err ? err->code : SL_FORMAT;
    while (s->n < n && !rc) {
        s->strength[s->n] = s->use[s->n].strength;
        rc = sl_lora_open(&s->file[s->n], s->use[s->n].file, err);
        if (!rc) s->n++;
    }
    return rc;
}

void sl_lora_set_close(sl_lora_set *s)
{
    for (int i = 0; i < s->n; i++) sl_lora_close(&s->file[i]);
    s->n = 0;
}

sl_code sl_lora_set_read(sl_lora_set *s, sl_err *err)
{
    for (int i = 0; i < s->n; i++) {
        uint64_t id = 0;
        sl_code rc = sl_lora_read(s->file[i], &id, err);
        if (rc) return rc;
        if (s->use[i].id && s->use[i].id != id)
            return sl_lora_wrong(
                s->file[i], err, SL_GONE,
                "its content is another than when the job was taken (%016llx, want "
                "%016llx)",
                (unsigned long long)id, (unsigned long long)s->use[i].id);
        s->use[i].id = id;
    }
    return SL_OK;
}
