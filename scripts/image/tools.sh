#!/usr/bin/env bash
# Makes /opt/build, which holds what builds and installs packages (uv, cmake, ninja, …) and which no image keeps.
# A package index other than pip's own comes in PIP_INDEX_URL, or in a secret: see index.sh.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/image/index.sh
. "$here/index.sh"
python3 -m venv /opt/build
/opt/build/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir \
  --require-hashes -r "${1:?the locked build requirements}"
/opt/build/bin/uv --version
