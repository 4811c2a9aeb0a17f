"""An upscaler between decode and mux: frames twice as large, bicubic by torch on the filter's device;
without torch each pixel becomes four.

    filters: ( { on = "frames"; program = "python3 examples/upscale.py"; scale = 2; } );
"""
import sluice

stage = sluice.Filter()  # heartbeats from here on, for torch takes seconds
try:
    import torch
except ImportError:
    torch = None


def upscale(job, frames):  # uint8 [n, h, w, 3]
    if torch is None:
        return frames.repeat(2, axis=1).repeat(2, axis=2)
    x = torch.from_numpy(frames.copy()).to(stage.device).permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, scale_factor=2, mode="bicubic", antialias=True)
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


stage.serve(upscale)
