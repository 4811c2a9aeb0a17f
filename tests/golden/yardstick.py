#!/usr/bin/env python3
"""How far diffusers' own bf16 runs lie from the float32 figures of tiny-i2v, or of tiny-ti2v-5b: yardstick.py [FOLDER] [KIND...],
KIND = DiT+UMT5,VAE,CLIP (TI2V-5B has no CLIP).

A kind names three dtypes, for example bf16,bf16,fp32; the default is all that README.md lists. The VAE has its dtype both ways: the
condition is encoded in it and the frames are decoded in it. DEVICE=cuda: on a GPU, without TF32. Prints, for the cases without First Block Cache, the errors of CLIP, of
the condition and of the latents after each step (relative L2), and the frames' (dB PSNR at 8 bits). On the CPU, about half a minute
a kind. Needs torch, torchvision (CLIP's pixels differ a little without), diffusers, transformers, safetensors and Pillow."""
import json, os, sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
import numpy, torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPVisionModel, UMT5EncoderModel

CASES = {"tiny-i2v": ("i2v-96x64x9", "i2v-64x96x13-nocfg"), "tiny-ti2v-5b": ("ti2v-96x64x5-i2v", "ti2v-32x64x13-t2v")}
FOLDER = sys.argv.pop(1) if sys.argv[1:] and sys.argv[1] in CASES else "tiny-i2v"
HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), FOLDER)
MODEL = os.path.join(HERE, "model")
KINDS = ("fp32,fp32,fp32", "bf16,fp32,fp32", "bf16,bf16,fp32", "bf16,fp32,bf16", "bf16,bf16,bf16")
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEVICE = os.environ.get("DEVICE", "cpu")
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def rel(got, want):
    got, want = got.float().cpu().flatten(), want.float().cpu().flatten()
    return float((got - want).norm() / want.norm())


def pipeline(dit, vae, clip, picture):
    transformer = WanTransformer3DModel.from_pretrained(MODEL, subfolder="transformer", torch_dtype=dit)
    parts = dict(
        tokenizer=None,
        text_encoder=UMT5EncoderModel.from_pretrained(MODEL, subfolder="text_encoder", dtype=dit),
        transformer=transformer,
        vae=AutoencoderKLWan.from_pretrained(MODEL, subfolder="vae", torch_dtype=vae),
        scheduler=UniPCMultistepScheduler.from_pretrained(MODEL, subfolder="scheduler"),
    )
    if FOLDER == "tiny-ti2v-5b":
        return (WanImageToVideoPipeline if picture else WanPipeline)(expand_timesteps=True, **parts)
    for name in ("freqs_cos", "freqs_sin"):  # README.md: this folder's golden runs have these tables rounded
        table = getattr(transformer.rope, name)
        setattr(transformer.rope, name, table.bfloat16().to(table.dtype))
    return WanImageToVideoPipeline(
        image_encoder=CLIPVisionModel.from_pretrained(MODEL, subfolder="image_encoder", dtype=clip),
        image_processor=CLIPImageProcessor.from_pretrained(MODEL, subfolder="image_processor"),
        **parts,
    )


def text(p, ids):
    """Of one prompt, as the pipeline has it: encoded padded and masked, then zeros after the true length."""
    ids = ids.flatten().long()
    padded = torch.zeros(1, 512, dtype=torch.long)
    padded[0, : len(ids)] = ids
    x = p.text_encoder(padded.to(DEVICE), (torch.arange(512) < len(ids)).long()[None].to(DEVICE)).last_hidden_state.clone()
    x[:, len(ids) :] = 0
    return x


def run(kind, name):
    picture = f"{HERE}/{name}.png"
    picture = Image.open(picture).convert("RGB") if os.path.exists(picture) else None
    p = pipeline(*(DTYPE[k] for k in kind.split(",")), picture).to(DEVICE)
    p.set_progress_bar_config(disable=True)
    case, want = json.load(open(f"{HERE}/{name}.json")), load_file(f"{HERE}/{name}.safetensors")
    texts = load_file(f"{HERE}/text.safetensors")
    seen, steps = {}, []

    def before_forward(_, args, inputs):
        if not seen:
            seen.update({n: x.clone() for n, x in inputs.items() if torch.is_tensor(x)})

    def after_step(_, i, t, state):
        steps.append(rel(state["latents"][0], want[f"step.{i}.latents"]))
        return state

    def before_decoding(z, *args, decode=p.vae.decode, **options):
        c = p.vae.config
        mean, std = (torch.tensor(v, device=z.device).view(1, -1, 1, 1, 1) for v in (c.latents_mean, c.latents_std))
        seen["final"] = (z.float() - mean) / std
        return decode(z, *args, **options)

    p.vae.decode = before_decoding
    p.transformer.register_forward_pre_hook(before_forward, with_kwargs=True)
    prompts = [text(p, texts[f"ids.{case[k]}"]) for k in ("prompt", "neg")]
    frames = p(
        **({"image": picture} if picture else {}),
        height=case["h"],
        width=case["w"],
        num_frames=case["f"],
        num_inference_steps=case["steps"],
        guidance_scale=case["cfg"],
        prompt_embeds=prompts[0],
        negative_prompt_embeds=prompts[1] if case["cfg"] > 1 else None,
        latents=want["noise"][None].float().to(DEVICE),
        output_type="np",
        callback_on_step_end=after_step,
    ).frames[0]
    got = numpy.round(255 * frames).astype(numpy.float64)
    psnr = -10 * numpy.log10(((got - want["frames.u8"].numpy()) ** 2).mean() / 255**2 + 1e-12)
    told = "" if seen.get("encoder_hidden_states_image") is None else f"clip {rel(seen['encoder_hidden_states_image'][0], want['clip.penultimate'][0]):.2e}"
    if told and "dit.input" in want:
        given = want["dit.input"].reshape(36, *want["noise"].shape[1:])
        told += f"  condition {rel(seen['hidden_states'][0, 20:], given[20:]):.2e}"
    if "latents.final" in want:  # with the frame that is kept
        told += f"  final {rel(seen['final'][0], want['latents.final']):.3e}"
    print(f"{kind}  {name:20} {told}  latents", *(f"{e:.3e}" for e in steps), f" frames {psnr:.2f} dB", flush=True)


with torch.no_grad():
    for kind in sys.argv[1:] or KINDS:
        for name in CASES[FOLDER]:
            run(kind, name)
