/* conf.c - the settings of a deployment: reading and checking, after the table in conf_keys.c. */
#include "common/conf.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <libconfig.h>

#include "common/conf_keys.h"
#include "common/text.h"

#define FILE_BYTES (1 << 20) /* longest file */

const sl_conf_stage *sl_conf_find(const sl_conf *conf, sl_role role)
{
    for (int i = 0; i < conf->stage_count; i++)
        if (conf->stages[i].role == role) return &conf->stages[i];
    return NULL;
}

int sl_conf_instances(const sl_conf *conf, sl_role role)
{
    int n = 0;
    for (int i = 0; i < conf->stage_count; i++) n += conf->stages[i].role == role;
    return n;
}

bool sl_conf_teamed(const sl_conf *conf, sl_role role)
{
    const sl_conf_stage *first = sl_conf_find(conf, role);
    return first && sl_role_has_teams(role) && first->team != 1 &&
           sl_conf_instances(conf, role) > 1;
}

const char *sl_conf_name(const sl_conf *conf, const sl_conf_stage *stage, char out[SL_CONF_NAME])
{
    const char *role = sl_role_name(stage->role);
    if (sl_conf_instances(conf, stage->role) > 1)
        snprintf(out, SL_CONF_NAME, "%.15s.%d", role, stage->instance % SL_CONF_SEATS);
    else snprintf(out, SL_CONF_NAME, "%.15s", role);
    return out;
}

void sl_conf_use(const sl_conf *conf)
{
    sl_filter_row all[SL_FILTERS];
    for (int i = 0; i < conf->filter_count; i++) all[i] = conf->filters[i].is;
    sl_pipeline_use(all, conf->filter_count);
}

/* ---- reading ---- */

typedef struct {
    const char *name; /* of the file */
    sl_err *err;
} reader;

static int line_of(const config_setting_t *s)
{
    return (int)config_setting_source_line(s);
}

/* The value as the file has it, short. */
static const char *found(const config_setting_t *s, char *out, size_t size)
{
    switch (config_setting_type(s)) {
    case CONFIG_TYPE_INT:
    case CONFIG_TYPE_INT64: snprintf(out, size, "%lld", config_setting_get_int64(s)); break;
    case CONFIG_TYPE_FLOAT: snprintf(out, size, "%g", config_setting_get_float(s)); break;
    case CONFIG_TYPE_BOOL:
        snprintf(out, size, "%s", config_setting_get_bool(s) ? "true" : "false");
        break;
    case CONFIG_TYPE_STRING: {
        const char *text = config_setting_get_string(s);
        snprintf(out, size, strlen(text) > 60 ? "\"%.60s...\"" : "\"%.60s\"", text);
        break;
    }
    case CONFIG_TYPE_GROUP: snprintf(out, size, "a group"); break;
    case CONFIG_TYPE_ARRAY: snprintf(out, size, "an array"); break;
    case CONFIG_TYPE_LIST: snprintf(out, size, "a list"); break;
    default: snprintf(out, size, "nothing"); break;
    }
    for (char *c = out; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) *c = '?';
    return out;
}

/* "file:12: limits.frames is 0, want ..."; `path` names the key, in a stage
 * "stages[1].device". */
static sl_code refuse(const reader *r, const config_setting_t *s, const sl_key *k, const char *path)
{
    char have[80], want[320], what[256];
    return sl_fail(r->err, SL_ARG, "%s:%d: %s is %s, want %s (%s)", r->name, line_of(s), path,
                   found(s, have, sizeof have), sl_key_values(k, want, sizeof want),
                   sl_key_meaning(k, what, sizeof what));
}

static bool is_device(const char *text)
{
    if (!strcmp(text, "cpu")) return true;
    if (strncmp(text, "cuda:", 5)) return false;
    const char *n = text + 5;
    size_t digits = strspn(n, "0123456789");
    return digits >= 1 && digits <= 2 && !n[digits] && !(digits == 2 && n[0] == '0') &&
           atoi(n) < 64;
}

static bool is_control_free(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 127) return false;
    return true;
}

/* A group of the list `stages`: one stage, but for its devices. */
typedef struct {
    sl_conf_stage stage; /* first: keys find their place in it */
    int device_count;    /* 0: the stage's own */
    char devices[SL_CONF_SEATS][sizeof((sl_conf_stage *)0)->device];
} stage_group;

static bool is_list(const config_setting_t *s)
{
    return config_setting_type(s) == CONFIG_TYPE_ARRAY ||
           config_setting_type(s) == CONFIG_TYPE_LIST;
}

/* The i-th of a list of strings. */
static sl_code read_item(const reader *r, const config_setting_t *s, const sl_key *k,
                         const char *path, int i, const char **out)
{
    const config_setting_t *e = config_setting_get_elem(s, (unsigned)i);
    char item[128];
    *out = config_setting_type(e) == CONFIG_TYPE_STRING ? config_setting_get_string(e) : NULL;
    if (*out && (k->type == SL_KEY_DEVICES ? is_device(*out) : strlen(*out) < SL_CONF_ARG))
        return SL_OK;
    snprintf(item, sizeof item, "%s[%d]", path, i);
    return refuse(r, e, k, item);
}

static sl_code read_args(const reader *r, const config_setting_t *s, const sl_key *k,
                         const char *path, sl_conf_stage *out)
{
    int n = config_setting_length(s);
    if (!is_list(s) || n > SL_CONF_ARGS) return refuse(r, s, k, path);
    out->arg_count = n;
    for (int i = 0; i < n; i++) {
        const char *text;
        sl_code rc = read_item(r, s, k, path, i, &text);
        if (rc) return rc;
        snprintf(out->args[i], sizeof out->args[i], "%s", text);
    }
    return SL_OK;
}

static sl_code read_devices(const reader *r, const config_setting_t *s, const sl_key *k,
                            const char *path, stage_group *out)
{
    int n = config_setting_length(s);
    if (!is_list(s) || n < 1 || n > SL_CONF_SEATS) return refuse(r, s, k, path);
    out->device_count = n;
    for (int i = 0; i < n; i++) {
        const char *text;
        sl_code rc = read_item(r, s, k, path, i, &text);
        if (rc) return rc;
        snprintf(out->devices[i], sizeof out->devices[i], "%s", text);
    }
    return SL_OK;
}

/* Check one setting against its key and store it. */
static sl_code read_key(const reader *r, const config_setting_t *s, const sl_key *k,
                        const char *path, void *base)
{
    int type = config_setting_type(s);
    if (k->type == SL_KEY_ARGS) return read_args(r, s, k, path, base);
    if (k->type == SL_KEY_DEVICES) return read_devices(r, s, k, path, base);
    if (k->type == SL_KEY_TEAM && type == CONFIG_TYPE_STRING &&
        !strcmp(config_setting_get_string(s), "auto")) {
        sl_key_store_number(k, base, 0);
        return SL_OK;
    }
    if (sl_key_is_number(k)) {
        bool whole = type == CONFIG_TYPE_INT || type == CONFIG_TYPE_INT64;
        if (!whole && !(k->type == SL_KEY_FLOAT && type == CONFIG_TYPE_FLOAT))
            return refuse(r, s, k, path);
        double v = whole ? (double)config_setting_get_int64(s) : config_setting_get_float(s);
        if (!(v >= k->lo && v <= k->hi)) return refuse(r, s, k, path);
        sl_key_store_number(k, base, v);
        return SL_OK;
    }
    const char *text = type == CONFIG_TYPE_STRING ? config_setting_get_string(s) : NULL;
    if (!text || !is_control_free(text)) return refuse(r, s, k, path);
    if (k->words ? sl_key_word(k->words, text) < 0 || strchr(text, '|') : strlen(text) >= k->size)
        return refuse(r, s, k, path);
    if ((k->type == SL_KEY_PROGRAM && !text[0]) || (k->type == SL_KEY_DEVICE && !is_device(text)))
        return refuse(r, s, k, path);
    sl_key_store_text(k, base, text);
    return SL_OK;
}

/* ---- the nearest known key ---- */

static void consider(const char *known, const char *unknown, int cost, const char **best,
                     int *best_cost)
{
    cost += sl_text_distance(known, unknown);
    if (cost < *best_cost) {
        *best_cost = cost;
        *best = known;
    }
}

/* A key that is right but stands in the wrong group counts as near: 1 and the distance of
 * the last parts. */
static sl_code unknown_key(const reader *r, const config_setting_t *s, const char *path,
                           const sl_keys *keys)
{
    const char *last = strrchr(path, '.'), *best = "";
    int cost = 1 << 20;
    last = last ? last + 1 : path;
    for (int i = 0; i < keys->count; i++) {
        const char *dot = strchr(keys->at[i].path, '.');
        consider(keys->at[i].path, dot ? path : last, 0, &best, &cost);
        int apart = 1 + sl_text_distance(dot ? dot + 1 : keys->at[i].path, last);
        if (apart < cost) {
            cost = apart;
            best = keys->at[i].path;
        }
    }
    return sl_fail(r->err, SL_ARG, "%s:%d: unknown key %.100s, the nearest known one is %s",
                   r->name, line_of(s), path, best);
}

static sl_code unknown_group(const reader *r, const config_setting_t *s)
{
    static const char *const LISTS[] = {"stages", "filters", "lora"};
    const char *name = config_setting_name(s), *best = "";
    char group[64], nearest[64] = "";
    int cost = 1 << 20;
    if (config_setting_type(s) != CONFIG_TYPE_GROUP && config_setting_type(s) != CONFIG_TYPE_LIST)
        return unknown_key(r, s, name, &SL_CONF_KEYS);
    for (size_t i = 0; i < sizeof LISTS / sizeof *LISTS; i++)
        consider(LISTS[i], name, 0, &best, &cost);
    snprintf(nearest, sizeof nearest, "%s", best);
    for (int i = 0; i < SL_CONF_KEYS.count; i++) {
        int before = cost;
        snprintf(group, sizeof group, "%.*s", (int)strcspn(SL_CONF_KEYS.at[i].path, "."),
                 SL_CONF_KEYS.at[i].path);
        consider(group, name, 0, &best, &cost);
        if (cost < before) snprintf(nearest, sizeof nearest, "%s", group);
    }
    return sl_fail(r->err, SL_ARG, "%s:%d: unknown group %.100s, the nearest known one is %s",
                   r->name, line_of(s), name, nearest);
}

/* ---- groups ---- */

static const sl_key *find_key(const sl_keys *keys, const char *path)
{
    for (int i = 0; i < keys->count; i++)
        if (!strcmp(keys->at[i].path, path)) return &keys->at[i];
    return NULL;
}

static bool is_group(const char *name)
{
    size_t n = strlen(name);
    for (int i = 0; i < SL_CONF_KEYS.count; i++)
        if (!strncmp(SL_CONF_KEYS.at[i].path, name, n) && SL_CONF_KEYS.at[i].path[n] == '.')
            return true;
    return false;
}

static sl_code read_group(const reader *r, const config_setting_t *group, sl_conf *out)
{
    char have[80];
    if (config_setting_type(group) != CONFIG_TYPE_GROUP)
        return sl_fail(r->err, SL_ARG, "%s:%d: %s is %s, want a group { ... }", r->name,
                       line_of(group), config_setting_name(group), found(group, have, sizeof have));
    for (int i = 0; i < config_setting_length(group); i++) {
        const config_setting_t *s = config_setting_get_elem(group, (unsigned)i);
        char path[160];
        snprintf(path, sizeof path, "%s.%.100s", config_setting_name(group),
                 config_setting_name(s));
        const sl_key *k = find_key(&SL_CONF_KEYS, path);
        if (!k) return unknown_key(r, s, path, &SL_CONF_KEYS);
        sl_code rc = read_key(r, s, k, path, out);
        if (rc) return rc;
    }
    return SL_OK;
}

static sl_code read_stage(const reader *r, const config_setting_t *group, int index,
                          stage_group *out)
{
    char path[160], have[80], want[320];
    sl_code rc;
    if (config_setting_type(group) != CONFIG_TYPE_GROUP)
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: stages[%d] is %s, want a group { name = \"text\"; ... }", r->name,
                       line_of(group), index, found(group, have, sizeof have));
    const config_setting_t *name = config_setting_get_member(group, "name");
    if (!name)
        return sl_fail(r->err, SL_ARG, "%s:%d: stages[%d] has no name, want %s", r->name,
                       line_of(group), index,
                       sl_key_values(SL_CONF_STAGE_KEYS.at, want, sizeof want));
    snprintf(path, sizeof path, "stages[%d].name", index);
    if ((rc = read_key(r, name, SL_CONF_STAGE_KEYS.at, path, out))) return rc;
    sl_conf_stage_defaults(&out->stage, out->stage.role);
    for (int i = 0; i < config_setting_length(group); i++) {
        const config_setting_t *s = config_setting_get_elem(group, (unsigned)i);
        snprintf(path, sizeof path, "stages[%d].%.100s", index, config_setting_name(s));
        const sl_key *k = find_key(&SL_CONF_STAGE_KEYS, config_setting_name(s));
        if (!k) return unknown_key(r, s, path, &SL_CONF_STAGE_KEYS);
        if (!sl_key_is_of_role(k, out->stage.role))
            return sl_fail(r->err, SL_ARG,
                           "%s:%d: %s: %s forms no teams, want this key of denoise only", r->name,
                           line_of(s), path, sl_role_name(out->stage.role));
        if ((rc = read_key(r, s, k, path, out))) return rc;
    }
    if (out->device_count && config_setting_get_member(group, "device"))
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: stages[%d] has both device and devices, want one of them", r->name,
                       line_of(group), index);
    return SL_OK;
}

static sl_code no_stages(const reader *r, const config_setting_t *list, const char *have)
{
    return sl_fail(
        r->err, SL_ARG,
        "%s:%d: stages is %s, want a list of one or more groups ( { name = \"text\"; ... "
        "}, ... )",
        r->name, line_of(list), have);
}

static sl_code read_stages(const reader *r, const config_setting_t *list, sl_conf *out)
{
    char have[80];
    int n = config_setting_length(list);
    if (config_setting_type(list) != CONFIG_TYPE_LIST)
        return no_stages(r, list, found(list, have, sizeof have));
    out->stage_count = 0;
    for (int i = 0; i < n; i++) {
        const config_setting_t *s = config_setting_get_elem(list, (unsigned)i);
        stage_group g = {0};
        sl_code rc = read_stage(r, s, i, &g);
        if (rc) return rc;
        int more = g.device_count ? g.device_count : 1;
        if (out->stage_count + more > SL_CONF_SEATS)
            return sl_fail(r->err, SL_ARG,
                           "%s:%d: stages[%d] makes them %d processes, want at most %d in all",
                           r->name, line_of(s), i, out->stage_count + more, SL_CONF_SEATS);
        for (int d = 0; d < more; d++) {
            if (g.device_count) memcpy(g.stage.device, g.devices[d], sizeof g.stage.device);
            g.stage.instance = sl_conf_instances(out, g.stage.role);
            out->stages[out->stage_count++] = g.stage;
        }
    }
    return SL_OK;
}

#define NAMES "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

/* A word that runs the file behind it: "python3.11", "sh". */
static bool is_runner(const char *name, size_t n)
{
    static const char *const RUNNERS[] = {"sh", "bash", "env"};
    for (size_t i = 0; i < sizeof RUNNERS / sizeof *RUNNERS; i++)
        if (n == strlen(RUNNERS[i]) && !strncmp(name, RUNNERS[i], n)) return true;
    return n >= 6 && !strncmp(name, "python", 6) && 6 + strspn(name + 6, "0123456789.") >= n;
}

/* A filter without a name is called as its program's file: "python3 -u x/mine.py" is mine. */
static void name_filter(sl_filter_row *f, const char *program)
{
    const char *word = program, *name = program;
    while (*word) {
        const size_t n = strcspn(word, " ");
        const char *next = word + n + strspn(word + n, " ");
        for (name = word + n; name > word && name[-1] != '/'; name--) {
        }
        if (!*next || (*word != '-' && !is_runner(name, (size_t)(word + n - name)))) break;
        word = next;
    }
    snprintf(f->name, sizeof f->name, "%.*s", (int)strspn(name, NAMES), name);
}

/* Its name is nobody else's, and part of a file's. */
static sl_code check_filter(const reader *r, const config_setting_t *group, int index,
                            const sl_conf *out)
{
    const sl_conf_filter *f = &out->filters[index];
    const char *name = f->is.name, *taken = NULL;
    if (!*f->stage.program)
        return sl_fail(r->err, SL_ARG, "%s:%d: filters[%d] has no program, want one", r->name,
                       line_of(group), index);
    if (!*name || name[strspn(name, NAMES)])
        return sl_fail(
            r->err, SL_ARG,
            "%s:%d: filters[%d].name is \"%.40s\", want 1 to %d letters, digits, _ and -", r->name,
            line_of(group), index, name, SL_FILTER_NAME - 1);
    for (int i = 0; i < SL_ROLE_COUNT; i++)
        if (!strcmp(name, sl_role_name((sl_role)i))) taken = "a stage";
    if (!strcmp(name, "client") || !strcmp(name, "filter")) taken = "the protocol's";
    for (int i = 0; i < index; i++)
        if (!strcmp(name, out->filters[i].is.name)) taken = "that of another filter";
    if (taken)
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: filters[%d].name is \"%s\", which is %s: want another", r->name,
                       line_of(group), index, name, taken);
    if (f->is.scale != 1 && f->is.on != SL_HANDOVER_FRAMES)
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: filters[%d].scale is %g, want 1: whoever takes %s takes it in one "
                       "size alone",
                       r->name, line_of(group), index, f->is.scale, SL_HANDOVER[f->is.on].name);
    double scale = f->is.scale; /* behind those before it */
    for (int i = 0; i < index; i++) scale *= out->filters[i].is.scale;
    if (scale * SL_SCALES != floor(scale * SL_SCALES) || scale > 8)
        return sl_fail(
            r->err, SL_ARG,
            "%s:%d: filters[%d].scale makes frames %g times as large, want a multiple of "
            "1/%d, at most 8",
            r->name, line_of(group), index, scale, SL_SCALES);
    return SL_OK;
}

static sl_code read_filter(const reader *r, const config_setting_t *group, int index, sl_conf *out)
{
    char path[160], have[80], want[320];
    sl_conf_filter *f = &out->filters[index];
    sl_code rc;
    if (config_setting_type(group) != CONFIG_TYPE_GROUP)
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: filters[%d] is %s, want a group { on = \"latents\"; program = ... }",
                       r->name, line_of(group), index, found(group, have, sizeof have));
    const config_setting_t *on = config_setting_get_member(group, "on");
    if (!on)
        return sl_fail(r->err, SL_ARG, "%s:%d: filters[%d] has no on, want %s", r->name,
                       line_of(group), index,
                       sl_key_values(SL_CONF_FILTER_KEYS.at, want, sizeof want));
    snprintf(path, sizeof path, "filters[%d].on", index);
    if ((rc = read_key(r, on, SL_CONF_FILTER_KEYS.at, path, f))) return rc;
    sl_conf_filter_defaults(f);
    for (int i = 0; i < config_setting_length(group); i++) {
        const config_setting_t *s = config_setting_get_elem(group, (unsigned)i);
        snprintf(path, sizeof path, "filters[%d].%.100s", index, config_setting_name(s));
        const sl_key *k = find_key(&SL_CONF_FILTER_KEYS, config_setting_name(s));
        if (!k) return unknown_key(r, s, path, &SL_CONF_FILTER_KEYS);
        if ((rc = read_key(r, s, k, path, f))) return rc;
    }
    if (!*f->is.name) name_filter(&f->is, f->stage.program);
    return check_filter(r, group, index, out);
}

static sl_code read_filters(const reader *r, const config_setting_t *list, sl_conf *out)
{
    char have[80];
    const int n = config_setting_length(list);
    if (config_setting_type(list) != CONFIG_TYPE_LIST || n > SL_FILTERS)
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: filters is %s of %d, want a list of at most %d groups ( { on = "
                       "\"latents\"; program = \"mine.py\"; }, ... )",
                       r->name, line_of(list), found(list, have, sizeof have), n, SL_FILTERS);
    for (int i = 0; i < n; i++) {
        sl_code rc = read_filter(r, config_setting_get_elem(list, (unsigned)i), i, out);
        if (rc) return rc;
    }
    out->filter_count = n;
    return SL_OK;
}

/* Processes of the filters, behind the stages'. */
static sl_code add_filters(const reader *r, sl_conf *c)
{
    int n = 0;
    while (n < c->stage_count && (int)c->stages[n].role < SL_ROLE_COUNT) n++;
    for (int i = 0; i < c->filter_count; i++) {
        if (!c->filters[i].runs) continue;
        if (n == SL_CONF_SEATS)
            return sl_fail(r->err, SL_ARG, "%s: stages and filters are more than %d processes",
                           r->name, SL_CONF_SEATS);
        c->stages[n] = c->filters[i].stage;
        c->stages[n++].role = (sl_role)(SL_ROLE_COUNT + i);
    }
    c->stage_count = n;
    return SL_OK;
}

static sl_code read_lora(const reader *r, const config_setting_t *group, int index, sl_conf *out)
{
    char path[160], have[80];
    sl_conf_lora *l = &out->lora[index];
    if (config_setting_type(group) != CONFIG_TYPE_GROUP)
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: lora[%d] is %s, want a group { name = \"NAME\"; ... }", r->name,
                       line_of(group), index, found(group, have, sizeof have));
    sl_conf_lora_defaults(l);
    for (int i = 0; i < config_setting_length(group); i++) {
        const config_setting_t *s = config_setting_get_elem(group, (unsigned)i);
        snprintf(path, sizeof path, "lora[%d].%.100s", index, config_setting_name(s));
        const sl_key *k = find_key(&SL_CONF_LORA_KEYS, config_setting_name(s));
        if (!k) return unknown_key(r, s, path, &SL_CONF_LORA_KEYS);
        sl_code rc = read_key(r, s, k, path, l);
        if (rc) return rc;
    }
    if (!*l->name || strpbrk(l->name, ": ,") || (!*l->file && !*l->file_2))
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: lora[%d] has %s, want a name without space, comma and colon, and "
                       "file or file_2",
                       r->name, line_of(group), index,
                       !*l->name                 ? "no name"
                       : strpbrk(l->name, ": ,") ? "a name with one of them"
                                                 : "no file");
    for (int i = 0; i < index; i++)
        if (!strcmp(out->lora[i].name, l->name))
            return sl_fail(r->err, SL_ARG, "%s:%d: lora[%d].name is \"%s\", as that of lora[%d] is",
                           r->name, line_of(group), index, l->name, i);
    return SL_OK;
}

static sl_code read_loras(const reader *r, const config_setting_t *list, sl_conf *out)
{
    char have[80];
    const int n = config_setting_length(list);
    if (config_setting_type(list) != CONFIG_TYPE_LIST || n > SL_CONF_LORAS)
        return sl_fail(r->err, SL_ARG,
                       "%s:%d: lora is %s, want a list of at most %d groups ( { name = \"NAME\"; "
                       "file = \"FILE\"; }, ... )",
                       r->name, line_of(list), found(list, have, sizeof have), SL_CONF_LORAS);
    for (int i = 0; i < n; i++) {
        sl_code rc = read_lora(r, config_setting_get_elem(list, (unsigned)i), i, out);
        if (rc) return rc;
    }
    out->lora_count = n;
    return SL_OK;
}

/* Instances that may work together are told alike, and are no more than a team can have. */
static sl_code check_teams(const reader *r, const sl_conf *c)
{
    for (int i = 0; i < c->stage_count; i++) {
        const sl_conf_stage *s = &c->stages[i], *first = sl_conf_find(c, s->role);
        const char *role = sl_role_name(s->role);
        int n = sl_conf_instances(c, s->role);
        if (!sl_role_has_teams(s->role)) continue;
        if (s->team != first->team || strcmp(s->comm, first->comm))
            return sl_fail(r->err, SL_ARG,
                           "%s: %s.%d has another team or comm than %s.0, want the same of all",
                           r->name, role, s->instance, role);
        if (s->team > n)
            return sl_fail(r->err, SL_ARG, "%s: %s has a team of %d and %d device%s, want as many",
                           r->name, role, s->team, n, n > 1 ? "s" : "");
        if (n > SL_RANKS)
            return sl_fail(r->err, SL_ARG, "%s: %s has %d devices, want at most %d", r->name, role,
                           n, SL_RANKS);
    }
    return SL_OK;
}

/* What single keys cannot say. */
static sl_code check_together(const reader *r, const sl_conf *c)
{
    sl_code rc = check_teams(r, c);
    if (rc) return rc;
    if ((int64_t)c->supervise.stall_s * 1000 < 2 * (int64_t)c->supervise.heartbeat_ms)
        return sl_fail(r->err, SL_ARG,
                       "%s: supervise.stall_s is %d, want at least two heartbeats "
                       "(supervise.heartbeat_ms is %d)",
                       r->name, c->supervise.stall_s, c->supervise.heartbeat_ms);
    if (c->video.fps > 0 && c->video.fps < 1)
        return sl_fail(r->err, SL_ARG, "%s: video.fps is %g, want 0 (the model's) or 1 to 240",
                       r->name, c->video.fps);
    return SL_OK;
}

static sl_code read_root(const reader *r, const config_setting_t *root, sl_conf *out)
{
    for (int i = 0; i < config_setting_length(root); i++) {
        const config_setting_t *s = config_setting_get_elem(root, (unsigned)i);
        const char *name = config_setting_name(s);
        sl_code rc;
        if (!strcmp(name, "stages")) rc = read_stages(r, s, out);
        else if (!strcmp(name, "lora")) rc = read_loras(r, s, out);
        else if (!strcmp(name, "filters")) rc = read_filters(r, s, out);
        else if (is_group(name)) rc = read_group(r, s, out);
        else rc = unknown_group(r, s);
        if (rc) return rc;
    }
    sl_code rc = add_filters(r, out);
    if (!rc && !out->stage_count) /* a filter alone may run */
        return no_stages(r, config_setting_get_member(root, "stages"), "empty");
    return rc ? rc : check_together(r, out);
}

/* libconfig's scanner ends the process when an included file cannot be read (a folder):
 * such lines never reach it. */
static int include_line(const char *text)
{
    for (int line = 1; *text; line++) {
        text += strspn(text, " \t");
        if (!strncmp(text, "@include", 8)) return line;
        text += strcspn(text, "\n");
        text += *text == '\n';
    }
    return 0;
}

sl_code sl_conf_read_string(sl_conf *conf, const char *text, const char *name, sl_err *err)
{
    reader r = {.name = name, .err = err};
    sl_conf next = *conf;
    config_t c;
    sl_code rc;
    char *whole = NULL;
    int include = include_line(text);
    if (include)
        return sl_fail(err, SL_ARG,
                       "%s:%d: @include is not supported, want all settings in one file", name,
                       include);
    /* a last line may lack its end */
    if (asprintf(&whole, "%s\n", text) < 0) return sl_fail(err, SL_NOMEM, "%s: no memory", name);
    config_init(&c);
    if (config_read_string(&c, whole)) rc = read_root(&r, config_root_setting(&c), &next);
    else rc = sl_fail(err, SL_ARG, "%s:%d: %s", name, config_error_line(&c), config_error_text(&c));
    config_destroy(&c);
    free(whole);
    if (!rc) *conf = next;
    return rc;
}

/* The whole file as text, the caller's to free. */
static sl_code load(const char *path, char **out, sl_err *err)
{
    struct stat st;
    char *text = NULL;
    size_t got = 0;
    sl_code rc = SL_OK;
    /* a FIFO must not block before it is refused */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    *out = NULL;
    if (fd < 0) return sl_fail_errno(err, errno, "%s", path);
    if (fstat(fd, &st)) rc = sl_fail_errno(err, errno, "%s", path);
    else if (!S_ISREG(st.st_mode)) rc = sl_fail(err, SL_SYS, "%s: not a regular file", path);
    else if (st.st_size > FILE_BYTES)
        rc = sl_fail(err, SL_SYS, "%s: %lld bytes, want at most %d", path, (long long)st.st_size,
                     FILE_BYTES);
    else if (!(text = malloc((size_t)st.st_size + 1)))
        rc = sl_fail(err, SL_NOMEM, "%s: no memory", path);
    for (ssize_t n = 1; !rc && n > 0 && got < (size_t)st.st_size; got += (size_t)n) {
        n = read(fd, text + got, (size_t)st.st_size - got);
        if (n < 0) rc = sl_fail_errno(err, errno, "%s", path), n = 0;
    }
    close(fd);
    if (!rc && memchr(text, 0, got))
        rc = sl_fail(err, SL_ARG, "%s: holds a NUL byte, want text", path);
    if (rc) {
        free(text);
        return rc;
    }
    text[got] = 0;
    *out = text;
    return SL_OK;
}

sl_code sl_conf_read_file(sl_conf *conf, const char *path, sl_err *err)
{
    char *text;
    sl_code rc = load(path, &text, err);
    if (rc) return rc;
    rc = sl_conf_read_string(conf, text, path, err);
    free(text);
    return rc;
}
