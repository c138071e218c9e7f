"""ONNX's own tests of its Cast operator, from the onnx package, reproduced with our formats.

Every case between f32 and the narrow formats we have is run, saturating and not. Usage: onnx_casts.py EXTRA_CHECKS
"""

import collections
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from formats import FORMATS, call, report

OURS = {
    TensorProto.FLOAT16: "f16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.FLOAT8E4M3FN: "f8e4m3",
    TensorProto.FLOAT8E5M2: "f8e5m2",
}
KNOWN = {TensorProto.FLOAT, *OURS}
NARROW_FLOATS = {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2}


def bits(t):
    """The codes of a tensor in a narrow format."""
    array = numpy_helper.to_array(t).reshape(-1)
    assert array.dtype == FORMATS[OURS[t.data_type]], array.dtype
    return array.view(f"u{array.dtype.itemsize}").astype("<u2")


def widened(t):
    """A tensor's elements as f32; narrow ones by our own decoding."""
    if t.data_type == TensorProto.FLOAT:
        return numpy_helper.to_array(t).reshape(-1)
    return call("decode", OURS[t.data_type])[bits(t)]


def wrong(case, source, target):
    """How many elements of a case we cast differently."""
    cast = onnx.load(case / "model.onnx").graph.node[0]
    saturate = next((a.i for a in cast.attribute if a.name == "saturate"), 1)
    x = widened(source)
    if target.data_type == TensorProto.FLOAT:
        got, want = x, numpy_helper.to_array(target).reshape(-1)
        return int(np.sum((got.view("<u4") != want.view("<u4")) & ~(np.isnan(got) & np.isnan(want))))
    # Only casts to 8 bits saturate; wider formats overflow to infinity.
    mode = "saturate" if saturate and target.data_type in NARROW_FLOATS else "ieee"
    name = OURS[target.data_type]
    got, want = call("encode", name, mode, data=x, dtype="<u2"), bits(target)
    numbers = call("decode", name)
    return int(np.sum((got != want) & ~(np.isnan(numbers[got]) & np.isnan(numbers[want]))))


def main():
    cases = sorted((pathlib.Path(onnx.__file__).parent / "backend/test/data/node").glob("test_cast_*"))
    ran, elements, failed, other = 0, 0, [], collections.Counter()
    for case in cases:
        source = onnx.load_tensor(case / "test_data_set_0/input_0.pb")
        target = onnx.load_tensor(case / "test_data_set_0/output_0.pb")
        unknown = [t for t in (source.data_type, target.data_type) if t not in KNOWN]
        if unknown:
            other[TensorProto.DataType.Name(unknown[0])] += 1
            continue
        ran += 1
        elements += int(np.prod(source.dims))
        if wrong(case, source, target):
            failed.append(case.name)
    why = ", ".join(f"{name} {count}" for name, count in sorted(other.items()))
    text = f"{ran} cases with {elements} elements; {other.total()} of {len(cases)} need types other than f32 and our narrow formats: {why}"
    passed = report("onnx casts", len(failed), "; ".join([text, *failed]))
    sys.exit(not passed or ran == 0)


if __name__ == "__main__":
    main()
