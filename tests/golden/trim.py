#!/usr/bin/env python3
"""Cut the golden folders of two models down to what the first block's test needs: trim.py FROM (the folder that holds tiny-flf2v ...).

Kept of a transformer: everything but the blocks after block 0 (config.json then says num_layers 1), and of that the seed and
the names, from which tests/t_seeded.h makes the very bytes again (weights.txt). Kept of a case: what lies inside
the first forward up to block 0, its inputs, and the prompt's embedding `embed.0`. The whole folders are checked by
`test_denoise_golden FROM`. Of tiny-i2v, everything is here but the cases' float `frames` (`frames.u8` says the same at 8 bits): 2 MB. What has no more
than 8 or 16 bits in it is stored so: `clip.pixels` and `vae.encode.input.frame0` as U8 pixels (both are such, normalised), `dit.rope.*` as BF16. Needs
nothing but Python."""
import array, json, math, os, random, struct, sys

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = [("tiny-flf2v", "flf2v-64x64x9", 14 + 4), ("tiny-i2v-a14b", "a14b-64x64x9", 13 + 4)]  # and the transformer's seed
KEEP = ("dit.input", "dit.patch", "dit.time_proj", "dit.text", "dit.image", "dit.block.0", "clip.penultimate", "timesteps")


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
    x, part = array.array("f", data), len(data) // 4 // len(means)
    levels = [round((v * stds[i // part] + means[i // part]) * 255) for i, v in enumerate(x)]
    worst = max(abs((u / 255 - means[i // part]) / stds[i // part] - x[i]) for i, u in enumerate(levels))
    assert dtype == "F32" and worst < 1e-6, worst
    return "U8", shape, bytes(levels)


def halves(tensor):
    """F32 whose lower halves are zero -> BF16."""
    dtype, shape, data = tensor
    words = array.array("H", data)
    assert dtype == "F32" and not any(words[::2])
    return "BF16", shape, words[1::2].tobytes()


FLOAT = struct.Struct("f")


def f32(x):
    return FLOAT.unpack(FLOAT.pack(x))[0]


def bits(x):
    return struct.unpack("I", FLOAT.pack(x))[0]


def generator(seed):
    """std::mt19937, as torch seeds it."""
    state = [seed & 0xFFFFFFFF]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + i) & 0xFFFFFFFF)
    g = random.Random()
    g.setstate((3, tuple(state) + (624,), None))
    return g


def randn(g, n):
    """graphs/randn.c's numbers, n >= 16, with a logarithm and a cosine in double."""

    def sixteen(u):
        radius = [f32(math.sqrt(f32(-2 * f32(math.log(f32(1 - x)))))) for x in u[:8]]
        angle = [f32(f32(2 * f32(math.pi)) * x) for x in u[8:]]
        return [f32(r * f32(math.cos(a))) for r, a in zip(radius, angle)] + [f32(r * f32(math.sin(a))) for r, a in zip(radius, angle)]

    u = [(g.getrandbits(32) & 0xFFFFFF) * 2.0**-24 for _ in range(n)]
    x = [v for i in range(0, n - 15, 16) for v in sixteen(u[i : i + 16])]
    return x if n % 16 == 0 else x[: n - 16] + sixteen([(g.getrandbits(32) & 0xFFFFFF) * 2.0**-24 for _ in range(16)])


def scaled(name, shape, x):
    """The rules of the golden README's last section, as far as a transformer's names go."""
    if name.endswith("scale_shift_table"):
        return f32(x * f32(0.2))
    if name.endswith("bias"):
        return f32(x * f32(0.05))
    if len(shape) == 1:
        return f32(1 + f32(f32(0.15) * x))
    return f32(x * f32(1 / math.sqrt(math.prod(shape[1:]))))


def seeded(path, weights, kept, seed):
    """weights.txt: what t_seeded.h makes `kept` of. Elements that libm's or torch's last bits could round otherwise stand in it."""
    g, lines, fixes, h, other = generator(seed), [f"seed {seed}"], [], 14695981039346656037, 0
    for p, name in enumerate(sorted(weights)):
        dtype, shape, data = weights[name]
        assert dtype == "BF16" and math.prod(shape) >= 16, name
        x, want = randn(g, math.prod(shape)), array.array("H", data)
        lines.append(f"{'keep' if name in kept else 'skip'} {name} {' '.join(map(str, shape))}")
        if name not in kept:
            continue
        for i, v in enumerate(x):
            b = bits(scaled(name, shape, v))
            differs = (b + 0x7FFF + (b >> 16 & 1)) >> 16 != want[i]
            other += differs
            if differs or abs((b & 0xFFFF) - 0x8000) <= 16:
                fixes.append(f"fix {p} {i} {want[i]:04x}")
        for byte in data:
            h = (h ^ byte) * 1099511628211 & 0xFFFFFFFFFFFFFFFF
    assert other < 50, other
    with open(path, "w") as f:
        f.write("\n".join(lines + fixes + [f"hash {h:016x}"]) + "\n")


for folder, case, seed in CASES:
    src, dst = os.path.join(sys.argv[1], folder), os.path.join(HERE, folder + "-block0")
    os.makedirs(os.path.join(dst, "transformer"), exist_ok=True)
    weights = read(os.path.join(src, "model/transformer/diffusion_pytorch_model.safetensors"))
    kept = [k for k in weights if not k.startswith("blocks.") or k.startswith("blocks.0.")]
    seeded(os.path.join(dst, "transformer/weights.txt"), weights, kept, seed)
    config = json.load(open(os.path.join(src, "model/transformer/config.json")))
    config["num_layers"] = 1
    json.dump(config, open(os.path.join(dst, "transformer/config.json"), "w"), indent=1)
    figures = {k: v for k, v in read(os.path.join(src, case + ".safetensors")).items() if k.startswith(KEEP)}
    figures["embed.0"] = read(os.path.join(src, "text.safetensors"))["embed.0"]
    write(os.path.join(dst, "case.safetensors"), figures)

for case in ("i2v-96x64x9", "i2v-96x64x9-fbcache", "i2v-64x96x13-nocfg"):
    figures = {k: v for k, v in read(os.path.join(sys.argv[1], "tiny-i2v", case + ".safetensors")).items() if k != "frames"}
    for k in figures:
        if k == "clip.pixels":
            figures[k] = pixels(figures[k], (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
        elif k == "vae.encode.input.frame0":
            figures[k] = pixels(figures[k], (0.5,), (0.5,))
        elif k.startswith("dit.rope."):
            figures[k] = halves(figures[k])
    write(os.path.join(HERE, "tiny-i2v", case + ".safetensors"), figures)
