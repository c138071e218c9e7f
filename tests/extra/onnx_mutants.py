"""ONNX's node tests, damaged one at a time: a model that cannot be meant is refused, never a panic.

    onnx_mutants.py MODEL_CHECKS

Every attribute is shortened, zeroed and negated, every input dropped, every shape given an axis more, one less, and an
extent of 0. What is still a model may be planned; exit code 101 is Rust's panic.
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile

import onnx
from onnx import AttributeProto

from formats import report

MANTISSA = pathlib.Path(sys.argv[1]).parent.parent / "mantissa"
QUICK = os.environ.get("MANTISSA_EXTRA") == "quick"


def damaged(model):
    """Copies of the model with one thing wrong, and what that is."""

    def copy():
        other = onnx.ModelProto()
        other.CopyFrom(model)
        return other, other.graph

    for i, node in enumerate(model.graph.node):
        for a, attribute in enumerate(node.attribute):
            for what, change in [("shorter", lambda v: v[:-1]), ("zero", lambda v: [0] * len(v)), ("negative", lambda v: [-7] * len(v))]:
                other, graph = copy()
                target = graph.node[i].attribute[a]
                if attribute.type == AttributeProto.INTS:
                    values = change(list(attribute.ints))
                    del target.ints[:]
                    target.ints.extend(values)
                elif attribute.type == AttributeProto.INT and what != "shorter":
                    target.i = 0 if what == "zero" else -7
                elif attribute.type == AttributeProto.STRING and what == "shorter":
                    target.s = b"nonsense"
                else:
                    continue
                yield other, f"{attribute.name} {what}"
        for x in range(len(node.input)):
            other, graph = copy()
            graph.node[i].input[x] = ""
            yield other, f"without input {x}"
    for i, value in enumerate(model.graph.input):
        if not value.type.HasField("tensor_type"):
            continue
        for what in ["wider", "narrower", "empty"]:
            other, graph = copy()
            dims = graph.input[i].type.tensor_type.shape.dim
            if what == "wider":
                dims.add().dim_value = 3
            elif not dims:
                continue
            elif what == "narrower":
                del dims[-1]
            else:
                dims[-1].dim_value = 0
            yield other, f"{value.name} {what}"


def panics(case, folder):
    """The mutants of a case that make the compiler panic."""
    path = folder / f"{case.name}.onnx"
    out, count = [], 0
    for model, what in damaged(onnx.load(case / "model.onnx")):
        path.write_bytes(model.SerializeToString())
        run = subprocess.run([MANTISSA, "plan", path, "--policy", "fp32", "--emit", "ir"], capture_output=True, text=True)
        count += 1
        if run.returncode not in (0, 1, 2):
            at = next((l for l in run.stderr.splitlines() if "panicked" in l), run.stderr[-200:])
            out.append(f"{case.name} with {what}: {at}")
    path.unlink(missing_ok=True)
    return count, out


cases = sorted((pathlib.Path(onnx.__file__).parent / "backend/test/data/node").iterdir())
cases = [c for c in cases if (c / "model.onnx").exists()][:: 10 if QUICK else 1]
with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    results = list(pool.map(lambda c: panics(c, pathlib.Path(folder)), cases))
bad = [line for _, lines in results for line in lines]
for line in bad[:200]:
    print(line)
report("damaged node tests", len(bad), f"{sum(n for n, _ in results)} models, none panicked" if not bad else "panics")
