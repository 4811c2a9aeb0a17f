#!/usr/bin/env python3
"""Judges the demo model by what Sluice makes with it (numpy, Pillow and the ffmpeg command; no PyTorch).

usage: evaluate.py --pictures DIR [--sluice bin/sluice] [--model models/demo] [--part moves|effects|cache|all] [--first N] [--limit N]
                   [--steps 12] [--guidance 1] [--frames 33] [--width 320] [--height 192] [--work DIR] [--parallel N] [-- SLUICE OPTIONS]

DIR: the held-out pictures that prepare.py takes out of the Debian packages (.demo-data/held), or any folder of pictures."""
import argparse
import glob
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time

import numpy as np
from PIL import Image

import asked
import measure
from asked import EFFECTS, MOVES

A = argparse.ArgumentParser()
A.add_argument("--sluice", default="bin/sluice")
A.add_argument("--model", default="models/demo")
A.add_argument("--pictures", required=True)
A.add_argument("--part", default="all")
A.add_argument("--first", type=int, default=0, help="leave out so many pictures, which another run has judged")
A.add_argument("--limit", type=int, default=0)
A.add_argument("--steps", type=int, default=12)
A.add_argument("--guidance", type=float, default=1.0)
A.add_argument("--frames", type=int, default=33)
A.add_argument("--width", type=int, default=320)
A.add_argument("--height", type=int, default=192)
A.add_argument("--work", default="/tmp/demo-model")
A.add_argument("--seed", type=int, default=1)
A.add_argument("--parallel", type=int, default=1, help="so many sluice processes at once, each with its share of the cores")
A.add_argument("--clips", type=int, default=16, help="of cache")
A.add_argument("--settings", default="0:", help="cache: only these lines of the table, as 7:17; line 0, what all are compared with, must lie in the work folder then")
A.add_argument("--seconds", type=float, default=0, help="make clips for so long, then judge the pictures that are complete")
A.add_argument("rest", nargs="*")
a = A.parse_args()
os.makedirs(a.work, exist_ok=True)

def pictures():
    out = []
    for f in sorted(p for e in ("webp", "jpg", "jpeg", "png") for p in glob.glob(f"{a.pictures}/*.{e}")):
        p = f"{a.work}/{os.path.splitext(os.path.basename(f))[0]}.png"
        asked.fit(f, a.width, a.height).save(p)
        out.append(p)
    if not out:
        sys.exit(f"no pictures in {a.pictures}")
    return out[:a.limit or None]


def run(jobs, *extra):
    """jobs: [(name, picture, prompt, seed)] -> seconds; MP4s and reports lie in the work folder"""
    t, running = time.time(), []
    for k in range(a.parallel):
        path = f"{a.work}/jobs{k}.jsonl"
        with open(path, "w") as f:
            for name, pic, prompt, seed in jobs[k::a.parallel]:
                f.write(json.dumps({"image": pic, "prompt": prompt, "output": f"{a.work}/{name}.mp4", "json": f"{a.work}/{name}.json", "width": a.width,
                                    "height": a.height, "frames": a.frames, "seed": seed}) + "\n")
        cmd = [a.sluice, "run", "--model", a.model, "--jobs", path, "--crf", "1", "--quiet", *extra, *a.rest]
        env = dict(os.environ) if a.parallel == 1 else {**os.environ, "OMP_NUM_THREADS": str(max(1, os.cpu_count() // a.parallel))}
        running.append((cmd, subprocess.Popen(cmd, env=env)))
    for cmd, p in running:
        try:
            p.wait(max(0.1, a.seconds - (time.time() - t)) if a.seconds else None)
        except subprocess.TimeoutExpired:
            p.terminate()
    for cmd, p in running:
        if p.wait() and not a.seconds:
            print("sluice ended with", p.returncode, "for", " ".join(cmd), file=sys.stderr)
    return time.time() - t


def whole(pics, name, kinds):
    """the pictures whose clips are all there, if the time was limited, with their numbers"""
    done = [i for i in range(a.first, len(pics)) if not a.seconds or all(os.path.exists(f"{a.work}/{name}-{k}-{i}.mp4") for k in kinds)]
    return [(i, pics[i]) for i in done]


def frames(name):
    p = f"{a.work}/{name}.mp4"
    if not os.path.exists(p):
        return None
    if shutil.which("ffmpeg"):
        b = subprocess.run(["ffmpeg", "-v", "error", "-i", p, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True).stdout
        f = np.frombuffer(b, np.uint8).reshape(-1, a.height, a.width, 3)
    else:
        import cv2
        v, f = cv2.VideoCapture(p), []
        while True:
            ok, q = v.read()
            if not ok:
                break
            f.append(q[..., ::-1])
        f = np.array(f)
    return f if len(f) == a.frames else None


def common():
    return ["--steps", str(a.steps), "--guidance", str(a.guidance)]


def each(f, items):
    """f over items, on all cores"""
    with multiprocessing.get_context("fork").Pool() as pool:
        return pool.map(f, items)


def judged_move(job):
    i, p, m = job
    f = frames(f"move-{m}-{i}")
    return None if f is None else asked.judge_move(f, np.array(Image.open(p)), m)


def judged_effect(job):
    i, e, s = job
    f = frames(f"fx-{asked.effect_name(e, s)}-{i}")
    return (False, "no clip") if f is None else measure.effect(f, e, s)


def numbered(pics):
    return list(enumerate(pics))[a.first:]


def moves(pics):
    jobs = [(f"move-{m}-{i}", p, w[i % len(w)], a.seed + i) for i, p in numbered(pics) for m, w in MOVES.items()]
    sec = run(jobs, *common())
    pics = whole(pics, "move", MOVES)
    wishes = [(i, p, m) for i, p in pics for m in MOVES]
    got = each(judged_move, wishes)
    for (i, p, m), r in zip(wishes, got):
        if r and r["move"] != m:
            print(f"  {os.path.basename(p)}: asked {m}, measured {r['move']} {r['figures']}")
    print(f"\nCamera moves: {len(pics)} held-out pictures x {len(MOVES)} moves, {sec / max(1, len(wishes)):.2f} s a clip, {got.count(None)} failed")
    print(asked.moves_table(asked.moves_figures([m for _, _, m in wishes], got)))


def effects(pics):
    jobs = [(f"fx-{asked.effect_name(e, s)}-{i}", p, w[i % len(w)], a.seed + i) for i, p in numbered(pics) for e, s, w in EFFECTS]
    run(jobs, *common())
    pics = whole(pics, "fx", [asked.effect_name(e, s) for e, s, _ in EFFECTS])
    wishes = [(i, p, e, s) for i, p in pics for e, s, _ in EFFECTS]
    got = each(judged_effect, [(i, e, s) for i, _, e, s in wishes])
    for (_, p, e, _), g in zip(wishes, got):
        if not g[0]:
            print(f"  {os.path.basename(p)}: {e} not seen ({g[1]})", file=sys.stderr)
    print(f"\nEffects: {len(pics)} held-out pictures")
    print(asked.effects_table(asked.effects_figures([asked.effect_name(e, s) for _, _, e, s in wishes], got)))


CACHE = [(t,) for t in (0, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3)] + [(t, *o) for t in (0.1, 0.2) for o in (("--fbcache-warmup", "4"), ("--fbcache-max-hits", "1"),
        ("--fbcache-max-hits", "2"), ("--fbcache-final", "4"), ("--fbcache-warmup", "4", "--fbcache-max-hits", "2", "--fbcache-final", "4"))]


def against(job):
    x, y = (frames(n) for n in job)
    if x is None or y is None:
        return None
    return np.mean([measure.psnr(p, q) for p, q in zip(x, y)]), np.mean([measure.ssim(p, q) for p, q in zip(x[::4], y[::4])]), measure.psnr(x[-1], y[-1])


def compared(part, pics, settings, heads):
    """settings: [(columns of the table, options)], each against the first one, on clips of 30 steps"""
    pics = (pics * a.clips)[:a.clips]
    prompts = [w[0] for w in MOVES.values()] + [w[0] for _, _, w in EFFECTS]
    print(f"\n| {' | '.join(heads)} | forwards saved | seconds a clip | PSNR | lowest | SSIM | last frame PSNR |\n|" + "---|" * (len(heads) + 6))
    lo, hi = (int(x) if x else len(settings) for x in a.settings.split(":"))
    for k, (columns, options) in list(enumerate(settings))[lo:hi]:
        jobs = [(f"{part}-{k}-{i}", p, prompts[i % len(prompts)], a.seed + i) for i, p in enumerate(pics)]
        sec = run(jobs, "--steps", "30", "--guidance", str(a.guidance), *options) / len(jobs)
        hits = calls = 0
        for j in jobs:
            try:
                for s in json.load(open(f"{a.work}/{j[0]}.json")).get("steps", []):
                    for b in ("cond", "uncond"):
                        if s.get(b):
                            calls += 1
                            hits += not s[b]["computed"]
            except (OSError, ValueError, AttributeError) as e:
                print(f"{j[0]}.json: {e}", file=sys.stderr)
        saved = f"| {' | '.join(columns)} | {100 * hits / calls if calls else 0:.0f} % | {sec:.2f} |"
        if k == 0:
            print(saved + " - | - | - | - |", flush=True)
            continue
        q = [v for v in each(against, [(j[0], f"{part}-0-{i}") for i, j in enumerate(jobs)]) if v]
        m = np.mean(q, 0) if q else [np.nan] * 3
        print(f"{saved} {m[0]:.2f} | {min(v[0] for v in q) if q else np.nan:.2f} | {m[1]:.4f} | {m[2]:.2f} |", flush=True)


def cache(pics):
    """First Block Cache: what it saves and what it costs, against threshold 0"""
    compared("cache", pics, [((str(t), " ".join(rules).replace("--fbcache-", "")), ("--fbcache", str(t), *rules)) for t, *rules in CACHE], ("threshold", "also"))


def main():
    pics = pictures()
    if a.part in ("moves", "all"):
        moves(pics)
    if a.part in ("effects", "all"):
        effects(pics)
    if a.part in ("cache", "all"):
        cache(pics)


main()
