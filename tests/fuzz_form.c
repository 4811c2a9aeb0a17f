/* fuzz_form.c - any bytes as what a client sent with POST /v1/videos: a form, or one line that says
 * what is wrong.
 *
 * The first byte says which. 'J': the rest is a body of JSON. 'T': texts of a multipart form, each
 * a name, a NUL, a value, a NUL. 'F': likewise, and the value is a file's bytes where the name
 * stands for one. Else: the bytes are a data URL of every field that takes one. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stages/serve/form.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static sl_code answers(const sl_form *f, sl_code rc, const sl_err *err)
{
    if (!memchr(f->param, 0, sizeof f->param)) abort();
    json_t *param = json_string(f->param);
    if (!param) abort();
    json_decref(param);
    if (!rc) return rc;
    if (rc != err->code || !err->msg[0]) abort();
    if (rc != SL_ARG && rc != SL_FORMAT && rc != SL_SYS) abort();
    for (const char *c = err->msg; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) abort();
    return rc;
}

/* What was taken is what its types promise. */
static void check(const sl_form *f)
{
    const sl_form_file *const files[] = {&f->image, &f->last_image, &f->noise};
    const sl_job *spec = &f->request.spec;
    unsigned sum = 0;
    for (int i = 0; i < 3; i++) {
        if (!files[i]->bytes != !files[i]->size) abort();
        for (size_t k = 0; k < files[i]->size; k++) sum += (unsigned char)files[i]->bytes[k];
    }
    if (!memchr(f->model, 0, sizeof f->model)) abort();
    if (f->seconds != 0 && !(f->seconds >= 1e-3 && f->seconds <= 1e6)) abort();
    /* no path is a client's to give */
    if (*spec->image || *spec->last_image || *spec->noise || *spec->output || *spec->preview ||
        *spec->model || *f->request.dump_dir)
        abort();
    if (!isfinite(spec->guidance) || !spec->prompt || !spec->negative) abort();
    if (sum == 1) printf(" \b");
}

static void json(const char *text, size_t size)
{
    sl_form f = {.file_bytes = 1 << 20};
    sl_err err = {0};
    if (sl_form_init(&f, &err)) abort();
    if (!answers(&f, sl_form_json(&f, text, size, &err), &err)) check(&f);
    sl_form_free(&f);
}

/* The text up to its NUL; it ends with one anyway. */
static const char *next(const char **at, const char *end)
{
    const char *text = *at;
    if (text >= end) return NULL;
    *at += strlen(text) + 1;
    return text;
}

static void parts(const char *at, const char *end, bool files)
{
    sl_form f = {.file_bytes = 1 << 20};
    sl_err err = {0};
    const char *name, *value;
    if (sl_form_init(&f, &err)) abort();
    while ((name = next(&at, end)) && (value = next(&at, end))) {
        sl_code rc;
        if (files && strlen(name) < 64 && sl_form_is_file(name)) {
            char *bytes = *value ? strdup(value) : NULL;
            rc = sl_form_file_of(&f, name, bytes, strlen(value), &err);
        } else rc = sl_form_text(&f, name, value, &err);
        if (answers(&f, rc, &err)) break;
        check(&f);
    }
    sl_form_free(&f);
}

static void url(const char *text)
{
    static const char *const FILES[] = {"input_reference", "last-image", "noise"};
    sl_form f = {.file_bytes = 1 << 20};
    sl_err err = {0};
    if (sl_form_init(&f, &err)) abort();
    for (int i = 0; i < 3; i++)
        if (!answers(&f, sl_form_text(&f, FILES[i], text, &err), &err)) check(&f);
    sl_form_free(&f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    char *text = malloc(size + 1);
    if (!text) return 0;
    memcpy(text, data, size);
    text[size] = 0;
    if (*data == 'J') json(text + 1, size - 1);
    else if (*data == 'T' || *data == 'F') parts(text + 1, text + size, *data == 'F');
    else url(text);
    free(text);
    return 0;
}
