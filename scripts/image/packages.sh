#!/usr/bin/env bash
# Create /opt/neuscale, the runtime environment, with exactly the packages of a hash-locked file.
#   packages.sh REQUIREMENTS BUILD-REQUIREMENTS
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/image/index.sh
. "$here/index.sh"
requirements=${1:?the locked requirements} build=${2:?the locked build requirements}
[[ -d /opt/neuscale ]] || python3 -m venv --without-pip /opt/neuscale
# Compile bytecode now, because an image is read-only. It stores hashes instead of file times, which differ
# between builds; the hashes are unchecked, because the files never change.
export PYC_INVALIDATION_MODE=UNCHECKED_HASH UV_LINK_MODE=copy
/opt/build/bin/uv pip sync --quiet --compile-bytecode --python /opt/neuscale/bin/python \
  --require-hashes --build-constraints "$build" "$requirements"
rm -f /tmp/uv-*.lock
