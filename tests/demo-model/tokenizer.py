#!/usr/bin/env python3
"""Trains the tokenizer (SentencePiece unigram, 1024 pieces, byte pieces) on the grammar's captions and on plain English.

usage: tokenizer.py OUT.model [TEXT ...]"""
import random
import sys
import tempfile

import sentencepiece as spm

import captions

r = random.Random(7)
lines = [captions.caption(captions.random_spec(r), r) for _ in range(40000)]
text = []
for f in sys.argv[2:]:
    text += [l.strip() for l in open(f, errors="replace") if len(l.strip()) > 30]
r.shuffle(text)
lines += text[:12000]
with tempfile.NamedTemporaryFile("w", suffix=".txt") as t:
    t.write("\n".join(lines))
    t.flush()
    spm.SentencePieceTrainer.train(input=t.name, model_prefix=sys.argv[1].removesuffix(".model"), vocab_size=1024, model_type="unigram", byte_fallback=True,
                                   pad_id=0, eos_id=1, bos_id=2, unk_id=3, character_coverage=1.0, normalization_rule_name="nmt_nfkc",
                                   hard_vocab_limit=True, num_threads=2, train_extremely_large_corpus=False)
p = spm.SentencePieceProcessor(model_file=sys.argv[1])
n = sorted(len(p.encode(l)) for l in lines[:5000])
print("pieces", p.vocab_size(), "median length", n[2500], "longest", n[-1])
print(p.encode("The camera slowly pans to the left while snow falls", out_type=str))
