"""Trains four networks to the end under every policy and prints final metrics as a table.

    python tests/extra/trained_to_the_end.py MANTISSA [--quick]

Policy auto must end within the spread of the f32 seeds: its mean no further from theirs than the widest of them is, with
a margin for three seeds being few. Exits with 1 where it does not. Takes about 20 minutes on two cores; --quick takes one
seed and few epochs, to see that everything runs.
"""

import concurrent.futures
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np

REPO = pathlib.Path(__file__).resolve().parents[2]
DIGITS = REPO / "examples" / "digits"

CNN = """model cnn {
  input x: f32[batch, 64]  label y: i64[batch]
  param k1: f32[16, 1, 3, 3] = kaiming_uniform  param c1: f32[16, 1, 1] = zeros
  param k2: f32[32, 16, 3, 3] = kaiming_uniform param c2: f32[32, 1, 1] = zeros
  param w: f32[512, 10] = kaiming_uniform       param b: f32[10] = zeros
  a = relu(conv(reshape(x, dims=[batch, 1, 8, 8]), k1, strides=[1, 1], lo=[1, 1], hi=[1, 1]) + c1)
  h = relu(conv(a, k2, strides=[2, 2], lo=[1, 1], hi=[1, 1]) + c2)
  loss = cross_entropy(reshape(h, dims=[batch, 512]) @ w + b, y)
}"""

LSTM = """model lstm {
  input x: f32[batch, 64]  label y: i64[batch]
  param w: f32[8, 128] = xavier_uniform   param b: f32[128] = zeros
  param r: f32[32, 128] = xavier_uniform
  param v: f32[32, 10] = xavier_uniform   param u: f32[10] = zeros
  gates = transpose(reshape(x, dims=[batch, 8, 8]), perm=[1, 0, 2]) @ w + b
  body row {
    input g: f32[batch, 128]
    state h: f32[batch, 32]
    state c: f32[batch, 32]
    param r: f32[32, 128]
    q = g + h @ r
    i = sigmoid(slice(q, axis=1, stop=32))
    f = sigmoid(slice(q, axis=1, start=32, stop=64) + 1)
    o = sigmoid(slice(q, axis=1, start=64, stop=96))
    kept = f * c + i * tanh(slice(q, axis=1, start=96, stop=128))
    update c = kept
    update h = o * tanh(kept)
  }
  zero = broadcast(0, dims=[batch, 32])
  last = scan(gates, zero, zero, r, body=row, steps=[8], last=h)
  loss = cross_entropy(last @ v + u, y)
}"""

SEQ, WIDTH, HEADS, LAYERS = 48, 64, 4, 4


def gpt(vocabulary):
    """A decoder of four layers over characters (pre-norm, learned positions), as text."""
    s, d, h, v = SEQ, WIDTH, HEADS, vocabulary
    lines = [
        f"input ids: i64[batch, {s}]  label y: i64[batch, {s}]",
        f"param wte: f32[{v}, {d}] = normal(0.02)  param wpe: f32[{s}, {d}] = normal(0.02)",
        f"row = iota(dims=[{s}, {s}], axis=0)",
        f"column = iota(dims=[{s}, {s}], axis=1)",
        "x0 = gather(wte, ids) + wpe",
    ]
    for i in range(LAYERS):
        for n, dims in [("qkv", [d, 3 * d]), ("out", [d, d]), ("up", [d, 4 * d]), ("down", [4 * d, d])]:
            lines.append(f"param {n}{i}: f32[{dims[0]}, {dims[1]}] = normal(0.02)  param {n}{i}.b: f32[{dims[1]}] = zeros")
        for n in ("a", "m"):
            lines.append(f"param ln{n}{i}.w: f32[{d}] = ones  param ln{n}{i}.b: f32[{d}] = zeros")
        lines.append(f"qkv{i}.y = layer_norm(x{2 * i}, lna{i}.w, lna{i}.b) @ qkv{i} + qkv{i}.b")
        for j, n in enumerate("qkv"):
            part = f"slice(qkv{i}.y, axis=2, start={j * d}, stop={(j + 1) * d})"
            lines.append(f"{n}{i}.h = transpose(reshape({part}, dims=[batch, {s}, {h}, {d // h}]), perm=[0, 2, 1, 3])")
        lines += [
            f"scores{i} = (q{i}.h @ transpose(k{i}.h, perm=[0, 1, 3, 2])) * {(d // h) ** -0.5}",
            f"seen{i} = softmax(select(broadcast(le(column, row), dims=[batch, {h}, {s}, {s}]), scores{i}, -1e30), axis=3)",
            f"mixed{i} = reshape(transpose(seen{i} @ v{i}.h, perm=[0, 2, 1, 3]), dims=[batch, {s}, {d}])",
            f"x{2 * i + 1} = x{2 * i} + mixed{i} @ out{i} + out{i}.b",
            f"wide{i} = gelu(layer_norm(x{2 * i + 1}, lnm{i}.w, lnm{i}.b) @ up{i} + up{i}.b)",
            f"x{2 * i + 2} = x{2 * i + 1} + wide{i} @ down{i} + down{i}.b",
        ]
    lines += [
        f"param lnf.w: f32[{d}] = ones  param lnf.b: f32[{d}] = zeros  param head: f32[{d}, {v}] = normal(0.02)",
        f"loss = cross_entropy(layer_norm(x{2 * LAYERS}, lnf.w, lnf.b) @ head, y)",
    ]
    return "model char_gpt {\n  " + "\n  ".join(lines) + "\n}"


def characters(path):
    """This project's own sources as sequences of characters, and the next ones."""
    text = "".join(p.read_text() for p in sorted((REPO / "src").rglob("*.rs")))
    text = "".join(c if c.isascii() else "?" for c in text)[:400_000]
    known = sorted(set(text))
    codes = np.array([known.index(c) for c in text], dtype=np.int64)
    starts = np.arange(0, len(codes) - SEQ - 1, SEQ)
    rng = np.random.default_rng(0)
    rng.shuffle(starts)
    for name, part in [("train", starts[400:]), ("test", starts[:400])]:
        x = np.stack([codes[i : i + SEQ] for i in part])
        y = np.stack([codes[i + 1 : i + SEQ + 1] for i in part])
        np.savez(path / f"{name}.npz", x=x, y=y)
    return len(known)


def main():
    mantissa, quick = sys.argv[1], "--quick" in sys.argv
    work = pathlib.Path(tempfile.mkdtemp())
    vocabulary = characters(work)
    digits = ["--data", str(DIGITS), "--scale", "0.0625"]
    text = ["--data", str(work / "train.npz"), "--test", str(work / "test.npz")]
    nets = {
        "digits MLP": ((DIGITS / "mlp.mir").read_text(), digits, 40, "accuracy"),
        "digits CNN": (CNN, digits, 20, "accuracy"),
        "digits LSTM": (LSTM, digits, 40, "accuracy"),
        "char GPT, 4 layers": (gpt(vocabulary), text, 1, "loss"),
    }
    seeds = [0] if quick else [0, 1, 2]
    variants = {
        "fp32": ["--policy", "fp32"],
        "o1 f16": ["--policy", "o1", "--format", "f16"],
        "o1 bf16": ["--policy", "o1", "--format", "bf16"],
        "auto f16": ["--policy", "auto", "--format", "f16"],
        "auto bf16": ["--policy", "auto", "--format", "bf16"],
        "auto both": ["--policy", "auto"],
    }
    jobs = {}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for net, (source, data, epochs, _) in nets.items():
            model = work / f"{net.replace(' ', '_').replace(',', '')}.mir"
            model.write_text(source)
            for variant, options in variants.items():
                for seed in seeds:
                    command = [mantissa, "train", str(model), *data, *options, "--optimizer", "adamw", "--lr", "0.002"]
                    command += ["--epochs", str(1 if quick else epochs), "--seed", str(seed), "--device", "cpu", "--json"]
                    command += ["--out", str(work / f"{model.stem}-{variant}-{seed}")]
                    jobs[net, variant, seed] = pool.submit(subprocess.run, command, capture_output=True, text=True)
    print("| network | metric | " + " | ".join(variants) + " |")
    print("|---" * (len(variants) + 2) + "|")
    failed = False
    for net, (_, _, _, metric) in nets.items():
        cells, spread = [], None
        for variant in variants:
            values = []
            for seed in seeds:
                done = jobs[net, variant, seed].result()
                if done.returncode != 0:
                    print(f"{net} {variant}: {done.stderr}", file=sys.stderr)
                    failed = True
                    continue
                last = json.loads(done.stdout)["last"]
                values.append(100 * last["test_accuracy"] if metric == "accuracy" else last["test_loss"])
            if not values:
                cells.append("failed")
                continue
            mean, digits_shown = statistics.mean(values), 2 if metric == "accuracy" else 4
            cells.append(f"{mean:.{digits_shown}f} ({min(values):.{digits_shown}f}–{max(values):.{digits_shown}f})")
            if variant == "fp32":
                center, reach = mean, max(max(values) - mean, mean - min(values))
                # Three seeds show about two thirds of the spread of ten.
                spread = (center, 1.5 * reach + (0.3 if metric == "accuracy" else 0.005))
            elif variant.startswith("auto") and spread and abs(mean - spread[0]) > spread[1] and not quick:
                worse = mean < spread[0] if metric == "accuracy" else mean > spread[0]
                if worse:
                    print(f"{net} {variant}: {mean} is outside {spread[0]} ± {spread[1]}", file=sys.stderr)
                    failed = True
        unit = "test accuracy, %" if metric == "accuracy" else "test loss"
        print(f"| {net} | {unit} | " + " | ".join(cells) + " |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
