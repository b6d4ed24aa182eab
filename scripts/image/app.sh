#!/usr/bin/env bash
# Builds the wheel of the program in SOURCE (a checkout) into OUT.
#   app.sh SOURCE OUT
set -euo pipefail
source=${1:?the checkout} out=${2:?a folder for the wheel}
work=/tmp/neuscale-app
rm -rf "$work" && mkdir -p "$work" "$out"
(cd "$source" && cp -r app pyproject.toml README.md LICENSE "$work")
cd "$work"
# Files in the wheel have one time, whenever they were made: a wheel depends on its source alone.
SOURCE_DATE_EPOCH=315532800 /opt/build/bin/hatchling build --target wheel --directory "$out"
cd /
rm -rf "$work"
