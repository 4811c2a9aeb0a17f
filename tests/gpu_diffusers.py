#!/usr/bin/env python3
"""gpu_diffusers.py - what diffusers takes for a forward of the 14B transformer on one GPU, or on
several with ulysses_degree as many: random bf16 weights, blocks compiled.

    torchrun --nproc-per-node N tests/gpu_diffusers.py FOLDER [WIDTHxHEIGHTxFRAMES ...]

FOLDER holds the transformer's config.json. Prints the median of three forwards of the slowest
rank. Run with diffusers 0.42.1 on two H200. `sluice bench dit --device cuda:0,...` measures Sluice's beside one rank; run both in the
same minutes on the same cards."""
import json
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, WanTransformer3DModel


def main():
    folder, sizes = sys.argv[1], sys.argv[2:] or ['832x480x81', '1024x576x81', '1280x720x81']
    rank, ranks = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    torch.cuda.set_device(rank)
    device = torch.device('cuda', rank)
    dist.init_process_group('nccl', device_id=device)
    with open(os.path.join(folder, 'config.json')) as f:
        config = {k: v for k, v in json.load(f).items() if not k.startswith('_')}
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = WanTransformer3DModel(**config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    if ranks > 1:
        model.set_attention_backend('_native_cudnn')
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=ranks))
    model.compile_repeated_blocks()
    bf16 = {'device': device, 'dtype': torch.bfloat16}
    for size in sizes:
        w, h, frames = (int(x) for x in size.split('x'))
        args = {'hidden_states': torch.randn(1, config['in_channels'], (frames - 1) // 4 + 1, h // 8, w // 8, **bf16),
                'timestep': torch.tensor([700], device=device),
                'encoder_hidden_states': torch.randn(1, 512, config['text_dim'], **bf16),
                'return_dict': False}
        if config.get('image_dim'):
            args['encoder_hidden_states_image'] = torch.randn(1, 257, config['image_dim'], **bf16)
        seconds = []
        with torch.no_grad():
            for i in range(5):
                torch.cuda.synchronize()
                dist.barrier()
                t0 = time.perf_counter()
                model(**args)
                torch.cuda.synchronize()
                t = torch.tensor([time.perf_counter() - t0], device=device)
                dist.all_reduce(t, dist.ReduceOp.MAX)
                if i > 1:  # two to compile and to warm up
                    seconds.append(t.item())
        if not rank:
            print(f'diffusers {size} {ranks} rank(s): {statistics.median(seconds):.3f} s', flush=True)
    dist.destroy_process_group()


main()
