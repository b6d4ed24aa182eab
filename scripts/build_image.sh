#!/usr/bin/env bash
# Build the Docker image IMAGE with its labels, for docker-compose.yml and docker run.
#   build_image.sh IMAGE [OPTION of docker build …]
# Optional environment variables: BASE_IMAGE and DEVEL_IMAGE (other base images, by tag and digest),
# INDEX_FILE (a file with the URL of a package index) and CA_FILE (the certificate of an authority that is
# trusted as well, such as a proxy's, PEM); both are mounted while packages are installed. HTTP_PROXY,
# HTTPS_PROXY and NO_PROXY are those of the build.
set -euo pipefail
cd "$(dirname "$0")/.."
image=${1:?the name of the image}
shift
arguments=()
for name in BASE_IMAGE DEVEL_IMAGE; do
  if [[ -n ${!name:-} ]]; then arguments+=(--build-arg "$name=${!name}"); fi
done
if [[ -n ${INDEX_FILE:-} ]]; then arguments+=(--secret "id=index,src=$INDEX_FILE"); fi
if [[ -n ${CA_FILE:-} ]]; then arguments+=(--secret "id=ca,src=$CA_FILE"); fi
for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
  if [[ -n ${!name:-} ]]; then arguments+=(--build-arg "$name"); fi
done
arguments+=(--build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)")
arguments+=(--build-arg "LOCK_SHA256=$(sha256sum requirements.lock | cut -d ' ' -f 1)")
if revision=$(git rev-parse HEAD 2>/dev/null); then
  [[ -z $(git status --porcelain 2>/dev/null) ]] || revision+=-dirty
  SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
  arguments+=(--build-arg "REVISION=$revision")
fi
# The timestamp of the image is that of the source.
arguments+=(--build-arg "SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}")
DOCKER_BUILDKIT=1 docker build --tag "$image" "${arguments[@]}" "$@" .
