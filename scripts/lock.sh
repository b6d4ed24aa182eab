#!/usr/bin/env bash
# Resolve the requirements for all platforms and Python versions, with hashes and without index URLs.
#   scripts/lock.sh UV [--upgrade …]
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$1
shift
compile() {
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate "$@"
}
compile pyproject.toml --output-file requirements.lock "$@"
compile pyproject.toml --group dev --constraints requirements.lock --output-file requirements-dev.lock "$@"
# Build requirements of the packages that are distributed as source only.
compile requirements-build.in --constraints requirements-dev.lock --output-file requirements-build.lock "$@"
# The oldest versions that pyproject.toml allows, for 'make test-lowest'.
compile pyproject.toml --group test --resolution lowest-direct \
  --output-file requirements-lowest.lock
wc -l requirements*.lock
