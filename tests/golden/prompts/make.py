#!/usr/bin/env python3
"""Write cases.json: prompts as people type or paste them and what diffusers' prompt_clean makes of them with ftfy 6.3 (pip install ftfy)."""
import html
import html.entities
import json
import random
import re

import ftfy


def prompt_clean(t):
    """diffusers pipelines/wan/pipeline_wan_i2v.py"""
    t = ftfy.fix_text(t)
    t = html.unescape(html.unescape(t)).strip()
    return re.sub(r"\s+", " ", t).strip()


R = random.Random(7)
cases = [
    "", " ", "\n\n", "x", "a red ball rolls slowly to the left", "  two   spaces\tand a tab\nand a newline  ", "line one\r\nline two\rthree",
    "\ufeffa file with a byte-order mark", "a\ufeffb", "null\x00byte and bell\x07 and delete\x7f and \x1b[31mred\x1b[0m text \x1b[1;32mbold",
    "\x1b[ not an escape", "\x1b[12;m end", "tab\x0bvertical\x0cform", "unit\x1fseparator\x1cfile", "next\u0085line", "line\u2028sep\u2029para",
    "no\u00a0break", "thin\u2009space\u200ahair\u202fnarrow\u205fmath\u3000wide", "zero\u200bwidth\u200djoin\u200cnon\u2060word", "soft\u00adhyphen",
    "\u200eleft \u200fright \u202atext\u202c \u206adeprecated\u206f", "\ufff9a\ufffab\ufffb obj\ufffc \ufffd",
    "“curly” ‘single’ „low‟ ‚low‛ it’s ʼn rock ‘n’ roll", "prime ′ ″ « guillemets » ‹x›", "em — dash – en ‒ … ellipsis", "ﬁre ﬂow eﬀect oﬃce waﬄe ﬅ ﬆ",
    "Ĳssel ĳs ŉ Ǳ ǲ ǳ Ǆ ǅ ǆ Ǉ ǈ ǉ Ǌ ǋ ǌ", "æ Æ œ Œ ß ẞ stay", "ＦＵＬＬ　ｗｉｄｔｈ，１２３！？（）［］｛｝～", "ｶﾞｷﾞｸﾞ ﾊﾟ ｱｲｳ ｰ ﾞ ﾟ ﾡﾢ ￠￡￢￣￤￥￦ ￨￩￪￫￬￭￮",
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止", "一只猫在草地上奔跑。《电影》感、「特写」", "走る猫、夕焼けの海辺。「アニメ」調", "고양이가 뛰어간다", "кошка бежит по траве, «кино»", "γάτα που τρέχει", "قطة تجري على العشب،", "חתול רץ", "แมววิ่ง", "बिल्ली दौड़ रही है", "mèo chạy trên cỏ",
    "e\u0301 a\u030a o\u0308 n\u0303 cafe\u0301", "A\u030angstro\u0308m \u212b \u2126 \u212a", "q\u0307\u0323 q\u0323\u0307", "\u1112\u1161\u11ab\u1100\u1173\u11af", "\u0958 \ufb1d \u2adc", "½ ¼ № ² ³ ™ © ® ° µ ×", "emoji 🐱🚀 👩‍👩‍👧 👍🏽 🇩🇪 ❤️ 1️⃣", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "The camera pans right &amp; zooms in &lt;fast&gt;", "a < b &amp; c", "<b>bold</b> &eacute;", "first &eacute;\nsecond < &eacute;\nthird &eacute;", "&amp;amp;amp;amp; deep", "&amp;lt;b&amp;gt;", "AT&T R&D Q&A this&not that &copy 2024 &copycat", "&EACUTE; &NTILDE; &SZLIG; &nTILDE; &LT; &LTRI; &COPY; &HEARTS; &FILIG; &NAPOS; &FRAC12;", "&nbsp;x&nbsp;&nbsp;y&nbsp;", "&#65;&#x42;&#X43; &#0; &#128; &#x9f; &#xD800; &#1114112; &#99999999999999999999; &#7; &#127; &#xfdd0; &#xfffe; &#59; &#38;amp;", "&#65 &#x41g &#; &#x; &#xg; &# &", "& &; &a; &zz; &thisnameiswaytoolongtobeanentityatall; x", "&hellip;&mdash;&ldquo;quoted&rdquo;&rsquo;s", "&nGt; &NotEqualTilde; &bne; &fjlig; &ThickSpace;x", "&notit; &notin; &notinva; &noti; &ampx; &ampere; &lta &gtb &quot&quot;", "&#13;&#10;line", "&Tab;tab&NewLine;line", "< &#127;&#1;&#x2029; &#133; &#x85", "&amp;#233; &amp;#xe9;",
    "price $5 100% #tag @user a/b\\c {x} [y] (z) ^ ~ ` | _", "https://example.com/?a=1&b=2&lt=3&copy=4", "C:\\new\\table", "\\n literal \\u00e9", "JSON {\"a\": \"b\"}", "don't \"quote\" it's", "…three…dots…", "a\u0300\u0301\u0302\u0303", "ﷺ ﬓ ﭏ", "Dz\u030c", "x\u0338 =\u0338", "𝒜𝓇𝓉 𝔣𝔯𝔞𝔨 𝟙𝟚", "①②③ Ⅳ ㎏ ㍻", "\u0340\u0341\u0343\u0344\u0374\u037e\u0387", "\U0001d15e \U0002f800", "caf\u00e9 na\u00efve r\u00e9sum\u00e9 \u00fcber stra\u00dfe \u00e7a va", "Bright tones, overexposed, static, blurred details, subtitles, worst quality",
    "\x80uro \x93hi\x94 \x85 \x81 \x9d", "smart\x92s", "tail space\u3000", "\u3000head", "a\u2000\u2001\u2002\u2003b", "\u1680ogham\u180e", "x" * 600,
]
words = ("a the red cat runs slowly camera pans left, 4k cinematic lighting — “golden hour” ‘bokeh’ … naïve café ﬁlm ２０２４ ＯＫ！ 猫 跑， 「夢」 &amp; &quot;wide&quot; "
         "&#39;s &eacute; &nbsp; &lt; &copy &reg; e\u0301 \u00a0 \t \r\n \n 🐱 ❤️ \u200b \ufeff \x1b[1m ½ № Å \u212b ｶﾞ ﾊﾟ ～ ： % & && &amp;amp; #1 <b> > \x07 ’ „").split(" ")
while len(cases) < 320:
    cases.append(R.choice(["", " ", "  "]).join("") + "".join(R.choice(words) + R.choice([" ", " ", " ", "", ", "]) for _ in range(R.randint(2, 14))))
for n in R.sample(sorted(html.entities.html5), 60):
    cases.append("x&" + n + "y &" + n.upper() + " z")
rows = [[c, prompt_clean(c)] for c in cases]
with open("cases.json", "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
print(len(rows), "cases, ftfy", ftfy.__version__)
