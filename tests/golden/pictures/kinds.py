#!/usr/bin/env python3
"""Write kinds/: odd pictures of every kind that the decoder reads, and the RGB bytes that Pillow makes of them.

pip install 'pillow<13' numpy. kinds/index.txt: "file w h level", in the order of the bytes in pictures.bin; level is the largest difference that is allowed.
arith.jpg, iccp-raw.png, xmp6.jpg, xmp6.webp, ycck.jpg and still.gif are not made here (libjpeg's cjpeg -arithmetic, ImageMagick, ...): they are read if they are there.
"""
import glob
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "kinds"))
W, H = 23, 15
y, x = np.mgrid[0:H, 0:W].astype(float)
a = np.stack([128 + 120 * np.sin(x / 4 + y / 5), 255 * x / (W - 1), 128 + 100 * np.cos(y / 3)], -1)
a[:, 4:6] = [0, 255, 255]
base = Image.fromarray(np.clip(a, 0, 255).astype(np.uint8), "RGB")
grey, few, bits = base.convert("L"), base.quantize(13), base.convert("1")
clear = base.copy()
clear.putalpha(Image.fromarray((x * 11).astype(np.uint8), "L"))
expected = []


def keep(name, level=0, want=None):
    rgb = np.asarray(ImageOps.exif_transpose(Image.open(name)).convert("RGB")) if want is None else want
    expected.append((name, rgb, level))


def save(im, name, level=0, want=None, **kw):
    im.save(name, **kw)
    keep(name, level, want)


def write(name, data, level=0, want=None):
    with open(name, "wb") as f:
        f.write(data)
    keep(name, level, want)


# ---- orientation: where it stands, whose word counts ----


def exif(o, order="<", kind=3, count=1, extra=b""):
    """A TIFF block with one orientation."""
    value = struct.pack(order + {3: "HH", 4: "I"}[kind], *([o, 0] if kind == 3 else [o]))
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "IHHHI", 8, 1, 0x112, kind, count) + value + b"\0\0\0\0" + extra


def xmp(o, form='tiff:Orientation="%d"'):
    return b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description ' + (form % o).encode() + b"/></rdf:RDF></x:xmpmeta>"


def jpeg(*segments):
    b = io.BytesIO()
    base.save(b, "JPEG", quality=80, subsampling=2)
    b = b.getvalue()
    return b[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + b[2:]


E, X = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
for order, name in (("<", "II"), (">", "MM")):
    write(f"exif6-{name}.jpg", jpeg(E + exif(6, order)))
write("exif6-long.jpg", jpeg(E + exif(6, ">", 4)))
write("exif-twice.jpg", jpeg(E + exif(8)[:20], E + exif(8)[20:]))
write("xmp5.jpg", jpeg(X + xmp(5)))
write("xmp7-element.jpg", jpeg(X + xmp(7, "><tiff:Orientation>%d</tiff:Orientation")))
write("exif3-xmp6.jpg", jpeg(X + xmp(6), E + exif(3)))
write("exif0-xmp6.jpg", jpeg(E + exif(0), X + xmp(6)))
write("exif1-xmp6.jpg", jpeg(E + exif(1), X + xmp(6)))
write("exif-none-xmp6.jpg", jpeg(E + b"II*\0" + struct.pack("<IH", 8, 0) + b"\0\0\0\0", X + xmp(6)))
write("exif-MM-swapped.jpg", jpeg(E + b"MM*\0" + exif(6, ">")[4:]))
write("xmp-twice.jpg", jpeg(X + xmp(6), X + xmp(3)))


def png(*chunks, behind=()):
    b = io.BytesIO()
    base.save(b, "PNG")
    b = b.getvalue()

    def c(t, d):
        return struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))

    return b[:33] + b"".join(c(*k) for k in chunks) + b[33:-12] + b"".join(c(*k) for k in behind) + b[-12:]


def raw(o):
    h = (E + exif(o)).hex()
    return b"\nexif\n%8d\n" % (len(h) // 2) + "\n".join(h[i : i + 72] for i in range(0, len(h), 72)).encode() + b"\n"


write("exif6-behind.png", png(behind=[(b"eXIf", exif(6, ">"))]))
write("raw6.png", png((b"tEXt", b"Raw profile type exif\0" + raw(6))))
write("raw8-packed.png", png((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw(8)))))
write("exif3-raw6.png", png((b"tEXt", b"Raw profile type exif\0" + raw(6)), (b"eXIf", exif(3))))
write("xmp6.png", png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6))))
write("xmp8-packed.png", png((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(8)))))
write("exif1-xmp6.png", png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)), (b"eXIf", exif(1))))
write("iccp-broken.png", png((b"iCCP", b"x\0\0" + b"no zlib stream")))
# a profile whose bytes do not match their sum: no pixel hangs on it
b = bytearray(png((b"iCCP", b"x\0\0" + zlib.compress(b"profile"))))
b[b.index(b"iCCP") + 8] ^= 1
write("iccp-crc.png", bytes(b), want=np.asarray(base))


def webp(flags, *chunks):
    b = io.BytesIO()
    base.save(b, "WEBP", lossless=True)
    b = b.getvalue()[12:]
    body = b"VP8X" + struct.pack("<IB", 10, flags) + bytes(3) + struct.pack("<I", W - 1)[:3] + struct.pack("<I", H - 1)[:3] + b
    for t, d in chunks:
        body += t + struct.pack("<I", len(d)) + d + b"\0" * (len(d) & 1)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


write("exif6-MM.webp", webp(8, (b"EXIF", exif(6, ">"))))
write("exif6-head.webp", webp(8, (b"EXIF", E + exif(6))))
write("exif6-unflagged.webp", webp(0, (b"EXIF", exif(6))))
write("xmp6.webp.webp", webp(4, (b"XMP ", xmp(6))))
write("exif3-xmp6.webp", webp(12, (b"XMP ", xmp(6)), (b"EXIF", exif(3))))
write("iccp-broken.webp", webp(32, (b"ICCP", b"nonsense")))

# ---- JPEG: inks ----
for s, name in ((0, "444"), (1, "422"), (2, "420")):
    save(base.convert("CMYK"), f"cmyk-{name}.jpg", quality=85, subsampling=s)

# ---- GIF ----
save(few, "still8.gif")
save(few, "interlaced.gif", interlace=1)
save(grey, "grey.gif")
save(few, "clear.gif", transparency=3)
few.save("animated.gif", save_all=True, append_images=[few.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], duration=100)
keep("animated.gif")


def moved(name, gif, dx, dy, w, h):
    """The same frame, elsewhere on a larger screen."""
    g = bytearray(gif)
    struct.pack_into("<HH", g, 6, w, h)
    at = 13 + 3 * (2 << (g[10] & 7)) if g[10] & 0x80 else 13
    while g[at] != 0x2C:
        at += 2
        while g[at]:
            at += 1 + g[at]
        at += 1
    struct.pack_into("<HH", g, at + 1, dx, dy)
    write(name, bytes(g))


moved("moved.gif", open("still8.gif", "rb").read(), 3, 2, W + 5, H + 4)
moved("moved-clear.gif", open("clear.gif", "rb").read(), 3, 2, W + 5, H + 4)
moved("beyond.gif", open("still8.gif", "rb").read(), 6, 1, W, H)

# ---- animated WebP: frames smaller than the canvas, with alpha ----
for name, kw in (("animated-lossy.webp", dict(quality=80)), ("animated.webp", dict(lossless=True))):
    clear.save(name, save_all=True, append_images=[clear.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], **kw)
    keep(name)
b = io.BytesIO()
base.save(b, "WEBP", lossless=True)
b = b.getvalue()[12:]
frame = struct.pack("<I", 2)[:3] + struct.pack("<I", 1)[:3] + struct.pack("<I", W - 1)[:3] + struct.pack("<I", H - 1)[:3] + b"\x64\0\0\0" + b
body = b"VP8X" + struct.pack("<IB", 10, 2) + bytes(3) + struct.pack("<I", W + 6)[:3] + struct.pack("<I", H + 5)[:3]
body += b"ANIM" + struct.pack("<IIH", 6, 0xFF2030FF, 0) + b"ANMF" + struct.pack("<I", len(frame)) + frame
write("moved.webp", b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body)

# ---- TIFF ----
for c in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
    save(base, f"{c}.tif", compression=c)
save(grey, "grey.tif")
save(few, "palette.tif")
save(bits, "bits.tif")
save(bits, "fax.tif", compression="group4")
save(clear, "alpha.tif")
save(base.convert("CMYK"), "cmyk.tif", level=1, compression="tiff_lzw")
g16 = (np.asarray(grey).astype(np.uint16) * 256) + 77
save(Image.fromarray(g16), "grey16.tif", want=np.repeat(np.asarray(grey)[:, :, None], 3, 2))
t = Image.Exif()
t[0x112] = 6
save(base, "exif6.tif", tiffinfo={0x112: 6})
save(base, "xmp6.tif", tiffinfo={700: xmp(6)})


def big_endian(im):
    d = im.tobytes()
    rows = [(256, 3, 1, W << 16), (257, 3, 1, H << 16), (258, 3, 3, 8 + len(d)), (259, 3, 1, 1 << 16), (262, 3, 1, 2 << 16), (273, 4, 1, 8), (274, 3, 1, 8 << 16), (277, 3, 1, 3 << 16), (278, 3, 1, H << 16), (279, 4, 1, len(d))]
    return b"MM\0*" + struct.pack(">I", 8 + len(d) + 6 + len(d) % 2) + d + struct.pack(">HHH", 8, 8, 8) + b"\0" * (len(d) % 2) + struct.pack(">H", len(rows)) + b"".join(struct.pack(">HHII", *r) for r in rows) + bytes(4)


write("exif8-MM.tif", big_endian(base))

# ---- JPEG 2000 ----
save(base, "reversible.jp2")
save(base, "bare.j2k")
save(grey, "grey.jp2")
save(clear, "alpha.jp2")
save(base, "lossy.jp2", level=3, irreversible=True, quality_mode="dB", quality_layers=[38])

# ---- PPM ----
save(base, "p6.ppm")
save(grey, "p5.pgm")
save(bits, "p4.pbm")
rgb = np.asarray(base)
write("p3.ppm", b"P3\n# made by hand\n%d %d # size\n200\n" % (W, H) + b" ".join(b"%d" % (v * 200 // 255) for v in rgb.ravel()) + b"\n")
write("p2.pgm", b"P2 %d %d 15\n" % (W, H) + b" ".join(b"%d" % (v >> 4) for v in np.asarray(grey).ravel()))
write("p1.pbm", b"P1\n%d %d\n" % (W, H) + b"".join(b"%d" % (v == 0) for v in np.asarray(bits).ravel().astype(int)))
write("p6-16.ppm", b"P6 %d %d 65535\n" % (W, H) + (rgb.astype(">u2") * 257 + 40).clip(0, 65535).astype(">u2").tobytes())
write("p5-16.pgm", b"P5 %d %d 1000\n" % (W, H) + (np.asarray(grey).astype(">u2") * 3).astype(">u2").tobytes(), want=np.repeat(np.round(np.asarray(grey).astype(float) * 3 / 1000 * 255).astype(np.uint8)[:, :, None], 3, 2))

# ---- AVIF: libavif's colours are libyuv's, ours are exact ----
save(base, "444.avif", level=2, quality=90, subsampling="4:4:4")
save(base, "420.avif", level=2, quality=80, subsampling="4:2:0")
save(base, "limited.avif", level=3, quality=90, subsampling="4:4:4", range="limited")
save(grey, "grey.avif", level=1, quality=90)
save(clear, "alpha.avif", level=3, quality=90, subsampling="4:4:4")
for o in range(2, 9):
    t = Image.Exif()
    t[0x112] = o
    save(base, f"turned{o}.avif", level=2, quality=70, subsampling="4:4:4", exif=t, speed=8)

# ---- files of others ----
for name in ("arith.jpg", "iccp-raw.png", "xmp6.jpg", "xmp6.webp", "ycck.jpg", "still.gif"):
    if os.path.exists(name):
        keep(name)

with open("index.txt", "w") as index, open("pictures.bin", "wb") as f:
    for name, rgb, level in expected:
        index.write(f"{name} {rgb.shape[1]} {rgb.shape[0]} {level}\n")
        f.write(rgb.tobytes())
print(len(expected), "pictures,", sum(os.path.getsize(n) for n in glob.glob("*")), "bytes")
