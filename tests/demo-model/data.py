"""Clips rendered on the device: crops of the photographs, moved as a camera would and with effects drawn over them.

All speeds are in pixels (degrees, ...) per frame, whatever the size and the number of frames."""
import glob
import math
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import captions

SPEED = {"x": {"slow": 0.8, "": 1.6, "quick": 2.8}, "y": {"slow": 0.65, "": 1.3, "quick": 2.2}, "z": {"slow": 0.0045, "": 0.009, "quick": 0.016},
         "r": {"slow": 0.22, "": 0.45, "quick": 0.8}, "s": {"slow": 2.0, "": 3.2, "quick": 5.0}}
RATE = {"slow": 32.0, "": 22.0, "quick": 13.0}          # frames an effect of the colours takes


class Bank:
    """All training pictures on the device, as uint8."""

    def __init__(self, folder, device, limit=0):
        with ThreadPoolExecutor(8) as ex:
            pics = list(ex.map(lambda f: np.array(Image.open(f).convert("RGB")), sorted(glob.glob(folder + "/*.webp"))[:limit or None]))
        self.pics = [torch.from_numpy(p).to(device).permute(2, 0, 1).contiguous() for p in pics]
        self.device = device
        self.order = []

    def crops(self, n, h, w, rng, lo=0.45):
        """n random windows of aspect w:h, resized to h x w, 0..1"""
        out = []
        for _ in range(n):
            if not self.order:
                self.order = list(range(len(self.pics)))
                rng.shuffle(self.order)
            p = self.pics[self.order.pop()]
            H, W = p.shape[1:]
            s = min(W / w, H / h)                       # largest window of this aspect
            s *= rng.choice([1.0, 1.0, rng.uniform(lo, 1.0), rng.uniform(lo, 1.0)])
            s = max(s, 0.75)                            # never magnify more than 1.33
            s = min(s, min(W / w, H / h))
            cw, ch = int(w * s), int(h * s)
            x, y = rng.randint(0, W - cw), rng.randint(0, H - ch)
            c = p[None, :, y:y + ch, x:x + cw].float() / 255
            c = F.interpolate(c, (h, w), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
            if rng.random() < 0.5:
                c = c.flip(-1)
            out.append(c)
        x = torch.cat(out)
        g = torch.empty(n, 1, 1, 1, device=x.device).uniform_(0.85, 1.15)
        return (x * g).clamp(0, 1) if rng.random() < 0.5 else x


def warp_params(spec, frames, gen):
    """per frame: source shift x, y (pixels), log zoom, angle (degrees)"""
    f = np.arange(frames, dtype=np.float64)
    p = np.zeros((4, frames))
    for m, v in spec["cam"]:
        if m in ("left", "right"):
            p[0] += f * SPEED["x"][v] * (1 if m == "right" else -1)
        elif m in ("up", "down"):
            p[1] += f * SPEED["y"][v] * (1 if m == "down" else -1)
        elif m in ("in", "out"):
            p[2] += f * SPEED["z"][v] * (1 if m == "in" else -1)
        elif m in ("cw", "ccw"):
            p[3] += f * SPEED["r"][v] * (1 if m == "cw" else -1)
        elif m == "shake":
            a = SPEED["s"][v]
            ramp = np.minimum(f / 2, 1)
            p[0] += a * ramp * np.sin(f * 0.86)          # two a second at 16 frames: the VAE keeps one latent for four frames
            p[1] += 0.7 * a * ramp * np.sin(f * 1.13 + 1.0)
    return p


def layer(h, w, density, kernel, gen, device):
    x = (torch.rand(1, 1, h, w, device=device, generator=gen) < density).float()
    k = kernel.to(device)[None, None]
    kh, kw = kernel.shape
    x = F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2), mode="circular")
    return F.conv2d(x, k).clamp(0, 1)


def disc(r):
    n = int(math.ceil(r)) + 1
    y, x = torch.meshgrid(torch.arange(-n, n + 1.0), torch.arange(-n, n + 1.0), indexing="ij")
    return (r + 0.5 - (x * x + y * y).sqrt()).clamp(0, 1)


def streak(length, slant):
    n = length // 2
    w = int(abs(slant) * n) + 2
    y, x = torch.meshgrid(torch.arange(-n, n + 1.0), torch.arange(-w, w + 1.0), indexing="ij")
    return (1.3 - (x - slant * y).abs()).clamp(0, 1) * (1 - (y / (n + 1)).abs() ** 4)


def fall(lay, frames, vy, vx, sway, H, W):
    """a wrapped layer that comes in from the top: [frames,1,H,W]"""
    d = lay.device
    out = []
    lh, lw = lay.shape[2:]
    ys = torch.arange(H, device=d)
    for f in range(frames):
        dy, dx = int(round(vy * f)), int(round(vx * f + sway * math.sin(f * 0.25)))
        y = (ys - dy) % lh
        x = (torch.arange(W, device=d) - dx) % lw
        a = lay[0, 0][y][:, x] * ((dy - ys).float() / 6).clamp(0, 1)[:, None]
        out.append(a)
    return torch.stack(out)[:, None]


def ball(frames, H, W, a, rate, device):
    """colour [frames,3,H,W], alpha [frames,1,H,W], shadow [frames,1,H,W]"""
    r = 0.2 * min(H, W)
    v = {"slow": 5.5, "": 8.0, "quick": 11.0}[rate]
    f = torch.arange(frames, device=device).float()
    cx = -r + v * f
    ground = 0.90 * H
    cy = ground - r - (torch.zeros_like(f) if a["how"] == "roll" else 0.42 * H * (torch.sin(math.pi * f / 16.0)).abs())
    ang = v * f / r
    if a["from"] == "right":
        cx, ang = W - 1 - cx, -ang
    y, x = torch.meshgrid(torch.arange(H, device=device).float(), torch.arange(W, device=device).float(), indexing="ij")
    dx, dy = (x[None] - cx[:, None, None]) / r, (y[None] - cy[:, None, None]) / r
    d = (dx * dx + dy * dy).sqrt()
    alpha = ((1 - d) * r + 0.5).clamp(0, 1)
    z = (1 - d * d).clamp(min=0).sqrt()
    light = (0.35 + 0.75 * (-0.45 * dx - 0.6 * dy + 0.66 * z).clamp(min=0))
    u = dx * torch.cos(ang)[:, None, None] + dy * torch.sin(ang)[:, None, None]
    stripe = (u.abs() < 0.16).float() * 0.35
    col = torch.tensor(captions.COLOURS[a["colour"]], device=device)[None, :, None, None]
    col = col * (1 - stripe[:, None]) + stripe[:, None] * 0.95
    spec = ((-0.45 * dx - 0.6 * dy + 0.66 * z).clamp(0, 1) ** 24)[:, None] * 0.6
    c = (col * light[:, None] + spec).clamp(0, 1)
    sh = (1 - ((x[None] - cx[:, None, None]) / (1.1 * r)) ** 2 - ((y[None] - ground) / (0.28 * r)) ** 2).clamp(0, 1) * 0.45
    return c, alpha[:, None], sh[:, None]


def render(tex, specs, frames, gen=None):
    """tex [B,3,H,W] in 0..1 (the first frames); returns [B,3,F,H,W] in -1..1"""
    B, _, H, W = tex.shape
    d = tex.device
    P = torch.tensor(np.stack([warp_params(s, frames, gen) for s in specs]), device=d, dtype=torch.float32)      # B,4,F
    y, x = torch.meshgrid(torch.arange(H, device=d).float() - (H - 1) / 2, torch.arange(W, device=d).float() - (W - 1) / 2, indexing="ij")
    z = torch.exp(-P[:, 2])[..., None, None]
    # a camera that turns clockwise shows the scene turning counterclockwise; we say "rotate clockwise" of the picture itself
    a = torch.deg2rad(P[:, 3])[..., None, None]
    c, s = a.cos(), a.sin()
    sx = (x * c + y * s) * z + P[:, 0][..., None, None]
    sy = (-x * s + y * c) * z + P[:, 1][..., None, None]
    grid = torch.stack([sx / (W / 2), sy / (H / 2)], -1)                                                        # B,F,H,W,2
    grid = grid.to(tex.dtype)
    out = F.grid_sample(tex, grid.reshape(B, frames * H, W, 2), mode="bicubic", padding_mode="reflection", align_corners=False)
    v = out.view(B, 3, frames, H, W).clamp(0, 1)
    v[:, :, 0] = tex
    f = torch.arange(frames, device=d).float()
    res = []
    for i, sp in enumerate(specs):
        r = v[i].transpose(0, 1)                                                                                # F,3,H,W
        late = []
        for e, a in sorted(sp["fx"], key=lambda q: ["ball", "snow", "rain", "bw", "bright", "sunset", "fade"].index(q[0])):
            p = (f / RATE[a.get("speed", "")]).clamp(0, 1)[:, None, None, None]
            if e == "ball":
                col, al, sh = ball(frames, H, W, a, a.get("speed", ""), d)
                r = r * (1 - sh * (f > 0).float()[:, None, None, None])
                r = r * (1 - al) + col * al
            elif e == "snow":
                q = (f / 24).clamp(0, 1)[:, None, None, None]
                r = r * (1 - 0.22 * q) + 0.22 * q * 0.86
                for rad, vy, dens in ((4.4, 4.2, 0.0007), (3.3, 3.2, 0.0011), (2.2, 2.4, 0.0016)):
                    lay = layer(2 * H, W, dens, disc(rad), gen, d)
                    al = fall(lay, frames, vy, random.uniform(-0.4, 0.4), 4.0, H, W) * 0.95
                    r = r * (1 - al) + al
            elif e == "rain":
                q = (f / 16).clamp(0, 1)[:, None, None, None]
                g = r.mean(1, keepdim=True)
                r = (r * (1 - 0.35 * q) + g * 0.35 * q) * (1 - 0.22 * q)
                for ln, vy, dens in ((26, 15.0, 0.0012), (18, 11.0, 0.0016)):
                    lay = layer(2 * H, W, dens, streak(ln, -0.18), gen, d)
                    al = fall(lay, frames, vy, -0.18 * vy, 0.0, H, W) * 0.55
                    r = r * (1 - al) + al * torch.tensor([0.80, 0.85, 0.92], device=d)[None, :, None, None]
            elif e == "bw":
                g = (r * torch.tensor([0.299, 0.587, 0.114], device=d)[None, :, None, None]).sum(1, keepdim=True)
                r = r * (1 - p) + g * p
            elif e == "bright":
                r = 1 - (1 - r) ** (1 + 1.3 * p)
            elif e == "sunset":
                m = torch.tensor([1.08, 0.66, 0.42], device=d)[None, :, None, None]
                top = torch.linspace(0.34, 0.16, H, device=d)[None, None, :, None]
                w = r * (1 + (m - 1) * p)
                r = w * (1 - top * p) + top * p * torch.tensor([1.0, 0.52, 0.22], device=d)[None, :, None, None]
            elif e == "fade":
                r = r * (1 - p)
        res.append(r.transpose(0, 1))
    return torch.stack(res).clamp(0, 1) * 2 - 1


if __name__ == "__main__":
    import sys
    torch.manual_seed(0)
    rng = random.Random(3)
    b = Bank(sys.argv[1], "cpu", 24)
    specs = [{"cam": [(m, "")], "fx": []} for m in captions.MOVES[:9]] + [{"cam": [], "fx": [(e, {"colour": "red", "from": "left", "how": "bounce"} if e == "ball" else {})]} for e in captions.EFFECTS]
    t = b.crops(len(specs), 192, 320, rng)
    v = render(t, specs, 33)
    rows = []
    for i in range(len(specs)):
        rows.append(torch.cat([v[i, :, k] for k in (0, 4, 12, 20, 32)], -1))
    im = ((torch.cat(rows, 1) + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(im).resize((im.shape[1] // 2, im.shape[0] // 2)).save(sys.argv[2])
