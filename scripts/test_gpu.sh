#!/usr/bin/env bash
# Run tests and benchmarks that need an NVIDIA GPU, and write measurements to benchmarks/results.
# After a failure the remaining steps still run.
#   test_gpu.sh PYTHON [ARCHIVE]    PYTHON can import neuscale and neuscale_ops; ARCHIVE contains CIFAR-10
#                                   (downloaded if not given)
set -uo pipefail
cd "$(dirname "$0")/.." || exit
python=${1:?a Python that imports neuscale and neuscale_ops}
source=(${2:+--source "$2"})
failed=()
try() {
  local began=$SECONDS
  "$@" || failed+=("$*")
  echo "-- $((SECONDS - began)) s: $*"
}
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "test_gpu.sh: $python's torch finds no NVIDIA GPU here." >&2
  exit 1
}
name=$("$python" -c 'import re, time, torch
print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()) + time.strftime("-%Y-%m-%d"))')
try "$python" -m pytest -m gpu tests/training/test_on_gpu.py cuda_ops/tests
try "$python" benchmarks/ops.py --device cuda --output "benchmarks/results/$name.json"
try "$python" benchmarks/step.py --device cuda
try "$python" -m neuscale data prepare cifar10 "${source[@]}"
try "$python" benchmarks/checkpoint.py --device cuda
for command in "${failed[@]}"; do echo "FAILED: $command"; done
((${#failed[@]} == 0))
