/* test_hostile.c - bad input is harmless: for each case one clear line, the right exit
 * status, and nothing left behind.
 *
 * takes: 14 s. limit: 240 s */
#include "t_hostile.h"

#include <sys/mount.h>

/* ---- pictures ---- */

/* A PNG whose header says 60000 x 60000; its checksums are right. */
static void put_bomb(const char *path)
{
    static const uint8_t PNG[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n', 0,    0, 0,    13,
                                  'I',  'H', 'D', 'R', 0,    0,    0xea, 0x60, 0,    0, 0xea, 0x60,
                                  8,    2,   0,   0,   0,    0,    0,    0,    0,    0, 0,    0,
                                  0,    'I', 'D', 'A', 'T',  0x35, 0xaf, 0x06, 0x1e, 0, 0,    0,
                                  0,    'I', 'E', 'N', 'D',  0xae, 0x42, 0x60, 0x82};
    uint8_t bytes[sizeof PNG];
    uint32_t crc = ~0u;
    memcpy(bytes, PNG, sizeof PNG);
    for (int i = 12; i < 29; i++) {
        crc ^= bytes[i];
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    crc = ~crc;
    for (int i = 0; i < 4; i++) bytes[29 + i] = (uint8_t)(crc >> (24 - 8 * i));
    put_file(path, bytes, sizeof bytes);
}

static void test_pictures(void **unused)
{
    size_t n;
    char *png = get_file(GOLDEN_PICTURE, &n);
    const char *bad = at("bad.png");
    (void)unused;
    REFUSED(2, with("--image", at("none.png")), "--image", "none.png", "No such file or directory");
    REFUSED(2, with("--image", root), "--image", "is a directory, want a file");
    mkfifo(at("pipe.png"), 0600);
    REFUSED(2, with("--image", at("pipe.png")), "is a pipe that nobody writes to, want a file");
    /* one who takes longer than that to begin has come */
    FILE *late = popen(f("exec 3>%s; sleep 4; cat %s >&3", at("pipe.png"), GOLDEN_PICTURE), "r");
    WORKS(with("--image", at("pipe.png")), 1);
    pclose(late); /* nothing_left has waited for it */
    REFUSED(2, with("--image", "/dev/zero"), "--image", "is a device or socket, want a file");
    REFUSED(2, with("--image", ""), "--image is empty, want FILE");
    REFUSED(2, with("--image", NULL), "no picture", "wants --image FILE");
    put_file(bad, "", 0);
    REFUSED(2, with("--image", bad), "--image", "bad.png");
    put_file(bad, png, 1);
    REFUSED(2, with("--image", bad), "--image", "bad.png");
    put_file(bad, png, 8);
    REFUSED(2, with("--image", bad), "--image", "bad.png");
    put_file(bad, png, n / 2);
    REFUSED(2, with("--image", bad), "--image", "bad.png");
    put_text(bad, "This is a text, and no picture at all; it goes on for a while, so that it has "
                  "the length of one.\n");
    REFUSED(2, with("--image", bad), "--image", "bad.png");
    put_bomb(bad);
    REFUSED(2, with("--image", bad), "--image", "bad.png", "60000");
    REFUSED(2, with("--last-image", GOLDEN_PICTURE), "--last-image is given, but",
            "takes a first picture only");
    REFUSED(2, with("--image", at("line\nbreak.png")), "line?break.png");
    free(png);
}

/* What is read of the user's files is read before the job begins: afterwards they may go. */
static void test_a_picture_replaced_after_the_start(void **unused)
{
    size_t n;
    char *png = get_file(GOLDEN_PICTURE, &n), names[1024];
    command c = with("--image", at("mine.png"));
    (void)unused;
    for (int gone = 0; gone < 2; gone++) {
        put_file(at("mine.png"), png, n);
        pid_t pid = start(&c);
        /* its run directory holds the job's folder, whose last file is job.json */
        for (int i = 0; i < 5000; i++) {
            const char *run = list_dir(at("tmp"), names, sizeof names)
                                  ? f("%s/tmp/%.*s/spool", root, (int)strcspn(names, " "), names)
                                  : "";
            if (*run && list_dir(run, names, sizeof names) &&
                !access(f("%s/%.*s/job.json", run, (int)strcspn(names, " "), names), R_OK))
                break;
            usleep(1000);
        }
        if (gone) unlink(at("mine.png"));
        else put_text(at("mine.png"), "no longer a picture");
        int got = finish(&c, pid);
        char *err = get_file(at("stderr"), &n);
        if (got || *err) fail_msg("exit status %d: %s", got, err);
        n = 0;
        free(err);
        nothing_left(&c, 1);
        empty_dir(at("out"));
        free(png);
        png = get_file(GOLDEN_PICTURE, &n);
    }
    free(png);
}

/* ---- numbers and options ---- */

static void test_sizes(void **unused)
{
    (void)unused;
    REFUSED(2, with("--frames", "80"), "frames is 80, want 4k + 1 (nearest: 81)");
    REFUSED(2, with("--frames", "0"), "frames is 0, want 4k + 1 (nearest: 1)");
    REFUSED(2, with("--width", "100"),
            "size is 100x32, want width and height that are multiples of 16 (nearest: 96x32)");
    REFUSED(2, with("--height", "0"), "--width is 32 and --height 0, want both or neither");
    REFUSED(2, with("--height", NULL), "--width is 32 and --height 0, want both or neither");
    REFUSED(2, with("--width", NULL), "--width is 0 and --height 32, want both or neither");
    REFUSED(2, with("--width", "-32"), "width is -32, want 16 to 8192 (pixels)");
    REFUSED(2, with("--width", "2147483647"), "width is 2147483647, want 16 to 8192 (pixels)");
    REFUSED(2, with("--height", "8208"), "height is 8208, want 16 to 8192 (pixels)");
    REFUSED(2, with("--max-area", "4096"), "--max-area is given beside --width and --height");
    REFUSED(2, with("--max-area", "0"), "--max-area is given beside --width and --height");
    REFUSED(2, with("--steps", "0"), "steps is 0, want 1 to 1000 (sampler steps)");
    REFUSED(2, with("--crf", "52"), "crf is 52, want 0 to 51");
    REFUSED(2, with("--fps", "0"), "fps is 0, want 1 to 240");
    REFUSED(2, with("--shift", "0"), "shift is 0, want 0.01 to 100");
    REFUSED(2, with("--fbcache", "10.5"), "fbcache is 10.5, want 0 to 10 (First Block Cache");
    REFUSED(2, with("--fbcache", "-1"), "fbcache is -1, want 0 to 10");
    REFUSED(2, with("--sampler", "ddim"), "sampler is ddim, want unipc, euler or lightx2v");
    command c = with("--width", NULL);
    set(&c, "--height", NULL);
    set(&c, "--max-area", "99");
    REFUSED(2, c, "--max-area is 99, want 256 to 67108864 pixels");
    set(&c, "--max-area", "0");
    REFUSED(2, c, "--max-area is 0, want 256 to 67108864 pixels");
    c = with("--frames", "4097");
    set(&c, "--conf", at("small.cfg"));
    put_text(at("small.cfg"), "limits: { frames = 5; pixels = 1024L; };");
    REFUSED(2, c, "4097 frames has an axis of more than 1024 tokens (rope_max_seq_len)");
    set(&c, "--frames", "9");
    REFUSED(2, c, "frames is 9, want at most 5 (limits.frames in", "small.cfg");
    set(&c, "--frames", "5");
    set(&c, "--width", "48");
    REFUSED(2, c, "size 48x32 has 1536 pixels, want at most 1024 (limits.pixels in", "small.cfg");
}

/* ---- LoRA ---- */

#define LORA "tests/golden/lora-i2v/"

static void test_loras(void **unused)
{
    static const int64_t DOWN[2] = {2, 256}, UP[2] = {256, 2}, WIDE[2] = {2, 5120};
    float numbers[2 * 5120] = {0};
    const char *const NAMES[2] = {"blocks.0.attn1.to_q.lora_A.weight",
                                  "blocks.0.attn1.to_q.lora_B.weight"},
                      *const FAR[2] = {"blocks.9.attn1.to_q.lora_A.weight",
                                       "blocks.9.attn1.to_q.lora_B.weight"};
    const sl_tensor pair[2] = {sl_view(numbers, SL_F32, 2, DOWN), sl_view(numbers, SL_F32, 2, UP)},
                    wide[2] = {sl_view(numbers, SL_F32, 2, WIDE), sl_view(numbers, SL_F32, 2, UP)};
    const sl_tensor four[4] = {pair[0], pair[1], pair[0], pair[1]};
    const char *const BOTH[4] = {NAMES[0], NAMES[1], FAR[0], FAR[1]};
    sl_err err = {0};
    (void)unused;
    REFUSED(2, with("--lora", at("none")), "--lora: ", "No such file or directory");
    REFUSED(2, with("--lora", root), "--lora: ", "is no regular file");
    REFUSED(2, with("--lora", ""), "--lora: LoRA \"\" names no file, want FILE[:STRENGTH]");
    REFUSED(2, with("--lora", LORA "a-peft.safetensors:1e9"), "has strength 1e9, want -100 to 100");
    REFUSED(2, with("--lora", "tests/golden/tiny-i2v/i2v-96x64x9.safetensors"),
            "is of a LoRA for a Wan transformer");
    REFUSED(2, with("--lora-2", LORA "a-peft.safetensors"),
            "--lora-2: ", "has one transformer, want --lora");
    T_OK(sl_st_save(at("x.safetensors"), 2, NAMES, wide, &err));
    REFUSED(2, with("--lora", at("x.safetensors")),
            "x.safetensors: the factors of "
            "blocks.0.attn1.to_q.weight make [256, 5120], the model has [256, 256]");
    T_OK(sl_st_save(at("x.safetensors"), 4, BOTH, four, &err));
    REFUSED(2, with("--lora", at("x.safetensors")), FAR[0], "has no place in this model");
    /* left out, the rest runs, and it is told */
    command c = with("--lora", at("x.safetensors"));
    add(&c, "--lora-lenient");
    pid_t pid = start(&c);
    int got = finish(&c, pid);
    size_t n;
    char *said = get_file(at("stderr"), &n);
    if (got || !strstr(said, "--lora: 2 tensors have no place in") || !strstr(said, FAR[0]))
        fail_msg("exit status %d: %s", got, said);
    free(said);
    empty_dir(at("out"));
    numbers[3] = NAN;
    T_OK(sl_st_save(at("x.safetensors"), 2, NAMES, pair, &err));
    REFUSED(2, with("--lora", at("x.safetensors")), "has NaN or infinity at element 3");
    numbers[3] = 0;
    T_OK(sl_st_save(at("x.safetensors"), 2, NAMES, pair, &err));
    assert_int_equal(truncate(at("x.safetensors"), 700), 0);
    REFUSED(2, with("--lora", at("x.safetensors")), "--lora: ", "x.safetensors");
    unlink(at("x.safetensors"));
}

static void test_options(void **unused)
{
    static const char *const NUMBERS[] = {"1e",    "nan", " 5", "0x10", "99999999999999999999999",
                                          "",      "5 ",  "-",  "5,5",  "inf",
                                          "1e999", "٣"};
    command c;
    (void)unused;
    for (size_t i = 0; i < sizeof NUMBERS / sizeof *NUMBERS; i++) {
        REFUSED(2, with("--steps", NUMBERS[i]),
                f("--steps is \"%s\", want an integer", NUMBERS[i]));
        REFUSED(2, with("--seed", NUMBERS[i]),
                f("--seed is \"%s\", want an integer from 0 to 18446744073709551615", NUMBERS[i]));
        if (i != 4)
            REFUSED(2, with("--guidance", NUMBERS[i]),
                    f("--guidance is \"%s\", want a number", NUMBERS[i]));
    }
    REFUSED(2, with("--steps", "99999999999"), "--steps is \"99999999999\", want an integer");
    REFUSED(2, with("--seed", "-2"), "--seed is \"-2\", want an integer from 0");
    REFUSED(2, with("--seed", "18446744073709551616"), "--seed is \"18446744073709551616\"");
    REFUSED(2, with("--guidance", "99999999999999999999999"), "guidance is 1e+23, want 0 to 1000");
    REFUSED(2, with("--stpes", "5"), "unknown option --stpes, did you mean --steps?");
    REFUSED(2, with("--fb-cache", "5"), "unknown option --fb-cache, did you mean --fbcache?");
    REFUSED(2, with("--xyzzyxyzzy", "5"), "unknown option --xyzzyxyzzy (sluice help lists them)");
    REFUSED(2, with("--from", "text"), "--from belongs to sluice replay");
    REFUSED(2, with("--dump-steps=1", ""), "--dump-steps takes no value");
    c = job();
    add(&c, "--steps");
    REFUSED(2, c, "--steps wants a value: N (sampler steps (default: the checkpoint's, else 50))");
    c = job();
    add(&c, "stray");
    REFUSED(2, c, "\"stray\" is no option");
    c = job();
    add(&c, "--dump-steps");
    REFUSED(2, c, "--dump-steps wants --dump DIR");
    REFUSED(2, with("--device", "cuda:63"), "device cuda:63 (stage text): ");
    REFUSED(2, with("--device", "tpu"), "--device is tpu, want cpu or cuda:N");
    REFUSED(2, with("--device", f("cuda:%0*d", 200, 0)),
            "--device has 205 bytes, want at most 159");
    REFUSED(2, with("--model", NULL), "no checkpoint: want --model DIR");
    REFUSED(2, with("--prompt", NULL), "no prompt: want --prompt TEXT");
    REFUSED(2, other(NULL, NULL), "no command, want run, replay, stage, inspect");
    REFUSED(2, other("rnu", NULL), "unknown command \"rnu\"");
    REFUSED(2, other("inspect", NULL), "inspect wants one checkpoint folder");
    REFUSED(2, other("replay", NULL), "replay wants the folder that --dump wrote");
}

/* ---- prompts ---- */

static void test_prompts(void **unused)
{
    size_t n = 70000;
    char *text = malloc(n + 1);
    sl_st *st = NULL;
    sl_err err = {0};
    (void)unused;
    WORKS(with("--prompt", ""), 1);
    REFUSED(2, with("--prompt", "a\xff"), "--prompt", "UTF-8");
    REFUSED(2, with("--prompt", "\xed\xa0\x80"), "--prompt", "UTF-8");
    REFUSED(2, with("--negative", "\xc3"), "--negative", "UTF-8");
    for (size_t i = 0; i < n; i++) text[i] = "word "[i % 5];
    text[n] = 0;
    REFUSED(2, with("--prompt", text),
            "--prompt has 70000 bytes, want at most 65536 (limits.prompt_bytes)");
    text[10000] = 0;
    command c = with("--prompt", text);
    set(&c, "--dump", at("out/dump"));
    to_be_said = "--prompt has 2001 tokens, the model reads the first 512: its end is not used";
    works_("10,000 characters", &c, 2, false);
    T_OK(sl_st_open_file(&st, at("out/dump/text.safetensors"), &err));
    assert_int_equal(sl_count(&sl_st_find(st, "ids.cond")->t), 512); /* what the model reads */
    sl_st_close(&st);
    empty_dir(at("out"));
    free(text);
}

/* ---- noise ---- */

static void put_noise(const char *name, sl_dtype dtype, int rank, const int64_t *shape, float at_7)
{
    static float x[16 * 2 * 4 * 8];
    static int64_t whole[16 * 2 * 4 * 8];
    sl_tensor t = sl_view(dtype == SL_I64 ? (void *)whole : (void *)x, dtype, rank, shape);
    sl_err err = {0};
    t_fill(x, 16 * 2 * 4 * 8, 1);
    x[7] = at_7;
    T_OK(sl_st_save(at("noise.safetensors"), 1, &name, &t, &err));
}

static void test_noise(void **unused)
{
    const int64_t good[] = {16, 2, 4, 4}, wide[] = {16, 2, 4, 8}, flat[] = {512};
    command c = with("--noise", at("noise.safetensors"));
    (void)unused;
    put_noise("noise", SL_F32, 4, good, 0);
    to_be_said = "--seed is not used: --noise gives the numbers";
    WORKS(c, 1);
    set(&c, "--seed", NULL);
    WORKS(c, 1);
    put_noise("noise", SL_F32, 4, good, NAN);
    REFUSED(2, c, "--noise", "noise has NaN or infinity at element 7");
    put_noise("noise", SL_F32, 4, good, -INFINITY);
    REFUSED(2, c, "--noise", "noise has NaN or infinity at element 7");
    put_noise("noise", SL_F32, 4, wide, 0);
    REFUSED(2, c, "--noise", "[16, 2, 4, 8]", "want [16, 2, 4, 4]");
    put_noise("noise", SL_F32, 1, flat, 0);
    REFUSED(2, c, "--noise", "[512]", "want [16, 2, 4, 4]");
    put_noise("latents", SL_F32, 4, good, 0);
    REFUSED(2, c, "--noise", "holds no tensor noise");
    put_noise("noise", SL_I64, 4, good, 0);
    REFUSED(2, c, "--noise", "I64", "F32");
    put_text(at("noise.safetensors"), "no tensors");
    REFUSED(2, c, "--noise", "noise.safetensors");
    REFUSED(2, with("--noise", at("none.safetensors")), "--noise", "No such file or directory");
    REFUSED(2, with("--noise", root), "--noise", "is a directory, want a file");
}

/* ---- checkpoints ---- */

#define VAE "vae/diffusion_pytorch_model.safetensors"
#define CLIP "image_encoder/model.safetensors"
#define DIT "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
#define DIT_INDEX "transformer/diffusion_pytorch_model.safetensors.index.json"
#define TEXT "text_encoder/model-00002-of-00004.safetensors"
#define TEXT_INDEX "text_encoder/model.safetensors.index.json"

/* The run refuses ROOT/model before any work, and inspect names the same damage. */
#define DAMAGED(component, says)                                                                   \
    do {                                                                                           \
        REFUSED(2, with("--model", at("model")), component, says);                                 \
        INSPECT_SAYS(says);                                                                        \
    } while (0)

static void rename_entry(json_t *header, json_t *entry, const char *name)
{
    json_object_set(header, "somebody.else", entry);
    json_object_del(header, name);
}
static void flatten(json_t *header, json_t *entry, const char *name)
{
    json_int_t n = 1;
    size_t i;
    json_t *v;
    (void)header, (void)name;
    json_array_foreach(json_object_get(entry, "shape"), i, v) n *= json_integer_value(v);
    json_object_set_new(entry, "shape", json_pack("[I,I]", n, (json_int_t)1));
}
static void as_i32(json_t *header, json_t *entry, const char *name)
{
    (void)header, (void)name;
    json_object_set_new(entry, "dtype", json_string("I32"));
}
static void no_such_type(json_t *header, json_t *entry, const char *name)
{
    (void)header, (void)name;
    json_object_set_new(entry, "dtype", json_string("F33"));
}
static void over_another(json_t *header, json_t *entry, const char *name)
{
    (void)name; /* conv1 and conv2 of this block have one size */
    json_object_set(
        entry, "data_offsets",
        json_object_get(json_object_get(header, "decoder.mid_block.resnets.0.conv2.weight"),
                        "data_offsets"));
}
static void past_the_end(json_t *header, json_t *entry, const char *name)
{
    json_t *o = json_object_get(entry, "data_offsets");
    (void)header, (void)name;
    for (size_t i = 0; i < 2; i++)
        json_array_set_new(o, i,
                           json_integer(json_integer_value(json_array_get(o, i)) + (1ll << 40)));
}
static void backwards(json_t *header, json_t *entry, const char *name)
{
    json_t *o = json_object_get(entry, "data_offsets"), *a = json_incref(json_array_get(o, 0));
    (void)header, (void)name;
    json_array_set(o, 0, json_array_get(o, 1));
    json_array_set_new(o, 1, a);
}
static void endless(json_t *header, json_t *entry, const char *name)
{
    (void)header, (void)name;
    json_object_set_new(
        entry, "shape",
        json_pack("[I,I,I]", (json_int_t)1 << 31, (json_int_t)1 << 31, (json_int_t)1 << 31));
}
static void negative(json_t *header, json_t *entry, const char *name)
{
    (void)header, (void)name;
    json_object_set_new(entry, "shape", json_pack("[i]", -32));
}

static void test_tensors(void **unused)
{
    (void)unused;
    fresh_model();
    st_change(VAE, "decoder.conv_in.bias", rename_entry);
    DAMAGED("vae", "missing decoder.conv_in.bias [32]");
    fresh_model();
    st_change(CLIP, "pre_layrnorm.weight", rename_entry);
    DAMAGED("image_encoder", "missing pre_layrnorm.weight [96]");
    fresh_model();
    st_change(VAE, "encoder.conv_in.weight", flatten);
    DAMAGED("vae", "misshapen encoder.conv_in.weight [");
    fresh_model();
    st_change(DIT, "blocks.1.ffn.net.2.weight", flatten);
    DAMAGED("transformer", "misshapen blocks.1.ffn.net.2.weight [98304, 1], want [256, 384]");
    fresh_model();
    st_change(VAE, "decoder.conv_in.bias", as_i32);
    DAMAGED("vae", "unusable decoder.conv_in.bias I32, want F32, BF16 or F16");
    fresh_model();
    st_change(VAE, "decoder.conv_in.bias", no_such_type);
    DAMAGED("vae", "F33");
    fresh_model();
    edit("transformer/config.json", "\"num_layers\": 3", "\"num_layers\": 4");
    DAMAGED("transformer", "missing blocks.3.");
}

static void test_hostile_headers(void **unused)
{
    static const uint64_t LENGTHS[] = {1ull << 63, UINT64_MAX, 1ull << 40, 100000001, 0, 1};
    st_parts p;
    (void)unused;
    for (size_t i = 0; i < sizeof LENGTHS / sizeof *LENGTHS; i++) {
        fresh_model();
        FILE *file = fopen(own(VAE), "r+b");
        fwrite(&LENGTHS[i], 8, 1, file);
        fclose(file);
        DAMAGED("vae", "diffusion_pytorch_model.safetensors");
    }
    static const struct {
        change *how;
        const char *says;
    } CHANGES[] = {{over_another, "decoder.mid_block.resnets.0.conv"},
                   {past_the_end, "decoder.mid_block.resnets.0.conv1.weight"},
                   {backwards, "decoder.mid_block.resnets.0.conv1.weight"},
                   {endless, "decoder.mid_block.resnets.0.conv1.weight"},
                   {negative, "decoder.mid_block.resnets.0.conv1.weight"}};
    for (size_t i = 0; i < sizeof CHANGES / sizeof *CHANGES; i++) {
        fresh_model();
        st_change(VAE, "decoder.mid_block.resnets.0.conv1.weight", CHANGES[i].how);
        DAMAGED("vae", CHANGES[i].says);
    }
    fresh_model();
    p = st_take(own(VAE));
    char *text = json_dumps(p.header, JSON_COMPACT), *twice = malloc(2 * strlen(text) + 1);
    sprintf(twice, "%.*s,%s", (int)strlen(text) - 1, text, text + 1);
    st_put(at("model/" VAE), &p, twice);
    free(text);
    free(twice);
    DAMAGED("vae", "duplicate");
    fresh_model();
    p = st_take(own(VAE));
    st_put(at("model/" VAE), &p, "{\"decoder\": [[[[");
    DAMAGED("vae", "JSON");
    fresh_model();
    p = st_take(own(VAE));
    st_put(at("model/" VAE), &p, "[]");
    DAMAGED("vae", "diffusion_pytorch_model.safetensors");
    fresh_model();
    p = st_take(own(VAE));
    st_put(at("model/" VAE), &p,
           "{\"a\\nb\": {\"dtype\": \"F33\", \"shape\": [1], \"data_offsets\": [0, 4]}}");
    DAMAGED("vae", "a?b");
}

static void test_files_of_a_checkpoint(void **unused)
{
    static const long CUTS[] = {0, 1, 8, 5000, 1000000, -1};
    (void)unused;
    for (size_t i = 0; i < sizeof CUTS / sizeof *CUTS; i++) {
        fresh_model();
        cut(i % 2 ? DIT : VAE, CUTS[i]);
        DAMAGED(i % 2 ? "transformer" : "vae",
                i % 2 ? "-00001-of-00002.safetensors" : "diffusion_pytorch_model.safetensors");
    }
    fresh_model();
    unlink(at("model/" VAE));
    DAMAGED("vae", "diffusion_pytorch_model.safetensors");
    fresh_model();
    unlink(at("model/" TEXT));
    DAMAGED("text_encoder", "model-00002-of-00004.safetensors");
    fresh_model();
    edit(DIT_INDEX, "diffusion_pytorch_model-00001-of-00002.safetensors",
         "diffusion_pytorch_model-00009-of-00009.safetensors");
    DAMAGED("transformer", "diffusion_pytorch_model-00009-of-00009.safetensors");
    fresh_model();
    edit(DIT_INDEX, "diffusion_pytorch_model-00001-of-00002.safetensors",
         "../vae/diffusion_pytorch_model.safetensors");
    DAMAGED("transformer", "../vae/diffusion_pytorch_model.safetensors");
    fresh_model();
    put_text(at("model/transformer/diffusion_pytorch_model.safetensors"), "a single file");
    to_be_said =
        "warn: transformer/diffusion_pytorch_model.safetensors is not read: the shards that "
        "its index names are\n";
    WORKS(with("--model", at("model")), 1);
    fresh_model();
    cut(TEXT_INDEX, 100);
    DAMAGED("text_encoder", "model.safetensors.index.json");
    fresh_model();
    t_rmdir(at("model/vae"));
    DAMAGED("vae", "No such file or directory");
    fresh_model();
    unlink(at("model/tokenizer/spiece.model"));
    DAMAGED("tokenizer/spiece.model", "No such file or directory");
    fresh_model();
    put_text(own("tokenizer/spiece.model"), "version https://git-lfs.github.com/spec/v1\n");
    REFUSED(1, with("--model", at("model")),
            "spiece.model: is a Git LFS pointer, its data was not");
    fresh_model();
    cut("tokenizer/spiece.model", 100);
    REFUSED(1, with("--model", at("model")), "out.mp4: failed: text: tokenizer: ", "spiece.model");
    INSPECT_SAYS("spiece.model");
    REFUSED(2, with("--model", at("nowhere")), "nowhere: No such file or directory");
    REFUSED(2, with("--model", GOLDEN_PICTURE), GOLDEN_PICTURE);
}

static void test_configs(void **unused)
{
    (void)unused;
    fresh_model();
    edit("model_index.json", "WanImageToVideoPipeline", "FluxPipeline");
    DAMAGED("model_index.json", "FluxPipeline");
    fresh_model();
    cut("model_index.json", 20);
    DAMAGED("model_index.json", "not JSON");
    fresh_model();
    edit("transformer/config.json", "\"num_attention_heads\": 2", "\"num_attention_heads\": 0");
    DAMAGED("transformer/config.json", "num_attention_heads is 0, want");
    fresh_model();
    edit("transformer/config.json", "\"num_attention_heads\": 2",
         "\"num_attention_heads\": 1000000000");
    DAMAGED("transformer/config.json", "num_attention_heads is 1000000000, want");
    fresh_model();
    edit("scheduler/scheduler_config.json", "UniPCMultistepScheduler", "DDIMScheduler");
    DAMAGED("scheduler_config.json", "DDIMScheduler");
    fresh_model();
    unlink(at("model/vae/config.json"));
    DAMAGED("vae/config.json", "No such file or directory");
}

/* A job with such weights fails when the NaN shows, and the weight is named; inspect
 * --deep finds it without a run. */
static void test_nan_in_weights(void **unused)
{
    static const struct {
        const char *file, *tensor;
        int64_t element;
        bool infinity;
        const char *says;
    } CASES[] = {
        {TEXT, "encoder.block.0.layer.1.layer_norm.weight", 5, false,
         "text_encoder: encoder.block.0.layer.1.layer_norm.weight has NaN at [5]"},
        {CLIP, "encoder.layers.0.mlp.fc1.weight", 5 * 96 + 17, false,
         "image_encoder: encoder.layers.0.mlp.fc1.weight has NaN at [5, 17]"},
        {VAE, "encoder.conv_in.bias", 3, false, "vae: encoder.conv_in.bias has NaN at [3]"},
        {VAE, "decoder.conv_out.weight", 0, false,
         "vae: decoder.conv_out.weight has NaN at [0, 0, 0, 0, 0]"},
        {DIT, "blocks.1.ffn.net.2.weight", 384 + 2, false,
         "transformer: blocks.1.ffn.net.2.weight has NaN at [1, 2]"},
        {DIT, "blocks.2.attn1.to_v.bias", 9, true,
         "transformer: blocks.2.attn1.to_v.bias has infinity at [9]"},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        fresh_model();
        poke(CASES[i].file, CASES[i].tensor, CASES[i].element, CASES[i].infinity);
        REFUSED(1, with("--model", at("model")), "out.mp4: failed: ", "NaN or infinity at element",
                CASES[i].says);
        INSPECT_DEEP_SAYS(CASES[i].says);
    }
}

/* ---- outputs ---- */

static void test_outputs(void **unused)
{
    size_t n, m;
    char *before = get_file(GOLDEN_PICTURE, &n);
    (void)unused;
    REFUSED(2, with("-o", at("out/none/out.mp4")), "output",
            "out/none/out.mp4 cannot be written: No such file or directory");
    REFUSED(2, with("-o", at("out")), "output", "is a directory, want a file");
    REFUSED(2, with("-o", "/proc/out.mp4"), "output /proc/out.mp4 cannot be written");
    REFUSED(2, with("-o", "/dev/null"), "output", "/dev/null is a device or socket, want a file");
    REFUSED(2, with("-o", f("%s/%0300d.mp4", at("out"), 0)),
            "cannot be written: File name too long");
    REFUSED(2, with("-o", at("out/\xff.mp4")), "output is not valid UTF-8");
    REFUSED(2, with("--json", at("out/none/report.json")), "report",
            "cannot be written: No such file or directory");
    REFUSED(2, with("--json", at("out")), "report", "is a directory, want a file");
    REFUSED(2, with("--json", at("out/out.mp4")), "is also the report");
    REFUSED(2, with("--dump", "/proc/dump"), "--dump", "cannot be written");
    REFUSED(2, with("--dump", f("%s/dump", GOLDEN_PICTURE)), "--dump");
    put_file(at("mine.png"), before, n);
    command c = with("--image", at("mine.png"));
    set(&c, "-o", at("mine.png"));
    REFUSED(2, c, "output", "is also the input");
    char *after = get_file(at("mine.png"), &m);
    assert_int_equal(n, m);
    assert_memory_equal(before, after, n);
    free(before);
    free(after);
}

/* A small file system, full: mounted for these cases. False (with a word) where that is
 * not allowed. */
static bool mount_small(const char *dir, const char *size)
{
    mkdir(dir, 0700);
    if (!mount("tmpfs", dir, "tmpfs", 0, f("size=%s,mode=0700", size))) return true;
    print_message("no small tmpfs can be mounted here (%s): not tested\n", strerror(errno));
    return false;
}

static void fill_up(const char *dir, off_t leave)
{
    char block[4096] = {0};
    int fd = open(f("%s/filler", dir), O_WRONLY | O_CREAT, 0600);
    off_t n = 0;
    ssize_t put;
    while ((put = write(fd, block, sizeof block)) > 0) n += put;
    assert_int_equal(ftruncate(fd, n > leave ? n - leave : 0), 0);
    close(fd);
}

static void only_filler_left(const char *dir)
{
    char names[1024];
    if (list_dir(dir, names, sizeof names) != 1) fail_msg("left on the full disk: %s", names);
}

static void test_a_full_disk_under_the_output(void **unused)
{
    const char *disk = at("disk");
    (void)unused;
    if (!mount_small(disk, "64k")) skip();
    fill_up(disk, 0);
    REFUSED(2, with("-o", f("%s/out.mp4", disk)), "out.mp4: 0 bytes are free there, want at least");
    only_filler_left(disk);
    command c = with("--json", f("%s/report.json", disk));
    char names[256];
    size_t n;
    /* the video is there, what was asked for besides is not */
    assert_int_equal(finish(&c, start(&c)), 1);
    char *err = get_file(at("stderr"), &n);
    T_SAYS(err, "the video is written, its report is not: ");
    T_SAYS(err, "No space left on device");
    assert_int_equal(lines(err), 1);
    free(err);
    only_filler_left(disk);
    nothing_left(&c, 1);
    empty_dir(at("out"));

    c = with("--dump", f("%s/dump", disk));
    assert_int_equal(finish(&c, start(&c)), 1);
    err = get_file(at("stderr"), &n);
    T_SAYS(err, "dump: 0 bytes are free there, want ");
    T_SAYS(err, "the video is written, its dump is not: ");
    T_SAYS(err, "No space left on device");
    assert_int_equal(lines(err), 2);
    free(err);
    only_filler_left(disk);
    nothing_left(&c, 1);
    list_dir(at("out"), names, sizeof names);
    assert_string_equal(names, "out.mp4 ");
    empty_dir(at("out"));
    umount(disk);
}

/* The spool has no room for the job, for a hand-over, or for all of a dump: a line and
 * status 1, or, if only safety was lost, the video. */
static void test_a_full_disk_under_the_spool(void **unused)
{
    static const int ROOM[] = {0, 4, 12, 24, 40, 100, 250, 400, 600, 1000}; /* KiB */
    (void)unused;
    if (!mount_small(at("tmp"), "4m")) skip();
    int failed = 0;
    for (int dump = 0; dump < 2; dump++)
        for (size_t i = 0; i < sizeof ROOM / sizeof *ROOM; i++) {
            command c = job();
            size_t n;
            char names[256];
            if (dump) set(&c, "--dump", at("out/dump"));
            fill_up(at("tmp"), ROOM[i] * 1024);
            int got = finish(&c, start(&c));
            char *err = get_file(at("stderr"), &n);
            if (got != 0 && got != 1) fail_msg("%d KiB: exit status %d: %s", ROOM[i], got, err);
            if (got && (!strstr(err, "sluice: ") || !strstr(err, "No space left on device") ||
                        lines(err) != 1))
                fail_msg("%d KiB%s: want one line: %s", ROOM[i], dump ? " and a dump" : "", err);
            failed += got;
            no_process_left(&c);
            only_filler_left(at("tmp"));
            if (got && list_dir(at("out"), names, sizeof names))
                fail_msg("%d KiB: left: %s", ROOM[i], names);
            free(err);
            empty_dir(at("out"));
            unlink(at("tmp/filler"));
        }
    umount(at("tmp"));
    assert_in_range(failed, 4, 18);
}

static int unmount_all(void **unused)
{
    umount2(at("disk"), MNT_DETACH);
    umount2(at("tmp"), MNT_DETACH);
    return t_hostile_clean(unused);
}

/* ---- jobs files ---- */

static command jobs(const char *text)
{
    command c = with("--jobs", at("jobs.jsonl"));
    set(&c, "-o", NULL);
    put_text(at("jobs.jsonl"), text);
    return c;
}

static void test_jobs_files(void **unused)
{
    const char *a = f("{\"output\": \"%s\"}", at("out/a.mp4"));
    (void)unused;
    REFUSED(2, jobs(""), "jobs.jsonl holds no job");
    REFUSED(2, jobs(" \n\t\n"), "jobs.jsonl holds no job");
    REFUSED(2, jobs(f("%s\n\n{\"steps\": }\n", a)), "jobs.jsonl:3: want one JSON object a line");
    REFUSED(2, jobs(f("%s\n{\n\"steps\": 5}\n", a)), "jobs.jsonl:2: want one JSON object a line");
    REFUSED(2, jobs(f("%s\n[1]\n", a)), "jobs.jsonl:2: want one JSON object a line");
    REFUSED(2, jobs(f("%s\n{\"stpes\": 5}\n", a)),
            "jobs.jsonl:2: unknown key stpes, did you mean steps?");
    REFUSED(2, jobs(f("%s\n{\"jobs\": \"x\"}\n", a)), "jobs.jsonl:2: unknown key jobs");
    REFUSED(2, jobs(f("%s\n{\"conf\": \"x\"}\n", a)), "jobs.jsonl:2: unknown key conf");
    REFUSED(2, jobs(f("%s\n{\"steps\": \"five\"}\n", a)),
            "jobs.jsonl:2: --steps is \"five\", want an integer");
    REFUSED(2, jobs(f("%s\n{\"steps\": 1.5}\n", a)),
            "jobs.jsonl:2: --steps is \"1.5\", want an integer");
    REFUSED(2, jobs(f("%s\n{\"steps\": [1]}\n", a)),
            "jobs.jsonl:2: steps is [1], want a text or a number");
    REFUSED(2, jobs(f("%s\n{\"dump_steps\": 1}\n", a)),
            "jobs.jsonl:2: dump_steps is 1, want true or false");
    REFUSED(2, jobs(f("%s\n{\"steps\": 1, \"steps\": 2}\n", a)),
            "jobs.jsonl:2: want one JSON object a line: duplicate object key");
    REFUSED(2, jobs(f("%s\n{\"frames\": 80}\n", a)),
            "jobs.jsonl:2: frames is 80, want 4k + 1 (nearest: 81)");
    REFUSED(2, jobs(f("%s\n{\"fbcache\": 11}\n", a)), "jobs.jsonl:2: fbcache is 11, want 0 to 10");
    REFUSED(2, jobs(f("%s\n{\"image\": \"/none.png\"}\n", a)),
            "jobs.jsonl:2: --image: /none.png: No such file or directory");
    REFUSED(2, jobs(f("%s\n{\"prompt\": \"\xff\"}\n", a)),
            "jobs.jsonl:2: want one JSON object a line");
    REFUSED(2, jobs(f("%s\n{\"prompt\": \"a\\u0000b\"}\n", a)),
            "jobs.jsonl:2: want one JSON object a line");
    REFUSED(2, jobs(f("%s\n%s\n", a, a)), "jobs.jsonl:2: output",
            "a.mp4 is also the output of line 1");
    REFUSED(2, jobs(f("%s\n{\"output\": \"%s\"}\n", a, at("out/../out/a.mp4"))),
            "jobs.jsonl:2: output", "is also the output of line 1");
    REFUSED(2, jobs(f("%s\n{\"model\": \"/elsewhere\"}\n", a)), "line 2 of",
            "one checkpoint a run");
    REFUSED(2, with("--jobs", at("none.jsonl")), "none.jsonl: No such file or directory");
    REFUSED(2, with("--jobs", root), "--jobs", "Is a directory");
    size_t n = 0;
    char *many = malloc(1100 * 4);
    for (int i = 0; i < 1100; i++) n += (size_t)sprintf(many + n, "{}\n");
    REFUSED(2, jobs(many), "jobs.jsonl has more than 1024 jobs");
    free(many);
    WORKS(jobs(f("%s\n\n  {\"output\": \"%s\", \"prompt\": \"two\"}", a, at("out/b.mp4"))), 2);
}

/* ---- a checkpoint's sluice.json ---- */

/* It is bad even where the command line says everything; run, plan, pack and inspect say
 * so alike, and nothing is written: one case all four, then each case the next of them. */
static void bad_defaults_(const char *where, const char *text, const char *says)
{
    static int turn;
    const char *path = at("model/sluice.json");
    command c[] = {with("--model", at("model")), other("plan", NULL), other("pack", NULL)};
    set(&c[1], "--model", at("model"));
    set(&c[2], "--model", at("model"));
    set(&c[2], "-o", at("out/packed"));
    if (text) put_text(path, text);
    for (int i = 0; i < 3; i++)
        if (!turn || turn % 4 == i)
            refused_(where, 2, &c[i], (const char *const[]){path, says, NULL});
    if (!turn || turn % 4 == 3) inspect_says_(where, false, says);
    turn++;
}
#define BAD_DEFAULTS(text, says) bad_defaults_("line " T_STRING(__LINE__), text, says)

static void test_defaults_of_a_checkpoint(void **unused)
{
    static const char *const NO_PLACE[] = {
        "image", "last-image", "prompt", "output", "o",    "seed",  "noise",  "crf",       "dump",
        "json",  "model",      "conf",   "jobs",   "from", "quiet", "device", "dump_steps"};
    const char *path;
    (void)unused;
    fresh_model();
    path = at("model/sluice.json");
    BAD_DEFAULTS("", "sluice.json:1:0: not JSON");
    BAD_DEFAULTS("{\"steps\": 5", "sluice.json:1:11: not JSON");
    BAD_DEFAULTS("{\"steps\": 5}\n{\"steps\": 6}\n", "not JSON: end of file expected");
    BAD_DEFAULTS("[{\"steps\": 5}]", "sluice.json: holds no JSON object, want {...}");
    BAD_DEFAULTS("{\"steps\": 5, \"steps\": 6}", "not JSON: duplicate object key");
    BAD_DEFAULTS("{\"negative\": \"\xff\"}", "not JSON: unable to decode byte 0xff");
    BAD_DEFAULTS("{\"negative\": \"a\\u0000b\"}", "not JSON");
    BAD_DEFAULTS("{\"stpes\": 5}", "sluice.json: unknown key stpes, did you mean steps?");
    BAD_DEFAULTS("{\"st\\npes\": 5}", "sluice.json: unknown key st?pes, did you mean steps?");
    BAD_DEFAULTS("{\"xyzzyxyzzy\": 5}", "sluice.json: unknown key xyzzyxyzzy, want some of "
                                        "negative, width, height, max-area, frames");
    for (size_t i = 0; i < sizeof NO_PLACE / sizeof *NO_PLACE; i++) {
        put_text(path, f("{\"%s\": \"1\"}", NO_PLACE[i]));
        REFUSED(2, with("--model", at("model")), path,
                f("key %s has no place here, want some of negative, width",
                  strcmp(NO_PLACE[i], "o") ? NO_PLACE[i] : "output"));
    }
    BAD_DEFAULTS("{\"steps\": \"five\"}", "sluice.json: --steps is \"five\", want an integer");
    BAD_DEFAULTS("{\"steps\": 1.5}", "sluice.json: --steps is \"1.5\", want an integer");
    BAD_DEFAULTS("{\"steps\": 99999999999}",
                 "sluice.json: --steps is \"99999999999\", want an integer");
    BAD_DEFAULTS("{\"steps\": 99999999999999999999}", "not JSON: too big integer");
    BAD_DEFAULTS("{\"steps\": null}", "sluice.json: steps is null, want a text or a number");
    BAD_DEFAULTS("{\"steps\": true}", "sluice.json: steps is true, want a text or a number");
    BAD_DEFAULTS("{\"guidance\": [5]}", "sluice.json: guidance is [5], want a text or a number");
    BAD_DEFAULTS("{\"guidance\": {}}", "sluice.json: guidance is {}, want a text or a number");
    BAD_DEFAULTS("{\"guidance\": 1e9}", "sluice.json: guidance is 1e+09, want 0 to 1000");
    BAD_DEFAULTS("{\"guidance-2\": -1}", "sluice.json: guidance_2 is -1, want 0 to 1000");
    BAD_DEFAULTS("{\"steps\": 0}", "sluice.json: steps is 0, want 1 to 1000 (sampler steps)");
    BAD_DEFAULTS("{\"frames\": 80}", "sluice.json: frames is 80, want 4k + 1 (nearest: 81)");
    BAD_DEFAULTS("{\"fps\": 0}", "sluice.json: fps is 0, want 1 to 240");
    BAD_DEFAULTS("{\"fbcache\": 11}", "sluice.json: fbcache is 11, want 0 to 10");
    BAD_DEFAULTS("{\"shift\": 0}", "sluice.json: shift is 0, want 0.01 to 100");
    BAD_DEFAULTS("{\"sampler\": \"ddim\"}",
                 "sluice.json: sampler is ddim, want unipc, euler or lightx2v");
    BAD_DEFAULTS("{\"fbcache-warmup\": -1}", "sluice.json: fbcache_warmup is -1, want 0 to 1000");
    BAD_DEFAULTS("{\"max-area\": 99}",
                 "sluice.json: --max-area is 99, want 256 to 67108864 pixels");
    BAD_DEFAULTS("{\"width\": 32}",
                 "sluice.json: --width is 32 and --height 0, want both or neither");
    BAD_DEFAULTS("{\"width\": 100, \"height\": 32}",
                 "sluice.json: size is 100x32, want width and height that are multiples of 16");
    BAD_DEFAULTS("{\"width\": 32, \"height\": 32, \"max-area\": 4096}",
                 "sluice.json: --max-area is given beside --width and --height");

    char *large = calloc(1, (1 << 20) + 64);
    sprintf(large, "{\"negative\": \"%0*d\"}", 70000, 0);
    put_text(path, large);
    REFUSED(2, with("--model", at("model")), path,
            "negative has 70000 bytes, want at most 65536 (limits.prompt_bytes)");
    memset(large, ' ', (1 << 20) + 1);
    BAD_DEFAULTS(large, "sluice.json: has 1048577 bytes, want at most 1048576");
    free(large);
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    BAD_DEFAULTS(NULL, "sluice.json: is no regular file");
    rmdir(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    BAD_DEFAULTS(NULL, "sluice.json: is no regular file");
    unlink(path);
    assert_int_equal(symlink("blobs/none", path), 0);
    BAD_DEFAULTS(NULL, "sluice.json: cannot be opened: No such file or directory");
    unlink(path);
    assert_int_equal(symlink("sluice.json", path), 0);
    BAD_DEFAULTS(NULL, "sluice.json: cannot be opened: Too many levels of symbolic links");
    unlink(path);
    put_text(path, "{}");
    WORKS(with("--model", at("model")), 1);
}

/* ---- settings ---- */

static command settings(const char *text)
{
    put_text(at("bad.cfg"), text);
    return with("--conf", at("bad.cfg"));
}

static void test_settings(void **unused)
{
    (void)unused;
    REFUSED(2, with("--conf", at("none.cfg")), "none.cfg", "No such file or directory");
    REFUSED(2, with("--conf", root), root);
    REFUSED(2, settings("limits: {\n  frames = 0;\n};"),
            "bad.cfg:2: limits.frames is 0, want an integer from 1 to");
    REFUSED(2, settings("limits: {\n  framse = 5;\n};"), "bad.cfg:2: ", "framse", "limits.frames");
    REFUSED(2, settings("limits: {\n  frames = ;\n};"), "bad.cfg:2: ");
    REFUSED(2, settings("limitz: { frames = 5; };"),
            "bad.cfg:1: unknown group limitz, the nearest known one is limits");
    REFUSED(2, settings("@include \"/etc/passwd\"\n"), "bad.cfg");
    REFUSED(2, settings("stages: ( { name = \"txt\"; } );"), "bad.cfg:1: ", "txt");
    REFUSED(2, settings("stages: ( { name = \"text\"; device = \"gpu\"; } );"),
            "bad.cfg:1: ", "gpu");
    REFUSED(2, settings("run: { dir = \"/proc/none\"; };"), "run.dir", "/proc");
    REFUSED(2, settings("run: { spool = \"/proc/none\"; };"), "run.spool", "/proc");
}

static const char *with_mux(const char *program)
{
    return f("supervise: { restarts = 0; };\n"
             "stages: ( { name = \"text\"; program = \"sluice-text\"; }, { name = \"image\"; "
             "program = \"sluice-image\"; },\n"
             "{ name = \"denoise\"; program = \"sluice-denoise\"; }, { name = \"decode\"; program "
             "= \"sluice-decode\"; },\n"
             "{ name = \"mux\"; program = \"%s\"; } );\n",
             program);
}

static void test_stage_programs(void **unused)
{
    (void)unused;
    REFUSED(2, settings(with_mux("sluice-mxu")), "stage mux: program",
            "sluice-mxu: No such file or directory");
    REFUSED(2, settings(with_mux("/none/mux")), "stage mux: program",
            "/none/mux: No such file or directory");
    REFUSED(2, settings(with_mux(root)), "stage mux: program", "is a directory, want a file");
    put_text(at("mux"), "no program");
    chmod(at("mux"), 0600);
    REFUSED(2, settings(with_mux(at("mux"))), "stage mux: program", "is not executable");
    chmod(at("mux"), 0700);
    /* text that looks executable */
    REFUSED(1, settings(with_mux(at("mux"))), "out.mp4: failed: mux ended", "giving up");
    REFUSED(1, settings(with_mux("/bin/false")), "out.mp4: failed: mux ended", "exit status 1",
            "giving up");
}

/* ---- replay ---- */

static command replay(const char *from)
{
    command c = other("replay", at("dump"));
    add(&c, "--quiet");
    set(&c, "--from", from);
    set(&c, "-o", at("out/again.mp4"));
    return c;
}

/* Change a tensor of a dumped file: NaN at element 7 (rank 0), or another shape of zeros. */
static void spoil(const char *file, const char *name, int rank, const int64_t *shape)
{
    const char *path = at(f("dump/%s", file));
    if (!rank) {
        st_parts p = st_take(path);
        json_t *offsets = json_object_get(json_object_get(p.header, name), "data_offsets");
        uint32_t nan = 0x7fc00000;
        memcpy(p.data + json_integer_value(json_array_get(offsets, 0)) + 4 * 7, &nan, 4);
        st_put(path, &p, NULL);
        return;
    }
    sl_tensor t = sl_view(calloc(1 << 20, 1), SL_F32, rank, shape);
    sl_err err = {0};
    T_OK(sl_st_save(path, 1, &name, &t, &err));
    free(t.data);
}

/* Put all of the dump back as it was. */
static void fresh_dump(void)
{
    t_rmdir(at("dump"));
    assert_int_equal(system(f("cp -r '%s' '%s'", at("whole"), at("dump"))), 0);
}

static void test_replay(void **unused)
{
    static const char *const FROM[] = {"text", "image", "denoise", "decode"};
    const int64_t wide[] = {16, 2, 4, 8};
    command c = with("--dump", at("whole"));
    (void)unused;
    WORKS(c, 1);
    fresh_dump();
    for (int i = 0; i < 4; i++) WORKS(replay(FROM[i]), 1);
    REFUSED(2, replay("mux"), "--from is \"mux\", want text, image, denoise or decode");
    REFUSED(2, replay(NULL), "--from is \"\", want text, image, denoise or decode");
    c = replay("decode");
    set(&c, "--width", "48");
    REFUSED(2, c, "--width is given, but a replay from decode takes what the dump's image made");
    c = replay("decode");
    set(&c, "--frames", "9");
    REFUSED(2, c, "--frames is given, but a replay from decode takes what the dump's image made");
    c = replay("denoise");
    set(&c, "--guidance", "5");
    REFUSED(2, c, "replay", "text.safetensors: uncond is missing, want [512, 128]");
    c = replay("denoise");
    set(&c, "--image", GOLDEN_PICTURE);
    REFUSED(2, c,
            "--image is given, but a replay from denoise takes what the dump's image made, want "
            "--from image");

    static const char *const UNUSED[][3] = {
        {"denoise", "--prompt", "another"}, {"denoise", "--negative", "x"},
        {"image", "--prompt", "x"},         {"text", "--max-area", "4096"},
        {"decode", "--steps", "2"},         {"decode", "--seed", "9"},
        {"decode", "--preview", "x.png"},   {"decode", "--sampler", "euler"}};
    for (size_t i = 0; i < sizeof UNUSED / sizeof *UNUSED; i++) {
        c = replay(UNUSED[i][0]);
        set(&c, UNUSED[i][1], UNUSED[i][2]);
        REFUSED(2, c, f("%s is given, but a replay from %s takes", UNUSED[i][1], UNUSED[i][0]));
    }
    spoil("denoise.safetensors", "latents", 0, NULL);
    REFUSED(2, replay("decode"), "replay",
            "denoise.safetensors: latents has NaN or infinity at element 7");
    spoil("denoise.safetensors", "latents", 4, wide);
    REFUSED(2, replay("decode"), "replay", "latents has shape [16, 2, 4, 8], want [16, 2, 4, 4]");
    put_text(at("dump/denoise.safetensors"), "no tensors");
    REFUSED(2, replay("decode"), "replay", "denoise.safetensors");
    unlink(at("dump/denoise.safetensors"));
    REFUSED(2, replay("decode"), "replay", "denoise.safetensors: No such file or directory");
    fresh_dump();
    spoil("denoise.safetensors", "noise", 0, NULL);
    REFUSED(2, replay("denoise"), "noise has NaN or infinity at element 7");
    fresh_dump();
    spoil("text.safetensors", "cond", 0, NULL);
    REFUSED(2, replay("denoise"), "replay",
            "text.safetensors: cond has NaN or infinity at element 7");
    unlink(at("dump/text.safetensors"));
    REFUSED(2, replay("image"), "replay", "text.safetensors: No such file or directory");
    fresh_dump();
    spoil("image.safetensors", "condition", 0, NULL);
    REFUSED(2, replay("text"), "replay",
            "image.safetensors: condition has NaN or infinity at element 7");
    fresh_dump();
    put_text(at("dump/image.input"), "no picture");
    REFUSED(2, replay("image"), "replay", "image.input");
    c = replay("image");
    set(&c, "--image", GOLDEN_PICTURE);
    WORKS(c, 1);
    put_text(at("dump/job.json"), "{\"steps\": \"x\"}");
    REFUSED(2, replay("decode"), "replay", "job.json: steps is \"x\", want an integer");
    put_text(at("dump/job.json"), "{");
    REFUSED(2, replay("decode"), "replay", "job.json:1:1: not JSON");
    unlink(at("dump/job.json"));
    REFUSED(2, replay("decode"), "dump is no folder that --dump wrote: no job.json in it");
    c = other("replay", at("nowhere"));
    set(&c, "--from", "decode");
    REFUSED(2, c, "nowhere is no folder that --dump wrote");
}

int main(void)
{
#define CLEAN(test) cmocka_unit_test_setup_teardown(test, t_hostile_clean, unmount_all)
    const struct CMUnitTest tests[] = {
        CLEAN(test_pictures),
        CLEAN(test_a_picture_replaced_after_the_start),
        CLEAN(test_sizes),
        CLEAN(test_loras),
        CLEAN(test_options),
        CLEAN(test_prompts),
        CLEAN(test_noise),
        CLEAN(test_tensors),
        CLEAN(test_hostile_headers),
        CLEAN(test_files_of_a_checkpoint),
        CLEAN(test_configs),
        CLEAN(test_nan_in_weights),
        CLEAN(test_outputs),
        CLEAN(test_a_full_disk_under_the_output),
        CLEAN(test_a_full_disk_under_the_spool),
        CLEAN(test_jobs_files),
        CLEAN(test_defaults_of_a_checkpoint),
        CLEAN(test_settings),
        CLEAN(test_stage_programs),
        CLEAN(test_replay),
    };
    return cmocka_run_group_tests_name("hostile", tests, t_hostile_setup, t_hostile_teardown);
}
