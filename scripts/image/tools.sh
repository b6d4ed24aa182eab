#!/usr/bin/env bash
# Create /opt/build with the tools that build and install packages (uv, cmake, ninja, …); no image keeps it.
# A package index other than pip's default comes from PIP_INDEX_URL or a build secret: see index.sh.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/image/index.sh
. "$here/index.sh"
python3 -m venv /opt/build
/opt/build/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir \
  --require-hashes -r "${1:?the locked build requirements}"
/opt/build/bin/uv --version
