/* cancel.c - `sluice cancel` and `sluice delete`: each id in turn; one that is refused does not
 * keep the others. */
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "stages/cli/client.h"
#include "stages/cli/terminal.h"
#include "stages/cli/video.h"

static sl_code cancel(sl_remote *r, const char *id, const sl_client *c, sl_err *err)
{
    char path[128], text[64];
    json_t *object = NULL;
    sl_video v;
    snprintf(path, sizeof path, "/v1/videos/%s/cancel", id);
    sl_code rc = sl_remote_call(r, "POST", path, NULL, 0, NULL, &object, err);
    if (!rc) rc = sl_video_read(&v, object, err);
    if (!rc && c->json) rc = sl_json_to_file(object, "-", err);
    else if (!rc) {
        /* one that runs ends within a step */
        sl_video_tell(&v, text);
        printf("%s  %s\n", id, v.ended ? text : "is being cancelled");
    }
    json_decref(object);
    return rc;
}

static sl_code forget(sl_remote *r, const char *id, const sl_client *c, sl_err *err)
{
    char path[128];
    (void)c;
    snprintf(path, sizeof path, "/v1/videos/%s", id);
    sl_code rc = sl_remote_call(r, "DELETE", path, NULL, 0, NULL, NULL, err);
    if (!rc) printf("%s  deleted\n", id);
    return rc;
}

static int each(const char *verb,
                sl_code (*one)(sl_remote *r, const char *id, const sl_client *c, sl_err *err),
                int argc, char **argv)
{
    sl_client c;
    sl_remote r = {0};
    sl_err err = {0};
    int status = SL_EXIT_OK;
    if (sl_client_parse(&c, sl_verb_find(verb), NULL, NULL, argc, argv, &err) ||
        sl_client_connect(&r, &c, &err)) {
        sl_complain("%s", err.msg);
        status = SL_EXIT_REFUSED;
    }
    const int count = status ? 0 : c.count;
    for (int i = 0; i < count && status != SL_EXIT_NO_SERVER; i++) {
        sl_code rc = one(&r, c.words[i], &c, &err);
        if (!rc) continue;
        sl_complain("%s: %s", c.words[i], err.msg);
        status = sl_remote_exit(&r, rc);
    }
    sl_remote_close(&r);
    sl_client_free(&c);
    return status;
}

int sl_cli_cancel(int argc, char **argv)
{
    return each("cancel", cancel, argc, argv);
}

int sl_cli_delete(int argc, char **argv)
{
    return each("delete", forget, argc, argv);
}
