#!/usr/bin/env bash
# Makes /opt/neuscale, a virtual environment of exactly the packages of a hash-locked file, for what runs.
#   packages.sh REQUIREMENTS BUILD-REQUIREMENTS
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/image/index.sh
. "$here/index.sh"
requirements=${1:?the locked requirements} build=${2:?the locked build requirements}
[[ -d /opt/neuscale ]] || python3 -m venv --without-pip /opt/neuscale
# Bytecode is compiled now, as an image is read-only, and without the time of each file, which differs from
# build to build; the files never change, so they need not be looked at either.
export PYC_INVALIDATION_MODE=UNCHECKED_HASH UV_LINK_MODE=copy
/opt/build/bin/uv pip sync --quiet --compile-bytecode --python /opt/neuscale/bin/python \
  --require-hashes --build-constraints "$build" "$requirements"
rm -f /tmp/uv-*.lock
