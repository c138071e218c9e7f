"""Small ONNX models with random weights: our importer and CPU executor against onnxruntime, both in f32.

Usage: onnx_forward.py EXTRA_CHECKS
"""

import pathlib
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from formats import call, report

TOLERANCE = 1e-5
RNG = np.random.default_rng(7)
node = helper.make_node


def weight(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


def mlp():
    """Gemm with its transposes and factors, Relu."""
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h1"], transB=1),
        node("Relu", ["h1"], ["a1"]),
        node("Gemm", ["a1", "w2", "b2"], ["h2"], alpha=0.5, beta=2.0),
        node("Relu", ["h2"], ["a2"]),
        node("Gemm", ["a2", "w3"], ["y"]),
    ]
    data = {"w1": weight(64, 20), "b1": weight(64), "w2": weight(64, 48), "b2": weight(48), "w3": weight(48, 10)}
    return ["batch", 20], nodes, data


def norm_gelu():
    """LayerNormalization, both forms of Gelu, a residual sum."""
    nodes = [
        node("LayerNormalization", ["x", "s", "t"], ["n"], axis=-1, epsilon=1e-5),
        node("MatMul", ["n", "w1"], ["h"]),
        node("Gelu", ["h"], ["g"]),
        node("MatMul", ["g", "w2"], ["p"]),
        node("Gelu", ["p"], ["q"], approximate="tanh"),
        node("Add", ["x", "q"], ["y"]),
    ]
    return ["batch", 32], nodes, {"s": 1 + weight(32), "t": weight(32), "w1": weight(32, 96), "w2": weight(96, 32)}


def attention():
    """Two heads: batched MatMul, Transpose, Softmax, Reshape."""
    nodes = [node("MatMul", ["x", f"w{p}"], [f"{p}0"]) for p in "qkv"]
    nodes += [node("Reshape", [f"{p}0", "heads"], [f"{p}1"]) for p in "qkv"]
    nodes += [node("Transpose", [f"{p}1"], [p], perm=[0, 2, 3, 1] if p == "k" else [0, 2, 1, 3]) for p in "qkv"]
    nodes += [
        node("MatMul", ["q", "k"], ["scores"]),
        node("Mul", ["scores", "scale"], ["scaled"]),
        node("Softmax", ["scaled"], ["a"], axis=-1),
        node("MatMul", ["a", "v"], ["o"]),
        node("Transpose", ["o"], ["o1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o1", "joined"], ["o2"]),
        node("MatMul", ["o2", "wo"], ["y"]),
    ]
    data = {f"w{p}": weight(16, 16) for p in "qkvo"}
    data |= {"heads": ints(0, 0, 2, 8), "joined": ints(0, 0, 16), "scale": np.float32(8**-0.5)}
    return ["batch", 6, 16], nodes, data


def shapes():
    """Reshape, Slice with steps and negative ends, Concat, Split, Squeeze, Unsqueeze."""
    nodes = [
        node("Reshape", ["x", "to"], ["r"]),
        node("Slice", ["r", "starts", "ends", "axes", "steps"], ["s"]),
        node("Split", ["s", "sizes"], ["p", "q"], axis=1),
        node("Tanh", ["q"], ["q1"]),
        node("Concat", ["q1", "p", "p"], ["c"], axis=1),
        node("Unsqueeze", ["c", "one"], ["u"]),
        node("Squeeze", ["u", "one"], ["v"]),
        node("MatMul", ["v", "w"], ["y"]),
    ]
    data = {"to": ints(5, 6, -1), "starts": ints(1, 0), "ends": ints(-1, 100), "axes": ints(1, 2), "steps": ints(1, 2)}
    return [5, 24], nodes, data | {"sizes": ints(1, 3), "one": ints(1), "w": weight(2, 3)}


def variance():
    """A normalisation written out: ReduceMean, Sub, Pow, Sqrt, Div, ReduceMax."""
    nodes = [
        node("ReduceMean", ["x", "last"], ["m"], keepdims=1),
        node("Sub", ["x", "m"], ["d"]),
        node("Pow", ["d", "two"], ["d2"]),
        node("ReduceMean", ["d2", "last"], ["v"], keepdims=1),
        node("Add", ["v", "eps"], ["v1"]),
        node("Sqrt", ["v1"], ["r"]),
        node("Div", ["d", "r"], ["n"]),
        node("Mul", ["n", "s"], ["z"]),
        node("ReduceMax", ["z", "last"], ["top"], keepdims=1),
        node("Sub", ["z", "top"], ["e"]),
        node("Exp", ["e"], ["y"]),
    ]
    return ["batch", 9, 33], nodes, {"last": ints(-1), "two": np.float32(2), "eps": np.float32(1e-5), "s": weight(33)}


def gather_where():
    """Gather of rows of a table, Greater, Where, Erf, Clip's parts Max and Min."""
    nodes = [
        node("Gather", ["table", "rows"], ["g"], axis=0),
        node("Mul", ["x", "g"], ["h"]),
        node("Greater", ["h", "zero"], ["c"]),
        node("Erf", ["h"], ["e"]),
        node("Sigmoid", ["x"], ["f"]),
        node("Where", ["c", "e", "f"], ["w"]),
        node("Max", ["w", "low"], ["w1"]),
        node("Min", ["w1", "high"], ["y"]),
    ]
    data = {"table": weight(12, 8), "rows": ints(3, 0, 11, 3, 7), "zero": np.float32(0), "low": np.float32(-0.2), "high": np.float32(0.7)}
    return ["batch", 5, 8], nodes, data


def check(build, folder):
    """Writes a model, its large tensors to a file beside it, and runs it in both."""
    name = build.__name__
    shape, nodes, data = build()
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_empty_tensor_value_info("y")
    y.type.tensor_type.elem_type = TensorProto.FLOAT
    initialisers = [numpy_helper.from_array(np.asarray(v), k) for k, v in data.items()]
    graph = helper.make_graph(nodes, name, [x], [y], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model)
    path = str(folder / f"{name}.onnx")
    onnx.save(model, path, save_as_external_data=True, location=f"{name}.data", size_threshold=1024)
    value = RNG.standard_normal([7 if d == "batch" else d for d in shape]).astype(np.float32)
    want = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": value})[0].reshape(-1)
    got = call("forward", path, data=value)
    assert got.shape == want.shape, (name, got.shape, want.shape)
    distance = np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want.astype(np.float64))
    outside = (folder / f"{name}.data").exists()
    text = f"{len(nodes)} nodes, {len(want)} numbers, relative difference {distance:.1e}{', external data' if outside else ''}"
    return report(f"onnx forward {name}", int(not distance < TOLERANCE), text)


def main():
    with tempfile.TemporaryDirectory() as folder:
        builders = [mlp, norm_gelu, attention, shapes, variance, gather_where]
        checks = [check(build, pathlib.Path(folder)) for build in builders]
    sys.exit(not all(checks))


if __name__ == "__main__":
    main()
