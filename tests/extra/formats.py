"""Number formats against numpy and ml_dtypes: decoding of every code, rounding of many f32 bit patterns.

The other scripts take `call` and `report` from here. Usage: formats.py EXTRA_CHECKS
"""

import subprocess
import sys

import ml_dtypes
import numpy as np

FORMATS = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


def call(command, *args, data=None, dtype="<f4"):
    """Runs the helper program on f32 numbers and returns the numbers it writes."""
    stdin = b"" if data is None else np.ascontiguousarray(data, "<f4").tobytes()
    done = subprocess.run([sys.argv[1], command, *args], input=stdin, stdout=subprocess.PIPE, check=True)
    return np.frombuffer(done.stdout, dtype)


def report(name, bad, text):
    """Prints a check's line and returns whether it passed; `bad` counts what disagrees."""
    print(f"ok {name}: {text}" if bad == 0 else f"FAILED {name}: {bad} wrong; {text}", flush=True)
    return bad == 0


def differing(got, want):
    """How many f32 numbers differ: bits are compared, so zeros have signs, but any NaN equals any other."""
    assert got.shape == want.shape, (got.shape, want.shape)
    return int(np.sum((got.view("<u4") != want.view("<u4")) & ~(np.isnan(got) & np.isnan(want))))


def codes_of(dtype):
    """Every number of a format, in the order of its codes."""
    bits = 8 * dtype.itemsize
    return np.arange(2**bits, dtype=f"u{dtype.itemsize}").view(dtype)


def inputs(dtype):
    """f32 numbers to round: random bits, special ones, every number of the format, every tie, and their neighbours."""
    random = np.random.default_rng(1).integers(0, 2**32, 400_000, dtype=np.uint32).view(np.float32)
    numbers = codes_of(dtype).astype(np.float64)
    numbers = np.unique(np.abs(numbers[np.isfinite(numbers)]))
    beyond = 2 * numbers[-1] - numbers[-2]
    numbers = np.append(numbers, beyond)
    ties = ((numbers[:-1] + numbers[1:]) / 2).astype(np.float32)
    special = [np.inf, np.nan, np.finfo(np.float32).max, np.finfo(np.float32).tiny, np.finfo(np.float32).smallest_subnormal, beyond * 1.5]
    exact = np.concatenate([numbers, special]).astype(np.float32)
    points = np.concatenate([exact, ties])
    points = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))])
    return np.concatenate([random, points, -points]), 2 * len(ties)


def check_decode(name, dtype):
    want = codes_of(dtype).astype(np.float32)
    return report(f"decode {name}", differing(call("decode", name), want), f"{len(want)} codes")


def check_round(name, dtype):
    x, ties = inputs(dtype)
    want = x.astype(dtype)
    bad = differing(call("round", name, "ieee", data=x), want.astype(np.float32))
    codes = call("encode", name, "ieee", data=x, dtype="<u2")
    bad += int(np.sum((codes != want.view(f"u{dtype.itemsize}")) & ~np.isnan(want.astype(np.float32))))
    return report(f"round {name} ieee", bad, f"{len(x)} numbers, {ties} of them ties, as numbers and as codes")


def check_saturate(name, dtype):
    x, _ = inputs(dtype)
    top = np.float32(ml_dtypes.finfo(dtype).max)
    want = np.clip(x, -top, top).astype(dtype).astype(np.float32)
    return report(f"round {name} saturate", differing(call("round", name, "saturate", data=x), want), f"{len(x)} numbers")


def main():
    checks = [check(name, dtype) for check in (check_decode, check_round, check_saturate) for name, dtype in FORMATS.items()]
    sys.exit(not all(checks))


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
