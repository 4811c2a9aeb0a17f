/* s3_place.c - a bucket's address and keys, from settings and the environment. */
#include "stages/serve/s3_place.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <curl/curl.h>

#include "common/log.h"

/* The first variable that is set and not empty; NULL: none is. */
static const char *from_environment(const char *const *names)
{
    for (; *names; names++) {
        const char *value = getenv(*names);
        if (value && *value) return value;
    }
    return NULL;
}
#define ENVIRONMENT(...) from_environment((const char *const[]){__VA_ARGS__, NULL})

/* The setting, else the variable's, else `otherwise`. */
static const char *or_else(const char *setting, const char *variable, const char *otherwise)
{
    return *setting ? setting : variable ? variable : otherwise;
}

/* ---- s3://BUCKET/PREFIX ---- */

static sl_code read_bucket(sl_s3_place *p, const char *at, size_t n, sl_err *err)
{
    bool good = n >= 3 && n < sizeof p->bucket && isalnum((unsigned char)*at) &&
                isalnum((unsigned char)at[n - 1]);
    for (size_t i = 0; i < n; i++)
        good &= islower((unsigned char)at[i]) || isdigit((unsigned char)at[i]) || at[i] == '-' ||
                at[i] == '.';
    if (!good)
        return sl_fail(err, SL_ARG,
                       "\"%.*s\" is no bucket's name, want 3 to 63 of a-z 0-9 - . with a letter or "
                       "digit at both ends",
                       n < 80 ? (int)n : 80, at);
    memcpy(p->bucket, at, n);
    p->bucket[n] = 0;
    return SL_OK;
}

static sl_code read_prefix(sl_s3_place *p, const char *at, sl_err *err)
{
    size_t n = strlen(at);
    while (n && at[n - 1] == '/') n--;
    if (n + 2 > sizeof p->prefix)
        return sl_fail(err, SL_ARG, "a prefix of %zu bytes, want at most %zu", n,
                       sizeof p->prefix - 2);
    snprintf(p->prefix, sizeof p->prefix, "%.*s%s", (int)n, at, n ? "/" : "");
    for (const char *c = p->prefix; *c; c++)
        if (*c <= ' ' || *c > '~')
            return sl_fail(err, SL_ARG, "the prefix has byte 0x%02x, want visible ASCII",
                           (unsigned char)*c);
    for (const char *c = p->prefix; *c; c += strcspn(c, "/") + 1) {
        const size_t part = strcspn(c, "/");
        if (!part || (part <= 2 && !strncmp(c, "..", part)))
            return sl_fail(err, SL_ARG, "the prefix \"%.100s\" has a part that is empty, . or ..",
                           p->prefix);
    }
    return SL_OK;
}

/* ---- endpoints ---- */

/* Scheme, host and port alone; what comes of it with the bucket's name. */
static sl_code take_endpoint(sl_s3_way *w, CURLU *u, const char *url, const char *bucket,
                             bool in_path, sl_err *err)
{
    char *scheme = NULL, *host = NULL, *port = NULL, *path = NULL, *user = NULL, *query = NULL;
    sl_code rc = SL_OK;
    const bool bad =
        curl_url_set(u, CURLUPART_URL, url, 0) || curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) ||
        curl_url_get(u, CURLUPART_HOST, &host, 0) || curl_url_get(u, CURLUPART_PATH, &path, 0);
    curl_url_get(u, CURLUPART_PORT, &port, CURLU_NO_DEFAULT_PORT);
    curl_url_get(u, CURLUPART_USER, &user, 0);
    curl_url_get(u, CURLUPART_QUERY, &query, 0);
    if (bad || (strcmp(scheme, "http") && strcmp(scheme, "https")) || strcmp(path, "/") || user ||
        query || strlen(host) > 200) /* not shown: it may hold a password */
        rc = sl_fail(err, SL_ARG,
                     "the store's endpoint is no address of one, want http[s]://HOST[:PORT]");
    else {
        snprintf(w->host, sizeof w->host, "%s%s%s%s%s", in_path ? "" : bucket, in_path ? "" : ".",
                 host, port ? ":" : "", port ? port : "");
        snprintf(w->url, sizeof w->url, "%s://%s", scheme, w->host);
        snprintf(w->path, sizeof w->path, "%s%s", in_path ? "/" : "", in_path ? bucket : "");
    }
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_free(path);
    curl_free(user);
    curl_free(query);
    return rc;
}

static sl_code read_endpoint(sl_s3_way *w, const char *url, const char *bucket, bool in_path,
                             sl_err *err)
{
    CURLU *u = curl_url();
    if (!u) return sl_fail(err, SL_NOMEM, "no memory");
    sl_code rc = take_endpoint(w, u, url, bucket, in_path, err);
    curl_url_cleanup(u);
    return rc;
}

sl_code sl_s3_place_read(sl_s3_place *p, const char *where, const sl_conf_s3 *conf, sl_err *err)
{
    const char *at = where + strlen(SL_S3_SCHEME);
    const size_t n = strcspn(at, "/");
    const char *region =
        or_else(conf->region, ENVIRONMENT("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1");
    char aws[160];
    sl_code rc;
    memset(p, 0, sizeof *p);
    if ((rc = read_bucket(p, at, n, err)) || (rc = read_prefix(p, at + n + (at[n] == '/'), err)))
        return rc;
    for (const char *c = region; *c; c++)
        if ((!isalnum((unsigned char)*c) && *c != '-') || c - region > 60)
            return sl_fail(err, SL_ARG, "\"%.60s\" is no region, want one as us-east-1", region);
    snprintf(p->region, sizeof p->region, "%s", region);
    snprintf(p->name, sizeof p->name, SL_S3_SCHEME "%s%s%.*s", p->bucket, *p->prefix ? "/" : "",
             *p->prefix ? (int)strlen(p->prefix) - 1 : 0, p->prefix);
    snprintf(p->ca, sizeof p->ca, "%s", or_else(conf->ca, ENVIRONMENT("AWS_CA_BUNDLE"), ""));
    const char *given =
        or_else(conf->endpoint, ENVIRONMENT("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "");
    /* a certificate for *.HOST holds for one name more, without a dot */
    const bool in_path =
        !strcmp(conf->addressing, "path") ||
        (strcmp(conf->addressing, "virtual") && (*given || strchr(p->bucket, '.')));
    snprintf(aws, sizeof aws, "https://s3.%s.amazonaws.com%s", region,
             strncmp(region, "cn-", 3) ? "" : ".cn");
    const char *endpoint = *given ? given : aws;
    if ((rc = read_endpoint(&p->way, endpoint, p->bucket, in_path, err))) return rc;
    return read_endpoint(&p->link, *conf->link_endpoint ? conf->link_endpoint : endpoint, p->bucket,
                         in_path, err);
}

/* ---- keys ---- */

static bool is_visible(const char *s)
{
    for (; *s; s++)
        if (*s <= ' ' || *s > '~') return false;
    return true;
}

static sl_code take_key(char *out, size_t room, const char *value, const char *what, sl_err *err)
{
    if (strlen(value) >= room || !is_visible(value)) /* the value is a secret */
        return sl_fail(err, SL_ARG, "%s is no key: %zu bytes, want at most %zu visible ones", what,
                       strlen(value), room - 1);
    snprintf(out, room, "%s", value);
    return SL_OK;
}

/* "NAME = VALUE" of the part that is wanted. */
static sl_code take_line(sl_sigv4_keys *k, char *line, sl_err *err)
{
    char *equals = strchr(line, '='), *value = equals ? equals + 1 : line, *end;
    if (!equals) return SL_OK;
    for (end = equals; end > line && isspace((unsigned char)end[-1]);) end--;
    *end = 0;
    while (isspace((unsigned char)*value)) value++;
    for (end = value + strlen(value); end > value && isspace((unsigned char)end[-1]);) end--;
    *end = 0;
    if (!strcmp(line, "aws_access_key_id")) return take_key(k->id, sizeof k->id, value, line, err);
    if (!strcmp(line, "aws_secret_access_key"))
        return take_key(k->secret, sizeof k->secret, value, line, err);
    if (!strcmp(line, "aws_session_token"))
        return take_key(k->token, sizeof k->token, value, line, err);
    return SL_OK;
}

static sl_code read_lines(sl_sigv4_keys *k, FILE *f, const char *profile, sl_err *err)
{
    char *line = NULL;
    size_t size = 0;
    bool mine = false;
    sl_code rc = SL_OK;
    while (!rc && getline(&line, &size, f) >= 0) {
        char *at = line + strspn(line, " \t");
        if (*at == '[') {
            at += 1 + strspn(at + 1, " \t");
            const size_t n = strcspn(at, " \t]\r\n");
            mine = n == strlen(profile) && !strncmp(at, profile, n);
        } else if (mine && *at != '#' && *at != ';') rc = take_line(k, at, err);
    }
    if (!rc && ferror(f)) rc = sl_fail_errno(err, errno, "read");
    if (line) explicit_bzero(line, size);
    free(line);
    return rc;
}

/* *changed: when the file was written. */
static sl_code read_file(sl_sigv4_keys *out, struct timespec *changed, const sl_s3_keys *k,
                         sl_err *err)
{
    sl_sigv4_keys fresh = {0};
    struct stat st;
    sl_code rc = SL_OK;
    const int fd = open(k->file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    if (!f || fstat(fd, &st)) rc = sl_fail_errno(err, errno, "credentials %s", k->file);
    else if (!S_ISREG(st.st_mode)) rc = sl_fail(err, SL_ARG, "credentials %s is no file", k->file);
    else if (st.st_mode & 077)
        rc = sl_fail(err, SL_ARG, "credentials %s has mode %04o, want 0600: others can read it",
                     k->file, st.st_mode & 07777);
    else *changed = st.st_mtim;
    if (!rc && (rc = read_lines(&fresh, f, k->profile, err)))
        sl_context(err, rc, "credentials %s", k->file);
    if (!rc && (!*fresh.id || !*fresh.secret))
        rc = sl_fail(err, SL_ARG,
                     "credentials %s has no aws_access_key_id and aws_secret_access_key of [%s]",
                     k->file, k->profile);
    if (f) fclose(f);
    else if (fd >= 0) close(fd);
    if (!rc) *out = fresh;
    explicit_bzero(&fresh, sizeof fresh);
    return rc;
}

sl_code sl_s3_keys_open(sl_s3_keys *k, const sl_conf_s3 *conf, sl_err *err)
{
    const char *id = ENVIRONMENT("AWS_ACCESS_KEY_ID"),
               *secret = ENVIRONMENT("AWS_SECRET_ACCESS_KEY"),
               *token = ENVIRONMENT("AWS_SESSION_TOKEN"), *home = getenv("HOME"),
               *shared = ENVIRONMENT("AWS_SHARED_CREDENTIALS_FILE");
    sl_code rc;
    if (!*conf->credentials && id && secret) {
        if ((rc = take_key(k->now.id, sizeof k->now.id, id, "AWS_ACCESS_KEY_ID", err)) ||
            (rc = take_key(k->now.secret, sizeof k->now.secret, secret, "AWS_SECRET_ACCESS_KEY",
                           err)))
            return rc;
        return token ? take_key(k->now.token, sizeof k->now.token, token, "AWS_SESSION_TOKEN", err)
                     : SL_OK;
    }
    snprintf(k->profile, sizeof k->profile, "%s",
             or_else("", ENVIRONMENT("AWS_PROFILE"), "default"));
    if (*conf->credentials || shared)
        snprintf(k->file, sizeof k->file, "%s", or_else(conf->credentials, shared, ""));
    else if (home) snprintf(k->file, sizeof k->file, "%.900s/.aws/credentials", home);
    if (!*k->file || (!*conf->credentials && !shared && access(k->file, F_OK)))
        return sl_fail(
            err, SL_ARG,
            "no keys for the store, want AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "s3.credentials = FILE");
    return read_file(&k->now, &k->changed, k, err);
}

void sl_s3_keys_get(sl_s3_keys *k, sl_sigv4_keys *out)
{
    struct stat st;
    sl_err err = {0};
    pthread_mutex_lock(&k->lock);
    if (*k->file && !stat(k->file, &st) &&
        (st.st_mtim.tv_sec != k->changed.tv_sec || st.st_mtim.tv_nsec != k->changed.tv_nsec)) {
        k->changed = st.st_mtim; /* told once */
        if (read_file(&k->now, &k->changed, k, &err))
            sl_log(SL_LOG_WARN, "%s: the keys of before are used", err.msg);
    }
    *out = k->now;
    pthread_mutex_unlock(&k->lock);
}

void sl_s3_keys_close(sl_s3_keys *k)
{
    explicit_bzero(&k->now, sizeof k->now);
    pthread_mutex_destroy(&k->lock);
}
