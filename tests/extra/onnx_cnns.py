"""The nine convolutional networks of ONNX's own tests (`onnx/backend/test/data/light`).

    onnx_cnns.py MODEL_CHECKS

As the package has them, all weights are one number: outputs must be those stored beside them. With weights drawn at
random, outputs must be onnxruntime's, and a step of training under o1 must go through.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

HELPER = sys.argv[1]


def inputs(model):
    held = {i.name for i in model.graph.initializer}
    for i in model.graph.input:
        if i.name not in held:
            dims = [d.dim_value for d in i.type.tensor_type.shape.dim]
            n = int(np.prod(dims))
            yield i.name, (np.arange(n).reshape(dims) / n).astype(np.float32)


def forward(path, feeds, folder):
    save_file(feeds, folder / "inputs.safetensors")
    run = subprocess.run([HELPER, "forward", path, folder], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr.strip())
    (out,) = load_file(folder / "outputs.safetensors").values()
    return out


def drawn(model):
    """The model with every constant that `ConstantOfShape` made drawn at random instead, scaled to its fan-in."""
    rng = np.random.default_rng(0)
    shapes = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        dims = shapes[node.input[0]]
        spread = 0.1 if len(dims) < 2 else (2 / np.prod(dims[1:])) ** 0.5
        values = rng.normal(size=dims).astype(np.float32) * spread
        # A scale or variance of a norm must stay away from 0; a bias may do the same.
        values = values if len(dims) > 1 else np.abs(values) + 0.5
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def check(path, folder):
    model = onnx.load(path)
    feeds = dict(inputs(model))
    stored = onnx.TensorProto()
    stored.ParseFromString(path.with_name(path.stem + "_output_0.pb").read_bytes())
    stored = numpy_helper.to_array(stored)
    out = forward(path, feeds, folder)
    first = np.abs(out - stored).max() / np.abs(stored).max()

    copy = folder / "drawn.onnx"
    onnx.save(drawn(model), copy)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    (want,) = ort.InferenceSession(copy, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    out = forward(copy, feeds, folder)
    second = np.abs(out - want).max() / np.abs(want).max()

    run = subprocess.run([HELPER, "train", copy, "mse", "o1", "f16", "1", "1e-4"], capture_output=True, text=True)
    losses = [float(line.split()[1]) for line in run.stdout.splitlines()]
    if run.returncode or len(losses) != 1:
        raise RuntimeError(run.stderr.strip())
    good = first < 1e-4 and second < 1e-4 and np.isfinite(losses[0])
    said = f"{path.stem}: stored {first:.1e}, drawn {second:.1e}, loss {losses[0]:.4g}"
    print("ok" if good else "FAILED", said, flush=True)


if __name__ == "__main__":
    QUICK = os.environ.get("MANTISSA_EXTRA") == "quick"
    for path in sorted((pathlib.Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx")):
        if QUICK and path.stem not in ("light_squeezenet", "light_shufflenet"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(path, pathlib.Path(folder))
            except RuntimeError as e:
                print("FAILED", f"{path.stem}: {e}", flush=True)
