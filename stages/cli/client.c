/* client.c - the table, and the words of a command line by it. */
#include "stages/cli/client.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/text.h"

#define AT(field) SL_OPTION_OF_RUN, offsetof(sl_client, field), sizeof(((sl_client *)0)->field)
#define CLIENT(field) AT(field), 0
#define CLIENT_HAS(field) AT(field), offsetof(sl_client, has_##field)
#define SERVED " submit status list wait cancel delete logs trace report run "

typedef struct {
    sl_option option;  /* owner SL_OPTION_OF_RUN, of an sl_client */
    char letter;       /* "-o"; 0: none */
    const char *verbs; /* " a b " */
} client_option;

static const client_option OPTIONS[] = {
    {{"server", SL_OPTION_PATH, CLIENT(server), "WHERE",
      "http://HOST:PORT, a state folder or a socket (default: SLUICE_SERVER, else the default "
      "state folder)"},
     0,
     SERVED},
    {{"token-file", SL_OPTION_PATH, CLIENT(token_file), "FILE",
      "the token, in a file that only its owner may read (default: SLUICE_TOKEN)"},
     0,
     SERVED},
    {{"ca-file", SL_OPTION_PATH, CLIENT(ca_file), "FILE",
      "certificates that an https server is believed by (default: the system's)"},
     0,
     SERVED},
    {{"retry-s", SL_OPTION_REAL, CLIENT_HAS(retry_s), "S",
      "how long a server that is full, loading or gone is tried again (default 30; 300 while a "
      "job is waited for)"},
     0,
     SERVED},
    {{"priority", SL_OPTION_INT, CLIENT_HAS(priority), "N",
      "larger comes first (default: the server's)"},
     0,
     " submit run "},
    {{"key", SL_OPTION_PATH, CLIENT(key), "KEY",
      "the same key is the same job, however often it is submitted (default: a new one)"},
     0,
     " submit run "},
    {{"wait", SL_OPTION_FLAG, CLIENT(wait), NULL,
      "until the jobs have ended; the videos are fetched"},
     0,
     " submit "},
    {{"output", SL_OPTION_PATH, CLIENT(output), "FILE",
      "where it is written; - is standard output; of several videos: a folder"},
     'o',
     " wait trace report "},
    {{"timeout", SL_OPTION_REAL, CLIENT_HAS(timeout_s), "S",
      "give up after so many seconds, with status 124; the jobs go on"},
     0,
     " submit wait "},
    {{"limit", SL_OPTION_INT, CLIENT_HAS(limit), "N", "at most so many (default 20)"}, 0, " list "},
    {{"after", SL_OPTION_PATH, CLIENT(after), "ID", "those that follow this one"}, 0, " list "},
    {{"order", SL_OPTION_PATH, CLIENT(order), "ORDER", "asc: oldest first; desc (default)"},
     0,
     " list "},
    {{"all", SL_OPTION_FLAG, CLIENT(all), NULL, "all of them"}, 0, " list "},
    {{"ids", SL_OPTION_FLAG, CLIENT(ids), NULL, "the ids alone, a line each"}, 0, " list "},
    {{"follow", SL_OPTION_FLAG, CLIENT(follow), NULL, "go on until the job has ended"},
     'f',
     " logs "},
    {{"json", SL_OPTION_FLAG, CLIENT(json), NULL, "the server's JSON instead of a text"},
     0,
     " submit status list wait cancel logs report "},
    {{"quiet", SL_OPTION_FLAG, CLIENT(quiet), NULL, "no progress"}, 0, " wait "},
};
#define OPTION_COUNT ((int)(sizeof OPTIONS / sizeof *OPTIONS))

static bool is_of(const client_option *o, const sl_verb *verb)
{
    char word[32];
    snprintf(word, sizeof word, " %s ", verb->name);
    return strstr(o->verbs, word) != NULL;
}

static const client_option *client_option_at(const sl_verb *verb, int i)
{
    for (int k = 0; k < OPTION_COUNT; k++)
        if (is_of(&OPTIONS[k], verb) && i-- == 0) return &OPTIONS[k];
    return NULL;
}

static bool has_own(const sl_verb *verb, const char *name)
{
    const client_option *o;
    for (int i = 0; (o = client_option_at(verb, i)); i++)
        if (!strcmp(o->option.name, name)) return true;
    return false;
}

/* Of a run's options those that a server's jobs have too. */
static bool goes_away(const sl_option *o)
{
    return o->owner != SL_OPTION_OF_RUN || !strcmp(o->name, "jobs") || !strcmp(o->name, "quiet");
}

const sl_option *sl_client_option_at(const sl_verb *verb, int i, char *letter)
{
    const client_option *own = client_option_at(verb, i);
    const sl_option *o;
    char none;
    if (!letter) letter = &none;
    *letter = 0;
    if (own) *letter = own->letter;
    if (own) return &own->option;
    if (verb->options != SL_OPTIONS_RUN && verb->options != SL_OPTIONS_JOB) return NULL;
    for (int k = 0; client_option_at(verb, k); k++) i--;
    for (int k = 0; (o = sl_option_at(k)); k++) {
        const bool shown = verb->options == SL_OPTIONS_RUN || goes_away(o);
        if (!shown || has_own(verb, o->name) || i-- > 0) continue;
        if (!strcmp(o->name, "output")) *letter = 'o';
        return o;
    }
    return NULL;
}

/* The option of this name: *own, or, where the verb describes jobs, *jobs. */
static sl_code find(const client_option **own, const sl_option **jobs, const sl_verb *verb,
                    const char *name, sl_err *err)
{
    const bool describes = verb->options != SL_OPTIONS_CLIENT;
    const char *near = NULL;
    int best = 99;
    char dashed[64];
    const client_option *o;
    *own = NULL;
    *jobs = NULL;
    snprintf(dashed, sizeof dashed, "%s", name);
    for (char *c = dashed; *c; c++)
        if (*c == '_') *c = '-';
    for (int i = 0; (o = client_option_at(verb, i)); i++) {
        const int d = sl_text_distance(dashed, o->option.name);
        if (!d) {
            *own = o;
            return SL_OK;
        }
        if (d < best) best = d, near = o->option.name;
    }
    for (int i = 0; describes && sl_option_at(i); i++) {
        const sl_option *j = sl_option_at(i);
        const int d = sl_text_distance(dashed, j->name);
        if (!d && !goes_away(j))
            return sl_fail(err, SL_ARG, "--%s is for a run on this machine, not for a server's",
                           j->name);
        if (!d) {
            *jobs = j;
            return SL_OK;
        }
        if (d < best) best = d, near = j->name;
    }
    if (near && best <= 3)
        return sl_fail(err, SL_ARG, "unknown option --%.60s, did you mean --%s?", name, near);
    return sl_fail(err, SL_ARG, "unknown option --%.60s (sluice help %s lists them)", name,
                   verb->name);
}

static sl_code add_word(sl_client *c, const sl_verb *verb, const char *word, sl_err *err)
{
    if (verb->takes == SL_TAKES_NOTHING)
        return sl_fail(err, SL_ARG, "\"%.60s\" is no option, want --NAME VALUE (sluice help %s)",
                       word, verb->name);
    if (!sl_remote_is_id(word))
        return sl_fail(err, SL_ARG, "\"%.80s\" is no id of a job, want video_... (sluice list)",
                       word);
    if (c->count && verb->takes == SL_TAKES_ID)
        return sl_fail(err, SL_ARG, "%s takes one id, found %.64s too", verb->name, word);
    c->words[c->count++] = word;
    return SL_OK;
}

/* "-f", "-oFILE" or "-o" with FILE behind it, as the long option; false: no letter of the verb's.
 */
static bool letter_of(const client_option **out, const sl_verb *verb, const char *a)
{
    const client_option *o;
    for (int i = 0; (o = client_option_at(verb, i)); i++)
        if (o->letter && a[0] == '-' && a[1] == o->letter &&
            (!a[2] || o->option.kind != SL_OPTION_FLAG)) {
            *out = o;
            return true;
        }
    return false;
}

static sl_code check_values(const sl_client *c, const sl_verb *verb, sl_err *err)
{
    if (c->has_retry_s && !(c->retry_s >= 0 && c->retry_s <= 1e7))
        return sl_fail(err, SL_ARG, "--retry-s is %g, want seconds, 0 or more", c->retry_s);
    if (c->has_timeout_s && !(c->timeout_s > 0 && c->timeout_s <= 1e9))
        return sl_fail(err, SL_ARG, "--timeout is %g, want seconds, more than 0", c->timeout_s);
    if (c->has_limit && (c->limit < 1 || c->limit > 1000000))
        return sl_fail(err, SL_ARG, "--limit is %d, want 1 or more", c->limit);
    if (*c->after && !sl_remote_is_id(c->after))
        return sl_fail(err, SL_ARG, "--after is \"%.80s\", want an id of a job", c->after);
    if (*c->order && strcmp(c->order, "asc") && strcmp(c->order, "desc"))
        return sl_fail(err, SL_ARG, "--order is %s, want asc or desc", c->order);
    for (const char *k = c->key; *k; k++)
        if (*k < '!' || *k > '~')
            return sl_fail(err, SL_ARG, "--key is \"%s\", want visible ASCII without spaces",
                           c->key);
    if (!c->count && (verb->takes == SL_TAKES_ID || verb->takes == SL_TAKES_IDS))
        return sl_fail(err, SL_ARG, "%s wants the id of a job: sluice %s %s", verb->name,
                       verb->name, verb->words);
    return SL_OK;
}

sl_code sl_client_parse(sl_client *c, const sl_verb *verb, sl_client_job *on_job, void *ctx,
                        int argc, char **argv, sl_err *err)
{
    bool words_only = false;
    sl_code rc;
    *c = (sl_client){0};
    if (!(c->words = calloc((size_t)argc + 1, sizeof *c->words)))
        return sl_fail(err, SL_NOMEM, "no memory");
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i], *value = NULL;
        const client_option *own = NULL;
        const sl_option *o = NULL;
        char name[64];
        if (!words_only && !strcmp(a, "--")) {
            words_only = true;
            continue;
        }
        if (!words_only && on_job && !strcmp(a, "-o")) a = "--output";
        if (words_only || *a != '-' || (strncmp(a, "--", 2) && !letter_of(&own, verb, a))) {
            if (!words_only && *a == '-' && verb->takes != SL_TAKES_NOTHING)
                return sl_fail(err, SL_ARG, "unknown option %.60s (sluice help %s lists them)", a,
                               verb->name);
            if ((rc = add_word(c, verb, a, err))) return rc;
            continue;
        }
        if (own) {
            snprintf(name, sizeof name, "%s", own->option.name);
            if (a[2]) value = a + 2;
        } else {
            const size_t n = strcspn(a + 2, "=");
            if (n >= sizeof name)
                return sl_fail(err, SL_ARG, "unknown option %.60s... (sluice help %s lists them)",
                               a, verb->name);
            snprintf(name, sizeof name, "%.*s", (int)n, a + 2);
            if (a[2 + n] == '=') value = a + 2 + n + 1;
            if ((rc = find(&own, &o, verb, name, err))) return rc;
        }
        if (own) o = &own->option;
        if (o->kind == SL_OPTION_FLAG && value)
            return sl_fail(err, SL_ARG, "--%s takes no value", name);
        if (o->kind != SL_OPTION_FLAG && !value && !(++i < argc && (value = argv[i])))
            return sl_fail(err, SL_ARG, "--%s wants a value: %s (%s)", name, o->arg, o->what);
        rc = own ? sl_option_set(c, o, value ? value : "", err)
                 : on_job(ctx, o, value ? value : "", err);
        if (rc) return rc;
    }
    return check_values(c, verb, err);
}

void sl_client_free(sl_client *c)
{
    free(c->words);
    *c = (sl_client){0};
}

sl_code sl_client_connect(sl_remote *r, const sl_client *c, sl_err *err)
{
    sl_code rc = sl_remote_open(r, c->server, c->token_file, c->ca_file, err);
    if (rc) return rc;
    r->retry_s = c->has_retry_s ? c->retry_s : SL_RETRY_S;
    r->quiet = c->quiet;
    if (*r->token && r->clear)
        sl_complain("warning: the token goes unencrypted to %s, want https or a socket", r->name);
    if (c->has_timeout_s) r->until_ns = sl_now_ns() + (int64_t)(c->timeout_s * 1e9);
    return SL_OK;
}
