"""A filter of latents: what lies far from its channel's mean comes nearer.

    filters: ( { on = "latents"; program = "python3 examples/clamp.py"; } );

`--set limit=2` says how far: standard deviations, 3 if nothing is said."""
import numpy as np
import sluice


def clamp(job, latents):  # float32 [16, T, h/8, w/8]
    middle = latents.mean(axis=(1, 2, 3), keepdims=True)
    reach = job.params.get("limit", 3) * latents.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(latents, middle - reach, middle + reach)


sluice.Filter().serve(clamp)
