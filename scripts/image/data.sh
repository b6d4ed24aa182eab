#!/usr/bin/env bash
# Prepares Fashion-MNIST into /data, from the distribution's package that system.sh installed, and makes /runs.
# Any user may add data sets and runs, and remove their own; the prepared one is only read.
set -euo pipefail
mkdir -p /data /runs
NEUSCALE_DATA=/data NEUSCALE_OPS=off /opt/neuscale/bin/neuscale data prepare fashion_mnist
find /data -name '.*.lock' -delete
chmod -R a+rX /data
chmod 1777 /data /data/packed /runs
rm -rf /root/.cache /root/.config
