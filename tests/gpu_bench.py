#!/usr/bin/env python3
"""gpu_bench.py - PyTorch's figures for what `sluice bench` measures, from the same card in the same minutes; and the two side by side.

    gpu_bench.py [--quick] [--json FILE]                    cuDNN attention, linear layers, convolutions: bf16, normal numbers, median of CUDA events
    gpu_bench.py --seconds S [...]                          each for S seconds without a pause, so under the card's power limit, as in a forward
    gpu_bench.py --compare TORCH.json SLUICE.json...        the table of both; measures nothing

Names and sizes are those of `sluice bench --json`.
"""
import argparse
import json
import statistics
import sys

SIZES = [(832, 480, 81), (1024, 576, 81), (1280, 720, 81)]
HEADS, HEAD, FFN, LAYERS = 40, 128, 13824, 40
DIM = HEADS * HEAD


def tokens(w, h, frames):
    return ((frames - 1) // 4 + 1) * (h // 16) * (w // 16)


def measure(quick, sustained):
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.backends.cudnn.benchmark = True
    torch.manual_seed(1)
    results = []

    def normal(*shape):
        return torch.randn(*shape, device='cuda', dtype=torch.bfloat16)

    def seconds(run):
        """Median, least, most of several timed pieces of at least 20 ms each."""
        def timed(times):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            for _ in range(times):
                run()
            b.record()
            b.synchronize()
            return a.elapsed_time(b) / 1e3 / times
        timed(1)
        once = timed(1)
        if sustained:
            timed(max(1, int(sustained / 4 / once)))  # until the clock has come down
            found = sorted(timed(max(1, int(sustained / 5 / once))) for _ in range(5))
            return statistics.median(found), found[0], found[-1]
        times = max(1, min(1000, int(0.02 / max(once, 1e-6)) + 1))
        found = sorted(timed(times) for _ in range(3 if quick else 7))
        return statistics.median(found), found[0], found[-1]

    def tell(what, size, ops, run):
        torch.cuda.empty_cache()
        try:
            median, least, most = seconds(run)
        except RuntimeError as error:
            print(f'{what} {size}: {str(error).splitlines()[0]}', file=sys.stderr)
            return
        results.append({'what': what, 'size': size, 'ops': ops, 'seconds': median, 'least': least, 'most': most})
        print(f'torch {what + " " + size:<42} {median * 1e3:10.3f} ms {ops / median * 1e-12:8.1f} TFLOP/s', flush=True)

    x, w = normal(8192, 8192), normal(8192, 8192)
    tell('product', '8192x8192x8192', 2 * 8192**3, lambda: F.linear(x, w))
    x, y = normal(131072, 4096), normal(131072, 4096)
    median, least, most = seconds(lambda: y.copy_(x))
    results.append({'what': 'copy', 'size': '1073 MB', 'bytes': 4 * x.numel(), 'seconds': median, 'least': least, 'most': most})
    print(f'torch copy 1073 MB: {4 * x.numel() / median * 1e-9:.0f} GB/s', flush=True)
    del x, y, w

    sizes = SIZES[:1] if quick else SIZES
    for size in sizes:
        n = tokens(*size)
        for out, inner in ((DIM, DIM), (FFN, DIM), (DIM, FFN)):
            x, w, b = normal(n, inner), normal(out, inner) / inner**0.5, normal(out)
            tell('gemm', f'{n}x{out}x{inner}', 2 * n * out * inner, lambda: F.linear(x, w, b))
            del x, w, b

    def attention(name, nq, nk, heads, dim):
        q, k, v = (normal(1, m, heads, dim).transpose(1, 2) for m in (nq, nk, nk))
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            tell('attention', f'{name} {nq}x{nk}, {heads}x{dim}', 4 * nq * nk * heads * dim, lambda: F.scaled_dot_product_attention(q, k, v))

    for size in sizes:
        attention('self', tokens(*size), tokens(*size), HEADS, HEAD)
    attention('text', tokens(*sizes[-1]), 512, HEADS, HEAD)
    attention('image', tokens(*sizes[-1]), 257, HEADS, HEAD)

    w, h, _ = sizes[-1]
    for t, scale, ci, co in ((4, 1, 96, 96), (4, 2, 192, 192), (2, 4, 384, 384), (1, 8, 384, 384), (4, 1, 96, 3)):
        x = normal(1, ci, t + 2, h // scale, w // scale).to(memory_format=torch.channels_last_3d)
        k, b = (normal(co, ci, 3, 3, 3) / (27 * ci)**0.5).to(memory_format=torch.channels_last_3d), normal(co)
        tell('conv', f'{t}x{h // scale}x{w // scale}, {ci}->{co}', 2 * 27 * t * (h // scale) * (w // scale) * ci * co,
             lambda: F.conv3d(x, k, b, padding=(0, 1, 1)))
        del x, k, b

    return {'device': torch.cuda.get_device_name(), 'torch': torch.__version__, 'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version(),
            'results': results}


def compare(torch_file, sluice_files):
    torch = {(r['what'], r['size']): r for r in json.load(open(torch_file))['results']}
    sluice = {}
    for name in sluice_files:
        for r in json.load(open(name))['results']:
            sluice[r['what'], r['size']] = r

    print(f'{"Sluice beside PyTorch":<46} {"Sluice":>11} {"PyTorch":>11}   Sluice/PyTorch')
    for (what, size), r in sluice.items():
        yard = torch.get((what, size.removesuffix(' gelu')))
        if yard:
            print(f'{what + " " + size:<46} {r["seconds"] * 1e3:8.3f} ms {yard["seconds"] * 1e3:8.3f} ms   {r["seconds"] / yard["seconds"]:6.3f}')

    # What the DiT would take if every product and every attention ran as PyTorch's do alone, and nothing else took any time.
    def rate(rows):
        return sum(r['ops'] for r in rows) / sum(r['seconds'] for r in rows)
    for size in SIZES:
        name, n = '%dx%dx%d' % size, tokens(*size)
        dit = sluice.get(('dit', name))
        shapes = [torch.get(('gemm', f'{n}x{o}x{i}')) for o, i in ((DIM, DIM), (FFN, DIM), (DIM, FFN))]
        own = torch.get(('attention', f'self {n}x{n}, {HEADS}x{HEAD}'))
        if not dit or not own or not all(shapes):
            continue
        floor = dit['linear_ops'] / rate([shapes[0]] * 6 + shapes[1:]) + dit['attention_ops'] / rate([own])
        print(f'dit {name:<42} {dit["seconds"]:8.3f} s  {floor:8.3f} s    {dit["seconds"] / floor:6.3f}  (PyTorch: the sum of its products and attentions)')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='the smallest size, fewer runs')
    parser.add_argument('--seconds', type=float, default=0, metavar='S', help='each for so long without a pause')
    parser.add_argument('--json', metavar='FILE')
    parser.add_argument('--compare', nargs='+', metavar='FILE')
    o = parser.parse_args()
    if o.compare:
        if len(o.compare) < 2:
            parser.error('--compare wants PyTorch\'s file and one of Sluice\'s at least')
        compare(o.compare[0], o.compare[1:])
        return
    found = measure(o.quick, o.seconds)
    if o.json:
        with open(o.json, 'w') as f:
            json.dump(found, f, indent=2)


main()
