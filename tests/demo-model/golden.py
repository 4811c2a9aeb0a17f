#!/usr/bin/env python3
"""What Diffusers computes with the demo model in float32 on a CPU: a golden folder with one small case, and a check that this
folder's PyTorch modules compute the same.

usage: golden.py MODEL PICTURE OUT [--check]   writes OUT/prompts.json, text.safetensors, pan-and-snow.{json,png,safetensors}; needs diffusers, transformers, torchvision"""
import json
import os
import sys

import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionModel

model, picture, out = sys.argv[1:4]
W, H, FR, STEPS, G = 96, 64, 9, 4, 2.0
PROMPT, NEG = "The camera slowly pans to the left while snow falls", ""
torch.set_num_threads(2)
pipe = WanImageToVideoPipeline.from_pretrained(model, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
im = Image.open(picture).convert("RGB")
s = max(W / im.width, H / im.height)
im = im.resize((round(im.width * s), round(im.height * s)), Image.BICUBIC)
im = im.crop(((im.width - W) // 2, (im.height - H) // 2, (im.width - W) // 2 + W, (im.height - H) // 2 + H))
os.makedirs(out, exist_ok=True)
im.save(out + "/pan-and-snow.png")
T = (FR - 1) // 4 + 1
noise = torch.randn(1, 16, T, H // 8, W // 8, generator=torch.Generator().manual_seed(0))
D = {"noise": noise[0]}
tok = pipe.tokenizer
D["ids"] = torch.tensor(tok(PROMPT).input_ids, dtype=torch.int32)
D["ids.neg"] = torch.tensor(tok(NEG).input_ids, dtype=torch.int32)
calls = []
orig = pipe.transformer.forward


def spy(*z, **k):
    r = orig(*z, **k)
    calls.append((k["hidden_states"].clone(), k["encoder_hidden_states"].clone(), k["encoder_hidden_states_image"].clone(), r[0].clone()))
    return r


pipe.transformer.forward = spy
step = pipe.scheduler.step
lat = []


def spy_step(*z, **k):
    r = step(*z, **k)
    lat.append(r[0].clone())
    return r


pipe.scheduler.step = spy_step
with torch.no_grad():
    v = pipe(image=im, prompt=PROMPT, negative_prompt=NEG, height=H, width=W, num_frames=FR, num_inference_steps=STEPS, guidance_scale=G, latents=noise.clone(), output_type="np").frames[0]
n, m = len(D["ids"]), len(D["ids.neg"])
texts = {"ids.0": D.pop("ids"), "ids.1": D.pop("ids.neg"), "embed.0": calls[0][1][0, :n], "embed.1": calls[1][1][0, :m]}
D["clip.penultimate"], D["dit.input"] = calls[0][2][0], calls[0][0][0]
for i in range(STEPS):
    D[f"step.{i}.latents"] = lat[i][0]
f = torch.from_numpy(v)
D["frames.u8"] = (f * 255).round().to(torch.uint8)
for name, d in (("text", texts), ("pan-and-snow", D)):
    save_file({k: t.float().contiguous() if t.is_floating_point() else t.contiguous() for k, t in d.items()}, f"{out}/{name}.safetensors")
    os.chmod(f"{out}/{name}.safetensors", 0o644)
for name, d in (("prompts", [PROMPT, NEG]), ("pan-and-snow", {"w": W, "h": H, "f": FR, "steps": STEPS, "cfg": G, "prompt": 0, "neg": 1})):
    with open(f"{out}/{name}.json", "w") as g:
        g.write(json.dumps(d) + "\n")
print("case written", sum(os.path.getsize(f"{out}/{q}") for q in os.listdir(out) if os.path.isfile(f"{out}/{q}")), "bytes")
if "--check" in sys.argv:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import wan
    from safetensors.torch import load_file
    dit = wan.DiT(layers=pipe.transformer.config.num_layers, ff=pipe.transformer.config.ffn_dim)
    dit.load_state_dict({k: v.float() for k, v in load_file(model + "/transformer/diffusion_pytorch_model.safetensors").items()})
    text = wan.UMT5(1024, layers=3)
    text.load_state_dict({k: v.float() for k, v in load_file(model + "/text_encoder/model.safetensors").items()})
    clip = wan.Clip()
    clip.load_state_dict({k: v.float() for k, v in load_file(model + "/image_encoder/model.safetensors").items()})
    vae = wan.VAE(16)
    vae.load_state_dict({k: v.float() for k, v in load_file(model + "/vae/diffusion_pytorch_model.safetensors").items()})
    import sentencepiece as spm
    sp = spm.SentencePieceProcessor(model_file=model + "/tokenizer/spiece.model")
    rel = lambda x, y: float((x - y).norm() / y.norm())
    with torch.no_grad():
        ids = sp.encode(PROMPT) + [1]
        print("ids equal", ids == texts["ids.0"].tolist())
        i = torch.zeros(1, 48, dtype=torch.long)
        i[0, :n] = torch.tensor(ids)
        t = text(i, torch.tensor([n]))
        print("text", rel(t[0, :n], texts["embed.0"]))
        import numpy as np
        x = torch.from_numpy(np.array(im)).permute(2, 0, 1)[None].float() / 255
        c = clip(wan.clip_norm(wan.clip_pixels(x)))
        print("clip (other resize)", rel(c[0], D["clip.penultimate"]))
        mean, std = (torch.tensor(pipe.vae.config[k]).view(1, 16, 1, 1, 1) for k in ("latents_mean", "latents_std"))
        vid = torch.zeros(1, 3, FR, H, W)
        vid[:, :, 0] = x * 2 - 1
        z = (vae.encode(vid) - mean) / std
        print("condition", rel(wan.condition(z)[0], D["dit.input"][16:]))
        o = dit(D["dit.input"][None], pipe.scheduler.timesteps[:1], t, torch.tensor([n]), D["clip.penultimate"][None])
        print("dit", rel(o[0], calls[0][3][0]))
        fr = vae.decode(lat[-1] * std + mean).clamp(-1, 1)[0].permute(1, 2, 3, 0) * 0.5 + 0.5
        print("decode", float((fr - f).abs().max()))
