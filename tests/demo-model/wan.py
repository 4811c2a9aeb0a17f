"""Plain PyTorch modules of Wan2.1 image-to-video with the parameter names of a Diffusers checkpoint, in the form that trains
fast: the VAE without chunks (whole sequences), the text padding folded into one key. evaluate and golden runs check that they
compute what Diffusers computes."""
import math
import torch
import torch.nn as nn
import torch.nn.functional as F

# ---------------------------------------------------------------- VAE


class RMS(nn.Module):
    def __init__(self, c, nd):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(c, *([1] * nd)))

    def forward(self, x):
        n = torch.rsqrt(x.float().pow(2).mean(1, keepdim=True) + 1e-12)
        g = self.gamma if x.dim() == self.gamma.dim() + 1 else self.gamma[..., 0]
        return (x * n.to(x.dtype)) * g.to(x.dtype)


CONV = "3d"


def choose_conv(dev):
    """Times the forms of the causal convolution on this device and keeps the fastest."""
    global CONV
    import time
    out = {}
    for CONV in ("3d", "3dl", "2d"):
        t = 0
        for c, b, f, h, w in ((16, 6, 17, 160, 160), (32, 6, 17, 80, 80), (64, 6, 9, 40, 40)):
            m = C3(c, c).to(dev)
            x = torch.randn(b, c, f, h, w, device=dev, dtype=torch.bfloat16, requires_grad=True)
            if CONV != "3d":
                x = x.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
            for i in range(5):
                if i == 2:
                    torch.cuda.synchronize()
                    t0 = time.time()
                with torch.autocast(dev, torch.bfloat16):
                    y = m(x)
                y.backward(torch.ones_like(y))
            torch.cuda.synchronize()
            t += (time.time() - t0) / 3 * {16: 2, 32: 2, 64: 3}[c]
        out[CONV] = round(t * 1e3, 2)
    CONV = min(out, key=out.get)
    return CONV, out


class C3(nn.Conv3d):
    """Causal convolution in time: zeros in front, none behind."""

    def __init__(self, a, b, k=3):
        super().__init__(a, b, k, padding=(0, k // 2, k // 2))
        self.kt = k

    def forward(self, x):
        if self.kt == 1:
            return super().forward(x)
        if CONV == "2d":                            # the three frames beside each other as channels of a 2-D convolution
            b, c, t, h, w = x.shape
            y = x.transpose(1, 2)                    # b,t,c,h,w
            y = F.pad(y, (0, 0, 0, 0, 0, 0, 2, 0))
            y = torch.cat([y[:, 0:t], y[:, 1:t + 1], y[:, 2:t + 2]], 2).reshape(b * t, 3 * c, h, w)
            y = y.contiguous(memory_format=torch.channels_last)
            k = self.weight.transpose(1, 2).flatten(1, 2)
            y = F.conv2d(y, k.contiguous(memory_format=torch.channels_last), self.bias, padding=1)
            return y.view(b, t, *y.shape[1:]).transpose(1, 2)
        if CONV == "3dl":
            x = x.contiguous(memory_format=torch.channels_last_3d)
        return super().forward(F.pad(x, (0, 0, 0, 0, self.kt - 1, 0)))


_fused = {}


def act(x, g):
    """SiLU(RMS norm) over channels; one compiled kernel over rows on a GPU."""
    c = x.shape[1]
    if not x.is_cuda or c not in _fused:
        n = torch.rsqrt(x.float().pow(2).mean(1, keepdim=True) + 1e-12)
        return F.silu(x.float() * n * g.reshape(c, *([1] * (x.dim() - 2))).float()).to(x.dtype)
    p = (0, *range(2, x.dim()), 1)
    r = x.permute(p)
    y = _fused[c](r.reshape(-1, c).to(torch.bfloat16), g.reshape(c))
    return y.view(r.shape).permute(0, x.dim() - 1, *range(1, x.dim() - 1))


def fuse(dev):
    """Compiles act() for the widths of the VAE."""
    def make(c):
        def f(x, g):
            x = x.view(-1, c).float()
            n = torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-12)
            return F.silu(x * n * g.view(1, c).float()).to(torch.bfloat16)
        return torch.compile(f, dynamic=True)
    global _fused
    try:
        d = {c: make(c) for c in (16, 32, 64)}
        for c in d:
            for m in (1000, 7 * 2048):
                x = torch.randn(m, c, device=dev, dtype=torch.bfloat16, requires_grad=True)
                g = torch.ones(c, device=dev, requires_grad=True)
                d[c](x, g).float().sum().backward()
                with torch.no_grad():
                    d[c](x, g)
        _fused = d
        return "fused"
    except Exception as e:
        return "not fused: " + repr(e)[:200]


class Res(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.norm1, self.conv1 = RMS(a, 3), C3(a, b)
        self.norm2, self.conv2 = RMS(b, 3), C3(b, b)
        if a != b:
            self.conv_shortcut = C3(a, b, 1)

    def forward(self, x):
        h = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        y = self.conv1(act(x, self.norm1.gamma))
        return h + self.conv2(act(y, self.norm2.gamma))


class Attn(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.to_qkv, self.proj = RMS(c, 2), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        b, c, t, h, w = x.shape
        y = x.transpose(1, 2).reshape(b * t, c, h, w)
        q, k, v = self.to_qkv(self.norm(y)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, -1)
        o = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        o = self.proj(o.squeeze(1).transpose(1, 2).reshape(b * t, c, h, w))
        return x + o.reshape(b, t, c, h, w).transpose(1, 2)


def per_frame(f, x):
    b, c, t, h, w = x.shape
    y = f(x.transpose(1, 2).reshape(b * t, c, h, w))
    return y.reshape(b, t, *y.shape[1:]).transpose(1, 2)


class Down(nn.Module):
    def __init__(self, c, time):
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(c, c, 3, stride=2))
        if time:
            self.time_conv = nn.Conv3d(c, c, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x):
        x = per_frame(lambda y: self.resample(F.pad(y, (0, 1, 0, 1))), x)
        if hasattr(self, "time_conv") and x.shape[2] > 1:
            x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)
        return x


class Up(nn.Module):
    def __init__(self, c, time):
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(c, c // 2, 3, padding=1))
        if time:
            self.time_conv = nn.Conv3d(c, 2 * c, (3, 1, 1))

    def forward(self, x):
        if hasattr(self, "time_conv") and x.shape[2] > 1:
            z = F.pad(x[:, :, 1:], (0, 0, 0, 0, 2, 0))
            y = self.time_conv(z)
            b, c2, t, h, w = y.shape
            y = y.reshape(b, 2, c2 // 2, t, h, w).permute(0, 2, 3, 1, 4, 5).reshape(b, c2 // 2, 2 * t, h, w)
            x = torch.cat([x[:, :, :1], y], 2)
        return per_frame(lambda y: self.resample(F.interpolate(y, scale_factor=2, mode="nearest")), x)


class Mid(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.resnets = nn.ModuleList([Res(c, c), Res(c, c)])
        self.attentions = nn.ModuleList([Attn(c)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class UpBlock(nn.Module):
    def __init__(self, a, b, up, time):
        super().__init__()
        self.resnets = nn.ModuleList([Res(a, b), Res(b, b), Res(b, b)])
        if up:
            self.upsamplers = nn.ModuleList([Up(b, time)])

    def forward(self, x):
        for r in self.resnets:
            x = r(x)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class Encoder(nn.Module):
    def __init__(self, d, z):
        super().__init__()
        self.conv_in = C3(3, d)
        self.down_blocks = nn.ModuleList([Res(d, d), Res(d, d), Down(d, False), Res(d, 2 * d), Res(2 * d, 2 * d), Down(2 * d, True),
                                          Res(2 * d, 4 * d), Res(4 * d, 4 * d), Down(4 * d, True), Res(4 * d, 4 * d), Res(4 * d, 4 * d)])
        self.mid_block = Mid(4 * d)
        self.norm_out, self.conv_out = RMS(4 * d, 3), C3(4 * d, 2 * z)

    def forward(self, x):
        x = self.conv_in(x)
        for b in self.down_blocks:
            x = b(x)
        return self.conv_out(act(self.mid_block(x), self.norm_out.gamma))


class Decoder(nn.Module):
    def __init__(self, d, z):
        super().__init__()
        self.conv_in, self.mid_block = C3(z, 4 * d), Mid(4 * d)
        self.up_blocks = nn.ModuleList([UpBlock(4 * d, 4 * d, True, True), UpBlock(2 * d, 4 * d, True, True),
                                        UpBlock(2 * d, 2 * d, True, False), UpBlock(d, d, False, False)])
        self.norm_out, self.conv_out = RMS(d, 3), C3(d, 3)

    def forward(self, x):
        x = self.mid_block(self.conv_in(x))
        for b in self.up_blocks:
            x = b(x)
        return self.conv_out(act(x, self.norm_out.gamma))


class VAE(nn.Module):
    def __init__(self, d=16, z=16):
        super().__init__()
        self.z = z
        self.encoder, self.decoder = Encoder(d, z), Decoder(d, z)
        self.quant_conv, self.post_quant_conv = C3(2 * z, 2 * z, 1), C3(z, z, 1)

    def encode(self, x):
        return self.quant_conv(self.encoder(x))[:, :self.z]

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


# ---------------------------------------------------------------- text encoder (UMT5)


class T5Norm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return self.weight * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class T5Attn(nn.Module):
    def __init__(self, d, h, dk):
        super().__init__()
        self.h = h
        self.q, self.k, self.v = (nn.Linear(d, h * dk, bias=False) for _ in range(3))
        self.o = nn.Linear(h * dk, d, bias=False)
        self.relative_attention_bias = nn.Embedding(32, h)
        nn.init.normal_(self.q.weight, std=(d * dk) ** -0.5)
        nn.init.normal_(self.k.weight, std=d ** -0.5)
        nn.init.normal_(self.relative_attention_bias.weight, std=0.1)


class T5Block(nn.Module):
    def __init__(self, d, h, dk, ff):
        super().__init__()
        a, f = nn.Module(), nn.Module()
        a.SelfAttention, a.layer_norm = T5Attn(d, h, dk), T5Norm(d)
        f.DenseReluDense, f.layer_norm = nn.Module(), T5Norm(d)
        f.DenseReluDense.wi_0, f.DenseReluDense.wi_1 = nn.Linear(d, ff, bias=False), nn.Linear(d, ff, bias=False)
        f.DenseReluDense.wo = nn.Linear(ff, d, bias=False)
        self.layer = nn.ModuleList([a, f])

    def forward(self, x, bucket, mask):
        b, n, _ = x.shape
        A = self.layer[0].SelfAttention
        y = self.layer[0].layer_norm(x)
        q, k, v = (f(y).view(b, n, A.h, -1).transpose(1, 2) for f in (A.q, A.k, A.v))
        s = (q @ k.transpose(-1, -2)).float() + A.relative_attention_bias(bucket).permute(2, 0, 1).float() + mask
        x = x + A.o((s.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(b, n, -1))
        D = self.layer[1].DenseReluDense
        y = self.layer[1].layer_norm(x)
        return x + D.wo(F.gelu(D.wi_0(y), approximate="tanh") * D.wi_1(y))


class UMT5(nn.Module):
    def __init__(self, vocab, d=128, layers=4, h=2, dk=64, ff=256):
        super().__init__()
        self.shared = nn.Embedding(vocab, d)
        self.encoder = nn.Module()
        self.encoder.block = nn.ModuleList([T5Block(d, h, dk, ff) for _ in range(layers)])
        self.encoder.final_layer_norm = T5Norm(d)

    def forward(self, ids, length):
        """ids [B,L] padded; returns [B,L,d] with zero rows past each length."""
        n = ids.shape[1]
        p = torch.arange(n, device=ids.device)
        r = p[None, :] - p[:, None]
        a = r.abs()
        big = 8 + (torch.log(a.clamp(min=1).float() / 8) / math.log(16) * 8).long()
        bucket = (r > 0).long() * 16 + torch.where(a < 8, a, big.clamp(max=15))
        keep = p[None, :] < length[:, None]
        mask = (~keep).float()[:, None, None, :] * -1e9
        x = self.shared(ids)
        for b in self.encoder.block:
            x = b(x, bucket, mask)
        return self.encoder.final_layer_norm(x) * keep[..., None]


# ---------------------------------------------------------------- CLIP vision tower


class ClipLayer(nn.Module):
    def __init__(self, d, ff, h):
        super().__init__()
        self.h = h
        self.self_attn = nn.Module()
        for n in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self.self_attn, n, nn.Linear(d, d))
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(d, ff), nn.Linear(ff, d)

    def forward(self, x):
        b, n, d = x.shape
        y, A = self.layer_norm1(x), self.self_attn
        q, k, v = (f(y).view(b, n, self.h, -1).transpose(1, 2) for f in (A.q_proj, A.k_proj, A.v_proj))
        x = x + A.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.layer_norm2(x))))


class Clip(nn.Module):
    def __init__(self, d=128, ff=256, layers=3, h=2):
        super().__init__()
        v = self.vision_model = nn.Module()
        v.embeddings = nn.Module()
        v.embeddings.class_embedding = nn.Parameter(torch.randn(d) * 0.02)
        v.embeddings.patch_embedding = nn.Conv2d(3, d, 14, 14, bias=False)
        v.embeddings.position_embedding = nn.Embedding(257, d)
        nn.init.normal_(v.embeddings.position_embedding.weight, std=0.02)
        v.pre_layrnorm, v.post_layernorm = nn.LayerNorm(d), nn.LayerNorm(d)
        v.encoder = nn.Module()
        v.encoder.layers = nn.ModuleList([ClipLayer(d, ff, h) for _ in range(layers)])

    def forward(self, x):
        v = self.vision_model
        y = v.embeddings.patch_embedding(x).flatten(2).transpose(1, 2)
        y = torch.cat([v.embeddings.class_embedding.to(y.dtype).expand(len(y), 1, -1), y], 1)
        y = v.pre_layrnorm(y + v.embeddings.position_embedding.weight.to(y.dtype))
        for l in v.encoder.layers[:-1]:            # hidden_states[-2]: the last layer is never used
            y = l(y)
        return y


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(img):
    """img [B,3,h,w] in 0..1 -> processed 224x224 (shortest edge, bicubic with antialias, centre crop), uint8 rounding as PIL."""
    h, w = img.shape[-2:]
    size = (224, int(224 * w / h)) if h <= w else (int(224 * h / w), 224)
    y = F.interpolate(img.float(), size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    t, l = (size[0] - 224) // 2, (size[1] - 224) // 2
    return (y[:, :, t:t + 224, l:l + 224] * 255).round().to(torch.uint8)


_norm = {}


def clip_norm(u8, dtype=torch.float32):
    if u8.device not in _norm:                       # kept: nothing may come from the host while a graph is recorded
        _norm[u8.device] = [torch.tensor(v, device=u8.device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD)]
    m, s = _norm[u8.device]
    return ((u8.float() / 255 - m) / s).to(dtype)


# ---------------------------------------------------------------- DiT


class RMSNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return ((x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)) * self.weight).to(x.dtype)


def rope(x, cos, sin):
    """x [B,H,N,128]; cos, sin [N,64]; interleaved pairs."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def rope_table(t, h, w, hd=128, device="cpu"):
    dh = 2 * (hd // 6)
    dims = (hd - 2 * dh, dh, dh)
    out = []
    for ax, (n, d) in enumerate(zip((t, h, w), dims)):
        f = 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
        a = torch.arange(n, dtype=torch.float64)[:, None] * f
        shape = [1, 1, 1]
        shape[ax] = n
        out.append(a.view(*shape, -1).expand(t, h, w, -1))
    a = torch.cat(out, -1).reshape(t * h * w, -1)
    return a.cos().float().to(device), a.sin().float().to(device)


class Attention(nn.Module):
    def __init__(self, d, cross):
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.to_out = nn.ModuleList([nn.Linear(d, d)])
        self.norm_q, self.norm_k = RMSNorm(d), RMSNorm(d)
        if cross:
            self.add_k_proj, self.add_v_proj, self.norm_added_k = nn.Linear(d, d), nn.Linear(d, d), RMSNorm(d)


def heads(x):
    return x.unflatten(-1, (-1, 128)).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, d, ff):
        super().__init__()
        self.attn1, self.attn2 = Attention(d, False), Attention(d, True)
        self.norm2 = nn.LayerNorm(d, eps=1e-6)
        self.ffn = nn.Module()
        self.ffn.net = nn.ModuleList([nn.Module(), nn.Identity(), nn.Linear(ff, d)])
        self.ffn.net[0].proj = nn.Linear(d, ff)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, d) / d ** 0.5)

    def forward(self, x, tp, text, tbias, img, cos, sin):
        d = x.shape[-1]
        s1, c1, g1, s2, c2, g2 = (self.scale_shift_table.float() + tp.float()).chunk(6, 1)
        n = (F.layer_norm(x.float(), (d,), eps=1e-6) * (1 + c1) + s1).to(x.dtype)
        A = self.attn1
        q = rope(heads(A.norm_q(A.to_q(n))), cos, sin)
        k = rope(heads(A.norm_k(A.to_k(n))), cos, sin)
        a = F.scaled_dot_product_attention(q, k, heads(A.to_v(n)))
        x = (x.float() + A.to_out[0](a.transpose(1, 2).flatten(2)).float() * g1).to(x.dtype)
        A = self.attn2
        n = F.layer_norm(x.float(), (d,), self.norm2.weight.float(), self.norm2.bias.float(), 1e-6).to(x.dtype)
        q = heads(A.norm_q(A.to_q(n)))
        k = heads(A.norm_k(A.to_k(text)))
        s = (q @ k.transpose(-1, -2)).float() * (128 ** -0.5) + tbias
        a = s.softmax(-1).to(x.dtype) @ heads(A.to_v(text))
        a = a + F.scaled_dot_product_attention(q, heads(A.norm_added_k(A.add_k_proj(img))), heads(A.add_v_proj(img)))
        x = x + A.to_out[0](a.transpose(1, 2).flatten(2))
        n = (F.layer_norm(x.float(), (d,), eps=1e-6) * (1 + c2) + s2).to(x.dtype)
        y = self.ffn.net[2](F.gelu(self.ffn.net[0].proj(n), approximate="tanh"))
        return (x.float() + y.float() * g2).to(x.dtype)


class DiT(nn.Module):
    def __init__(self, d=256, layers=7, ff=640, text=128, image=128, cin=36, cout=16):
        super().__init__()
        self.patch_embedding = nn.Conv3d(cin, d, (1, 2, 2), (1, 2, 2))
        c = self.condition_embedder = nn.Module()
        c.time_embedder = nn.Module()
        c.time_embedder.linear_1, c.time_embedder.linear_2 = nn.Linear(256, d), nn.Linear(d, d)
        c.time_proj = nn.Linear(d, 6 * d)
        c.text_embedder = nn.Module()
        c.text_embedder.linear_1, c.text_embedder.linear_2 = nn.Linear(text, d), nn.Linear(d, d)
        i = c.image_embedder = nn.Module()
        i.norm1, i.norm2 = nn.LayerNorm(image), nn.LayerNorm(d)
        i.ff = nn.Module()
        i.ff.net = nn.ModuleList([nn.Module(), nn.Identity(), nn.Linear(image, d)])
        i.ff.net[0].proj = nn.Linear(image, image)
        self.blocks = nn.ModuleList([Block(d, ff) for _ in range(layers)])
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, d) / d ** 0.5)
        self.proj_out = nn.Linear(d, cout * 4)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        nn.init.normal_(c.time_embedder.linear_1.weight, std=0.02)
        nn.init.normal_(c.time_embedder.linear_2.weight, std=0.02)
        nn.init.zeros_(c.time_proj.weight)
        nn.init.zeros_(c.time_proj.bias)
        for b in self.blocks:
            nn.init.zeros_(b.attn1.to_out[0].bias)
            with torch.no_grad():
                b.scale_shift_table[:, 2] += 0.3
                b.scale_shift_table[:, 5] += 0.3
                b.attn2.to_out[0].weight.mul_(0.3)

    def forward(self, x, t, text, length, img, table=None):
        """x [B,36,T,H,W]; t [B] (0..999); text [B,L,d] with zero rows past length (< L); img [B,257,d]; returns [B,16,T,H,W]."""
        B, _, T, H, W = x.shape
        cos, sin = table if table is not None else rope_table(T, H // 2, W // 2, device=x.device)
        y = self.core(patches(x), t, text, length, img, cos, sin).view(B, T, H // 2, W // 2, 2, 2, 16)
        return y.permute(0, 6, 1, 2, 4, 3, 5).reshape(B, 16, T, H, W)

    def core(self, x, t, text, length, img, cos, sin):
        """x: patches [B,N,144]; returns [B,N,64], (ph, pw, c) in each row"""
        dt = self.patch_embedding.weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            dt = torch.get_autocast_dtype(x.device.type)
        C = self.condition_embedder
        x = F.linear(x.to(dt), self.patch_embedding.weight.flatten(1), self.patch_embedding.bias).to(dt)
        f = torch.exp(-math.log(10000) * torch.arange(128, device=x.device).float() / 128)
        a = t.float()[:, None] * f
        e = torch.cat([a.cos(), a.sin()], -1)
        temb = C.time_embedder.linear_2(F.silu(C.time_embedder.linear_1(e.to(C.time_embedder.linear_1.weight.dtype)))).to(dt)
        tp = C.time_proj(F.silu(temb)).unflatten(1, (6, -1))
        n = text.shape[1]
        p = torch.arange(n, device=x.device)
        tbias = (p[None] >= length[:, None]).float() * -1e9      # no torch.where of numbers: it copies them from the host
        tbias = torch.where(p[None] == length[:, None], torch.log(512.0 - length.float())[:, None], tbias)[:, None, None, :]
        text = C.text_embedder.linear_2(F.gelu(C.text_embedder.linear_1(text.to(dt)), approximate="tanh"))
        I = C.image_embedder
        img = I.ff.net[2](F.gelu(I.ff.net[0].proj(I.norm1(img.to(I.norm1.weight.dtype)).to(dt))))
        img = I.norm2(img.to(I.norm2.weight.dtype)).to(dt)
        for b in self.blocks:
            x = b(x, tp, text, tbias, img, cos, sin)
        shift, scale = (self.scale_shift_table.float() + temb.float()[:, None]).chunk(2, 1)
        x = (F.layer_norm(x.float(), (x.shape[-1],), eps=1e-6) * (1 + scale) + shift).to(dt)
        return self.proj_out(x)


def patches(x):
    """[B,c,T,H,W] -> [B,N,c*4], (c, ph, pw) in each row"""
    B, c, T, H, W = x.shape
    return x.view(B, c, T, H // 2, 2, W // 2, 2).permute(0, 2, 3, 5, 1, 4, 6).reshape(B, T * (H // 2) * (W // 2), c * 4)


def target_patches(x):
    """[B,16,T,H,W] -> [B,N,64], (ph, pw, c) in each row, as proj_out gives them"""
    B, c, T, H, W = x.shape
    return x.view(B, c, T, H // 2, 2, W // 2, 2).permute(0, 2, 3, 5, 4, 6, 1).reshape(B, T * (H // 2) * (W // 2), c * 4)


# ---------------------------------------------------------------- sampling


def unipc_tables(n, shift):
    u = torch.linspace(1, 1 / 1000, n + 1, dtype=torch.float64)[:-1]
    g = shift * u / (1 + (shift - 1) * u)
    if abs(g[0] - 1) < 1e-6:
        g[0] -= 1e-6
    return (1000 * g).long(), torch.cat([g.float(), torch.zeros(1)])


def unipc(model, x, n, shift):
    """model(x, timestep) -> velocity. UniPC, order 2, bh2, as Diffusers' scheduler with use_flow_sigmas."""
    ts, sg = unipc_tables(n, shift)
    al = 1 - sg
    lam = torch.log(al) - torch.log(sg)
    m, last, order_last = [], None, 0
    for i in range(n):
        v = model(x, ts[i]).float()
        x0 = x - sg[i] * v
        if i > 0:
            h = lam[i] - lam[i - 1]
            hh = -h
            E = torch.expm1(hh)
            if order_last == 1:
                upd = 0.5 * (x0 - m[-1])
            else:
                r = (lam[i - 2] - lam[i - 1]) / h
                D1 = (m[-2] - m[-1]) / r
                k1 = E / hh - 1
                b1, k2 = k1 / E, k1 / hh - 0.5
                b2 = 2 * k2 / E
                rho0 = (b1 - b2) / (1 - r)
                upd = rho0 * D1 + (b1 - rho0) * (x0 - m[-1])
            x = sg[i] / sg[i - 1] * last - al[i] * E * m[-1] - al[i] * E * upd
        m = (m + [x0])[-2:]
        last = x
        order = min(2, n - i, i + 1)
        if i == n - 1:
            x = x0
            break
        h = lam[i + 1] - lam[i]
        E = torch.expm1(-h)
        x = sg[i + 1] / sg[i] * last - al[i + 1] * E * m[-1]
        if order == 2:
            r = (lam[i - 1] - lam[i]) / h
            x = x - al[i + 1] * E * 0.5 * (m[-2] - m[-1]) / r
        order_last = order
    return x


def lightx2v_sigmas(n, shift):
    u = torch.tensor([(1000 - i * 1000 // n) / 1000 for i in range(n)] + [0.0])
    return shift * u / (1 + (shift - 1) * u)


def lightx2v(model, x, n, shift):
    """model(x, timestep) -> velocity. Euler's steps as LightX2V takes them, the timesteps not rounded."""
    sg = lightx2v_sigmas(n, shift).tolist()
    for s, to in zip(sg, sg[1:]):
        x = x + (to - s) * model(x, 1000 * s).float()
    return x


def condition(cond):
    """cond [B,16,T,H,W] normalised latents -> [B,20,T,H,W] with the first-frame mask."""
    mask = torch.zeros_like(cond[:, :4])
    mask[:, :, 0] = 1
    return torch.cat([mask, cond], 1)
