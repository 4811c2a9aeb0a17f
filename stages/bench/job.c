/* job.c - a whole job of the 14B model with random weights through all processes,
 * with the GPU memory of each process. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/json.h"
#include "stages/bench/measure.h"
#include "stages/job/files.h"

/* Spec 1.2 to 1.7: what the configurations of Wan2.1-I2V-14B say where it is not their
 * default. */
static const struct {
    const char *dir, *file, *text;
} FILES[] = {
    {"", "model_index.json",
     "{\"_class_name\": \"WanImageToVideoPipeline\", \"image_encoder\": [\"transformers\", "
     "\"CLIPVisionModel\"],\n"
     " \"image_processor\": [\"transformers\", \"CLIPImageProcessor\"], \"scheduler\": "
     "[\"diffusers\", "
     "\"UniPCMultistepScheduler\"],\n"
     " \"text_encoder\": [\"transformers\", \"UMT5EncoderModel\"], \"tokenizer\": "
     "[\"transformers\", \"T5TokenizerFast\"],\n"
     " \"transformer\": [\"diffusers\", \"WanTransformer3DModel\"], \"vae\": [\"diffusers\", "
     "\"AutoencoderKLWan\"]}\n"},
    {"transformer", "config.json",
     "{\"_class_name\": \"WanTransformer3DModel\", \"num_layers\": 40, \"num_attention_heads\": "
     "40, \"attention_head_dim\": 128, "
     "\"ffn_dim\": 13824,\n"
     " \"in_channels\": 36, \"out_channels\": 16, \"text_dim\": 4096, \"freq_dim\": 256, "
     "\"image_dim\": 1280, "
     "\"added_kv_proj_dim\": 5120,\n"
     " \"patch_size\": [1, 2, 2], \"cross_attn_norm\": true, \"qk_norm\": "
     "\"rms_norm_across_heads\", \"eps\": 1e-06, "
     "\"rope_max_seq_len\": 1024,\n"
     " \"pos_embed_seq_len\": null}\n"},
    {"text_encoder", "config.json",
     "{\"architectures\": [\"UMT5EncoderModel\"], \"model_type\": \"umt5\", \"num_layers\": 24, "
     "\"num_heads\": 64, \"d_kv\": 64, "
     "\"d_model\": 4096,\n"
     " \"d_ff\": 10240, \"vocab_size\": 256384, \"relative_attention_num_buckets\": 32, "
     "\"relative_attention_max_distance\": 128,\n"
     " \"feed_forward_proj\": \"gated-gelu\", \"dense_act_fn\": \"gelu_new\", \"is_gated_act\": "
     "true, \"layer_norm_epsilon\": "
     "1e-06}\n"},
    {"image_encoder", "config.json",
     "{\"architectures\": [\"CLIPVisionModel\"], \"model_type\": \"clip_vision_model\", "
     "\"num_hidden_layers\": 32, "
     "\"num_attention_heads\": 16,\n"
     " \"hidden_size\": 1280, \"intermediate_size\": 5120, \"patch_size\": 14, \"image_size\": "
     "224, \"hidden_act\": \"gelu\", "
     "\"layer_norm_eps\": 1e-05}\n"},
    {"image_processor", "preprocessor_config.json",
     "{\"do_convert_rgb\": true, \"do_resize\": true, \"do_center_crop\": true, \"do_rescale\": "
     "true, \"do_normalize\": true, "
     "\"resample\": 3,\n"
     " \"size\": {\"shortest_edge\": 224}, \"crop_size\": {\"height\": 224, \"width\": 224}, "
     "\"rescale_factor\": "
     "0.00392156862745098,\n"
     " \"image_mean\": [0.48145466, 0.4578275, 0.40821073], \"image_std\": [0.26862954, "
     "0.26130258, 0.27577711]}\n"},
    {"vae", "config.json",
     "{\"_class_name\": \"AutoencoderKLWan\", \"base_dim\": 96, \"dim_mult\": [1, 2, 4, 4], "
     "\"num_res_blocks\": 2, \"z_dim\": 16,\n"
     " \"temperal_downsample\": [false, true, true], \"attn_scales\": []}\n"},
    {"scheduler", "scheduler_config.json",
     "{\"_class_name\": \"UniPCMultistepScheduler\", \"flow_shift\": 5.0, \"prediction_type\": "
     "\"flow_prediction\", "
     "\"use_flow_sigmas\": true,\n"
     " \"num_train_timesteps\": 1000, \"solver_order\": 2, \"solver_type\": \"bh2\"}\n"},
};

static sl_code write_text(const char *path, const void *text, size_t size, sl_err *err)
{
    FILE *f = fopen(path, "we");
    if (!f) return sl_fail_errno(err, errno, "%s", path);
    size_t put = fwrite(text, 1, size, f);
    if (fclose(f) || put != size) return sl_fail_errno(err, errno ? errno : EIO, "%s", path);
    return SL_OK;
}

sl_code sl_bench_write_14b(const char *dir, sl_err *err)
{
    char folder[SL_PATH], path[SL_PATH];
    sl_code rc = SL_OK;
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES && !rc; i++) {
        if (*FILES[i].dir) rc = sl_path_join(folder, dir, FILES[i].dir, err);
        else snprintf(folder, sizeof folder, "%s", dir);
        if (rc || (rc = sl_make_dirs(folder, err)) ||
            (rc = sl_path_join(path, folder, FILES[i].file, err)))
            break;
        rc = write_text(path, FILES[i].text, strlen(FILES[i].text), err);
    }
    return rc;
}

/* The small model's tokenizer stands in: it knows fewer pieces. */
static sl_code add_tokenizer(const sl_bench *b, sl_err *err)
{
    char from[SL_PATH], to[SL_PATH];
    sl_code rc = sl_path_join(to, b->model_dir, "tokenizer", err);
    if (rc || (rc = sl_make_dirs(to, err)) ||
        (rc = sl_path_join(to, b->model_dir, "tokenizer/spiece.model", err)))
        return rc;
    if (!access(to, R_OK)) return SL_OK;
    if ((rc = sl_path_join(from, b->program_dir, "../models/demo/tokenizer/spiece.model", err)))
        return rc;
    if (access(from, R_OK)) snprintf(from, sizeof from, "models/demo/tokenizer/spiece.model");
    return sl_copy_file(from, to, err);
}

/* A picture of slow waves, as a bitmap of 24 bits. */
static sl_code make_picture(const char *path, int w, int h, sl_err *err)
{
    const size_t row = ((size_t)w * 3 + 3) / 4 * 4, size = 54 + row * (size_t)h;
    uint8_t *p = calloc(1, size);
    if (!p) return sl_fail(err, SL_NOMEM, "a picture of %zu bytes", size);
    const uint32_t head[] = {(uint32_t)size,
                             0,
                             54,
                             40,
                             (uint32_t)w,
                             (uint32_t)h,
                             1 | 24 << 16,
                             0,
                             (uint32_t)(row * (size_t)h),
                             2835,
                             2835,
                             0,
                             0};
    memcpy(p, "BM", 2);
    memcpy(p + 2, head, sizeof head);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++)
            for (int c = 0; c < 3; c++) {
                int at = (x * (c + 2) + y * (4 - c)) / 4 % 510;
                p[54 + (size_t)y * row + (size_t)x * 3 + (size_t)c] =
                    (uint8_t)(at < 256 ? at : 510 - at);
            }
    sl_code rc = write_text(path, p, size, err);
    free(p);
    return rc;
}

/* ---- GPU memory of each process ---- */

#define NAMES 16

typedef struct {
    char name[NAMES][32];
    uint64_t most[NAMES]; /* bytes */
    int count;
    size_t least_free;
} watch;

static void note(watch *w, const char *name, uint64_t bytes)
{
    int i = 0;
    while (i < w->count && strcmp(w->name[i], name)) i++;
    if (i == NAMES) return;
    if (i == w->count) snprintf(w->name[w->count++], sizeof w->name[0], "%s", name);
    if (bytes > w->most[i]) w->most[i] = bytes;
}

/* Where the driver shows other processes; otherwise nothing is noted. */
static void ask_smi(watch *w)
{
    char line[128], path[64], name[32];
    FILE *f = popen(
        "nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits 2>/dev/null",
        "re");
    while (f && fgets(line, sizeof line, f)) {
        int pid;
        unsigned long long mib;
        if (sscanf(line, "%d, %llu", &pid, &mib) != 2) continue;
        snprintf(path, sizeof path, "/proc/%d/comm", pid);
        FILE *comm = fopen(path, "re");
        if (comm && fgets(name, sizeof name, comm)) {
            name[strcspn(name, "\n")] = 0;
            note(w, name, mib << 20);
        }
        if (comm) fclose(comm);
    }
    if (f) pclose(f);
}

static sl_code watch_until_end(const sl_bench *b, pid_t pid, int64_t limit_s, watch *w, int *status,
                               sl_err *err)
{
    const int64_t end = sl_now_ns() + limit_s * 1000000000;
    w->least_free = SIZE_MAX;
    for (int turn = 0;; turn++) {
        size_t now, total;
        pid_t got = waitpid(pid, status, WNOHANG);
        if (got == pid) return SL_OK;
        if (got < 0) return sl_fail_errno(err, errno, "the job's process");
        if (sl_now_ns() > end) {
            kill(pid, SIGTERM);
            waitpid(pid, status, 0);
            return sl_fail(err, SL_TIMEOUT, "the job took more than %lld s", (long long)limit_s);
        }
        if (b->plugin && !b->plugin->memory(b->ordinal, &now, &total, NULL) && now < w->least_free)
            w->least_free = now;
        if (b->plugin && turn % 10 == 0) ask_smi(w);
        usleep(200000);
    }
}

/* ---- the job ---- */

static pid_t start(char *const argv[], sl_err *err)
{
    pid_t self = getpid(), pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != self) _exit(127);
        execv(argv[0], argv);
        _exit(127);
    }
    if (pid < 0) sl_fail_errno(err, errno, "%s", argv[0]);
    return pid;
}

static sl_code tell(sl_bench *b, const sl_bench_size *s, const char *report_path, const watch *w,
                    size_t free_before, sl_err *err)
{
    json_t *told, *processes = json_object();
    sl_code rc = sl_json_read(&told, report_path, 64 << 20, err);
    const size_t peak = b->plugin && w->least_free < free_before ? free_before - w->least_free : 0;
    if (rc) {
        json_decref(processes);
        return rc;
    }
    const double total = json_number_value(json_object_get(told, "total")),
                 lost = json_number_value(json_object_get(told, "unaccounted"));
    printf("job %dx%dx%d, %d steps, guidance %g: %.2f s, %.2f %% unaccounted for, peak %.2f GiB of "
           "the GPU\n",
           s->w, s->h, s->frames, b->steps, b->guidance, total, total > 0 ? 100 * lost / total : 0,
           (double)peak / (1 << 30));
    for (int i = 0; i < w->count; i++) {
        printf("  %-20s at most %.2f GiB of the GPU\n", w->name[i], (double)w->most[i] / (1 << 30));
        json_object_set_new(processes, w->name[i], json_integer((json_int_t)w->most[i]));
    }
    char size[64];
    snprintf(size, sizeof size, "%dx%dx%d", s->w, s->h, s->frames);
    json_array_append_new(b->results,
                          json_pack("{s:s, s:s, s:i, s:f, s:f, s:f, s:I, s:o, s:o}", "what", "job",
                                    "size", size, "steps", b->steps, "guidance", b->guidance,
                                    "seconds", total, "unaccounted", lost, "peak_bytes",
                                    (json_int_t)peak, "processes", processes, "report", told));
    return SL_OK;
}

static const char PROMPT[] = "A lighthouse on a cliff above a stormy sea at dusk; waves break on "
                             "the rocks, gulls circle, the camera rises slowly.";

sl_code sl_bench_job(sl_bench *b, sl_err *err)
{
    const sl_bench_size *s = &b->sizes[b->size_count - 1];
    char dir[SL_PATH], program[SL_PATH], conf[SL_PATH], picture[SL_PATH], video[SL_PATH],
        told[SL_PATH], text[256], devices[SL_DEVICE_LIST] = "", w[16], h[16], f[16], n[16],
                                  guidance[32];
    size_t free_before = 0, total;
    watch seen = {.count = 0};
    int status = 0;
    sl_code rc = sl_make_run_dir(dir, "", err);
    if (rc) return rc;
    if ((rc = sl_path_join(program, b->program_dir, "sluice", err)) ||
        (rc = sl_path_join(conf, dir, "bench.cfg", err)) ||
        (rc = sl_path_join(picture, dir, "picture.bmp", err)) ||
        (rc = sl_path_join(video, dir, "video.mp4", err)) ||
        (rc = sl_path_join(told, dir, "report.json", err)) || (rc = add_tokenizer(b, err)))
        goto done;
    snprintf(text, sizeof text,
             "model: { random = 1; };\nlimits: { pixels = %lld; frames = %d; };\n",
             (long long)s->w * s->h, s->frames);
    if ((rc = write_text(conf, text, strlen(text), err))) goto done;
    if (*b->image) snprintf(picture, sizeof picture, "%s", b->image);
    else if ((rc = make_picture(picture, s->w, s->h, err))) goto done;
    snprintf(w, sizeof w, "%d", s->w);
    snprintf(h, sizeof h, "%d", s->h);
    snprintf(f, sizeof f, "%d", s->frames);
    snprintf(n, sizeof n, "%d", b->steps);
    snprintf(guidance, sizeof guidance, "%g", b->guidance);
    for (int i = 0; i < b->devices.count; i++)
        snprintf(devices + strlen(devices), sizeof devices - strlen(devices), "%s%s", i ? "," : "",
                 b->devices.at[i]);
    if (b->plugin && (rc = b->plugin->memory(b->ordinal, &free_before, &total, err))) goto done;
    const char *argv[] = {program,      "run",    "--conf",   conf,    "--model",     b->model_dir,
                          "--device",   devices,  "--image",  picture, "--width",     w,
                          "--height",   h,        "--frames", f,       "--steps",     n,
                          "--guidance", guidance, "--seed",   "1",     "--json",      told,
                          "-o",         video,    "--prompt", PROMPT,  "--precision", b->precision,
                          NULL};
    pid_t pid = start((char *const *)(uintptr_t)argv, err);
    if (pid < 0) {
        rc = err->code;
        goto done;
    }
    rc = watch_until_end(b, pid, 1200 + (int64_t)b->steps * 300, &seen, &status, err);
    if (!rc && (!WIFEXITED(status) || WEXITSTATUS(status)))
        rc = sl_fail(err, SL_GONE, "sluice run ended with %s %d",
                     WIFEXITED(status) ? "status" : "signal",
                     WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    if (!rc) rc = tell(b, s, told, &seen, free_before, err);
done:
    sl_remove_tree(dir);
    return rc;
}
