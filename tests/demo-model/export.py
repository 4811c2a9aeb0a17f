#!/usr/bin/env python3
"""Writes the Diffusers-layout checkpoint from what the training left.

usage: export.py --vae DIR --dit DIR --tokenizer spiece.model --out models/demo [--shift 3.0]"""
import argparse
import glob
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file

A = argparse.ArgumentParser()
A.add_argument("--vae", required=True)
A.add_argument("--dit", required=True)
A.add_argument("--tokenizer", required=True)
A.add_argument("--out", required=True)
A.add_argument("--shift", type=float, default=3.0)
a = A.parse_args()


def put(path, text):
    os.makedirs(os.path.dirname(f"{a.out}/{path}") or a.out, exist_ok=True)
    with open(f"{a.out}/{path}", "w") as f:
        f.write(json.dumps(text, indent=2) + "\n")


def store(path, sd):
    os.makedirs(os.path.dirname(f"{a.out}/{path}"), exist_ok=True)
    sd = {k: v.to(torch.bfloat16).contiguous() for k, v in sorted(sd.items())}
    save_file(sd, f"{a.out}/{path}", metadata={"format": "pt"})
    print(path, len(sd), "tensors", sum(v.numel() for v in sd.values()))


sd = {}
for f in sorted(glob.glob(a.dit + "/ema*.pt")):
    sd.update(torch.load(f, map_location="cpu"))
part = lambda p: {k[len(p):]: v for k, v in sd.items() if k.startswith(p)}
old = os.path.exists(a.vae + "/model_index.json")     # a finished checkpoint: its VAE stays as it is
st = {"mean": json.load(open(a.vae + "/vae/config.json"))["latents_mean"], "std": json.load(open(a.vae + "/vae/config.json"))["latents_std"]} if old else torch.load(a.vae + "/vae_stats.pt")
store("transformer/diffusion_pytorch_model.safetensors", part("dit."))
store("text_encoder/model.safetensors", part("text."))
store("image_encoder/model.safetensors", part("clip."))
store("vae/diffusion_pytorch_model.safetensors", load_file(a.vae + "/vae/diffusion_pytorch_model.safetensors") if old else torch.load(a.vae + "/vae.pt", map_location="cpu"))
os.makedirs(a.out + "/tokenizer", exist_ok=True)
if os.path.realpath(a.tokenizer) != os.path.realpath(a.out + "/tokenizer/spiece.model"):
    shutil.copyfile(a.tokenizer, a.out + "/tokenizer/spiece.model")
put("model_index.json", {"_class_name": "WanImageToVideoPipeline", "_diffusers_version": "0.33.0.dev0", "image_encoder": ["transformers", "CLIPVisionModel"],
                         "image_processor": ["transformers", "CLIPImageProcessor"], "scheduler": ["diffusers", "UniPCMultistepScheduler"],
                         "text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"],
                         "transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"]})
ff = sd["dit.blocks.0.ffn.net.0.proj.bias"].numel()
layers = 1 + max(int(k.split(".")[2]) for k in sd if k.startswith("dit.blocks."))
put("transformer/config.json", {"_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0.dev0", "added_kv_proj_dim": 256, "attention_head_dim": 128,
                                "cross_attn_norm": True, "eps": 1e-06, "ffn_dim": ff, "freq_dim": 256, "image_dim": 128, "in_channels": 36, "num_attention_heads": 2,
                                "num_layers": layers, "out_channels": 16, "patch_size": [1, 2, 2], "pos_embed_seq_len": None, "qk_norm": "rms_norm_across_heads",
                                "rope_max_seq_len": 1024, "text_dim": 128})
put("vae/config.json", {"_class_name": "AutoencoderKLWan", "_diffusers_version": "0.33.0.dev0", "attn_scales": [], "base_dim": 16, "dim_mult": [1, 2, 4, 4], "dropout": 0.0,
                        "latents_mean": [round(float(v), 5) for v in st["mean"]], "latents_std": [round(float(v), 5) for v in st["std"]], "num_res_blocks": 2,
                        "temperal_downsample": [False, True, True], "z_dim": 16})
put("text_encoder/config.json", {"architectures": ["UMT5EncoderModel"], "classifier_dropout": 0.0, "d_ff": 256, "d_kv": 64, "d_model": 128, "decoder_start_token_id": 0,
                                 "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0,
                                 "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06, "model_type": "umt5", "num_decoder_layers": 3, "num_heads": 2,
                                 "num_layers": 3, "pad_token_id": 0, "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "scalable_attention": True,
                                 "tie_word_embeddings": False, "tokenizer_class": "T5Tokenizer", "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 1024})
put("image_encoder/config.json", {"architectures": ["CLIPVisionModel"], "attention_dropout": 0.0, "hidden_act": "gelu", "hidden_size": 128, "image_size": 224,
                                  "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 256, "layer_norm_eps": 1e-05, "model_type": "clip_vision_model",
                                  "num_attention_heads": 2, "num_channels": 3, "num_hidden_layers": 3, "patch_size": 14, "projection_dim": 64, "torch_dtype": "bfloat16"})
put("image_processor/preprocessor_config.json", {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True,
                                                 "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "CLIPImageProcessor",
                                                 "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 224}})
put("scheduler/scheduler_config.json", {"_class_name": "UniPCMultistepScheduler", "_diffusers_version": "0.33.0.dev0", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
                                        "disable_corrector": [], "dynamic_thresholding_ratio": 0.995, "final_sigmas_type": "zero", "flow_shift": a.shift, "lower_order_final": True,
                                        "num_train_timesteps": 1000, "predict_x0": True, "prediction_type": "flow_prediction", "rescale_betas_zero_snr": False,
                                        "sample_max_value": 1.0, "solver_order": 2, "solver_p": None, "solver_type": "bh2", "steps_offset": 0, "thresholding": False,
                                        "timestep_spacing": "linspace", "trained_betas": None, "use_beta_sigmas": False, "use_exponential_sigmas": False,
                                        "use_flow_sigmas": True, "use_karras_sigmas": False})
put("tokenizer/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0, "model_max_length": 512})
put("sluice.json", {"max-area": 61440, "frames": 33, "steps": 12, "guidance": 1})
n = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(a.out) for f in fs)
print(f"{n} bytes, {n / 2 ** 20:.2f} MiB")
