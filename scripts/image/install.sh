#!/usr/bin/env bash
# Install locally built wheels into /opt/neuscale. Their dependencies are installed already; no downloads.
#   install.sh WHEEL…
set -euo pipefail
export PYC_INVALIDATION_MODE=UNCHECKED_HASH UV_LINK_MODE=copy
/opt/build/bin/uv pip install --quiet --compile-bytecode --python /opt/neuscale/bin/python \
  --no-cache --no-index --no-deps "$@"
# Remove uv's record of the wheel's modification time, which would be the only difference between two builds.
for note in /opt/neuscale/lib/python3*/site-packages/*.dist-info/uv_cache.json; do
  [[ -e $note ]] || continue
  rm "$note"
  sed -i '/uv_cache\.json,/d' "${note%/*}/RECORD"
done
