#!/usr/bin/env bash
# Build the Apptainer image SIF, from apptainer.def or from an existing Docker image.
#   build_sif.sh SIF definition|docker [IMAGE]
# Optional environment variables: REGISTRY, BASE_IMAGE and DEVEL_IMAGE for the definition's base images,
# INDEX_FILE (a file with the URL of a package index), CA_FILE (the certificate of an authority that is trusted
# as well, PEM), APPTAINER_BUILD (options of apptainer build).
set -euo pipefail
cd "$(dirname "$0")/.."
sif=${1:?the .sif file} from=${2:?definition or docker} image=${3:-}
read -r -a options <<<"${APPTAINER_BUILD:-}"
partial=$(mktemp --suffix=.sif "${sif%.sif}.partial-XXXXXX")
trap 'rm -rf "$partial" ${scratch:+"$scratch"}' EXIT
case $from in
  docker)
    scratch=$(mktemp -d)
    echo "making $sif from the Docker image $image"
    docker save --output "$scratch/image.tar" "$image"
    apptainer build --force "${options[@]}" "$partial" "docker-archive:$scratch/image.tar"
    ;;
  definition)
    # Both stages and the compressed image exist at the same time; the size in GB is measured.
    needed=18 build=${APPTAINER_TMPDIR:-${TMPDIR:-/tmp}}
    free=$(df --output=avail --block-size=G "$build" | tail -1 | tr -dc 0-9)
    if ((free < needed)); then
      echo "warning: $build has $free GB free, and building $sif takes about $needed GB there:" \
        "make room, or name a larger folder in APPTAINER_TMPDIR" >&2
    fi
    for name in REGISTRY BASE_IMAGE DEVEL_IMAGE; do
      if [[ -n ${!name:-} ]]; then options+=(--build-arg "$name=${!name}"); fi
    done
    if [[ -n ${INDEX_FILE:-} ]]; then options+=(--bind "$INDEX_FILE:/run/secrets/index"); fi
    if [[ -n ${CA_FILE:-} ]]; then options+=(--bind "$CA_FILE:/run/secrets/ca"); fi
    options+=(--build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || true)")
    options+=(--build-arg "SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}")
    apptainer build --force "${options[@]}" "$partial" apptainer.def
    ;;
  *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
chmod 644 "$partial"
mv "$partial" "$sif" # atomic: never a partial file
