/* completion.c - `sluice completion bash`: a script made from the tables of verbs and options.
 *
 * The script needs bash alone, no package of completions. What a value is, is guessed from the
 * option's table: files and folders from what it is called, else the few words that it may be. Ids
 * are asked of the server that the line names, for a second at most. */
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/pipeline.h"
#include "stages/cli/client.h"

/* Options whose values are words. */
static const struct {
    const char *option, *words;
} WORDS[] = {
    {"sampler", "unipc euler lightx2v"},
    {"order", "asc desc"},
    {"device", "cpu cuda:0"},
    {"dtype", "bf16 f32"},
    {"listen", "127.0.0.1:8080"},
};

static void put_case(const char *verb, const char *option, const char *arg)
{
    if (!arg) return;
    printf("        %s.%s) ", verb, option);
    /* replay begins at a stage, stage at a dump */
    const bool from = !strcmp(option, "from"), dump = from && !strcmp(verb, "stage");
    if (from && !dump) {
        printf("words='");
        for (int r = 0; r < SL_ROLE_COUNT; r++)
            if (sl_chunks_to((sl_role)r) < 0) printf("%s ", sl_role_name((sl_role)r));
        printf("'");
    } else if (!strcmp(option, "after")) printf("kind=ids");
    else if (dump || !strncmp(arg, "DIR", 3)) printf("kind=folders");
    else if (!strncmp(arg, "FILE", 4) || !strcmp(arg, "WHERE")) printf("kind=files");
    else {
        const char *words = "";
        for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
            if (!strcmp(WORDS[i].option, option)) words = WORDS[i].words;
        printf("words='%s'", words);
    }
    printf(" ;;\n");
}

/* A line for each option that has a value. */
static void put_values(void)
{
    const sl_verb *v;
    const sl_option *o;
    for (int i = 0; (v = sl_verb_at(i)); i++) {
        char letter;
        for (int k = 0; (o = sl_client_option_at(v, k, &letter)); k++)
            put_case(v->name, o->name, o->arg);
        for (const sl_own_option *own = v->own; own && own->name; own++)
            put_case(v->name, own->name, own->arg);
    }
}

static void put_options(void)
{
    const sl_verb *v;
    const sl_option *o;
    for (int i = 0; (v = sl_verb_at(i)); i++) {
        printf("        %s) options='", v->name);
        for (int k = 0; (o = sl_client_option_at(v, k, NULL)); k++) printf("--%s ", o->name);
        for (const sl_own_option *own = v->own; own && own->name; own++) printf("--%s ", own->name);
        printf("--help'");
        switch (v->takes) {
        case SL_TAKES_FOLDER: printf(" kind=folders"); break;
        case SL_TAKES_FILES: printf(" kind=files"); break;
        case SL_TAKES_ROLE:
            printf(" words='");
            for (int r = 0; r < SL_ROLE_COUNT; r++) printf("%s ", sl_role_name((sl_role)r));
            printf("'");
            break;
        case SL_TAKES_ID:
        case SL_TAKES_IDS: printf(" kind=ids"); break;
        case SL_TAKES_SHELL: printf(" words=bash"); break;
        case SL_TAKES_VERB: printf(" words=$verbs"); break;
        case SL_TAKES_NOTHING: break;
        }
        printf(" ;;\n");
    }
}

static const char HEAD[] =
    "# bash completion for sluice; made by `sluice completion bash`\n"
    "# shellcheck shell=bash disable=SC2207\n"
    "_sluice() {\n"
    "    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} i\n"
    "    local verb=${COMP_WORDS[1]} program=${COMP_WORDS[0]} options='' words='' kind=''\n"
    "    local -a server=()\n"
    "    # readline takes \"=\" and \":\" for words of their own\n"
    "    if [[ $current == '=' ]]; then current=''\n"
    "    elif [[ $before == '=' ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
    "    [[ ${COMP_WORDS[COMP_CWORD]} == '=' ]] && before=${COMP_WORDS[COMP_CWORD-1]}\n"
    "    COMPREPLY=()\n";

static const char SERVER[] =
    "    # the server that this line names, for ids\n"
    "    for ((i = 2; i + 1 < ${#COMP_WORDS[@]}; i++)); do\n"
    "        case ${COMP_WORDS[i]} in\n"
    "        --server | --token-file | --ca-file)\n"
    "            local value=${COMP_WORDS[i+1]} k=$((i + 1))\n"
    "            [[ $value == '=' ]] && value=${COMP_WORDS[i+2]} k=$((i + 2))\n"
    "            while [[ ${COMP_WORDS[k+1]-} == ':' ]]; do\n"
    "                value+=:${COMP_WORDS[k+2]-}\n"
    "                k=$((k + 2))\n"
    "            done\n"
    "            (( k < COMP_CWORD )) && server+=(\"${COMP_WORDS[i]}\" \"$value\") ;;\n"
    "        esac\n"
    "    done\n";

static const char TAIL[] =
    "    if [[ $current == -* && -z $valued ]]; then\n"
    "        COMPREPLY=($(compgen -W \"$options\" -- \"$current\"))\n"
    "        return\n"
    "    fi\n"
    "    case $kind in\n"
    "    files) compopt -o filenames 2>/dev/null\n"
    "        local IFS=$'\\n'\n"
    "        COMPREPLY=($(compgen -f -- \"$current\")) ;;\n"
    "    folders) compopt -o filenames 2>/dev/null\n"
    "        local IFS=$'\\n'\n"
    "        COMPREPLY=($(compgen -d -- \"$current\")) ;;\n"
    "    ids) words=$(timeout 1 \"$program\" list --ids --limit 100 --retry-s 0 \"${server[@]}\" "
    "2>/dev/null) ;;\n"
    "    esac\n"
    "    [[ $kind == files || $kind == folders ]] ||\n"
    "        COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
    "}\n"
    "complete -F _sluice sluice\n";

int sl_cli_completion(int argc, char **argv)
{
    const sl_verb *v;
    if (argc != 1 || strcmp(argv[0], "bash")) {
        sl_complain("completion wants the shell's name, bash: . <(sluice completion bash)");
        return SL_EXIT_REFUSED;
    }
    fputs(HEAD, stdout);
    printf("    local verbs='");
    for (int i = 0; (v = sl_verb_at(i)); i++) printf("%s%s", i ? " " : "", v->name);
    printf("'\n"
           "    if (( COMP_CWORD == 1 )); then\n"
           "        COMPREPLY=($(compgen -W \"$verbs --help\" -- \"$current\"))\n"
           "        return\n"
           "    fi\n");
    fputs(SERVER, stdout);
    printf("    case $verb in\n");
    put_options();
    printf("    esac\n"
           "    local valued='' long=$before\n"
           "    [[ $before == -o ]] && long=--output\n"
           "    if [[ $long == --* ]]; then\n"
           "        local ofoption=\"$verb.${long#--}\" ofverb=$kind verbwords=$words\n"
           "        kind='' words=''\n"
           "        case ${ofoption//_/-} in\n");
    put_values();
    printf("        *) long='' kind=$ofverb words=$verbwords ;;\n"
           "        esac\n"
           "        [[ -n $long ]] && valued=1\n"
           "    fi\n");
    fputs(TAIL, stdout);
    return SL_EXIT_OK;
}
