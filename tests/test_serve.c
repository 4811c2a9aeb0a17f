/* test_serve.c - a real server over real HTTP: every route, every refusal, tokens, limits,
 * drain
 * and start. takes: 14 s. limit: 240 s
 *
 * The tiny model makes a job in a second. What a SIGKILL leaves is tests/test_serve_kill.c's. */
#include "tests/t_schema.h"
#include "tests/t_serve.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "stages/job/files.h"

/* The server of this test, and an answer. */
static t_serve s;
static t_reply r;

static int open_server(void **state)
{
    (void)state;
    t_serve_open(&s);
    t_serve_conf(&s, "");
    return 0;
}

static int close_server(void **state)
{
    (void)state;
    t_reply_free(&r);
    t_serve_close(&s);
    return 0;
}

static void ask(const char *method, const char *path)
{
    t_reply_free(&r);
    t_http(&r, &s, method, path);
}

static void ask_as(const char *method, const char *path, const char *header)
{
    t_reply_free(&r);
    t_http_all(&r, s.url, method, path, NULL, NULL, NULL, header);
}

static void post_json(const char *body)
{
    t_reply_free(&r);
    t_http_all(&r, s.url, "POST", "/v1/videos", "application/json", body, NULL, NULL);
}

static void post_form(const char *const *fields, const char *header)
{
    t_reply_free(&r);
    t_post(&r, &s, fields, header);
}

/* The answer is an error in OpenAI's shape: its code, its code's name, its field, a part of its
 * message. */
static void wants_error(int code, const char *name, const char *param, const char *part)
{
    if (r.code != code) fail_msg("HTTP %ld, want %d: %s", r.code, code, r.body ? r.body : "");
    assert_string_equal(t_reply_text(&r, "error.code"), name);
    assert_string_equal(t_reply_text(&r, "error.param"), param ? param : "null");
    T_SAYS(t_reply_text(&r, "error.message"), part);
    assert_string_not_equal(t_reply_text(&r, "error.type"), "(absent)");
    assert_null(strstr(t_reply_text(&r, "error.message"), s.state));
}

static void wants_header(const char *line)
{
    if (!strcasestr(r.headers, line)) fail_msg("no \"%s\" in\n%s", line, r.headers);
}

static void stop_clean(void)
{
    assert_int_equal(t_serve_stop(&s), 0);
    t_serve_no_children();
}

/* ---- a job's life ---- */

/* The answer tells what the job was asked for and will not do. */
static void warns_of_both(void)
{
    json_t *o = t_reply_json(&r), *all = json_object_get(o, "warnings");
    assert_int_equal(json_array_size(all), 2);
    T_SAYS(json_string_value(json_array_get(all, 0)),
           " tokens, the model reads the first 512: its end is not used");
    assert_string_equal(json_string_value(json_array_get(all, 1)),
                        "--guidance-2 is not used: model has one transformer");
    json_decref(o);
}

static void a_job_is_made_and_its_files_are_there(void **state)
{
    char prompt[2500] = "";
    (void)state;
    for (int i = 0; i < 600; i++) strcat(prompt, "cat ");
    t_serve_start(&s, T_MODEL, NULL);
    const char *const fields[] = {"prompt",
                                  prompt,
                                  "input_reference",
                                  "@" T_IMAGE,
                                  "size",
                                  "48x32",
                                  "num_frames",
                                  "9",
                                  "seed",
                                  "7",
                                  "num_inference_steps",
                                  "3",
                                  "dump",
                                  "true",
                                  "flow_shift",
                                  "2.5",
                                  "model",
                                  "model",
                                  "guidance_scale",
                                  "3",
                                  "guidance_scale_2",
                                  "4",
                                  NULL};
    post_form(fields, NULL);
    assert_int_equal(r.code, 200);
    char id[64];
    snprintf(id, sizeof id, "%s", t_reply_text(&r, "id"));
    assert_int_equal(strlen(id), 6 + 32);
    assert_string_equal(t_reply_text(&r, "object"), "video");
    assert_string_equal(t_reply_text(&r, "size"), "48x32");
    assert_string_equal(t_reply_text(&r, "seconds"), "0.5");
    assert_string_equal(t_reply_text(&r, "seed"), "7");
    assert_string_equal(t_reply_text(&r, "shift"), "2.5");
    warns_of_both();
    assert_string_equal(t_wait(&s, id), "completed");

    ask("GET", t_format("/v1/videos/%s", id));
    assert_string_equal(t_reply_text(&r, "progress"), "100");
    assert_string_equal(t_reply_text(&r, "error"), "null");
    warns_of_both();
    const char *bytes = t_reply_text(&r, "output_bytes");

    ask("GET", t_format("/v1/videos/%s/content", id));
    assert_int_equal(r.code, 200);
    assert_string_equal(t_format("%zu", r.size), bytes);
    wants_header("Content-Type: video/mp4");
    const char *video = t_format("%s/video.mp4", s.base);
    FILE *f = fopen(video, "w");
    assert_int_equal(fwrite(r.body, 1, r.size, f), r.size);
    fclose(f);
    assert_int_equal(system(t_format("ffprobe -v error -count_frames -show_entries "
                                     "stream=nb_read_frames,width,height -of csv=p=0 %s | grep -qx "
                                     "48,32,9",
                                     video)),
                     0);
    const char *const pictures[] = {"thumbnail", "spritesheet"};
    for (int i = 0; i < 2; i++) {
        ask("GET", t_format("/v1/videos/%s/content?variant=%s", id, pictures[i]));
        assert_int_equal(r.code, 200);
        wants_header("Content-Type: image/jpeg");
        assert_memory_equal(r.body, "\xff\xd8\xff", 3);
    }
    ask("GET", t_format("/v1/videos/%s/report", id));
    assert_string_equal(t_reply_text(&r, "status"), "done");
    assert_string_equal(t_reply_text(&r, "step_count"), "3");
    warns_of_both();
    json_t *report = t_reply_json(&r);
    t_is_report(report);
    json_decref(report);
    assert_null(strstr(r.body, s.state));
    ask("GET", t_format("/v1/videos/%s/trace", id));
    assert_null(strstr(r.body, s.state));
    json_t *trace = t_reply_json(&r);
    assert_true(json_array_size(json_object_get(trace, "traceEvents")) > 10);
    json_decref(trace);
    ask("GET", t_format("/v1/videos/%s/preview?step=3", id));
    wants_header("Content-Type: image/png");
    assert_memory_equal(r.body, "\x89PNG", 4);
    ask("GET", t_format("/v1/videos/%s/logs", id));
    T_SAYS(r.body, "--guidance-2 is not used: model has one transformer");
    assert_int_equal(r.code, 200);
    for (char *line = strtok(r.body, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *o = json_loads(line, 0, NULL);
        assert_string_equal(json_string_value(json_object_get(o, "job")), id);
        json_decref(o);
    }
    ask("GET", t_format("/v1/videos/%s/dump/denoise.safetensors", id));
    assert_int_equal(r.code, 200);
    ask("GET", t_format("/v1/videos/%s/dump/job.json", id));
    assert_string_equal(t_reply_text(&r, "steps"), "3");
    ask("GET", t_format("/v1/videos/%s/dump/state.safetensors", id));
    wants_error(404, "not_found", NULL, "a dump has no state.safetensors");
    ask("GET", t_format("/v1/videos/%s/dump/blocks/block.0.safetensors", id));
    wants_error(404, "not_found", NULL, "was not asked for its blocks");
    stop_clean();
}

/* Every file that the list names is there, with as many bytes. */
static int dumped_files(const char *id)
{
    ask("GET", t_format("/v1/videos/%s/dump", id));
    assert_int_equal(r.code, 200);
    json_t *list = t_reply_json(&r), *file;
    const int count = (int)json_array_size(json_object_get(list, "data"));
    size_t i;
    json_array_foreach(json_object_get(list, "data"), i, file)
    {
        ask("GET", t_format("/v1/videos/%s/dump/%s", id,
                            json_string_value(json_object_get(file, "name"))));
        assert_int_equal(r.code, 200);
        assert_int_equal(r.size, json_integer_value(json_object_get(file, "bytes")));
    }
    json_decref(list);
    return count;
}

static void a_dump_is_listed_and_has_blocks(void **state)
{
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
    const char *const fields[] = {"prompt",      "a cat", "input_reference",
                                  "@" T_IMAGE,   "size",  "48x32",
                                  "frames",      "5",     "steps",
                                  "2",           "dump",  "true",
                                  "dump_blocks", "true",  NULL};
    post_form(fields, NULL);
    assert_int_equal(r.code, 200);
    char id[64];
    snprintf(id, sizeof id, "%s", t_reply_text(&r, "id"));
    ask("GET", t_format("/v1/videos/%s/dump", id));
    wants_error(409, "not_ready", NULL, "when the job has ended");
    assert_string_equal(t_wait(&s, id), "completed");
    const int with_blocks = dumped_files(id);
    ask("GET", t_format("/v1/videos/%s/dump", id));
    T_SAYS(r.body, "\"blocks/block.0.safetensors\"");
    T_SAYS(r.body, "\"denoise.safetensors\"");
    assert_null(strstr(r.body, "state.safetensors"));
    char block[160];
    snprintf(block, sizeof block, "/v1/videos/%s/dump/blocks/block.0.safetensors", id);
    ask_as("GET", block, "Range: bytes=0-7");
    assert_int_equal(r.code, 206);
    assert_int_equal(r.size, 8);
    ask("GET", t_format("/v1/videos/%s/dump/blocks/block.99.safetensors", id));
    wants_error(404, "not_found", NULL, "has no such one");
    ask("GET", t_format("/v1/videos/%s/dump/blocks/job.json", id));
    wants_error(404, "not_found", NULL, "a dump has no blocks/job.json");
    ask("GET", t_format("/v1/videos/%s/dump/blocks/..%%2fjob.json", id));
    wants_error(404, "not_found", NULL, "no such path");
    ask("GET", t_format("/v1/videos/%s/dump/blocks", id));
    wants_error(404, "not_found", NULL, "a dump has no blocks");

    const char *first = t_submit(&s, "1", "1");
    t_wait(&s, first);
    /* at once, though what was handed over goes a moment after the end */
    assert_int_equal(dumped_files(first), 1); /* job.json */
    ask("GET", t_format("/v1/videos/%s/dump/denoise.safetensors", first));
    wants_error(404, "not_found", NULL, "was not asked for a dump");
    assert_true(with_blocks > 10);
    stop_clean();
}

/* Whether there is a picture is the request's choice; a length in seconds is of 24 frames each. */
static void a_model_that_needs_no_picture(void **state)
{
    char id[2][64];
    (void)state;
    t_serve_start(&s, "tests/golden/tiny-ti2v-5b/model", NULL);
    ask("GET", "/v1/defaults");
    assert_string_equal(t_reply_text(&r, "picture"), "true");
    assert_string_equal(t_reply_text(&r, "picture_required"), "false");
    assert_string_equal(t_reply_text(&r, "last_picture"), "false");
    assert_string_equal(t_reply_text(&r, "edge"), "32");
    assert_string_equal(t_reply_text(&r, "defaults.fps"), "24");
    for (int i = 0; i < 2; i++) {
        const char *fields[] = {"prompt",
                                "a cat",
                                "size",
                                "64x32",
                                "seconds",
                                "0.5",
                                "seed",
                                "7",
                                "num_inference_steps",
                                "2",
                                i ? "input_reference" : NULL,
                                "@" T_IMAGE,
                                NULL};
        post_form(fields, NULL);
        if (r.code != 200) fail_msg("%s", r.body);
        snprintf(id[i], sizeof id[i], "%s", t_reply_text(&r, "id"));
        assert_string_equal(t_reply_text(&r, "frames"), "13");
        assert_string_equal(t_reply_text(&r, "fps"), "24");
    }
    for (int i = 0; i < 2; i++) assert_string_equal(t_wait(&s, id[i]), "completed");
    post_form((const char *const[]){"prompt", "a cat", "size", "48x32", NULL}, NULL);
    wants_error(400, "invalid_value", "size", "multiples of 32");
    post_form((const char *const[]){"prompt", "a cat", "last_image", "@" T_IMAGE, NULL}, NULL);
    wants_error(400, "invalid_value", "last-image", "takes a first picture only");
    stop_clean();
}

static void ranges_and_conditions(void **state)
{
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
    char path[128], tag[64], whole[16];
    const char *id = t_submit(&s, "1", "2");
    assert_string_equal(t_wait(&s, id), "completed");
    snprintf(path, sizeof path, "/v1/videos/%s/content", id);
    ask("GET", path);
    const size_t size = r.size;
    memcpy(whole, r.body, sizeof whole);
    assert_int_equal(sscanf(strstr(r.headers, "ETag: "), "ETag: %63s", tag), 1);
    wants_header("Accept-Ranges: bytes");

    static const struct {
        const char *range;
        int code;
        const char *says;
    } CASES[] = {
        {"bytes=0-3", 206, "Content-Range: bytes 0-3/"},
        {"bytes=4-7", 206, "Content-Range: bytes 4-7/"},
        {"bytes=-1", 206, "Content-Range: bytes "},
        {"bytes=2-", 206, "Content-Range: bytes 2-"},
        {"bytes=0-999999999", 206, "Content-Range: bytes 0-"},
        {"bytes=999999999-", 416, "Content-Range: bytes */"},
        {"bytes=-0", 416, "Content-Range: bytes */"},
        {"bytes=7-4", 200, ""},     /* no range: it does not count */
        {"bytes=0-1,4-5", 200, ""}, /* several: all of it */
        {"bytes=a-b", 200, ""},
        {"lines=0-1", 200, ""},
        {"bytes=99999999999999999999999-", 416, ""},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        ask_as("GET", path, t_format("Range: %s", CASES[i].range));
        if (r.code != CASES[i].code)
            fail_msg("%s: HTTP %ld, want %d", CASES[i].range, r.code, CASES[i].code);
        wants_header(CASES[i].says);
        if (CASES[i].code == 200) assert_int_equal(r.size, size);
    }
    ask_as("GET", path, "Range: bytes=4-7");
    assert_int_equal(r.size, 4);
    assert_memory_equal(r.body, whole + 4, 4);
    ask_as("GET", path, t_format("If-None-Match: %s", tag));
    assert_int_equal(r.code, 304);
    assert_int_equal(r.size, 0);
    ask_as("GET", path, "If-None-Match: \"other\"");
    assert_int_equal(r.code, 200);
    ask_as("GET", path, "If-Match: \"other\"");
    assert_int_equal(r.code, 412);
    ask("HEAD", path);
    assert_int_equal(r.code, 200);
    assert_int_equal(r.size, 0);
    wants_header(t_format("Content-Length: %zu", size));
    ask("GET", t_format("%s?variant=gif", path));
    wants_error(400, "invalid_value", "variant", "want video, thumbnail or spritesheet");
    stop_clean();
}

static void pictures_come_as_data_urls_too(void **state)
{
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
    FILE *p = popen("base64 -w0 " T_IMAGE, "r");
    static char data[1 << 18], body[1 << 19], first[256];
    const size_t n = fread(data, 1, sizeof data - 1, p);
    assert_int_equal(pclose(p), 0);
    data[n] = 0;
    const char *const forms[] = {"\"data:image/png;base64,%s\"",
                                 "{\"image_url\": \"data:image/png;base64,%s\"}",
                                 "{\"image_url\": {\"url\": \"data:image/png;base64,%s\"}}",
                                 "{\"url\": \"data:image/png;base64,%s\"}"};
    for (int i = 0; i < 4; i++) {
        char text[1 << 18];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(text, sizeof text, forms[i], data);
#pragma GCC diagnostic pop
        snprintf(body, sizeof body,
                 "{\"prompt\": \"a cat\", \"size\": \"96x64\", \"frames\": 9, \"steps\": \"2\", "
                 "\"seed\": 3, \"negative_prompt\": null, \"input_reference\": %s}",
                 text);
        post_json(body);
        if (r.code != 200) fail_msg("HTTP %ld: %s", r.code, r.body);
        char id[64];
        snprintf(id, sizeof id, "%s", t_reply_text(&r, "id"));
        assert_string_equal(t_wait(&s, id), "completed");
        ask("GET", t_format("/v1/videos/%s/content", id));
        char now[256];
        assert_true(r.size > sizeof now);
        memcpy(now, r.body + r.size - sizeof now, sizeof now);
        if (!i) memcpy(first, now, sizeof now);
        assert_memory_equal(first, now, sizeof now);
    }
    stop_clean();
}

/* ---- refusals ---- */

static void what_is_asked_wrongly_is_refused_in_one_line(void **state)
{
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
#define PICTURE "\"input_reference\": \"data:image/png;base64,aGVsbG8=\""
    static const struct {
        const char *body;
        int code;
        const char *name, *param, *says;
    } CASES[] = {
        {"", 400, "invalid_value", NULL, "the request's body"},
        {"[]", 400, "invalid_value", NULL, "the request's body"},
        {"{\"prompt\": \"a\", \"prompt\": \"b\"}", 400, "invalid_value", NULL, "duplicate"},
        {"{\"promt\": \"a\"}", 400, "invalid_value", "promt",
         "unknown field \"promt\", did you mean \"prompt\"?"},
        {"{\"guidance_scael\": 3}", 400, "invalid_value", "guidance_scael", "\"guidance_scale\"?"},
        {"{\"disk full\": 1}", 400, "invalid_value", "disk full", "unknown field"},
        {"{\"prompt\": \"a\", "
         "\"a-name-that-is-longer-than-any-that-there-is-of-all-the-names-there-are\": "
         "1}",
         400, "invalid_value", NULL, "unknown field"},
        {"{\"output\": \"/etc/passwd\"}", 400, "invalid_value", "output", "unknown field"},
        {"{\"json\": \"/tmp/x\"}", 400, "invalid_value", "json", "unknown field"},
        {"{\"conf\": \"/tmp/x\"}", 400, "invalid_value", "conf", "unknown field"},
        {"{\"prompt\": 7}", 400, "invalid_value", "input_reference", "no picture"},
        {"{\"prompt\": [\"a\"]}", 400, "invalid_value", "prompt", "want a text or a number"},
        {"{" PICTURE "}", 400, "invalid_value", "prompt", "no prompt"},
        {"{\"prompt\": \"a\"}", 400, "invalid_value", "input_reference", "no picture"},
        {"{\"prompt\": \"a\", " PICTURE "}", 400, "invalid_value", "input_reference",
         "image.input"},
        {"{\"prompt\": \"a\", \"input_reference\": \"/etc/passwd\"}", 400, "invalid_value",
         "input_reference", "neither a data URL nor one of http or https"},
        {"{\"prompt\": \"a\", \"input_reference\": \"file:///etc/passwd\"}", 400, "invalid_value",
         "input_reference", "neither a data URL nor one of http or https"},
        {"{\"prompt\": \"a\", \"input_reference\": \"http://169.254.169.254/x\"}", 400,
         "invalid_value", "input_reference", "fetches nothing from 169.254.169.254"},
        {"{\"prompt\": \"a\", \"input_reference\": {\"file_id\": \"f\"}}", 400, "invalid_value",
         "input_reference", "want a data URL"},
        {"{\"input_reference\": \"data:image/png,abc\"}", 400, "invalid_value", "input_reference",
         "not base64"},
        {"{\"input_reference\": \"data:image/png;base64,!!!!\"}", 400, "invalid_value",
         "input_reference", "damaged"},
        {"{\"input_reference\": \"data:image/png;base64,\"}", 400, "invalid_value",
         "input_reference", "empty"},
        {"{\"size\": \"big\"}", 400, "invalid_value", "size", "want WIDTHxHEIGHT"},
        {"{\"size\": \"96x64\", \"width\": 96}", 400, "invalid_value", "width", "given twice"},
        {"{\"seconds\": \"soon\"}", 400, "invalid_value", "seconds", "want a number"},
        {"{\"steps\": 1.5}", 400, "invalid_value", "steps", "want an integer"},
        {"{\"steps\": 2, \"num_inference_steps\": 3}", 400, "invalid_value", "num_inference_steps",
         "given twice"},
        {"{\"seed\": -2}", 400, "invalid_value", "seed", "seed"},
        {"{\"params\": [1]}", 400, "invalid_value", "params", "want"},
        {"{\"set\": \"a=1\"}", 400, "invalid_value", "set", "unknown field"},
        {"{\"dump\": \"/tmp/x\"}", 400, "invalid_value", "dump", "neither true nor false"},
        {"{\"model\": \"gpt\", \"prompt\": \"a\"}", 400, "invalid_value", "model",
         "want \"model\", which is served here"},
        {"{\"priority\": 2000}", 400, "invalid_value", "priority", "want a number from"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        post_json(CASES[i].body);
        if (r.code != CASES[i].code || !strstr(r.body, CASES[i].name))
            fail_msg("%s: HTTP %ld %s", CASES[i].body, r.code, r.body);
        wants_error(CASES[i].code, CASES[i].name, CASES[i].param, CASES[i].says);
    }
    static const struct {
        const char *name, *value, *param, *says;
    } FIELDS[] = {
        {"size", "100x64", "size", "multiples of 16"},
        {"frames", "10", "frames", "4"},
        {"frames", "85", "frames", "want at most 81"},
        {"width", "96", "width", "want both or neither"},
        {"size", "4096x4096", "size", "limits.pixels"},
        {"sampler", "ddim", "sampler", "unipc, euler or lightx2v"},
        {"params", "7", "params", "not JSON"},
        {"steps", "0", "steps", "steps"},
        {"fbcache", "11", "fbcache", "fbcache is 11, want 0 to 10"},
        {"precision", "fp9", "precision", "precision is fp9, want bf16, fp8-linear or fp8"},
        {"precision", "fp8-linear", "precision", "but the weights are loaded for bf16"},
        {"last_image", "@" T_IMAGE, "last-image", "first picture only"},
    };
    for (size_t i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++) {
        const char *const fields[] = {"prompt",    "a cat",        "input_reference",
                                      "@" T_IMAGE, FIELDS[i].name, FIELDS[i].value,
                                      NULL};
        post_form(fields, NULL);
        if (r.code != 400) fail_msg("%s=%s: HTTP %ld", FIELDS[i].name, FIELDS[i].value, r.code);
        wants_error(400, "invalid_value", FIELDS[i].param, FIELDS[i].says);
    }
    t_reply_free(&r);
    t_http_all(&r, s.url, "POST", "/v1/videos", "text/plain", "hello", NULL, NULL);
    wants_error(415, "unsupported_media_type", NULL, "want application/json");
    t_reply_free(&r);
    t_http_all(&r, s.url, "POST", "/v1/videos", "multipart/form-data; boundary=x",
               "--x\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\ncut", NULL, NULL);
    wants_error(400, "invalid_value", NULL, "multipart");
    t_reply_free(&r);
    t_http_all(&r, s.url, "POST", "/v1/videos", "multipart/form-data", "hello", NULL, NULL);
    wants_error(400, "invalid_value", NULL, "multipart without a boundary");
    t_reply_free(&r);
    t_http_all(&r, s.url, "POST", "/v1/videos", "multipart/form-data; boundary=xx",
               "--xx\r\nContent-Disposition: form-data; name=\"\xff\"\r\n\r\na\r\n--xx--\r\n", NULL,
               NULL);
    wants_error(400, "invalid_value", NULL, "unknown field \"?\"");

    ask("GET", "/v1/video");
    wants_error(404, "not_found", NULL, "no such path");
    ask("GET", "/v1/videos/../../etc/passwd");
    assert_int_equal(r.code, 404);
    ask("GET", "/v1/videos/video_0/dump/..%2f..%2fjournal.db");
    assert_int_equal(r.code, 404);
    ask("PUT", "/v1/videos");
    wants_error(405, "method_not_allowed", NULL, "no such method");
    const char *const unknown[] = {
        "",      "/content", "/events",        "/report", "/trace",
        "/logs", "/preview", "/dump/job.json", "/dump",   "/dump/blocks/block.0.safetensors"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        ask("GET", t_format("/v1/videos/video_0%s", unknown[i]));
        wants_error(404, "not_found", NULL, "there is no video video_0");
    }
    ask("DELETE", "/v1/videos/video_0");
    wants_error(404, "not_found", NULL, "there is no video video_0");
    ask("POST", "/v1/videos/video_0/cancel");
    wants_error(404, "not_found", NULL, "there is no video video_0");
    ask("GET", "/v1/videos?limit=0");
    wants_error(400, "invalid_value", "limit", "want 1 to 100");
    ask("GET", "/v1/videos?limit=101");
    wants_error(400, "invalid_value", "limit", "want 1 to 100");
    ask("GET", "/v1/videos?order=up");
    wants_error(400, "invalid_value", "order", "want asc or desc");
    ask("GET", "/v1/videos?after=video_0");
    wants_error(400, "invalid_value", "after", "no video");
    ask("GET", "/v1/models/other");
    wants_error(404, "model_not_found", "model", "is not served here");

    /* nothing of all that is left */
    ask("GET", "/v1/videos");
    assert_string_equal(t_reply_text(&r, "data"), "[]");
    assert_int_equal(system(t_format("test -z \"$(ls %s/jobs)\"", s.state)), 0);
    stop_clean();
}

static void bodies_and_queues_have_limits(void **state)
{
    (void)state;
    t_serve_conf(&s, "serve: { body_bytes = 65536; queue = 2; ahead = 1; };\n");
    t_serve_start(&s, T_MODEL, NULL);
    char *big = malloc(100001);
    memset(big, 'x', 100000);
    big[100000] = 0;
    post_json(big);
    wants_error(413, "too_large", NULL, "has 100000 bytes, want at most 65536");
    t_reply_free(&r);
    t_http_all(&r, s.url, "POST", "/v1/videos", "application/json", big, NULL,
               "Transfer-Encoding: chunked");
    if (r.code) wants_error(413, "too_large", NULL, "more than 65536"); /* or it was cut off */
    free(big);
    const char *first = t_submit(&s, "1", "200");
    while (!strcmp(t_status(&s, first), "queued")) usleep(10000);
    const char *second = t_submit(&s, "2", "2"), *third = t_submit(&s, "3", "2");
    const char *const fields[] = {"prompt", "a", "input_reference", "@" T_IMAGE, "frames",
                                  "9",      NULL};
    post_form(fields, NULL);
    wants_error(429, "queue_full", NULL, "2 jobs wait, want at most 2");
    wants_header("Retry-After: ");
    ask("GET", t_format("/v1/videos/%s", second));
    assert_string_equal(t_reply_text(&r, "queue_position"), "0");
    ask("GET", t_format("/v1/videos/%s", third));
    assert_string_equal(t_reply_text(&r, "queue_position"), "1");
    ask("GET", t_format("/v1/videos/%s/content", third));
    wants_error(409, "not_ready", NULL, "not ready");
    ask("GET", t_format("/v1/videos/%s/report", third));
    wants_error(409, "not_ready", NULL, "when the job has ended");
    ask("POST", t_format("/v1/videos/%s/cancel", first));
    assert_int_equal(r.code, 200);
    assert_string_equal(t_wait(&s, first), "cancelled");
    assert_string_equal(t_wait(&s, second), "completed");
    assert_string_equal(t_wait(&s, third), "completed");
    /* a cancel of what has ended changes nothing */
    ask("POST", t_format("/v1/videos/%s/cancel", third));
    assert_string_equal(t_reply_text(&r, "status"), "completed");
    ask("GET", t_format("/v1/videos/%s/content", first));
    wants_error(409, "not_ready", NULL, "was not made");
    stop_clean();
}

static void a_full_disk_refuses_before_it_loses(void **state)
{
    (void)state;
    t_serve_conf(&s, "serve: { reserve_bytes = 900000000000000L; };\n");
    t_serve_start(&s, T_MODEL, NULL);
    const char *const fields[] = {"prompt", "a", "input_reference", "@" T_IMAGE, NULL};
    post_form(fields, NULL);
    wants_error(507, "disk_full", NULL, "serve.reserve_bytes");
    stop_clean();
}

/* ---- listing, removing ---- */

static void lists_page_through_and_removed_jobs_are_gone(void **state)
{
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
    char ids[5][64];
    for (int i = 0; i < 5; i++) {
        snprintf(ids[i], sizeof ids[i], "%s", t_submit(&s, t_format("%d", i), "2"));
        if (i) ask("POST", t_format("/v1/videos/%s/cancel", ids[i]));
    }
    for (int i = 0; i < 5; i++) t_wait(&s, ids[i]);
    const char *after = "";
    for (int page = 0; page < 3; page++) {
        ask("GET", t_format("/v1/videos?order=asc&limit=2%s%s", *after ? "&after=" : "", after));
        json_t *o = t_reply_json(&r), *data = json_object_get(o, "data");
        assert_int_equal(json_array_size(data), page < 2 ? 2 : 1);
        for (size_t i = 0; i < json_array_size(data); i++)
            assert_string_equal(json_string_value(json_object_get(json_array_get(data, i), "id")),
                                ids[2 * page + (int)i]);
        assert_int_equal(json_is_true(json_object_get(o, "has_more")), page < 2);
        after = t_format("%s", json_string_value(json_object_get(o, "last_id")));
        json_decref(o);
    }
    ask("GET", "/v1/videos?limit=1");
    assert_string_equal(t_reply_text(&r, "first_id"), ids[4]);
    for (int twice = 0; twice < 2; twice++) {
        ask("DELETE", t_format("/v1/videos/%s", ids[0]));
        assert_int_equal(r.code, 200);
        assert_string_equal(t_reply_text(&r, "object"), "video.deleted");
        assert_string_equal(t_reply_text(&r, "deleted"), "true");
    }
    ask("GET", t_format("/v1/videos/%s", ids[0]));
    assert_int_equal(r.code, 404);
    assert_int_not_equal(access(t_format("%s/jobs/%s", s.state, ids[0]), F_OK), 0);
    /* one that runs is cancelled first */
    const char *running = t_submit(&s, "9", "500");
    while (!strcmp(t_status(&s, running), "queued")) usleep(10000);
    ask("DELETE", t_format("/v1/videos/%s", running));
    assert_int_equal(r.code, 200);
    assert_int_not_equal(access(t_format("%s/jobs/%s", s.state, running), F_OK), 0);
    stop_clean();
}

static void a_key_names_one_job(void **state)
{
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
    const char *const fields[] = {"prompt", "a",     "input_reference", "@" T_IMAGE, "frames", "9",
                                  "size",   "48x32", "steps",           "2",         NULL};
    char id[64];
    post_form(fields, "Idempotency-Key: order-17");
    snprintf(id, sizeof id, "%s", t_reply_text(&r, "id"));
    post_form(fields, "Idempotency-Key: order-17");
    assert_string_equal(t_reply_text(&r, "id"), id);
    post_form(fields, "Idempotency-Key: order-18");
    assert_string_not_equal(t_reply_text(&r, "id"), id);
    ask("GET", "/v1/videos");
    json_t *o = t_reply_json(&r);
    assert_int_equal(json_array_size(json_object_get(o, "data")), 2);
    json_decref(o);
    t_wait(&s, id);
    stop_clean();
}

/* ---- tokens ---- */

static void write_tokens(const char *text)
{
    unlink(s.tokens);
    t_write(s.tokens, text);
    chmod(s.tokens, 0600);
}

#define ANA "Authorization: Bearer ana-0123456789abcdef"
#define BO "Authorization: Bearer bo-0123456789abcdef0"

/* That something runs is everybody's to see, whose job it is, its owner's. */
static void a_fleet_shows_ids_to_their_owner(void)
{
    const char *const slow[] = {"prompt", "a",     "input_reference", "@" T_IMAGE, "frames", "9",
                                "size",   "96x64", "steps",           "900",       NULL};
    const double until = t_seconds() + 60;
    post_form(slow, ANA);
    assert_int_equal(r.code, 200);
    char id[64];
    snprintf(id, sizeof id, "%s", t_reply_text(&r, "id"));
    do {
        if (t_seconds() > until) fail_msg("the job is not told of");
        ask_as("GET", "/v1/fleet", ANA);
        assert_int_equal(r.code, 200);
    } while (!strstr(r.body, id) || !strstr(r.body, "\"stage\":\"denoise\""));
    ask_as("GET", "/v1/fleet", BO);
    assert_int_equal(r.code, 200);
    assert_null(strstr(r.body, id));
    assert_non_null(strstr(r.body, "\"stage\":\"denoise\""));
    assert_non_null(strstr(r.body, "\"jobs\":[{\"id\":null"));
    ask("GET", "/v1/fleet");
    assert_int_equal(r.code, 401);
    ask_as("DELETE", t_format("/v1/videos/%s", id), ANA);
    assert_int_equal(r.code, 200);
}

static void tokens_see_their_own_jobs(void **state)
{
    (void)state;
    write_tokens("# who\nana ana-0123456789abcdef priority=5\nbo bo-0123456789abcdef0\n");
    t_serve_start(&s, T_MODEL, (const char *const[]){"--tokens", s.tokens, NULL});
    const char *const fields[] = {"prompt", "a",     "input_reference", "@" T_IMAGE, "frames", "9",
                                  "size",   "48x32", "steps",           "2",         NULL};
    char id[64];
    post_form(fields, NULL);
    wants_error(401, "invalid_api_key", NULL, "no token");
    wants_header("WWW-Authenticate: Bearer");
    post_form(fields, "Authorization: Bearer ana-0123456789abcdeX");
    wants_error(401, "invalid_api_key", NULL, "not known");
    post_form(fields, "Authorization: Basic YTpi");
    wants_error(401, "invalid_api_key", NULL, "not known");
    post_form(fields, ANA);
    assert_int_equal(r.code, 200);
    assert_string_equal(t_reply_text(&r, "priority"), "5");
    snprintf(id, sizeof id, "%s", t_reply_text(&r, "id"));
    ask_as("GET", t_format("/v1/videos/%s", id), BO);
    assert_int_equal(r.code, 404);
    ask_as("DELETE", t_format("/v1/videos/%s", id), BO);
    assert_int_equal(r.code, 404);
    ask_as("POST", t_format("/v1/videos/%s/cancel", id), BO);
    assert_int_equal(r.code, 404);
    ask_as("GET", "/v1/videos", BO);
    assert_string_equal(t_reply_text(&r, "data"), "[]");
    ask_as("GET", t_format("/v1/videos/%s", id), ANA);
    assert_int_equal(r.code, 200);
    const char *const high[] = {"prompt", "a", "input_reference", "@" T_IMAGE, "priority",
                                "6",      NULL};
    post_form(high, BO);
    wants_error(400, "invalid_value", "priority", "want at most 0, this token's");
    ask("GET", "/health");
    assert_int_equal(r.code, 200);
    ask("GET", "/metrics");
    assert_int_equal(r.code, 401);
    a_fleet_shows_ids_to_their_owner();

    /* read again: bo's is another now, ana's is gone */
    write_tokens("bo bo-fedcba9876543210\n");
    kill(s.pid, SIGHUP);
    for (double until = t_seconds() + 20; t_seconds() < until; usleep(20000)) {
        ask_as("GET", "/v1/videos", ANA);
        if (r.code == 401) break;
    }
    assert_int_equal(r.code, 401);
    ask_as("GET", "/v1/videos", "Authorization: Bearer bo-fedcba9876543210");
    assert_int_equal(r.code, 200);
    /* a file that is wrong changes nothing */
    write_tokens("bo short\n");
    kill(s.pid, SIGHUP);
    usleep(300000);
    ask_as("GET", "/v1/videos", "Authorization: Bearer bo-fedcba9876543210");
    assert_int_equal(r.code, 200);
    stop_clean();
}

static void until_logged(const char *part)
{
    size_t n;
    for (double until = t_seconds() + 20; t_seconds() < until; usleep(20000)) {
        char *log = t_read(s.log, &n);
        const bool said = log && strstr(log, part);
        free(log);
        if (said) return;
    }
    fail_msg("the log never said \"%s\"", part);
}

/* The names that clients may ask for now. */
static void has_loras(const char *want)
{
    ask("GET", "/v1/defaults");
    json_t *all = json_loads(r.body, 0, NULL);
    char *names = json_dumps(json_object_get(all, "lora"), JSON_COMPACT);
    assert_string_equal(names, want);
    free(names);
    json_decref(all);
}

/* What SIGHUP brings is checked as at the start: a file that is none, or of another model, changes
 * nothing. */
static void loras_are_read_again(const char *good)
{
    static const char *const BAD[][2] = {
        {"tests/golden/none.safetensors", "lora late: "},
        {"tests/golden/tiny-i2v/model/vae/diffusion_pytorch_model.safetensors", "lora late: "}};
    for (int i = 0; i < 2; i++) {
        t_serve_conf(&s, t_format("lora: ( { name = \"late\"; file = \"%s\"; } );\n", BAD[i][0]));
        t_write(s.log, "");
        kill(s.pid, SIGHUP);
        until_logged("SIGHUP: all stays as it was: ");
        until_logged(BAD[i][1]);
        has_loras("[\"soft\"]");
    }
    t_serve_conf(&s, t_format("lora: ( { name = \"late\"; file = \"%s\"; } );\n", good));
    kill(s.pid, SIGHUP);
    until_logged("SIGHUP: settings are read again");
    has_loras("[\"late\"]");
}

/* What a stage of one's own is told lies in the job's folder, as an object. */
static void params_reach_the_job(void **state)
{
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
    const char *const fields[] = {
        "prompt", "a cat", "input_reference", "@" T_IMAGE,
        "size",   "48x32", "params",          "{\"strength\": [0.5, null]}",
        "frames", "5",     "steps",           "2",
        NULL};
    post_form(fields, NULL);
    assert_int_equal(r.code, 200);
    size_t n;
    char *job = t_read(t_format("%s/jobs/%s/job.json", s.state, t_reply_text(&r, "id")), &n);
    assert_non_null(job);
    json_t *root = json_loads(job, 0, NULL),
           *list = json_object_get(json_object_get(root, "params"), "strength");
    assert_true(json_number_value(json_array_get(list, 0)) == 0.5);
    json_decref(root);
    free(job);
    stop_clean();
}

/* LoRA go by the names of the configuration; a path is no name. */
static void loras_go_by_name(void **state)
{
    (void)state;
    char *lora = realpath("tests/golden/lora-i2v/a-peft.safetensors", NULL);
    assert_non_null(lora);
    t_serve_conf(
        &s, t_format("lora: ( { name = \"soft\"; file = \"%s\"; strength = 0.5; } );\n", lora));
    t_serve_start(&s, T_MODEL, NULL);
    has_loras("[\"soft\"]");
    static const char *const BAD[] = {"hard", "soft,hard", "a-peft.safetensors"};
    for (size_t i = 0; i < 3; i++) {
        const char *const fields[] = {"prompt", "a cat", "input_reference", "@" T_IMAGE, "lora",
                                      BAD[i],   NULL};
        post_form(fields, NULL);
        wants_error(400, "invalid_value", "lora", "want some of soft");
    }
    const char *const path[] = {"prompt", "a cat", "input_reference", "@" T_IMAGE, "lora",
                                lora,     NULL};
    post_form(path, NULL);
    wants_error(400, "invalid_value", "lora", "want some of soft");
    const char *const second[] = {"prompt", "a cat", "input_reference", "@" T_IMAGE, "lora_2",
                                  "soft",   NULL};
    post_form(second, NULL);
    assert_int_equal(r.code, 400);
    /* two jobs, with and without, give other videos; the report has file, strength and content */
    char id[2][64], *bytes[2];
    size_t size[2];
    for (int i = 0; i < 2; i++) {
        const char *const fields[] = {"prompt",
                                      "a cat",
                                      "input_reference",
                                      "@" T_IMAGE,
                                      "size",
                                      "48x32",
                                      "frames",
                                      "5",
                                      "seed",
                                      "7",
                                      "steps",
                                      "2",
                                      i ? "lora" : NULL,
                                      "soft:2",
                                      NULL};
        post_form(fields, NULL);
        assert_int_equal(r.code, 200);
        snprintf(id[i], sizeof id[i], "%s", t_reply_text(&r, "id"));
        assert_string_equal(t_wait(&s, id[i]), "completed");
        ask("GET", t_format("/v1/videos/%s/content", id[i]));
        size[i] = r.size;
        bytes[i] = malloc(r.size + 1);
        memcpy(bytes[i], r.body, r.size);
    }
    assert_true(size[0] != size[1] || memcmp(bytes[0], bytes[1], size[0]) != 0);
    ask("GET", t_format("/v1/videos/%s/report", id[1]));
    json_t *report = json_loads(r.body, 0, NULL),
           *row = json_array_get(json_object_get(report, "lora"), 0);
    assert_string_equal(json_string_value(json_object_get(row, "file")), "a-peft.safetensors");
    assert_true(json_number_value(json_object_get(row, "strength")) == 1);
    assert_null(strstr(r.body, lora));
    json_decref(report);
    free(bytes[0]);
    free(bytes[1]);
    loras_are_read_again(lora);
    free(lora);
    stop_clean();
}

/* A model whose VAE lies elsewhere: by --vae as by run's, and in a file of each kind alone. */
static void files_are_taken_in_place_of_the_models(void **state)
{
    (void)state;
    const char *const fields[] = {
        "prompt",     "a cat", "input_reference",     "@" T_IMAGE, "size", "48x32", "seed", "7",
        "num_frames", "9",     "num_inference_steps", "2",         NULL};
    char bare[300], vae[300], tokenizer[300];
    size_t bytes[2];
    char *video[2];
    snprintf(bare, sizeof bare, "%s/bare", s.base);
    snprintf(vae, sizeof vae, "%s/elsewhere.safetensors", s.base);
    snprintf(tokenizer, sizeof tokenizer, "%s/pieces.model", s.base);
    if (system(t_format("cp -rL " T_MODEL " %s && chmod -R u+w %s && mv %s/vae/*.safetensors %s && "
                        "mv %s/tokenizer/spiece.model %s",
                        bare, bare, bare, vae, bare, tokenizer)))
        fail_msg("no copy of the model");
    for (int i = 0; i < 2; i++) {
        t_serve_start(&s, i ? bare : T_MODEL,
                      i ? (const char *const[]){"--vae", vae, "--tokenizer", tokenizer, NULL}
                        : NULL);
        post_form(fields, NULL);
        assert_int_equal(r.code, 200);
        char id[64];
        snprintf(id, sizeof id, "%s", t_reply_text(&r, "id"));
        assert_string_equal(t_wait(&s, id), "completed");
        ask("GET", t_format("/v1/videos/%s/content", id));
        assert_int_equal(r.code, 200);
        bytes[i] = r.size;
        video[i] = malloc(r.size + 1);
        memcpy(video[i], r.body, r.size);
        stop_clean();
    }
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(video[0], video[1], bytes[0]);
    free(video[0]);
    free(video[1]);
    unlink(s.log);
    t_serve_spawn(&s, bare, (const char *const[]){"--vae", "/none/such", NULL});
    assert_false(t_serve_ready(&s));
    assert_int_equal(t_serve_wait(&s), 2);
    if (system(t_format("grep -qF /none/such %s && test $(wc -l < %s) -eq 1", s.log, s.log)))
        fail_msg("want one line that names the file");
}

/* A start that is refused: exit 2, one line. */
static void refused_start(const char *const *more, const char *says)
{
    unlink(s.log);
    t_serve_spawn(&s, T_MODEL, more);
    assert_false(t_serve_ready(&s));
    assert_int_equal(t_serve_wait(&s), 2);
    t_serve_no_children();
    if (system(t_format("grep -qF -e '%s' %s && test $(wc -l < %s) -eq 1", says, s.log, s.log))) {
        t_serve_show_log(&s);
        fail_msg("want one line with: %s", says);
    }
}

static void wrong_starts_are_refused(void **state)
{
    (void)state;
    write_tokens("ana ana-0123456789abcdef\n");
    chmod(s.tokens, 0644);
    refused_start((const char *const[]){"--tokens", s.tokens, NULL}, "has mode 0644, want 0600");
    write_tokens("ana\n");
    refused_start((const char *const[]){"--tokens", s.tokens, NULL}, ":1: one word");
    write_tokens("# none\n");
    refused_start((const char *const[]){"--tokens", s.tokens, NULL}, "holds no token");
    write_tokens("ana ana-0123456789abcdef\nbo ana-0123456789abcdef\n");
    refused_start((const char *const[]){"--tokens", s.tokens, NULL}, ":2: the token of ana again");
    refused_start((const char *const[]){"--tokens", "/none/such", NULL}, "/none/such");
    refused_start((const char *const[]){"--listen", "0.0.0.0:0", NULL}, "want --tokens FILE");
    refused_start((const char *const[]){"--listen", "8080", NULL}, "want HOST:PORT");
    refused_start((const char *const[]){"--listen", "127.0.0.1:99999", NULL}, "want HOST:PORT");
    refused_start((const char *const[]){"--listen", "203.0.113.7:80", NULL}, "--listen");
    refused_start((const char *const[]){"--prompt", "x", NULL}, "unknown option --prompt");
    refused_start((const char *const[]){"--device", "tpu", NULL}, "--device");
    refused_start((const char *const[]){"--model", "/none/such", NULL}, "/none/such");
    t_serve_conf(&s, "serve: { que = 3; };\n");
    refused_start(NULL, "serve.queue");
    t_serve_conf(&s, "limits: { memory_bytes = 1000000; };\n");
    refused_start(NULL, "the largest job");
    t_serve_conf(&s, "model: { random = 1; };\n");
    if (system(t_format("cp -r " T_MODEL " %s/bare && rm %s/bare/tokenizer/spiece.model", s.base,
                        s.base)))
        fail_msg("no copy of the model");
    refused_start((const char *const[]){"--model", t_format("%s/bare", s.base), NULL},
                  "no tokenizer: ");
    /* the state folder is another server's */
    t_serve_conf(&s, "");
    t_write(t_format("%s/journal.db", s.base), "this is no database, but it is long enough to be "
                                               "read as the head of one, which is 100 bytes....");
    mkdir(s.state, 0700);
    assert_int_equal(rename(t_format("%s/journal.db", s.base), t_format("%s/journal.db", s.state)),
                     0);
    refused_start(NULL, "journal");
}

/* ---- drain and start ---- */

static void a_drain_finishes_what_runs_and_keeps_the_rest(void **state)
{
    (void)state;
    t_serve_conf(&s, "serve: { ahead = 1; };\n");
    t_serve_start(&s, T_MODEL, NULL);
    char first[64], second[64];
    snprintf(first, sizeof first, "%s", t_submit(&s, "1", "80"));
    snprintf(second, sizeof second, "%s", t_submit(&s, "2", "2"));
    while (!strcmp(t_status(&s, first), "queued")) usleep(10000);
    kill(s.pid, SIGTERM);
    for (double until = t_seconds() + 20; t_seconds() < until; usleep(2000)) {
        ask("GET", "/ready");
        if (r.code != 200) break;
    }
    if (r.code) { /* it may have been quicker */
        assert_int_equal(r.code, 503);
        const char *const fields[] = {"prompt", "a", "input_reference", "@" T_IMAGE, NULL};
        post_form(fields, NULL);
        if (r.code) wants_error(503, "draining", NULL, "takes no jobs");
    }
    assert_int_equal(t_serve_wait(&s), 0);
    t_serve_no_children();
    assert_int_not_equal(access(t_format("%s/sluice.sock", s.state), F_OK), 0);
    t_serve_start(&s, T_MODEL, NULL);
    assert_string_equal(t_status(&s, first), "completed");
    assert_string_equal(t_wait(&s, second), "completed");
    ask("GET", t_format("/v1/videos/%s", first));
    assert_string_equal(t_reply_text(&r, "attempts"), "1");
    stop_clean();
}

/* Its time is up: the job is put back, and the next server goes on with it. */
/* A job whose folder goes while it runs fails at once, and the next one is done. */
static void a_folder_that_goes_fails_its_job(void **state)
{
    char lost[64], next[64];
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
    snprintf(lost, sizeof lost, "%s", t_submit(&s, "1", "1000"));
    snprintf(next, sizeof next, "%s", t_submit(&s, "2", "2"));
    for (double until = t_seconds() + 20; t_seconds() < until; usleep(20000)) {
        ask("GET", t_format("/v1/videos/%s", lost));
        if (!strcmp(t_reply_text(&r, "stage"), "denoise")) break;
    }
    const double t0 = t_seconds();
    t_rmdir(t_format("%s/jobs/%s", s.state, lost));
    assert_string_equal(t_wait(&s, lost), "failed");
    if (t_seconds() - t0 > 5) fail_msg("told after %.1f s", t_seconds() - t0);
    ask("GET", t_format("/v1/videos/%s", lost));
    assert_string_equal(t_reply_text(&r, "error.message"), "its folder was removed while it ran");
    assert_string_equal(t_wait(&s, next), "completed");
    stop_clean();
}

static void a_drain_that_takes_too_long_puts_jobs_back(void **state)
{
    (void)state;
    t_serve_conf(&s, "");
    t_write(s.conf,
            "denoise: { state_every = 2; };\nsupervise: { drain_s = 0; };\nserve: { ahead = "
            "1; };\n");
    t_serve_start(&s, T_MODEL, NULL);
    char id[64];
    snprintf(id, sizeof id, "%s", t_submit(&s, "1", "80"));
    while (strcmp(t_status(&s, id), "in_progress")) usleep(10000);
    assert_int_equal(t_serve_stop(&s), 0);
    t_serve_no_children();
    t_serve_start(&s, T_MODEL, NULL);
    assert_string_equal(t_wait(&s, id), "completed");
    ask("GET", t_format("/v1/videos/%s", id));
    assert_string_equal(t_reply_text(&r, "attempts"), "2");
    stop_clean();
}

static void one_server_a_state_folder(void **state)
{
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
    int status = system(t_format("timeout -s KILL 2 %s/sluice serve --model %s --state %s --listen "
                                 "127.0.0.1:0 >/dev/null 2>&1",
                                 t_bin(), T_MODEL, s.state));
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 137); /* it waits for the lock */
    ask("GET", "/health");
    assert_int_equal(r.code, 200);
    stop_clean();
}

/* ---- streams ---- */

static void events_tell_each_step_and_end(void **state)
{
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
    const char *id = t_submit(&s, "4", "5");
    ask("GET", t_format("/v1/videos/%s/events", id));
    assert_int_equal(r.code, 200);
    wants_header("Content-Type: text/event-stream");
    assert_int_equal(strncmp(r.body, "event: state\ndata: {", 20), 0);
    assert_non_null(strstr(r.body, "event: step\ndata: {\"stage\":"));
    char *last = NULL;
    int progress = 0;
    for (char *at = r.body; (at = strstr(at, "event: state\ndata: ")); at += 19) last = at + 19;
    for (char *at = r.body; (at = strstr(at, "\"progress\":")); at++) {
        const int now = atoi(at + 11);
        assert_true(now >= progress);
        progress = now;
    }
    assert_non_null(strstr(last, "\"status\":\"completed\""));
    /* of a job that has ended: one state, and the end */
    ask("GET", t_format("/v1/videos/%s/events", id));
    assert_null(strstr(r.body + 1, "event: state"));
    stop_clean();
}

/* ---- the rest of the routes ---- */

static void the_server_describes_itself(void **state)
{
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
    ask("GET", "/v1/models");
    assert_string_equal(t_reply_text(&r, "object"), "list");
    ask("GET", "/v1/models/model");
    assert_string_equal(t_reply_text(&r, "id"), "model");
    ask("GET", "/v1/defaults");
    assert_string_equal(t_reply_text(&r, "picture"), "true");
    assert_string_equal(t_reply_text(&r, "limits.frames"), "81");
    ask("GET", "/ready");
    assert_string_equal(t_reply_text(&r, "status"), "ready");
    ask("GET", "/openapi.json");
    assert_string_equal(t_reply_text(&r, "openapi"), "3.1.0");
    assert_non_null(strstr(r.body, "\"num_inference_steps\""));
    assert_null(strstr(r.body, "\"output\""));
    T_SAYS(r.body, "\"warnings\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}");
    const char *id = t_submit(&s, "4", "3");
    assert_string_equal(t_wait(&s, id), "completed");
    ask("GET", t_format("/v1/videos/%s", id));
    assert_string_equal(t_reply_text(&r, "warnings"), "[]");
    ask("GET", "/metrics");
    const char *const lines[] = {"\nsluice_jobs_total{outcome=\"completed\"} 1\n",
                                 "\nsluice_steps_total 3\n", "\nsluice_queue_jobs 0\n",
                                 "sluice_stage_seconds_total{stage=\"denoise\",device=\"cpu\",kind="
                                 "\"compute\"}",
                                 "\n# TYPE sluice_http_request_seconds histogram\n"};
    for (int i = 0; i < 5; i++)
        if (!strstr(r.body, lines[i])) fail_msg("no %s in\n%s", lines[i], r.body);
    const char *const page[] = {"/", "/page.css", "/base.js", "/page.js", "/fleet", "/fleet.js"};
    for (int i = 0; i < 6; i++) {
        ask("GET", page[i]);
        assert_int_equal(r.code, 200);
        wants_header("Content-Security-Policy: default-src 'none'");
        wants_header("X-Frame-Options: DENY");
    }
    ask("GET", "/favicon.ico");
    assert_int_equal(r.code, 204);
    stop_clean();
}

/* The same HTTP over a socket of the state folder, which needs no token and sees all jobs. */
static void the_socket_of_the_state_folder_is_the_machines_own(void **state)
{
    (void)state;
    struct stat st;
    write_tokens("ana ana-0123456789abcdef\n");
    t_serve_start(&s, T_MODEL, (const char *const[]){"--tokens", s.tokens, NULL});
    const char *const fields[] = {"prompt", "a",     "input_reference", "@" T_IMAGE, "frames", "9",
                                  "size",   "48x32", "steps",           "2",         NULL};
    post_form(fields, "Authorization: Bearer ana-0123456789abcdef");
    assert_int_equal(r.code, 200);
    const char *id = t_reply_text(&r, "id");
    assert_int_equal(stat(t_format("%s/sluice.sock", s.state), &st), 0);
    assert_int_equal(st.st_mode & 077, 0);
    assert_int_equal(stat(s.state, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    assert_int_equal(system(t_format("curl -s --unix-socket %s/sluice.sock "
                                     "http://localhost/v1/videos | grep -q '\"id\":\"%s\"'",
                                     s.state, id)),
                     0);
    stop_clean();
}

/* ---- hostile clients ---- */

static int dial(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)atoi(strrchr(s.url, ':') + 1)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval t = {20, 0};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    return fd;
}

/* The first line of the answer to raw bytes; "" the connection was closed. */
static const char *raw(const char *bytes, size_t n)
{
    static char answer[512];
    int fd = dial();
    size_t got = 0;
    ssize_t more = send(fd, bytes, n, MSG_NOSIGNAL);
    while (got < sizeof answer - 1 &&
           (more = recv(fd, answer + got, sizeof answer - 1 - got, 0)) > 0)
        if (memchr(answer, '\n', got += (size_t)more)) break;
    answer[got] = 0;
    answer[strcspn(answer, "\r\n")] = 0;
    close(fd);
    return answer;
}

static void requests_with_two_meanings_are_refused(void **state)
{
    (void)state;
    t_serve_start(&s, T_MODEL, NULL);
    static const char *const CASES[] = {
        "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: "
        "5\r\n\r\nabcde",
        "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: "
        "chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        "Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, "
        "chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: +4\r\n\r\nabcd",
        "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "GET /v1/videos HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        "GET /v1/videos HTTP/1.1\r\nHost: evil\r\n\r\n",
        "GET /v1/videos HTTP/1.1\r\n\r\n",
        "\r\n\r\n\x01\x02\x03 / HTTP/1.1\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const char *line = raw(CASES[i], strlen(CASES[i]));
        if (*line && strncmp(line, "HTTP/1.1 4", 10) && strncmp(line, "HTTP/1.0 4", 10))
            fail_msg("case %zu: %s", i, line);
    }
    static const char ORIGIN[] = "POST /v1/videos/video_0/cancel HTTP/1.1\r\nHost: localhost\r\n"
                                 "Origin: http://evil.example\r\nContent-Length: 0\r\n\r\n";
    assert_string_equal(raw(ORIGIN, sizeof ORIGIN - 1), "HTTP/1.1 403 Forbidden");
    stop_clean();
}

static void slow_clients_are_cut_off(void **state)
{
    (void)state;
    char buf[64];
    t_serve_conf(&s, "serve: { header_s = 1; connections = 40; connections_per_address = 30; };\n");
    t_serve_start(&s, T_MODEL, NULL);
    /* a byte now and then keeps no head alive */
    int slow = dial();
    const double begun = t_seconds();
    ssize_t n = 1;
    while (n > 0 && t_seconds() - begun < 30) {
        send(slow, "G", 1, MSG_NOSIGNAL);
        struct pollfd p = {slow, POLLIN, 0};
        if (poll(&p, 1, 200) == 1) n = recv(slow, buf, sizeof buf, 0);
    }
    assert_true(n <= 0);
    close(slow);
    /* more connections than one address may have: the others are closed, and the server answers
     * when these are gone */
    int many[60], open_now = 0;
    for (int i = 0; i < 60; i++) many[i] = dial();
    usleep(200000);
    for (int i = 0; i < 60; i++) {
        struct pollfd p = {many[i], POLLIN, 0};
        open_now += !(poll(&p, 1, 0) == 1 && recv(many[i], buf, sizeof buf, MSG_DONTWAIT) <= 0);
    }
    assert_true(open_now <= 30);
    for (int i = 0; i < 60; i++) close(many[i]);
    for (double until = t_seconds() + 20; t_seconds() < until; usleep(20000)) {
        ask("GET", "/health");
        if (r.code == 200) break;
    }
    assert_int_equal(r.code, 200);
    stop_clean();
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, open_server, close_server)
    const struct CMUnitTest tests[] = {
        T(a_job_is_made_and_its_files_are_there),
        T(a_dump_is_listed_and_has_blocks),
        T(a_model_that_needs_no_picture),
        T(ranges_and_conditions),
        T(pictures_come_as_data_urls_too),
        T(what_is_asked_wrongly_is_refused_in_one_line),
        T(bodies_and_queues_have_limits),
        T(a_full_disk_refuses_before_it_loses),
        T(lists_page_through_and_removed_jobs_are_gone),
        T(a_key_names_one_job),
        T(tokens_see_their_own_jobs),
        T(params_reach_the_job),
        T(loras_go_by_name),
        T(files_are_taken_in_place_of_the_models),
        T(wrong_starts_are_refused),
        T(a_drain_finishes_what_runs_and_keeps_the_rest),
        T(a_folder_that_goes_fails_its_job),
        T(a_drain_that_takes_too_long_puts_jobs_back),
        T(one_server_a_state_folder),
        T(events_tell_each_step_and_end),
        T(the_server_describes_itself),
        T(the_socket_of_the_state_folder_is_the_machines_own),
        T(requests_with_two_meanings_are_refused),
        T(slow_clients_are_cut_off),
    };
    curl_global_init(CURL_GLOBAL_DEFAULT);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
