/* conf_print.c - the settings of a deployment as a file, with what the table in conf_keys.c says of
 * each key. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/conf_keys.h"

static void print_string(FILE *to, const char *text)
{
    fputc('"', to);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') fprintf(to, "\\%c", c);
        else if (c < ' ' || c == 127) fprintf(to, "\\x%02x", c);
        else fputc(c, to);
    }
    fputc('"', to);
}

static void print_args(FILE *to, const sl_conf_stage *s)
{
    fputs("[", to);
    for (int i = 0; i < s->arg_count; i++) {
        if (i) fputs(", ", to);
        print_string(to, s->args[i]);
    }
    fputs("]", to);
}

static void print_value(FILE *to, const sl_key *k, const void *base)
{
    const char *at = (const char *)base + k->at;
    char text[64];
    switch (k->type) {
    case SL_KEY_INT: fprintf(to, "%d", *(const int *)at); break;
    case SL_KEY_INT64:
        fprintf(to, *(const int64_t *)at > 0x7fffffff ? "%lldL" : "%lld",
                (long long)*(const int64_t *)at);
        break;
    case SL_KEY_FLOAT:
        /* the shortest that reads back as the same number */
        for (int digits = 6; digits <= 17; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, *(const double *)at);
            if (strtod(text, NULL) == *(const double *)at) break;
        }
        fprintf(to, "%s%s", text, strpbrk(text, ".e") ? "" : ".0");
        break;
    case SL_KEY_WORD:
        sl_key_word_at(k->words, *(const int *)at, text, sizeof text);
        print_string(to, text);
        break;
    case SL_KEY_ARGS: print_args(to, base); break;
    case SL_KEY_TEAM:
        if (*(const int *)at) fprintf(to, "%d", *(const int *)at);
        else print_string(to, "auto");
        break;
    case SL_KEY_DEVICES: break; /* each process is printed with its own */
    case SL_KEY_TEXT:
    case SL_KEY_WORDS:
    case SL_KEY_PROGRAM:
    case SL_KEY_DEVICE: print_string(to, at); break;
    }
}

static void print_keys(FILE *to, const sl_conf *conf)
{
    char want[320], what[256], group[64] = "";
    for (int i = 0; i < SL_CONF_KEYS.count; i++) {
        const sl_key *k = &SL_CONF_KEYS.at[i];
        int n = (int)strcspn(k->path, ".");
        if (strncmp(k->path, group, (size_t)n) || group[n]) {
            if (group[0]) fputs("};\n\n", to);
            snprintf(group, sizeof group, "%.*s", n, k->path);
            fprintf(to, "%s:\n{\n", group);
        }
        fprintf(to, "    # %s\n    #   %s\n    %s = ", sl_key_meaning(k, what, sizeof what),
                sl_key_values(k, want, sizeof want), k->path + n + 1);
        print_value(to, k, conf);
        fputs(";\n", to);
    }
    fputs("};\n\n", to);
}

static void print_loras(FILE *to, const sl_conf *conf)
{
    char want[320], what[256];
    fputs("# LoRA that requests over HTTP may ask for, by name. Keys of one:\n", to);
    for (int i = 0; i < SL_CONF_LORA_KEYS.count; i++)
        fprintf(to, "#   %-10s %s\n#              %s\n", SL_CONF_LORA_KEYS.at[i].path,
                sl_key_meaning(&SL_CONF_LORA_KEYS.at[i], what, sizeof what),
                sl_key_values(&SL_CONF_LORA_KEYS.at[i], want, sizeof want));
    fputs("lora:\n(\n", to);
    for (int i = 0; i < conf->lora_count; i++) {
        fputs("    { ", to);
        for (int k = 0; k < SL_CONF_LORA_KEYS.count; k++) {
            fprintf(to, "%s = ", SL_CONF_LORA_KEYS.at[k].path);
            print_value(to, &SL_CONF_LORA_KEYS.at[k], &conf->lora[i]);
            fputs("; ", to);
        }
        fputs(i + 1 < conf->lora_count ? "},\n" : "}\n", to);
    }
    fputs(");\n\n", to);
}

static void print_filters(FILE *to, const sl_conf *conf)
{
    char want[320], what[256];
    fputs(
        "# Filters of hand-overs, a process each, in the order in which they stand. Keys of one:\n",
        to);
    for (int i = 0; i < SL_CONF_FILTER_KEYS.count; i++)
        fprintf(to, "#   %-8s %s\n#            %s\n", SL_CONF_FILTER_KEYS.at[i].path,
                sl_key_meaning(&SL_CONF_FILTER_KEYS.at[i], what, sizeof what),
                sl_key_values(&SL_CONF_FILTER_KEYS.at[i], want, sizeof want));
    fputs("filters:\n(\n", to);
    for (int i = 0; i < conf->filter_count; i++) {
        fputs("    { ", to);
        for (int k = 0; k < SL_CONF_FILTER_KEYS.count; k++) {
            fprintf(to, "%s = ", SL_CONF_FILTER_KEYS.at[k].path);
            print_value(to, &SL_CONF_FILTER_KEYS.at[k], &conf->filters[i]);
            fputs("; ", to);
        }
        fputs(i + 1 < conf->filter_count ? "},\n" : "}\n", to);
    }
    fputs(");\n\n", to);
}

static void print_stages(FILE *to, const sl_conf *conf)
{
    int own = 0; /* the filters stand behind them */
    char want[320], what[256];
    fputs("# The stages, a process each. A role that is not listed is not run; one that is listed "
          "more than once works on\n"
          "# as many jobs at a time. Keys of a stage:\n",
          to);
    for (int i = 0; i < SL_CONF_STAGE_KEYS.count; i++)
        fprintf(to, "#   %-8s %s\n#            %s\n", SL_CONF_STAGE_KEYS.at[i].path,
                sl_key_meaning(&SL_CONF_STAGE_KEYS.at[i], what, sizeof what),
                sl_key_values(&SL_CONF_STAGE_KEYS.at[i], want, sizeof want));
    fputs("stages:\n(\n", to);
    while (own < conf->stage_count && (int)conf->stages[own].role < SL_ROLE_COUNT) own++;
    for (int i = 0; i < own; i++) {
        fputs("    { ", to);
        for (int j = 0; j < SL_CONF_STAGE_KEYS.count; j++) {
            if (SL_CONF_STAGE_KEYS.at[j].type == SL_KEY_DEVICES ||
                !sl_key_is_of_role(&SL_CONF_STAGE_KEYS.at[j], conf->stages[i].role))
                continue;
            fprintf(to, "%s = ", SL_CONF_STAGE_KEYS.at[j].path);
            print_value(to, &SL_CONF_STAGE_KEYS.at[j], &conf->stages[i]);
            fputs("; ", to);
        }
        fputs(i + 1 < own ? "},\n" : "}\n", to);
    }
    fputs(");\n", to);
}

sl_code sl_conf_print(const sl_conf *conf, FILE *to, sl_err *err)
{
    fputs("# Settings of Sluice, every key with its meaning, its range and its default. A key that "
          "is left out has its default;\n"
          "# one that is not known is refused.\n\n",
          to);
    print_keys(to, conf);
    print_loras(to, conf);
    print_filters(to, conf);
    print_stages(to, conf);
    if (fflush(to) || ferror(to)) return sl_fail_errno(err, errno, "write settings");
    return SL_OK;
}
