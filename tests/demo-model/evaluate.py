#!/usr/bin/env python3
"""Judges the demo model by what Sluice makes with it (numpy, Pillow and the ffmpeg command; no PyTorch).

usage: evaluate.py --pictures DIR [--sluice bin/sluice] [--model models/demo] [--part moves|effects|cache|all] [--limit N]
                   [--steps 12] [--guidance 1] [--frames 33] [--width 320] [--height 192] [--work DIR] [-- SLUICE OPTIONS]

DIR: the held-out pictures that prepare.py takes out of the Debian packages (.demo-data/held), or any folder of pictures."""
import argparse
import glob
import json
import os
import subprocess
import sys
import time

import numpy as np
from PIL import Image

import measure

A = argparse.ArgumentParser()
A.add_argument("--sluice", default="bin/sluice")
A.add_argument("--model", default="models/demo")
A.add_argument("--pictures", required=True)
A.add_argument("--part", default="all")
A.add_argument("--limit", type=int, default=0)
A.add_argument("--steps", type=int, default=12)
A.add_argument("--guidance", type=float, default=1.0)
A.add_argument("--frames", type=int, default=33)
A.add_argument("--width", type=int, default=320)
A.add_argument("--height", type=int, default=192)
A.add_argument("--work", default="/tmp/demo-model")
A.add_argument("--seed", type=int, default=1)
A.add_argument("--write-crops", action="store_true")
A.add_argument("rest", nargs="*")
a = A.parse_args()
os.makedirs(a.work, exist_ok=True)

# wordings are spread over the pictures: picture i gets wording i
MOVES = {
    "left": ["The camera pans to the left", "pan left", "camera moves left", "a pan to the left"],
    "right": ["The camera pans to the right", "pan right", "camera moves right", "a pan to the right"],
    "up": ["The camera tilts up", "tilt up", "look up", "the view tilts upwards"],
    "down": ["The camera tilts down", "tilt down", "look down", "the view tilts downwards"],
    "in": ["The camera zooms in", "zoom in", "a zoom in", "push in"],
    "out": ["The camera zooms out", "zoom out", "a zoom out", "pull back"],
    "cw": ["The camera rotates clockwise", "rotate clockwise", "a clockwise rotation", "the view turns clockwise"],
    "ccw": ["The camera rotates counterclockwise", "rotate anticlockwise", "a counterclockwise rotation", "the view turns anti-clockwise"],
    "shake": ["The camera shakes", "shaky camera", "an earthquake", "shake the camera"],
    "still": ["Hold still", "the camera holds still", "a static shot", "the camera does not move"],
}
EFFECTS = [("snow", None, ["Snow falls", "it is snowing", "falling snow", "let it snow"]), ("rain", None, ["Rain falls", "it starts to rain", "falling rain", "it is raining"]),
           ("fade", None, ["The picture fades to black", "fade to black", "a fade to black", "everything goes dark"]),
           ("bw", None, ["The picture turns black and white", "turn black and white", "make it black and white", "the colours fade away"]),
           ("bright", None, ["The picture gets brighter", "make it brighter", "the scene brightens", "the light gets stronger"]),
           ("sunset", None, ["Sunset colours appear", "the sun sets", "sunset colours", "make it look like sunset"]),
           ("ball", "left", ["A red ball rolls in from the left", "a blue ball bounces across from the left", "a green ball rolls from left to right", "a yellow ball bounces in from the left"]),
           ("ball", "right", ["A red ball rolls in from the right", "a blue ball bounces across from the right", "a green ball rolls from right to left", "a yellow ball bounces in from the right"])]


def pictures():
    out = []
    for f in sorted(p for e in ("webp", "jpg", "jpeg", "png") for p in glob.glob(f"{a.pictures}/*.{e}")):
        im = Image.open(f).convert("RGB")
        s = max(a.width / im.width, a.height / im.height)
        im = im.resize((max(a.width, round(im.width * s)), max(a.height, round(im.height * s))), Image.LANCZOS)
        x, y = (im.width - a.width) // 2, (im.height - a.height) // 2
        p = f"{a.work}/{os.path.splitext(os.path.basename(f))[0]}.png"
        im.crop((x, y, x + a.width, y + a.height)).save(p)
        out.append(p)
    if not out:
        sys.exit(f"no pictures in {a.pictures}")
    return out[:a.limit or None]


def run(jobs, *extra):
    """jobs: [(name, picture, prompt, seed)] -> seconds; MP4s and reports lie in the work folder"""
    path = f"{a.work}/jobs.jsonl"
    with open(path, "w") as f:
        for name, pic, prompt, seed in jobs:
            f.write(json.dumps({"image": pic, "prompt": prompt, "output": f"{a.work}/{name}.mp4", "json": f"{a.work}/{name}.json", "width": a.width, "height": a.height,
                                "frames": a.frames, "seed": seed}) + "\n")
    t = time.time()
    cmd = [a.sluice, "run", "--model", a.model, "--jobs", path, "--crf", "1", "--quiet", *extra, *a.rest]
    r = subprocess.run(cmd)
    if r.returncode:
        print("sluice ended with", r.returncode, "for", " ".join(cmd), file=sys.stderr)
    return time.time() - t


def frames(name):
    p = f"{a.work}/{name}.mp4"
    if not os.path.exists(p):
        return None
    b = subprocess.run(["ffmpeg", "-v", "error", "-i", p, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True).stdout
    f = np.frombuffer(b, np.uint8).reshape(-1, a.height, a.width, 3)
    return f if len(f) == a.frames else None


def common():
    return ["--steps", str(a.steps), "--guidance", str(a.guidance)]


def moves(pics):
    jobs = [(f"move-{m}-{i}", p, w[i % len(w)], a.seed + i) for i, p in enumerate(pics) for m, w in MOVES.items()]
    sec = run(jobs, *common())
    ok, first, hold, grad, failed = {m: [] for m in MOVES}, [], [], [], 0
    for i, p in enumerate(pics):
        src = np.array(Image.open(p))
        for m in MOVES:
            f = frames(f"move-{m}-{i}")
            if f is None:
                failed += 1
                ok[m].append(False)
                continue
            got, fig = measure.move(f)
            ok[m].append(got == m)
            if got != m:
                print(f"  {os.path.basename(p)}: asked {m}, measured {got} {fig}")
            first.append(measure.psnr(f[0], src))
            if m == "still":
                hold.append(min(measure.psnr(f[0], q) for q in f[1:]))
            if m in ("still", "left", "right", "up", "down"):
                grad.append(measure.gradient(f[-1]) / max(measure.gradient(f[0]), 1e-6))
    n = sum(len(v) for v in ok.values())
    print(f"\nCamera moves: {len(pics)} held-out pictures x {len(MOVES)} moves, {sec / max(1, len(jobs)):.2f} s a clip, {failed} failed")
    print("| move | agrees |\n|---|---|")
    for m, v in ok.items():
        print(f"| {m} | {sum(v)}/{len(v)} |")
    print(f"| **all** | **{100 * sum(map(sum, ok.values())) / n:.1f} %** |")
    if first:
        print(f"\nfirst frame against the picture: median {np.median(first):.2f} dB (10th percentile {np.quantile(first, .1):.2f})")
        print(f"hold still, worst frame against the first: median {np.median(hold):.2f} dB, lowest {min(hold):.2f}, {100 * np.mean(np.array(hold) >= 24):.0f} % reach 24 dB")
        print(f"gradient energy of the last frame, stills and pans: median {np.median(grad):.2f} of the first's, {100 * np.mean(np.array(grad) >= 0.5):.0f} % keep half")


def effects(pics):
    jobs = [(f"fx-{e}{'-' + s if s else ''}-{i}", p, w[i % len(w)], a.seed + i) for i, p in enumerate(pics) for e, s, w in EFFECTS]
    run(jobs, *common())
    print("\n| effect | shows |\n|---|---|")
    total = []
    for e, s, _ in EFFECTS:
        v = []
        for i, p in enumerate(pics):
            f = frames(f"fx-{e}{'-' + s if s else ''}-{i}")
            v.append(f is not None and bool(measure.effect(f, e, s)[0]))
        total += v
        print(f"| {e}{' from the ' + s if s else ''} | {sum(v)}/{len(v)} |")
    print(f"| **all** | **{100 * np.mean(total):.1f} %** |")


def cache(pics):
    """First Block Cache: what it saves and what it costs, on 16 clips of 30 steps"""
    pics = (pics * 16)[:16]
    prompts = [w[0] for w in MOVES.values()] + [w[0] for _, _, w in EFFECTS]
    ref = None
    print("\n| threshold | forwards saved | seconds a clip | PSNR | SSIM | last frame PSNR |\n|---|---|---|---|---|---|")
    for t in (0, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3):
        jobs = [(f"cache-{t}-{i}", p, prompts[i % len(prompts)], a.seed + i) for i, p in enumerate(pics)]
        sec = run(jobs, "--steps", "30", "--guidance", str(max(a.guidance, 2.0)), "--fbcache", str(t)) / len(jobs)
        fs = [frames(j[0]) for j in jobs]
        ref = fs if ref is None else ref
        hits = calls = 0
        for j in jobs:
            try:
                for s in json.load(open(f"{a.work}/{j[0]}.json")).get("steps", []):
                    for k in ("cond", "uncond"):
                        if k in s:
                            calls += 1
                            hits += not s[k]["computed"]
            except (OSError, ValueError, AttributeError):
                pass
        q = [(np.mean([measure.psnr(x, y) for x, y in zip(f[::4], r[::4])]), np.mean([measure.ssim(x, y) for x, y in zip(f[::8], r[::8])]), measure.psnr(f[-1], r[-1]))
             for f, r in zip(fs, ref) if f is not None and r is not None]
        q = np.mean(q, 0) if q else [0, 0, 0]
        print(f"| {t} | {100 * hits / calls if calls else 0:.0f} % | {sec:.2f} | {q[0] if t else float('inf'):.2f} | {q[1]:.4f} | {q[2] if t else float('inf'):.2f} |", flush=True)


def main():
    pics = pictures()
    if a.part in ("moves", "all"):
        moves(pics)
    if a.part in ("effects", "all"):
        effects(pics)
    if a.part in ("cache", "all"):
        cache(pics)


main()
