"""What a clip does, from its frames alone (numpy): camera movement by phase correlation of blocks, and a plain figure for each effect."""
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])
SHAKE = 0.85    # pixels: half of what the training clips of the plain word shake by (3.2 sin(0.86 t) across, 2.2 sin(1.13 t) down: 1.7 in the mean)


def luma(f):
    return f.astype(np.float64) @ LUMA


def shift(a, b, win):
    """displacement (dx, dy) of b against a by phase correlation, with its peak's height"""
    A, B = np.fft.rfft2((a - a.mean()) * win), np.fft.rfft2((b - b.mean()) * win)
    R = A.conj() * B
    h, w = a.shape
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None]
    R = R / (np.abs(R) + 1e-3 * np.abs(R).max() + 1e-9) * np.exp(-(fx ** 2 + fy ** 2) * 14)
    c = np.fft.irfft2(R, s=(h, w))
    y, x = np.unravel_index(c.argmax(), c.shape)
    peak = c[y, x]

    def sub(m, o, p):                                # a parabola through the peak and its neighbours
        d = m - 2 * o + p
        return 0.0 if abs(d) < 1e-12 else float(np.clip(0.5 * (m - p) / d, -0.5, 0.5))
    dx = x + sub(c[y, x - 1], peak, c[y, (x + 1) % w])
    dy = y + sub(c[y - 1, x], peak, c[(y + 1) % h, x])
    return (dx - w if dx > w / 2 else dx), (dy - h if dy > h / 2 else dy), peak


def motion(a, b, size=64, step=32):
    """similarity between two frames of luma: content moves by (x, y) pixels, grows by exp(z), turns by r radians clockwise"""
    h, w = a.shape
    win = np.outer(np.hanning(size), np.hanning(size))
    P, D, W = [], [], []
    for y in range(0, h - size + 1, step):
        for x in range(0, w - size + 1, step):
            p, q = a[y:y + size, x:x + size], b[y:y + size, x:x + size]
            if p.std() < 2.0:
                continue
            dx, dy, k = shift(p, q, win)
            if max(abs(dx), abs(dy)) < size / 3:
                P.append((x + size / 2 - w / 2, y + size / 2 - h / 2))
                D.append((dx, dy))
                W.append(max(k, 0) * min(1.0, p.std() / 12))
    if len(P) < 3:
        return np.zeros(4)
    P, D, W = np.array(P), np.array(D), np.array(W)
    one, zero = np.ones(len(P)), np.zeros(len(P))
    M = np.concatenate([np.stack([one, zero, P[:, 0], -P[:, 1]], 1), np.stack([zero, one, P[:, 1], P[:, 0]], 1)])
    v, wt = np.concatenate([D[:, 0], D[:, 1]]), np.concatenate([W, W])
    k = wt.copy()
    for _ in range(12):                              # least squares that forgets what does not fit
        s = np.sqrt(k + 1e-9)
        sol = np.linalg.lstsq(M * s[:, None], v * s, rcond=None)[0]
        e = np.abs(M @ sol - v)
        e = np.maximum(e[:len(P)], e[len(P):])
        k = np.tile(W * (e < 6) / (0.3 + e), 2)
    return sol


def path(frames):
    """the movement summed over the clip: x, y (pixels), zoom (log), turn (degrees), and the shaking (pixels to and fro)"""
    L = [luma(f) for f in frames]
    n = len(L)
    k = 4
    s = sum(motion(L[i], L[i + k]) for i in range(0, n - k, k))
    # Against the first frame, for from frame to frame a soft picture's whitened correlation sticks to what does not move; about the straight line through it.
    t = np.arange(2, min(n, 22))
    d = np.array([motion(L[0], L[i])[:2] for i in t])
    line = np.polynomial.polynomial.polyfit(t, d, 1)
    return s[0], s[1], s[2], np.degrees(s[3]), np.abs(d - (line[0] + t[:, None] * line[1])).mean()


def move(frames):
    """the name of the camera move, and the figures it is judged by"""
    x, y, z, r, shake = path(frames)
    t = (len(frames) - 1) / 32
    u = {"x": x / (8 * t), "y": y / (7 * t), "z": z / (0.045 * t), "r": r / (2.2 * t)}
    k = max(u, key=lambda q: abs(u[q]))
    f = {"x": round(x, 1), "y": round(y, 1), "zoom": round(float(np.exp(z)), 3), "turn": round(r, 1), "shake": round(shake, 2)}
    if shake > SHAKE and abs(u[k]) < 2.5:
        return "shake", f
    if abs(u[k]) < 1:
        return "still", f
    return {"x": ("right", "left"), "y": ("down", "up"), "z": ("out", "in"), "r": ("ccw", "cw")}[k][int(u[k] > 0)], f


def saturation(f):
    f = f.astype(np.float64)
    return (f.max(-1) - f.min(-1)).mean()


def gradient(f):
    g = luma(f)
    return np.abs(np.diff(g, axis=0)).mean() + np.abs(np.diff(g, axis=1)).mean()


def psnr(a, b):
    e = ((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean()
    return 10 * np.log10(255 ** 2 / max(e, 1e-6))


def ssim(a, b):
    a, b = luma(a), luma(b)
    n = 7

    def box(t):
        c = np.pad(t.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        return (c[n:, n:] - c[:-n, n:] - c[n:, :-n] + c[:-n, :-n]) / n ** 2
    ma, mb = box(a), box(b)
    va, vb, c = box(a * a) - ma * ma, box(b * b) - mb * mb, box(a * b) - ma * mb
    return (((2 * ma * mb + 6.5) * (2 * c + 58.5)) / ((ma ** 2 + mb ** 2 + 6.5) * (va + vb + 58.5))).mean()


def effect(frames, name, arg=None):
    """(does the clip show the effect, the figure)"""
    a, z = frames[0], frames[-1]
    la, lz = luma(a).mean(), luma(z).mean()
    if name == "fade":
        return lz < 0.35 * la, round(lz / max(la, 1), 3)
    if name == "bright":
        return lz > la + 10, round(lz - la, 1)
    if name == "bw":
        return saturation(z) < 0.45 * saturation(a) or saturation(a) < 6, round(saturation(z) / max(saturation(a), 1), 3)
    if name == "sunset":
        w = lambda f: float((f[..., 0].astype(float) - f[..., 2]).mean())
        return w(z) > w(a) + 20, round(w(z) - w(a), 1)
    late = frames[len(frames) // 2:]
    if name in ("snow", "rain"):
        # something small keeps changing everywhere, frame by frame; snow is bright, rain takes colour and light away
        d = np.mean([np.abs(luma(q) - luma(p)).mean() for p, q in zip(late, late[1:])])
        up = np.mean([np.quantile(luma(q) - np.median([luma(t) for t in late], 0), 0.98) for q in late[::4]])
        return (d > 1.5 and up > 10) if name == "snow" else (d > 1.5 and (lz < la - 2 or saturation(z) < 0.9 * saturation(a))), round(float(d), 2)
    if name == "ball":
        xs, ts = [], []
        for i, f in enumerate(frames[2:-1], 2):
            d = np.abs(f.astype(float) - a.astype(float)).max(-1)
            m = d > max(50, np.quantile(d, 0.96))
            if m.sum() > 60:
                xs.append(np.median(np.nonzero(m)[1]))
                ts.append(i)
        if len(xs) < 6:
            return False, 0.0
        c = float(np.corrcoef(xs, ts)[0, 1])
        return (c > 0.7 if arg == "left" else c < -0.7), round(c, 2)
    raise ValueError(name)
