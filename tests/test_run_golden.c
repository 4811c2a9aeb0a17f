/* test_run_golden - `sluice run` on every case of a golden folder, layer by layer against
 * what the reference computed.
 *
 *   test_run_golden [FOLDER ...]
 *
 * Each folder holds model/, prompts.json, text.safetensors and cases NAME.json. Default:
 * every one in tests/golden. The programs are
 * taken from $SLUICE_BIN (default bin).
 *
 * The older models' rotary tables were rounded to bf16 (the models were cast as a whole):
 * where a folder's figures are so, tests/golden/golden.cfg asks for that, else the
 * folder's own golden.cfg, where it has one, says what else it needs. With float32 tables,
 * as the published pipeline has them, blocks differ by up to 1.1e-4 and the first
 * attention by 7e-4, steps by 9e-5.
 *
 * The comparisons go in the order of the computation, and the first layer that is off
 * ends the case with its name. Tolerances are the contract's: float32 against float32 in
 * another order of summation. takes: 6 s. */
#include "tests/t_dump.h"

#include <jansson.h>

#include "common/path.h"

typedef struct {
    char folder[512], name[128];
    json_t *json;
    bool rounded; /* the folder's rotary tables */
} golden_case;

static golden_case *cases;
static int case_count;

/* ---- the command ---- */

/* 'text' for a shell, quotes and all. */
static void put_quoted(FILE *f, const char *text)
{
    fputc('\'', f);
    for (; *text; text++)
        if (*text == '\'') fputs("'\\''", f);
        else fputc(*text, f);
    fputc('\'', f);
}

static void put_option(FILE *f, const char *name, const char *value)
{
    fprintf(f, " --%s ", name);
    put_quoted(f, value);
}

static double number(const golden_case *c, const char *key, double otherwise)
{
    json_t *v = json_object_get(c->json, key);
    return json_is_number(v) ? json_number_value(v) : otherwise;
}

static const char *prompt(json_t *prompts, const golden_case *c, const char *key)
{
    return json_string_value(json_array_get(prompts, (size_t)number(c, key, 0)));
}

static void run_case(const golden_case *c, json_t *prompts, const char *dir)
{
    char *command = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&command, &size);
    const char *base = t_format("%s/%s", c->folder, c->name);
    const char *own = t_format("%s/golden.cfg", c->folder);
    fprintf(f, "%s/sluice run --quiet", t_bin());
    if (sl_path_there(own)) put_option(f, "conf", own);
    else if (c->rounded) put_option(f, "conf", "tests/golden/golden.cfg");
    put_option(f, "model", t_format("%s/model", c->folder));
    if (sl_path_there(t_format("%s.png", base))) put_option(f, "image", t_format("%s.png", base));
    if (sl_path_there(t_format("%s.last.png", base)))
        put_option(f, "last-image", t_format("%s.last.png", base));
    put_option(f, "prompt", prompt(prompts, c, "prompt"));
    put_option(f, "negative", prompt(prompts, c, "neg"));
    put_option(f, "noise", t_format("%s.safetensors", base));
    put_option(f, "dump", dir);
    fprintf(f, " --dump-steps --dump-blocks -o %s/out.mp4 --json %s/report.json", dir, dir);
    fprintf(f, " --width %d --height %d --frames %d --steps %d --guidance %.9g",
            (int)number(c, "w", 0), (int)number(c, "h", 0), (int)number(c, "f", 0),
            (int)number(c, "steps", 0), number(c, "cfg", 0));
    if (number(c, "cfg2", 0) > 0) fprintf(f, " --guidance-2 %.9g", number(c, "cfg2", 0));
    if (number(c, "fbcache_threshold", 0) > 0)
        fprintf(f, " --fbcache %.17g", number(c, "fbcache_threshold", 0));
    fclose(f);
    int status = system(command);
    if (status) fail_msg("exit status %d: %s", status, command);
    free(command);
}

/* ---- comparing ---- */

static float *floats_of(const sl_tensor *t)
{
    float *x = malloc((size_t)sl_count(t) * sizeof(float) + 4);
    sl_err err = {0};
    T_OK(sl_to_floats(x, t->data, t->dtype, sl_count(t), &err));
    return x;
}

static const sl_tensor *tensor(const sl_st *st, const char *name)
{
    const sl_st_entry *e = sl_st_find(st, name);
    if (!e) fail_msg("%s lacks %s", sl_st_path(st, 0), name);
    return &e->t;
}

/* Relative L2 of got[0..n) against want; n < 0: counts must be equal. */
static void compare(const char *what, const sl_tensor *got, const sl_tensor *want, int64_t n,
                    double tol)
{
    float *g = floats_of(got), *w = floats_of(want);
    int64_t ng = sl_count(got), nw = sl_count(want);
    if (n < 0 && ng != nw)
        fail_msg("%s: %lld elements, want %lld", what, (long long)ng, (long long)nw);
    double e = t_rel_l2(g, w, n < 0 ? nw : n);
    if (!(e <= tol)) fail_msg("FIRST LAYER OFF: %s: relative L2 %.3g, want <= %.3g", what, e, tol);
    free(g);
    free(w);
}

static void check_text(const golden_case *c, const char *dir)
{
    sl_st *got = t_open_st(t_format("%s/text.safetensors", dir)),
          *want = t_open_st(t_format("%s/text.safetensors", c->folder));
    static const char *const BRANCH[2] = {"cond", "uncond"}, *const KEY[2] = {"prompt", "neg"};
    for (int b = 0; b < (number(c, "cfg", 0) > 1 ? 2 : 1); b++) {
        int i = (int)number(c, KEY[b], 0);
        const sl_tensor *ids = tensor(got, t_format("ids.%s", BRANCH[b])),
                        *ref = tensor(want, t_format("ids.%d", i));
        if (sl_count(ids) != sl_count(ref))
            fail_msg("ids.%s: %lld tokens, want %lld", BRANCH[b], (long long)sl_count(ids),
                     (long long)sl_count(ref));
        for (int64_t k = 0; k < sl_count(ids); k++) {
            int64_t a = 0, r = 0;
            int32_t a32;
            memcpy(&a32, (char *)ids->data + 4 * k, 4);
            a = a32;
            if (ref->dtype == SL_I64) memcpy(&r, (char *)ref->data + 8 * k, 8);
            else memcpy(&a32, (char *)ref->data + 4 * k, 4), r = a32;
            if (a != r)
                fail_msg("ids.%s[%lld] is %lld, want %lld", BRANCH[b], (long long)k, (long long)a,
                         (long long)r);
        }
        const sl_tensor *rows = tensor(got, BRANCH[b]);
        const sl_st_entry *reference = sl_st_find(want, t_format("embed.%d", i));
        if (!reference) continue; /* the golden file has the embeddings of some prompts only */
        const sl_tensor *embed = &reference->t;
        compare(t_format("text %s", BRANCH[b]), rows, embed, sl_count(embed), T_LAYER_TOL);
        float *all = floats_of(rows);
        /* padding rows are zero vectors */
        for (int64_t k = sl_count(embed); k < sl_count(rows); k++) assert_true(all[k] == 0);
        free(all);
    }
    sl_st_close(&got);
    sl_st_close(&want);
}

static void check_image(const sl_st *ref, const char *dir)
{
    if (!sl_path_there(t_format("%s/image.safetensors", dir))) return;
    sl_st *got = t_open_st(t_format("%s/image.safetensors", dir));
    if (sl_st_find(ref, "clip.penultimate"))
        compare("clip", tensor(got, "clip"), tensor(ref, "clip.penultimate"), -1, T_LAYER_TOL);
    if (sl_st_find(ref, "cond.latents"))
        compare("condition (the first latent frame)", tensor(got, "condition"),
                tensor(ref, "cond.latents"), -1, T_LAYER_TOL);
    else if (sl_st_find(ref, "dit.input")) {
        const sl_tensor *input = tensor(ref, "dit.input"), *condition = tensor(got, "condition");
        const int64_t channels = condition->shape[0], before = input->shape[0] - channels;
        sl_tensor flat = sl_view2(input->data, input->dtype, input->shape[0],
                                  sl_count(input) / input->shape[0]),
                  part = sl_rows(&flat, before, channels);
        compare("condition (mask and latent)", condition, &part, -1, T_LAYER_TOL);
    }
    sl_st_close(&got);
}

/* Tokens whose timestep is 0: the reference has a timestep a token then. */
static int64_t kept_tokens(const sl_st *ref)
{
    const sl_st_entry *e = sl_st_find(ref, "dit.timestep");
    int64_t n = 0;
    while (e && n < sl_count(&e->t) && ((const float *)e->t.data)[n] == 0) n++;
    return n;
}

/* time_proj has a row a step, then that of timestep 0; the reference a row a token. */
static void check_two_times(const sl_tensor *got, const sl_tensor *want, int64_t kept)
{
    for (int64_t n = 0; n < want->shape[0]; n++) {
        const sl_tensor mine = sl_rows(got, n < kept ? got->shape[0] - 1 : 0, 1),
                        row = sl_rows(want, n, 1);
        compare(t_format("time_proj of token %lld", (long long)n), &mine, &row, -1, T_LAYER_TOL);
    }
}

/* The first forward's tokens, in order. A tensor that the golden file cut short (48 rows
 * of text) is compared as far as it goes. */
static void check_blocks(const sl_st *ref, const char *dir)
{
    static const char *const FIRST[] = {"time_proj",     "text",          "image",      "patch",
                                        "block.0.attn1", "block.0.attn2", "block.0.ffn"};
    char name[64];
    for (int i = 0;; i++) {
        if (i < 7) snprintf(name, sizeof name, "%s", FIRST[i]);
        else snprintf(name, sizeof name, "block.%d", i - 7);
        const sl_st_entry *e = sl_st_find(ref, t_format("dit.%s", name));
        if (!e && i >= 7) break;
        if (!e) continue;
        sl_st *got = t_open_st(t_format("%s/blocks/%s.safetensors", dir, name));
        const sl_tensor *t = tensor(got, name);
        /* the golden file has it channels first, [dim, T, H/2, W/2] */
        if (!strcmp(name, "patch")) {
            int64_t dim = e->t.shape[0], rows = sl_count(&e->t) / dim;
            float *want = floats_of(&e->t), *turned = malloc((size_t)(dim * rows) * sizeof(float));
            for (int64_t c = 0; c < dim; c++)
                for (int64_t r = 0; r < rows; r++) turned[r * dim + c] = want[c * rows + r];
            sl_tensor v = sl_view2(turned, SL_F32, rows, dim);
            compare(name, t, &v, -1, T_LAYER_TOL);
            free(want);
            free(turned);
            sl_st_close(&got);
            continue;
        }
        if (!strcmp(name, "time_proj") && kept_tokens(ref)) {
            check_two_times(t, &e->t, kept_tokens(ref));
            sl_st_close(&got);
            continue;
        }
        int64_t n = !strcmp(name, "text") || !strcmp(name, "time_proj") ? sl_count(&e->t) : -1;
        compare(name, t, &e->t, n, T_LAYER_TOL);
        sl_st_close(&got);
    }
}

/* kept: latent frame 0 is the picture's here, and something that nobody uses there. */
static void compare_latents(const char *what, const sl_tensor *got, const sl_tensor *want,
                            bool kept)
{
    const int64_t plane = want->shape[2] * want->shape[3], frames = want->shape[1] * plane;
    assert_true(sl_same_shape(got, want));
    float *g = floats_of(got), *w = floats_of(want);
    for (int64_t c = 0; c < want->shape[0] && kept; c++) {
        memset(g + c * frames, 0, sizeof *g * (size_t)plane);
        memset(w + c * frames, 0, sizeof *w * (size_t)plane);
    }
    double e = t_rel_l2(g, w, sl_count(want));
    if (!(e <= T_STEP_TOL))
        fail_msg("FIRST LAYER OFF: %s: relative L2 %.3g, want <= %.3g", what, e, T_STEP_TOL);
    free(g);
    free(w);
}

static void check_steps(const golden_case *c, const sl_st *ref, const char *dir)
{
    sl_st *got = t_open_st(t_format("%s/denoise.safetensors", dir));
    int steps = (int)number(c, "steps", 0), seen = 0;
    compare("noise", tensor(got, "noise"), tensor(ref, "noise"), -1, 0);
    for (int i = 0; i < steps; i++) {
        const sl_st_entry *e = sl_st_find(ref, t_format("step.%d.latents", i));
        if (!e) continue;
        compare_latents(t_format("step %d latents", i), tensor(got, t_format("step.%d.latents", i)),
                        &e->t, sl_st_find(ref, "cond.latents") != NULL);
        seen++;
    }
    if (!seen) fail_msg("%s: the golden file holds no step's latents", c->name);
    if (sl_st_find(ref, "latents.final"))
        compare("final latents", tensor(got, "latents"), tensor(ref, "latents.final"), -1,
                T_STEP_TOL);
    sl_st_close(&got);
}

static void check_cache(const golden_case *c, const char *dir)
{
    json_t *want = json_object_get(c->json, "fbcache"),
           *report = json_load_file(t_format("%s/report.json", dir), 0, NULL);
    static const char *const BRANCH[2] = {"cond", "uncond"};
    assert_non_null(report);
    for (size_t i = 0; i < json_array_size(want); i++) {
        json_t *w = json_array_get(want, i),
               *step = json_array_get(json_object_get(report, "steps"), i / 2);
        json_t *g = json_object_get(step, BRANCH[i % 2]);
        if (json_boolean_value(json_object_get(g, "computed")) !=
            json_boolean_value(json_object_get(w, "compute")))
            fail_msg("step %zu %s: the cache %s, the reference did not", i / 2, BRANCH[i % 2],
                     json_is_true(json_object_get(g, "computed")) ? "computed" : "skipped");
        json_t *diff = json_object_get(w, "diff");
        if (json_is_number(diff))
            assert_true(
                fabs(json_number_value(json_object_get(g, "metric")) / json_number_value(diff) -
                     1) <= 1e-3);
    }
    json_decref(report);
}

static void check_frames(const sl_st *ref, const char *dir)
{
    sl_st *got = t_open_st(t_format("%s/frames.safetensors", dir));
    const sl_tensor *g = tensor(got, "frames"), *w = tensor(ref, "frames.u8");
    const uint8_t *a = g->data, *b = w->data;
    int64_t off = 0, n = sl_count(w);
    if (!sl_same_shape(g, w)) fail_msg("frames: another shape than the reference's");
    for (int64_t i = 0; i < n; i++) off += abs(a[i] - b[i]) > 1;
    if (!(off <= n / 1000))
        fail_msg("frames: %lld of %lld bytes differ by more than 1, want at most 0.1 %%",
                 (long long)off, (long long)n);
    sl_st_close(&got);
}

static void test_case(void **state)
{
    const golden_case *c = *state;
    char dir[256];
    json_t *prompts = json_load_file(t_format("%s/prompts.json", c->folder), 0, NULL);
    assert_non_null(prompts);
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    run_case(c, prompts, dir);
    sl_st *ref = t_open_st(t_format("%s/%s.safetensors", c->folder, c->name));
    check_text(c, dir);
    check_image(ref, dir);
    check_blocks(ref, dir);
    check_cache(c, dir);
    check_steps(c, ref, dir);
    check_frames(ref, dir);
    sl_st_close(&ref);
    json_decref(prompts);
    t_rmdir(dir);
}

/* ---- finding the cases ---- */

/* A table of cosines in `st`, all of whose numbers are bf16's. */
static bool has_rounded_tables(const sl_st *st)
{
    const sl_st_entry *e = sl_st_find(st, "dit.rope.cos");
    if (!e) return false;
    float *x = floats_of(&e->t);
    int64_t i = 0;
    while (i < sl_count(&e->t) && x[i] == sl_from_bf16(sl_to_bf16(x[i]))) i++;
    free(x);
    return i == sl_count(&e->t);
}

static void add_folder(const char *path)
{
    char folder[512]; /* path may be one of t_format's */
    snprintf(folder, sizeof folder, "%s", path);
    DIR *d = opendir(folder);
    struct dirent *e;
    if (!d || !sl_path_there(t_format("%s/model/model_index.json", folder)) ||
        !sl_path_there(t_format("%s/model/vae/diffusion_pytorch_model.safetensors", folder)) ||
        !sl_path_there(t_format("%s/model/tokenizer/spiece.model", folder))) {
        if (d) closedir(d);
        return;
    }
    const int first = case_count;
    bool rounded = false;
    while ((e = readdir(d))) {
        size_t n = strlen(e->d_name);
        if (n < 6 || strcmp(e->d_name + n - 5, ".json") || !strcmp(e->d_name, "prompts.json"))
            continue;
        json_t *j = json_load_file(t_format("%s/%s", folder, e->d_name), 0, NULL);
        if (!j || !json_object_get(j, "steps")) {
            json_decref(j);
            continue;
        }
        cases = realloc(cases, (size_t)(case_count + 1) * sizeof *cases);
        golden_case *c = &cases[case_count++];
        snprintf(c->folder, sizeof c->folder, "%s", folder);
        snprintf(c->name, sizeof c->name, "%.*s", (int)(n - 5), e->d_name);
        c->json = j;
        sl_st *figures = t_open_st(t_format("%s/%s.safetensors", folder, c->name));
        rounded |= has_rounded_tables(figures);
        sl_st_close(&figures);
    }
    for (int i = first; i < case_count; i++) cases[i].rounded = rounded;
    closedir(d);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) add_folder(argv[i]);
    if (argc == 1) {
        DIR *d = opendir("tests/golden");
        struct dirent *e;
        while (d && (e = readdir(d)))
            if (*e->d_name != '.') add_folder(t_format("tests/golden/%s", e->d_name));
        if (d) closedir(d);
    }
    if (!case_count) {
        fprintf(stderr, "no golden case found\n");
        return 1;
    }
    struct CMUnitTest *tests = calloc((size_t)case_count, sizeof *tests);
    for (int i = 0; i < case_count; i++)
        tests[i] = (struct CMUnitTest){cases[i].name, test_case, NULL, NULL, &cases[i]};
    int failed = _cmocka_run_group_tests("run_golden", tests, (size_t)case_count, NULL, NULL);
    for (int i = 0; i < case_count; i++) json_decref(cases[i].json);
    free(cases);
    free(tests);
    return failed;
}
