#!/usr/bin/env python3
"""Trains UMT5, CLIP and the DiT together by flow matching on clips rendered and encoded while training. Bounded by the clock.

--vae and --resume take what the training leaves, or a finished checkpoint folder.

usage: train_dit.py --data DIR --vae DIR --out DIR --minutes 8 [--resume DIR] [--lr 2e-3 --lr-end 2e-3]"""
import argparse
import os
import random
import sys
import time

import numpy as np
import torch

import captions
import data
import parts
import vae2d
import wan

A = argparse.ArgumentParser()
A.add_argument("--data", default=".demo-data")
A.add_argument("--vae", default=".demo-data/vae")
A.add_argument("--out", default="out")
A.add_argument("--minutes", type=float, default=8)
A.add_argument("--resume", default="")
A.add_argument("--lr", type=float, default=2e-3)
A.add_argument("--lr-end", type=float, default=2e-3)
A.add_argument("--share", type=float, default=0.3, help="part of the time that goes into rendering and encoding clips")
A.add_argument("--batch", type=int, default=32)
A.add_argument("--eval-only", action="store_true")
A.add_argument("--no-sweep", action="store_true")
A.add_argument("--bench", action="store_true")
A.add_argument("--hold", type=float, default=0.0, help="part of the time before the rate falls")
A.add_argument("--judge", type=int, default=47)
A.add_argument("--warm", type=int, default=200)
A.add_argument("--tiny", action="store_true")
A.add_argument("--seed", type=int, default=2)
a = A.parse_args()
T0 = time.time()
dev = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(a.seed)
rng = random.Random(a.seed)
random.seed(a.seed)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
os.makedirs(a.out, exist_ok=True)


def log(*s):
    print(f"[{time.time() - T0:6.1f}]", *s, flush=True)


bank = data.Bank(a.data + "/train", dev, 12 if a.tiny else 0)
held = data.Bank(a.data + "/held", dev, 3 if a.tiny else 0)
P = parts.Parts(a.vae, a.data + "/tok/spiece.model", dev)
if dev == "cuda":
    wan.CONV = "3dl"
    log(wan.fuse(dev))


net = parts.Model().to(dev)
if a.resume:
    log("resume", net.load_state_dict(parts.load_model(a.resume)))
log(f"{sum(p.numel() for p in net.parameters()) / 1e6:.3f} M parameters, {len(bank.pics)} pictures")
ema = {k: v.detach().clone() for k, v in net.state_dict().items()}

# ------------------------------------------------------------------ clips

GROUPS = parts.TINY if a.tiny else parts.GROUPS
K = 3                                                # clips for each first frame
CAP = 12 if a.tiny else 3000                         # first frames for p = 0.5


class Clips:
    def __init__(self, h, w, f, p):
        self.h, self.w, self.f, self.p = h, w, f, p
        self.t = (f - 1) // 4 + 1
        cap = self.cap = max(6, int(CAP * p * 2))
        g = dict(device=dev, dtype=torch.bfloat16)
        self.lat = torch.empty(cap, K, 16, self.t, h // 8, w // 8, **g)
        self.cond = torch.empty(cap, 16, self.t, h // 8, w // 8, **g)
        self.pix = torch.empty(cap, 3, 224, 224, device=dev, dtype=torch.uint8)
        self.ids = [None] * cap
        self.n = self.at = 0
        self.table = wan.rope_table(self.t, h // 16, w // 16, device=dev)

    @torch.no_grad()
    def add(self, m):
        tex = bank.crops(m, self.h, self.w, rng)
        cond = P.encode_cond(tex * 2 - 1, self.t)
        pix = wan.clip_pixels(tex)
        specs = [[captions.random_spec(rng) for _ in range(K)] for _ in range(m)]
        v = data.render(tex.repeat_interleave(K, 0), sum(specs, []), self.f)
        z = P.encode(v).view(m, K, 16, self.t, self.h // 8, self.w // 8)
        for i in range(m):
            j = self.at
            self.lat[j], self.cond[j], self.pix[j] = z[i], cond[i], pix[i]
            self.ids[j] = [[P.tokens(captions.caption(s, rng)) for _ in range(6)] for s in specs[i]]
            self.at = (self.at + 1) % self.cap
            self.n = min(self.n + 1, self.cap)

    def batch(self, b):
        idx = [(rng.randrange(self.n), rng.randrange(K)) for _ in range(b)]
        i, k = (P.put(torch.tensor(v)) for v in zip(*idx))
        ids = [[1] if rng.random() < 0.1 else rng.choice(self.ids[x][y]) for x, y in idx]
        return self.lat[i, k], self.cond[i], self.pix[i], ids


groups = [Clips(**g) for g in GROUPS]

# ------------------------------------------------------------------ optimizer: Muon for the matrices, AdamW for the rest


mats, rest = [], []
for n, p in net.named_parameters():
    m = p.dim() == 2 and min(p.shape) >= 64 and not any(s in n for s in ("shared", "embedding", "bias", "proj_out", "time_embedder"))
    (mats if m else rest).append(p)
muon = vae2d.Muon(mats, wd=0.01)
LR = torch.tensor(1e-5, device=dev)
LRA = torch.tensor(1e-5, device=dev)
adam = torch.optim.AdamW(rest, lr=LRA, betas=(0.9, 0.98), weight_decay=0.0, **(dict(fused=True, capturable=True) if dev == "cuda" else {}))
log(len(mats), "matrices", {s: len(v) for s, v in muon.groups.items()}, len(rest), "others")

# ------------------------------------------------------------------ evaluation on held-out pictures


def gradient(x):
    return x.diff(dim=-1).abs().mean((1, 2, 3)) + x.diff(dim=-2).abs().mean((1, 2, 3))


PHRASE = {"left": "The camera pans to the left", "right": "Pan right", "up": "The camera tilts up", "down": "tilt down", "in": "Slow zoom in" if False else "The camera zooms in",
          "out": "zoom out", "cw": "The camera rotates clockwise", "ccw": "rotate counterclockwise", "shake": "the camera shakes", "still": "Hold still"}
FXS = [("snow", {}, "Snow falls"), ("rain", {}, "it starts to rain"), ("fade", {}, "The picture fades to black"), ("bw", {}, "the scene turns black and white"),
       ("bright", {}, "the picture gets brighter"), ("sunset", {}, "sunset colours"), ("ball", {"colour": "red", "from": "left", "how": "roll"}, "a red ball rolls in from the left"),
       ("ball", {"colour": "blue", "from": "right", "how": "bounce"}, "a blue ball bounces across from the right")]


@torch.no_grad()
def judge(model, n, steps=12, guidance=1.0, shift=3.0, frames=33, hw=(192, 320), full=True):
    """Of n held-out pictures x ten moves: does the result lie closest to what the prompt asks for? dB against the rendered truth."""
    if a.tiny:
        n, frames, hw, steps = min(n, 2), 9, (32, 48), 2
    held.order = []
    r = random.Random(11)
    tex = torch.cat([held.crops(1, *hw, r, 1.0) for _ in range(min(n, len(held.pics)))])
    ok, db, ff, hold, grad = {m: [] for m in captions.MOVES}, {m: [] for m in captions.MOVES}, [], [], []
    for i in range(0, len(tex), 4):
        q = tex[i:i + 4]
        b = len(q)
        truth = torch.stack([data.render(q, [{"cam": [(m, "")], "fx": []}] * b, frames) for m in captions.MOVES])       # 10,b,...
        o = P.sample(model, q.repeat(10, 1, 1, 1), sum([[PHRASE[m]] * b for m in captions.MOVES], []), frames, steps, guidance, shift, seed=i).view_as(truth)
        for j, m in enumerate(captions.MOVES):
            e = (o[j][None] - truth)[:, :, :, frames // 3:].pow(2).mean((2, 3, 4, 5))                                # 10,b
            ok[m] += (e.argmin(0) == j).tolist()
            db[m] += (10 * torch.log10(4 / (o[j] - truth[j]).pow(2).mean((1, 2, 3, 4)))).tolist()
            ff += (10 * torch.log10(4 / (o[j][:, :, 0] - (q * 2 - 1)).pow(2).mean((1, 2, 3)))).tolist()
            if m == "still":
                hold += (10 * torch.log10(4 / (o[j] - o[j][:, :, :1]).pow(2).mean((1, 3, 4)).amax(1))).tolist()
            if m in ("left", "right", "up", "down", "still"):
                grad += (gradient(o[j][:, :, -1]) / gradient(o[j][:, :, 0])).tolist()
    M = lambda v: float(np.median(v))
    s = f"steps {steps} g {guidance} shift {shift}: agree {np.mean(sum(ok.values(), [])) * 100:.1f}% "
    s += " ".join(f"{m} {np.mean(ok[m]) * 100:.0f}/{M(db[m]):.1f}" for m in captions.MOVES)
    return s + f" | first frame {M(ff):.2f} dB, hold {M(hold):.2f} (min {min(hold):.1f}), gradient kept {M(grad):.2f} (min {min(grad):.2f})"


@torch.no_grad()
def sheet(model, name, steps=12, guidance=1.0, shift=3.0):
    from PIL import Image
    held.order = []
    r = random.Random(21)
    hw, frames = ((192, 320), 33) if not a.tiny else ((32, 48), 9)
    wishes = [PHRASE[m] for m in captions.MOVES] + [p for _, _, p in FXS] + ["The camera quickly pans right while snow falls", "Zoom in slowly as the picture turns black and white"]
    tex = torch.cat([held.crops(1, *hw, r, 1.0) for _ in range(len(wishes))]) if len(held.pics) > len(wishes) else held.crops(len(wishes), *hw, r, 1.0)
    o = torch.cat([P.sample(model, tex[i:i + 10], wishes[i:i + 10], frames, steps, guidance, shift) for i in range(0, len(wishes), 10)])
    ks = [0, frames // 4, frames // 2, 3 * frames // 4, frames - 1]
    rows = [torch.cat([tex[i] * 2 - 1] + [o[i, :, k] for k in ks], -1) for i in range(len(wishes))]
    half = (len(rows) + 1) // 2
    for part, rr in (("a", rows[:half]), ("b", rows[half:])):
        im = ((torch.cat(rr, 1) + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        Image.fromarray(im).resize((im.shape[1] * 3 // 4, im.shape[0] * 3 // 4)).save(f"{a.out}/{name}{part}.jpg", quality=85)


def with_ema(f):
    keep = {k: v.detach().clone() for k, v in net.state_dict().items()}
    net.load_state_dict(ema)
    net.eval()
    try:
        return f()
    finally:
        net.load_state_dict(keep)
        net.train()


def save():
    half = {k: v.half() for k, v in ema.items()}
    ks = sorted(half)
    for i in range(2):
        torch.save({k: half[k].cpu().clone() for k in ks[i::2]}, f"{a.out}/ema{i}.pt")


# ------------------------------------------------------------------ train

B = 4 if a.tiny else a.batch
g = groups[0]
N = g.t * (g.h // 16) * (g.w // 16)
S = type("S", (), {})()                              # what a step reads, at fixed addresses
S.tok, S.target = torch.zeros(B, N, 144, device=dev), torch.zeros(B, N, 64, device=dev)
S.t, S.ids, S.ln = torch.full((B,), 500.0, device=dev), torch.ones(B, parts.LMAX, dtype=torch.long, device=dev), torch.ones(B, dtype=torch.long, device=dev)
S.pix, S.per, S.d = torch.zeros(B, 3, 224, 224, device=dev, dtype=torch.uint8), torch.zeros(B, device=dev), torch.tensor(1.0, device=dev)
S.cos, S.sin = torch.zeros(N, 64, device=dev), torch.zeros(N, 64, device=dev)
params = list(net.parameters())
ekeys = list(ema)
live = [net.state_dict(keep_vars=False)[k].detach() for k in ekeys]


def step_fn():
    with torch.autocast(dev, torch.bfloat16, cache_enabled=False):
        v = net(S.tok, S.t, S.ids, S.ln, wan.clip_norm(S.pix), S.cos, S.sin)
    per = (v.float() - S.target).pow(2).mean((1, 2))
    per.mean().backward()
    torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], 1.0)
    muon.step(LR)
    adam.step()
    with torch.no_grad():
        diff = torch._foreach_sub(live, [ema[k] for k in ekeys])
        torch._foreach_mul_(diff, S.d)
        torch._foreach_add_([ema[k] for k in ekeys], diff)
        S.per.copy_(per)


def zero():
    for p in params:
        p.grad = None
    for q in unused:
        q.grad = torch.zeros_like(q)


unused = [p for n_, p in net.named_parameters() if n_.startswith("clip.vision_model.post_layernorm") or n_.startswith("clip.vision_model.encoder.layers.2.")]
for p in unused:
    mats = [q for q in mats if q is not p]
    rest = [q for q in rest if q is not p]
unused_set = {id(p) for p in unused}
for s_, ps_ in list(muon.groups.items()):
    keep_ = [p for p in ps_ if id(p) not in unused_set]
    muon.groups[s_] = keep_
    muon.buf[s_] = muon.buf[s_][:len(keep_)]
params = [p for p in params if id(p) not in unused_set]
unused = []
adam.param_groups[0]["params"] = rest


def load(g):
    x0, cond, pix, ids = g.batch(B)
    x0 = x0.float()
    u = (torch.arange(B, device=dev) + torch.rand(B, device=dev)) / B
    shift = 3.0 if rng.random() < 0.6 else 6.0
    sg = shift * u / (1 + (shift - 1) * u)
    e = torch.randn_like(x0)
    s = sg.view(-1, 1, 1, 1, 1)
    S.tok.copy_(wan.patches(torch.cat([(1 - s) * x0 + s * e, wan.condition(cond.float())], 1)))
    S.target.copy_(wan.target_patches(e - x0))
    S.t.copy_(sg * 1000)
    i, n = P.pad(ids)
    S.ids.copy_(i)
    S.ln.copy_(n)
    S.pix.copy_(pix)
    S.cos.copy_(g.table[0])
    S.sin.copy_(g.table[1])
    return sg


def sync():
    if dev == "cuda":
        torch.cuda.synchronize()


def timed(f, n=8):
    sync()
    t = time.time()
    for _ in range(n):
        f()
    sync()
    return (time.time() - t) / n * 1e3


def eager_step():
    zero()
    step_fn()


do_step = eager_step
if not a.eval_only:
    chunk = 2 if a.tiny else 4
    for g in groups:
        for _ in range(1 if a.tiny else max(2, int(24 * g.p * 2))):
            g.add(chunk)
    sync()
    log("first clips:", [g.n * K for g in groups], "ms for 12 clips of 33 frames:", round(timed(lambda: groups[0].add(chunk), 2)))
    load(groups[0])
    if dev == "cuda":
        if a.bench:
            eager_step()
            log("eager ms", timed(eager_step, 4))
        try:
            orig = wan.Block.forward
            fwd = torch.compile(wan.Block.forward, dynamic=False)
            wan.Block.forward = lambda self, *z: fwd(self, *z) if torch.is_grad_enabled() else orig(self, *z)
            eager_step()
            eager_step()
            log("compiled; ms", timed(eager_step, 4))
        except Exception as e:
            wan.Block.forward = orig
            log("no compile:", repr(e)[:400])
        if a.bench:
            from torch.profiler import ProfilerActivity, profile
            with profile(activities=[ProfilerActivity.CUDA]) as prof:
                eager_step()
                sync()
            print(prof.key_averages().table(sort_by="cuda_time_total", row_limit=24, max_name_column_width=70)[:9000], flush=True)
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    eager_step()
            torch.cuda.current_stream().wait_stream(side)
            zero()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                step_fn()
            do_step = graph.replay
            log("graph; ms", timed(do_step, 6))
        except Exception as e:
            log("no graph:", repr(e)[:600])
            torch.cuda.synchronize()
            if a.batch < 96:                         # launches bound a step then: let each do more
                os.execv(sys.executable, [sys.executable, *sys.argv, "--batch", "96", "--minutes", str(a.minutes - (time.time() - T0) / 60)])
    if a.bench:
        log("whole step ms", timed(lambda: (load(rng.choice(groups)), do_step()), 10))
    end = a.minutes * 60
    t_start, step, n, last, encoded, t_enc = time.time(), 0, 0, time.time(), 0, 0.0
    byu, byn = torch.zeros(4, device=dev), torch.zeros(4, device=dev)
    lastev = time.time()
    for k_ in ekeys:
        ema[k_].copy_(net.state_dict()[k_])
    while time.time() - T0 < end:
        frac = (time.time() - t_start) / max(1e-3, end - (t_start - T0))
        lr = (a.lr + (a.lr_end - a.lr) * min(1, max(0, (frac - a.hold) / (1 - a.hold)))) * min(1, (step + 1) / a.warm)
        if t_enc < a.share * (time.time() - t_start):
            sync()
            t1 = time.time()
            rng.choices(groups, [q.p for q in groups])[0].add(chunk * 2)
            encoded += chunk * 2 * K
            sync()
            t_enc += time.time() - t1
        sg = load(rng.choices(groups, [q.p for q in groups])[0])
        LR.fill_(lr)
        LRA.fill_(lr * 0.5)
        S.d.fill_(1 - min(0.9985, step / (step + 20)))
        do_step()
        step += 1
        n += 1
        k = (sg * 4).long().clamp(max=3)
        byu.scatter_add_(0, k, S.per)
        byn.scatter_add_(0, k, torch.ones_like(S.per))
        if step % 10 == 0 and time.time() - last > 6 or step in (1, 20):
            q = (byu / byn.clamp(min=1)).tolist()
            log(f"step {step} loss {float(byu.sum() / byn.sum()):.4f} by sigma {' '.join(f'{w:.3f}' for w in q)} clips {encoded} {n / (time.time() - last):.2f} it/s lr {lr:.1e}")
            n, last = 0, time.time()
            byu.zero_()
            byn.zero_()
        if time.time() - lastev > 120:
            try:
                log(with_ema(lambda: judge(net, 8, 8)))
            except Exception as ex:
                log("evaluation failed", repr(ex)[:300])
            save()
            lastev = last = time.time()
    save()
    log(f"{step} steps, {encoded} clips encoded")
if a.eval_only:
    ema = {k: v.detach().clone() for k, v in net.state_dict().items()}
try:
    with_ema(lambda: sheet(net, "sheet"))
    log(with_ema(lambda: judge(net, a.judge, 12)))
    if not a.no_sweep:
        for st_, g_, sh_ in ((12, 1, 5), (12, 2, 3), (12, 4, 3), (12, 4, 5), (6, 1, 3), (20, 1, 3)):
            log(with_ema(lambda: judge(net, 12, st_, g_, sh_)))
        log("17 frames", with_ema(lambda: judge(net, 12, 12, 1, 3, 17)))
        log("192x320", with_ema(lambda: judge(net, 12, 12, 1, 3, 33, (320, 192))))
except Exception as ex:
    log("evaluation failed", repr(ex)[:500])
log("done")
