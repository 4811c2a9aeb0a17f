/* verbs.c - the table of verbs. */
#include "stages/cli/verbs.h"

#include <stdio.h>
#include <string.h>

#include "common/text.h"
#include "stages/bench/bench.h"

/* Files in place of a checkpoint's own. */
#define MODEL_FILES                                                                                \
    {"transformer", "FILE", "in place of the checkpoint's; the high-noise expert"},                \
        {"transformer-2", "FILE", "likewise the low-noise expert"},                                \
        {"text-encoder", "FILE", "likewise UMT5"}, {"image-encoder", "FILE", "likewise CLIP"},     \
        {"vae", "FILE", "likewise the VAE"},                                                       \
    {                                                                                              \
        "tokenizer", "FILE", "likewise spiece.model or tokenizer.json"                             \
    }
static const sl_own_option INSPECT[] = {
    {"deep", NULL, "also: is every number finite?"},
    {"lenient", NULL, "weights without a place are no failure"},
    MODEL_FILES,
    {0},
};
static const sl_own_option PACK[] = {
    {"model", "DIR", "the checkpoint"},
    {"output", "DIR2", "the copy, also -o"},
    {"dtype", "bf16|f32", "of the transformers and the text encoder (default bf16)"},
    {"random", NULL, "random weights for DIR's configurations"},
    {"component", "NAME", "with --random: of these components alone"},
    {"quiet", NULL, "no progress"},
    MODEL_FILES,
    {0},
};
static const sl_own_option DIFF[] = {
    {"tol", "T", "relative L2 of a tensor that still counts as the same (default 0: every number)"},
    {"json", NULL, "for machines"},
    {0},
};
static const sl_own_option BENCH[] = {
    {"device", "D[,D...]", "cpu or cuda:N"},
    {"help", NULL, "all of its options"},
    {0},
};
static const sl_own_option SERVE[] = {
    {"model", "DIR", "the checkpoint"},
    {"conf", "FILE", "deployment settings (conf/demo.cfg shows them all)"},
    {"state", "DIR",
     "the state folder (default: XDG_STATE_HOME/sluice, else ~/.local/state/sluice)"},
    {"listen", "ADDRESS", "HOST:PORT (default 127.0.0.1:8080; port 0: any free one)"},
    {"tokens", "FILE", "who may use it: lines of NAME TOKEN, in a file of mode 0600"},
    {"device", "D[,D...]", "cpu or cuda:N, for all stages; of several, each denoises"},
    {"queue", "URL", "redis://HOST/N: a queue that servers share; else SLUICE_QUEUE, else its own"},
    {"blobs", "PLACE",
     "with --queue: jobs' files, a folder that they all share or s3://BUCKET[/PREFIX]"},
    {"role", "front|worker|both", "with --queue: take requests, make videos, or both (default)"},
    MODEL_FILES,
    {0},
};

static const sl_own_option PROTOCOL[] = {
    {"json", NULL, "as one JSON object, for programs (default)"},
    {"markdown", NULL, "its tables of messages, as docs/protocol.md"},
    {0},
};

static const sl_verb VERBS[] = {
    {"run", sl_cli_run, SL_TAKES_NOTHING, SL_OPTIONS_RUN, NULL,
     "--model DIR --image FILE --prompt TEXT [-o out.mp4] [options]\n"
     "--model DIR --jobs FILE.jsonl [options]\n"
     "--server WHERE --image FILE --prompt TEXT [-o out.mp4] [options]",
     "picture and prompt in, video out; with --server it is made there"},
    {"replay", sl_cli_replay, SL_TAKES_FOLDER, SL_OPTIONS_RUN, NULL,
     "DIR --from text|image|denoise|decode [options]", "run on from dumped hand-overs"},
    {"stage", sl_cli_stage, SL_TAKES_ROLE, SL_OPTIONS_RUN, NULL,
     "text|image|denoise|decode|mux --from DIR [options] [-- gdb --args]",
     "one stage on this terminal, from dumped hand-overs, behind a debugger or profiler"},
    {"inspect", sl_cli_inspect, SL_TAKES_FOLDER, SL_OPTIONS_OWN, INSPECT,
     "FOLDER|FILE [--deep] [--lenient]",
     "what it is and holds, what is missing or odd: checkpoints of any maker, a LoRA, one file"},
    {"plan", sl_cli_plan, SL_TAKES_NOTHING, SL_OPTIONS_RUN, NULL, "--model DIR [options of run]",
     "the memory that a run takes, by stage and device"},
    {"pack", sl_cli_pack, SL_TAKES_NOTHING, SL_OPTIONS_OWN, PACK,
     "--model DIR -o DIR2 [--dtype bf16|f32] [--quiet]\n"
     "--random [--component NAME]... --model DIR -o DIR2",
     "a copy of a checkpoint in the form that loads fastest; --random: random weights for DIR's "
     "configurations, to measure with"},
    {"diff", sl_cli_diff, SL_TAKES_FILES, SL_OPTIONS_OWN, DIFF, "A B [--tol T] [--json]",
     "two dumps, or two files of tensors, in the pipeline's order: where they part first, and who "
     "made it"},
    {"bench", sl_bench_main, SL_TAKES_NOTHING, SL_OPTIONS_OWN, BENCH,
     "[WHAT...] [--device cuda:N[,cuda:M...]]", "how fast it runs here: sluice bench --help"},
    {"serve", sl_cli_serve, SL_TAKES_NOTHING, SL_OPTIONS_OWN, SERVE,
     "--model DIR [--conf FILE] [--state DIR] [--listen HOST:PORT] [--tokens FILE] [--device D]\n"
     "--model DIR --queue redis://HOST/N --blobs PLACE [--role front|worker] [options]\n"
     "--transformer FILE --text-encoder FILE --vae FILE [--image-encoder FILE] [options]",
     "a server: jobs over HTTP, a queue that survives, a page to watch it"},
    {"submit", sl_cli_submit, SL_TAKES_NOTHING, SL_OPTIONS_JOB, NULL,
     "--image FILE --prompt TEXT [--wait -o out.mp4] [options]\n"
     "--jobs FILE.jsonl [options]",
     "a job for a server; prints its id"},
    {"status", sl_cli_status, SL_TAKES_IDS, SL_OPTIONS_CLIENT, NULL, "ID... [--json]",
     "how far jobs of a server are"},
    {"list", sl_cli_list, SL_TAKES_NOTHING, SL_OPTIONS_CLIENT, NULL,
     "[--limit N] [--after ID] [--order asc|desc] [--all] [--ids] [--json]", "a server's jobs"},
    {"wait", sl_cli_wait, SL_TAKES_IDS, SL_OPTIONS_CLIENT, NULL,
     "ID... [-o FILE] [--timeout S] [--json]",
     "until jobs have ended, with their progress; -o fetches the video"},
    {"cancel", sl_cli_cancel, SL_TAKES_IDS, SL_OPTIONS_CLIENT, NULL, "ID...",
     "end jobs that wait or run; what is done of them is kept"},
    {"delete", sl_cli_delete, SL_TAKES_IDS, SL_OPTIONS_CLIENT, NULL, "ID...",
     "end jobs and forget them, with their videos"},
    {"logs", sl_cli_logs, SL_TAKES_ID, SL_OPTIONS_CLIENT, NULL, "[-f] ID [--json]",
     "what the server's processes said of a job; -f: until it has ended"},
    {"trace", sl_cli_trace, SL_TAKES_ID, SL_OPTIONS_CLIENT, NULL, "ID [-o FILE]",
     "a job's spans, for Perfetto and Chrome"},
    {"report", sl_cli_report, SL_TAKES_ID, SL_OPTIONS_CLIENT, NULL, "ID [-o FILE] [--json]",
     "where a job's time went"},
    {"protocol", sl_cli_protocol, SL_TAKES_NOTHING, SL_OPTIONS_OWN, PROTOCOL, "[--json|--markdown]",
     "what stages say and share, byte by byte, for a stage of your own"},
    {"completion", sl_cli_completion, SL_TAKES_SHELL, SL_OPTIONS_OWN, NULL, "bash",
     "a completion for bash: . <(sluice completion bash)"},
    {"man", sl_cli_man, SL_TAKES_NOTHING, SL_OPTIONS_OWN, NULL, "",
     "this command's manual page: sluice man | man -l -"},
    {"help", sl_cli_help, SL_TAKES_VERB, SL_OPTIONS_OWN, NULL, "[VERB]",
     "the verbs and their options, or those of one verb"},
};
#define VERB_COUNT ((int)(sizeof VERBS / sizeof *VERBS))

const sl_verb *sl_verb_at(int i)
{
    return i >= 0 && i < VERB_COUNT ? &VERBS[i] : NULL;
}

const sl_verb *sl_verb_find(const char *name)
{
    for (int i = 0; i < VERB_COUNT; i++)
        if (!strcmp(VERBS[i].name, name)) return &VERBS[i];
    return NULL;
}

sl_code sl_verb_want(const sl_verb **out, const char *name, sl_err *err)
{
    const sl_verb *near = NULL;
    int best = 99;
    char names[256] = "";
    if ((*out = sl_verb_find(name))) return SL_OK;
    for (int i = 0; i < VERB_COUNT; i++) {
        const size_t used = strlen(names);
        /* of those that are as near, one with the same first letter */
        const int d = 2 * sl_text_distance(name, VERBS[i].name) + (*name != *VERBS[i].name);
        if (d < best) best = d, near = &VERBS[i];
        snprintf(names + used, sizeof names - used, "%s%s",
                 !i                   ? ""
                 : i + 1 < VERB_COUNT ? ", "
                                      : " or ",
                 VERBS[i].name);
    }
    if (!*name) return sl_fail(err, SL_ARG, "no command, want %s", names);
    if (near && best <= 5 && best / 2 < (int)strlen(near->name))
        return sl_fail(err, SL_ARG, "unknown command \"%.60s\", did you mean %s?", name,
                       near->name);
    return sl_fail(err, SL_ARG, "unknown command \"%.60s\", want %s", name, names);
}
