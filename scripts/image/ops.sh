#!/usr/bin/env bash
# Build the wheel of the native ops from SOURCE into OUT, with nvcc; fail if one of the libraries is missing.
#   ops.sh SOURCE OUT
# Needs /opt/neuscale (torch's headers and libraries), /opt/build (cmake, ninja) and a CUDA toolkit.
set -euo pipefail
source=${1:?the folder cuda_ops} out=${2:?a folder for the wheel}
# A fixed path, so that paths that the compiler writes into the libraries do not differ between builds.
work=/tmp/neuscale-ops
rm -rf "$work" && mkdir -p "$work" "$out"
cp -r "$source" "$work/cuda_ops"
cd "$work/cuda_ops"
# All files in the wheel get one fixed time, so that the wheel depends on its source only.
export SOURCE_DATE_EPOCH=315532800
python=/opt/neuscale/bin/python
PATH=/opt/build/bin:$PATH \
PYTHONPATH=$(echo /opt/build/lib/python3*/site-packages) \
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
  "$python" -c '
import sys
from scikit_build_core.build import build_wheel
settings = {"cmake.define.NEUSCALE_OPS_CUDA": "ON", "build-dir": sys.argv[2]}
print(build_wheel(sys.argv[1], settings))' "$out" "$work/build"
cd /
rm -rf "$work"
for library in neuscale_ops_cpu.so neuscale_ops_cuda.so; do
  "$python" -m zipfile --list "$out"/neuscale_ops-*.whl | grep -q "neuscale_ops/$library" || {
    echo "$out: the wheel of the native ops has no $library" >&2
    exit 1
  }
done
