/* bench.c - `sluice bench`: how fast the networks and their parts run on this device,
 * each beside the floor that it sets. */
#include "stages/bench/bench.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "stages/bench/measure.h"
#include "stages/job/defaults.h"
#include "stages/job/files.h"

static const struct {
    const char *name, *what;
    sl_code (*run)(sl_bench *b, sl_err *err);
    bool asked_only;
} PARTS[] = {{"gemm", "the DiT's matrix products", sl_bench_gemm, false},
             {"attention", "the networks' attentions", sl_bench_attention, false},
             {"conv", "the VAE's largest convolutions", sl_bench_conv, false},
             {"handover", "tensors to another process and back", sl_bench_handover, false},
             {"image", "CLIP of one picture", sl_bench_image, false},
             {"text", "UMT5 of two prompts of 512 tokens", sl_bench_text, false},
             {"condition", "VAE encode of the condition", sl_bench_condition, false},
             {"decode", "VAE decode", sl_bench_decode, false},
             {"dit", "one forward of the diffusion transformer", sl_bench_dit, false},
             {"job", "a whole job through all processes", sl_bench_job, true}};
#define PART_COUNT ((int)(sizeof PARTS / sizeof *PARTS))

static void usage(FILE *to)
{
    fprintf(to, "sluice bench [WHAT...] [--device cpu|cuda:N[,cuda:M...]] [--model DIR] [--size "
                "WxHxFRAMES]... "
                "[--repeat N] [--steps N] "
                "[--rows N] [--quick]\n"
                "             [--comm ipc|nccl] [--precision bf16|fp8-linear|fp8] [--guidance G] "
                "[--profile] [--image FILE] [--json FILE]\n"
                "\n"
                "How fast the networks and their parts run with random weights, each beside its "
                "floor: its operations over the "
                "rate of this device's\n"
                "matrix product, or its bytes over the rate of its copy, both measured first. "
                "Shapes are the 14B model's on a GPU; "
                "on a CPU, or with\n"
                "--model, a checkpoint's (models/demo). WHAT, all but job if none is named:\n");
    for (int i = 0; i < PART_COUNT; i++) fprintf(to, "  %-10s %s\n", PARTS[i].name, PARTS[i].what);
    fprintf(
        to,
        "--device   several: dit is a team of one rank on each, beside the first alone; a "
        "job's denoisers are on all; the rest is measured on the first\n"
        "--comm     of a team on GPUs: ipc or nccl (ipc where they can map each other)\n"
        "--precision of dit and job: fp8-linear computes the large products in 8 bits, fp8 "
        "attention among the tokens too, in every step and block; their floor stays that of the "
        "device's own product\n"
        "--repeat   timed runs of each (1 to %d)\n"
        "--rows     tokens that the DiT takes at a time where it can choose\n"
        "--steps    of the job (the checkpoint's sluice.json, else 30; 2 with --quick); "
        "--image its picture (one is made)\n"
        "--guidance of the job (the checkpoint's sluice.json, else 5: two forwards a step; 1 "
        "or less: one); given as 1 or less, dit by a team is one forward alone, without a guided "
        "step\n"
        "--quick    the smallest size, one run of each\n"
        "--profile  one more run of each network with a clock around each operation: a table "
        "of where the time goes\n",
        SL_BENCH_MOST_RUNS);
}

static sl_code number(const char *name, const char *text, long long lo, long long hi,
                      long long *out, sl_err *err)
{
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    if (errno || *end || end == text || *out < lo || *out > hi)
        return sl_fail(err, SL_ARG, "%s is \"%.40s\", want an integer from %lld to %lld", name,
                       text, lo, hi);
    return SL_OK;
}

static sl_code real(const char *name, const char *text, double *out, sl_err *err)
{
    char *end;
    *out = strtod(text, &end);
    if (*end || end == text || !(*out >= 0 && *out <= 100))
        return sl_fail(err, SL_ARG, "%s is \"%.40s\", want a number from 0 to 100", name, text);
    return SL_OK;
}

static sl_code add_size(sl_bench *b, const char *text, sl_err *err)
{
    sl_bench_size s = {0};
    int end = 0;
    if (b->size_count == SL_BENCH_SIZES)
        return sl_fail(err, SL_ARG, "--size is given more than %d times", SL_BENCH_SIZES);
    if (sscanf(text, "%5dx%5dx%4d%n", &s.w, &s.h, &s.frames, &end) != 3 || text[end] || s.w < 16 ||
        s.h < 16 || s.w % 16 || s.h % 16 || s.frames < 1 || s.frames % 4 != 1)
        return sl_fail(err, SL_ARG,
                       "--size is \"%.40s\", want WIDTHxHEIGHTxFRAMES such as 1280x720x81, "
                       "multiples of 16 and 4n + 1 frames",
                       text);
    int at = b->size_count++;
    for (; at > 0 && (int64_t)b->sizes[at - 1].w * b->sizes[at - 1].h * b->sizes[at - 1].frames >
                         (int64_t)s.w * s.h * s.frames;
         at--)
        b->sizes[at] = b->sizes[at - 1];
    b->sizes[at] = s;
    return SL_OK;
}

static sl_code copy_text(char *out, size_t size, const char *name, const char *text, sl_err *err)
{
    if ((size_t)snprintf(out, size, "%s", text) >= size)
        return sl_fail(err, SL_ARG, "%s has %zu bytes, want fewer than %zu", name, strlen(text),
                       size);
    return SL_OK;
}

static sl_code parse(sl_bench *b, bool wanted[PART_COUNT], int argc, char **argv, sl_err *err)
{
    static const struct option LONG[] = {{"device", 1, 0, 'd'},    {"json", 1, 0, 'j'},
                                         {"model", 1, 0, 'm'},     {"size", 1, 0, 's'},
                                         {"comm", 1, 0, 'c'},      {"repeat", 1, 0, 'r'},
                                         {"steps", 1, 0, 'n'},     {"image", 1, 0, 'i'},
                                         {"rows", 1, 0, 'o'},      {"quick", 0, 0, 'q'},
                                         {"profile", 0, 0, 'p'},   {"guidance", 1, 0, 'g'},
                                         {"precision", 1, 0, 'e'}, {0, 0, 0, 0}};
    sl_code rc = SL_OK;
    long long n;
    int c, named = 0;
    optind = 0;
    opterr = 0;
    while (!rc && (c = getopt_long(argc, argv, "", LONG, NULL)) >= 0) {
        if (c == 'd') rc = sl_device_list_read(&b->devices, optarg, err);
        else if (c == 'j') rc = copy_text(b->json, sizeof b->json, "--json", optarg, err);
        else if (c == 'm')
            rc = copy_text(b->model_dir, sizeof b->model_dir, "--model", optarg, err);
        else if (c == 'i') rc = copy_text(b->image, sizeof b->image, "--image", optarg, err);
        else if (c == 'c') {
            rc = copy_text(b->comm, sizeof b->comm, "--comm", optarg, err);
            if (!rc && strcmp(b->comm, "ipc") && strcmp(b->comm, "nccl"))
                rc = sl_fail(err, SL_ARG, "--comm is %s, want ipc or nccl", b->comm);
        } else if (c == 'e')
            rc = copy_text(b->precision, sizeof b->precision, "--precision", optarg, err);
        else if (c == 's') rc = add_size(b, optarg, err);
        else if (c == 'q') b->quick = true;
        else if (c == 'p') b->profile = true;
        else if (c == 'r')
            rc = number("--repeat", optarg, 1, SL_BENCH_MOST_RUNS, &n, err),
            b->repeat = rc ? 0 : (int)n;
        else if (c == 'n')
            rc = number("--steps", optarg, 1, 1000, &n, err), b->steps = rc ? 0 : (int)n;
        else if (c == 'g') {
            rc = real("--guidance", optarg, &b->guidance, err);
            b->unguided = b->guidance <= 1;
        } else if (c == 'o')
            rc = number("--rows", optarg, 1, 1 << 24, &n, err), b->rows = rc ? 0 : n;
        else
            rc = sl_fail(err, SL_ARG,
                         "bench: %.60s is unknown or lacks its value: sluice bench --help",
                         argv[optind - 1]);
    }
    for (int i = optind; i < argc && !rc; i++, named++) {
        int k = 0;
        while (k < PART_COUNT && strcmp(PARTS[k].name, argv[i])) k++;
        if (k == PART_COUNT)
            return sl_fail(err, SL_ARG,
                           "bench: \"%.60s\" is nothing that can be measured, want some of gemm "
                           "attention conv handover image text "
                           "condition decode dit job",
                           argv[i]);
        wanted[k] = true;
    }
    for (int k = 0; k < PART_COUNT && !named; k++) wanted[k] = !PARTS[k].asked_only;
    if (!rc) snprintf(b->device, sizeof b->device, "%s", b->devices.at[0]);
    if (!rc && strcmp(b->device, "cpu")) b->ordinal = atoi(b->device + 5);
    return rc;
}

/* Sizes, steps and guidance that were not given; the folder of the shapes, and the
 * shapes. */
static sl_code complete(sl_bench *b, const char *private_dir, sl_err *err)
{
    const bool cpu = !strcmp(b->device, "cpu");
    static const char *const CPU[] = {"160x96x9", "320x192x17"}, *const GPU[] = {"832x480x81",
                                                                                 "1024x576x81",
                                                                                 "1280x720x81"};
    sl_request d;
    sl_code rc;
    if (!b->size_count)
        for (int i = 0; i < (b->quick ? 1 : cpu ? 2 : 3); i++)
            if ((rc = add_size(b, cpu ? CPU[i] : GPU[i], err))) return rc;
    if ((rc = sl_program_dir(b->program_dir, err))) return rc;
    if (!*b->model_dir && cpu)
        rc = sl_path_join(b->model_dir, b->program_dir, "../models/demo", err);
    else if (!*b->model_dir && !(rc = sl_path_join(b->model_dir, private_dir, "14b", err)))
        rc = sl_bench_write_14b(b->model_dir, err);
    if (rc) return rc;
    if ((rc = sl_model_open(&b->model, b->model_dir, err)))
        return sl_context(err, rc, "the shapes to measure (--model DIR)");
    if ((rc = sl_model_use_precision(&b->model, b->precision, "", "", "fast", err))) return rc;
    rc = sl_request_read_defaults(&d, b->model_dir, err);
    if (!b->steps) b->steps = b->quick ? 2 : d.has_steps ? d.spec.steps : 30;
    if (isnan(b->guidance)) b->guidance = d.has_guidance ? d.spec.guidance : 5;
    sl_job_free(&d.spec);
    return rc;
}

static sl_code write_json(const sl_bench *b, sl_err *err)
{
    char name[128] = "cpu";
    int sm = 0;
    if (b->plugin) b->plugin->describe(b->ordinal, name, sizeof name, &sm, NULL);
    json_t *root = json_pack("{s:s, s:s, s:i, s:s, s:f, s:f, s:O}", "device", b->device, "name",
                             name, "sm", sm, "precision", b->precision, "product_rate",
                             b->product_rate, "copy_rate", b->copy_rate, "results", b->results);
    errno = 0;
    int bad = !root || json_dump_file(root, b->json, JSON_INDENT(2) | JSON_REAL_PRECISION(9)),
        why = errno;
    json_decref(root);
    return bad ? sl_fail_errno(err, why ? why : EIO, "report %s", b->json) : SL_OK;
}

int sl_bench_main(int argc, char **argv)
{
    sl_bench b = {.devices = {1, {"cpu"}},
                  .peer_socket = -1,
                  .guidance = NAN,
                  .precision = "bf16",
                  .results = json_array()};
    bool wanted[PART_COUNT] = {false};
    char private_dir[SL_PATH] = "";
    const int64_t started = sl_now_ns();
    sl_err err = {0};
    sl_code rc;
    if (argc > 0 && (!strcmp(argv[0], "--help") || !strcmp(argv[0], "-h"))) {
        usage(stdout);
        json_decref(b.results);
        return SL_EXIT_OK;
    }
    if ((rc = parse(&b, wanted, argc + 1, argv - 1, &err)) ||
        (rc = sl_make_run_dir(private_dir, "", &err)) || (rc = complete(&b, private_dir, &err))) {
        sl_complain("%s", err.msg);
        if (*private_dir) sl_remove_tree(private_dir);
        json_decref(b.results);
        return SL_EXIT_REFUSED;
    }
    for (int i = 0; i < PART_COUNT && !rc; i++)
        if (wanted[i] && PARTS[i].run == sl_bench_handover) rc = sl_bench_handover_start(&b, &err);
    for (int i = 0; i < PART_COUNT && !rc && b.devices.count > 1; i++)
        if (wanted[i] && PARTS[i].run == sl_bench_dit) rc = sl_bench_team_start(&b, &err);
    const int64_t opening = sl_now_ns();
    if (!rc) rc = sl_bench_open_device(&b, &err);
    const int64_t opened = sl_now_ns();
    if (!rc) sl_bench_print_device(&b);
    if (!rc) rc = sl_bench_ceilings(&b, &err);
    if (!rc)
        printf("start-up %.2f s: device %.2f s, rates %.2f s\n",
               (double)(sl_now_ns() - started) * 1e-9, (double)(opened - opening) * 1e-9,
               (double)(sl_now_ns() - opened) * 1e-9);
    for (int i = 0; i < PART_COUNT && (b.product_rate > 0 || !rc); i++) {
        sl_err own = {0}; /* the others are still worth measuring */
        if (wanted[i] && PARTS[i].run(&b, &own))
            sl_complain("bench %s: %s", PARTS[i].name, own.msg), rc = own.code;
    }
    sl_bench_handover_stop(&b);
    sl_bench_team_stop(&b);
    if (*b.json) {
        sl_err second = {0};
        if (write_json(&b, &second)) sl_complain("%s", second.msg), rc = rc ? rc : second.code;
    }
    if (err.code) sl_complain("%s", err.msg);
    sl_remove_tree(private_dir);
    json_decref(b.results);
    free(b.noise);
    return rc ? SL_EXIT_FAILED : SL_EXIT_OK;
}
