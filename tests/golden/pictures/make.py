#!/usr/bin/env python3
"""Write this folder: pictures of every kind that the decoder reads, and the RGB bytes that Pillow makes of them.

pip install 'pillow<13' numpy: from 13.0 on Pillow may resize downwards first, which rounds differently. NAME.png/.jpg/.webp/.bmp is the picture; pictures.bin holds for each the expected bytes, resize.bin the resized ones;
index.txt names them: "file w h" and "filter w h" (of source.png) in the order in which the bytes follow each other.
"""
import io
import os
import struct
import zlib

import numpy as np
import PIL
from PIL import Image, ImageOps, features

assert int(PIL.__version__.split('.')[0]) < 13, 'wants a Pillow that resizes across first'
os.chdir(os.path.dirname(os.path.abspath(__file__)))


def scene(w, h, seed=1):
    """Smooth colour, sharp edges and some noise."""
    y, x = np.mgrid[0:h, 0:w].astype(float)
    a = np.stack([128 + 120 * np.sin(x / 7 + y / 11), 255 * x / max(w - 1, 1), 128 + 100 * np.cos(y / 5)], -1)
    a[(x - w / 2) ** 2 + (y - h / 2) ** 2 < (min(w, h) / 4) ** 2] = [250, 20, 10]
    a[:, w // 5 : w // 5 + 2] = [0, 255, 255]
    a += np.random.default_rng(seed).normal(0, 6, a.shape)
    return Image.fromarray(np.clip(a, 0, 255).astype(np.uint8), "RGB")


expected = []


def keep(name, want=None):
    im = Image.open(name)
    im = ImageOps.exif_transpose(im)
    rgb = np.asarray(im.convert("RGB")) if want is None else want
    expected.append((name, rgb))


def save(im, name, **kw):
    im.save(name, **kw)
    keep(name)


base = scene(45, 31)
save(base, "rgb.png")
save(base.convert("L"), "grey.png")
save(base.quantize(23), "palette.png")
p = base.quantize(200)
p.info["transparency"] = bytes(range(200))
save(p, "palette-alpha.png", transparency=bytes(range(200)))
save(base.quantize(3), "palette2bit.png", bits=2)
save(base.convert("1"), "bilevel.png")
alpha = Image.fromarray((np.mgrid[0:31, 0:45][1] * 5).astype(np.uint8), "L")
rgba = base.copy()
rgba.putalpha(alpha)
save(rgba, "rgba.png")
la = base.convert("L")
la.putalpha(alpha)
save(la, "grey-alpha.png")
exif = Image.Exif()
exif[0x0112] = 6
save(base, "exif6.png", exif=exif)


def png16(name, a, colour):
    """16 bits a sample, which Pillow writes only for grey; the expected value is the upper byte (Pillow clips grey instead)."""
    h, w = a.shape[:2]
    raw = b"".join(b"\0" + a[r].astype(">u2").tobytes() for r in range(h))

    def chunk(t, d):
        return struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))

    with open(name, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, colour, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))
    rgb = (a >> 8).astype(np.uint8)
    if rgb.shape[2] < 3:
        rgb = np.repeat(rgb[:, :, :1], 3, 2)
    keep(name, rgb[:, :, :3])


wide = np.random.default_rng(2).integers(0, 65536, (9, 11, 4))
png16("grey16.png", wide[:, :, :1], 0)
png16("rgb16.png", wide[:, :, :3], 2)
png16("grey-alpha16.png", wide[:, :, :2], 4)
png16("rgba16.png", wide, 6)

big = scene(53, 37, 3)
for name, s in (("444", 0), ("422", 1), ("420", 2)):
    save(big, f"{name}.jpg", quality=88, subsampling=s)
save(big, "progressive.jpg", quality=75, progressive=True)
save(scene(16, 16), "whole-blocks.jpg", quality=60, subsampling=2)
save(scene(3, 3), "3x3.jpg", quality=90, subsampling=2)
save(scene(1, 1), "1x1.jpg", quality=90, subsampling=2)
save(scene(2, 5), "2x5.jpg", quality=90, subsampling=1)
save(big.convert("L"), "grey.jpg", quality=80)
save(big, "rgb.jpg", quality=90, keep_rgb=True)
for o in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = o
    exif[0x010F] = "maker"
    save(scene(29, 18), f"exif{o}.jpg", quality=85, exif=exif, subsampling=2)
# 4:4:0 as a lossless turn of 4:2:2 is not something Pillow writes: swap the sampling factors of a 4:2:2 file of another picture.
b = io.BytesIO()
scene(32, 32, 4).save(b, "JPEG", quality=95, subsampling=1)
b = bytearray(b.getvalue())
at = b.index(b"\xff\xc0")
assert b[at + 11] == 0x21
b[at + 11] = 0x12
open("440.jpg", "wb").write(b)
keep("440.jpg")

save(big, "lossy.webp", quality=80)
save(scene(40, 24, 5), "even.webp", quality=70)
save(scene(1, 1), "1x1.webp", quality=70)
save(big, "lossless.webp", lossless=True)
big_alpha = big.copy()
big_alpha.putalpha(Image.fromarray((np.mgrid[0:37, 0:53][0] * 6).astype(np.uint8), "L"))
save(big_alpha, "alpha.webp", quality=80)
exif = Image.Exif()
exif[0x0112] = 8
save(scene(29, 18), "exif8.webp", quality=80, exif=exif)
save(base, "rgb.bmp")

with open("pictures.bin", "wb") as f:
    for _, rgb in expected:
        f.write(rgb.tobytes())

source = scene(40, 30, 9)
source.save("source.png")
sizes = [(40, 30), (20, 15), (11, 30), (40, 7), (63, 55), (90, 70), (5, 3), (1, 1), (39, 29), (97, 4)]
with open("resize.bin", "wb") as f, open("index.txt", "w") as index:
    for name, rgb in expected:
        index.write(f"{name} {rgb.shape[1]} {rgb.shape[0]}\n")
    for fname, filt in (("bicubic", Image.Resampling.BICUBIC), ("lanczos", Image.Resampling.LANCZOS)):
        for w, h in sizes:
            f.write(source.resize((w, h), filt).tobytes())
            index.write(f"{fname} {w} {h}\n")

# Refused ones.
whole = open("rgb.png", "rb").read()
open("cut.png", "wb").write(whole[: len(whole) * 2 // 3])
whole = open("420.jpg", "rb").read()
open("cut.jpg", "wb").write(whole[: len(whole) * 2 // 3])
whole = open("lossy.webp", "rb").read()
open("cut.webp", "wb").write(whole[: len(whole) * 2 // 3])
head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
open("huge.png", "wb").write(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)))
# All chunks in order, but pixels for the first row only.
ihdr = struct.pack(">IIBBBBB", 40, 40, 8, 2, 0, 0, 0)
with open("short.png", "wb") as f:
    f.write(b"\x89PNG\r\n\x1a\n")
    for t, d in ((b"IHDR", ihdr), (b"IDAT", zlib.compress(b"\0" + bytes(120))), (b"IEND", b"")):
        f.write(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)))
print(len(expected), "pictures; Pillow", Image.__version__, "libjpeg-turbo", features.version("libjpeg_turbo"), "WebP", features.version("webp"))
print(sum(os.path.getsize(x) for x in os.listdir(".")), "bytes")
