#!/usr/bin/env bash
# Builds the wheel of the native ops in SOURCE into OUT, with nvcc; fails where the CUDA library is not in it.
#   ops.sh SOURCE OUT
# Needs /opt/neuscale (torch's headers and libraries), /opt/build (cmake, ninja) and a CUDA toolkit.
set -euo pipefail
source=${1:?the folder cuda_ops} out=${2:?a folder for the wheel}
# Always the same path: what the compiler writes into the libraries is then the same, too.
work=/tmp/neuscale-ops
rm -rf "$work" && mkdir -p "$work" "$out"
cp -r "$source" "$work/cuda_ops"
cd "$work/cuda_ops"
# Files in the wheel have one time, whenever they were made: a wheel depends on its source alone.
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
