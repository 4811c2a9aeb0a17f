/* precision.c - the numbers in which a transformer's large products are computed. */
#include "common/precision.h"

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
    if (!strcmp(name, "fp8"))
        return sl_fail(err, SL_ARG,
                       "precision fp8, which is fp8-linear and attention in 8 bits, is not there "
                       "yet, want bf16 or fp8-linear");
    const sl_code rc =
        sl_fail(err, SL_ARG, "precision is %.40s, want bf16 or fp8-linear", *name ? name : "empty");
    sl_one_line(err);
    return rc;
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

sl_code sl_dit_precision_read(sl_dit_precision *out, const char *name, const char *bf16_blocks,
                              int blocks, sl_err *err)
{
    const char *at = bf16_blocks;
    memset(out, 0, sizeof *out);
    const sl_code rc = sl_precision_read(&out->is, name, err);
    if (rc) return sl_context(err, rc, "denoise.precision");
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
