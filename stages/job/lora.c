/* lora.c - a request's LoRA: files looked at before any work, and the bytes that they take. */
#include "stages/job/lora.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "common/log.h"
#include "graphs/wan_dit.h"
#include "stages/job/components.h"
#include "stages/job/files.h"

static const char *const OPTION[2] = {"--lora", "--lora-2"};
static const sl_part_id PART[2] = {SL_PART_DIT, SL_PART_DIT_2};

/* One field's files fit this network. */
static sl_code check_fit(const sl_lora_set *set, const sl_request *r, const sl_model *model, int e,
                         bool random, sl_err *err)
{
    sl_ctx ctx;
    sl_loader *l = NULL;
    sl_dit *dit = NULL;
    sl_merge_sizes sizes = {0};
    sl_code rc = sl_ctx_open(&ctx, &sl_ops_plan, 0, err);
    if (rc) return rc;
    rc = random ? sl_loader_plan(&l, &ctx, sl_part_name(PART[e]), err)
                : sl_component_inspect(&l, model, PART[e], &ctx, err);
    if (!rc && !(dit = sl_dit_new(&model->dit[e], l)))
        rc = sl_fail(err, SL_NOMEM, "%s: no memory", sl_part_name(PART[e]));
    if (!rc) rc = sl_loader_finish(l, err);
    if (!rc)
        rc = sl_merge_check(l, (const sl_lora *const *)set->file, set->n, r->spec.lora_lenient,
                            &sizes, err);
    if (!rc && sizes.left_out)
        sl_log(SL_LOG_WARN, "%s: %d tensors have no place in %s and are left out, the first is %s",
               OPTION[e], sizes.left_out, model->dir, sizes.left);
    sl_dit_free(&dit);
    sl_loader_close(&l);
    sl_ctx_close(&ctx);
    return rc;
}

static sl_code make_absolute(sl_lora_set *set, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc = SL_OK;
    for (int i = 0; i < set->n && !rc; i++)
        if (!(rc = sl_absolute_path(path, set->use[i].file, err)))
            memcpy(set->use[i].file, path, sizeof path);
    return rc;
}

static sl_code check_field(sl_request *r, char **field, const sl_model *model, int e, bool random,
                           sl_err *err)
{
    sl_lora_set set;
    sl_code rc = sl_lora_set_open(&set, *field, err);
    if (!rc && set.n && e >= model->family.experts)
        rc = sl_fail(err, SL_ARG, "%s has one transformer, want --lora", model->dir);
    if (!rc) rc = make_absolute(&set, err);
    if (!rc) rc = sl_lora_set_read(&set, err);
    if (!rc && set.n) rc = check_fit(&set, r, model, e, random, err);
    if (!rc && set.n) {
        char *rows = sl_lora_field(set.use, set.n);
        if (!rows) rc = sl_fail(err, SL_NOMEM, "no memory");
        else free(*field), *field = rows;
    }
    sl_lora_set_close(&set);
    return rc ? sl_context(err, rc, "%s", OPTION[e]) : SL_OK;
}

sl_code sl_request_check_lora(sl_request *r, const sl_model *model, bool random, sl_err *err)
{
    sl_code rc = SL_OK;
    if (*r->spec.lora) rc = check_field(r, &r->spec.lora, model, 0, random, err);
    if (!rc && *r->spec.lora_2) rc = check_field(r, &r->spec.lora_2, model, 1, random, err);
    return rc;
}

sl_code sl_lora_sizes(const sl_job *job, int e, const sl_loader *l, sl_merge_sizes *out,
                      sl_err *err)
{
    sl_lora_set set;
    *out = (sl_merge_sizes){0};
    sl_code rc = sl_lora_set_open(&set, e ? job->lora_2 : job->lora, err);
    if (!rc && set.n)
        rc =
            sl_merge_check(l, (const sl_lora *const *)set.file, set.n, job->lora_lenient, out, err);
    out->left = NULL; /* the file's */
    sl_lora_set_close(&set);
    return rc ? sl_context(err, rc, "%s", OPTION[e]) : SL_OK;
}

json_t *sl_lora_json(const char *field)
{
    sl_lora_use uses[SL_LORA_MOST];
    const int n = sl_lora_uses(uses, field, NULL);
    json_t *all = n > 0 ? json_array() : NULL;
    for (int i = 0; i < n && all; i++)
        json_array_append_new(all,
                              json_pack("{s:s, s:f, s:o}", "file", sl_path_last(uses[i].file),
                                        "strength", uses[i].strength, "id",
                                        json_sprintf("%016llx", (unsigned long long)uses[i].id)));
    return all;
}
