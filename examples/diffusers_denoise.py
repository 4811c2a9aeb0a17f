"""diffusers' own transformer as the denoiser, in PyTorch on Sluice's hand-overs.

Wan2.1 as a Diffusers checkpoint, UniPC, with or without guidance. `--set rope=bfloat16` rounds the
rotary tables as a model that was cast whole has them."""
import sluice

stage = sluice.Stage("denoise")  # heartbeats from here on, for the imports take seconds
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel

torch.set_grad_enabled(False)
model = WanTransformer3DModel.from_pretrained(stage.model, subfolder="transformer", torch_dtype=torch.float32)
model.to(stage.device).eval()
tables = {name: getattr(model.rope, name) for name in ("freqs_cos", "freqs_sin")}


def denoise(job):
    for name, table in tables.items():
        rounded = table.bfloat16().to(table.dtype)
        setattr(model.rope, name, rounded if job.params.get("rope") == "bfloat16" else table)
    scheduler = UniPCMultistepScheduler.from_pretrained(stage.model, subfolder="scheduler", flow_shift=job.spec["shift"])
    scheduler.set_timesteps(job.spec["steps"], device=stage.device)
    texts = [job.tensor(name)[None] for name in ("cond", "uncond") if name in job]
    clip = job.tensor("clip")[None] if "clip" in job else None
    condition = [job.tensor("condition")] if "condition" in job else []
    x = torch.from_numpy(job.noise()).to(stage.device)
    for _, t in job.steps(scheduler.timesteps):
        tokens = torch.cat([x, *condition])[None]
        v = [model(tokens, t[None], text, clip, return_dict=False)[0] for text in texts]
        guided = v[-1] + job.spec["guidance"] * (v[0] - v[-1]) if len(v) > 1 else v[0]
        x = scheduler.step(guided, t, x[None], return_dict=False)[0][0]
    job.give(latents=x)


stage.serve(denoise)
