#!/usr/bin/env bash
# Create the virtual environment $1 from the hash-locked requirements, with uv.
# uv is taken from the environment or from PATH; if neither has it, pip installs it into the environment.
set -euo pipefail
venv=$1
python=${PYTHON:-}
if [[ -z $python ]]; then
  echo "neuscale needs Python 3.11, 3.12 or 3.13 (found: $(python3 --version 2>&1 || echo none))." >&2
  echo "Install one, or name it: make PYTHON=/path/to/python3.12 …" >&2
  exit 1
fi
if ! { [[ -x $venv/bin/python ]] && "$venv/bin/python" -c '' 2>/dev/null; }; then
  echo "making $venv with $("$python" --version)"
  rm -rf "$venv"
  "$python" -m venv "$venv" || {
    echo "This Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv." >&2
    exit 1
  }
fi
if [[ -x $venv/bin/uv ]]; then
  uv=$venv/bin/uv
elif command -v uv >/dev/null; then
  uv=$(command -v uv)
else
  # The lock file contains uv's version and hashes as well.
  uv_lock=$(mktemp)
  trap 'rm -f "$uv_lock"' EXIT
  awk '/^uv==/ {on = 1} on {print} on && !/\\$/ {exit}' requirements-dev.lock >"$uv_lock"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$uv_lock"
  uv=$venv/bin/uv
fi
began=$SECONDS
# Compile bytecode now, not at each start in an environment that is not writable.
"$uv" pip sync --quiet --compile-bytecode --python "$venv/bin/python" --require-hashes \
  --build-constraints requirements-build.lock requirements-dev.lock
# Install the package itself, editable; its build requirements are among the locked packages.
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
echo "$venv is ready ($((SECONDS - began)) s)"
