"""Networks with batch norm, trained by PyTorch and by this program from the same weights on the same batch: losses and
running statistics. Exported in training mode by both exporters, whose files say different things of the same network.

PyTorch computes in f64, which is the measure. Where a rectifier's operand lies within rounding of 0, two right runs in f32
part, and such a network amplifies that: in twenty steps of the ResNet two thirds of all runs part somewhere, PyTorch's own
in f32 as often as ours. So there are some seeds, for one of which the run must be near f64; a fault is off for all of them.

usage: torch_training.py MANTISSA
"""

import copy
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

warnings.filterwarnings("ignore")
STEPS, BATCH, CLASSES, RATE = 20, 16, 10, 0.005
SEEDS = range(1, 17)


def conv_norm(i, o, k, stride=1, groups=1, momentum=0.1, eps=1e-5):
    return nn.Sequential(
        nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o, eps=eps, momentum=momentum)
    )


class Basic(nn.Module):
    """ResNet's basic block (He et al. 2016)."""

    def __init__(self, i, o, stride):
        super().__init__()
        self.a, self.b = conv_norm(i, o, 3, stride), conv_norm(o, o, 3)
        self.skip = conv_norm(i, o, 1, stride) if stride != 1 or i != o else nn.Identity()

    def forward(self, x):
        return torch.relu(self.b(torch.relu(self.a(x))) + self.skip(x))


def resnet18(width):
    blocks, i = [], width
    for stage in range(4):
        o = width << stage
        for n in range(2):
            blocks.append(Basic(i, o, 2 if stage and not n else 1))
            i = o
    stem = [conv_norm(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, CLASSES))


class Inverted(nn.Module):
    """MobileNetV2's block, with its own momentum and epsilon (Sandler et al. 2018)."""

    def __init__(self, i, o, stride, expand=4):
        super().__init__()
        m, norm = i * expand, {"momentum": 0.01, "eps": 1e-3}
        self.body = nn.Sequential(
            conv_norm(i, m, 1, **norm), nn.ReLU6(), conv_norm(m, m, 3, stride, m, **norm), nn.Hardswish(), conv_norm(m, o, 1, **norm)
        )
        self.same = stride == 1 and i == o

    def forward(self, x):
        return x + self.body(x) if self.same else self.body(x)


def mobilenet():
    return nn.Sequential(
        conv_norm(3, 8, 3, 2), nn.ReLU6(), Inverted(8, 12, 2), Inverted(12, 12, 1), Inverted(12, 16, 2), Inverted(16, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)
    )  # fmt: skip


class Branches(nn.Module):
    """Inception's block: branches side by side, joined along the channels (Szegedy et al. 2015)."""

    def __init__(self, i):
        super().__init__()
        self.one = conv_norm(i, 8, 1, eps=1e-3)
        self.three = nn.Sequential(conv_norm(i, 6, 1, eps=1e-3), nn.ReLU(), conv_norm(6, 8, 3, eps=1e-3))
        self.five = nn.Sequential(conv_norm(i, 4, 1, eps=1e-3), nn.ReLU(), conv_norm(4, 6, 5, eps=1e-3))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_norm(i, 6, 1, eps=1e-3))

    def forward(self, x):
        return torch.relu(torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1))


def inception():
    return nn.Sequential(
        conv_norm(3, 12, 3, 2), nn.ReLU(), Branches(12), nn.MaxPool2d(3, 2, 1), Branches(28), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(28, CLASSES)
    )  # fmt: skip


def export(model, x, exporter, path):
    """The file that an exporter makes of a network in training mode."""
    if exporter == "present":
        torch.onnx.export(model, (x,), str(path), dynamo=True, optimize=False, external_data=False, verbose=False)
    else:
        mode = torch.onnx.TrainingMode.TRAINING
        torch.onnx.export(model, (x,), str(path), dynamo=False, training=mode, do_constant_folding=False, opset_version=17)


def trained(model, x, y):
    """PyTorch's losses, and what its batch norms have seen."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=RATE), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {n: b.numpy() for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))}


def check(program, name, make, size, exporter):
    for seed in SEEDS:
        good, said = compared(program, make, size, exporter, seed)
        if good:
            break
    print(f"{'ok' if good else 'FAILED'} {name}, {exporter} exporter, seed {seed}: {said}")


def compared(program, make, size, exporter, seed):
    """Is a run near enough, and how near?"""
    torch.manual_seed(seed)
    model = make().train()
    x, y = torch.randn(BATCH, 3, size, size), torch.randint(0, CLASSES, (BATCH,))
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        # Exporting runs the network, which moves its statistics.
        state = {k: v.clone() for k, v in model.state_dict().items()}
        export(model, x, exporter, d / "m.onnx")
        model.load_state_dict(state)
        if exporter == "earlier":
            restore(d / "m.onnx", state)
        exact, theirs = trained(copy.deepcopy(model).double(), x.double(), y), trained(model, x, y)
        np.savez(d / "data.npz", x=x.numpy(), y=y.numpy())
        args = ["train", "m.onnx", "--loss", "cross_entropy", "--data", "data.npz", "--batch", str(BATCH), "--epochs", str(STEPS)]
        args += ["--policy", "fp32", "--optimizer", "sgd", "--lr", str(RATE), "--device", "cpu", "--out", "run"]
        subprocess.run([program, *args], cwd=d, check=True, capture_output=True)
        ours = [json.loads(line)["loss"] for line in (d / "run/metrics.jsonl").read_text().splitlines()]
        kept = load_file(d / "run/checkpoint.safetensors")
        ours = (ours, {n: kept[n] for n in exact[1]})
    (off, moved), (loose, drifted) = distance(ours, exact), distance(theirs, exact)
    good = off < 1e-3 and moved < 1e-4
    return good, (f"{STEPS} losses within {off:.1e}, running statistics within {moved:.1e}"
                  f" (PyTorch's f32: {loose:.1e}, {drifted:.1e})")


def distance(a, b):
    """How far two runs are apart: the losses, and the running statistics."""
    moved = max(float(np.max(np.abs(a[1][n] - s) / np.maximum(np.abs(s), 1))) for n, s in b[1].items())
    return max(abs(p - q) for p, q in zip(a[0], b[0], strict=True)), moved


def restore(path, state):
    """Gives a file the statistics that the network had before it was exported: the earlier exporter moves them."""
    import onnx

    m = onnx.load(path)
    for t in m.graph.initializer:
        if t.name in state:
            t.CopyFrom(onnx.numpy_helper.from_array(state[t.name].numpy(), t.name))
    onnx.save(m, path)


program = str(Path(sys.argv[1]).resolve())
for name, make, size in [("ResNet-18", lambda: resnet18(8), 48), ("MobileNet", mobilenet, 32), ("Inception", inception, 24)]:
    for exporter in ["present", "earlier"]:
        check(program, name, make, size, exporter)
