"""Gradients of PyTorch models: exported to ONNX, differentiated by us in f32, against PyTorch's own in f64.

A model's gradients agree if no number is further from PyTorch's than TOLERANCE of the largest in the same tensor, for
several random sets of weights and inputs. Parameters are found in the exported file by name, and, where the exporter
folded them into tensors of its own (transposed, concatenated, cut), number by number: all weights of a model differ.

Usage: torch_gradients.py EXTRA_CHECKS [MODEL..]
"""

import contextlib
import copy
import functools
import io
import logging
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import onnx
import safetensors.numpy
import torch
from onnx import numpy_helper
from torch.nn import functional as F
from torch.onnx._internal.exporter import _registration

import torch_blocks
import torch_layers
import torch_models
import torch_networks
from formats import report

TOLERANCE = 1e-3
# A gradient that is zero in exact arithmetic is rounding noise on both sides. Numbers below this part of the largest
# gradient of the whole model count as zero.
NOISE = 1e-6
SEEDS = (1, 2, 3)
LIMIT_SECONDS = 120


class Refused(Exception):
    """Our importer does not take the model, or part of it has no gradient."""


class Failed(Exception):
    """Something other than the comparison went wrong."""


def randomised(case, seed):
    """The module with weights that are all random and all different: ones and zeros would hide mistakes."""
    torch.manual_seed(seed)
    module = case.build().train(case.train)
    with torch.no_grad():
        for p in module.parameters() if case.distinct else []:
            p += 0.1 * torch.randn_like(p)
        while case.distinct and (again := repeated(module)) is not None:
            again.mul_(1 + 0.01 * torch.rand_like(again))
    return module


def repeated(module):
    """A parameter that holds a number which is somewhere else, too; none if all numbers are different."""
    seen = np.empty(0, np.float32)
    for p in module.parameters():
        seen = np.concatenate([seen, p.detach().numpy().reshape(-1)])
        if len(np.unique(seen)) < len(seen):
            return p
    return None


def examples(case, module, seed):
    """Random inputs by name, and a label for the model's output (None if the model computes its loss)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    inputs = {name: make(generator) for name, make in case.inputs.items()}
    if case.loss == "-":
        return inputs, None
    with torch.no_grad():
        out = copy.deepcopy(module)(*inputs.values())
    if case.loss == "cross_entropy":
        return inputs, torch.randint(out.shape[-1], out.shape[:-1], generator=generator)
    if case.loss == "bce":
        return inputs, torch.rand(out.shape, generator=generator)
    return inputs, torch.randn(out.shape, generator=generator)


def loss_of(case, out, label):
    if case.loss == "cross_entropy":
        return F.cross_entropy(out.reshape(-1, out.shape[-1]), label.reshape(-1))
    if case.loss == "bce":
        return F.binary_cross_entropy_with_logits(out, label)
    return out if case.loss == "-" else F.mse_loss(out, label)


def parameters_of(module):
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def torch_gradients(case, module, inputs, label, dtype):
    """PyTorch's loss and gradients of the parameters, as arrays; zeros where the loss does not depend on one."""
    cast = lambda t: t.to(dtype) if t is not None and t.is_floating_point() else t
    module = copy.deepcopy(module).to(dtype)
    leaves = dict(module.named_parameters())
    loss = loss_of(case, module(*map(cast, inputs.values())), cast(label))
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {"loss": loss.detach().numpy()} | {n: g.numpy() for n, g in zip(leaves, grads)}


def export(case, module, inputs, path):
    """Writes the ONNX file, quietly."""
    options = {"input_names": list(inputs), "opset_version": 20, "verbose": False}
    if case.loss == "-":
        options["output_names"] = ["loss"]
    if case.dynamic:
        options["dynamic_shapes"] = [{0: torch.export.Dim("batch")}] * len(inputs)
    if case.train_mode_export:
        options |= {"dynamo": False, "training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}
    else:
        options |= {"dynamo": True, "optimize": case.optimize, "external_data": False}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torch.onnx.export(copy.deepcopy(module), tuple(inputs.values()), str(path), **options)


def keep_registry():
    """Lets the exporter build its table of functions once instead of for every model: that takes most of its time."""
    kind = _registration.ONNXRegistry
    kind.from_torchlib = staticmethod(functools.cache(kind.from_torchlib))


class Mapping:
    """Where the numbers of the file's tensors come from in the module's parameters."""

    def __init__(self, path, module):
        parameters = parameters_of(module)
        starts = np.cumsum([0] + [p.size for p in parameters.values()])
        self.size = starts[-1]
        self.spans = {n: (slice(s, s + p.size), p.shape) for (n, p), s in zip(parameters.items(), starts)}
        everything = concatenated(module)
        order = np.argsort(everything, kind="stable")
        # For each of the file's tensors: its values, and for each of them its place in `everything`, or −1.
        self.places = {}
        for initialiser in onnx.load(path).graph.initializer:
            name, values = initialiser.name, numpy_helper.to_array(initialiser)
            if values.dtype != np.float32:
                continue
            if name in parameters and np.array_equal(values, parameters[name]):
                span = self.spans[name][0]
                place = np.arange(span.start, span.stop)
            else:
                place = find(values.reshape(-1), everything, order)
            if (place >= 0).any():
                self.places[name] = (values, place)

    def values(self, module):
        """The file's tensors with another module's numbers in them."""
        everything = concatenated(module)
        fill = lambda old, place: np.where(place >= 0, everything[place], old.reshape(-1)).reshape(old.shape)
        return {name: fill(*entry) for name, entry in self.places.items()}

    def gather(self, gradients):
        """The parameters' gradients from those of the file's tensors; no entry for a parameter that none is made of."""
        total, touched = np.zeros(self.size), np.zeros(self.size, bool)
        for name, (_, place) in self.places.items():
            if name in gradients:
                np.add.at(total, place[place >= 0], gradients[name].reshape(-1)[place >= 0])
                touched[place[place >= 0]] = True
        return {n: total[span].reshape(shape) for n, (span, shape) in self.spans.items() if touched[span].any()}

    def complaints(self, gradients):
        """What is trained although it is no parameter, and what is trained as two tensors although it is one."""
        out = [f"{name} is trained" for name in sorted(set(gradients) - set(self.places))]
        times = np.zeros(self.size, int)
        for name in set(gradients) & set(self.places):
            place = self.places[name][1]
            np.add.at(times, place[place >= 0], 1)
        return out + [f"{name} is trained twice" for name, (span, _) in self.spans.items() if (times[span] > 1).any()]


def concatenated(module):
    """The numbers of all parameters."""
    return np.concatenate([p.reshape(-1) for p in parameters_of(module).values()])


def find(values, everything, order):
    """For each value, where it is in `everything`, or −1; `order` sorts that."""
    at = np.minimum(np.searchsorted(everything[order], values), len(everything) - 1)
    return np.where(everything[order[at]] == values, order[at], -1)


def our_gradients(path, folders, loss):
    """Runs the helper program: for each folder, the loss and the gradients of the file's tensors."""
    command = [sys.argv[1], "gradients", str(path), loss, *map(str, folders)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired as e:
        raise Failed(f"no result in {LIMIT_SECONDS} s") from e
    if done.returncode != 0:
        refused = done.stderr.startswith(f"error: {path}:") or "has no gradient" in done.stderr
        raise (Refused if refused else Failed)(shortened(done.stderr, path))
    return [safetensors.numpy.load_file(folder / "gradients.safetensors") for folder in folders]


def shortened(message, path):
    """An error on one line; of operations that are not supported, only their names."""
    missing = re.findall(r"^  (\S+) × \d+", message, re.MULTILINE)
    if missing:
        return "no " + ", ".join(missing)
    lines = message.strip().splitlines() or ["no message"]
    panic = [i for i, line in enumerate(lines) if "panicked at" in line]
    text = " ".join(lines[panic[0] : panic[0] + 2]) if panic else lines[0]
    return text.replace(f"error: {path}: ", "").replace("error: ", "")[:300]


def errors(got, want):
    """For each tensor, the largest difference as a part of the largest number."""
    floor = NOISE * max(np.abs(w).max(initial=0) for name, w in want.items() if name != "loss")
    out = {}
    for name, w in want.items():
        g = got.get(name, np.zeros_like(w))
        difference = np.abs(g.astype(np.float64) - w).max(initial=0)
        # Errors count from the noise on; NaN is an error anywhere.
        out[name] = difference / (np.abs(w).max(initial=0) + floor / TOLERANCE) if np.isfinite(difference) else np.inf
    return out


class Comparison:
    """What came of a model's seeds."""

    def __init__(self):
        self.ours, self.torch, self.tensors, self.complaints = ("", 0.0), 0.0, 0, []

    def add(self, ours, torch_f32, complaints):
        worst = max(ours, key=ours.get)
        self.ours = max(self.ours, (worst, ours[worst]), key=lambda e: e[1])
        self.torch = max(self.torch, max(torch_f32.values()))
        self.tensors, self.complaints = len(ours) - 1, complaints

    def wrong(self):
        return int(not self.ours[1] < TOLERANCE) + len(self.complaints)

    def text(self):
        extra = "".join(f"; {c}" for c in self.complaints)
        own = f"PyTorch's own in f32 {self.torch:.1e}"
        worst = f"largest error {self.ours[1]:.1e} in {self.ours[0]} ({own})"
        return f"{self.tensors} parameters, {len(SEEDS)} seeds, {worst}{extra}"


def compare(case, folder):
    """Exports a model once and compares its gradients for every seed, later ones with other weights in the same file."""
    path = folder / f"{case.name}.onnx"
    mapping, trials = None, []
    for seed in SEEDS:
        module = randomised(case, seed)
        inputs, label = examples(case, module, seed)
        given = {name: t.numpy() for name, t in inputs.items()} | ({} if label is None else {"label": label.numpy()})
        if mapping is None:
            export(case, module, inputs, path)
            mapping = Mapping(path, module)
        else:
            given |= mapping.values(module)
        place = folder / f"{case.name}.{seed}"
        place.mkdir()
        given = {name: np.array(values, order="C") for name, values in given.items()}
        safetensors.numpy.save_file(given, place / "inputs.safetensors")
        trials.append((module, inputs, label, place))
    gradients = our_gradients(path, [t[3] for t in trials], case.loss)
    result = Comparison()
    for (module, inputs, label, _), ours in zip(trials, gradients):
        loss = ours.pop("loss")
        exact = torch_gradients(case, module, inputs, label, torch.float64)
        single = torch_gradients(case, module, inputs, label, torch.float32)
        result.add(errors({"loss": loss} | mapping.gather(ours), exact), errors(single, exact), mapping.complaints(ours))
    return result


def check(case, folder, required):
    """Prints the line of a model and returns whether it passed; a model that need not be supported can be skipped."""
    name = f"gradients {case.name}"
    start = time.monotonic()
    try:
        result = compare(case, folder)
    except Refused as e:
        if required:
            return report(name, 1, f"refused: {e}")
        print(f"skipped {name}: {e}", flush=True)
        return True
    except Failed as e:
        return report(name, 1, str(e))
    except Exception as e:
        return report(name, 1, f"{type(e).__name__}: {' '.join(str(e).split())[:300]}")
    text = f"{result.text()}, {time.monotonic() - start:.0f} s"
    if not case.differs:
        return report(name, result.wrong(), text)
    if not result.wrong():
        return report(name, 1, f"was known to differ ({case.differs}), but agrees: {text}")
    print(f"known {name}: {case.differs}; {text}", flush=True)
    return True


def all_cases():
    """Every model, and whether our importer must take it."""
    required = torch_models.CASES + torch_layers.CASES + torch_networks.CASES + torch_blocks.CASES
    return [(c, True) for c in required] + [(c, False) for c in torch_blocks.COMING]


def check_at(place, folder):
    return check(all_cases()[place][0], pathlib.Path(folder), all_cases()[place][1])


def main():
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    keep_registry()
    torch.set_num_threads(1)
    chosen = [i for i, (c, _) in enumerate(all_cases()) if not sys.argv[2:] or c.name in sys.argv[2:]]
    if os.environ.get("MANTISSA_EXTRA") == "quick":
        print(f"quick: every third of {len(chosen)} models; without MANTISSA_EXTRA=quick, all")
        chosen = chosen[::3]
    # Models are functions, which cannot be sent to another process; their places can.
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("fork").Pool() as pool:
        passed = pool.starmap(check_at, [(i, folder) for i in chosen], chunksize=1)
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
