"""Models written in mixed precision: onnxruntime must load them, and compute what the plan says.

    onnx_mixed.py MANTISSA

Outputs on fresh data must be as near to those of the f32 model as the file's metadata says, inputs and outputs must stay
what they are, and initialisers must be the f32 ones rounded once, signs and infinities included.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from formats import report
from onnx_cnns import drawn, inputs as image_inputs

MANTISSA = sys.argv[1]
RNG = np.random.default_rng(11)
BUDGET = 1e-2
# How much worse a batch may be than those that the error was measured on.
SPREAD = 2.0
LIGHT = pathlib.Path(onnx.__file__).parent / "backend/test/data/light"


def normal(*dims, scale=0.3):
    return (RNG.normal(size=dims) * scale).astype(np.float32)


def model(nodes, data, inputs, outputs, opset=20):
    held = [numpy_helper.from_array(np.asarray(v), k) for k, v in data.items()]
    value = lambda name, kind, dims: helper.make_tensor_value_info(name, kind, dims)
    graph = helper.make_graph(nodes, "net", [value(*i) for i in inputs], [value(*o) for o in outputs], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def block():
    """An attention block: a norm spelled out, a mask of the least f32 and one of −∞, an embedding that is used twice."""
    node = helper.make_node
    nodes = [
        node("Gather", ["emb", "ids"], ["e"]),
        node("ReduceMean", ["e", "last"], ["mean"]),
        node("Sub", ["e", "mean"], ["centred"]),
        node("Pow", ["centred", "two"], ["squares"]),
        node("ReduceMean", ["squares", "last"], ["var"]),
        node("Add", ["var", "eps"], ["var_eps"]),
        node("Sqrt", ["var_eps"], ["std"]),
        node("Div", ["centred", "std"], ["unit"]),
        node("Mul", ["unit", "gain"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["h"]),
        node("MatMul", ["h", "wq"], ["q"]),
        node("MatMul", ["h", "wk"], ["k"]),
        node("MatMul", ["h", "wv"], ["v"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Add", ["scores", "mask"], ["masked"]),
        node("Where", ["keep", "masked", "least"], ["shut"]),
        node("Softmax", ["shut"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["a"]),
        node("Add", ["a", "e"], ["r"]),
        node("Transpose", ["emb"], ["emb_t"], perm=[1, 0]),
        node("MatMul", ["r", "emb_t"], ["logits"]),
        node("ArgMax", ["logits"], ["best"], axis=-1),
    ]
    causal = np.triu(np.full((64, 64), -np.inf, np.float32), 1)
    emb = normal(1000, 256)
    emb[3, 4], emb[5, 6] = -1e-9, -0.0
    data = {
        "emb": emb, "last": np.array([-1]), "two": np.float32(2), "eps": np.float32(1e-12),
        "gain": 1 + normal(256, scale=0.1), "shift": normal(256, scale=0.1), "wq": normal(256, 256, scale=0.05), "wk": normal(256, 256, scale=0.05),
        "wv": normal(256, 256, scale=0.05), "mask": causal, "keep": np.ones((64, 64), bool), "least": np.float32(np.finfo(np.float32).min),
    }
    outputs = [("logits", TensorProto.FLOAT, ["batch", 64, 1000]), ("best", TensorProto.INT64, ["batch", 64, 1])]
    made = model(nodes, data, [("ids", TensorProto.INT64, ["batch", 64])], outputs)
    return made, {"ids": lambda n: RNG.integers(0, 1000, (n, 64))}


def convnet():
    """In training mode in the file. Large enough for f16 to pay: small convolutions take as long in f32."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "c1"], ["y1"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["y1", "g", "b", "m", "v"], ["n1", "m2", "v2"], training_mode=1),
        node("Relu", ["n1"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "c2", "cb"], ["y2"], pads=[1, 1, 1, 1]),
        node("Resize", ["y2", "", "sides"], ["big"], mode="nearest"),
        node("Concat", ["big", "r1"], ["both"], axis=1),
        node("GlobalAveragePool", ["both"], ["pooled"]),
        node("Flatten", ["pooled"], ["f"]),
        node("Dropout", ["f", "ratio", "training"], ["d"]),
        node("Gemm", ["d", "w", "wb"], ["logits"], transB=1),
    ]
    data = {
        "c1": normal(64, 3, 3, 3), "g": 1 + normal(64), "b": normal(64), "m": normal(64), "v": 1 + np.abs(normal(64)),
        "c2": normal(128, 64, 3, 3, scale=0.04), "cb": normal(128), "sides": np.array([1, 1, 2, 2], np.float32),
        "ratio": np.float32(0.5), "training": np.bool_(True), "w": normal(5, 192), "wb": normal(5),
    }
    made = model(nodes, data, [("x", TensorProto.FLOAT, ["n", 3, 24, 24])], [("logits", TensorProto.FLOAT, ["n", 5])])
    return made, {"x": lambda n: normal(n, 3, 24, 24, scale=1.0)}


def lstm():
    """Two inputs, one of them a mask."""
    node = helper.make_node
    nodes = [
        node("LSTM", ["x", "wx", "wh", "wb"], ["y", "", ""], hidden_size=256),
        node("Squeeze", ["y", "one"], ["s"]),
        node("Unsqueeze", ["mask", "last"], ["wide"]),
        node("Transpose", ["wide"], ["turned"], perm=[1, 0, 2]),
        node("Mul", ["s", "turned"], ["kept"]),
        node("ReduceMax", ["kept", "zero"], ["top"], keepdims=0),
        node("MatMul", ["top", "w"], ["out"]),
        node("Transpose", ["rows"], ["x"], perm=[1, 0, 2]),
    ]
    # A model may have its nodes in any order that computes; runtimes want them sorted.
    nodes = nodes[-1:] + nodes[:-1]
    data = {
        "wx": normal(1, 1024, 128, scale=0.05), "wh": normal(1, 1024, 256, scale=0.05), "wb": normal(1, 2048, scale=0.05),
        "one": np.array([1]), "last": np.array([-1]), "zero": np.array([0]), "w": normal(256, 128, scale=0.1),
    }
    ins = [("rows", TensorProto.FLOAT, [64, 6, 128]), ("mask", TensorProto.FLOAT, [64, 6])]
    made = model(nodes, data, ins, [("out", TensorProto.FLOAT, [64, 128])])
    feeds = {"rows": lambda n: normal(n, 6, 128, scale=1.0), "mask": lambda n: (RNG.random((n, 6)) > 0.3).astype(np.float32)}
    return made, feeds


def loud():
    """Activations beyond f16 between two products that are within."""
    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["a"]),
        node("Relu", ["a"], ["h"]),
        node("Mul", ["h", "large"], ["l"]),
        node("MatMul", ["l", "w2"], ["m"]),
        node("Mul", ["m", "small"], ["s"]),
        node("Tanh", ["s"], ["t"]),
        node("MatMul", ["t", "w3"], ["out"]),
    ]
    data = {
        "w1": normal(1024, 2048, scale=0.05), "b1": normal(2048), "large": np.float32(3e5),
        "w2": normal(2048, 1024, scale=0.05), "small": np.float32(1e-6), "w3": normal(1024, 2048, scale=0.05),
    }
    made = model(nodes, data, [("x", TensorProto.FLOAT, ["batch", 1024])], [("out", TensorProto.FLOAT, ["batch", 2048])])
    return made, {"x": lambda n: normal(n, 1024, scale=1.0)}


def light(name):
    def make():
        made = drawn(onnx.load(LIGHT / f"{name}.onnx"))
        feeds = {k: (lambda n, dims=v.shape: normal(*dims, scale=1.0)) for k, v in image_inputs(made)}
        return made, feeds

    return make


def session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def kinds(values):
    return [(v.name, v.type.tensor_type.elem_type, str(v.type.tensor_type.shape)) for v in values]


def initialisers(m):
    held = {i.name: numpy_helper.to_array(i) for i in m.graph.initializer}
    return held


def check(name, make, policy, folder):
    made, feeds = make()
    wide, mixed, data = folder / "wide.onnx", folder / "mixed.onnx", folder / "data.npz"
    onnx.save(made, wide)
    held = initialisers(made)
    free = [i for i in made.graph.input if i.name not in held]
    first = free[0].type.tensor_type.shape.dim[0]
    batch = first.dim_value or 64
    samples = {k: np.concatenate([f(batch) for _ in range(6)]) for k, f in feeds.items()}
    np.savez(data, **samples)
    sizes = ["--dim", f"{first.dim_param}={batch}"] if first.dim_param else []

    def plan(*options):
        command = [MANTISSA, "plan", wide, "--inference", *sizes, *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())

    plan("--policy", policy, "--calibrate", data, "--calibration-batches", "4", "--onnx", mixed)
    # As the model acts in inference: all f32.
    plan("--policy", "fp32", "--onnx", folder / "inference.onnx")
    onnx.checker.check_model(mixed, full_check=True)
    written = onnx.load(mixed)
    stated = {p.key.removeprefix("mantissa.error."): float(p.value) for p in written.metadata_props if ".error." in p.key}
    assert stated, "the file states its error"
    assert kinds(free) == kinds(i for i in written.graph.input if i.name not in held), "inputs stay"
    assert kinds(made.graph.output) == kinds(o for o in written.graph.output), "outputs stay"
    for key, value in initialisers(written).items():
        source = held[key.removesuffix(".f16")]
        rounded = source.astype(np.float16) if key.endswith(".f16") else source
        assert value.dtype == rounded.dtype and value.tobytes() == rounded.tobytes(), f"{key} is rounded once"
    before, after = session(folder / "inference.onnx"), session(mixed)
    worst = {}
    for _ in range(4):
        fed = {k: f(batch) for k, f in feeds.items()}
        names = [o.name for o in before.get_outputs()]
        for output, a, b in zip(names, before.run(names, fed), after.run(names, fed)):
            if a.dtype == np.float32:
                error = np.linalg.norm((a - b).astype(np.float64)) / np.linalg.norm(a)
                worst[output] = max(worst.get(output, 0.0), error)
    good = all(e <= SPREAD * stated[o] + 1e-6 for o, e in worst.items())
    good &= all(e <= BUDGET for e in worst.values())
    products = [n for n in written.graph.node if n.op_type in ("MatMul", "Gemm", "Conv", "LSTM")]
    narrow = [n for n in products if n.input[0].endswith(".f16")]
    computed = [n.output[0] for n in written.graph.node if n.op_type != "Cast"]
    where = {y.removesuffix(".f16"): y.endswith(".f16") for y in computed}
    if name == "loud" and policy == "auto":
        good &= where["a"] and where["out"] and not where["l"] and not where["m"]
    if name == "block" and policy == "auto":
        good &= not where["var"] and not where["masked"] and where["p"] and "least.f16" not in initialisers(written)
    casts = sum(n.op_type == "Cast" for n in written.graph.node)
    said = ", ".join(f"{o} off by {e:.1e}, stated {stated[o]:.1e}" for o, e in worst.items())
    good &= bool(narrow)
    report(f"{name} under {policy}", int(not good), f"{said}; {len(narrow)} of {len(products)} products in f16, {casts} casts")


def many(opset):
    """One operation after another between two products, of all those that take one operand of any shape."""
    unary = [
        "Abs", "Ceil", "Cos", "Elu", "Erf", "Floor", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg", "Relu",
        "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh", "ThresholdedRelu", "Identity",
    ]
    nodes, at = [helper.make_node("Conv", ["x", "k"], ["c0"]), helper.make_node("GlobalAveragePool", ["c0"], ["c1"])], "c1"
    for op in unary + (["Gelu"] if opset >= 20 else []):
        nodes += [helper.make_node(op, [at], [f"y.{op}"])]
        at = f"y.{op}"
    nodes += [
        helper.make_node("Flatten", [at], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["m"]),
        helper.make_node("MatMul", ["m", "w2"], ["m2"]),
        helper.make_node("Einsum", ["m2", "w3"], ["e"], equation="ij,jk->ik"),
        helper.make_node("MatMul", ["e", "w4"], ["m4"]),
        helper.make_node("MatMul", ["m4", "w5"], ["out"]),
    ]
    data = {"k": normal(256, 3, 3, 3)} | {w: normal(256, 256) for w in ["w", "w2", "w3", "w4", "w5"]}
    return model(nodes, data, [("x", TensorProto.FLOAT, [64, 3, 8, 8])], [("out", TensorProto.FLOAT, [64, 256])], opset)


def check_bf16(opset, folder):
    """Every node of a file in bf16 has only tensors whose types its schema in the file's opset allows."""
    wide, mixed = folder / "wide.onnx", folder / "mixed.onnx"
    onnx.save(many(opset), wide)
    command = [MANTISSA, "plan", wide, "--inference", "--policy", "o2", "--format", "bf16", "--onnx", mixed]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    onnx.checker.check_model(mixed, full_check=True)
    graph = onnx.shape_inference.infer_shapes(onnx.load(mixed)).graph
    types = {t.name: t.data_type for t in graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input, *graph.output]}
    bad, low = [], 0
    for n in graph.node:
        schema = onnx.defs.get_schema(n.op_type, max_inclusive_version=opset)
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        for name, formal in [*zip(n.input, schema.inputs), *zip(n.output, schema.outputs)]:
            if types.get(name) == TensorProto.BFLOAT16:
                low += 1
                if "tensor(bfloat16)" not in allowed.get(formal.type_str, [formal.type_str]):
                    bad.append(f"{n.op_type} {name}")
    report(f"bf16 in opset {opset}", len(bad), f"{low} tensors in bf16; not allowed: {', '.join(bad) or 'none'}")
    assert low, "something runs in bf16"


MODELS = {
    "block": block, "convnet": convnet, "lstm": lstm, "loud": loud,
    "squeezenet": light("light_squeezenet"), "shufflenet": light("light_shufflenet"),
}
if __name__ == "__main__":
    for name, make in MODELS.items():
        for policy in ["auto", "o1"]:
            # Lists cannot know that activations overflow.
            if (name, policy) == ("loud", "o1"):
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    check(name, make, policy, pathlib.Path(folder))
                except (RuntimeError, AssertionError, onnx.checker.ValidationError) as e:
                    report(f"{name} under {policy}", 1, str(e))
    for opset in [18, 20, 22]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                check_bf16(opset, pathlib.Path(folder))
            except (RuntimeError, AssertionError, onnx.checker.ValidationError) as e:
                report(f"bf16 in opset {opset}", 1, str(e))
