#!/usr/bin/env bash
# Install the commands and their environment, and write the image's description (image.json) and contents
# (sbom.spdx.json).
#   finish.sh REQUIREMENTS
# Optional environment variables: VERSION, REVISION, LOCK_SHA256, SOURCE_DATE_EPOCH.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
requirements=${1:?the locked requirements}
lock=$(sha256sum "$requirements" | cut -d ' ' -f 1)
if [[ -n ${LOCK_SHA256:-} && $LOCK_SHA256 != "$lock" ]]; then
  echo "LOCK_SHA256 is $LOCK_SHA256, but $requirements has $lock: the label would be wrong." >&2
  exit 1
fi
version=$(/opt/neuscale/bin/python -I -c 'import neuscale; print(neuscale.__version__)')
if [[ ${VERSION:-unknown} != unknown && $VERSION != "$version" ]]; then
  echo "VERSION is $VERSION, but this is neuscale $version: the label would be wrong." >&2
  exit 1
fi
install -m 755 "$here/neuscale" /usr/local/bin/neuscale
install -m 755 "$here/with-environment" /usr/local/bin/with-environment
for name in python tensorboard torchrun accelerate; do
  install -m 755 "$here/program" "/usr/local/bin/$name"
done
install -D -m 644 "$here/environment.sh" /opt/neuscale/share/neuscale/environment.sh
LOCK_SHA256=$lock /opt/neuscale/bin/python -I "$here/describe.py" /opt/neuscale/share/neuscale
# Check that both libraries of the native ops load and that the program starts.
/opt/neuscale/bin/python -W ignore -I -c 'from neuscale_ops import build_info as b; assert b()["cpu"] and b()["cuda"], b()'
cd /tmp
NEUSCALE_CACHE=/tmp/neuscale-check neuscale --version
rm -rf /tmp/neuscale-check /root/.cache /root/.config /root/.nv
