"""PyTorch models of one layer, activation or loss each. `torch_gradients.py` compares their gradients."""

import torch
from torch import nn
from torch.nn import functional as F

from torch_models import Case, Formula, bools, floats, ints, mlp
from torch_networks import RmsNorm


def head(features, classes, *layers):
    """Layers, then a classifier of everything that they yield."""
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))


class Recurrent(nn.Module):
    """A recurrent layer's outputs, or with `last` its final states, classified."""

    def __init__(self, inner, last=False):
        super().__init__()
        self.inner, self.last = inner, last
        self.head = nn.Linear(inner.hidden_size * (1 if last else 1 + inner.bidirectional), 4)

    def forward(self, x):
        y, state = self.inner(x)
        if self.last:
            y = sum(state) if isinstance(state, tuple) else state
        return self.head(y)


def filtered(m, x):
    """Masks made in the model: masked_fill, tril, clamp."""
    h = x @ m.w
    return h.masked_fill(h < -0.5, 0.25).clamp(-1, 1) @ torch.tril(m.w @ m.w.T)


def spread(m, x):
    h = x @ m.w
    return torch.logsumexp(h, -1) + h.var(-1) + h.std(-1, correction=0) + h.norm(dim=-1) + h.cumsum(-1)[:, 2] + h.prod(-1)


def picked_labels(m, x, labels):
    """A cross entropy spelled out with gather."""
    return -torch.log_softmax(x @ m.w, -1).gather(1, labels[:, None]).mean()


def picks(m, rows, columns):
    return torch.tanh(m.table[rows] @ m.w)[:, columns]


def products(m, x, v):
    left = m.a @ x  # [5, 4] @ [2, 3, 4, 6]
    right = left @ m.b  # @ [3, 6, 5]
    return (right.transpose(-1, -2) @ right) @ m.c @ v


def einsums(m, x, y):
    return torch.einsum("bij,jk,bkl->bil", x, m.w, y)


def flow(m, x):
    """Numbers in the file that nobody trains, a parameter without extents."""
    weights = torch.tensor([0.5, 1.5, 2.5])
    return torch.tanh(x @ m.w) * weights * m.gain


def with_labels(function):
    return lambda m, x, labels: function(x @ m.w, labels)


def conv(name, layer, shape, features, train=False):
    build = lambda: head(features, 3, layer(), nn.ReLU())
    return Case(name, build, {"x": floats(*shape)}, "cross_entropy", train=train, train_mode_export=train)


def recurrent(name, layer, last=False, optimize=True):
    return Case(name, lambda: Recurrent(layer(), last), {"x": floats(3, 3, 6)}, "cross_entropy", optimize=optimize)


def activation(name, layer):
    return Case(name, lambda: mlp(layer, 10, 16, 3), {"x": floats(8, 10)}, "mse")


def in_model(name, function, label, differs=""):
    build = lambda: Formula(with_labels(function), w=(10, 5))
    return Case(name, build, {"x": floats(8, 10), "labels": label}, "-", differs=differs)


PADDING = "the file does not say that a row of the table is padding"

CASES = [
    # Convolutions.
    conv("conv1d", lambda: nn.Conv1d(4, 6, 3), (3, 4, 11), 54),
    conv("conv1d_dilated", lambda: nn.Conv1d(4, 6, 3, dilation=2, padding=2), (3, 4, 11), 66),
    conv("conv2d", lambda: nn.Conv2d(3, 6, 3, padding=1), (3, 3, 7, 6), 252),
    conv("conv2d_no_bias", lambda: nn.Conv2d(3, 6, (3, 2), bias=False), (3, 3, 7, 6), 150),
    conv("conv2d_strided", lambda: nn.Conv2d(3, 6, 3, stride=2, padding=1), (3, 3, 9, 8), 120),
    conv("conv2d_uneven", lambda: nn.Conv2d(3, 6, (3, 5), stride=(1, 2), padding=(0, 2)), (2, 3, 7, 9), 150),
    conv("conv2d_dilated", lambda: nn.Conv2d(3, 6, 3, dilation=2, padding=2), (2, 3, 8, 8), 384),
    conv("conv2d_grouped", lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7), 150),
    conv("conv2d_depthwise", lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, padding=1), nn.Conv2d(8, 3, 1)), (2, 4, 6, 6), 108),
    conv("conv2d_same", lambda: nn.Conv2d(3, 4, 4, padding="same"), (2, 3, 6, 7), 168),
    conv("conv2d_reflect", lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 6), 144),
    conv("conv2d_two", lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2)), (2, 3, 9, 9), 64),
    conv("conv3d", lambda: nn.Conv3d(2, 4, 3, stride=(1, 2, 1), padding=1), (2, 2, 4, 5, 6), 288),
    conv("conv_transpose1d", lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1), (2, 4, 7), 39),
    conv("conv_transpose2d", lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), (2, 4, 4, 5), 240),
    conv("conv_transpose2d_grouped", lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 3, 3), 216),
    conv("conv_transpose2d_dilated", lambda: nn.ConvTranspose2d(3, 4, 3, dilation=2), (2, 3, 4, 4), 256),
    # Pools, each behind a convolution, so that something is trained in front of it.
    conv("max_pool1d", lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.MaxPool1d(2)), (2, 3, 10), 16),
    conv("max_pool2d", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)), (2, 3, 8, 8), 36),
    conv("max_pool2d_overlapping", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1)), (2, 3, 9, 9), 64),
    conv("max_pool2d_ceil", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, ceil_mode=True)), (2, 3, 9, 9), 64),
    conv("max_pool2d_dilated", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, 1, dilation=2)), (2, 3, 8, 8), 64),
    conv("max_pool3d", lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.MaxPool3d(2)), (2, 2, 5, 5, 5), 24),
    conv("avg_pool1d", lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.AvgPool1d(3, 2)), (2, 3, 11), 16),
    conv("avg_pool2d_padded", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(3, 2, 1)), (2, 3, 9, 9), 64),
    conv("avg_pool2d_uncounted", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(3, 2, 1, count_include_pad=False)), (2, 3, 9, 9), 64),
    conv("avg_pool2d_ceil", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2, ceil_mode=True)), (2, 3, 9, 9), 64),
    conv("adaptive_avg_pool2d", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((2, 3))), (2, 3, 8, 8), 24),
    conv("adaptive_avg_pool1d_one", lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.AdaptiveAvgPool1d(1)), (2, 3, 9), 4),
    conv("adaptive_max_pool2d", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d((2, 3))), (2, 3, 8, 8), 24),
    conv("upsample_nearest", lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Upsample(scale_factor=2)), (2, 3, 6, 6), 128),
    conv("upsample_bilinear", lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Upsample(scale_factor=2, mode="bilinear")), (2, 3, 6, 6), 128),
    conv("pixel_shuffle", lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2)), (2, 3, 5, 5), 72),
    # Norms.
    conv("batch_norm1d", lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), (9, 6), 8, train=True),
    conv("batch_norm2d", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (3, 3, 6, 6), 64, train=True),
    conv("batch_norm2d_no_scale", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (3, 3, 6, 6), 64, train=True),
    conv("batch_norm2d_eval", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), (3, 3, 6, 6), 64),
    conv("group_norm", lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6)), (2, 3, 6, 6), 96),
    conv("instance_norm", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True)), (2, 3, 6, 6), 64),
    conv("instance_norm_no_scale", lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.InstanceNorm1d(4)), (2, 3, 9), 28),
    conv("layer_norm_2d", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 4, 4])), (2, 3, 6, 6), 64),
    conv("local_response_norm", lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.LocalResponseNorm(3)), (2, 3, 5, 5), 54),
    conv("layer_norm_no_scale", lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False)), (4, 6), 8),
    conv("rms_norm", lambda: nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8, eps=1e-6)), (4, 6), 8),
    conv("rms_norm_written", lambda: nn.Sequential(nn.Linear(6, 8), RmsNorm(8)), (4, 6), 8),
    # Recurrent layers.
    recurrent("rnn_tanh", lambda: nn.RNN(6, 7), optimize=False),
    recurrent("rnn_relu_both", lambda: nn.RNN(6, 7, nonlinearity="relu", bidirectional=True), optimize=False),
    recurrent("lstm", lambda: nn.LSTM(6, 7)),
    recurrent("lstm_last", lambda: nn.LSTM(6, 7), last=True),
    recurrent("lstm_no_bias", lambda: nn.LSTM(6, 7, bias=False)),
    recurrent("lstm_both", lambda: nn.LSTM(6, 7, bidirectional=True)),
    recurrent("lstm_two_layers", lambda: nn.LSTM(6, 7, 2, batch_first=True)),
    recurrent("gru", lambda: nn.GRU(6, 7)),
    recurrent("gru_last", lambda: nn.GRU(6, 7), last=True),
    recurrent("gru_both", lambda: nn.GRU(6, 7, 2, bidirectional=True)),
    # Activations.
    activation("elu", nn.ELU),
    activation("celu", lambda: nn.CELU(0.7)),
    activation("selu", nn.SELU),
    activation("leaky_relu", lambda: nn.LeakyReLU(0.1)),
    activation("prelu", lambda: nn.PReLU(16)),
    activation("hardswish", nn.Hardswish),
    activation("hardsigmoid", nn.Hardsigmoid),
    activation("hardtanh", nn.Hardtanh),
    activation("relu6", nn.ReLU6),
    activation("mish", nn.Mish),
    activation("softsign", nn.Softsign),
    activation("softplus_sharp", lambda: nn.Softplus(beta=2.0)),
    activation("logsigmoid", nn.LogSigmoid),
    activation("glu", lambda: nn.Sequential(nn.Linear(16, 32), nn.GLU())),
    # Losses in the model.
    in_model("cross_entropy", F.cross_entropy, ints(5, 8)),
    in_model("cross_entropy_smoothed", lambda p, y: F.cross_entropy(p, y, label_smoothing=0.1), ints(5, 8), differs="the exporter drops the smoothing"),
    in_model("cross_entropy_ignoring", lambda p, y: F.cross_entropy(p, y, ignore_index=2), ints(5, 8)),
    in_model("cross_entropy_sum", lambda p, y: F.cross_entropy(p, y, reduction="sum"), ints(5, 8)),
    in_model("nll_loss", lambda p, y: F.nll_loss(F.log_softmax(p, -1), y), ints(5, 8)),
    in_model("kl_div", lambda p, y: F.kl_div(F.log_softmax(p, -1), torch.softmax(y, -1), reduction="batchmean"), floats(8, 5)),
    in_model("cosine", lambda p, y: 1 - F.cosine_similarity(p, y).mean(), floats(8, 5)),
    Case("picked_labels", lambda: Formula(picked_labels, w=(6, 5)), {"x": floats(7, 6), "labels": ints(5, 7)}, "-"),
    in_model("bce_loss", lambda p, y: F.binary_cross_entropy_with_logits(p, torch.sigmoid(y)), floats(8, 5)),
    in_model("mse_loss", F.mse_loss, floats(8, 5)),
    in_model("l1_loss", F.l1_loss, floats(8, 5)),
    in_model("smooth_l1_loss", F.smooth_l1_loss, floats(8, 5)),
    in_model("huber_loss", lambda p, y: F.huber_loss(p, y, delta=0.7), floats(8, 5)),
    # Whatever else models are made of.
    Case("filtered", lambda: Formula(filtered, w=(6, 6)), {"x": floats(5, 6)}, "mse", optimize=False),
    Case("spread", lambda: Formula(spread, w=(6, 5)), {"x": floats(4, 6)}, "mse"),
    Case("advanced_picks", lambda: Formula(picks, table=(11, 6), w=(6, 8)), {"rows": ints(11, 9), "columns": ints(8, 5)}, "mse"),
    Case("einsum", lambda: Formula(einsums, w=(4, 5)), {"x": floats(2, 3, 4), "y": floats(2, 5, 6)}, "mse"),
    Case("flip_roll", lambda: Formula(lambda m, x: (x @ m.w).flip(1) + (x @ m.w).roll(2, 1), w=(6, 7)), {"x": floats(5, 6)}, "mse"),
    Case("padded", lambda: Formula(lambda m, x: F.pad(x @ m.w, (1, 2, 0, 1), value=0.5), w=(6, 7)), {"x": floats(5, 6)}, "mse"),
    Case("tiled", lambda: Formula(lambda m, x: (x @ m.w).repeat(1, 2) * m.s.repeat_interleave(2), w=(6, 7), s=(7,)), {"x": floats(5, 6)}, "mse", optimize=False),
    Case("top", lambda: Formula(lambda m, x: (x @ m.w).topk(3)[0].sum(-1) + (x @ m.w).max(-1)[0], w=(6, 7)), {"x": floats(5, 6)}, "mse"),
    Case("products_batched", lambda: Formula(products, a=(5, 4), b=(3, 6, 5), c=(5, 2)), {"x": floats(2, 3, 4, 6), "v": floats(2)}, "mse"),
    Case("embedding_padding", lambda: head(24, 3, nn.Embedding(12, 6, padding_idx=0)), {"tokens": ints(12, 5, 4)}, "cross_entropy", differs=PADDING),
    Case("constants", lambda: Formula(flow, w=(6, 3), gain=()), {"x": floats(5, 6)}, "mse"),
]
