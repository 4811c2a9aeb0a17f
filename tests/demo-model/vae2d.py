"""The VAE on single frames, as plain 2-D convolutions (a causal convolution sees one frame through its last tap only), and back."""
import torch
import torch.nn as nn
import torch.nn.functional as F

import wan


def flatten_state(sd):
    """3-D state -> 2-D: the last tap; the temporal convolutions drop out."""
    return {k: (v[:, :, -1] if v.dim() == 5 else v.reshape(-1) if k.endswith("gamma") else v).clone() for k, v in sd.items() if "time_conv" not in k}


def inflate_state(sd2, vae):
    """2-D state -> 3-D: zeros before the last tap; temporal convolutions start as averages (down) and repeats (up)."""
    out = {}
    for k, v in vae.state_dict().items():
        if "time_conv" in k:
            w = torch.zeros_like(v)
            if k.endswith("weight"):
                c = v.shape[1]
                e = torch.eye(c, device=v.device, dtype=v.dtype)
                if v.shape[0] == c:
                    w[:, :, 0, 0, 0], w[:, :, 1, 0, 0], w[:, :, 2, 0, 0] = 0.0 * e, 0.5 * e, 0.5 * e
                else:
                    w[:c, :, 2, 0, 0] = e
                    w[c:, :, 2, 0, 0] = e
                w += 0.01 * torch.randn_like(w)
            out[k] = w
        elif v.dim() == 5:
            w = torch.zeros_like(v)
            w[:, :, -1] = sd2[k]
            if v.shape[2] == 3:
                w[:, :, :2] = 0.02 * w[:, :, 2:].std() * torch.randn_like(w[:, :, :2])
            out[k] = w
        else:
            out[k] = sd2[k].reshape(v.shape)
    return out


class RMS2(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(c))

    def forward(self, x):
        n = torch.rsqrt(x.float().pow(2).mean(1, keepdim=True) + 1e-12)
        return x * n.to(x.dtype) * self.gamma.to(x.dtype)[:, None, None]


class Res2(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.norm1, self.conv1 = RMS2(a), nn.Conv2d(a, b, 3, padding=1)
        self.norm2, self.conv2 = RMS2(b), nn.Conv2d(b, b, 3, padding=1)
        if a != b:
            self.conv_shortcut = nn.Conv2d(a, b, 1)

    def forward(self, x):
        h = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        y = self.conv1(wan.act(x, self.norm1.gamma))
        return h + self.conv2(wan.act(y, self.norm2.gamma))


class Attn2(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.to_qkv, self.proj = RMS2(c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, -1)
        o = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        return x + self.proj(o.squeeze(1).transpose(1, 2).reshape(b, c, h, w))


class Mid2(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList([Res2(c, c), Res2(c, c)]), nn.ModuleList([Attn2(c)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Down2(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(c, c, 3, stride=2))

    def forward(self, x):
        return self.resample(F.pad(x, (0, 1, 0, 1)))


class Up2(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(c, c // 2, 3, padding=1))

    def forward(self, x):
        return self.resample(F.interpolate(x, scale_factor=2, mode="nearest"))


class UpBlock2(nn.Module):
    def __init__(self, a, b, up):
        super().__init__()
        self.resnets = nn.ModuleList([Res2(a, b), Res2(b, b), Res2(b, b)])
        if up:
            self.upsamplers = nn.ModuleList([Up2(b)])

    def forward(self, x):
        for r in self.resnets:
            x = r(x)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class VAE2(nn.Module):
    def __init__(self, d=16, z=16):
        super().__init__()
        self.z = z
        e, g = self.encoder, self.decoder = nn.Module(), nn.Module()
        e.conv_in = nn.Conv2d(3, d, 3, padding=1)
        e.down_blocks = nn.ModuleList([Res2(d, d), Res2(d, d), Down2(d), Res2(d, 2 * d), Res2(2 * d, 2 * d), Down2(2 * d), Res2(2 * d, 4 * d), Res2(4 * d, 4 * d), Down2(4 * d),
                                       Res2(4 * d, 4 * d), Res2(4 * d, 4 * d)])
        e.mid_block, e.norm_out, e.conv_out = Mid2(4 * d), RMS2(4 * d), nn.Conv2d(4 * d, 2 * z, 3, padding=1)
        g.conv_in, g.mid_block = nn.Conv2d(z, 4 * d, 3, padding=1), Mid2(4 * d)
        g.up_blocks = nn.ModuleList([UpBlock2(4 * d, 4 * d, True), UpBlock2(2 * d, 4 * d, True), UpBlock2(2 * d, 2 * d, True), UpBlock2(d, d, False)])
        g.norm_out, g.conv_out = RMS2(d), nn.Conv2d(d, 3, 3, padding=1)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(2 * z, 2 * z, 1), nn.Conv2d(z, z, 1)
        self.start()

    @torch.no_grad()
    def start(self):
        """Variance-preserving skip path; small residual branches; the resampling convolutions start as a mean and as a copy."""
        for n, m in self.named_modules():
            if isinstance(m, nn.Conv2d):
                fan = m.weight[0].numel()
                m.weight.normal_(0, fan ** -0.5)
                m.bias.zero_()
                if n.endswith("conv2"):
                    m.weight.mul_(0.3)
                elif n.endswith("resample.1"):
                    o, i = m.weight.shape[:2]
                    w = torch.zeros_like(m.weight)
                    q = torch.nn.init.orthogonal_(torch.empty(o, i)) if o != i else torch.eye(o)
                    if o == i:
                        w[:, :, 0:2, 0:2] = q[:, :, None, None] * 0.3
                    else:
                        w[:, :, 1, 1] = q * 1.0
                    m.weight.copy_(w + 0.3 * m.weight)
                elif n.endswith("proj"):
                    m.weight.mul_(0.1)

    def encode(self, x):
        e = self.encoder
        x = e.conv_in(x)
        for b in e.down_blocks:
            x = b(x)
        return self.quant_conv(e.conv_out(wan.act(e.mid_block(x), e.norm_out.gamma)))[:, :self.z]

    def decode(self, z):
        g = self.decoder
        x = g.mid_block(g.conv_in(self.post_quant_conv(z)))
        for b in g.up_blocks:
            x = b(x)
        return g.conv_out(wan.act(x, g.norm_out.gamma))


class Muon:
    """Momentum whose updates are orthogonalised; matrices (convolutions as [out, rest]) of one shape go through together."""

    def __init__(self, params, wd=0.0, beta=0.95):
        self.groups = {}
        for p in params:
            self.groups.setdefault((p.shape[0], p[0].numel()), []).append(p)
        d = params[0].device
        self.buf = {s: torch.zeros(len(ps), *s, device=d) for s, ps in self.groups.items()}
        self.wd, self.beta, self.low = wd, beta, d.type == "cuda"

    @torch.no_grad()
    def step(self, lr):
        for s, ps in self.groups.items():
            g = torch.stack([p.grad.reshape(s) for p in ps])
            b = self.buf[s]
            b.lerp_(g, 1 - self.beta)
            g = g.lerp(b, self.beta)
            x = g.to(torch.bfloat16) if self.low else g
            tr = s[0] > s[1]
            x = x.transpose(1, 2) if tr else x
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                m = x @ x.transpose(1, 2)
                x = 3.4445 * x + (-4.7750 * m + 2.0315 * (m @ m)) @ x
            x = (x.transpose(1, 2) if tr else x).float() * (0.2 * max(s) ** 0.5 * lr)
            if self.wd:
                torch._foreach_mul_(ps, 1 - lr * self.wd)
            torch._foreach_sub_(ps, [u.reshape(p.shape) for u, p in zip(x.unbind(0), ps)])
