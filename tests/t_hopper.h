/* t_hopper.h - what is for Hopper alone (attention of our own, 8 bits) is tested there alone. */
#ifndef T_HOPPER_H
#define T_HOPPER_H

#include "kernels/plugin.h"

#include <stdio.h>

/* The device is a Hopper, or chooses as one; else says what of `what` is not there. */
static inline bool gpu_is_hopper(const char *what)
{
    sl_err err = {0};
    const sl_plugin *p = sl_plugin_cuda(&err);
    int sm = 0;
    const bool known = p && !p->describe(0, NULL, 0, &sm, &err);
    if (!known || sm != 90) {
        printf("%s: compute capability is %d.%d, want 9.0 %s\n", what, sm / 10, sm % 10, err.msg);
        fflush(stdout); /* it may be asked by a process that ends without */
    }
    return known && sm == 90;
}

#endif
