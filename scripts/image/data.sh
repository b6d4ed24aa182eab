#!/usr/bin/env bash
# Prepare Fashion-MNIST in /data, from the distribution's package that system.sh installed, and create /runs.
# Any user may add data sets and runs, and remove their own; the prepared data set is read-only.
# SOURCE_DATE_EPOCH, if set, is the date in the data set's record, so that two builds are identical.
set -euo pipefail
if [[ ${SOURCE_DATE_EPOCH:-0} == 0 ]]; then unset SOURCE_DATE_EPOCH; fi
mkdir -p /data /runs
NEUSCALE_DATA=/data NEUSCALE_OPS=off /opt/neuscale/bin/neuscale data prepare fashion_mnist
find /data -name '.*.lock' -delete
chmod -R a+rX /data
chmod 1777 /data /data/packed /runs
rm -rf /root/.cache /root/.config
