/* test_devices - which device each stage gets of a list, that what is printed of it for the stages
 * reads back, and what a run on two says of its ranks. limit: 120 s */
#include "tests/t_run.h"

#include <math.h>

#include <jansson.h>

#include "stages/job/devices.h"

static sl_err err;
static t_run run;

/* "text cuda:0, image cuda:0, ..." */
static const char *dealt(const sl_conf *c)
{
    static char out[1024];
    size_t n = 0;
    for (int i = 0; i < c->stage_count; i++) {
        char name[SL_CONF_NAME];
        n += (size_t)snprintf(out + n, sizeof out - n, "%s%s %s", i ? ", " : "",
                              sl_conf_name(c, &c->stages[i], name), c->stages[i].device);
    }
    return out;
}

/* The settings `text` with --device `devices`; what reads back from what they print is the same. */
static const char *after(const char *text, const char *devices)
{
    static sl_conf c, again;
    char *printed = NULL;
    size_t size;
    FILE *f = open_memstream(&printed, &size);
    sl_conf_defaults(&c);
    sl_conf_defaults(&again);
    T_OK(sl_conf_read_string(&c, text, "x.cfg", &err));
    T_OK(sl_conf_use_device(&c, devices, &err));
    T_OK(sl_conf_print(&c, f, &err));
    fclose(f);
    T_OK(sl_conf_read_string(&again, printed, "run.cfg", &err));
    free(printed);
    assert_string_equal(dealt(&again), dealt(&c));
    return dealt(&c);
}

static void every_stage_gets_its_device(void **state)
{
    static const char SPREAD[] =
        "stages: ( { name = \"text\"; devices = [\"cpu\", \"cpu\"]; }, { name = \"decode\"; }, "
        "{ name = \"denoise\"; devices = [\"cpu\", \"cpu\", \"cpu\"]; team = 2; } );";
    static const struct {
        const char *text, *devices, *want;
    } CASES[] = {
        {"", "", "text cpu, image cpu, denoise cpu, decode cpu, mux cpu"},
        {"", "cuda:7", "text cuda:7, image cuda:7, denoise cuda:7, decode cuda:7, mux cpu"},
        {"", "cuda:1,cuda:0",
         "text cuda:1, image cuda:1, denoise.0 cuda:1, denoise.1 cuda:0, decode cuda:0, mux cpu"},
        {"", "cuda:0,cuda:1,cuda:12",
         "text cuda:0, image cuda:0, denoise.0 cuda:0, denoise.1 cuda:1, denoise.2 cuda:12, decode "
         "cuda:12, mux cpu"},
        {"", "cuda:0,cuda:0",
         "text cuda:0, image cuda:0, denoise.0 cuda:0, denoise.1 cuda:0, decode cuda:0, mux cpu"},
        {"", "cpu,cpu", "text cpu, image cpu, denoise.0 cpu, denoise.1 cpu, decode cpu, mux cpu"},
        /* instances of a configuration: denoise's become as many, others keep their number */
        {SPREAD, "cuda:0,cuda:1",
         "text.0 cuda:0, text.1 cuda:0, decode cuda:1, denoise.0 cuda:0, denoise.1 cuda:1"},
        {SPREAD, "cuda:3",
         "text.0 cuda:3, text.1 cuda:3, decode cuda:3, denoise.0 cuda:3, denoise.1 cuda:3, "
         "denoise.2 cuda:3"},
        {"stages: ( { name = \"decode\"; } );", "cuda:0,cuda:1", "decode cuda:1"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++)
        assert_string_equal(after(CASES[i].text, CASES[i].devices), CASES[i].want);
}

static void a_list_that_is_none_is_refused(void **state)
{
    static const char WANT[] = "want cpu or cuda:N with N from 0 to 63, or up to 16 of them with "
                               "commas between";
    static const char *const NONE[] = {
        "gpu",        "cuda:64",        ",",       "cuda:0,", ",cpu",    "cuda:0,,cuda:1",
        "cuda:0;cpu", "cuda:0, cuda:1", "cuda:-1", "cuda:01", "CPU,cpu", "cpucpucpucpucpucpu"};
    char many[SL_DEVICE_LIST] = "cpu";
    sl_device_list d;
    sl_conf c;
    (void)state;
    for (size_t i = 0; i < sizeof NONE / sizeof *NONE; i++) {
        T_CODE(sl_device_list_read(&d, NONE[i], &err), SL_ARG);
        T_SAYS(err.msg, "--device is ");
        T_SAYS(err.msg, WANT);
    }
    for (int i = 1; i < SL_RANKS; i++) strcat(many, ",cpu");
    T_OK(sl_device_list_read(&d, many, &err));
    assert_int_equal(d.count, SL_RANKS);
    strcat(many, ",cpu");
    T_CODE(sl_device_list_read(&d, many, &err), SL_ARG);
    T_SAYS(err.msg, WANT);
    T_CODE(sl_device_list_read(&d, "cuda:0,cpu", &err), SL_ARG);
    assert_string_equal(err.msg, "--device is cuda:0,cpu, want devices of one kind");

    sl_conf_defaults(&c);
    T_OK(sl_conf_read_string(&c,
                             "stages: ( { name = \"denoise\"; devices = [\"cpu\", \"cpu\", "
                             "\"cpu\"]; team = 3; } );",
                             "x.cfg", &err));
    T_CODE(sl_conf_use_device(&c, "cuda:0,cuda:1", &err), SL_ARG);
    assert_string_equal(err.msg, "--device names 2 devices, want the 3 of a team of denoise");
    sl_conf_defaults(&c);
    T_OK(sl_conf_read_string(&c,
                             "stages: ( { name = \"denoise\"; }, { name = \"decode\"; devices = "
                             "[\"cpu\", \"cpu\", \"cpu\", \"cpu\", \"cpu\", \"cpu\", \"cpu\", "
                             "\"cpu\", \"cpu\", \"cpu\", \"cpu\", \"cpu\", \"cpu\", \"cpu\", "
                             "\"cpu\", \"cpu\", \"cpu\"]; } );",
                             "x.cfg", &err));
    many[strlen(many) - 4] = 0;
    T_CODE(sl_conf_use_device(&c, many, &err), SL_ARG);
    T_SAYS(err.msg, "--device makes more than 32 processes of the stages, want fewer devices");
}

/* Device memory where every sender can write to it; frames never. */
static void slots_lie_where_senders_reach(void **state)
{
    static const char THREE[] = "stages: ( { name = \"text\"; device = \"cuda:0\"; }, { name = "
                                "\"image\"; device = \"cpu\"; }, { name = \"denoise\"; devices = "
                                "[\"cuda:0\", \"cuda:1\", \"cuda:63\"]; }, { name = \"decode\"; "
                                "device = \"cuda:1\"; }, { name = \"mux\"; } );";
    static const struct {
        uint64_t maps_of_1; /* cuda:1's */
        sl_handover h;
        const char *device;
        sl_pool_kind want;
    } CASES[] = {
        {0, SL_HANDOVER_TEXT, "cuda:0", SL_POOL_CUDA}, /* the sender's own */
        {0, SL_HANDOVER_TEXT, "cuda:1", SL_POOL_HOST},
        {1, SL_HANDOVER_TEXT, "cuda:1", SL_POOL_CUDA},
        {1, SL_HANDOVER_TEXT, "cpu", SL_POOL_HOST},
        {UINT64_MAX, SL_HANDOVER_IMAGE, "cuda:1", SL_POOL_HOST}, /* made on a CPU */
        {UINT64_MAX, SL_HANDOVER_LATENTS, "cuda:1", SL_POOL_CUDA},
        {1, SL_HANDOVER_LATENTS, "cuda:1", SL_POOL_HOST}, /* cuda:63 cannot */
        {UINT64_MAX, SL_HANDOVER_FRAMES, "cuda:1", SL_POOL_HOST},
    };
    static sl_conf c;
    (void)state;
    sl_conf_defaults(&c);
    T_OK(sl_conf_read_string(&c, THREE, "x.cfg", &err));
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        sl_gpu_maps maps = {{0}};
        maps.of[1] = CASES[i].maps_of_1;
        if (sl_slot_kind(&c, CASES[i].h, CASES[i].device, &maps) != CASES[i].want)
            fail_msg("case %zu: not where it is to be", i);
    }
}

/* Both ranks took every step, together, and the job's time is accounted for once. */
static void a_run_on_two_tells_of_its_ranks(void **state)
{
    static const char *const SECONDS[] = {"computing", "exchange", "waiting"};
    char video[300], report[300];
    (void)state;
    t_run_open(&run);
    t_run_conf(&run, 3, 30, "");
    snprintf(video, sizeof video, "%s/a.mp4", run.out);
    snprintf(report, sizeof report, "%s/report.json", run.base);
    char *args[] = {"sluice",   "run",   "--conf",     run.conf,  "--model",  T_MODEL,
                    "--image",  T_IMAGE, "--prompt",   "Snow.",   "--width",  "96",
                    "--height", "96",    "--frames",   "9",       "--steps",  "8",
                    "--seed",   "7",     "--device",   "cpu,cpu", "--output", video,
                    "--json",   report,  "--guidance", "1",       NULL};
    t_run_start(&run, args);
    t_run_ends(&run, 0);
    t_run_nothing_left(&run, 0);
    if (!t_run_said(&run, " 8/8 ") || !t_run_said(&run, " s each, 2 ranks\n"))
        t_run_fail(&run, "the progress does not say that two ranks work");
    json_t *told = json_load_file(report, 0, NULL), *ranks = json_object_get(told, "ranks");
    double total = json_number_value(json_object_get(told, "total")),
           lost = json_number_value(json_object_get(told, "unaccounted"));
    json_t *denoise = json_object_get(json_object_get(told, "stages"), "denoise");
    assert_int_equal(json_array_size(ranks), 2);
    double rows = 0;
    for (int i = 0; i < 2; i++) {
        json_t *k = json_array_get(ranks, (size_t)i);
        double sum = 0;
        assert_int_equal(json_integer_value(json_object_get(k, "instance")), i);
        assert_int_equal(json_integer_value(json_object_get(k, "attempts")), 1);
        assert_int_equal(json_integer_value(json_object_get(k, "team")), 2);
        assert_int_equal(json_integer_value(json_object_get(k, "steps")), 8);
        assert_true(json_integer_value(json_object_get(k, "sent_bytes")) > 0);
        rows += json_number_value(json_object_get(k, "rows"));
        for (int s = 0; s < 3; s++) sum += json_number_value(json_object_get(k, SECONDS[s]));
        assert_true(sum > 0 && sum < total);
    }
    assert_true(fabs(rows - 1) < 1e-9);
    /* a mate's spans are not the job's; what starts at the same time counts once */
    if (json_number_value(json_object_get(denoise, "computing")) +
            json_number_value(json_object_get(denoise, "loading")) >
        total)
        t_run_fail(&run, "denoise is busy for longer than the job takes");
    if (!(lost >= 0 && lost < 0.1 * total))
        t_run_fail(&run, "%.3f of %.3f s are unaccounted for", lost, total);
    json_decref(told);
    t_run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_stage_gets_its_device),
                                       cmocka_unit_test(a_list_that_is_none_is_refused),
                                       cmocka_unit_test(slots_lie_where_senders_reach),
                                       cmocka_unit_test(a_run_on_two_tells_of_its_ranks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
