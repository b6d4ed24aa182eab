#!/usr/bin/env bash
# Prepares Fashion-MNIST into /data, from the distribution's package that system.sh installed, and makes /runs.
# Any user may add data sets and runs, and remove their own; the prepared one is only read.
# With SOURCE_DATE_EPOCH in the environment that is the date in its record, so that two builds are the same.
set -euo pipefail
if [[ ${SOURCE_DATE_EPOCH:-0} == 0 ]]; then unset SOURCE_DATE_EPOCH; fi
mkdir -p /data /runs
NEUSCALE_DATA=/data NEUSCALE_OPS=off /opt/neuscale/bin/neuscale data prepare fashion_mnist
find /data -name '.*.lock' -delete
chmod -R a+rX /data
chmod 1777 /data /data/packed /runs
rm -rf /root/.cache /root/.config
