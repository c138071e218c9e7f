"""Models trained and exported: onnxruntime must compute the loss that the training run reported.

    onnx_export.py MODEL_CHECKS

The exported file holds f32 master weights. Under fp32 losses must agree to 1e-5; under o1 the run evaluates a plan that
rounds to f16, and they agree to what that costs.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from formats import report

MANTISSA = pathlib.Path(sys.argv[1]).parent.parent / "mantissa"
RNG = np.random.default_rng(5)

MLP = """model mlp {
  input x: f32[batch, 12]          label y: i64[batch]
  param w1: f32[12, 24] = kaiming_uniform    param b1: f32[24] = zeros
  param s: f32[24] = ones                    param t: f32[24] = zeros
  param w2: f32[24, 3] = kaiming_uniform     param b2: f32[3] = zeros
  h      = layer_norm(gelu(x @ w1 + b1), s, t)
  logits = matmul(h * rsqrt(square(h) + 1), w2) + b2
  loss   = cross_entropy(logits, y)
}
"""


LOOP = """model loop {
  input x: f32[batch, 12]          label y: i64[batch]
  param w: f32[3, 16] = xavier_uniform     param r: f32[16, 16] = xavier_uniform
  param b: f32[16] = zeros                 param v: f32[32, 3] = xavier_uniform
  rows = transpose(reshape(x, dims=[batch, 4, 3]), perm=[1, 0, 2])
  body cell {
    input x: f32[batch, 3]
    state h: f32[batch, 16]
    param w: f32[3, 16]     param r: f32[16, 16]     param b: f32[16]
    y = tanh(x @ w + h @ r + b)
    update h = 0.5 * (h + y)
  }
  h0 = broadcast(0, dims=[batch, 16])
  down = scan(rows, h0, w, r, b, body=cell, steps=[4], last=h)
  up = mean(scan(rows, h0, w, r, b, body=cell, steps=[4], reverse=true, stack=y), axes=[0], keep=false)
  logits = concat(down, up, axis=1) @ v
  loss = cross_entropy(logits, y)
}
"""


def convnet():
    """Batch norm with running statistics, dropout, pooling: training mode in the file, inference in the export."""

    def value(name, array):
        return numpy_helper.from_array(np.asarray(array), name)

    node = helper.make_node
    nodes = [
        node("Reshape", ["x", "image"], ["i"]),
        node("Conv", ["i", "conv.weight"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "bn.weight", "bn.bias", "bn.mean", "bn.var"], ["n", "m", "v"], training_mode=1),
        node("Relu", ["n"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], ["f"]),
        node("Dropout", ["f", "ratio", "training"], ["d"]),
        node("Gemm", ["d", "fc.weight", "fc.bias"], ["logits"], transB=1),
    ]
    normal = lambda *dims: (RNG.normal(size=dims) * 0.3).astype(np.float32)
    data = [
        value("conv.weight", normal(6, 1, 3, 3)),
        value("bn.weight", np.ones(6, np.float32)),
        value("bn.bias", np.zeros(6, np.float32)),
        value("bn.mean", np.zeros(6, np.float32)),
        value("bn.var", np.ones(6, np.float32)),
        value("fc.weight", normal(3, 12)),
        value("fc.bias", np.zeros(3, np.float32)),
        value("image", np.array([0, 1, 3, 4])),
        value("ratio", np.float32(0.25)),
        value("training", np.bool_(True)),
    ]
    graph = helper.make_graph(
        nodes,
        "convnet",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        data,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(*args):
    done = subprocess.run([MANTISSA, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())


def split(n):
    labels = RNG.integers(0, 3, n)
    centres = np.random.default_rng(1).normal(size=(3, 12))
    return (centres[labels] + 0.8 * RNG.normal(size=(n, 12))).astype(np.float32), labels


KEPT = {
    "mlp": {"w1", "b1", "s", "t", "w2", "b2"},
    "loop": {"w", "r", "b", "v"},
    "convnet": {"conv.weight", "bn.mean", "fc.weight", "fc.bias"},
}


def check(name, model, folder, loss, policy, tolerance):
    for part, n in [("train", 512), ("test", 96)]:
        x, y = split(n)
        np.savez(folder / f"{part}.npz", x=x, y=y)
    options = ["--epochs", 4, "--lr", 0.01, "--optimizer", "adam", "--device", "cpu", "--policy", policy, *loss]
    data = ["--data", folder / "train.npz", "--test", folder / "test.npz"]
    run("train", model, *data, *options, "--out", folder / "run")
    exported = folder / "out.onnx"
    run("export", model, folder / "run/checkpoint.safetensors", "-o", exported, *loss)
    onnx.checker.check_model(exported, full_check=True)
    session = ort.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"x": x})
    shifted = logits - logits.max(axis=1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    ours = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])
    theirs = -logp[np.arange(len(y)), y].mean()
    difference = abs(ours["test_loss"] - theirs) / theirs
    right = (logits.argmax(axis=1) == y).mean()
    names = {i.name for i in onnx.load(exported).graph.initializer}
    kept = KEPT[name]
    good = difference < tolerance and abs(right - ours["test_accuracy"]) < 0.02 and kept <= names
    report(f"export of {name}, trained under {policy}", int(not good), f"test loss {ours['test_loss']:.6f} here, {theirs:.6f} by onnxruntime")


CASES = [(name, *how) for name in ["mlp", "loop", "convnet"] for how in [("fp32", 1e-5), ("o1", 1e-2)]]
for name, policy, tolerance in CASES:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        text = {"mlp": MLP, "loop": LOOP}.get(name)
        path = folder / f"{name}.{'mir' if text else 'onnx'}"
        if text:
            path.write_text(text)
        else:
            onnx.save(convnet(), path)
        try:
            check(name, path, folder, [] if text else ["--loss", "cross_entropy"], policy, tolerance)
        except RuntimeError as e:
            report(f"export of {name}", 1, str(e))
