#!/usr/bin/env bash
# Build the wheel of the program from SOURCE (a checkout) into the folder OUT.
#   app.sh SOURCE OUT
set -euo pipefail
source=${1:?the checkout} out=${2:?a folder for the wheel}
work=/tmp/neuscale-app
rm -rf "$work" && mkdir -p "$work" "$out"
(cd "$source" && cp -r app pyproject.toml README.md LICENSE "$work")
cd "$work"
# All files in the wheel get one fixed time, so that the wheel depends on its source only.
SOURCE_DATE_EPOCH=315532800 /opt/build/bin/hatchling build --target wheel --directory "$out"
cd /
rm -rf "$work"
