/* helper_filter - a filter that tests put into hand-overs, on libsluice-stage. Its `args` say what
 * it does, words of:
 *     times X        floats become X times as large; bytes, X more
 *     double         frames twice as large, each pixel four
 *     look FILE      nothing is changed; a line of FILE: the hand-over, the chunk, the mean
 *     die FILE N     SIGKILL to itself in the N-th call of its life, unless FILE is there, which
 *                    is made first
 *     hold FILE      after its first call it waits until FILE is there, or the job is cancelled
 *     nan            a number that is none
 *     fail           refuse what it is handed */
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stages/own/stage.h"

typedef struct {
    double times;
    bool twice, nan, fail;
    const char *look, *die, *hold;
    int dies_in, calls;
} plan;

static void change(const plan *p, const sl_tensor *out)
{
    for (int64_t i = 0; i < sl_count(out); i++)
        if (out->dtype == SL_F32) ((float *)out->data)[i] *= (float)p->times;
        else ((uint8_t *)out->data)[i] = (uint8_t)(((uint8_t *)out->data)[i] + (int)p->times);
    if (p->nan) ((float *)out->data)[1] = NAN;
}

/* [n, h, w, 3] -> [n, 2h, 2w, 3] */
static void enlarge(const sl_tensor *in, const sl_tensor *out)
{
    const int64_t w = out->shape[2], rows = out->shape[0] * out->shape[1];
    for (int64_t row = 0; row < rows; row++)
        for (int64_t x = 0; x < w; x++)
            memcpy((uint8_t *)out->data + (row * w + x) * 3,
                   (const uint8_t *)in->data + (row / 2 * (w / 2) + x / 2) * 3, 3);
}

static double mean(const sl_tensor *t)
{
    double sum = 0;
    for (int64_t i = 0; i < sl_count(t); i++)
        sum += t->dtype == SL_F32 ? (double)((const float *)t->data)[i]
                                  : ((const uint8_t *)t->data)[i];
    return sum / (double)sl_count(t);
}

static void note(const char *path, const char *on, int chunk, const sl_tensor *in)
{
    FILE *f = fopen(path, "ae");
    if (!f) return;
    fprintf(f, "%s %d %.9g\n", on, chunk, mean(in));
    fclose(f);
}

static void die_once(const char *file)
{
    const int fd = open(file, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0) return;
    close(fd);
    raise(SIGKILL);
}

static sl_code work(sl_stage *s, void *self, int chunk, const sl_tensor in[], const sl_tensor out[],
                    bool *same, sl_err *err)
{
    plan *p = self;
    if (++p->calls == p->dies_in) die_once(p->die);
    if (p->fail) return sl_fail(err, SL_ARG, "%s is refused, want another", sl_stage_filters(s));
    if (p->look) note(p->look, sl_stage_filters(s), chunk, in);
    if (p->twice) enlarge(in, out);
    else if (p->times != 1 || p->nan) change(p, out);
    else *same = true;
    while (p->hold && access(p->hold, F_OK) && !sl_stage_cancelled(s)) usleep(10000);
    return sl_stage_cancelled(s) ? sl_fail(err, SL_CANCELLED, "cancelled") : SL_OK;
}

int main(int argc, char **argv)
{
    plan p = {.times = 1};
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i], *next = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(word, "times")) p.times = strtod(next, NULL);
        if (!strcmp(word, "double")) p.twice = true;
        if (!strcmp(word, "nan")) p.nan = true;
        if (!strcmp(word, "fail")) p.fail = true;
        if (!strcmp(word, "look")) p.look = next;
        if (!strcmp(word, "hold")) p.hold = next;
        if (!strcmp(word, "die") && i + 2 < argc) p.die = next, p.dies_in = atoi(argv[i + 2]);
    }
    return sl_filter_main(work, &p, argc, argv);
}
