#!/usr/bin/env bash
# Installs what an image needs of its distribution, and leaves no package lists behind.
#   system.sh run     Python, a C++ compiler and Python's headers (torch.compile), an init, Fashion-MNIST
#   system.sh tools   Python that can make a virtual environment with pip in it
#   system.sh build   Python and a C++ compiler, beside the base image's nvcc
set -euo pipefail
case ${1:-} in
  run) packages=(ca-certificates python3 python3-dev g++ tini dataset-fashion-mnist) ;;
  tools) packages=(ca-certificates python3 python3-venv) ;;
  build) packages=(python3 g++) ;;
  *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
export DEBIAN_FRONTEND=noninteractive
# Some base images empty the archive after each install, and with it a mounted cache.
rm -f /etc/apt/apt.conf.d/docker-clean
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${packages[@]}" >/dev/null
# A mounted cache stays as it is: it is not part of the image.
mountpoint -q /var/cache/apt || rm -rf /var/cache/apt/*
mountpoint -q /var/lib/apt || rm -rf /var/lib/apt/lists/*
# Logs and caches with the time in them differ from build to build.
rm -rf /var/log/apt /var/log/*.log /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig/aux-cache
