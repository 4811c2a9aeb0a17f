#!/usr/bin/env python3
"""Takes the pictures out of Debian packages and writes the training and the held-out set (WebP crops).

usage: prepare.py DEBS OUT      DEBS: a folder with the .deb files (apt-get download NAME...), see pictures.json for the packages
"""
import glob
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile

from PIL import Image

Image.MAX_IMAGE_PIXELS = None
PACKAGES = ["endless-sky-data", "gcompris-qt-data", "plasma-workspace-wallpapers", "gnome-backgrounds", "ukui-wallpapers",
            "mate-backgrounds", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04"]
# Held out: every picture of these is kept out of training.
HELD = ["lomiri-wallpapers", "mate-backgrounds", "explore_world_animals", "explore_world_music"]
# Held out, but left out of the evaluation list as well: no photographs, or nothing in them whose movement could be measured.
ABSTRACT = ["free_by", "analogpattern", "umang", "Fossa", "Painting-Colors", "Infinite-Sea", "/abstract/", "/desktop/", "Aqua.jpg", "Wood.jpg"]
SKIP = ["skycultures", "babyshapes", "lang.rcc", "solar_system", "symbolic-", "pixels-", "FlyingKonqui", "calla", "city.png", "desert.png",
        "rollpaper", "string.jpg", "firstgeneration", "goldfish", "the-mouse", "focal-", "rhythm", "grid-d", "licorice", "truchet-d", "adwaita-d"]
RCC = "clickgame details erase explore_farm_animals explore_monuments explore_world_animals explore_world_music categorization"


def carve(data):
    """JPEG and WebP files inside a Qt resource file."""
    i = 0
    while True:
        i = data.find(b"RIFF", i)
        if i < 0:
            return
        if data[i + 8:i + 12] == b"WEBP":
            n = struct.unpack("<I", data[i + 4:i + 8])[0] + 8
            yield data[i:i + n]
            i += n
        else:
            i += 4


def pictures(debs):
    for p in PACKAGES:
        f = glob.glob(f"{debs}/{p}_*.deb")
        if not f:
            print("missing package:", p)
            continue
        version = subprocess.run(["dpkg-deb", "-f", f[0], "Version"], capture_output=True, text=True).stdout.strip()
        with tempfile.TemporaryDirectory() as d:
            subprocess.run(["dpkg-deb", "-x", f[0], d], check=True)
            names = sorted(os.path.join(a, n) for a, _, ns in os.walk(d) for n in ns)
            if p.startswith("plasma"):      # one file for each wallpaper: the largest
                best = {}
                for n in names:
                    k = n.split("/contents/")[0]
                    if "/contents/images" in n and n.endswith((".jpg", ".png")) and "images_dark" not in n \
                            and (k not in best or os.path.getsize(n) > os.path.getsize(best[k])):
                        best[k] = n
                names = sorted(best.values())
            for n in names:
                rel = os.path.relpath(n, d)
                if n.endswith(".rcc"):
                    if os.path.basename(n)[:-4] in RCC.split():
                        for i, b in enumerate(carve(open(n, "rb").read())):
                            yield p, version, f"{rel}#{i}", b
                elif n.lower().endswith((".jpg", ".jpeg", ".png", ".webp")):
                    if p == "endless-sky-data" and "/images/land/" not in n:
                        continue
                    yield p, version, rel, open(n, "rb").read()


def main():
    debs, out = sys.argv[1:3]
    for s in ("train", "held"):
        os.makedirs(f"{out}/{s}", exist_ok=True)
        for f in glob.glob(f"{out}/{s}/*.webp"):
            os.unlink(f)
    listing, seen = [], set()
    for p, version, name, data in pictures(debs):
        key = p + "/" + name
        if any(s in key for s in SKIP):
            continue
        try:
            im = Image.open(io.BytesIO(data))
            if min(im.size) < 300 or im.mode not in ("RGB", "L", "P") and not (im.mode == "RGBA" and im.getextrema()[3][0] == 255):
                continue
            im = im.convert("RGB")
        except Exception as e:
            print("cannot read", key, e)
            continue
        h = hashlib.sha256(data).hexdigest()
        small = im.resize((16, 16)).tobytes()
        if h in seen or small in seen:
            continue
        seen |= {h, small}
        held = any(s in key for s in HELD)
        if held and any(s in key for s in ABSTRACT):
            continue
        crops = [im]
        w, hh = im.size
        if not held and min(w, hh) >= 1000:          # large pictures give details as well
            cw, ch = int(w * 0.55), int(hh * 0.55)
            crops += [im.crop((0, hh - ch, cw, hh)), im.crop((w - cw, int(hh * .25), w, int(hh * .25) + ch))]
        files = []
        for j, c in enumerate(crops):
            w, hh = c.size
            if w > 2 * hh:                            # not wider or taller than 2:1
                c = c.crop(((w - 2 * hh) // 2, 0, (w + 2 * hh) // 2, hh))
            elif hh > 1.6 * w:
                c = c.crop((0, (hh - int(1.6 * w)) // 2, w, (hh + int(1.6 * w)) // 2))
            s = min(1, 384 / min(c.size))
            c = c.resize((round(c.width * s), round(c.height * s)), Image.LANCZOS)
            n = re.sub(r"[^A-Za-z0-9]+", "-", os.path.basename(name.rsplit(".", 1)[0] if "#" not in name else name)).strip("-").lower()
            n = f"{p.split('-')[0]}-{n}" + (f"-{j}" if j else "")
            if p.startswith("plasma"):
                n = "plasma-" + name.split("/wallpapers/")[1].split("/")[0].lower() + (f"-{j}" if j else "")
            c.save(f"{out}/{'held' if held else 'train'}/{n}.webp", quality=90 if held else 75, method=4)
            files.append(n + ".webp")
        listing.append({"package": p, "version": version, "file": name, "sha256": h, "size": list(im.size), "set": "held" if held else "train", "crops": files})
    json.dump(listing, open(f"{out}/pictures.json", "w"), indent=0)
    for s in ("train", "held"):
        n = [x for x in listing if x["set"] == s]
        print(s, len(n), "pictures", sum(len(x["crops"]) for x in n), "crops", sum(os.path.getsize(f) for f in glob.glob(f"{out}/{s}/*")) // 1024, "KiB")


if __name__ == "__main__":
    main()
