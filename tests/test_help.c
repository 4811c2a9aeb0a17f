/* test_help.c - help, the manual page and the completion, looked at by the tools that they are
 * for:
 * bash, groff. takes: 3 s. */
#include "tests/t_run.h"

#include "stages/cli/client.h"
#include "stages/cli/verbs.h"

static char dir[256];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    t_rmdir(dir);
    return 0;
}

/* What a shell command prints, stderr too, if it ends well; the caller's. */
static char *shell(const char *command)
{
    char *text = NULL;
    size_t size = 0, n;
    char piece[4096];
    FILE *to = open_memstream(&text, &size), *from = popen(t_format("{ %s\n} 2>&1", command), "r");
    assert_true(to && from);
    while ((n = fread(piece, 1, sizeof piece, from))) fwrite(piece, 1, n, to);
    fclose(to);
    int status = pclose(from);
    if (status) fail_msg("%s: status %d: %s", command, status, text);
    return text;
}

/* ---- help ---- */

/* Every verb has help, which names every option of it. */
static void help_names_all(void **state)
{
    (void)state;
    const sl_verb *v;
    char *all = shell(t_format("'%s/sluice' help", t_bin()));
    for (int i = 0; (v = sl_verb_at(i)); i++) {
        const sl_option *o;
        T_SAYS(all, t_format("  sluice %s", v->name));
        char *one = shell(t_format("'%s/sluice' help %s", t_bin(), v->name));
        T_SAYS(one, v->what);
        for (int k = 0; (o = sl_client_option_at(v, k, NULL)); k++)
            T_SAYS(one, t_format("--%s", o->name));
        for (const sl_own_option *own = v->own; own && own->name; own++)
            T_SAYS(one, t_format("--%s", own->name));
        if (strcmp(v->name, "bench")) {
            char *same = shell(t_format("'%s/sluice' %s --help", t_bin(), v->name));
            assert_string_equal(one, same);
            free(same);
        }
        free(one);
    }
    free(all);
}

/* No option stands twice in a verb's list. */
static void options_of_a_verb_are_one_list(void **state)
{
    (void)state;
    const sl_verb *v;
    const sl_option *a, *b;
    for (int i = 0; (v = sl_verb_at(i)); i++)
        for (int k = 0; (a = sl_client_option_at(v, k, NULL)); k++)
            for (int n = 0; n < k && (b = sl_client_option_at(v, n, NULL)); n++)
                if (!strcmp(a->name, b->name)) fail_msg("%s has --%s twice", v->name, a->name);
}

/* ---- the manual page ---- */

static void the_manual_page(void **state)
{
    (void)state;
    if (system("command -v groff >/dev/null")) skip();
    char *page = shell(t_format("'%s/sluice' man >'%s/sluice.1'", t_bin(), dir));
    assert_string_equal(page, "");
    free(page);
    /* a warning would be a text */
    char *warnings = shell(t_format("groff -man -Tutf8 -ww -z '%s/sluice.1'", dir));
    assert_string_equal(warnings, "");
    free(warnings);
    char *text = shell(
        t_format("GROFF_NO_SGR=1 groff -man -Tascii -rLL=1000n -P-c -P-b -P-u '%s/sluice.1'", dir));
    const sl_verb *v;
    const sl_option *o;
    for (int i = 0; (v = sl_verb_at(i)); i++) T_SAYS(text, t_format("sluice %s", v->name));
    for (int i = 0; (o = sl_option_at(i)); i++) T_SAYS(text, t_format("--%s", o->name));
    T_SAYS(text, "EXIT STATUS");
    T_SAYS(text, "torch.Generator(\"cpu\")");
    T_SAYS(text, "safetensors with `noise` [16, T, h/8, w/8] F32");
    T_SAYS(text, "~/.local/state/sluice");
    T_SAYS(text, "sluice wait -o videos/ $(sluice list --all --ids)\n");
    free(text);
    if (!system("command -v man >/dev/null")) {
        text = shell(t_format("MANWIDTH=80 LC_ALL=C man --warnings -l '%s/sluice.1' | cat", dir));
        T_SAYS(text, "SLUICE(1)");
        free(text);
    }
    if (system("command -v mandoc >/dev/null")) return;
    text = shell(t_format("mandoc -Tlint -Wwarning '%s/sluice.1'", dir));
    assert_string_equal(text, "");
    free(text);
}

/* ---- the completion ---- */

/* What bash offers for these words, the last of which is being typed; sorted, between spaces. */
static char *complete(const char *words, int at)
{
    return shell(t_format("cd tests/golden/tiny-i2v && bash --norc -c '"
                          ". \"%s/completion\"; COMP_WORDS=(%s); COMP_CWORD=%d; _sluice; "
                          "printf \"%%s\\n\" \"${COMPREPLY[@]}\" | LC_ALL=C sort | "
                          "tr \"\\n\" \" \"'",
                          dir, words, at));
}

static void the_completion(void **state)
{
    static const struct {
        const char *words;
        int at;
        const char *want;
    } CASES[] = {
        {"sluice wa", 1, "wait "},
        {"sluice re", 1, "replay report "},
        {"sluice help wai", 2, "wait "},
        {"sluice completion \"\"", 2, "bash "},
        {"sluice run --ste", 2, "--step --steps "},
        {"sluice run --fbcache-m", 2, "--fbcache-max-hits "},
        {"sluice submit --de", 2, " "}, /* --device is a run's */
        {"sluice submit --w", 2, "--wait --width "},
        {"sluice list --o", 2, "--order "},
        {"sluice list --order \"\"", 3, "asc desc "},
        {"sluice list --order = d", 4, "desc "},
        {"sluice list --order =", 3, "asc desc "},
        {"sluice run --sampler u", 3, "unipc "},
        {"sluice run --image i2v-96x64x9.p", 3, "i2v-96x64x9.png "},
        {"sluice submit -o i2v-96x64x9.p", 3, "i2v-96x64x9.png "},
        {"sluice run --model m", 3, "model "},
        {"sluice inspect m", 2, "model "},
        {"sluice diff i2v-96x64x9.png m", 3, "model "},
        {"sluice replay model --from de", 4, "decode denoise "},
        {"sluice pack --dtype b", 3, "bf16 "},
        {"sluice serve --st", 2, "--state "},
        {"sluice run --prompt \"\"", 3, " "},
        {"sluice wait --server /nowhere vid", 4, " "}, /* no server, no ids, no wait */
    };
    (void)state;
    free(shell(t_format("'%s/sluice' completion bash >'%s/completion'", t_bin(), dir)));
    free(shell(t_format("bash -n '%s/completion'", dir)));
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char *got = complete(CASES[i].words, CASES[i].at);
        if (strcmp(got, CASES[i].want))
            fail_msg("%s: \"%s\", want \"%s\"", CASES[i].words, got, CASES[i].want);
        free(got);
    }
    /* every verb is offered */
    char *verbs = complete("sluice \"\"", 1);
    const sl_verb *v;
    for (int i = 0; (v = sl_verb_at(i)); i++) T_SAYS(verbs, t_format("%s ", v->name));
    free(verbs);
    if (system("command -v shellcheck >/dev/null")) return;
    free(shell(t_format("shellcheck -S warning '%s/completion'", dir)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_names_all),
        cmocka_unit_test(options_of_a_verb_are_one_list),
        cmocka_unit_test_setup_teardown(the_manual_page, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(the_completion, make_dir, remove_dir),
    };
    unsetenv("SLUICE_SERVER");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
