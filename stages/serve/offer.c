/* offer.c - what this server can, and which jobs want what. */
#include "stages/serve/offer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/version.h"

static const char *const ROLES[SL_SERVER_ROLE_COUNT] = {
#define X(NAME, name) name,
    SL_SERVER_ROLES(X)
#undef X
};

/* ---- lists of words ---- */

/* One more word; false: there is no room. */
static bool add_word(char *list, size_t room, const char *word)
{
    const size_t n = strlen(list);
    return snprintf(list + n, room - n, "%s%s", n ? "," : "", word) < (int)(room - n);
}

/* Precisions in which weights that were loaded for this one compute. */
static void precisions_of(const char *loaded, char out[128])
{
    sl_precision is;
    *out = 0;
    if (sl_precision_read(&is, loaded, NULL)) return;
    for (int p = 0; p < SL_PRECISION_COUNT; p++)
        if (!sl_precision_fits(is, (sl_precision)p, NULL))
            add_word(out, 128, sl_precision_name((sl_precision)p));
}

static void keyed(char out[96], const char *name, uint64_t key)
{
    snprintf(out, 96, "%s=%016llx", name, (unsigned long long)key);
}

/* ---- the offer ---- */

static sl_code print_offer(const sl_server *s, char out[SL_JOURNAL_NEEDS], sl_err *err)
{
    const sl_conf *c = &s->conf;
    char loras[SL_JOURNAL_NEEDS] = "", precisions[128], word[96];
    bool fits = true;
    precisions_of(c->denoise.precision, precisions);
    for (int i = 0; i < c->lora_count; i++) {
        keyed(word, c->lora[i].name, s->lora_keys[i]);
        fits &= add_word(loras, sizeof loras, c->lora[i].name);
        fits &= add_word(loras, sizeof loras, word);
    }
    if (!fits) return sl_fail(err, SL_ARG, "the names of all LoRA are too long to be told");
    const sl_journal_needs offer = {c->limits.pixels, c->limits.frames, precisions, loras};
    return sl_journal_print_needs(out, &offer, err);
}

json_t *sl_offer_says(sl_server *s)
{
    json_t *devices = json_array(), *loras = json_array();
    char list[128];
    pthread_rwlock_rdlock(&s->settings);
    const sl_conf *c = &s->conf;
    const bool works = s->role != SL_SERVER_FRONT;
    for (int i = 0; i < c->stage_count && works; i++) {
        bool there = false;
        for (size_t k = 0; k < json_array_size(devices); k++)
            there |= !strcmp(json_string_value(json_array_get(devices, k)), c->stages[i].device);
        if (!there && sl_role_has_teams(c->stages[i].role))
            json_array_append_new(devices, json_string(c->stages[i].device));
    }
    for (int i = 0; i < c->lora_count && works; i++)
        json_array_append_new(loras, json_string(c->lora[i].name));
    precisions_of(c->denoise.precision, list);
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:b, s:b, s:o, s:o}", "role", ROLES[s->role],
                          "model", s->name, "pipeline", s->model.pipeline, "version", sl_version(),
                          "ready", atomic_load(&s->ready), "draining", atomic_load(&s->draining),
                          "devices", devices, "lora", loras);
    if (works) {
        json_object_set_new(o, "precision", json_string(list));
        json_object_set_new(o, "pixels", json_integer((json_int_t)c->limits.pixels));
        json_object_set_new(o, "frames", json_integer(c->limits.frames));
        json_object_set_new(o, "lanes", json_integer(s->lanes));
        json_object_set_new(o, "lora_loaded", json_string(s->lora_loaded));
    }
    pthread_rwlock_unlock(&s->settings);
    return o;
}

void sl_offer_tell(sl_server *s)
{
    char offer[SL_JOURNAL_NEEDS] = "", *says;
    sl_err err = {0};
    sl_code rc = SL_OK;
    if (!sl_server_shares_queue(s)) return;
    json_t *o = sl_offer_says(s);
    says = o ? json_dumps(o, JSON_COMPACT) : NULL;
    pthread_rwlock_rdlock(&s->settings);
    if (s->role != SL_SERVER_FRONT && !atomic_load(&s->draining)) rc = print_offer(s, offer, &err);
    pthread_rwlock_unlock(&s->settings);
    if (!rc && says && strlen(says) >= SL_JOURNAL_SAYS)
        *says = 0; /* its offer counts all the same */
    if (!rc) rc = sl_journal_offer(s->journal, offer, says ? says : "", &err);
    if (rc) sl_log_err("offer", &err);
    free(says);
    json_decref(o);
}

/* ---- what a job needs ---- */

static int lora_of(const sl_conf *c, const char *name, size_t n)
{
    for (int i = 0; i < c->lora_count; i++)
        if (strlen(c->lora[i].name) == n && !strncmp(c->lora[i].name, name, n)) return i;
    return -1;
}

static int by_word(const void *x, const void *y)
{
    return strcmp(x, y);
}

/* Names, sorted, with keys where they are known here. */
static bool needed_loras(const sl_server *s, const char *asked, char out[SL_JOURNAL_NEEDS])
{
    char words[SL_LORA_MOST][96];
    int n = 0;
    for (const char *at = asked; *at && n < SL_LORA_MOST; at += strcspn(at, ",")) {
        at += *at == ',';
        const size_t length = strcspn(at, ":,");
        const int i = lora_of(&s->conf, at, length);
        if (i >= 0) keyed(words[n++], s->conf.lora[i].name, s->lora_keys[i]);
        else snprintf(words[n++], sizeof words[0], "%.*s", (int)length, at);
    }
    bool fits = true;
    *out = 0;
    qsort(words, (size_t)n, sizeof *words, by_word);
    for (int i = 0; i < n; i++) fits &= add_word(out, SL_JOURNAL_NEEDS, words[i]);
    return fits;
}

sl_code sl_offer_needs(char out[SL_JOURNAL_NEEDS], sl_server *s, const sl_form *f, sl_err *err)
{
    const sl_job *j = &f->request.spec;
    char loras[SL_JOURNAL_NEEDS];
    *out = 0;
    if (!sl_server_shares_queue(s)) return SL_OK;
    pthread_rwlock_rdlock(&s->settings);
    const bool fits = needed_loras(s, f->lora ? f->lora : "", loras);
    pthread_rwlock_unlock(&s->settings);
    if (!fits) return sl_fail(err, SL_ARG, "lora: too many names, or too long ones");
    const sl_journal_needs needs = {(int64_t)j->width * j->height, j->frames, j->precision, loras};
    return sl_journal_print_needs(out, &needs, err);
}

/* Does another server have this, as far as is remembered? */
static sl_code is_known(sl_server *s, const char *precision, const char *lora, bool *known,
                        sl_err *err)
{
    char text[SL_JOURNAL_NEEDS];
    bool now;
    const sl_journal_needs needs = {0, 0, precision, lora};
    *known = false;
    if (sl_journal_print_needs(text, &needs, NULL)) return SL_OK; /* no such name can be */
    return sl_journal_offered(s->journal, text, &now, known, err);
}

sl_code sl_offer_look_elsewhere(sl_server *s, sl_form *f, sl_err *err)
{
    sl_lora_use asked[SL_LORA_MOST];
    sl_precision own, other;
    bool known;
    sl_code rc;
    *f->elsewhere = 0;
    f->precision_elsewhere = false;
    if (!sl_server_shares_queue(s)) return SL_OK;
    const int n = sl_lora_uses(asked, f->request.spec.lora, NULL);
    for (int i = 0; i < n; i++) {
        pthread_rwlock_rdlock(&s->settings);
        const bool here = lora_of(&s->conf, asked[i].file, strlen(asked[i].file)) >= 0;
        pthread_rwlock_unlock(&s->settings);
        if (here || strpbrk(asked[i].file, "=*")) continue;
        if ((rc = is_known(s, "*", asked[i].file, &known, err))) return rc;
        if (known) add_word(f->elsewhere, sizeof f->elsewhere, asked[i].file);
    }
    pthread_rwlock_rdlock(&s->settings);
    const bool reads = !sl_precision_read(&own, s->conf.denoise.precision, NULL);
    pthread_rwlock_unlock(&s->settings);
    if (!reads || !f->request.has_precision ||
        sl_precision_read(&other, f->request.spec.precision, NULL) ||
        !sl_precision_fits(own, other, NULL))
        return SL_OK;
    return is_known(s, sl_precision_name(other), "", &f->precision_elsewhere, err);
}

/* ---- the job of another server's configuration ---- */

sl_code sl_offer_use_loras(sl_server *s, sl_job *job, const char *request, sl_err *err)
{
    json_t *o = request ? json_loads(request, 0, NULL) : NULL;
    const char *asked = json_string_value(json_object_get(o, "lora"));
    sl_form f = {0};
    sl_code rc = SL_OK;
    if (asked && *asked && !(rc = sl_form_init(&f, err)) &&
        !(rc = sl_form_text(&f, "lora", asked, err))) {
        pthread_rwlock_rdlock(&s->settings);
        rc = sl_form_lora(&f, &s->conf, s->lora_ids, err);
        pthread_rwlock_unlock(&s->settings);
        if (!rc) rc = sl_job_set_text(&job->lora, f.request.spec.lora, err);
        if (!rc) rc = sl_job_set_text(&job->lora_2, f.request.spec.lora_2, err);
    }
    sl_form_free(&f);
    json_decref(o);
    return rc;
}
