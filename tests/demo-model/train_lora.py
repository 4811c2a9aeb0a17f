#!/usr/bin/env python3
"""Trains a LoRA with which the demo model makes in 4 steps what it makes in 12. Bounded by the clock.

The teacher, the model as it is, takes its 12 steps (UniPC, shift 3, no guidance) from noise to latents, of crops of the training
pictures and of captions of the grammar. The student, the same weights with the LoRA, takes LightX2V's four (shift 5, Euler) from
the same noise, and what it ends with is pulled to what the teacher ended with, through all four steps. It touches the linear
layers of every block (rank --rank), their biases and the modulations, and is written in LightX2V's naming, float16.

Then both are judged as evaluate.py judges, on the held-out pictures: OUT/4steps.safetensors, OUT/4steps.json.

usage: train_lora.py --data DIR --model ../../models/demo --out DIR --minutes 7 [--tiny]"""
import argparse
import glob
import json
import math
import multiprocessing
import os
import random
import time

import numpy as np
import torch
from safetensors.torch import save_file

import asked
import captions
import data
import measure
import parts
import wan

# Wan-AI's names of a block's linear layers, as LightX2V's files have them
NAMES = {"attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v", "attn1.to_out.0": "self_attn.o",
         "attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v", "attn2.to_out.0": "cross_attn.o",
         "attn2.add_k_proj": "cross_attn.k_img", "attn2.add_v_proj": "cross_attn.v_img", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
TEACHER = dict(sampler=wan.unipc, steps=12, shift=3.0)
STUDENT = dict(sampler=wan.lightx2v, steps=4, shift=5.0)


def options():
    A = argparse.ArgumentParser()
    A.add_argument("--data", default=".demo-data", help="what prepare.py wrote")
    A.add_argument("--model", default="models/demo")
    A.add_argument("--out", default="out")
    A.add_argument("--minutes", type=float, default=7, help="in all")
    A.add_argument("--pool", type=float, default=0.25, help="part of the time for the teacher's clips")
    A.add_argument("--judging", type=float, default=150, help="seconds kept for the judging, 0: none")
    A.add_argument("--limit", type=int, default=0, help="judge so many pictures, 0: all")
    A.add_argument("--rank", type=int, default=8)
    A.add_argument("--lr", type=float, default=1e-3)
    A.add_argument("--batch", type=int, default=32)
    A.add_argument("--chunk", type=int, default=64, help="the teacher's clips at once")
    A.add_argument("--tiny", action="store_true", help="small clips, to see that all of it runs")
    A.add_argument("--seed", type=int, default=7)
    return A.parse_args()


class Lora(torch.nn.Module):
    """What is added to the DiT: products and biases of the blocks' linear layers, and modulations. Layers of one shape lie in one
    stack. use() lets the DiT compute with it, leave() without."""

    def __init__(self, dit, rank):
        super().__init__()
        self.layers, self.tables = {}, {}             # what is changed: by shape [(name, module)]; name -> module
        for i, block in enumerate(dit.blocks):
            for path, name in NAMES.items():
                m = block.get_submodule(path)
                self.layers.setdefault(tuple(m.weight.shape), []).append((f"blocks.{i}.{name}", m))
            self.tables[f"blocks.{i}"] = block
        self.tables["head"] = dit
        self.base = [(torch.stack([m.weight.detach() for _, m in v]), torch.stack([m.bias.detach() for _, m in v])) for v in self.layers.values()]
        self.base_tables = [m.scale_shift_table.detach() for m in self.tables.values()]
        P, dev = torch.nn.ParameterList, self.base[0][0].device
        self.down = P([torch.randn(len(v), rank, k, device=dev) / k ** 0.5 for (_, k), v in self.layers.items()])
        self.up = P([torch.zeros(len(v), n, rank, device=dev) for (n, _), v in self.layers.items()])
        self.bias = P([torch.zeros_like(b) for _, b in self.base])
        self.table = P([torch.zeros_like(t) for t in self.base_tables])
        self.leave()

    @staticmethod
    def put(m, name, tensor):
        m._parameters.pop(name, None)
        setattr(m, name, tensor)

    def use(self):
        for v, (w, b), up, down, d in zip(self.layers.values(), self.base, self.up, self.down, self.bias):
            for (_, m), weight, bias in zip(v, (w + up @ down).unbind(), (b + d).unbind()):
                self.put(m, "weight", weight)
                self.put(m, "bias", bias)
        for m, t, d in zip(self.tables.values(), self.base_tables, self.table):
            self.put(m, "scale_shift_table", t + d)

    def leave(self):
        for v, (w, b) in zip(self.layers.values(), self.base):
            for (_, m), weight, bias in zip(v, w, b):
                self.put(m, "weight", weight)
                self.put(m, "bias", bias)
        for m, t in zip(self.tables.values(), self.base_tables):
            self.put(m, "scale_shift_table", t)

    def save(self, path):
        out = {}
        for v, up, down, d in zip(self.layers.values(), self.up, self.down, self.bias):
            for k, (name, _) in enumerate(v):
                out |= {f"{name}.lora_up.weight": up[k], f"{name}.lora_down.weight": down[k], f"{name}.diff_b": d[k]}
        for name, d in zip(self.tables, self.table):
            out[f"{name}.diff_m"] = d
        out = {"diffusion_model." + k: v.detach().half().cpu().contiguous() for k, v in sorted(out.items())}
        save_file(out, path, metadata={"format": "pt", "modelspec.title": "the demo model in 4 steps", "modelspec.description": "distilled from its 12 steps: "
                                       "LightX2V's sampler, 4 steps, shift 5, no guidance"})
        return os.path.getsize(path)


class Pool:
    """The teacher's clips of one size, on the device: noise, where it ends, what the prompt and the picture were."""

    def __init__(self, h, w, f, p):
        self.h, self.w, self.f, self.p = h, w, f, p
        self.x, self.z, self.cond, self.pix, self.ids = [], [], [], [], []

    @torch.no_grad()
    def add(self, n, P, net, bank, rng):
        tex = bank.crops(n, self.h, self.w, rng)
        prompts = ["" if rng.random() < 0.03 else captions.caption(captions.random_spec(rng), rng) for _ in range(n)]
        t = (self.f - 1) // 4 + 1
        x = torch.randn(n, 16, t, self.h // 8, self.w // 8, device=P.dev).bfloat16()
        f = P.velocity(net, tex, prompts, t)
        z = TEACHER["sampler"](f, x.float(), TEACHER["steps"], TEACHER["shift"])
        cond = P.encode_cond(tex * 2 - 1, t)
        for to, what in ((self.x, x), (self.z, z.bfloat16()), (self.cond, cond), (self.pix, wan.clip_pixels(tex))):
            to += what.unbind()
        self.ids += [P.tokens(s) for s in prompts]

    def batch(self, n, rng):
        k = rng.choices(range(len(self.x)), k=n)
        x, z, cond, pix = (torch.stack([q[i] for i in k]) for q in (self.x, self.z, self.cond, self.pix))
        return x.float(), z.float(), cond.float(), pix, [self.ids[i] for i in k]


def student(P, net, tables, batch):
    """the four steps, with gradients -> latents"""
    x, _, cond, pix, ids = batch
    ids, n = P.pad(ids)
    B, _, t, h, w = x.shape
    if (t, h, w) not in tables:
        tables[t, h, w] = wan.rope_table(t, h // 2, w // 2, device=P.dev)
    c = wan.condition(cond)
    with P.ctx():
        with torch.no_grad():
            txt, img = net.text(ids, n), net.clip(wan.clip_norm(pix))

        def f(x, ts):
            return net.dit(torch.cat([x, c], 1), torch.full((B,), ts, device=P.dev), txt, n, img, tables[t, h, w])
        return STUDENT["sampler"](f, x, STUDENT["steps"], STUDENT["shift"])


def distance(a, b, c=0.05):
    """a smooth absolute difference: what is rarely right does not blur what mostly is"""
    return ((a - b).pow(2) + c * c).sqrt().mean() - c


def compile_blocks(log):
    """Blocks compiled where gradients are asked for; the teacher's and the judging's sizes would compile anew."""
    plain, fast = wan.Block.forward, torch.compile(wan.Block.forward, dynamic=False)
    wan.Block.forward = lambda self, *z: fast(self, *z) if torch.is_grad_enabled() else plain(self, *z)
    log("blocks are compiled as they are first used")
    return plain


def train(a, P, net, lora, pools, rng, log, seconds):
    params = [p for p in lora.parameters()]
    opt = torch.optim.Adam(params, lr=a.lr, betas=(0.9, 0.98))
    tables, begin, told, step, sums = {}, time.time(), time.time(), 0, []
    plain = compile_blocks(log) if P.dev == "cuda" else None

    def forward():
        batch = rng.choices(pools, [p.p for p in pools])[0].batch(a.batch, rng)
        lora.use()
        loss = distance(student(P, net, tables, batch), batch[1])
        opt.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()
    while True:
        done = (time.time() - begin) / seconds
        if done >= 1:
            break
        for g in opt.param_groups:
            g["lr"] = a.lr * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * done))
        try:
            loss = forward()
        except Exception as e:
            if not plain or step:
                raise
            log("not compiled:", repr(e)[:400])
            wan.Block.forward, plain = plain, None
            continue
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        sums.append(loss)
        step += 1
        if step in (1, 5) or time.time() - told > 10:
            log(f"step {step}, {(time.time() - begin) / step:.3f} s a step, distance {float(torch.stack(sums).mean()):.4f}")
            told, sums = time.time(), []
    if plain:
        wan.Block.forward = plain
    lora.use()
    return step


def judge_clip(job):
    frames, picture, kind, wish = job
    return asked.judge_move(frames, picture, wish) if kind == "move" else measure.effect(frames, *wish)


def wishes(pics):
    """[(picture's number, kind, what is wished, prompt)], as evaluate.py asks: ten moves of all pictures, effects of 16"""
    out = [(i, "move", m, w[i % len(w)]) for i in range(len(pics)) for m, w in asked.MOVES.items()]
    return out + [(i, "effect", (e, s), w[i % len(w)]) for i in range(min(16, len(pics))) for e, s, w in asked.EFFECTS]


def judge(P, net, pics, size, frames, how, workers, like=None):
    """-> figures, and the clips; like: clips of another way, how near these are to them"""
    tex = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pics]).to(P.dev).float() / 255
    todo, got, clips, near = wishes(pics), [], [], []
    for k in range(0, len(todo), 32):
        part = todo[k:k + 32]
        i = [w[0] for w in part]
        x = torch.cat([P.noise(1, frames, size[1], size[0], 1 + j) for j in i])
        with torch.no_grad():
            f = P.velocity(net, tex[i], [w[3] for w in part], x.shape[2])
            v = P.decode(how["sampler"](f, x, how["steps"], how["shift"]))
        v = ((v + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()
        clips += list(v)
        got += [workers.apply_async(judge_clip, ((v[j], pics[w[0]], w[1], w[2]),)) for j, w in enumerate(part)]
    got = [g.get() for g in got]
    moves = [(w[2], g) for w, g in zip(todo, got) if w[1] == "move"]
    fx = [(asked.effect_name(*w[2]), g) for w, g in zip(todo, got) if w[1] == "effect"]
    out = {"steps": how["steps"]} | asked.moves_figures(*zip(*moves)) | asked.effects_figures(*zip(*fx))
    if like:
        near = [measure.psnr(p, q) for p, q in zip(clips, like)]
        out["near"] = [float(np.median(near)), float(np.quantile(near, 0.1))]
    return out, clips


def main():
    a, begin = options(), time.time()
    dev = "cuda" if torch.cuda.is_available() else "cpu"
    rng = random.Random(a.seed)
    torch.manual_seed(a.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    os.makedirs(a.out, exist_ok=True)

    def log(*s):
        print(f"[{time.time() - begin:6.1f}]", *s, flush=True)
    P = parts.Parts(a.model, a.model + "/tokenizer/spiece.model", dev)
    if dev == "cuda":
        wan.CONV = "3dl"
        log("VAE's activations:", wan.fuse(dev))
    net = parts.Model()
    net.load_state_dict(parts.load_model(a.model))
    net.to(dev).eval().requires_grad_(False)
    bank = data.Bank(a.data + "/train", dev, 12 if a.tiny else 0)
    log(f"{len(bank.pics)} pictures on {torch.cuda.get_device_name() if dev == 'cuda' else 'the CPU'}")
    lora = Lora(net.dit, a.rank)

    seconds = a.minutes * 60 - a.judging
    pools = [Pool(**g) for g in (parts.TINY if a.tiny else parts.GROUPS)]
    for p in pools:
        p.add(min(a.chunk, 8), P, net, bank, rng)
    clips = len(pools) * min(a.chunk, 8)
    while time.time() - begin < a.pool * seconds:
        rng.choices(pools, [p.p for p in pools])[0].add(a.chunk, P, net, bank, rng)
        clips += a.chunk
    log(f"{clips} clips of the teacher")
    steps = train(a, P, net, lora, pools, rng, log, seconds - (time.time() - begin))
    size = lora.save(a.out + "/4steps.safetensors")
    log(f"{steps} steps of {a.batch} clips; {size} bytes")
    report = {"clips": clips, "steps": steps, "batch": a.batch, "rank": a.rank, "lr": a.lr, "seed": a.seed, "bytes": size,
              "device": torch.cuda.get_device_name() if dev == "cuda" else "CPU", "torch": torch.__version__, "train_seconds": round(time.time() - begin)}

    def keep():
        with open(a.out + "/4steps.json", "w") as f:
            json.dump(report, f, indent=1, default=float)
    keep()
    if not a.judging:
        return
    shape, frames = ((48, 32), 9) if a.tiny else ((320, 192), 33)
    pics = [np.array(asked.fit(f, *shape)) for f in sorted(glob.glob(a.data + "/held/*.webp"))[:a.limit or (2 if a.tiny else None)]]
    with multiprocessing.get_context("spawn").Pool(max(1, len(os.sched_getaffinity(0)) - 1)) as workers:
        report["with LoRA"], fast = judge(P, net, pics, shape, frames, STUDENT, workers)
        log("4 steps with the LoRA\n" + asked.moves_table(report["with LoRA"]) + "\n" + asked.effects_table(report["with LoRA"]))
        keep()
        lora.leave()
        report["teacher"], slow = judge(P, net, pics, shape, frames, TEACHER, workers)
        log("12 steps\n" + asked.moves_table(report["teacher"]) + "\n" + asked.effects_table(report["teacher"]))
        near = [measure.psnr(p, q) for p, q in zip(fast, slow)]
        report["with LoRA"]["near"] = [float(np.median(near)), float(np.quantile(near, 0.1))]
        keep()
        report["without LoRA"], _ = judge(P, net, pics, shape, frames, STUDENT, workers, slow)
        log("4 steps without\n" + asked.moves_table(report["without LoRA"]) + "\n" + asked.effects_table(report["without LoRA"]))
        log("PSNR to the 12 steps' clips, median and 10th percentile:", report["with LoRA"]["near"], "without the LoRA:", report["without LoRA"]["near"])
    keep()
    log("done")


if __name__ == "__main__":
    main()
