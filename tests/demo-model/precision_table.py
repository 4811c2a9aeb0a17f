#!/usr/bin/env python3
"""What 8 bits cost: videos of the demo model by `sluice run --jobs`, their frames against those in bf16 (numpy and this tree, no more).

usage: precision_table.py [--device cpu] [--pictures DIR] [--clips 16] [--steps 30] [--frames 33] [--width 320] [--height 192] [--guidance 1]
                          [--seed 1] [--sluice bin/sluice] [--model models/demo] [--work DIR] [--only NUMBERS]

Clip i has picture i of DIR (default: the held-out pictures in the tree), again and again, a prompt of its own and a seed of its own. One start of
the pipeline a line of the table; frames come from dumps, so no encoder has a part in the figures. On a CPU "bf16" is float32. The last line
is the one with attention in 8 bits that is nearest to bf16, with the First Block Cache. --only 0,1,5 computes these lines (0 is what the others
are compared with, and is computed always).

PSNR is that of each frame, its mean over a clip's and over the clips; lowest: the clip of the lowest mean, and the lowest frame of all; SSIM is of
luma, each fourth frame."""
import argparse
import glob
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np

import asked
import measure

A = argparse.ArgumentParser()
A.add_argument("--device", default="cpu")
A.add_argument("--pictures", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "pictures"))
A.add_argument("--clips", type=int, default=16)
A.add_argument("--steps", type=int, default=30)
A.add_argument("--frames", type=int, default=33)
A.add_argument("--width", type=int, default=320)
A.add_argument("--height", type=int, default=192)
A.add_argument("--guidance", type=float, default=1)
A.add_argument("--seed", type=int, default=1)
A.add_argument("--sluice", default="bin/sluice")
A.add_argument("--model", default="models/demo")
A.add_argument("--work", help="a folder to work in, which stays (default: one that does not)")
A.add_argument("--only")
a = A.parse_args()


def settings():
    """[(precision, what else, configuration, options)], the first what the others are compared with"""
    last = json.load(open(f"{a.model}/transformer/config.json"))["num_layers"] - 1
    ends, n = f'bf16_blocks = "0,{last}";', a.steps
    early, late = n // 10 + 1, n - n // 10
    cache = ("--fbcache", "0.1")
    out = [("bf16", "", "", ()),
           ("fp8-linear", "", "", ()),
           ("fp8-linear", f"blocks 0 and {last} in bf16", ends, ()),
           ("fp8", "", "", ()),
           ("fp8", f"blocks 0 and {last} in bf16", ends, ())]
    for steps in (f"{early}-", f"{n // 4 + 1}-", f"{early}-{late}"):
        out.append(("fp8", f"attention so in steps {steps}", f'fp8_attention_steps = "{steps}";', ()))
    out.append(("fp8", f"both: blocks 0 and {last}, steps {early}-{late}", f'{ends} fp8_attention_steps = "{early}-{late}";', ()))
    out.append(("bf16", "cache 0.1", "", cache))
    return out


def frames_of(folder):
    """u8 [n, h, w, 3] of a dump"""
    with open(f"{folder}/frames.safetensors", "rb") as f:
        head = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        t, at = head["frames"], f.tell()
        if t["dtype"] != "U8" or len(t["shape"]) != 4 or t["shape"][3] != 3:
            raise ValueError(f"{folder}: frames are {t['dtype']} {t['shape']}, want U8 [n, h, w, 3]")
        f.seek(at + t["data_offsets"][0])
        return np.frombuffer(f.read(t["data_offsets"][1] - t["data_offsets"][0]), np.uint8).reshape(t["shape"])


def clips(work, name, setting):
    """(frames of each clip, seconds in all, forwards saved of all)"""
    precision, _, conf, options = setting
    folder = f"{work}/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    pictures = sorted(p for e in ("jpg", "jpeg", "png") for p in glob.glob(f"{glob.escape(a.pictures)}/*.{e}"))
    if not pictures:
        sys.exit(f"{a.pictures}: no pictures")
    prompts = [w[0] for w in asked.MOVES.values()] + [w[0] for _, _, w in asked.EFFECTS]
    with open(f"{folder}/jobs.jsonl", "w") as f:
        for i in range(a.clips):
            f.write(json.dumps({"image": os.path.abspath(pictures[i % len(pictures)]), "prompt": prompts[i % len(prompts)], "seed": a.seed + i,
                                "output": f"{folder}/{i}.mp4", "dump": f"{folder}/{i}", "json": f"{folder}/{i}.json"}) + "\n")
    command = [a.sluice, "run", "--model", a.model, "--device", a.device, "--jobs", f"{folder}/jobs.jsonl", "--quiet", "--precision", precision,
               "--width", str(a.width), "--height", str(a.height), "--frames", str(a.frames), "--steps", str(a.steps), "--guidance", str(a.guidance), *options]
    if conf:
        with open(f"{folder}/conf.cfg", "w") as f:
            f.write(f"denoise: {{ {conf} }};\n")
        command += ["--conf", f"{folder}/conf.cfg"]
    t = time.time()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout[-2000:]}")
    seconds, calls, hits, out = time.time() - t, 0, 0, []
    for i in range(a.clips):
        out.append(frames_of(f"{folder}/{i}"))
        for s in json.load(open(f"{folder}/{i}.json")).get("steps", []):
            for b in ("cond", "uncond"):
                if s.get(b):
                    calls += 1
                    hits += not s[b]["computed"]
    shutil.rmtree(folder)
    return out, seconds, hits / calls if calls else 0


def against(got, want):
    """of each clip: (PSNR of its frames, SSIM)"""
    return [(np.array([measure.psnr(x, y) for x, y in zip(g, w)]), np.mean([measure.ssim(x, y) for x, y in zip(g[::4], w[::4])]))
            for g, w in zip(got, want)]


def line(setting, seconds, saved, q):
    figures = ["-"] * 5
    if q:
        m = np.array([(x.mean(), s, x[-1]) for x, s in q])
        figures = [f"{m[:, 0].mean():.2f}", f"{m[:, 0].min():.2f}, {min(x.min() for x, _ in q):.2f}", f"{m[:, 1].mean():.4f}", f"{m[:, 2].mean():.2f}",
                   f"{m[:, 2].min():.2f}"]
    print(f"| {setting[0]} | {setting[1]} | {seconds:.1f} | {100 * saved:.0f} % | {' | '.join(figures)} |", flush=True)


def main():
    work = a.work or tempfile.mkdtemp(prefix="precision-")
    only = {int(x) for x in a.only.split(",")} if a.only else None
    print(f"{a.clips} clips, {a.width}x{a.height}, {a.frames} frames, {a.steps} steps, guidance {a.guidance:g}, {a.device}\n")
    print("| precision | also | seconds | forwards saved | PSNR | lowest clip, frame | SSIM | last frame | its lowest |\n" + "|---" * 9 + "|")
    want, best = None, (0, None)
    try:
        rows = settings()
        for k, s in enumerate(rows):
            if k and only is not None and k not in only:
                continue
            got, seconds, saved = clips(work, str(k), s)
            if k == 0:
                want = got
                line(s, seconds, saved, None)
                continue
            q = against(got, want)
            line(s, seconds, saved, q)
            mean = np.mean([x.mean() for x, _ in q])
            if s[0] == "fp8" and mean > best[0]:
                best = (mean, s)
        if best[1]:
            p, also, conf, options = best[1]
            s = (p, f"{also}, cache 0.1".lstrip(", "), conf, (*options, "--fbcache", "0.1"))
            got, seconds, saved = clips(work, "best", s)
            line(s, seconds, saved, against(got, want))
    finally:
        if not a.work:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
