#!/usr/bin/env python3
"""Write html5.h, the HTML5 entity table that prompt.c searches, from Python's html.entities. Run: python3 html5.py > html5.h"""
import html
import html.entities

table = html.entities.html5
full = sorted(n[:-1] for n in table if n.endswith(";"))
assert all(n in full for n in table if not n.endswith(";"))

print("/* html5.h - the HTML5 entities; written by html5.py from Python's html.entities.html5, do not edit.\n *")
print(" * Sorted by name (bytes). `bare`: also known without the semicolon. The value is one or two code points. */")
print("#ifndef SL_HTML5_H\n#define SL_HTML5_H\n\n#include <stdint.h>\n")
print("typedef struct {\n    const char *name;\n    uint32_t a, b; /* b is 0 if there is only one */\n    uint8_t bare;\n} html5_entity;\n")
print("static const html5_entity HTML5[] = {")
line = "   "
for n in full:
    v = [ord(c) for c in table[n + ";"]]
    assert len(v) <= 2
    e = ' {"%s", 0x%x, 0x%x, %d},' % (n, v[0], v[1] if len(v) > 1 else 0, n in table)
    if len(line) + len(e) > 132:
        print(line)
        line = "   "
    line += e
print(line + "\n};\n")

# ftfy also knows lower-case names written in capitals, where HTML does not. Most values are the simple capital; these are not.
odd = []
for n in full:
    up = "&" + n.upper() + ";"
    if n == n.lower() and html.unescape(up) == up:
        v = table[n + ";"]
        w = v.upper()
        if len(w) != len(v):
            odd.append((n, w))
print("/* Entities whose capital is more than one code point (Unicode's special casing). */")
print("static const struct {\n    const char *name;\n    uint32_t upper[4];\n} HTML5_UPPER[] = {")
for n, w in odd:
    print('    {"%s", {%s}},' % (n, ", ".join("0x%x" % ord(c) for c in w)))
print("};\n\n#endif")
