#!/usr/bin/env bash
# Run tests with the oldest versions that pyproject.toml allows, in a separate environment: the program's
# wheel, and the wheel of the native ops built with the newest torch.
#   test_lowest.sh VENV [OPTION of pytest …]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?the environment to make}
shift
uv=.venv/bin/uv
if [[ ! $venv/.ready -nt requirements-lowest.lock ]]; then
  # The oldest numpy has no wheels for Python 3.13.
  "$uv" venv --quiet --clear --no-python-downloads --python '>=3.11,<3.13' "$venv"
  "$uv" pip sync --quiet --python "$venv/bin/python" --require-hashes \
    --build-constraints requirements-build.lock requirements-lowest.lock
  touch "$venv/.ready"
fi
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
for source in . cuda_ops; do
  PATH=$PWD/.venv/bin:$PATH "$uv" build --quiet --wheel --no-build-isolation --python .venv/bin/python \
    --out-dir "$wheels" "$source"
done
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps --reinstall "$wheels"/*.whl
"$venv/bin/python" -W ignore -c '
import sys, numpy, torch, torchvision, accelerate
from neuscale_ops import build_info
print("Python", sys.version.split()[0], *(f"{m.__name__} {m.__version__}" for m in (torch, torchvision, accelerate, numpy)))
assert build_info()["cpu"], "the native ops do not load"'
OMP_WAIT_POLICY=passive "$venv/bin/python" -m pytest "$@"
