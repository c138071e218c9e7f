"""Small PyTorch models whose operations our importer knows. `torch_gradients.py` compares their gradients."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Case(NamedTuple):
    name: str
    build: Callable[[], nn.Module]
    # Makers of random inputs, by the names of the exported model's inputs.
    inputs: dict
    # `cross_entropy`, `mse` or `bce` on the output, or `-` if the output is a scalar loss.
    loss: str
    # Is the model run in training mode?
    train: bool = False
    # Is it exported in training mode? Only PyTorch's older exporter knows what that is.
    train_mode_export: bool = False
    # Is the first extent of the inputs exported under a name?
    dynamic: bool = False
    # Are the weights made all different? If not, the exporter must keep them under their names.
    distinct: bool = True
    # Does the exporter simplify the model? It takes expressions of weights alone for constants then.
    optimize: bool = True
    # Why our gradients are known to differ.
    differs: str = ""


def floats(*shape):
    return lambda generator: torch.randn(shape, generator=generator)


def ints(below, *shape):
    return lambda generator: torch.randint(below, shape, generator=generator)


def bools(*shape):
    """Mostly true, and true in the first place of every row: a mask that leaves something."""

    def make(generator):
        out = torch.rand(shape, generator=generator) < 0.7
        out[..., 0] = True
        return out

    return make


class Formula(nn.Module):
    """A function of a few parameters, given by their shapes, and the inputs."""

    def __init__(self, function, **shapes):
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / math.sqrt(max(shape, default=1))))

    def forward(self, *inputs):
        return self.function(self, *inputs)


class Residual(nn.Module):
    """x + f(x)"""

    def __init__(self, *layers):
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.inner(x)


def mlp(activation, *widths):
    layers = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def deep_mlp():
    block = lambda: Residual(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    return nn.Sequential(nn.Linear(10, 16), *[block() for _ in range(4)], nn.Linear(16, 3))


class Attention(nn.Module):
    """Multi-head self-attention written with matrix products, causal or not."""

    def __init__(self, width, heads, length=0):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("keep", torch.ones(length, length, dtype=torch.bool).tril() if length else None)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (t.reshape(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        if self.keep is not None:
            scores = torch.where(self.keep, scores, -1e9)
        joined = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(batch, length, width)
        return self.out(joined)


class Bag(nn.Module):
    """The mean of a text's embeddings, classified; with `tied`, by comparison with the same embeddings."""

    def __init__(self, words, width, classes, tied=False):
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.hidden = nn.Linear(width, width)
        self.head = None if tied else nn.Linear(width, classes)

    def forward(self, tokens):
        x = torch.tanh(self.hidden(self.table(tokens).mean(1)))
        return self.head(x) if self.head else x @ self.table.weight.T


class Twice(nn.Module):
    """The same layer used twice: its gradient is a sum."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class Steps(nn.Module):
    """Whole-numbered weights in front of functions that have kinks at whole numbers, all used exactly there."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.p = nn.Parameter(torch.randint(-1, 2, (6, 5)).float())
        self.q = nn.Parameter(torch.randint(-1, 2, (6, 5)).float())

    def forward(self, x):
        return (self.function(self.p, self.q) * x).sum()


def elementwise(m, x):
    a = torch.sqrt((x * m.w) ** 2 + 1)
    b = F.gelu(x + m.w, approximate="tanh") * torch.rsqrt(a)
    c = torch.abs(torch.sin(b)) + torch.cos(x * m.w) / a - torch.maximum(x, m.w) * torch.minimum(b, 0.5 * a)
    return torch.where(x > m.w, c, torch.erf(b)) - 1 / a + torch.log(1 + torch.exp(-b)) + a**1.5


def reductions(m, x):
    h = torch.exp(0.3 * (x @ m.w))
    top = h / h.amax(-1, keepdim=True) + h.amin(1, keepdim=True)
    return top.mean((1, 2)) + torch.log(h.sum(-1)).sum(1)


def variance(m, x):
    d = x @ m.w
    d = d - d.mean(-1, keepdim=True)
    return d / torch.sqrt((d * d).mean(-1, keepdim=True) + 1e-5) * m.s + m.t


def pieces(m, x):
    h = x @ m.w
    a, b, c = h[:, 1:9:2], h[:, -6:], h[:, 3]
    first, second = torch.split(torch.tanh(h), [5, 7], dim=1)
    return torch.cat([torch.tanh(a), b * 2, c[:, None] * first, second, second[:, :1]], dim=1)


def shapes(m, x):
    h = (x @ m.w).reshape(4, 3, 2, 4).permute(2, 0, 3, 1)
    u, v = h.unbind(0)
    wide = torch.stack([u, v * u], dim=1).flatten(1, 2)
    return wide.transpose(1, 2)[:, None].squeeze(1) + m.b.unsqueeze(0).expand(4, 3, 8)


def products(m, x, y):
    left = x @ m.w
    return (left.transpose(-1, -2) @ y) @ (y.transpose(-1, -2) @ left) @ m.c


def broadcasts(m, x):
    return F.softplus(x * m.column) + torch.sigmoid(m.row - x) * m.one + m.outer


def picks(m, rows, columns):
    h = F.embedding(rows, m.table)
    return torch.tanh(h @ m.w).index_select(1, columns)


def masked(m, x, keep):
    h = x @ m.w
    return torch.where(keep, h, torch.tanh(h) * 0.1) + torch.where((h > 0) & ~keep, h * h, 0.0)


def distance_loss(m, x, target):
    d = torch.tanh(x @ m.w) @ m.v - target
    return (d * d).sum(-1).sqrt().mean() + 0.01 * (m.w * m.w).sum()


def extremes(p, q):
    return torch.maximum(p, q) + 0.5 * torch.minimum(p, q)


EXPANDED = "the exporter expands a parameter and stores the result, whose copies are then trained each for itself"

CASES = [
    Case("mlp_relu", lambda: mlp(nn.ReLU, 20, 48, 32, 7), {"x": floats(8, 20)}, "cross_entropy", dynamic=True),
    Case("mlp_gelu", lambda: mlp(nn.GELU, 12, 24, 24, 5), {"x": floats(8, 12)}, "mse", dynamic=True),
    Case("mlp_gelu_tanh", lambda: mlp(lambda: nn.GELU("tanh"), 12, 24, 5), {"x": floats(8, 12)}, "mse"),
    Case("mlp_tanh", lambda: mlp(nn.Tanh, 12, 24, 24, 1), {"x": floats(16, 12)}, "bce"),
    Case("mlp_sigmoid", lambda: mlp(nn.Sigmoid, 12, 24, 24, 6), {"x": floats(8, 12)}, "bce"),
    Case("mlp_softplus", lambda: mlp(nn.Softplus, 12, 24, 4), {"x": floats(8, 12)}, "mse"),
    Case("mlp_silu", lambda: mlp(nn.SiLU, 12, 24, 4), {"x": floats(8, 12)}, "cross_entropy"),
    Case("mlp_deep", deep_mlp, {"x": floats(8, 10)}, "cross_entropy"),
    Case("no_bias", lambda: nn.Sequential(nn.Linear(9, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False)), {"x": floats(4, 9)}, "mse"),
    Case("token_labels", lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 9)), {"x": floats(3, 5, 6)}, "cross_entropy"),
    Case("elementwise", lambda: Formula(elementwise, w=(5,)), {"x": floats(8, 5)}, "mse"),
    Case("broadcasts", lambda: Formula(broadcasts, column=(3, 1), row=(4,), one=(1, 1, 1), outer=(1, 3, 1)), {"x": floats(5, 3, 4)}, "mse"),
    Case("reductions", lambda: Formula(reductions, w=(6, 7)), {"x": floats(4, 5, 6)}, "mse"),
    Case("variance", lambda: Formula(variance, w=(6, 10), s=(10,), t=(10,)), {"x": floats(7, 6)}, "mse"),
    Case("layer_norm", lambda: nn.Sequential(nn.Linear(10, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4)), {"x": floats(8, 10)}, "cross_entropy"),
    Case("layer_norm_no_shift", lambda: nn.Sequential(nn.Linear(10, 16), nn.LayerNorm(16, bias=False, eps=1e-2), nn.Linear(16, 4)), {"x": floats(8, 10)}, "mse"),
    Case("softmax_head", lambda: nn.Sequential(nn.Linear(10, 6), nn.Softmax(-1)), {"x": floats(8, 10)}, "mse"),
    Case("log_softmax_head", lambda: nn.Sequential(nn.Linear(10, 6), nn.LogSoftmax(-1)), {"x": floats(8, 10)}, "mse"),
    Case("softmax_columns", lambda: nn.Sequential(nn.Linear(10, 6), nn.Softmax(1), nn.Linear(6, 3, bias=False), nn.LogSoftmax(0)), {"x": floats(2, 5, 10)}, "mse"),
    Case("embedding_mean", lambda: Bag(30, 12, 4), {"tokens": ints(30, 6, 9)}, "cross_entropy"),
    Case("tied_embedding", lambda: Bag(30, 12, 30, tied=True), {"tokens": ints(30, 6, 9)}, "cross_entropy"),
    Case("attention", lambda: nn.Sequential(Residual(nn.LayerNorm(16), Attention(16, 4)), nn.Linear(16, 5)), {"x": floats(2, 6, 16)}, "cross_entropy"),
    Case("causal_attention", lambda: nn.Sequential(Residual(nn.LayerNorm(16), Attention(16, 2, 7)), nn.Linear(16, 5)), {"x": floats(2, 7, 16)}, "mse"),
    Case("pieces", lambda: Formula(pieces, w=(6, 12)), {"x": floats(5, 6)}, "mse"),
    Case("shapes", lambda: Formula(shapes, w=(5, 24), b=(3, 8)), {"x": floats(4, 5)}, "mse", optimize=False),
    Case("expanded", lambda: Formula(lambda m, x: x @ m.w + m.b.expand(4, 3), w=(5, 3), b=(3,)), {"x": floats(4, 5)}, "mse", differs=EXPANDED),
    Case("products", lambda: Formula(products, w=(6, 5), c=(5, 2)), {"x": floats(2, 3, 4, 6), "y": floats(2, 3, 4, 3)}, "mse"),
    Case("picks", lambda: Formula(picks, table=(11, 6), w=(6, 8)), {"rows": ints(11, 9), "columns": ints(8, 5)}, "mse"),
    Case("masked", lambda: Formula(masked, w=(6, 8)), {"x": floats(5, 6), "keep": bools(5, 8)}, "mse"),
    Case("twice", Twice, {"x": floats(6, 12)}, "cross_entropy"),
    Case("own_loss", lambda: Formula(distance_loss, w=(6, 8), v=(8, 3)), {"x": floats(5, 6), "target": floats(5, 3)}, "-", optimize=False),
    Case("kink_relu", lambda: Steps(lambda p, q: F.relu(p) * q), {"x": floats(6, 5)}, "-", distinct=False, optimize=False),
    Case("kink_abs", lambda: Steps(lambda p, q: p.abs() + q), {"x": floats(6, 5)}, "-", distinct=False, optimize=False),
    Case("kink_maximum", lambda: Steps(extremes), {"x": floats(6, 5)}, "-", distinct=False, optimize=False),
    Case("kink_amax", lambda: Steps(lambda p, q: p.amax(1, keepdim=True) * q.amin(0)), {"x": floats(6, 5)}, "-", distinct=False, optimize=False),
]
