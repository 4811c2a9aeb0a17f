/* form.c - fields of a request become options; pictures become bytes. */
#include "stages/serve/form.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base64.h"
#include "common/json.h"
#include "common/lora.h"
#include "common/text.h"
#include "stages/job/options.h"
#include "stages/serve/fetch.h"
#include "stages/serve/tokens.h"

/* Other clients' names of options. */
static const struct {
    const char *name, *option;
} ALIASES[] = {
    {"num_frames", "frames"},        {"num_inference_steps", "steps"},
    {"guidance_scale", "guidance"},  {"guidance_scale_2", "guidance-2"},
    {"negative_prompt", "negative"}, {"flow_shift", "shift"},
};

/* Names that are no options. */
static const struct {
    const char *name, *what, *type;
} NAMES[] = {
    {"input_reference", "the picture: a file, a data URL, or an object with image_url", "file"},
    {"image", "as input_reference", "file"},
    {"last_image", "the last frame's picture (FLF2V checkpoints), likewise", "file"},
    {"noise", "safetensors with `noise`, instead of a seed, likewise", "file"},
    {"model", "the served model's name", "string"},
    {"seconds", "length of the video, rounded to 4k + 1 frames", "number"},
    {"size", "WIDTHxHEIGHT, multiples of 16", "string"},
    {"priority", "larger goes first; at most the token's", "integer"},
    {"dump", "keep every hand-over, to be had under /dump/", "boolean"},
    {"num_frames", "as frames", "integer"},
    {"num_inference_steps", "as steps", "integer"},
    {"guidance_scale", "as guidance", "number"},
    {"guidance_scale_2", "as guidance-2", "number"},
    {"negative_prompt", "as negative", "string"},
    {"flow_shift", "as shift", "number"},
};
#define NAME_COUNT ((int)(sizeof NAMES / sizeof *NAMES))

const char *sl_form_name(int i, const char **what, const char **type)
{
    if (i < 0 || i >= NAME_COUNT) return NULL;
    *what = NAMES[i].what;
    *type = NAMES[i].type;
    return NAMES[i].name;
}

/* A path is never a client's to give; `lora` is names of the configuration, for both experts. */
bool sl_form_has_option(int i)
{
    const sl_option *o = sl_option_at(i);
    if (o && o->kind == SL_OPTION_LORA) return !strcmp(o->name, "lora");
    return o && o->owner != SL_OPTION_OF_RUN && o->kind != SL_OPTION_SET && /* params has it */
           o->kind != SL_OPTION_PATH;
}

sl_code sl_form_init(sl_form *f, sl_err *err)
{
    return sl_job_init(&f->request.spec, err);
}

void sl_form_free(sl_form *f)
{
    sl_job_free(&f->request.spec);
    free(f->request.warnings);
    free(f->image.bytes);
    free(f->last_image.bytes);
    free(f->noise.bytes);
    free(f->lora);
    f->lora = NULL;
    f->image = f->last_image = f->noise = (sl_form_file){0};
}

/* "max_area" and "max-area" are one name. */
static void dashed(char out[64], const char *name)
{
    snprintf(out, 64, "%s", name);
    for (char *c = out; *c; c++)
        if (*c == '_') *c = '-';
}

static bool same_name(const char *a, const char *b)
{
    char x[64], y[64];
    dashed(x, a);
    dashed(y, b);
    return strlen(a) < 64 && !strcmp(x, y);
}

static sl_form_file *file_of(sl_form *f, const char *name)
{
    if (same_name(name, "input_reference") || same_name(name, "image")) return &f->image;
    if (same_name(name, "last_image")) return &f->last_image;
    return same_name(name, "noise") ? &f->noise : NULL;
}

bool sl_form_is_file(const char *name)
{
    static sl_form none;
    return file_of(&none, name) != NULL;
}

static sl_code unknown(const char *name, sl_err *err)
{
    const char *near = NULL;
    int best = 99;
    for (int i = 0; i < NAME_COUNT; i++) {
        int d = sl_text_distance(name, NAMES[i].name);
        if (d < best) best = d, near = NAMES[i].name;
    }
    for (int i = 0; sl_option_at(i); i++) {
        int d = sl_text_distance(name, sl_option_at(i)->name);
        if (sl_form_has_option(i) && d < best) best = d, near = sl_option_at(i)->name;
    }
    if (near && best <= 4)
        return sl_fail(err, SL_ARG, "unknown field \"%.60s\", did you mean \"%s\"?", name, near);
    return sl_fail(err, SL_ARG, "unknown field \"%.60s\" (/openapi.json lists them)", name);
}

/* What goes wrong from now on is about this field. */
static void about(sl_form *f, const char *name)
{
    json_t *text = strlen(name) < sizeof f->param ? json_string(name) : NULL; /* UTF-8? */
    snprintf(f->param, sizeof f->param, "%s", text ? name : "");
    json_decref(text);
}

/* ---- pictures ---- */

static sl_code take_file(sl_form *f, const char *name, char *bytes, size_t size, sl_err *err)
{
    sl_form_file *file = file_of(f, name);
    if (file->bytes) {
        free(bytes);
        return sl_fail(err, SL_ARG, "%s is given twice", name);
    }
    if (!size) {
        free(bytes);
        return sl_fail(err, SL_ARG, "%s is empty", name);
    }
    *file = (sl_form_file){bytes, size};
    return SL_OK;
}

sl_code sl_form_file_of(sl_form *f, const char *name, char *bytes, size_t size, sl_err *err)
{
    about(f, name);
    return take_file(f, name, bytes, size, err);
}

static sl_code from_data_url(sl_form *f, const char *name, const char *url, sl_err *err)
{
    const char *comma = strchr(url, ',');
    if (!comma || comma - url < 7 || strncmp(comma - 7, ";base64", 7))
        return sl_fail(err, SL_ARG,
                       "%s is a data URL that is not base64, want data:image/...;base64,...", name);
    const size_t length = strlen(comma + 1);
    size_t n;
    char *bytes = malloc((length + 3) / 4 * 3 + 1);
    if (!bytes) return sl_fail(err, SL_NOMEM, "no memory for %s", name);
    if (!sl_base64_decode((uint8_t *)bytes, &n, comma + 1, length)) {
        free(bytes);
        return sl_fail(err, SL_ARG, "%s is a data URL whose base64 is damaged", name);
    }
    return take_file(f, name, bytes, n, err);
}

static sl_code from_url(sl_form *f, const char *name, const char *url, sl_err *err)
{
    char *bytes = NULL;
    size_t size = 0;
    if (!strncasecmp(url, "data:", 5)) return from_data_url(f, name, url, err);
    sl_code rc = sl_fetch(&bytes, &size, url, f->image_hosts, f->file_bytes, err);
    if (rc) return sl_context(err, rc, "%s", name);
    return take_file(f, name, bytes, size, err);
}

/* A text, {"image_url": text or {"url": text}}, or {"url": text}. */
static sl_code from_json(sl_form *f, const char *name, const json_t *v, sl_err *err)
{
    const json_t *inner = json_object_get(v, "image_url");
    if (!inner) inner = json_object_get(v, "url");
    if (json_is_object(inner)) inner = json_object_get(inner, "url");
    if (json_is_object(v) && json_object_size(v) != 1) inner = NULL;
    const char *text = json_string_value(json_is_object(v) ? inner : v);
    if (!text)
        return sl_fail(err, SL_ARG,
                       "%s is neither a text nor an object with image_url alone, want a data URL",
                       name);
    return from_url(f, name, text, err);
}

/* ---- fields ---- */

static sl_code set_size(sl_form *f, const char *text, sl_err *err)
{
    char w[12] = "", h[12] = "";
    const sl_option *o = NULL;
    sl_code rc;
    int n = 0;
    if (sscanf(text, "%10[0-9]%*1[xX*]%10[0-9]%n", w, h, &n) < 2 || text[n])
        return sl_fail(err, SL_ARG, "size is \"%.60s\", want WIDTHxHEIGHT, as 832x480", text);
    if (f->request.has_width || f->request.has_height)
        return sl_fail(err, SL_ARG, "size is given beside width or height, want one of the two");
    if ((rc = sl_option_find(&o, "width", SL_OPTION_OF_JOB, err)) ||
        (rc = sl_option_set(&f->request, o, w, err)) ||
        (rc = sl_option_find(&o, "height", SL_OPTION_OF_JOB, err)))
        return rc;
    return sl_option_set(&f->request, o, h, err);
}

static sl_code number_of(double *out, const char *name, const json_t *v, double lo, double hi,
                         sl_err *err)
{
    const char *text = json_string_value(v);
    char *end = NULL;
    double x = json_is_number(v) ? json_number_value(v) : NAN;
    if (text && *text && strspn(text, "0123456789.-+eE") == strlen(text)) {
        x = strtod(text, &end);
        if (*end) x = NAN;
    }
    if (!(x >= lo && x <= hi)) {
        char *shown = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        sl_code rc = sl_fail(err, SL_ARG, "%s is %.60s, want a number from %g to %g", name,
                             shown ? shown : "?", lo, hi);
        free(shown);
        return rc;
    }
    *out = x;
    return SL_OK;
}

static sl_code flag_of(bool *out, const char *name, const json_t *v, sl_err *err)
{
    const char *text = json_string_value(v);
    if (json_is_boolean(v)) *out = json_is_true(v);
    else if (text && (!strcmp(text, "true") || !strcmp(text, "false"))) *out = *text == 't';
    else return sl_fail(err, SL_ARG, "%s is neither true nor false", name);
    return SL_OK;
}

/* "a:0.5,b" as an array. */
static json_t *split(const char *text)
{
    json_t *all = json_array();
    while (*text) {
        const size_t n = strcspn(text, ",");
        json_array_append_new(all, json_stringn(text, n));
        text += n + (text[n] == ',');
    }
    return all;
}

static sl_code set_option(sl_form *f, const char *name, json_t *v, sl_err *err)
{
    const sl_option *o = NULL;
    bool flag = false;
    for (int i = 0; !o && sl_option_at(i); i++)
        if (sl_form_has_option(i) && same_name(name, sl_option_at(i)->name)) o = sl_option_at(i);
    if (!o) return unknown(name, err);
    if (o->given && *((const bool *)&f->request + o->given))
        return sl_fail(err, SL_ARG, "%s is given twice, or under two names", name);
    json_t *object = json_object();
    sl_code rc = SL_OK;
    if (o->kind == SL_OPTION_LORA && json_is_string(v))
        json_object_set_new(object, o->name, split(json_string_value(v)));
    else if (o->kind == SL_OPTION_FLAG && !(rc = flag_of(&flag, name, v, err)))
        json_object_set_new(object, o->name, json_boolean(flag));
    else if (!rc) json_object_set(object, o->name, v);
    if (!rc) rc = sl_request_read_json(&f->request, SL_OPTION_OF_JOB, object, err);
    json_decref(object);
    return rc;
}

static sl_code set_field(sl_form *f, const char *name, json_t *v, sl_err *err)
{
    const char *text = json_string_value(v);
    double x = 0;
    sl_code rc;
    about(f, name);
    if (!*f->param) return unknown(name, err);
    if (json_is_null(v)) return SL_OK; /* clients send what was left out */
    if (sl_form_is_file(name)) return from_json(f, name, v, err);
    if (same_name(name, "model")) {
        if (!text || strlen(text) >= sizeof f->model)
            return sl_fail(err, SL_ARG, "model is no name, want the served model's");
        memcpy(f->model, text, strlen(text) + 1);
        return SL_OK;
    }
    if (same_name(name, "size")) {
        if (!text) return sl_fail(err, SL_ARG, "size is no text, want WIDTHxHEIGHT, as 832x480");
        return set_size(f, text, err);
    }
    if (same_name(name, "seconds")) return number_of(&f->seconds, name, v, 1e-3, 1e6, err);
    if (same_name(name, "dump")) return flag_of(&f->dump, name, v, err);
    if (same_name(name, "priority")) {
        rc = number_of(&x, name, v, -SL_PRIORITY, SL_PRIORITY, err);
        if (!rc && x != floor(x)) rc = sl_fail(err, SL_ARG, "priority is %g, want an integer", x);
        f->priority = (int)x;
        f->has_priority = true;
        return rc;
    }
    for (size_t i = 0; i < sizeof ALIASES / sizeof *ALIASES; i++)
        if (same_name(name, ALIASES[i].name)) return set_option(f, ALIASES[i].option, v, err);
    return set_option(f, name, v, err);
}

sl_code sl_form_text(sl_form *f, const char *name, const char *value, sl_err *err)
{
    json_t *v = json_string(value);
    sl_code rc;
    about(f, name);
    if (v) rc = set_field(f, name, v, err);
    else rc = sl_fail(err, SL_ARG, "%.60s is not valid UTF-8", name);
    json_decref(v);
    sl_one_line(err);
    return rc;
}

sl_code sl_form_json(sl_form *f, const char *text, size_t size, sl_err *err)
{
    json_t *root = NULL, *v;
    const char *name;
    sl_code rc = sl_json_parse_long(&root, text, size, "the request's body", err);
    json_object_foreach(root, name, v)
    {
        if (rc || (rc = set_field(f, name, v, err))) break;
    }
    json_decref(root);
    sl_one_line(err);
    return rc;
}

static const sl_conf_lora *lora_of(const sl_conf *conf, const char *name)
{
    for (int i = 0; i < conf->lora_count; i++)
        if (!strcmp(conf->lora[i].name, name)) return &conf->lora[i];
    return NULL;
}

static sl_code no_such_lora(const sl_conf *conf, const char *name, sl_err *err)
{
    char names[256] = "";
    for (int i = 0; i < conf->lora_count; i++) {
        const size_t at = strlen(names);
        snprintf(names + at, sizeof names - at, "%s%s", at ? ", " : "", conf->lora[i].name);
    }
    if (!conf->lora_count)
        return sl_fail(err, SL_ARG,
                       "lora is \"%.60s\", and this server has none (lora in its "
                       "configuration)",
                       name);
    return sl_fail(err, SL_ARG, "lora is \"%.60s\", want some of %s", name, names);
}

/* Rows of one expert. */
static sl_code set_rows(char **field, const sl_lora_use *uses, int n, sl_err *err)
{
    char *rows = sl_lora_field(uses, n);
    if (!rows) return sl_fail(err, SL_NOMEM, "no memory");
    free(*field);
    *field = rows;
    return SL_OK;
}

static bool is_elsewhere(const sl_form *f, const char *name)
{
    const size_t n = strlen(name);
    for (const char *at = f->elsewhere; *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == n && !strncmp(at, name, n)) return true;
    return false;
}

/* As it was asked for, to be read by sl_form_text again. */
static char *lora_text(const sl_lora_use *uses, int n)
{
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);
    if (!to) return NULL;
    for (int i = 0; i < n; i++) {
        char strength[40];
        snprintf(strength, sizeof strength, "%.15g", uses[i].strength);
        if (strtod(strength, NULL) != uses[i].strength)
            snprintf(strength, sizeof strength, "%.17g", uses[i].strength);
        fprintf(to, "%s%s:%s", i ? "," : "", uses[i].file, strength);
    }
    if (fclose(to)) free(text), text = NULL;
    return text;
}

sl_code sl_form_lora(sl_form *f, const sl_conf *conf, const uint64_t (*ids)[2], sl_err *err)
{
    sl_lora_use asked[SL_LORA_MOST], uses[2][SL_LORA_MOST];
    int count[2] = {0};
    const int n = sl_lora_uses(asked, f->request.spec.lora, err);
    if (n < 1) return n ? err->code : SL_OK;
    about(f, "lora");
    free(f->lora);
    if (!(f->lora = lora_text(asked, n))) return sl_fail(err, SL_NOMEM, "no memory");
    for (int i = 0; i < n; i++) {
        const sl_conf_lora *l = lora_of(conf, asked[i].file);
        if (!l && is_elsewhere(f, asked[i].file)) continue;
        if (!l) {
            sl_code rc = no_such_lora(conf, asked[i].file, err);
            sl_one_line(err);
            return rc;
        }
        for (int e = 0; e < 2; e++) {
            sl_lora_use u = {.strength = asked[i].strength * (e ? l->strength_2 : l->strength),
                             .id = ids ? ids[l - conf->lora][e] : 0};
            snprintf(u.file, sizeof u.file, "%s", e ? l->file_2 : l->file);
            if (*u.file) uses[e][count[e]++] = u;
        }
    }
    sl_code rc = set_rows(&f->request.spec.lora, uses[0], count[0], err);
    if (!rc) rc = set_rows(&f->request.spec.lora_2, uses[1], count[1], err);
    *f->param = 0;
    return rc;
}
