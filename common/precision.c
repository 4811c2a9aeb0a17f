/* precision.c - the numbers in which a transformer's large products are computed. */
#include "common/precision.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"

static const char *const NAMES[] = {
#define X(upper, name) name,
    SL_PRECISIONS(X)
#undef X
};

const char *sl_precision_name(sl_precision p)
{
    return (unsigned)p < SL_PRECISION_COUNT ? NAMES[p] : "?";
}

sl_code sl_precision_read(sl_precision *out, const char *name, sl_err *err)
{
    for (int i = 0; i < SL_PRECISION_COUNT; i++)
        if (!strcmp(name, NAMES[i])) {
            *out = (sl_precision)i;
            return SL_OK;
        }
    const sl_code rc = sl_fail(err, SL_ARG, "precision is %.40s, want bf16, fp8-linear or fp8",
                               *name ? name : "empty");
    sl_one_line(err);
    return rc;
}

bool sl_precision_attends(const char *name)
{
    return !strcmp(name, NAMES[SL_PRECISION_FP8]);
}

sl_code sl_precision_fits(sl_precision loaded, sl_precision asked, sl_err *err)
{
    if ((loaded == SL_PRECISION_BF16) == (asked == SL_PRECISION_BF16) && asked <= loaded)
        return SL_OK;
    return sl_fail(err, SL_ARG,
                   "precision is %s, but the weights are loaded for %s (denoise.precision, or "
                   "--precision of the run)",
                   NAMES[asked], NAMES[loaded]);
}

bool sl_block_is_eight(const sl_dit_precision *p, int i)
{
    return p->is >= SL_PRECISION_FP8_LINEAR && !(p->whole[i / 64] >> i % 64 & 1);
}

bool sl_attends_in_eight(const sl_dit_precision *p, int i, int step)
{
    return p->is >= SL_PRECISION_FP8 && sl_block_is_eight(p, i) && step >= p->attends_from &&
           step <= p->attends_to;
}

void sl_dit_precision_words(int64_t out[SL_PRECISION_WORDS], const sl_dit_precision *p,
                            bool attends)
{
    memset(out, 0, sizeof *out * SL_PRECISION_WORDS);
    if (p->is < SL_PRECISION_FP8_LINEAR) return;
    out[0] = 1;
    out[1] = p->float32_sums;
    if (attends && p->is >= SL_PRECISION_FP8)
        out[2] = p->attends_from, out[3] = (int64_t)p->attends_to + 1;
    memcpy(out + 4, p->whole, sizeof p->whole);
}

/* "4-26", "4-", "4": counted from 1, from 0 on in p. */
static sl_code read_steps(sl_dit_precision *p, const char *text, sl_err *err)
{
    char *end = NULL;
    long from = 1, to = INT_MAX;
    bool ok = true;
    if (*text) {
        from = to = strtol(text, &end, 10);
        ok = end > text && *text >= '0' && *text <= '9';
        if (ok && *end == '-') {
            const char *rest = end + 1;
            to = *rest ? strtol(rest, &end, 10) : INT_MAX;
            ok = !*rest || (*rest >= '0' && *rest <= '9' && !*end);
        } else ok = ok && !*end;
    }
    if (!ok || from < 1 || to < from || to > INT_MAX)
        return sl_fail(err, SL_ARG,
                       "denoise.fp8_attention_steps is \"%.60s\", want steps as in \"4-26\", "
                       "counted from 1",
                       text);
    p->attends_from = (int)from - 1, p->attends_to = (int)to - 1;
    return SL_OK;
}

sl_code sl_dit_precision_read(sl_dit_precision *out, const char *name, const char *bf16_blocks,
                              const char *attention_steps, int blocks, sl_err *err)
{
    const char *at = bf16_blocks;
    memset(out, 0, sizeof *out);
    const sl_code rc = sl_precision_read(&out->is, name, err);
    if (rc) return sl_context(err, rc, "denoise.precision");
    if (read_steps(out, attention_steps, err)) return err->code;
    while (*at) {
        char *end;
        const long i = strtol(at, &end, 10);
        if (*at < '0' || *at > '9' || i >= blocks || (*end && (*end != ',' || !end[1])))
            return sl_fail(
                err, SL_ARG,
                "denoise.bf16_blocks is \"%.60s\", want numbers from 0 to %d with commas "
                "between",
                bf16_blocks, blocks - 1);
        out->whole[i / 64] |= (uint64_t)1 << i % 64;
        at = *end ? end + 1 : end;
    }
    return SL_OK;
}
