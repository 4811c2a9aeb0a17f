/* tokens.c - the file of tokens. */
#include "stages/serve/tokens.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Letters, digits and some signs: names stand in logs, metrics and the journal. */
static bool is_name(const char *s)
{
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && !strchr("._@-", *s)) return false;
    return true;
}

static bool is_token(const char *s)
{
    for (; *s; s++)
        if (*s <= ' ' || *s > '~') return false;
    return true;
}

static sl_code read_line(sl_token *t, char *line, const char *path, int number, sl_err *err)
{
    char *save = NULL, *name = strtok_r(line, " \t\r\n", &save),
         *token = strtok_r(NULL, " \t\r\n", &save), *more, *end;
    if (!token)
        return sl_fail(err, SL_ARG, "%s:%d: one word, want NAME TOKEN [priority=N]", path, number);
    if (strlen(name) >= sizeof t->name || !is_name(name))
        return sl_fail(err, SL_ARG,
                       "%s:%d: a name of %zu bytes, want at most %zu letters, digits or ._@-", path,
                       number, strlen(name), sizeof t->name - 1);
    if (strlen(token) < 16 || strlen(token) >= sizeof t->token || !is_token(token))
        return sl_fail(err, SL_ARG, "%s:%d: a token of %zu bytes, want 16 to %zu visible ones",
                       path, number, strlen(token), sizeof t->token - 1);
    memcpy(t->name, name, strlen(name) + 1);
    memcpy(t->token, token, strlen(token) + 1);
    while ((more = strtok_r(NULL, " \t\r\n", &save))) {
        long n = strncmp(more, "priority=", 9) ? 0 : strtol(more + 9, &end, 10);
        if (strncmp(more, "priority=", 9) || !more[9] || *end || n < -SL_PRIORITY ||
            n > SL_PRIORITY)
            return sl_fail(err, SL_ARG, "%s:%d: \"%.60s\", want priority=N, N from %d to %d", path,
                           number, more, -SL_PRIORITY, SL_PRIORITY);
        t->priority = (int)n;
    }
    return SL_OK;
}

static sl_code read_all(sl_tokens *out, FILE *f, const char *path, sl_err *err)
{
    char *line = NULL;
    size_t size = 0;
    sl_code rc = SL_OK;
    for (int number = 1; !rc && getline(&line, &size, f) >= 0; number++) {
        sl_token t = {0}, *more;
        const char *first = line + strspn(line, " \t\r\n");
        if (!*first || *first == '#') continue;
        if ((rc = read_line(&t, line, path, number, err))) break;
        for (int i = 0; i < out->count && !rc; i++)
            if (!strcmp(out->at[i].token, t.token))
                rc = sl_fail(err, SL_ARG, "%s:%d: the token of %s again", path, number,
                             out->at[i].name);
        if (!rc && out->count == SL_TOKENS_MAX)
            rc = sl_fail(err, SL_ARG, "%s:%d: want at most %d tokens", path, number, SL_TOKENS_MAX);
        if (rc) break;
        if (!(more = realloc(out->at, (size_t)(out->count + 1) * sizeof t)))
            rc = sl_fail(err, SL_NOMEM, "tokens: no memory");
        else (out->at = more)[out->count++] = t;
    }
    if (!rc && ferror(f)) rc = sl_fail_errno(err, errno, "%s", path);
    if (line) explicit_bzero(line, size);
    free(line);
    return rc;
}

sl_code sl_tokens_read(sl_tokens *out, const char *path, sl_err *err)
{
    sl_tokens t = {0};
    struct stat st;
    sl_code rc = SL_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    if (!f || fstat(fd, &st)) rc = sl_fail_errno(err, errno, "--tokens %s", path);
    else if (!S_ISREG(st.st_mode)) rc = sl_fail(err, SL_ARG, "--tokens %s is no file", path);
    else if (st.st_mode & 077)
        rc = sl_fail(err, SL_ARG, "--tokens %s has mode %04o, want 0600: others can read it", path,
                     st.st_mode & 07777);
    else if (st.st_uid != geteuid() && st.st_uid)
        rc = sl_fail(err, SL_ARG, "--tokens %s belongs to user %u, want this one, %u", path,
                     (unsigned)st.st_uid, (unsigned)geteuid());
    if (!rc) rc = read_all(&t, f, path, err);
    if (!rc && !t.count) rc = sl_fail(err, SL_ARG, "--tokens %s holds no token", path);
    if (f) fclose(f);
    else if (fd >= 0) close(fd);
    if (rc) sl_tokens_free(&t);
    else *out = t;
    return rc;
}

void sl_tokens_free(sl_tokens *t)
{
    if (t->at) explicit_bzero(t->at, (size_t)t->count * sizeof *t->at);
    free(t->at);
    *t = (sl_tokens){0};
}

const sl_token *sl_tokens_find(const sl_tokens *t, const char *token)
{
    char asked[SL_TOKEN] = {0};
    const sl_token *found = NULL;
    const size_t n = strlen(token);
    if (n >= sizeof asked) return NULL;
    memcpy(asked, token, n);
    for (int i = 0; i < t->count; i++) { /* all of them, each to its end */
        char known[SL_TOKEN] = {0};
        unsigned differ = 0;
        memcpy(known, t->at[i].token, strlen(t->at[i].token));
        for (int k = 0; k < SL_TOKEN; k++) differ |= (unsigned)(asked[k] ^ known[k]);
        if (!differ) found = &t->at[i];
    }
    explicit_bzero(asked, sizeof asked);
    return found;
}
