"""What the demo model is asked for on held-out pictures, and how its answers are judged and counted (numpy; fit wants Pillow)."""
import numpy as np

import measure

# wordings are spread over the pictures: picture i gets wording i
MOVES = {
    "left": ["The camera pans to the left", "pan left", "camera moves left", "a pan to the left"],
    "right": ["The camera pans to the right", "pan right", "camera moves right", "a pan to the right"],
    "up": ["The camera tilts up", "tilt up", "look up", "the view tilts upwards"],
    "down": ["The camera tilts down", "tilt down", "look down", "the view tilts downwards"],
    "in": ["The camera zooms in", "zoom in", "a zoom in", "push in"],
    "out": ["The camera zooms out", "zoom out", "a zoom out", "pull back"],
    "cw": ["The camera rotates clockwise", "rotate clockwise", "a clockwise rotation", "the view turns clockwise"],
    "ccw": ["The camera rotates counterclockwise", "rotate anticlockwise", "a counterclockwise rotation", "the view turns anti-clockwise"],
    "shake": ["The camera shakes", "shaky camera", "an earthquake", "shake the camera"],
    "still": ["Hold still", "the camera holds still", "a static shot", "the camera does not move"],
}
EFFECTS = [("snow", None, ["Snow falls", "it is snowing", "falling snow", "let it snow"]), ("rain", None, ["Rain falls", "it starts to rain", "falling rain", "it is raining"]),
           ("fade", None, ["The picture fades to black", "fade to black", "a fade to black", "everything goes dark"]),
           ("bw", None, ["The picture turns black and white", "turn black and white", "make it black and white", "the colours fade away"]),
           ("bright", None, ["The picture gets brighter", "make it brighter", "the scene brightens", "the light gets stronger"]),
           ("sunset", None, ["Sunset colours appear", "the sun sets", "sunset colours", "make it look like sunset"]),
           ("ball", "left", ["A red ball rolls in from the left", "a blue ball bounces across from the left", "a green ball rolls from left to right", "a yellow ball bounces in from the left"]),
           ("ball", "right", ["A red ball rolls in from the right", "a blue ball bounces across from the right", "a green ball rolls from right to left", "a yellow ball bounces in from the right"])]


def fit(file, width, height):
    """the picture, its middle cut to this shape"""
    from PIL import Image
    im = Image.open(file).convert("RGB")
    s = max(width / im.width, height / im.height)
    im = im.resize((max(width, round(im.width * s)), max(height, round(im.height * s))), Image.LANCZOS)
    x, y = (im.width - width) // 2, (im.height - height) // 2
    return im.crop((x, y, x + width, y + height))


def effect_name(effect, side):
    return effect + ("-" + side if side else "")


def judge_move(frames, picture, wish):
    """frames [n,h,w,3] and the picture [h,w,3], u8: the move that is seen, and the figures of the model card"""
    move, figures = measure.move(frames)
    r = {"move": move, "figures": figures, "first": measure.psnr(frames[0], picture)}
    if wish == "still":
        r["hold"] = min(measure.psnr(frames[0], q) for q in frames[1:])
    if wish in ("still", "left", "right", "up", "down"):
        r["grad"] = measure.gradient(frames[-1]) / max(measure.gradient(frames[0]), 1e-6)
    return r


def moves_figures(wishes, judged):
    """the wished moves and what judge_move found (None: no clip) -> what the model card tells"""
    agree = {m: [r is not None and r["move"] == m for w, r in zip(wishes, judged) if w == m] for m in MOVES}
    first, hold, grad = ([r[k] for r in judged if r and k in r] for k in ("first", "hold", "grad"))
    out = {"agree": {m: [sum(v), len(v)] for m, v in agree.items()}}
    if first:
        out |= {"first": [np.median(first), np.quantile(first, .1)], "hold": [np.median(hold), min(hold)],
                "gradient": [np.median(grad), np.mean(np.array(grad) >= 0.5)]}
    return out


def effects_figures(names, judged):
    """names of the wished effects and what measure.effect found"""
    seen = {}
    for n, g in zip(names, judged):
        seen.setdefault(n, []).append(bool(g[0]))
    return {"shows": {n: [sum(v), len(v)] for n, v in seen.items()}}


def share(counts):
    return 100 * sum(a for a, _ in counts.values()) / max(1, sum(n for _, n in counts.values()))


def table(what, seen, counts):
    rows = [f"| {what} | {seen} |", "|---|---|", *(f"| {k} | {a}/{n} |" for k, (a, n) in counts.items())]
    return "\n".join([*rows, f"| **all** | **{share(counts):.1f} %** |"])


def moves_table(f):
    s = table("move", "agrees", f["agree"])
    if "first" in f:
        s += f"\n\nfirst frame against the picture: median {f['first'][0]:.2f} dB (10th percentile {f['first'][1]:.2f})"
        s += f"\nhold still, worst frame against the first: median {f['hold'][0]:.2f} dB, lowest {f['hold'][1]:.2f}"
        s += f"\ngradient energy of the last frame, stills and pans: median {f['gradient'][0]:.2f} of the first's, {100 * f['gradient'][1]:.0f} % keep half"
    return s


def effects_table(f):
    return table("effect", "shows", f["shows"])
