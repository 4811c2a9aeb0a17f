/* fetch.c - one GET through libcurl. */
#include "stages/serve/fetch.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <curl/curl.h>

#define SECONDS 20L

typedef struct {
    char *bytes;
    size_t size, most;
    bool over;
} sink;

static size_t take(char *data, size_t one, size_t n, void *self)
{
    sink *s = self;
    (void)one;
    if (s->size + n > s->most) {
        s->over = true;
        return 0;
    }
    char *more = realloc(s->bytes, s->size + n + 1);
    if (!more) return 0;
    memcpy(more + s->size, data, n);
    s->bytes = more;
    s->size += n;
    return n;
}

static bool is_named(const char *host, const char *hosts)
{
    const size_t n = strlen(host);
    while (*hosts) {
        const size_t m = strcspn(hosts, ", ");
        if (m == n && !strncasecmp(hosts, host, n)) return true;
        hosts += m;
        hosts += strspn(hosts, ", ");
    }
    return false;
}

static sl_code check(const char *url, const char *hosts, sl_err *err)
{
    CURLU *u = curl_url();
    char *host = NULL, *scheme = NULL;
    sl_code rc = SL_OK;
    if (!u) return sl_fail(err, SL_NOMEM, "no memory");
    if (curl_url_set(u, CURLUPART_URL, url, 0) || curl_url_get(u, CURLUPART_HOST, &host, 0) ||
        curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) ||
        (strcmp(scheme, "http") && strcmp(scheme, "https")))
        rc = sl_fail(err, SL_ARG, "neither a data URL nor one of http or https");
    else if (!is_named(host, hosts))
        rc =
            sl_fail(err, SL_ARG,
                    "this server fetches nothing from %.100s (serve.image_hosts), want the picture "
                    "itself",
                    host);
    curl_free(host);
    curl_free(scheme);
    curl_url_cleanup(u);
    return rc;
}

sl_code sl_fetch(char **bytes, size_t *size, const char *url, const char *hosts, size_t most,
                 sl_err *err)
{
    sink s = {.most = most};
    long code = 0;
    sl_code rc = check(url, hosts, err);
    if (rc) return rc;
    CURL *c = curl_easy_init();
    if (!c) return sl_fail(err, SL_NOMEM, "no memory");
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &s);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, SECONDS);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 5L);
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_USERAGENT, "sluice");
    const CURLcode bad = curl_easy_perform(c);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &code);
    if (s.over) rc = sl_fail(err, SL_FORMAT, "more than %zu bytes", most);
    else if (bad) rc = sl_fail(err, SL_SYS, "cannot be fetched: %s", curl_easy_strerror(bad));
    else if (code != 200) rc = sl_fail(err, SL_SYS, "cannot be fetched: HTTP %ld", code);
    curl_easy_cleanup(c);
    if (rc) free(s.bytes);
    else *bytes = s.bytes, *size = s.size;
    return rc;
}
