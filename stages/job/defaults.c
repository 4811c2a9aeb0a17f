/* defaults.c - a checkpoint's own defaults: read by the table of options, put beneath what the
 * user said. */
#include "stages/job/defaults.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "common/json.h"
#include "stages/job/options.h"

sl_code sl_request_check_size(const sl_request *j, sl_err *err)
{
    const sl_job *s = &j->spec;
    if (!s->width != !s->height)
        return sl_fail(err, SL_ARG, "--width is %d and --height %d, want both or neither", s->width,
                       s->height);
    if (s->width && j->has_max_area)
        return sl_fail(err, SL_ARG,
                       "--max-area is given beside --width and --height, want one of the two");
    if (j->has_max_area && (j->max_area < 256 || j->max_area > (int64_t)8192 * 8192))
        return sl_fail(err, SL_ARG, "--max-area is %lld, want 256 to 67108864 pixels",
                       (long long)j->max_area);
    return SL_OK;
}

double sl_default_fps(const sl_model *model, const sl_conf *conf)
{
    return conf->video.fps ? conf->video.fps : model->family.fps;
}

static bool is_given(const sl_request *j, const sl_option *o)
{
    return *((const bool *)j + o->given);
}

sl_code sl_request_read_defaults(sl_request *out, const char *dir, sl_err *err)
{
    char path[SL_PATH];
    struct stat st;
    json_t *root = NULL;
    memset(out, 0, sizeof *out);
    sl_code rc = sl_path_join(path, dir, SL_MODEL_DEFAULTS, err);
    if (rc || (rc = sl_job_init(&out->spec, err)) || (lstat(path, &st) && errno == ENOENT))
        return rc;
    if ((rc = sl_json_read(&root, path, SL_MODEL_DEFAULTS_BYTES, err))) return rc;
    if (!(rc = sl_request_read_json(out, SL_OPTION_OF_MODEL, root, err)) &&
        !(rc = sl_request_check_size(out, err))) {
        sl_job s = out->spec; /* the file's ranges are a job's, and a job has a size */
        if (!out->has_width) s.width = s.height = 16;
        rc = sl_job_check(&s, err);
    }
    if (rc) sl_context(err, rc, "%s", path);
    sl_one_line(err);
    json_decref(root);
    return rc;
}

static sl_code copy_value(sl_request *to, const sl_request *from, const sl_option *o, sl_err *err)
{
    char *a = (char *)to + o->at;
    const char *b = (const char *)from + o->at;
    if (o->kind == SL_OPTION_TEXT || o->kind == SL_OPTION_LORA)
        return sl_job_set_text((char **)a, *(char *const *)b, err);
    memcpy(a, b, o->room);
    return SL_OK;
}

/* What another sampler's numbers would be wrong for. */
static bool is_of_steps(const sl_option *o)
{
    static const char *const NAMES[] = {"steps", "guidance", "guidance-2", "shift"};
    for (int i = 0; i < 4; i++)
        if (!strcmp(o->name, NAMES[i])) return true;
    return false;
}

sl_code sl_request_apply_defaults(sl_request *j, const sl_request *defaults, sl_err *err)
{
    const bool sized = j->has_width || j->has_height || j->has_max_area, guided = j->has_guidance,
               distilled = j->has_sampler && sl_job_distilled(&j->spec) &&
                           !(defaults->has_sampler && sl_job_distilled(&defaults->spec));
    sl_code rc;
    const sl_option *o;
    for (int i = 0; (o = sl_option_at(i)); i++) {
        const bool size =
            !strcmp(o->name, "width") || !strcmp(o->name, "height") || !strcmp(o->name, "max-area");
        if (o->owner != SL_OPTION_OF_MODEL || !is_given(defaults, o) || is_given(j, o) ||
            (sized && size) || (guided && !strcmp(o->name, "guidance-2")) ||
            (distilled && is_of_steps(o)))
            continue;
        if ((rc = copy_value(j, defaults, o, err))) return rc;
        *((bool *)j + o->given) = true;
    }
    return SL_OK;
}

bool sl_request_print_defaults(const sl_request *d, const char *before, FILE *to)
{
    int n = 0;
    const sl_option *o;
    for (int i = 0; (o = sl_option_at(i)); i++) {
        const char *at = (const char *)d + o->at;
        if (o->owner != SL_OPTION_OF_MODEL || !is_given(d, o)) continue;
        fprintf(to, "%s%s ", n++ ? ", " : before, o->name);
        switch (o->kind) {
        case SL_OPTION_INT: fprintf(to, "%d", *(const int *)at); break;
        case SL_OPTION_I64: fprintf(to, "%lld", (long long)*(const int64_t *)at); break;
        case SL_OPTION_RATE:
        case SL_OPTION_REAL: fprintf(to, "%g", *(const double *)at); break;
        case SL_OPTION_TEXT: fprintf(to, "of %zu bytes", strlen(*(char *const *)at)); break;
        default: fprintf(to, "%s", at);
        }
    }
    return n > 0;
}
