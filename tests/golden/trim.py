#!/usr/bin/env python3
"""Copy golden folders here without what can be made again: trim.py FROM (the folder that holds tiny-i2v ...).

Weights become weights.txt: the seed, names, shapes and files from which tests/helper_weights.c makes the very bytes, and
weights.sha256 gets the sums that they must have. Of a case everything is kept but the float `frames` (`frames.u8` says the
same at 8 bits). What has no more than 8 or 16 bits in it is stored so: `clip.pixels` and `vae.encode.input.frame0` as U8
pixels (both are such, normalised), `dit.rope.*` as BF16 where the tables were rounded to that. Of the prompts' figures a folder
other than tiny-i2v keeps those that its cases use. Files that are equal to tiny-i2v's are links to them, and so are the
tokenizers, which differ in the name of their training text alone. Needs nothing but Python."""
import array, hashlib, json, os, shutil, struct, sys

HERE = os.path.dirname(os.path.abspath(__file__))
SEEDS = {"tiny-i2v": 11, "tiny-t2v": 12, "tiny-i2v-a14b": 13, "tiny-flf2v": 14, "tiny-ti2v-5b": 21, "tiny-t2v-a14b": 22}
COMPONENTS = ("text_encoder", "image_encoder", "vae", "transformer", "transformer_2")  # seeds from 1 on
TIMES = {("tiny-ti2v-5b", "vae"): "times decoder.conv_out.weight 0.7"}


def read(path):
    data = open(path, "rb").read()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    return {k: (v["dtype"], v["shape"], data[8 + n + v["data_offsets"][0] : 8 + n + v["data_offsets"][1]]) for k, v in header.items()}


def write(path, tensors):
    header, at = {}, 0
    for k, (dtype, shape, data) in sorted(tensors.items()):
        header[k] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for k in sorted(tensors):
            f.write(tensors[k][2])


def pixels(tensor, means, stds):
    """F32 (level / 255 - mean) / std by channel -> U8 levels; refuses what is not such."""
    dtype, shape, data = tensor
    x, part = array.array("f", data), len(data) // 4 // (shape[0] if len(means) == 1 else len(means) * (shape[0] if len(shape) == 4 else 1))
    channel = lambda i: i // part % len(means)
    levels = [round((v * stds[channel(i)] + means[channel(i)]) * 255) for i, v in enumerate(x)]
    worst = max(abs((u / 255 - means[channel(i)]) / stds[channel(i)] - x[i]) for i, u in enumerate(levels))
    assert dtype == "F32" and worst < 1e-6, worst
    return "U8", shape, bytes(levels)


def halves(tensor):
    """F32 whose lower halves are zero -> BF16; others stay."""
    dtype, shape, data = tensor
    words = array.array("H", data)
    return ("BF16", shape, words[1::2].tobytes()) if dtype == "F32" and not any(words[::2]) else tensor


def figures(path):
    out = {k: v for k, v in read(path).items() if k != "frames"}
    for k in out:
        if k == "clip.pixels":
            out[k] = pixels(out[k], (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
        elif k == "vae.encode.input.frame0":
            out[k] = pixels(out[k], (0.5,), (0.5,))
        elif k.startswith("dit.rope."):
            out[k] = halves(out[k])
    return out


def seeded(src, dst, seed, times):
    """weights.txt of a component; the sums of its files."""
    lines, sums = [f"seed {seed}"] + times, []
    for name in sorted(n for n in os.listdir(src) if n.endswith(".safetensors")):
        tensors = read(os.path.join(src, name))
        (dtype,) = {t[0] for t in tensors.values()}
        lines.append(f"file {name} {dtype}")
        lines += [f"{k} {' '.join(map(str, t[1]))}" for k, t in tensors.items()]
        sums.append((hashlib.sha256(open(os.path.join(src, name), "rb").read()).hexdigest(), os.path.relpath(os.path.join(dst, name), HERE)))
    open(os.path.join(dst, "weights.txt"), "w").write("\n".join(lines) + "\n")
    return sums


def put(src, dst, folder):
    """A file as it is, or a link to tiny-i2v's."""
    twin = os.path.join(HERE, "tiny-i2v", os.path.relpath(dst, os.path.join(HERE, folder)))
    os.makedirs(os.path.dirname(dst), exist_ok=True)
    if os.path.lexists(dst):
        os.remove(dst)
    if folder != "tiny-i2v" and os.path.getsize(src) > 4000 and os.path.exists(twin) and (dst.endswith("spiece.model") or open(src, "rb").read() == open(twin, "rb").read()):
        os.symlink(os.path.relpath(twin, os.path.dirname(dst)), dst)
    else:
        shutil.copyfile(src, dst)
        os.chmod(dst, 0o644)


sums = []
for folder, seed in SEEDS.items():
    src, dst = os.path.join(sys.argv[1], folder), os.path.join(HERE, folder)
    used = {0}
    for top, _, names in os.walk(src):
        for name in sorted(names):
            at = os.path.join(top, name)
            if not name.endswith(".safetensors"):
                put(at, os.path.join(dst, os.path.relpath(at, src)), folder)
            if top == src and name.endswith(".json") and name != "prompts.json":
                case = json.load(open(at))
                used |= {case["prompt"], case["neg"]}
    for i, part in enumerate(COMPONENTS):
        if os.path.isdir(os.path.join(src, "model", part)):
            times = [TIMES[folder, part]] if (folder, part) in TIMES else []
            sums += seeded(os.path.join(src, "model", part), os.path.join(dst, "model", part), seed + 1 + i, times)
    for name in sorted(n for n in os.listdir(src) if n.endswith(".safetensors")):
        if name in ("text.safetensors", "scheduler.safetensors"):
            if folder == "tiny-i2v":
                put(os.path.join(src, name), os.path.join(dst, name), folder)
            elif name == "text.safetensors":
                text = read(os.path.join(src, name))
                write(os.path.join(dst, name), {k: v for k, v in text.items() if int(k.split(".")[1]) in used and not k.startswith("layer.")})
        else:
            write(os.path.join(dst, name), figures(os.path.join(src, name)))
open(os.path.join(HERE, "weights.sha256"), "w").write("".join(f"{a}  {b}\n" for a, b in sums))
same = [os.path.join(HERE, "tiny-i2v", f"i2v-96x64x9{k}.png") for k in ("", "-fbcache")]
os.remove(same[1])
os.symlink(os.path.basename(same[0]), same[1])

# what tests read of the LoRA and of the ways of stepping: the complete sum of `d`, LightX2V's steps and the tables
for folder, case, kept in (
    ("lora-i2v", "lora-48x32x5", lambda k: not k.startswith("d.diffusers") and k != "dit.text"),
    ("distill-4step", "distill-48x32x5", lambda k: k == "noise" or k.startswith(("lightx2v.", "table."))),
):
    figures = {k: v for k, v in read(os.path.join(sys.argv[1], folder, case + ".safetensors")).items() if kept(k)}
    os.makedirs(os.path.join(HERE, folder), exist_ok=True)
    write(os.path.join(HERE, folder, case + ".safetensors"), figures)
