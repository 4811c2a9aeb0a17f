/* t_made.h - videos that servers make while they are disturbed: a job by its number, a request that
 * may find nobody, and what became of the job. */
#ifndef T_MADE_H
#define T_MADE_H

#include "tests/t_serve.h"

#include <pthread.h>

typedef struct {
    char id[64];
    uint64_t hash; /* of the video's bytes */
    size_t size;
} t_made;

static unsigned t_made_seed; /* of a run's choices */
static inline double t_made_part(void)
{
    return (double)rand_r(&t_made_seed) / ((double)RAND_MAX + 1);
}

static inline uint64_t t_made_hash(const char *p, size_t n)
{
    uint64_t h = 1469598103934665603ull;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 1099511628211ull;
    return h;
}

/* Job i: every third has `more` steps, the others `few`. */
static inline curl_mime *t_made_form(CURL *c, int i, const char *few, const char *more)
{
    curl_mime *m = curl_mime_init(c);
    const char *const fields[][2] = {{"prompt", "a cat"},
                                     {"size", "48x32"},
                                     {"frames", "9"},
                                     {"steps", i % 3 ? few : more},
                                     {"guidance", i % 2 ? "1" : "4"}};
    char number[16];
    snprintf(number, sizeof number, "%d", i);
    for (int k = 0; k < 5; k++) t_form_add(m, fields[k][0], fields[k][1]);
    t_form_add(m, "seed", number);
    t_form_add(m, "input_reference", "@" T_IMAGE);
    return m;
}

/* One request through c, which is freed, with this form unless NULL, which is freed too. The
 * answer's code; 0: nobody answered. *r is the caller's. */
static inline long t_made_request(CURL *c, const char *method, const char *url, curl_mime *form,
                                  const char *key, t_reply *r)
{
    char line[64];
    struct curl_slist *list = NULL;
    memset(r, 0, sizeof *r);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 30L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, t_reply_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, r);
    if (form) curl_easy_setopt(c, CURLOPT_MIMEPOST, form);
    else curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
    if (key) {
        snprintf(line, sizeof line, "Idempotency-Key: %s", key);
        curl_easy_setopt(c, CURLOPT_HTTPHEADER, list = curl_slist_append(list, line));
    }
    if (!curl_easy_perform(c)) curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &r->code);
    curl_slist_free_all(list);
    curl_mime_free(form);
    curl_easy_cleanup(c);
    return r->code;
}

#endif
