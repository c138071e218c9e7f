"""Small PyTorch networks of the usual kinds. `torch_gradients.py` compares their gradients."""

import torch
from torch import nn
from torch.nn import functional as F

from torch_models import Case, Formula, Residual, bools, floats, ints, mlp


def rotated(x, cos, sin):
    """Rotary position embedding."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Causal(nn.Module):
    """Self-attention by scaled_dot_product_attention: causal, or with a mask of the keys."""

    def __init__(self, width, heads, kv_heads=None, bias=True):
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads or heads, width // heads
        self.q = nn.Linear(width, width, bias=bias)
        self.k, self.v = (nn.Linear(width, self.kv_heads * self.size, bias=bias) for _ in range(2))
        self.out = nn.Linear(width, width, bias=bias)
    def forward(self, x, keep=None, rope=None):
        batch, length, width = x.shape
        split = lambda t: t.view(batch, length, -1, self.size).transpose(1, 2)
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        if rope:
            q, k = rotated(q, *rope), rotated(k, *rope)
        groups = self.heads // self.kv_heads
        if groups > 1:
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        mask = None if keep is None else keep[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=keep is None)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Gpt2(nn.Module):
    """Token and position embeddings, pre-norm blocks, a head tied to the embeddings; with its own loss if asked."""

    def __init__(self, words=37, length=8, width=16, heads=2, layers=2, own_loss=False):
        super().__init__()
        self.token, self.position = nn.Embedding(words, width), nn.Embedding(length, width)
        block = lambda: nn.ModuleList(
            [nn.LayerNorm(width), Causal(width, heads), nn.LayerNorm(width), mlp(lambda: nn.GELU("tanh"), width, 4 * width, width)]
        )
        self.blocks = nn.ModuleList([block() for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.own_loss = own_loss

    def forward(self, tokens):
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        for norm1, attend, norm2, feed in self.blocks:
            x = x + attend(norm1(x))
            x = x + feed(norm2(x))
        logits = F.linear(self.norm(x), self.token.weight)
        if not self.own_loss:
            return logits
        return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


class Bert(nn.Module):
    """Three embeddings, post-norm blocks under a mask of the keys, a classifier of the first token."""

    def __init__(self, words=31, length=7, width=16, heads=4, layers=2, classes=3):
        super().__init__()
        self.token, self.position, self.kind = nn.Embedding(words, width), nn.Embedding(length, width), nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        block = lambda: nn.ModuleList(
            [Causal(width, heads), nn.LayerNorm(width), mlp(nn.GELU, width, 2 * width, width), nn.LayerNorm(width)]
        )
        self.blocks = nn.ModuleList([block() for _ in range(layers)])
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, tokens, kinds, keep):
        x = self.norm(self.token(tokens) + self.position(torch.arange(tokens.shape[1])) + self.kind(kinds))
        for attend, norm1, feed, norm2 in self.blocks:
            x = norm1(x + attend(x, keep))
            x = norm2(x + feed(x))
        return self.head(torch.tanh(self.pool(x[:, 0])))


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


class SwiGlu(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Llama(nn.Module):
    """RMS norms, rotated grouped-query attention, SwiGLU."""

    def __init__(self, words=29, length=6, width=16, layers=2):
        super().__init__()
        self.token = nn.Embedding(words, width)
        block = lambda: nn.ModuleList(
            [RmsNorm(width), Causal(width, 4, 2, bias=False), RmsNorm(width), SwiGlu(width, 40)]
        )
        self.blocks = nn.ModuleList([block() for _ in range(layers)])
        self.norm, self.head = RmsNorm(width), nn.Linear(width, words, bias=False)
        size = width // 4
        angles = torch.outer(torch.arange(length).float(), 10000 ** (-torch.arange(0, size, 2) / size))
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", angles.sin().repeat(1, 2))

    def forward(self, tokens):
        x = self.token(tokens)
        for norm1, attend, norm2, feed in self.blocks:
            x = x + attend(norm1(x), rope=(self.cos, self.sin))
            x = x + feed(norm2(x))
        return self.head(self.norm(x))


class Vit(nn.Module):
    """Patches by a strided convolution, a class token, PyTorch's own multi-head attention."""

    def __init__(self, width=16, heads=2, patches=9, classes=5):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, patches + 1, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed, self.head = mlp(nn.GELU, width, 2 * width, width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        y = self.norm1(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        x = x + self.feed(self.norm2(x))
        return self.head(self.norm3(x)[:, 0])


class ResNet(nn.Module):
    """A stem with a max pool, a plain block, a block with stride and projection, a global mean."""

    def __init__(self, classes=4, norm=nn.BatchNorm2d):
        super().__init__()
        conv = lambda a, b, k, s: nn.Conv2d(a, b, k, stride=s, padding=k // 2, bias=False)
        self.stem = nn.Sequential(conv(3, 8, 3, 1), norm(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.plain = nn.Sequential(conv(8, 8, 3, 1), norm(8), nn.ReLU(), conv(8, 8, 3, 1), norm(8))
        self.down = nn.Sequential(conv(8, 12, 3, 2), norm(12), nn.ReLU(), conv(12, 12, 3, 1), norm(12))
        self.project = nn.Sequential(conv(8, 12, 1, 2), norm(12))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(12, classes)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.plain(x))
        x = F.relu(self.project(x) + self.down(x))
        return self.head(self.pool(x).flatten(1))


class UNet(nn.Module):
    """One level down and up, with a skip connection."""

    def __init__(self, up=None):
        super().__init__()
        both = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(2, b), nn.ReLU())
        self.down, self.bottom, self.join = both(2, 8), both(8, 12), both(16, 8)
        self.up = up or nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        skip = self.down(x)
        y = self.up(self.bottom(F.max_pool2d(skip, 2)))
        return self.out(self.join(torch.cat([skip, y], dim=1)))


class LstmLm(nn.Module):
    def __init__(self, words=23, width=10, hidden=12):
        super().__init__()
        self.token, self.inner = nn.Embedding(words, width), nn.LSTM(width, hidden, 2, batch_first=True)
        self.head = nn.Linear(hidden, words)

    def forward(self, tokens):
        return self.head(self.inner(self.token(tokens))[0])


class Attend(nn.Module):
    """PyTorch's attention with a mask that is an input."""

    def __init__(self):
        super().__init__()
        self.attend = Causal(16, 4)

    def forward(self, x, keep):
        return self.attend(x, keep)


def added_mask(m, x, mask):
    q, k, v = ((x @ w)[:, None] for w in (m.q, m.k, m.v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.5)


def encoder():
    """PyTorch's own encoder layer; in training mode, because it runs other code otherwise."""
    return nn.Sequential(nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True), nn.Linear(16, 3))


CASES = [
    Case("sdpa_causal", lambda: Causal(16, 4), {"x": floats(2, 6, 16)}, "mse"),
    Case("sdpa_masked", Attend, {"x": floats(2, 6, 16), "keep": bools(2, 6)}, "mse"),
    Case("sdpa_added_mask", lambda: Formula(added_mask, q=(8, 6), k=(8, 6), v=(8, 5)), {"x": floats(2, 4, 8), "mask": floats(4, 4)}, "mse"),
    Case("sdpa_grouped", lambda: Causal(16, 4, 2), {"x": floats(2, 6, 16)}, "mse"),
    Case("transformer_encoder", encoder, {"x": floats(2, 5, 16)}, "cross_entropy", train=True),
    Case("gpt2", Gpt2, {"tokens": ints(37, 2, 8)}, "cross_entropy"),
    Case("gpt2_own_loss", lambda: Gpt2(own_loss=True), {"tokens": ints(37, 2, 8)}, "-"),
    Case("bert", Bert, {"tokens": ints(31, 3, 7), "kinds": ints(2, 3, 7), "keep": bools(3, 7)}, "cross_entropy"),
    Case("llama", Llama, {"tokens": ints(29, 2, 6)}, "cross_entropy"),
    Case("vit", Vit, {"x": floats(2, 3, 12, 12)}, "cross_entropy", optimize=False),
    Case("resnet", ResNet, {"x": floats(4, 3, 12, 12)}, "cross_entropy", train=True, train_mode_export=True),
    Case("unet", UNet, {"x": floats(2, 2, 8, 8)}, "bce"),
    Case("unet_upsampled", lambda: UNet(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(12, 8, 3, padding=1))), {"x": floats(2, 2, 8, 8)}, "mse"),
    Case("lstm_lm", LstmLm, {"tokens": ints(23, 3, 3)}, "cross_entropy"),
]
