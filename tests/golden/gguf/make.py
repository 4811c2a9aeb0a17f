#!/usr/bin/env python3
"""Makes blocks.safetensors and small.gguf with the `gguf` package (0.19) and numpy, ggml's own
reference in Python: random blocks with sane scales, and the numbers that it decodes them to; a file
that its writer wrote, as city96's tools do for ComfyUI.

    python3 make.py        writes beside itself
"""
import json, os, struct
import numpy as np, gguf
from gguf import GGMLQuantizationType as T, quants

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(14)
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82],
          T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}  # where float16s lie
out, at = {}, 0
parts = []
def add(name, dtype, shape, data):
    global at
    out[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
    at += len(data); parts.append(data)
for t, halves in HALVES.items():
    elements, size = gguf.GGML_QUANT_SIZES[t]
    n = 3 if elements == 256 else 12
    b = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for h in halves:
        b[:, h:h + 2] = (rng.standard_normal(n) * 0.01).astype("<f2").view(np.uint8).reshape(n, 2)
    x = quants.dequantize(b.reshape(1, -1), t).astype("<f4").reshape(-1)
    assert x.size == n * elements
    add(t.name + ".blocks", "U8", [n * size], b.tobytes())
    add(t.name + ".numbers", "F32", [n * elements], x.tobytes())
j = json.dumps(out).encode(); j += b" " * (-len(j) % 8)
open(HERE + "/blocks.safetensors", "wb").write(struct.pack("<Q", len(j)) + j + b"".join(parts))

w = gguf.GGUFWriter(HERE + "/small.gguf", "wan")
w.add_quantization_version(2)
patch = rng.standard_normal((64, 4, 1, 2, 2)).astype("<f4")
w.add_array("comfy.gguf.orig_shape.patch_embedding.weight", list(patch.shape))
w.add_tensor("patch_embedding.weight", patch.reshape(64, 16).astype("<f2"))
q = quants.quantize(rng.standard_normal((4, 64)).astype("<f4"), T.Q8_0)
w.add_tensor("blocks.0.self_attn.q.weight", q, raw_dtype=T.Q8_0)
w.add_tensor("blocks.0.self_attn.q.bias", np.arange(4, dtype="<f4"))
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
