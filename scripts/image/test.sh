#!/usr/bin/env bash
# The tests, in the image.
#   test.sh install REQUIREMENTS BUILD-REQUIREMENTS     adds what the tests need to /opt/neuscale
#   test.sh run CHECKOUT [OPTION of pytest …]           runs them on what is installed; the checkout is only read
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
case ${1:-} in
  install)
    # shellcheck source=scripts/image/index.sh
    . "$here/index.sh"
    UV_LINK_MODE=copy /opt/build/bin/uv pip install --quiet --python /opt/neuscale/bin/python \
      --require-hashes --build-constraints "${3:?}" --requirements "${2:?}"
    ;;
  run)
    checkout=${2:?the checkout}
    shift 2
    cd "$(mktemp -d)"
    # -P: what is tested is what the image has installed, not a folder beside the tests.
    # No exec: a test that opens a terminal must not be the first process of its session, whose terminal that became.
    # In a process per core; threads that wait leave theirs to the other process.
    OMP_WAIT_POLICY=passive with-environment python -P -m pytest -c "$checkout/pyproject.toml" --rootdir "$checkout" \
      -n auto --maxprocesses 4 --dist loadfile -p no:cacheprovider -m 'not containers and not network' "$@" "$checkout/tests" "$checkout/cuda_ops/tests"
    ;;
  *) sed -n '3,4s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
