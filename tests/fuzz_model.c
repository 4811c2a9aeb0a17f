/* fuzz_model.c - libFuzzer target: any JSON as each configuration file; what is accepted
 * must lie within the limits. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int holds)
{
    if (!holds) __builtin_trap();
}

/* The first byte picks the reader. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *json = (const char *)data + 1;
    sl_err err = {0};
    sl_dit_config d;
    sl_umt5_config u;
    sl_clip_config c = {.image = 224};
    sl_vae_config v;
    sl_scheduler_config s;
    sl_code rc = SL_OK;
    if (!size) return 0;
    switch (data[0] % 6) {
    case 0:
        if (!(rc = sl_model_parse_dit(&d, json, size - 1, "x", &err)))
            check(d.dim == d.heads * d.head_dim && d.dim > 0 && d.head_dim % 2 == 0 &&
                  d.layers > 0 && d.eps >= 0);
        break;
    case 1:
        if (!(rc = sl_model_parse_umt5(&u, json, size - 1, "x", &err)))
            check(u.layers > 0 && u.vocab > 0 && u.buckets >= 4);
        break;
    case 2:
        if (!(rc = sl_model_parse_clip(&c, json, size - 1, "x", &err)))
            check(c.hidden % c.heads == 0 && c.image % c.patch == 0);
        break;
    case 3:
        if (!(rc = sl_model_parse_processor(&c, json, size - 1, "x", &err)))
            check(c.crop_w == c.image && c.shortest_edge >= c.crop_h);
        break;
    case 4:
        if (!(rc = sl_model_parse_vae(&v, json, size - 1, "x", &err))) {
            check(v.z > 0 && v.z <= SL_MAX_Z);
            for (int i = 0; i < v.z; i++) check(v.std[i] > 0);
        }
        break;
    default:
        if (!(rc = sl_model_parse_scheduler(&s, json, size - 1, "x", &err)))
            check(s.flow_shift > 0 && s.train_timesteps == 1000);
    }
    if (rc) check(err.msg[0] && !strchr(err.msg, '\n'));
    return 0;
}
