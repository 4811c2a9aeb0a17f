#!/usr/bin/env python3
"""Trains the VAE: first on stills as a plain 2-D network, then inflated to 3-D on rendered clips. L1, squares, gradient and SSIM terms;
Muon for the convolutions. Bounded by the clock; a folder given as --resume goes on with the clips.

usage: train_vae.py --data DIR --out DIR --minutes 1.4 2.0 [--resume DIR]"""
import argparse
import math
import os
import random
import time

import torch
import torch.nn.functional as F

import captions
import data
import vae2d
import wan

A = argparse.ArgumentParser()
A.add_argument("--data", default=".demo-data")
A.add_argument("--out", default="out")
A.add_argument("--minutes", type=float, nargs=2, default=[1.4, 2.0])
A.add_argument("--resume", default="")
A.add_argument("--lr", type=float, nargs=2, default=[5e-3, 2e-3])
A.add_argument("--tiny", action="store_true")
A.add_argument("--noise", type=float, default=0.05)
A.add_argument("--seed", type=int, default=1)
a = A.parse_args()
T0 = time.time()
dev = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(a.seed)
rng = random.Random(a.seed)
random.seed(a.seed)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
os.makedirs(a.out, exist_ok=True)
ctx = lambda: torch.autocast(dev, torch.bfloat16)


def log(*s):
    print(f"[{time.time() - T0:6.1f}]", *s, flush=True)


bank = data.Bank(a.data + "/train", dev, 12 if a.tiny else 0)
held = data.Bank(a.data + "/held", dev, 2 if a.tiny else 0)
log(len(bank.pics), "pictures", len(held.pics), "held out", torch.cuda.get_device_name() if dev == "cuda" else "cpu")
if dev == "cuda":
    wan.CONV = "3dl"
    log(wan.fuse(dev))


def ssim(x, y):
    """x, y [N,3,H,W] in -1..1"""
    p = lambda t: F.avg_pool2d(t, 7, 1)
    mx, my = p(x), p(y)
    vx, vy, c = p(x * x) - mx * mx, p(y * y) - my * my, p(x * y) - mx * my
    return ((2 * mx * my + 4e-4) * (2 * c + 3.6e-3) / ((mx * mx + my * my + 4e-4) * (vx + vy + 3.6e-3))).mean()


def loss_fn(y, x):
    g = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (-1, -2))
    f = lambda t: t.transpose(1, 2).flatten(0, 1) if t.dim() == 5 else t
    if x.dim() == 5 and x.shape[2] > 1:
        g = g + 0.5 * (y.diff(dim=2) - x.diff(dim=2)).abs().mean()
    return (y - x).abs().mean() + 3.0 * (y - x).pow(2).mean() + 0.3 * g + 0.06 * (1 - ssim(f(y), f(x)))


def psnr(y, x):
    return -10 * torch.log10(((y.clamp(-1, 1) - x) / 2).pow(2).flatten(1).mean(1))


@torch.no_grad()
def evaluate(vae, ema):
    keep = {k: v.clone() for k, v in vae.state_dict().items()}
    vae.load_state_dict(ema)
    r, flat = random.Random(5), isinstance(vae, vae2d.VAE2)
    h, w = (192, 320) if not a.tiny else (32, 64)
    held.order = []
    p, q = [], []
    for i in range(0, len(held.pics), 12):
        x = held.crops(min(12, len(held.pics) - i), h, w, r, 1.0) * 2 - 1
        x = x if flat else x[:, :, None]
        with ctx():
            p.append(psnr(vae.decode(vae.encode(x)).float(), x))
    held.order = []
    for i in range(0 if flat else 1 if a.tiny else 6):
        s = [{"cam": [captions.cam_args(m, r)], "fx": []} for m in r.sample(captions.MOVES, 4)]
        x = data.render(held.crops(4, h, w, r, 1.0), s, 33 if not a.tiny else 5)
        with ctx():
            q.append(psnr(vae.decode(vae.encode(x)).float(), x))
    vae.load_state_dict(keep)
    p, q = torch.cat(p), torch.cat(q) if q else torch.zeros(1)
    return f"held-out stills PSNR mean {p.mean():.2f} median {p.median():.2f} min {p.min():.2f}; clips of 33 frames mean {q.mean():.2f} min {q.min():.2f}"


def stills():
    """a pool of pictures on the device, part of it renewed at every call"""
    n, s = (4, 64) if a.tiny else (64, 160)
    pool = getattr(stills, "pool", None)
    if pool is None:
        pool = stills.pool = torch.cat([bank.crops(n, s, s, rng, 0.3) for _ in range(4 if a.tiny else 24)])
    j = rng.randrange(len(pool) // 4) * 4
    pool[j:j + 4] = bank.crops(4, s, s, rng, 0.3)
    i = torch.randint(0, len(pool), (n,), device=dev)
    c = 128 if not a.tiny else 48
    y, x = rng.randint(0, s - c), rng.randint(0, s - c)
    return pool[i][:, :, y:y + c, x:x + c].contiguous(memory_format=torch.channels_last) * 2 - 1


def clips(i):
    if a.tiny:
        return data.render(bank.crops(2, 32, 48, rng), [captions.random_spec(rng) for _ in range(2)], 5)
    f, b, h, w = (17, 4, 128, 160) if i % 3 == 0 else (9, 8, 128, 160)
    x = data.render(bank.crops(b, h, w, rng, 0.4), [captions.random_spec(rng) for _ in range(b)], 33 if rng.random() < 0.3 else f + 4)
    return x[:, :, :f] if rng.random() < 0.6 else x[:, :, -f:]


def train(vae, batch, seconds, lr0, name, warm):
    ema = {k: v.detach().clone() for k, v in vae.state_dict().items()}
    params = list(vae.parameters())
    mats = [p for p in params if p.dim() >= 2 and p[0].numel() > 8 and p.shape[0] > 8]
    rest = [p for p in params if not any(p is q for q in mats)]
    muon = vae2d.Muon(mats)
    adam = torch.optim.AdamW(rest, lr=lr0, betas=(0.9, 0.99), weight_decay=0.0, fused=dev == "cuda")
    t0 = last = lastev = time.time()
    step = n = 0
    acc, ps = 0.0, 0.0
    ek = [k for k in ema]
    while time.time() - t0 < seconds:
        frac = (time.time() - t0) / seconds
        lr = lr0 * min(1, (step + 1) / warm) * max(0.02, 1 - frac ** 1.5)
        x = batch() if name == "stills" else batch(step)
        with ctx():
            z = vae.encode(x)
        zf = z.float()
        with ctx():
            y = vae.decode(zf + a.noise * torch.randn_like(zf))
        y = y.float()
        loss = loss_fn(y, x) + 3e-4 * zf.pow(2).mean()
        for p in params:
            p.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        muon.step(lr)
        for g in adam.param_groups:
            g["lr"] = lr * 0.5
        adam.step()
        step += 1
        with torch.no_grad():
            sd = vae.state_dict()
            torch._foreach_lerp_([ema[k] for k in ek], [sd[k].detach() for k in ek], 1 - min(0.995, step / (step + 10)))
            acc += loss.detach()
            ps += psnr(y, x).mean()
        n += 1
        if step % 10 == 0 and time.time() - last > 5 or step in (1, 20):
            log(f"{name} {step} loss {float(acc) / n:.4f} psnr {float(ps) / n:.2f} z {float(z.detach().float().std()):.2f} lr {lr:.1e} {n / (time.time() - last):.1f} it/s")
            acc, ps, n, last = 0.0, 0.0, 0, time.time()
            if time.time() - lastev > 40:
                log(evaluate(vae, ema))
                lastev = last = time.time()
    log(f"{name}: {step} steps", evaluate(vae, ema))
    return ema


vae = wan.VAE(16).to(dev)
if a.resume:
    sd3 = torch.load(a.resume + "/vae.pt", map_location=dev)
else:
    flat = vae2d.VAE2(16).to(dev).to(memory_format=torch.channels_last)
    sd2 = train(flat, stills, a.minutes[0] * 60, a.lr[0], "stills", 60)
    sd3 = vae2d.inflate_state(sd2, vae)
vae.load_state_dict(sd3)
log("inflated", evaluate(vae, {k: v.clone() for k, v in vae.state_dict().items()}))
ema = train(vae, clips, a.minutes[1] * 60, a.lr[1], "clips", 40) if a.minutes[1] > 0 else sd3

# mean and standard deviation of each channel over clips; the unused log-variance outputs become a constant, that of the noise
vae.load_state_dict(ema)
with torch.no_grad():
    vae.quant_conv.weight[16:] = 0
    vae.quant_conv.bias[16:] = 2 * math.log(a.noise)
    s, s2, c = 0, 0, 0
    for i in range(1 if a.tiny else 16):
        h, w = (32, 48) if a.tiny else (192, 320)
        x = data.render(bank.crops(2 if a.tiny else 4, h, w, rng), [captions.random_spec(rng) for _ in range(2 if a.tiny else 4)], 17)
        with ctx():
            z = vae.encode(x).double()
        s, s2, c = s + z.sum((0, 2, 3, 4)), s2 + z.pow(2).sum((0, 2, 3, 4)), c + z[:, 0].numel()
    mean = s / c
    std = (s2 / c - mean ** 2).sqrt()
log("mean", [round(float(v), 4) for v in mean], "std", [round(float(v), 4) for v in std])
torch.save({"mean": mean.float().cpu(), "std": std.float().cpu()}, a.out + "/vae_stats.pt")
torch.save({k: v.detach().contiguous().cpu().clone() for k, v in vae.state_dict().items()}, a.out + "/vae.pt")
if not a.tiny:                                       # a sheet of held-out pictures and clips, originals beside
    from PIL import Image
    rows = []
    r = random.Random(9)
    held.order = []
    with torch.no_grad():
        for i in range(6):
            x = data.render(held.crops(1, 192, 320, r, 1.0), [{"cam": [("left", "")], "fx": []} if i % 2 else {"cam": [], "fx": [(("snow", "rain", "ball")[i // 2], {"colour": "red", "from": "left", "how": "roll"})]}], 33)
            with ctx():
                y = vae.decode(vae.encode(x)).float()
            rows.append(torch.cat([x[0, :, 0], y[0, :, 0], x[0, :, 20], y[0, :, 20], y[0, :, 32]], -1))
        im = ((torch.cat(rows, 1) + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        Image.fromarray(im).save(a.out + "/vae.jpg", quality=90)
log("done")
open(a.out + "/vae.db", "w").write(evaluate(vae, {k: v.clone() for k, v in vae.state_dict().items()}).split("mean ")[-1].split()[0])
