#!/usr/bin/env python3
"""Lays tiny-i2v's weights (and tiny-ti2v-5b's) out as checkpoints are found in the wild. Plain Python, no packages.

    python3 build.py GOLDEN OUT        GOLDEN holds tiny-i2v, and tiny-ti2v-5b, which may be missing; sums are checked against layouts.json

OUT/wan-original    as Wan-AI publishes it: original DiT names in shards, T5, VAE and CLIP as .pth (torch.save's zip format)
OUT/comfy           ComfyUI's folders of single files; FP8 plain, scaled (`scale_weight`) and in the newer `comfy_quant` form
OUT/kijai           single files as the WanVideoWrapper uses them
OUT/lightx2v        LightX2V's FP8: one scale an output row
OUT/hf-cache        the Hugging Face hub cache: blobs, refs, snapshots of links
OUT/ti2v            ComfyUI's single files of TI2V-5B, of tiny-ti2v-5b
OUT/ti2v-original   the same as Wan-AI publishes it
"""
import array, hashlib, json, math, os, re, shutil, struct, sys, zipfile

# ---- safetensors ----
def read(path):
    b = open(path, "rb").read(); n = struct.unpack("<Q", b[:8])[0]
    return {k: (v["dtype"], v["shape"], b[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]]) for k, v in json.loads(b[8:8 + n]).items() if k != "__metadata__"}
def read_all(folder):
    o = {}
    for f in sorted(os.listdir(folder)):
        if f.endswith(".safetensors"): o.update(read(f"{folder}/{f}"))
    return o
SIZE = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1}
def write(path, items, meta=None):
    """Names sorted, data packed in that order, header padded with spaces to 8."""
    os.makedirs(os.path.dirname(path), exist_ok=True); h = {"__metadata__": meta} if meta else {}; off = 0
    for k in sorted(items): d, s, b = items[k]; assert len(b) == SIZE[d] * math.prod(s), k; h[k] = {"dtype": d, "shape": s, "data_offsets": [off, off + len(b)]}; off += len(b)
    j = json.dumps(h, separators=(",", ":")).encode(); j += b" " * (-len(j) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(j)) + j)
        for k in sorted(items): f.write(items[k][2])

# ---- number formats, by tables over all 65536 values of a 16-bit type ----
def f32(x): return struct.unpack("<f", struct.pack("<f", x))[0]
def bf16_values(): return array.array("f", array.array("I", (i << 16 for i in range(65536))).tobytes())
def e4m3(x):
    """Nearest float8_e4m3fn code (ties to even), saturated at 448; no infinities, 0x7f is NaN."""
    s = 0x80 if math.copysign(1, x) < 0 else 0; a = abs(x)
    if a != a: return 0x7f
    if a >= 448: return s | 0x7e
    if a < 2.0 ** -6: return s | round(a * 512)                      # subnormal: steps of 2^-9; 8 of them carry into the first normal code
    e = math.frexp(a)[1] - 1; return s | (((e + 7) << 3) + round((a / 2.0 ** e - 1) * 8))   # a mantissa of 8 carries into the exponent
def half(x): return struct.unpack("<H", struct.pack("<e", x))[0]
BF = bf16_values(); FIN = [v == v and abs(v) != math.inf for v in BF]
def u16(t): a = array.array("H"); a.frombytes(t[2]); return a
def to_f16(t):
    d, s, b = t
    if d == "F16": return t
    if d == "BF16": a = u16(t); tab = {c: half(BF[c]) for c in set(a)}; return "F16", s, array.array("H", (tab[c] for c in a)).tobytes()
    a = array.array("f"); a.frombytes(b); return "F16", s, array.array("H", (half(x) for x in a)).tobytes()
def to_fp8(t, scale=1.0):
    a = u16(t); assert t[0] == "BF16"; tab = {c: e4m3(f32(BF[c] / scale)) for c in set(a)}; return "F8_E4M3", t[1], bytes(tab[c] for c in a)
def amax(t): return max(abs(BF[c]) for c in set(u16(t)))
def scalar(x): return "F32", [], struct.pack("<f", x)
def fp8_scaled(items, linear, rest, scale_input):
    """The scaled convention: weight = fp8 * scale_weight, scale_weight = max|w| / 448 in float32, one scalar a tensor."""
    o = {}
    for k, t in items.items():
        if linear(k, t):
            s = f32(amax(t) / 448.0); o[k] = to_fp8(t, s); o[k[:-6] + "scale_weight"] = scalar(s)
            if scale_input: o[k[:-6] + "scale_input"] = scalar(1.0)
        else: o[k] = rest(t)
    o["scaled_fp8"] = ("F8_E4M3", [0], b""); return o
def to_f32(t): return ("F32", t[1], array.array("f", (BF[c] for c in u16(t))).tobytes()) if t[0] == "BF16" else t
def fp8_rows(items, linear):
    """LightX2V's: one scale an output row, `weight_scale` F32 [out, 1] = max|row| / 448; everything else float32."""
    o = {}
    for k, t in items.items():
        if not linear(k, t): o[k] = to_f32(t); continue
        rows, cols = t[1]; a = u16(t); q = bytearray(); sc = array.array("f")
        for r in range(rows):
            row = a[r * cols:(r + 1) * cols]; s = f32(max(max(abs(BF[c]) for c in row), f32(1e-5)) / 448.0); sc.append(s); tab = {c: e4m3(f32(BF[c] / s)) for c in set(row)}; q += bytes(tab[c] for c in row)
        o[k] = ("F8_E4M3", t[1], bytes(q)); o[k + "_scale"] = ("F32", [rows, 1], sc.tobytes())
    return o

# ---- names: diffusers -> original ----
BLOCK = [("attn1.to_out.0.", "self_attn.o."), ("attn1.to_", "self_attn."), ("attn1.", "self_attn."), ("attn2.to_out.0.", "cross_attn.o."), ("attn2.to_", "cross_attn."), ("attn2.add_k_proj.", "cross_attn.k_img."),
         ("attn2.add_v_proj.", "cross_attn.v_img."), ("attn2.norm_added_k.", "cross_attn.norm_k_img."), ("attn2.", "cross_attn."), ("ffn.net.0.proj.", "ffn.0."), ("ffn.net.2.", "ffn.2."), ("norm2.", "norm3."), ("scale_shift_table", "modulation")]
TOP = [("condition_embedder.time_embedder.linear_1.", "time_embedding.0."), ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."), ("condition_embedder.time_proj.", "time_projection.1."),
       ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."), ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."), ("condition_embedder.image_embedder.norm1.", "img_emb.proj.0."),
       ("condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."), ("condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."), ("condition_embedder.image_embedder.norm2.", "img_emb.proj.4."),
       ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"), ("scale_shift_table", "head.modulation"), ("proj_out.", "head.head."), ("patch_embedding.", "patch_embedding.")]
def first(n, table):
    for a, b in table:
        if n.startswith(a): return b + n[len(a):]
    raise SystemExit("no original name for " + n)
def dit_name(n):
    m = re.match(r"(blocks\.\d+\.)(.*)", n); return m[1] + first(m[2], BLOCK) if m else first(n, TOP)
def t5_name(n):
    if n == "shared.weight": return "token_embedding.weight"
    if n == "encoder.final_layer_norm.weight": return "norm.weight"
    i, r = re.match(r"encoder\.block\.(\d+)\.layer\.(.*)", n).groups()
    return f"blocks.{i}." + first(r, [("0.SelfAttention.relative_attention_bias.", "pos_embedding.embedding."), ("0.SelfAttention.", "attn."), ("0.layer_norm.", "norm1."), ("1.layer_norm.", "norm2."),
                                      ("1.DenseReluDense.wi_0.", "ffn.gate.0."), ("1.DenseReluDense.wi_1.", "ffn.fc1."), ("1.DenseReluDense.wo.", "ffn.fc2.")])
RES = [("norm1.", "residual.0."), ("conv1.", "residual.2."), ("norm2.", "residual.3."), ("conv2.", "residual.6."), ("conv_shortcut.", "shortcut.")]
def vae_name(n):
    if n.startswith("quant_conv."): return "conv1." + n[11:]
    if n.startswith("post_quant_conv."): return "conv2." + n[16:]
    side, r = n.split(".", 1); up = side == "decoder"
    for a, b in (("conv_in.", "conv1."), ("norm_out.", "head.0."), ("conv_out.", "head.2."), ("mid_block.attentions.0.", "middle.1.")):
        if r.startswith(a): return f"{side}.{b}{r[len(a):]}"
    m = re.match(r"mid_block\.resnets\.(\d)\.(.*)", r)
    if m: return f"{side}.middle.{2 * int(m[1])}.{first(m[2], RES)}"
    m = re.match(r"up_blocks\.(\d)\.resnets\.(\d)\.(.*)", r)
    if m: return (f"decoder.upsamples.{m[1]}.upsamples.{m[2]}." if WAN22 else f"decoder.upsamples.{4 * int(m[1]) + int(m[2])}.") + first(m[3], RES)
    m = re.match(r"up_blocks\.(\d)\.(?:upsampler|upsamplers\.0)\.(.*)", r)
    if m: return (f"decoder.upsamples.{m[1]}.upsamples.3." if WAN22 else f"decoder.upsamples.{4 * int(m[1]) + 3}.") + m[2]
    m = re.match(r"down_blocks\.(\d+)\.resnets\.(\d)\.(.*)", r)
    if m: return f"encoder.downsamples.{m[1]}.downsamples.{m[2]}.{first(m[3], RES)}"
    m = re.match(r"down_blocks\.(\d+)\.downsampler\.(.*)", r)
    if m: return f"encoder.downsamples.{m[1]}.downsamples.2.{m[2]}"
    m = re.match(r"down_blocks\.(\d+)\.(.*)", r); return f"encoder.downsamples.{m[1]}." + (m[2] if m[2].startswith(("resample", "time_conv")) else first(m[2], RES))
WAN22 = False
def clip_original(t):
    """open-clip names; q, k, v fused to to_qkv; the text tower is not made (a loader must not need it)."""
    o = {}
    def put(k, n, shape=None): d, s, b = t[n]; o["visual." + k] = (d, shape or s, b)
    e = "embeddings."; hid = t[e + "class_embedding"][1][0]
    put("patch_embedding.weight", e + "patch_embedding.weight"); put("cls_embedding", e + "class_embedding", [1, 1, hid]); put("pos_embedding", e + "position_embedding.weight", [1] + t[e + "position_embedding.weight"][1])
    for w in ("weight", "bias"): put(f"pre_norm.{w}", f"pre_layrnorm.{w}"); put(f"post_norm.{w}", f"post_layernorm.{w}")
    for i in sorted({int(k.split(".")[2]) for k in t if k.startswith("encoder.layers.")}):
        p, q = f"encoder.layers.{i}.", f"transformer.{i}."
        for w in ("weight", "bias"):
            d, s, _ = t[p + f"self_attn.q_proj.{w}"]; o[f"visual.{q}attn.to_qkv.{w}"] = (d, [3 * s[0]] + s[1:], b"".join(t[p + f"self_attn.{x}_proj.{w}"][2] for x in "qkv"))
            for a, b in (("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.proj", "self_attn.out_proj"), ("mlp.0", "mlp.fc1"), ("mlp.2", "mlp.fc2")): put(f"{q}{a}.{w}", f"{p}{b}.{w}")
    return o

# ---- .pth: what torch.save writes since 1.6 ----
STORAGE = {"F32": "FloatStorage", "BF16": "BFloat16Storage", "F16": "HalfStorage"}
def write_pth(path, items, name="archive"):
    """A stored (uncompressed) zip: NAME/data.pkl, a pickle (protocol 2) of an OrderedDict of tensors that name storages; NAME/data/K, the bytes."""
    def text(s): s = s.encode(); return b"X" + struct.pack("<I", len(s)) + s
    def num(i): return b"K" + bytes([i]) if i < 256 else b"M" + struct.pack("<H", i) if i < 65536 else b"J" + struct.pack("<i", i)
    def tup(xs): return b"(" + b"".join(num(x) for x in xs) + b"t"
    empty = b"ccollections\nOrderedDict\n)R"; p = b"\x80\x02" + empty + b"("
    for i, (k, (d, s, b)) in enumerate(items.items()):
        stride = [math.prod(s[j + 1:]) for j in range(len(s))]; n = math.prod(s)
        p += text(k) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"(" + text("storage") + b"ctorch\n" + STORAGE[d].encode() + b"\n" + text(str(i)) + text("cpu") + num(n) + b"tQ" + num(0) + tup(s) + tup(stride) + b"\x89" + empty + b"tR"
    p += b"u."; os.makedirs(os.path.dirname(path), exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as z:
        def add(n, b): z.writestr(zipfile.ZipInfo(f"{name}/{n}", (1980, 1, 1, 0, 0, 0)), b)
        add("data.pkl", p); add("byteorder", b"little")
        for i, t in enumerate(items.values()): add(f"data/{i}", t[2])
        add("version", b"3\n")

def hf_cache(src, hub, repo, commit):
    """blobs/ holds the data: sha256 for large files (git LFS), git's sha1 for the rest; snapshots/COMMIT/ holds relative links."""
    root = f"{hub}/models--{repo.replace('/', '--')}"; os.makedirs(root + "/blobs"); os.makedirs(root + "/refs"); open(root + "/refs/main", "w").write(commit)
    for d, _, fs in os.walk(src):
        for f in sorted(fs):
            b = open(f"{d}/{f}", "rb").read(); lfs = f.endswith((".safetensors", ".model")); h = hashlib.sha256(b).hexdigest() if lfs else hashlib.sha1(b"blob %d\0" % len(b) + b).hexdigest()
            open(f"{root}/blobs/{h}", "wb").write(b); rel = os.path.relpath(f"{d}/{f}", src); dst = f"{root}/snapshots/{commit}/{rel}"; os.makedirs(os.path.dirname(dst), exist_ok=True)
            os.symlink("../" * (2 + rel.count("/")) + f"blobs/{h}", dst)

def ti2v(m, out):
    """Single files; and Wan-AI's folder: its transformer in shards, .pth for the rest."""
    dit = {dit_name(k): t for k, t in read_all(m + "/transformer").items()}; t5 = read_all(m + "/text_encoder"); vae = {vae_name(k): t for k, t in read_all(m + "/vae").items()}; spm = open(m + "/tokenizer/spiece.model", "rb").read()
    c = json.load(open(m + "/transformer/config.json")); o = out + "/ti2v"
    write(o + "/diffusion_models/wan2.2_ti2v_5B_bf16.safetensors", dit); write(o + "/text_encoders/umt5_xxl_bf16.safetensors", {**t5, "spiece_model": ("U8", [len(spm)], spm)}); write(o + "/vae/wan2.2_vae.safetensors", vae)
    o = out + "/ti2v-original"; os.makedirs(o + "/google/umt5-xxl"); open(o + "/google/umt5-xxl/spiece.model", "wb").write(spm)
    json.dump(dict(_class_name="WanModel", _diffusers_version="0.33.0", dim=c["num_attention_heads"] * c["attention_head_dim"], eps=c["eps"], ffn_dim=c["ffn_dim"], freq_dim=c["freq_dim"], in_dim=c["in_channels"], model_type="ti2v",
                   num_heads=c["num_attention_heads"], num_layers=c["num_layers"], out_dim=c["out_channels"], text_len=512), open(o + "/config.json", "w"), indent=2)
    write_shards(o, dit); write_pth(o + "/models_t5_umt5-xxl-enc-bf16.pth", {t5_name(k): t for k, t in t5.items()}, "models_t5_umt5-xxl-enc-bf16"); write_pth(o + "/Wan2.2_VAE.pth", vae, "Wan2.2_VAE")
    return vae

def write_shards(o, dit):
    names = sorted(dit); half_ = len(names) // 2; shards = [names[:half_], names[half_:]]; wm = {}
    for i, ns in enumerate(shards):
        f = f"diffusion_pytorch_model-{i + 1:05d}-of-{len(shards):05d}.safetensors"; write(f"{o}/{f}", {n: dit[n] for n in ns}, {"format": "pt"}); wm.update({n: f for n in ns})
    json.dump({"metadata": {"total_size": sum(len(t[2]) for t in dit.values())}, "weight_map": wm}, open(o + "/diffusion_pytorch_model.safetensors.index.json", "w"), indent=2)

def main(golden, out):
    global WAN22
    m = golden + "/tiny-i2v/model"; shutil.rmtree(out, ignore_errors=True); os.makedirs(out)
    dit = {dit_name(k): t for k, t in read_all(m + "/transformer").items()}; t5 = read_all(m + "/text_encoder"); vae0 = read_all(m + "/vae"); clip = read_all(m + "/image_encoder"); spm = open(m + "/tokenizer/spiece.model", "rb").read()
    clip = {k.removeprefix("vision_model."): v for k, v in clip.items()}; vae = {vae_name(k): t for k, t in vae0.items()}; c = json.load(open(m + "/transformer/config.json")); d = c["num_attention_heads"] * c["attention_head_dim"]
    # Wan-AI's own folder
    o = out + "/wan-original"; os.makedirs(o + "/google/umt5-xxl"); open(o + "/google/umt5-xxl/spiece.model", "wb").write(spm)
    json.dump(dict(_class_name="WanModel", _diffusers_version="0.30.0", dim=d, eps=c["eps"], ffn_dim=c["ffn_dim"], freq_dim=c["freq_dim"], in_dim=c["in_channels"], model_type="i2v", num_heads=c["num_attention_heads"],
                   num_layers=c["num_layers"], out_dim=c["out_channels"], text_len=512), open(o + "/config.json", "w"), indent=2)
    write_shards(o, dit)
    write_pth(o + "/models_t5_umt5-xxl-enc-bf16.pth", {t5_name(k): t for k, t in t5.items()}, "models_t5_umt5-xxl-enc-bf16"); write_pth(o + "/Wan2.1_VAE.pth", vae, "Wan2.1_VAE")
    write_pth(o + "/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", clip_original(clip), "models_clip")
    # ComfyUI's folders
    o = out + "/comfy"; lin = lambda k, t: k.endswith(".weight") and len(t[1]) == 2; n = o + "/diffusion_models/wan2.1_i2v_480p_14B_"
    write(n + "bf16.safetensors", dit); write(n + "fp8_e4m3fn.safetensors", {k: to_fp8(t) if lin(k, t) else to_f16(t) for k, t in dit.items()})
    scaled = fp8_scaled(dit, lin, to_f16, True); write(n + "fp8_scaled.safetensors", scaled)
    q = {k: t for k, t in scaled.items() if not k.endswith(("scale_weight", "scale_input", "scaled_fp8"))}; conf = b'{"format": "float8_e4m3fn"}'
    for k, t in scaled.items():
        if k.endswith(".scale_weight"): q[k[:-12] + "weight_scale"] = t; q[k[:-12] + "comfy_quant"] = ("U8", [len(conf)], conf)
    write(n + "fp8_comfy_quant.safetensors", q)
    sp = {"spiece_model": ("U8", [len(spm)], spm)}; te = o + "/text_encoders/umt5_xxl_"; write(te + "bf16.safetensors", {**t5, **sp}); write(te + "fp16.safetensors", {**{k: to_f16(t) for k, t in t5.items()}, **sp})
    tl = lambda k, t: lin(k, t) and not k.startswith("shared") and "relative_attention_bias" not in k; write(te + "fp8_e4m3fn_scaled.safetensors", {**fp8_scaled(t5, tl, to_f16, False), **sp})
    write(o + "/vae/wan_2.1_vae.safetensors", vae); write(o + "/clip_vision/clip_vision_h.safetensors", {"vision_model." + k: t for k, t in clip.items()})
    if os.path.isdir(golden + "/tiny-ti2v-5b"): WAN22 = True; write(o + "/vae/wan2.2_vae.safetensors", ti2v(golden + "/tiny-ti2v-5b/model", out)); WAN22 = False
    # single files of the WanVideoWrapper
    keep = ("norm", "head", "bias", "time_", "patch_embedding", "modulation", "img_emb", "text_embedding"); kl = lambda k, t: lin(k, t) and not any(x in k for x in keep); o = out + "/kijai"
    write(o + "/Wan2_1-I2V-14B-480P_fp8_e4m3fn_scaled_KJ.safetensors", fp8_scaled(dit, kl, lambda t: t, False)); write(o + "/umt5-xxl-enc-bf16.safetensors", {t5_name(k): t for k, t in t5.items()})
    write(o + "/Wan2_1_VAE_fp32.safetensors", {"model." + k: t for k, t in vae.items()})
    bl = lambda k, t: lin(k, t) and k.startswith("blocks."); write(out + "/lightx2v/wan2.1_i2v_480p_scaled_fp8_e4m3_lightx2v.safetensors", fp8_rows(dit, bl))
    hf_cache(m, out + "/hf-cache/hub", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "0123456789abcdef0123456789abcdef01234567")
    sums = {}
    for dd, _, fs in os.walk(out):
        for f in fs:
            p = f"{dd}/{f}"
            if not os.path.islink(p) and "/hf-cache/" not in p: sums[os.path.relpath(p, out)] = [os.path.getsize(p), hashlib.sha256(open(p, "rb").read()).hexdigest()]
    want = os.path.join(os.path.dirname(os.path.abspath(__file__)), "layouts.json")
    if not os.path.exists(want): json.dump(dict(sorted(sums.items())), open(want, "w"), indent=1); print("wrote layouts.json")
    w = json.load(open(want)); bad = sorted(k for k in set(w) | set(sums) if not ((k.startswith("ti2v") or k.endswith("wan2.2_vae.safetensors")) and k not in sums) and w.get(k) != sums.get(k)); print(f"{len(sums)} files, {len(bad)} unlike layouts.json", *bad); sys.exit(bool(bad))
if __name__ == "__main__":
    if len(sys.argv) != 3: sys.exit(__doc__)
    main(*sys.argv[1:])
