#!/usr/bin/env bash
# Run the tests in the image.
#   test.sh install REQUIREMENTS BUILD-REQUIREMENTS     install the test requirements into /opt/neuscale
#   test.sh run CHECKOUT [OPTION of pytest …]           test the installed packages; the checkout is only read
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
    # -P: test the packages installed in the image, not a folder beside the tests.
    # No exec: as the session leader, pytest would get a terminal that a test opens as controlling terminal.
    # One process per core; waiting threads do not spin, so that they leave the core to other processes.
    OMP_WAIT_POLICY=passive with-environment python -P -m pytest -c "$checkout/pyproject.toml" --rootdir "$checkout" \
      -n auto --maxprocesses 4 --dist loadfile -p no:cacheprovider -m 'not containers and not network' "$@" "$checkout/tests" "$checkout/cuda_ops/tests"
    ;;
  *) sed -n '3,4s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
