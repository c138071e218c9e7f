#!/usr/bin/env bash
# The second test layer: checks against what others computed. Needs Python 3.11 or newer, packages from PyPI (kept
# under target/, 2 GB), and no GPU. `cargo test`, the first layer, needs none of this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONDONTWRITEBYTECODE=1

venv=target/extra-venv
nvrtc12=target/extra-nvrtc12
stubs=target/extra-stubs
[ -x $venv/bin/pip ] || python3 -m venv $venv
pip() { $venv/bin/pip --quiet --disable-pip-version-check "$@"; }
pip install numpy==2.4.6 ml_dtypes==0.6.0 onnx==1.20.1 onnxruntime==1.31.1 safetensors==0.8.0
pip install --no-deps 'nvidia-cuda-nvrtc==13.0.*'
# CUDA 13 does not compile for Volta.
[ -d $nvrtc12/nvidia ] || pip install --no-deps --target $nvrtc12 'nvidia-cuda-nvrtc-cu12==12.9.*'
# PyTorch without the CUDA libraries it is linked against, but for the runtime, which its libraries call when loaded.
pip install onnxscript==0.7.2 onnx-ir==1.1.0 filelock==4.2.11 fsspec==2026.9.0 jinja2==3.1.6 networkx==3.6.1 \
    sympy==1.14.0 typing_extensions==4.16.0 setuptools==80.9.0
pip install --no-deps torch==2.15.0 nvidia-cuda-runtime==13.2.75

cargo build --release --quiet --target-dir target --example extra_checks --example model_checks --example random_programs --bin mantissa
helper=$PWD/target/release/examples/extra_checks
models=$PWD/target/release/examples/model_checks
python=$venv/bin/python
$python tests/extra/torch_stubs.py $stubs
lib13=$(echo "$PWD"/$venv/lib/python3*/site-packages/nvidia/cu13/lib)
lib12=$PWD/$nvrtc12/nvidia/cuda_nvrtc/lib

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Runs a command that prints a line for each check; one that ends early counts as a failure.
check() {
    local failed
    failed=$(grep -c '^FAILED' "$log" || true)
    if ! "$@" | tee -a "$log" && [ "$(grep -c '^FAILED' "$log" || true)" = "$failed" ]; then
        echo "FAILED ${*: -2}: ended early" | tee -a "$log"
    fi
}
check $python tests/extra/formats.py "$helper"
check $python tests/extra/onnx_casts.py "$helper"
check $python tests/extra/onnx_forward.py "$helper"
check $python tests/extra/onnx_cnns.py "$models"
check $python tests/extra/onnx_export.py "$models"
check $python tests/extra/onnx_mutants.py "$models"
check $python tests/extra/onnx_mixed.py target/release/mantissa
check env MANTISSA_ONNX_TESTS="$(echo "$PWD"/$venv/lib/python3*/site-packages/onnx/backend/test/data)" bash -c '
    cargo test --release --quiet --target-dir target --test onnx_nodes -- --nocapture && echo "ok onnx node tests"'
check env LD_LIBRARY_PATH=$stubs CUDA_VISIBLE_DEVICES= $python tests/extra/torch_gradients.py "$helper"
check env LD_LIBRARY_PATH=$stubs CUDA_VISIBLE_DEVICES= $python tests/extra/torch_training.py target/release/mantissa
random=$PWD/target/release/examples/random_programs
check env MANTISSA_CUDA_LIB="$lib13" RUST_BACKTRACE=0 bash -c '
    "$0" 30 16 --ways fp32,o1-f16 --device nvrtc && echo "ok random programs through NVRTC"' "$random"
check env RUST_BACKTRACE=0 bash -c '"$0" 120 17 --ways fp32 && echo "ok random programs in f32"' "$random"
check $python tests/extra/onnx_random.py "$random" 150
# Compilers run on one core each: two at a time.
check env MANTISSA_CUDA_LIB="$lib13" "$helper" nvrtc sm_75 sm_80 &
check env MANTISSA_CUDA_LIB="$lib13" "$helper" nvrtc sm_89 sm_90a
check env MANTISSA_CUDA_LIB="$lib12" "$helper" nvrtc sm_70
wait
# The book.
mdbook=$PWD/target/extra-mdbook/bin/mdbook
[ -x "$mdbook" ] || cargo install --debug --quiet --locked --version 0.5.4 --no-default-features --root target/extra-mdbook mdbook
check bash -c '"$0" build docs --dest-dir "$1" && [ -s "$1/reading-a-plan.html" ] && echo "ok book"' "$mdbook" "$PWD/target/book"
# A browser, where there is one or it can be installed.
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -z "$chromium" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    (apt-get update && apt-get install -y chromium) >/dev/null 2>&1 || true
    chromium=$(command -v chromium || true)
fi
if [ -n "$chromium" ]; then
    check $python tests/extra/report.py target/release/mantissa "$chromium" target/report.png
else
    echo "skipped: no Chromium to open a report in"
fi

failed=$(grep -c '^FAILED' "$log" || true)
echo "$(grep -c '^ok ' "$log" || true) passed, $failed failed"
[ "$failed" = 0 ]
