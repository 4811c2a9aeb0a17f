"""The demo model's parts and what is done with them, for the programs that train it: loading, encoding, tokens, sampling."""
import glob
import json
import os

import sentencepiece as spm
import torch
from safetensors.torch import load_file

import wan

LMAX = 48                                            # most tokens of a prompt, its end included

# The sizes of training and their shares. Every one has 2160 tokens: one compiled graph serves them all.
GROUPS = [dict(h=192, w=320, f=33, p=0.50), dict(h=320, w=192, f=33, p=0.12), dict(h=240, w=256, f=33, p=0.12), dict(h=256, w=240, f=33, p=0.06),
          dict(h=288, w=384, f=17, p=0.12), dict(h=384, w=288, f=17, p=0.08)]
TINY = [dict(h=32, w=48, f=9, p=0.6), dict(h=48, w=32, f=9, p=0.4)]


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.text, self.clip, self.dit = wan.UMT5(1024, layers=3), wan.Clip(), wan.DiT(layers=7, ff=576)

    def forward(self, tok, t, ids, length, pix, cos, sin):
        return self.dit.core(tok, t, self.text(ids, length), length, self.clip(pix), cos, sin)


def load_model(folder):
    """Model's state, float32, from what train_dit.py leaves or from a finished checkpoint"""
    sd = {}
    if os.path.exists(folder + "/model_index.json"):
        for part, name in (("dit", "transformer/diffusion_pytorch_model"), ("text", "text_encoder/model"), ("clip", "image_encoder/model")):
            sd.update({f"{part}.{k}": v.float() for k, v in load_file(f"{folder}/{name}.safetensors").items()})
        return sd
    for f in sorted(glob.glob(folder + "/ema*.pt")):
        sd.update(torch.load(f, map_location="cpu"))
    return {k: v.float() for k, v in sd.items()}


def load_vae(folder, dev):
    """the VAE, and its latents' mean and deviation, from what train_vae.py leaves or from a finished checkpoint"""
    vae = wan.VAE(16).to(dev).eval().requires_grad_(False)
    if os.path.exists(folder + "/model_index.json"):
        sd = load_file(folder + "/vae/diffusion_pytorch_model.safetensors")
        st = json.load(open(folder + "/vae/config.json"))
        st = {k: torch.tensor(st["latents_" + k]) for k in ("mean", "std")}
    else:
        sd = torch.load(folder + "/vae.pt", map_location=dev)
        st = torch.load(folder + "/vae_stats.pt")
    vae.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in sd.items()})
    return vae, *(st[k].to(dev).view(1, 16, 1, 1, 1) for k in ("mean", "std"))


class Parts:
    """VAE and tokenizer on a device, and the ways from pictures and prompts to what the DiT takes"""

    def __init__(self, folder, tokenizer, dev):
        self.dev = dev
        self.vae, self.mean, self.std = load_vae(folder, dev)
        self.sp = spm.SentencePieceProcessor(model_file=tokenizer)

    def ctx(self):
        return torch.autocast(self.dev, torch.bfloat16, enabled=self.dev == "cuda")    # a CPU only emulates it

    def put(self, t):
        return t.pin_memory().to(self.dev, non_blocking=True) if self.dev == "cuda" else t

    def encode(self, x):
        with self.ctx():
            z = self.vae.encode(x)
        return ((z.float() - self.mean) / self.std).to(torch.bfloat16)

    def encode_cond(self, img, t):
        """img [B,3,h,w] in -1..1: the picture and grey frames; 17 frames are enough, the rest no longer changes"""
        n = min(t, 5)
        x = torch.zeros(len(img), 3, 4 * (n - 1) + 1, *img.shape[2:], device=self.dev)
        x[:, :, 0] = img
        z = self.encode(x)
        return torch.cat([z] + [z[:, :, -1:]] * (t - n), 2) if t > n else z

    def decode(self, z):
        """normalised latents -> [B,3,F,h,w] in -1..1"""
        out = []
        for zz in (z * self.std + self.mean).split(8):
            with self.ctx():
                out.append(self.vae.decode(zz).float().clamp(-1, 1))
        return torch.cat(out)

    def tokens(self, s):
        return self.sp.encode(s)[:LMAX - 2] + [1]

    def pad(self, list_of_ids):
        n = torch.tensor([len(i) for i in list_of_ids])
        x = torch.tensor([v + [0] * (LMAX - len(v)) for v in list_of_ids])
        return self.put(x), self.put(n)

    def noise(self, B, frames, h, w, seed):
        g = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(B, 16, (frames - 1) // 4 + 1, h // 8, w // 8, generator=g).to(self.dev)

    @torch.no_grad()
    def velocity(self, model, tex, prompts, t, guidance=1.0, neg=""):
        """tex [B,3,h,w] 0..1 -> f(x, timestep), the guided velocity of latents x [B,16,t,h/8,w/8]"""
        B, _, h, w = tex.shape
        c = wan.condition(self.encode_cond(tex * 2 - 1, t).float())
        ids, n = self.pad([self.tokens(p) for p in prompts])
        uid, un = self.pad([self.tokens(neg)] * B)
        table = wan.rope_table(t, h // 16, w // 16, device=self.dev)
        with self.ctx():
            txt, utx = model.text(ids, n), model.text(uid, un)
            img = model.clip(wan.clip_norm(wan.clip_pixels(tex)))

        def f(x, ts):
            i = torch.cat([x, c], 1)
            tt = torch.full((B,), float(ts), device=self.dev)
            with self.ctx():
                v = model.dit(i, tt, txt, n, img, table).float()
                if guidance > 1:
                    u = model.dit(i, tt, utx, un, img, table).float()
                    v = u + guidance * (v - u)
            return v
        return f

    @torch.no_grad()
    def sample(self, model, tex, prompts, frames, steps, guidance, shift, seed=0, neg="", sampler=wan.unipc):
        """tex [B,3,h,w] 0..1 -> [B,3,F,h,w] in -1..1"""
        x = self.noise(len(tex), frames, *tex.shape[2:], seed)
        f = self.velocity(model, tex, prompts, x.shape[2], guidance, neg)
        return self.decode(sampler(f, x, steps, shift))
