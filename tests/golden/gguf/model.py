#!/usr/bin/env python3
"""tiny-i2v's transformer and text encoder as GGUF, and the numbers that they hold as float32. Plain Python, no packages.

    python3 model.py GOLDEN OUT        GOLDEN holds tiny-i2v

OUT/transformer.gguf, .safetensors    Wan-AI's names; Q4_K, Q6_K, Q8_0, F16 and F32, mixed as city96's Q4_K_M files mix them
OUT/umt5.gguf, .safetensors           llama.cpp's names; Q8_0 and F32; beside it Diffusers' names

The numbers are decoded here, by the formats' description and not by Sluice's code: float32 products and sums, each rounded once.
"""
import array, os, struct, sys
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "layouts"))
import build

TYPE = {"F32": 0, "F16": 1, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14}
def f16(x): b = struct.pack("<e", x); return struct.unpack("<e", b)[0], b
def clip(x, lo, hi): return lo if x < lo else hi if x > hi else x
def floats(t): return array.array("f", (build.BF[c] for c in build.u16(t))) if t[0] == "BF16" else array.array("f", t[2])

# ---- blocks: numbers -> (bytes, the numbers that these mean) ----
def q8_0(x):
    d, b = f16(max(map(abs, x)) / 127); q = [clip(round(v / d), -127, 127) if d else 0 for v in x]
    return b + array.array("b", q).tobytes(), [d * k for k in q]
def q4_k(x):
    """8 sub-blocks of 32, each with a scale and an offset of 6 bits; two sub-blocks share their bytes."""
    subs = [x[i:i + 32] for i in range(0, 256, 32)]; lows = [max(0.0, -min(s)) for s in subs]; steps = [(max(s) + m) / 15 for s, m in zip(subs, lows)]
    d, db = f16(max(max(steps), 0.0) / 63); m, mb = f16(max(lows) / 63)
    sc = [clip(round(s / d), 0, 63) if d else 0 for s in steps]; mn = [clip(round(l / m), 0, 63) if m else 0 for l in lows]; codes, numbers = [], []
    for s, a, b in zip(subs, sc, mn):
        dl, ml = build.f32(d * a), build.f32(m * b); q = [clip(round((v + ml) / dl), 0, 15) if dl else 0 for v in s]
        table = [build.f32(build.f32(dl * k) - ml) for k in range(16)]; codes.append(q); numbers += [table[k] for k in q]
    six = bytes(sc[k] | sc[k + 4] >> 4 << 6 for k in range(4)) + bytes(mn[k] | mn[k + 4] >> 4 << 6 for k in range(4)) + bytes(sc[k + 4] & 15 | (mn[k + 4] & 15) << 4 for k in range(4))
    return db + mb + six + b"".join(bytes(l | h << 4 for l, h in zip(codes[k], codes[k + 1])) for k in range(0, 8, 2)), numbers
def q6_k(x):
    """16 sub-blocks of 16, each with a scale of 8 bits; a code's 4 low bits and its 2 high ones lie apart."""
    steps = [max(map(abs, x[i:i + 16])) / 31 for i in range(0, 256, 16)]; d, db = f16(max(steps) / 127); sc = [clip(round(s / d), -127, 127) if d else 0 for s in steps]; q, numbers = [], []
    for i, v in enumerate(x):
        s = build.f32(d * sc[i // 16]); k = clip(round(v / s), -32, 31) if s else 0; q.append(k + 32); numbers.append(s * k)
    low = b"".join(bytes(q[h + l] & 15 | (q[h + 64 + l] & 15) << 4 for l in range(64)) for h in (0, 128))
    high = b"".join(bytes(q[h + l] >> 4 | q[h + 32 + l] >> 4 << 2 | q[h + 64 + l] >> 4 << 4 | q[h + 96 + l] >> 4 << 6 for l in range(32)) for h in (0, 128))
    return low + high + array.array("b", sc).tobytes() + db, numbers
def code(kind, t):
    """-> (bytes, float32 numbers' bytes)"""
    x = floats(t)
    if kind == "F32": return x.tobytes(), x.tobytes()
    if kind == "F16": b = build.to_f16(t)[2]; return b, array.array("f", struct.unpack(f"<{len(b) // 2}e", b)).tobytes()
    pack, size = {"Q8_0": (q8_0, 32), "Q4_K": (q4_k, 256), "Q6_K": (q6_k, 256)}[kind]; out, numbers = bytearray(), array.array("f")
    for i in range(0, len(x), size): b, n = pack(x[i:i + size]); out += b; numbers.extend(n)
    return bytes(out), numbers.tobytes()

# ---- the file, version 3 ----
def string(s): return struct.pack("<Q", len(s)) + s.encode()
def write(path, architecture, items):
    """items: name -> (type, shape, bytes). What has more than four extents is flattened, its shape kept under a key, as ComfyUI's writers do."""
    keys, infos, data = [string("general.architecture") + struct.pack("<I", 8) + string(architecture), string("general.quantization_version") + struct.pack("<II", 4, 2)], b"", b""
    for n, (kind, shape, b) in items.items():
        if len(shape) > 4: keys.append(string("comfy.gguf.orig_shape." + n) + struct.pack(f"<IIQ{len(shape)}i", 9, 5, len(shape), *shape)); shape = [shape[0], shape[1] * shape[2] * shape[3] * shape[4]]
        infos += string(n) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), TYPE[kind], len(data)); data += b + bytes(-len(b) % 32)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(items), len(keys)) + b"".join(keys) + infos
    with open(path, "wb") as f: f.write(head + bytes(-len(head) % 32) + data)

def dit_kind(name, shape):
    if name == "patch_embedding.weight": return "F16"
    if not name.endswith(".weight") or len(shape) != 2: return "F32"
    if not name.startswith("blocks.") or shape[1] % 256: return "Q8_0" if shape[1] % 32 == 0 else "F16"
    return "Q6_K" if "self_attn.v" in name or "ffn.2" in name else "Q4_K"
def t5_llama(n):
    if n == "shared.weight": return "token_embd.weight"
    if n == "encoder.final_layer_norm.weight": return "enc.output_norm.weight"
    i, r = n.removeprefix("encoder.block.").split(".", 1)
    return f"enc.blk.{i}." + build.first(r, [("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"), ("layer.0.SelfAttention.", "attn_"), ("layer.0.layer_norm", "attn_norm"), ("layer.1.layer_norm", "ffn_norm"),
                                             ("layer.1.DenseReluDense.wi_0", "ffn_gate"), ("layer.1.DenseReluDense.wi_1", "ffn_up"), ("layer.1.DenseReluDense.wo", "ffn_down")])

def main(golden, out):
    m = golden + "/tiny-i2v/model"; os.makedirs(out, exist_ok=True); coded, plain = {}, {}
    for k, t in build.read_all(m + "/transformer").items():
        n = build.dit_name(k); kind = dit_kind(n, t[1]); b, x = code(kind, t); coded[n] = (kind, t[1], b); plain[n] = ("F32", t[1], x)
    write(out + "/transformer.gguf", "wan", coded); build.write(out + "/transformer.safetensors", plain); kinds = sorted({v[0] for v in coded.values()}); coded, plain = {}, {}
    for k, t in build.read_all(m + "/text_encoder").items():
        kind = "Q8_0" if len(t[1]) == 2 and t[1][1] % 32 == 0 else "F32"; b, x = code(kind, t); coded[t5_llama(k)] = (kind, t[1], b); plain[k] = ("F32", t[1], x)
    write(out + "/umt5.gguf", "t5encoder", coded); build.write(out + "/umt5.safetensors", plain); print("transformer:", *kinds)
if __name__ == "__main__":
    if len(sys.argv) != 3: sys.exit(__doc__)
    main(*sys.argv[1:])
