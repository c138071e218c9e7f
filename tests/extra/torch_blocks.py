"""Blocks and losses that less usual PyTorch networks are made of; `torch_gradients.py` compares their gradients."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from torch_models import Bag, Case, Formula, bools, floats, ints, mlp


class ConvNext(nn.Module):
    """A depthwise convolution, then everything else with channels last; a scale for each channel."""

    def __init__(self, width=6):
        super().__init__()
        self.mix, self.norm = nn.Conv2d(width, width, 5, padding=2, groups=width), nn.LayerNorm(width)
        self.feed, self.scale = mlp(nn.GELU, width, 4 * width, width), nn.Parameter(torch.full((width,), 0.1))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        x = x + (self.scale * self.feed(y)).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class MobileNet(nn.Module):
    """An inverted residual with squeeze and excitation."""

    def __init__(self, width=4, wide=12):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide))
        narrow = [nn.Conv2d(wide, 4, 1), nn.ReLU(), nn.Conv2d(4, wide, 1)]
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), *narrow, nn.Hardsigmoid())
        self.project = nn.Sequential(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        y = F.hardswish(self.depth(self.expand(x)))
        x = x + self.project(y * self.gate(y))
        return self.head(x.mean((2, 3)))


class DenseNet(nn.Module):
    """Each layer reads all earlier ones."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(3)])
        self.head = nn.Linear(15, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, F.relu(layer(x))], dim=1)
        return self.head(F.avg_pool2d(x, 2).amax((2, 3)))


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates, and a sum of skips."""

    def __init__(self, width=6):
        super().__init__()
        self.filters = nn.ModuleList([nn.Conv1d(width, width, 2, dilation=2**i) for i in range(3)])
        self.gates = nn.ModuleList([nn.Conv1d(width, width, 2, dilation=2**i) for i in range(3)])
        self.head = nn.Conv1d(width, 2, 1)

    def forward(self, x):
        skips = 0
        for i, (f, g) in enumerate(zip(self.filters, self.gates)):
            y = F.pad(x, (2**i, 0))
            y = torch.tanh(f(y)) * torch.sigmoid(g(y))
            skips, x = skips + y, x + y
        return self.head(F.relu(skips))


class TextCnn(nn.Module):
    """Convolutions of several widths over words, the maximum over time."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.layers = nn.ModuleList([nn.Conv1d(6, 4, k) for k in (2, 3)])
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.table(tokens).transpose(1, 2)
        return self.head(torch.cat([F.relu(layer(x)).amax(2) for layer in self.layers], dim=1))


class Swin(nn.Module):
    """Attention in shifted windows with a table of relative positions."""

    def __init__(self, width=8, heads=2, window=2):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = at[:, :, None] - at[:, None, :] + window - 1
        self.register_buffer("apart", apart[0] * (2 * window - 1) + apart[1])

    def forward(self, x):
        b, h, w, c = x.shape
        n, s = self.window, self.window // 2
        y = torch.roll(x, (-s, -s), (1, 2)).view(b, h // n, n, w // n, n, c).transpose(2, 3).reshape(-1, n * n, c)
        q, k, v = self.qkv(y).reshape(-1, n * n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.apart.view(-1)].view(n * n, n * n, -1).permute(2, 0, 1)
        y = torch.softmax(q @ k.transpose(-1, -2) * 0.5 + bias, -1) @ v
        y = self.out(y.transpose(1, 2).reshape(-1, n * n, c))
        y = y.view(b, h // n, w // n, n, n, c).transpose(2, 3).reshape(b, h, w, c)
        return x + torch.roll(y, (s, s), (1, 2))


class Experts(nn.Module):
    """The two best of four experts for each token, weighted by their gates."""

    def __init__(self, width=6, hidden=8):
        super().__init__()
        self.gate = nn.Linear(width, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, width, hidden)), nn.Parameter(torch.randn(4, hidden, width))

    def forward(self, x):
        best, which = self.gate(x).topk(2, -1)
        weights = torch.zeros(x.shape[0], 4, dtype=x.dtype).scatter(1, which, torch.softmax(best, -1))
        y = torch.einsum("neh,ehd->ned", F.silu(torch.einsum("nd,edh->neh", x, self.up)), self.down)
        return (y * weights[..., None]).sum(1)


class GraphConv(nn.Module):
    """Messages along edges, summed at their ends and divided by how many there are."""

    def __init__(self):
        super().__init__()
        self.first, self.own, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, start, end):
        x = F.relu(self.first(x))
        total = torch.zeros_like(x).index_add(0, end, x[start])
        count = torch.zeros(x.shape[0], dtype=x.dtype).index_add(0, end, torch.ones(end.shape[0], dtype=x.dtype))
        return self.head(F.relu(self.own(x) + total / count.clamp(min=1)[:, None]))


class DeepFm(nn.Module):
    """Pairs of categorical features by sums and squares, beside a perceptron."""

    def __init__(self):
        super().__init__()
        self.table, self.weight = nn.Embedding(30, 4), nn.Embedding(30, 1)
        self.deep = mlp(nn.ReLU, 12, 8, 1)

    def forward(self, fields):
        e = self.table(fields)
        pairs = 0.5 * (e.sum(1) ** 2 - (e**2).sum(1)).sum(1, keepdim=True)
        return self.weight(fields).sum(1) + pairs + self.deep(e.flatten(1))


class Vae(nn.Module):
    """A variational autoencoder's loss; the noise is an input."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = mlp(nn.Tanh, 10, 12, 6), mlp(nn.Tanh, 3, 12, 10)

    def forward(self, x, noise):
        mean, log_variance = self.encode(x).chunk(2, -1)
        y = self.decode(mean + torch.exp(0.5 * log_variance) * noise)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1).mean()
        return F.mse_loss(y, x, reduction="sum") / x.shape[0] + divergence


class Clip(nn.Module):
    """Two towers whose outputs are compared pair by pair, with a temperature that is trained."""

    def __init__(self):
        super().__init__()
        self.left, self.right = mlp(nn.ReLU, 8, 12, 5), mlp(nn.GELU, 6, 12, 5)
        self.temperature = nn.Parameter(torch.tensor(1.3))

    def forward(self, x, y):
        a, b = F.normalize(self.left(x), dim=-1), F.normalize(self.right(y), dim=-1)
        scores = a @ b.T * self.temperature.exp()
        same = torch.arange(x.shape[0])
        return (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)) / 2


class Translate(nn.Module):
    """An encoder's final state starts a decoder, which attends to the encoder's outputs."""

    def __init__(self):
        super().__init__()
        self.table, self.encode = nn.Embedding(15, 6), nn.GRU(6, 8, batch_first=True)
        self.decode, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(16, 15)

    def forward(self, source, target):
        memory, state = self.encode(self.table(source))
        y, _ = self.decode(self.table(target), state)
        context = torch.softmax(y @ memory.transpose(1, 2), -1) @ memory
        return self.head(torch.cat([y, context], -1))


class Nerf(nn.Module):
    """Sines and cosines of coordinates, and a skip connection by concatenation."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(28, 16), nn.Linear(16, 4)
        self.register_buffer("octaves", 2.0 ** torch.arange(2) * math.pi)

    def forward(self, x):
        angles = (x[..., None] * self.octaves).flatten(-2)
        code = torch.cat([angles.sin(), angles.cos()], -1)
        h = F.relu(self.first(code))
        return self.head(F.relu(self.second(torch.cat([h, code], -1))))


class Scan(nn.Module):
    """A linear recurrence with decays from the input, unrolled."""

    def __init__(self, width=5):
        super().__init__()
        self.decay, self.value, self.out = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        a, b, h, all_h = torch.sigmoid(self.decay(x)), self.value(x), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = a[:, t] * h + (1 - a[:, t]) * b[:, t]
            all_h.append(h)
        return self.out(F.silu(torch.stack(all_h, 1)))


def linear_attention(m, x):
    """Causal attention without softmax: sums over time."""
    q, k, v = F.elu(x @ m.q) + 1, F.elu(x @ m.k) + 1, x @ m.v
    state = (k[..., :, None] * v[..., None, :]).cumsum(1)
    return (q[..., None, :] @ state)[..., 0, :] / (q * k.cumsum(1)).sum(-1, keepdim=True)


def gemma_attention(m, x):
    """Scores capped by tanh, a window of keys, a slope for the distance."""
    at = torch.arange(x.shape[1])
    apart = at[:, None] - at[None, :]
    scores = 5 * torch.tanh((x @ m.q) @ (x @ m.k).transpose(1, 2) / 5) - 0.25 * apart.to(x.dtype)
    return torch.softmax(scores.masked_fill((apart < 0) | (apart > 2), float("-inf")), -1) @ (x @ m.v)


def pairs_rotated(m, x):
    """Rotary embedding of neighbouring pairs."""
    h = x @ m.w
    angles = torch.arange(x.shape[1]).to(x.dtype)[:, None] * torch.tensor([1.0, 0.1, 0.01]).to(x.dtype)
    a, b = h[..., ::2], h[..., 1::2]
    return torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1).flatten(-2)


def weight_norm(m, x):
    return x @ (m.v / m.v.norm(dim=0, keepdim=True) * m.g) + m.b


def dice(m, x, mask):
    p = torch.sigmoid(x @ m.w)
    return 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.to(p.dtype).sum() + 1)


def triplet(m, a, b, c):
    return F.triplet_margin_loss(a @ m.w, b @ m.w, c @ m.w, margin=2.0)


def resampled(m, x, at):
    return F.grid_sample(torch.einsum("bchw,co->bohw", x, m.w), torch.tanh(at + m.b), align_corners=False)


def hyperbolic(m, x):
    h = x @ m.w
    return torch.atan(h) + torch.sinh(0.3 * h) * torch.cosh(m.b) + torch.expm1(0.1 * h)


def powers(m, x):
    return (x.abs() + 0.5) ** m.p + (m.p.abs() + 0.1) ** 3 + 2.0**m.p + torch.fmod(x, 0.7) * m.p


def argmax_pick(m, x):
    h = x @ m.w
    return h.gather(1, h.argmax(1, keepdim=True)) + h.min(1)[0][:, None]


def index_put(m, x, at):
    return torch.zeros(7, 4, dtype=x.dtype).index_put((at,), x @ m.w, accumulate=True)


def scatter_max(m, x, at):
    return torch.full((5, 3), -9.0, dtype=x.dtype).scatter_reduce(1, at, x @ m.w, "amax")


def focal(m, x, labels):
    logs = torch.log_softmax(x @ m.w, -1).gather(1, labels[:, None])
    return -((1 - logs.exp()) ** 2 * logs).mean()


class Decoder(nn.Module):
    """PyTorch's own decoder layer, with a causal mask and norms in front."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, x, memory):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layer(x, memory, tgt_mask=mask.to(x.dtype))


def formula(name, function, shapes, inputs, loss="mse", **options):
    return Case(name, lambda: Formula(function, **shapes), inputs, loss, **options)


CASES = [
    Case("convnext", ConvNext, {"x": floats(2, 6, 7, 7)}, "cross_entropy"),
    Case("mobilenet", MobileNet, {"x": floats(4, 4, 6, 6)}, "cross_entropy", train=True, train_mode_export=True),
    Case("densenet", DenseNet, {"x": floats(2, 3, 6, 6)}, "cross_entropy"),
    Case("wavenet", WaveNet, {"x": floats(2, 6, 11)}, "mse"),
    Case("text_cnn", TextCnn, {"tokens": ints(20, 3, 7)}, "cross_entropy"),
    Case("swin", Swin, {"x": floats(2, 4, 4, 8)}, "mse", optimize=False),
    Case("experts", Experts, {"x": floats(5, 6)}, "mse"),
    Case("graph_conv", GraphConv, {"x": floats(7, 5), "start": ints(7, 12), "end": ints(7, 12)}, "cross_entropy"),
    Case("deep_fm", DeepFm, {"fields": ints(30, 6, 3)}, "bce"),
    Case("vae", Vae, {"x": floats(4, 10), "noise": floats(4, 3)}, "-"),
    Case("clip", Clip, {"x": floats(6, 8), "y": floats(6, 6)}, "-", optimize=False),
    Case("translate", Translate, {"source": ints(15, 2, 4), "target": ints(15, 2, 3)}, "cross_entropy"),
    Case("nerf", Nerf, {"x": floats(5, 3)}, "mse"),
    Case("scan", Scan, {"x": floats(2, 4, 5)}, "mse"),
    Case("decoder", Decoder, {"x": floats(2, 4, 8), "memory": floats(2, 3, 8)}, "mse", train=True),
    Case("tied_older_exporter", lambda: Bag(30, 12, 30, tied=True), {"tokens": ints(30, 6, 9)}, "cross_entropy", train_mode_export=True),
    formula("linear_attention", linear_attention, {"q": (6, 4), "k": (6, 4), "v": (6, 5)}, {"x": floats(2, 5, 6)}),
    formula("gemma_attention", gemma_attention, {"q": (6, 4), "k": (6, 4), "v": (6, 5)}, {"x": floats(2, 6, 6)}),
    formula("rope_pairs", pairs_rotated, {"w": (5, 6)}, {"x": floats(2, 4, 5)}),
    formula("weight_norm", weight_norm, {"v": (6, 4), "g": (4,), "b": (4,)}, {"x": floats(5, 6)}, optimize=False),
    formula("dice_loss", dice, {"w": (6, 8)}, {"x": floats(5, 6), "mask": bools(5, 8)}, "-"),
    formula("triplet_loss", triplet, {"w": (6, 4)}, {"a": floats(5, 6), "b": floats(5, 6), "c": floats(5, 6)}, "-"),
    formula("focal_loss", focal, {"w": (6, 4)}, {"x": floats(7, 6), "labels": ints(4, 7)}, "-"),
    formula("detached", lambda m, x: torch.tanh(x @ m.w) * (x @ m.w).detach(), {"w": (6, 4)}, {"x": floats(5, 6)}, differs="ONNX has no detach"),
    formula("rounded", lambda m, x: (x @ m.w).round() * (x @ m.w) + (x @ m.w).floor(), {"w": (6, 4)}, {"x": floats(5, 6)}),
    formula("unfold", lambda m, x: F.unfold(x, 3, padding=1).transpose(1, 2) @ m.w, {"w": (18, 4)}, {"x": floats(2, 2, 5, 5)}),
    formula("hyperbolic", hyperbolic, {"w": (6, 4), "b": (4,)}, {"x": floats(5, 6)}, optimize=False),
    formula("powers", powers, {"p": (6,)}, {"x": floats(5, 6)}, optimize=False),
    formula("sorted", lambda m, x: (x @ m.w).sort(-1)[0] * torch.arange(4), {"w": (6, 4)}, {"x": floats(5, 6)}),
    formula("argmax_pick", argmax_pick, {"w": (6, 4)}, {"x": floats(5, 6)}),
    formula("one_hot", lambda m, labels: F.one_hot(labels, 5).to(m.w.dtype) @ m.w, {"w": (5, 4)}, {"labels": ints(5, 7)}),
    formula("bilinear", lambda m, x, y: F.bilinear(x, y, m.w, m.b), {"w": (3, 4, 5), "b": (3,)}, {"x": floats(6, 4), "y": floats(6, 5)}),
    formula("diagonal", lambda m, x: ((x @ m.w) @ (x @ m.w).T).diagonal() + torch.linalg.norm(x @ m.w, dim=1), {"w": (6, 4)}, {"x": floats(5, 6)}),
    formula("index_put", index_put, {"w": (6, 4)}, {"x": floats(5, 6), "at": ints(7, 5)}),
]

# Models that our importer may refuse: they are skipped then. One that it takes belongs into the list above.
COMING = [
    formula("resampled", resampled, {"w": (3, 4), "b": (2,)}, {"x": floats(2, 3, 5, 5), "at": floats(2, 4, 4, 2)}),
    formula("scatter_max", scatter_max, {"w": (6, 4)}, {"x": floats(5, 6), "at": ints(3, 5, 4)}),
]
