"""What the demo model understands, and how English says it: specs of clips, and a grammar of captions for them.

A spec is {"cam": [(move, speed), ...], "fx": [(effect, arguments), ...]}; speed is "slow", "" or "quick".
"""
import random

WEIGHTS = [1, 1, 1, 1, 1.2, 1.2, 1.2, 1.2, 3, 1]      # zooms, turns and the shake are the hardest to learn
MOVES = ["left", "right", "up", "down", "in", "out", "cw", "ccw", "shake", "still"]
EFFECTS = ["snow", "rain", "fade", "bw", "bright", "sunset", "ball"]
COLOURS = {"red": (0.85, 0.10, 0.10), "blue": (0.10, 0.25, 0.90), "green": (0.10, 0.65, 0.15), "yellow": (0.95, 0.85, 0.10),
           "orange": (0.98, 0.50, 0.05), "purple": (0.55, 0.15, 0.75), "white": (0.92, 0.92, 0.92), "pink": (0.98, 0.45, 0.70)}
GROUP = {"left": "x", "right": "x", "up": "y", "down": "y", "in": "z", "out": "z", "cw": "r", "ccw": "r", "shake": "s", "still": "0"}
CLASH = [{"fade", "bright"}, {"snow", "rain"}, {"bw", "sunset"}, {"fade", "sunset"}, {"fade", "bw"}, {"bright", "sunset"}]

SLOW = ["slowly", "gently", "smoothly and slowly", "gradually", "very slowly", "at a slow pace", "a little"]
QUICK = ["quickly", "fast", "rapidly", "very quickly", "swiftly", "at high speed", "hard", "far"]
ASLOW = ["slow", "gentle", "soft", "gradual", "subtle", "slight"]
AQUICK = ["quick", "fast", "rapid", "swift", "strong", "sudden"]


def one(r, s):
    """'a|b|c' -> one of them; '(a|b)' inside works as well (no nesting)."""
    while "(" in s:
        i = s.rindex("(")
        j = s.index(")", i)
        s = s[:i] + r.choice(s[i + 1:j].split("|")) + s[j + 1:]
    return " ".join(r.choice(s.split("|")).split())


def side(r, m):
    return {"left": one(r, "left|left|to the left|to the left|leftward|leftwards|toward the left|to the left side"),
            "right": one(r, "right|right|to the right|to the right|rightward|rightwards|toward the right|to the right side"),
            "up": one(r, "up|up|upward|upwards|toward the sky"), "down": one(r, "down|down|downward|downwards|toward the ground")}[m]


CAM = ["the camera", "camera", "the camera", "the view", "the shot", "our camera"]


def camera(r, m, v):
    """(clause with a finite verb, noun phrase, imperative or '')"""
    adv = r.choice({"slow": SLOW, "": [""], "quick": QUICK}[v])
    adj = r.choice({"slow": ASLOW, "": [""], "quick": AQUICK}[v])
    an = "a" + ("" if not adj else "")
    if m in ("left", "right"):
        d = side(r, m)
        verbs = "pans|pans|moves|slides|travels|turns|tracks|swings|glides|drifts|shifts"
        noun = one(r, f"{adj} pan {d}|{adj} camera pan {d}|{adj} {m} pan|{adj} camera move {d}|{adj} sideways move {d}|{adj} tracking shot {d}")
        imp = one(r, f"pan {d}|pan the camera {d}|move {d}|move the camera {d}|slide {d}|camera {d}|look {d}|turn {d}")
    elif m in ("up", "down"):
        d = side(r, m)
        verbs = "tilts|tilts|moves|looks|turns|cranes|pans|" + ("rises" if m == "up" else "sinks|drops")
        noun = one(r, f"{adj} tilt {d}|{adj} camera tilt {d}|{adj} {m}ward tilt|{adj} camera move {d}|{adj} crane shot {d}")
        imp = one(r, f"tilt {d}|tilt the camera {d}|move {d}|move the camera {d}|look {d}|camera {d}|pan {d}")
    elif m in ("in", "out"):
        d = one(r, "in|in|in closer|inward|into the picture|closer|in on the centre|in on the middle") if m == "in" else \
            one(r, "out|out|out wide|outward|outwards|out of the picture|out away")
        d = d if d != "closer" else "in closer"
        verbs = ("zooms|zooms|zooms|pushes|moves|dollies" if m == "in" else "zooms|zooms|zooms|pulls|moves|dollies")
        if m == "in":
            noun = one(r, f"{adj} zoom in|{adj} zoom {d}|{adj} camera zoom in|{adj} push in|{adj} dolly in|{adj} close up zoom in")
            imp = one(r, f"zoom {d}|zoom {d}|zoom the camera in|push in|move closer|get closer|move in")
        else:
            noun = one(r, f"{adj} zoom out|{adj} zoom {d}|{adj} camera zoom out|{adj} pull back|{adj} pull out|{adj} dolly out")
            imp = one(r, f"zoom {d}|zoom {d}|zoom the camera out|pull back|pull out|move back|move away|move out")
        if r.random() < 0.12:
            d, verbs = ("closer", "moves|comes|gets|goes") if m == "in" else (r.choice(["back", "away"]), "moves|pulls|goes")
    elif m in ("cw", "ccw"):
        d = one(r, "clockwise|clockwise|to the right around its axis") if m == "cw" else one(r, "counterclockwise|counter-clockwise|anticlockwise|anti-clockwise")
        if m == "cw":
            d = r.choice([d, d, d, ""]) if "axis" not in d else "clockwise"
        verbs = "rotates|rotates|rolls|spins|turns" if d else "rotates|rotates|spins"
        noun = one(r, f"{adj} {d} rotation|{adj} rotation {d}|{adj} camera rotation {d}|{adj} {d} spin|{adj} {d} camera roll" if d else f"{adj} rotation|{adj} camera rotation|{adj} spin")
        imp = one(r, f"rotate {d}|rotate the camera {d}|rotate the picture {d}|spin {d}" + (f"|roll {d}|turn {d}" if d else ""))
    elif m == "shake":
        verbs, d = one(r, "shakes|shakes|trembles|vibrates|wobbles|jitters|shudders"), ""
        noun = one(r, f"{adj} camera shake|{adj} shake|shaky camera|handheld camera shake|an earthquake|{adj} shaking|shaky handheld shot|{adj} tremor")
        imp = one(r, "shake|shake the camera|camera shake|shaky camera|the picture shakes|earthquake|everything shakes|the ground shakes")
    else:
        cl = one(r, "(the camera|camera|the camera|the shot|the view|the picture) (holds still|stays still|remains still|does not move|is still|stands still|stays fixed|remains static|is static|holds)|nothing moves|everything is still|the camera is locked|the camera stays in place|the camera keeps still|the camera doesn't move")
        noun = one(r, "a static shot|static shot|a still shot|a fixed shot|a locked-off shot|no camera movement|no motion|a static camera|a still picture|a fixed camera|no movement at all|still image|a motionless camera")
        imp = one(r, "hold still|hold still|hold the camera still|keep the camera still|stay still|keep still|do not move|don't move|freeze|stand still|no movement|static")
        return cl, noun, imp
    verb = r.choice(verbs.split("|"))
    cl = f"{r.choice(CAM)} {verb} {d}"
    if adv:
        cl = r.choice([f"{cl} {adv}", f"{r.choice(CAM)} {adv} {verb} {d}" if not adv.startswith("at ") and adv not in ("a little", "hard", "far", "fast") else f"{cl} {adv}"])
        imp = r.choice([f"{imp} {adv}", f"{adv} {imp}" if adv.endswith("ly") else f"{imp} {adv}"])
    elif r.random() < 0.08:
        cl = f"{cl} steadily"
    if r.random() < 0.15:
        cl = cl.replace(f" {verb} ", f" {r.choice(['is', 'is', 'starts', 'begins'])} {ing(verb)} ", 1)
    if r.random() < 0.75 and not noun.startswith(("an ", "a ")):
        noun = ("an " if noun.strip()[:1] in "aeiou" and not noun.strip().startswith("one") else "a ") + noun.strip()
    return cl, noun, imp


def ing(v):
    b = {"dollies": "dolly", "pushes": "push", "vibrates": "vibrat", "rotates": "rotat", "slides": "slid", "glides": "glid", "trembles": "trembl", "wobbles": "wobbl",
         "rises": "ris", "comes": "com", "craned": "cran", "cranes": "cran", "moves": "mov", "goes": "go", "spins": "spinn", "pans": "pann", "drops": "dropp", "gets": "gett"}.get(v, v[:-1])
    return b + "ing"


def effect(r, e, a):
    v = a.get("speed", "")
    adv = r.choice({"slow": SLOW[:4], "": [""], "quick": QUICK[:5]}[v])
    if e == "snow":
        cl = one(r, "snow falls|snow falls|it snows|snow starts falling|snow is falling|it starts to snow|it is snowing|snowflakes fall|snow drifts down|it begins to snow|snow comes down|white snow falls from the sky|snowflakes drift down")
        noun = one(r, "falling snow|snowfall|snow|snowflakes|a snowstorm|light snow|heavy snow|a snow shower|winter snow")
        imp = one(r, "let it snow|make it snow|add snow|snow falling|snowing|start snowing")
    elif e == "rain":
        cl = one(r, "rain falls|rain falls|it rains|it starts to rain|it is raining|rain starts falling|rain is falling|raindrops fall|rain pours down|it begins to rain|rain comes down|it pours")
        noun = one(r, "falling rain|rainfall|rain|raindrops|a rainstorm|a rain shower|heavy rain|light rain|rainy weather")
        imp = one(r, "let it rain|make it rain|add rain|rain falling|raining|start raining")
    elif e == "fade":
        cl = one(r, "(the picture|the image|the scene|everything|it|the shot|the screen|the video) (fades to black|fades to black|fades out|turns black|goes black|fades into darkness|goes dark|darkens to black|becomes black)|darkness falls|the light goes out|the lights go out")
        noun = one(r, "a fade to black|fade to black|fade out|a fade out|fading to black|a fade into darkness")
        imp = one(r, "fade to black|fade out|fade to black|turn black|fade the picture to black|fade into black|make it fade to black")
    elif e == "bw":
        cl = one(r, "(the picture|the image|the scene|everything|it|the video) (turns|goes|becomes|fades to|changes to) (black and white|black and white|grey|gray|grayscale|greyscale|monochrome)|the (colours|colors) (fade away|disappear|drain away|vanish)|(the picture|the image|the scene) loses its (colour|color|colours|colors)|all (colour|color) fades away")
        noun = one(r, "a change to black and white|black and white|fade to black and white|a fade to black and white|a fade to gray|black and white film|desaturation")
        imp = one(r, "turn black and white|make it black and white|turn to black and white|remove the colours|remove the colors|desaturate|turn it gray|go black and white|turn the picture grey")
    elif e == "bright":
        cl = one(r, "(the picture|the image|the scene|everything|it|the light) (gets brighter|gets brighter|becomes brighter|brightens|brightens up|grows brighter|gets lighter|turns bright)|the light gets stronger|the sun comes out|the lights come on|more light comes in")
        noun = one(r, "brightening|a brightening scene|increasing brightness|brighter light|growing light|more light|rising brightness")
        imp = one(r, "get brighter|make it brighter|brighten|brighten up|brighten the picture|turn up the light|more light|increase the brightness|lighten the image")
    elif e == "sunset":
        cl = one(r, "(the picture|the image|the scene|everything|the sky|the light) (turns to sunset colours|turns to sunset colors|takes on sunset colours|takes on sunset colors|turns orange|becomes orange|glows in sunset colours|gets warm sunset colors|turns golden)|the sun sets|the sun goes down|evening falls|sunset colours appear|a sunset begins|it becomes sunset|golden hour begins|the light turns warm")
        noun = one(r, "sunset colours|sunset colors|a sunset|sunset light|warm sunset light|golden hour|a warm evening glow|an orange glow|sunset")
        imp = one(r, "sunset colours|sunset colors|turn to sunset|make it sunset|add sunset light|make it a sunset|give it sunset colours|make it look like sunset")
    else:
        c, frm = a["colour"], a["from"]
        to = {"left": "right", "right": "left"}[frm]
        an = ("an " if c[0] in "aeiou" else "a ") + c
        size = r.choice(["", "", "", "big ", "small ", "shiny "])
        ball = f"a {size}{c} ball" if size else f"{an} ball"
        if a["how"] == "roll":
            vb = one(r, "rolls|rolls|rolls|moves|slides|travels|comes rolling")
        else:
            vb = one(r, "bounces|bounces|bounces|hops|jumps|comes bouncing")
        way = one(r, f"in from the {frm}|across from the {frm}|from the {frm} to the {to}|from {frm} to {to}|across the picture from the {frm}|in from the {frm} side|across to the {to}|to the {to}|through the picture from {frm} to {to}|past from the {frm}")
        cl = f"{ball} {vb} {way}" + (f" {adv}" if adv else "")
        noun = f"{ball} {ing2(vb)} {way}"
        imp = r.choice([f"{c} ball {vb} {way}", f"roll {ball} {way}" if a["how"] == "roll" else f"bounce {ball} {way}"])
        return cl, noun, imp
    if adv:
        cl, imp = f"{cl} {adv}", r.choice([f"{imp} {adv}", imp + " " + adv])
        noun = noun if v == "" else one(r, {"slow": "slow|gradual|gentle", "quick": "quick|fast|rapid"}[v]) + " " + noun.removeprefix("a ").removeprefix("an ")
    return cl, noun, imp


def ing2(v):
    return {"rolls": "rolling", "moves": "moving", "slides": "sliding", "travels": "travelling", "comes rolling": "rolling", "bounces": "bouncing", "hops": "hopping",
            "jumps": "jumping", "comes bouncing": "bouncing"}[v]


SUBJECT = "mountain lake;city street;cat on a sofa;dog in the grass;old castle;red flower;forest path;beach;snowy mountain;desert;bird on a branch;temple;river;meadow;table with fruit;house;" \
    "bridge at night;horse;valley;woman with a hat;man at work;church;boat on the water;car on a road;field of wheat;garden;tower;sky with clouds;market;kitchen;child playing;tree;waterfall;" \
    "skyline;island;rocky coast;tiger;panda;crowd on a square;statue;train station;portrait of a girl;coffee cup;guitar;butterfly;group of friends;landscape;picture;scene;photo".split(";")
PLACE = ["", "", "", " in the morning", " in summer", " at noon", " in the mist", " by the sea", " under a blue sky", " in autumn", " on a sunny day", " in the countryside"]
STYLE = ["", "", "", "cinematic", "high quality", "realistic", "beautiful", "photorealistic, detailed", "a nice video", "4k", "documentary style"]


def subject(r):
    s = r.choice(SUBJECT) + r.choice(PLACE)
    return one(r, f"a {s}|the {s}|a photo of a {s}|a picture of a {s}|{s}|a beautiful {s}|a view of a {s}|this is a {s}|an image of the {s}|video of a {s}")


def caption(spec, rng=random):
    r = rng
    parts = [camera(r, m, v) for m, v in spec["cam"]] + [effect(r, e, a) for e, a in spec["fx"]]
    if not parts:                                     # nothing asked for: anything else one may say
        s = subject(r)
        return finish(r, s if r.random() < 0.8 else r.choice([f"{s}, {r.choice(STYLE[3:])}", r.choice(["hello", "nothing", "a video", "a nice picture", "animate this", "make a video of this"])]))
    if len(parts) == 2 and r.random() < 0.5:
        parts = parts[::-1]
    if len(parts) == 1:
        s = parts[0][r.choice([0, 0, 0, 1, 2, 2])]
        if parts[0][1] == s and r.random() < 0.3:
            s = one(r, f"show {s}|{s} shot|with {s}|there is {s}|{s} please|make {s}|do {s}")
        elif s == parts[0][2] and r.random() < 0.1:
            s = one(r, f"please {s}|{s} please|now {s}")
    else:
        a, b = parts
        k = r.random()
        if k < 0.45:
            s = one(r, f"{a[0]} and {b[0]}|{a[0]} while {b[0]}|{a[0]} as {b[0]}|while {a[0]}, {b[0]}|{a[0]}, {b[0]}|{a[0]}. {b[0]}|as {a[0]}, {b[0]}|{a[0]} and at the same time {b[0]}")
        elif k < 0.65:
            s = one(r, f"{a[0]} with {b[1]}|{a[1]} with {b[1]}|{a[1]} and {b[1]}|{a[1]}, {b[1]}|{a[1]} while {b[0]}|{a[2]} with {b[1]}")
        else:
            s = one(r, f"{a[2]} and {b[2]}|{a[2]}, {b[2]}|{a[2]} while {b[0]}|{a[2]} and {b[0]}|{a[2]} as {b[0]}|{a[2]}, then {b[2]}|{a[2]} + {b[2]}")
    k = r.random()
    if k < 0.12:
        s = f"{subject(r)}, {s}" if r.random() < 0.6 else f"{subject(r)}. {s}"
    elif k < 0.18:
        s = f"{s}, {subject(r)}"
    elif k < 0.22:
        s = f"{s}, {r.choice(STYLE[3:])}"
    return finish(r, s)


def finish(r, s):
    s = " ".join(s.split())
    k = r.random()
    if k < 0.35:
        s = s[:1].upper() + s[1:]
    elif k < 0.38:
        s = s.upper()
    if r.random() < 0.25:
        s += r.choice([".", ".", ".", "!"])
    return s


def fx_args(e, r):
    if e == "ball":
        return {"colour": r.choice(list(COLOURS)), "from": r.choice(["left", "right"]), "how": r.choice(["roll", "bounce"])}
    if e in ("fade", "bw", "bright", "sunset"):
        return {"speed": r.choice(["", "", "", "slow", "quick"])}
    return {}


def cam_args(m, r):
    return (m, "" if m == "still" else r.choice(["", "", "", "slow", "quick"]))


def random_spec(rng=random):
    r = rng
    k = r.random()
    if k < 0.40:
        return {"cam": [cam_args(r.choices(MOVES, WEIGHTS)[0], r)], "fx": []}
    if k < 0.66:
        e = r.choice(EFFECTS + ["ball"] * 14)
        return {"cam": [], "fx": [(e, fx_args(e, r))]}
    if k < 0.74:
        return {"cam": [], "fx": []}
    if k < 0.89:
        e = r.choice(EFFECTS + ["ball"] * 14)
        return {"cam": [cam_args(r.choices(MOVES, WEIGHTS)[0], r)], "fx": [(e, fx_args(e, r))]}
    if k < 0.95:
        while True:
            a, b = r.sample(MOVES[:9], 2)
            if GROUP[a] != GROUP[b]:
                return {"cam": [cam_args(a, r), cam_args(b, r)], "fx": []}
    while True:
        a, b = r.sample(EFFECTS, 2)
        if {a, b} not in CLASH:
            return {"cam": [], "fx": [(a, fx_args(a, r)), (b, fx_args(b, r))]}


if __name__ == "__main__":
    r = random.Random(1)
    for _ in range(60):
        s = random_spec(r)
        print([m + " " + v for m, v in s["cam"]], [e for e, _ in s["fx"]], "|", caption(s, r))
