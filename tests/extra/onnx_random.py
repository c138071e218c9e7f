"""Random programs as ONNX files: onnxruntime must compute what the reference evaluator does.

Usage: onnx_random.py RANDOM_PROGRAMS [COUNT [SEED]]
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import safetensors.numpy

from formats import report

COUNT = sys.argv[2] if len(sys.argv) > 2 else "400"
SEED = sys.argv[3] if len(sys.argv) > 3 else "18"


def floats(path):
    """The floating-point initialisers of a file."""
    return [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]


def off(path):
    """What is wrong with a program, in words; none if nothing is. Programs that the runtime cannot run are told apart."""
    tensors = safetensors.numpy.load_file(path.with_suffix(".safetensors"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        wanted = {i.name for i in session.get_inputs()}
        given = {k[3:]: v for k, v in tensors.items() if k.startswith("in.") and k[3:] in wanted}
        names = [o.name for o in session.get_outputs()]
        results = dict(zip(names, session.run(None, given)))
    except Exception as e:
        return "not run", str(e).splitlines()[0][:160]
    # What minus infinity masks wholly has a softmax of 0 here, as in attention; the runtime's is NaN.
    masked = any(np.isneginf(onnx.numpy_helper.to_array(t)).any() for t in floats(path))
    for name, got in results.items():
        want, allowed = tensors[f"out.{name}"], tensors[f"allowed.{name}"]
        error = np.abs(got.astype(np.float64).reshape(want.shape) - want)
        if masked and np.isnan(got).any():
            return "not run", "a softmax of a row of minus infinity"
        bad = ~(error <= allowed) & ~(np.isnan(got) & np.isnan(want)) & ~(got == want)
        if bad.any():
            at = tuple(int(i[0]) for i in np.nonzero(bad)) if want.ndim else ()
            return "differs", f"`{name}`{list(at)} is {got[at]}, not {want[at]} ± {allowed[at]}"
    return None


def main():
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.argv[1], COUNT, SEED, "--onnx", folder], capture_output=True, text=True)
        print(done.stdout.strip())
        paths = sorted(pathlib.Path(folder).glob("*.onnx"), key=lambda p: int(p.stem))
        found = [(path, off(path)) for path in paths if path.with_suffix(".safetensors").exists()]
    wrong = [(p, f[1]) for p, f in found if f and f[0] == "differs"]
    refused = [(p, f[1]) for p, f in found if f and f[0] == "not run"]
    for path, why in wrong[:10]:
        print(f"    program {path.stem} of seed {SEED}: {why}")
    for path, why in refused[:3]:
        print(f"    program {path.stem} is not run: {why}")
    bad = len(wrong) + (done.returncode != 0) + (len(found) < int(COUNT) // 10)
    report("random programs as ONNX files", bad, f"{len(found)} of {COUNT}, {len(refused)} not run by onnxruntime")


main()
