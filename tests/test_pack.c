/* test_pack - `sluice pack`: what the copy holds, that it runs to the same frames, and
 * that nothing is left of one that failed. takes: 3 s. */
#include "tests/t.h"
#include "tests/t_run.h"

#include <sys/resource.h>

#include "common/model.h"
#include "common/safetensors.h"
#include "stages/job/components.h"

static sl_err err;
static t_run r;
static char packed[400], floats[400]; /* the model packed; a copy of it in float32 */

static int setup(void **state)
{
    (void)state;
    t_run_open(&r);
    snprintf(packed, sizeof packed, "%s/packed", r.base);
    snprintf(floats, sizeof floats, "%s/floats", r.base);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    t_run_close(&r);
    return 0;
}

/* `sluice pack --model FROM -o TO MORE`; the exit status. */
static int pack(const char *from, const char *to, const char *more, const char *value)
{
    char *const args[] = {(char *)"sluice", (char *)"pack", (char *)"--model",
                          (char *)from,     (char *)"-o",   (char *)to,
                          (char *)more,     (char *)value,  NULL};
    t_run_start(&r, args);
    return t_run_end(&r);
}

static sl_st *open_part(const char *model, const char *part, const char *stem)
{
    sl_st *st = NULL;
    T_OK(sl_st_open_dir(&st, t_format("%s/%s", model, part), stem, &err));
    return st;
}

/* One component of T_MODEL as float32 in one file of `floats`; the transformer with the
 * tensors that published files have and nobody uses. */
static void float_part(const char *part, const char *stem)
{
    sl_st *st = open_part(T_MODEL, part, stem);
    sl_st_writer *w = NULL;
    assert_int_equal(system(t_format("rm %s/%s/*.safetensors*", floats, part)), 0);
    T_OK(sl_stw_open(&w, t_format("%s/%s/%s.safetensors", floats, part, stem), &err));
    for (int i = 0; i < sl_st_size(st); i++) {
        const sl_st_entry *e = sl_st_at(st, i);
        T_OK(sl_stw_declare(w, e->name, SL_F32, e->t.rank, e->t.shape, &err));
    }
    static const float unused[256];
    for (int i = 0; i < 3 && !strcmp(part, "transformer"); i++) {
        const char *name = t_format("blocks.%d.attn2.norm_added_q.weight", i);
        T_OK(sl_stw_declare(w, name, SL_F32, 1, (int64_t[]){256}, &err));
    }
    for (int i = 0; i < 3 && !strcmp(part, "transformer"); i++)
        T_OK(sl_stw_write(w, t_format("blocks.%d.attn2.norm_added_q.weight", i), unused, 0,
                          sizeof unused, &err));
    for (int i = 0; i < sl_st_size(st); i++) {
        const sl_st_entry *e = sl_st_at(st, i);
        float *x = malloc((size_t)sl_count(&e->t) * 4);
        T_OK(sl_to_floats(x, e->t.data, e->t.dtype, sl_count(&e->t), &err));
        T_OK(sl_stw_write(w, e->name, x, 0, (size_t)sl_count(&e->t) * 4, &err));
        free(x);
    }
    T_OK(sl_stw_finish(&w, &err));
    sl_st_close(&st);
}

static void make_floats(void)
{
    assert_int_equal(system(t_format("cp -r %s %s && chmod -R u+w %s", T_MODEL, floats, floats)),
                     0);
    float_part("transformer", "diffusion_pytorch_model");
    float_part("text_encoder", "model");
}

static const char *const PARTS[][2] = {{"text_encoder", "model"},
                                       {"image_encoder", "model"},
                                       {"transformer", "diffusion_pytorch_model"},
                                       {"vae", "diffusion_pytorch_model"}};

/* ---- what the copy holds ---- */

static void matrices_are_bf16_and_what_the_reference_keeps_is_float(void **state)
{
    static const char *const KEPT[] = {"time_embedder", "scale_shift_table", "norm2", "norm1"};
    assert_int_equal(pack(T_MODEL, packed, NULL, NULL), 0);
    sl_st *from = open_part(T_MODEL, "transformer", "diffusion_pytorch_model"),
          *to = open_part(packed, "transformer", "diffusion_pytorch_model");
    assert_int_equal(sl_st_shards(to), 1);
    assert_int_equal(sl_st_size(to), sl_st_size(from));
    for (int i = 0; i < sl_st_size(to); i++) {
        const sl_st_entry *e = sl_st_at(to, i), *f = sl_st_find(from, e->name);
        bool kept = false;
        for (int k = 0; k < 4; k++) kept |= strstr(e->name, KEPT[k]) != NULL;
        assert_non_null(f);
        assert_true(sl_same_shape(&e->t, &f->t));
        if (e->t.dtype != (kept ? SL_F32 : SL_BF16)) fail_msg("%s is %s", e->name, e->dtype);
        if (!kept) assert_memory_equal(e->t.data, f->t.data, sl_bytes(&e->t));
        for (int64_t n = sl_count(&e->t), at = 0; kept && at < n; at++) {
            sl_bf16 stored;
            memcpy(&stored, (const char *)f->t.data + at * 2, 2);
            assert_true(((const float *)e->t.data)[at] == sl_from_bf16(stored));
        }
    }
    sl_st_close(&from);
    sl_st_close(&to);
    /* CLIP and VAE: every tensor as it was stored, those too that no network here asks
     * for */
    for (int p = 1; p < 4; p += 2) {
        from = open_part(T_MODEL, PARTS[p][0], PARTS[p][1]),
        to = open_part(packed, PARTS[p][0], PARTS[p][1]);
        assert_int_equal(sl_st_size(to), sl_st_size(from));
        for (int i = 0; i < sl_st_size(to); i++) {
            const sl_st_entry *e = sl_st_at(to, i), *f = sl_st_at(from, i);
            assert_true(!strcmp(e->name, f->name) && e->t.dtype == f->t.dtype &&
                        sl_same_shape(&e->t, &f->t));
            assert_memory_equal(e->t.data, f->t.data, sl_bytes(&e->t));
        }
        sl_st_close(&from);
        sl_st_close(&to);
    }
    static const char *const OTHERS[] = {"model_index.json",
                                         "transformer/config.json",
                                         "text_encoder/config.json",
                                         "tokenizer/spiece.model",
                                         "image_processor/preprocessor_config.json",
                                         "scheduler/scheduler_config.json"};
    for (int i = 0; i < 6; i++) {
        char a[700], b[700];
        snprintf(a, sizeof a, "%s/%s", T_MODEL, OTHERS[i]);
        snprintf(b, sizeof b, "%s/%s", packed, OTHERS[i]);
        if (!t_same_file(a, b)) fail_msg("%s differs", OTHERS[i]);
    }
    assert_int_equal(t_count_files(t_format("%s/transformer", packed), "index"), 0);
    (void)state;
}

/* Without the tensors of no use. */
static void a_float32_source_gives_the_same_files(void **state)
{
    char second[420];
    snprintf(second, sizeof second, "%s-2", packed);
    make_floats();
    assert_int_equal(pack(T_MODEL, packed, NULL, NULL), 0);
    assert_int_equal(pack(floats, second, "--quiet", NULL), 0);
    for (int p = 0; p < 4; p++) {
        char a[700], b[700];
        snprintf(a, sizeof a, "%s/%s/%s.safetensors", packed, PARTS[p][0], PARTS[p][1]);
        snprintf(b, sizeof b, "%s/%s/%s.safetensors", second, PARTS[p][0], PARTS[p][1]);
        if (!t_same_file(a, b)) fail_msg("%s differs", PARTS[p][0]);
    }
    (void)state;
}

static void tensors_lie_in_the_order_of_the_network(void **state)
{
    static const char *const ORDER[] = {"patch_embedding.weight",
                                        "condition_embedder.time_embedder.linear_1.weight",
                                        "condition_embedder.time_proj.weight",
                                        "blocks.0.attn1.to_q.weight",
                                        "blocks.0.attn1.to_k.weight",
                                        "blocks.0.ffn.net.2.weight",
                                        "blocks.1.attn1.to_q.weight",
                                        "blocks.2.ffn.net.2.weight",
                                        "scale_shift_table",
                                        "proj_out.weight"};
    assert_int_equal(pack(T_MODEL, packed, NULL, NULL), 0);
    sl_st *st = open_part(packed, "transformer", "diffusion_pytorch_model");
    const char *before = NULL;
    for (int i = 0; i < 10; i++) {
        const sl_st_entry *e = sl_st_find(st, ORDER[i]);
        assert_non_null(e);
        if (before && (const char *)e->t.data <= before)
            fail_msg("%s lies before %s", ORDER[i], ORDER[i - 1]);
        before = e->t.data;
    }
    assert_string_equal(sl_st_metadata(st, "format"), "pt"); /* transformers wants to know */
    assert_string_equal(sl_st_metadata(st, "packed_by"), "sluice pack");
    assert_string_equal(sl_st_metadata(st, "packed_dtype"), "bf16");
    sl_st_close(&st);
    for (int p = 0; p < 4; p++) {
        size_t n;
        char *bytes =
            t_read(t_format("%s/%s/%s.safetensors", packed, PARTS[p][0], PARTS[p][1]), &n);
        uint64_t header = 0;
        for (int i = 7; i >= 0; i--) header = header << 8 | (unsigned char)bytes[i];
        assert_int_equal((8 + header) % 4096, 0);
        assert_true(bytes[8] == '{' && bytes[8 + header - 1] == ' ' && 8 + header < n);
        free(bytes);
    }
    (void)state;
}

static void float32_when_asked_for(void **state)
{
    assert_int_equal(pack(T_MODEL, packed, "--dtype", "f32"), 0);
    for (int p = 0; p < 3; p += 2) {
        sl_st *st = open_part(packed, PARTS[p][0], PARTS[p][1]);
        for (int i = 0; i < sl_st_size(st); i++) assert_int_equal(sl_st_at(st, i)->t.dtype, SL_F32);
        sl_st_close(&st);
    }
    (void)state;
}

static void its_own_defaults_come_along(void **state)
{
    assert_int_equal(system(t_format("cp -r %s %s && chmod -R u+w %s", T_MODEL, floats, floats)),
                     0);
    assert_int_equal(pack(floats, packed, NULL, NULL), 0);
    assert_true(access(t_format("%s/sluice.json", packed), F_OK) != 0);
    t_rmdir(packed);
    t_write(t_format("%s/sluice.json", floats), "{\"steps\": 2,\n \"frames\": 9}");
    assert_int_equal(pack(floats, packed, NULL, NULL), 0);
    assert_true(
        t_same_file(t_format("%s/sluice.json", floats), t_format("%s/sluice.json", packed)));
    (void)state;
}

/* ---- running it ---- */

static void run_model(const char *model, const char *name)
{
    char video[500];
    snprintf(video, sizeof video, "%s/%s.mp4", r.out, name);
    char *const args[] = {(char *)"sluice",   (char *)"run",
                          (char *)"--model",  (char *)model,
                          (char *)"--image",  (char *)T_IMAGE,
                          (char *)"--prompt", (char *)"a fox",
                          (char *)"--width",  (char *)"96",
                          (char *)"--height", (char *)"64",
                          (char *)"--frames", (char *)"9",
                          (char *)"--steps",  (char *)"2",
                          (char *)"--seed",   (char *)"3",
                          (char *)"--dump",   (char *)t_format("%s/%s", r.out, name),
                          (char *)"-o",       video,
                          (char *)"--quiet",  NULL};
    t_run_start(&r, args);
    t_run_ends(&r, 0);
}

static void the_copy_gives_the_same_frames(void **state)
{
    char a[500], b[500];
    assert_int_equal(pack(T_MODEL, packed, NULL, NULL), 0);
    run_model(T_MODEL, "stored");
    run_model(packed, "packed");
    snprintf(a, sizeof a, "%s/stored/frames.safetensors", r.out);
    snprintf(b, sizeof b, "%s/packed/frames.safetensors", r.out);
    assert_true(t_same_file(a, b));
    t_run_nothing_left(&r, 0);
    (void)state;
}

/* ---- random weights ---- */

#define BIG "tests/golden/wan2.1-i2v-14b-720p-configs"

static int pack_random(const char *from, const char *to, const char *first, const char *second)
{
    char *args[T_ARGS] = {(char *)"sluice", (char *)"pack", (char *)"--model", (char *)from,
                          (char *)"-o",     (char *)to,     (char *)"--random"};
    int n = 7;
    for (int i = 0; i < 2; i++) {
        const char *name = i ? second : first;
        if (!name) continue;
        args[n++] = (char *)"--component";
        args[n++] = (char *)name;
    }
    t_run_start(&r, args);
    return t_run_end(&r);
}

/* The model's configurations and tokenizer alone give a checkpoint of the same tensors,
 * and a video. */
static void configurations_alone_give_random_weights(void **state)
{
    char plain[420];
    snprintf(plain, sizeof plain, "%s-stored", packed);
    assert_int_equal(system(t_format("cp -r %s %s && chmod -R u+w %s && rm %s/*/*.safetensors*",
                                     T_MODEL, floats, floats, floats)),
                     0);
    assert_int_equal(pack(T_MODEL, plain, NULL, NULL), 0);
    assert_int_equal(pack_random(floats, packed, NULL, NULL), 0);
    for (int p = 0; p < 4; p++) {
        sl_st *a = open_part(packed, PARTS[p][0], PARTS[p][1]),
              *b = open_part(plain, PARTS[p][0], PARTS[p][1]);
        for (int i = 0; i < sl_st_size(a); i++) {
            const sl_st_entry *e = sl_st_at(a, i), *f = sl_st_find(b, e->name);
            const int64_t n = sl_count(&e->t);
            void *want = malloc(sl_bytes(&e->t));
            assert_non_null(want);
            if (f && !sl_same_shape(&e->t, &f->t)) fail_msg("%s has another shape", e->name);
            if (p == 2 && (!f || e->t.dtype != f->t.dtype))
                fail_msg("%s is %s, want it as when it is packed", e->name, e->dtype);
            sl_weight_random(want, e->t.dtype, 1, e->name, &e->t, 0, n);
            assert_memory_equal(e->t.data, want, sl_bytes(&e->t));
            free(want);
        }
        assert_string_equal(sl_st_metadata(a, "packed_by"), "sluice pack --random");
        sl_st_close(&a);
        sl_st_close(&b);
    }
    run_model(packed, "random");
    t_run_nothing_left(&r, 0);
    (void)state;
}

static void chosen_components_only(void **state)
{
    sl_model model;
    assert_int_equal(pack_random(T_MODEL, packed, "vae", "image_encoder"), 0);
    for (int p = 0; p < 4; p++) {
        bool there =
            !access(t_format("%s/%s/%s.safetensors", packed, PARTS[p][0], PARTS[p][1]), F_OK);
        if (there != (p % 2 == 1))
            fail_msg("%s: %s", PARTS[p][0], there ? "is there" : "is not there");
    }
    T_OK(sl_model_open(&model, packed, &err)); /* all configurations */
    (void)state;
}

static void the_large_model_has_its_configurations(void **state)
{
    sl_model m;
    sl_ctx plan;
    sl_loader *l = NULL;
    T_OK(sl_model_open(&m, BIG, &err));
    assert_true(m.dit[0].layers == 40 && m.dit[0].dim == 5120 && m.dit[0].ffn_dim == 13824 &&
                m.dit[0].image_dim == 1280);
    assert_true(m.umt5.vocab == 256384 && m.clip.layers == 32 && m.vae.base == 96 &&
                m.family.clip && m.family.experts == 1);
    T_OK(sl_ctx_open(&plan, &sl_ops_plan, 0, &err));
    /* spec 1.9, without what nobody asks for */
    static const int64_t MILLIONS[] = {5680, 611, 16394, 126};
    for (int i = 0; i < 4; i++) {
        const sl_component *c = sl_component_at(&m, i);
        T_OK(sl_loader_plan(&l, &plan, c->name, &err));
        c->load(&m, l);
        T_OK(sl_loader_finish(l, &err));
        assert_string_equal(c->name, PARTS[i][0]);
        assert_int_equal(sl_loader_parameters(l) / 1000000, MILLIONS[i]);
        sl_loader_close(&l);
    }
    sl_ctx_close(&plan);
    assert_int_equal(pack_random(BIG, packed, "trans", NULL), 2);
    if (!t_run_said(&r, "pack: --component is trans, want one of text_encoder, image_encoder, "
                        "transformer, vae"))
        fail_msg("said: %s", r.text);
    assert_true(access(packed, F_OK) != 0);
    (void)state;
}

/* To the parameter: spec 9.1. */
static void the_5b_model_has_its_configurations(void **state)
{
    static const struct {
        const char *name;
        int64_t parameters;
    } PARTS_5B[] = {{"transformer", 4999787712}, {"vae", 704688668}};
    sl_model m;
    sl_ctx plan;
    sl_loader *l = NULL;
    (void)state;
    T_OK(sl_model_open(&m, "tests/golden/wan2.2-ti2v-5b-configs", &err));
    assert_true(m.dit[0].layers == 30 && m.dit[0].dim == 3072 && m.vae.decoder_base == 256);
    T_OK(sl_ctx_open(&plan, &sl_ops_plan, 0, &err));
    for (size_t i = 0; i < sizeof PARTS_5B / sizeof *PARTS_5B; i++) {
        const sl_component *c = NULL;
        for (int k = 0; (c = sl_component_at(&m, k)) && strcmp(c->name, PARTS_5B[i].name); k++)
            continue;
        assert_non_null(c);
        T_OK(sl_loader_plan(&l, &plan, c->name, &err));
        c->load(&m, l);
        T_OK(sl_loader_finish(l, &err));
        assert_true(sl_loader_parameters(l) == PARTS_5B[i].parameters);
        sl_loader_close(&l);
    }
    sl_ctx_close(&plan);
}

/* ---- refusals and failures ---- */

static void refuses(const char *from, const char *to, const char *why)
{
    if (pack(from, to, NULL, NULL) != 2) fail_msg("%s -> %s: not refused", from, to);
    if (!t_run_said(&r, why) || t_run_count(&r, "\n") != 1)
        fail_msg("said \"%s\", want one line with \"%s\"", r.text, why);
}

static void it_never_writes_over_anything(void **state)
{
    assert_int_equal(system(t_format("cp -r %s %s && chmod -R u+w %s", T_MODEL, floats, floats)),
                     0);
    refuses(floats, floats, "is the checkpoint itself");
    refuses(floats, t_format("%s/", floats), "is the checkpoint itself");
    refuses(floats, t_format("%s/../floats", floats), "is the checkpoint itself");
    refuses(floats, t_format("%s/vae/packed", floats), "lies in the checkpoint itself");
    (void)state;
}

static void what_is_there_stays(void **state)
{
    char file[500];
    snprintf(file, sizeof file, "%s/precious", r.out);
    t_write(file, "mine");
    refuses(T_MODEL, r.out, "is there already, want a new name or an empty folder");
    refuses(T_MODEL, file, "is there already");
    refuses(T_MODEL, t_format("%s/no/where", r.base), "its parent: No such file");
    refuses(t_format("%s/none", r.base), packed, "No such file or directory");
    assert_int_equal(mkdir(packed, 0700), 0);
    assert_int_equal(pack(T_MODEL, packed, NULL, NULL), 0); /* an empty folder may take it */
    refuses(T_MODEL, packed, "is there already");
    assert_int_equal(t_count_files(r.out, NULL), 1);
    (void)state;
}

static void usage_is_said(void **state)
{
    static const char *const BAD[][3] = {
        {"--dtype", "f16", "--dtype is f16, want bf16 or f32"},
        {"--nonsense", NULL, "option --nonsense is not known"},
        {"--component", "vae", "--component vae goes with --random"},
        {"word", NULL, "\"word\" is no option"},
        {"--dtype", NULL, "option --dtype lacks its value"}};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(pack(T_MODEL, packed, BAD[i][0], BAD[i][1]), 2);
        if (!t_run_said(&r, BAD[i][2])) fail_msg("said \"%s\", want \"%s\"", r.text, BAD[i][2]);
    }
    assert_true(access(packed, F_OK) != 0);
    (void)state;
}

/* No file may grow beyond a megabyte: as on a full disk, the transformer cannot be
 * written. */
static void a_failed_copy_leaves_nothing(void **state)
{
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 1 << 20;
    setrlimit(RLIMIT_FSIZE, &small);
    int status = pack(T_MODEL, packed, NULL, NULL);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(status, 1);
    if (!t_run_said(&r, "cannot be written: File too large")) fail_msg("said: %s", r.text);
    assert_int_equal(t_count_files(r.base, "packed"), 0);
    (void)state;
}

/* What a packer left that was killed goes with the next one of that name; a living one's
 * stays. */
static void leftovers_of_the_dead_go(void **state)
{
    char dead[440], alive[440];
    pid_t pid = fork();
    if (!pid) _exit(0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    snprintf(dead, sizeof dead, "%s.tmp-%d", packed, (int)pid);
    snprintf(alive, sizeof alive, "%s.tmp-%d", packed, (int)getpid());
    assert_int_equal(mkdir(dead, 0700) | mkdir(alive, 0700), 0);
    assert_int_equal(pack(T_MODEL, packed, NULL, NULL), 0);
    assert_true(access(dead, F_OK) != 0 && access(alive, F_OK) == 0);
    (void)state;
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {T(matrices_are_bf16_and_what_the_reference_keeps_is_float),
                                       T(a_float32_source_gives_the_same_files),
                                       T(tensors_lie_in_the_order_of_the_network),
                                       T(float32_when_asked_for),
                                       T(its_own_defaults_come_along),
                                       T(the_copy_gives_the_same_frames),
                                       T(configurations_alone_give_random_weights),
                                       T(chosen_components_only),
                                       T(the_large_model_has_its_configurations),
                                       T(the_5b_model_has_its_configurations),
                                       T(it_never_writes_over_anything),
                                       T(what_is_there_stays),
                                       T(usage_is_said),
                                       T(a_failed_copy_leaves_nothing),
                                       T(leftovers_of_the_dead_go)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
