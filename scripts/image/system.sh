#!/usr/bin/env bash
# Install the distribution's packages that an image needs, and leave no package lists behind.
#   system.sh run     Python, a C++ compiler and Python's headers (torch.compile), an init, Fashion-MNIST
#   system.sh tools   Python with venv, for virtual environments with pip
#   system.sh build   Python and a C++ compiler, in addition to the base image's nvcc
set -euo pipefail
case ${1:-} in
  run) packages=(ca-certificates python3 python3-dev g++ tini dataset-fashion-mnist) ;;
  tools) packages=(ca-certificates python3 python3-venv) ;;
  build) packages=(python3 g++) ;;
  *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
export DEBIAN_FRONTEND=noninteractive
# Some base images delete downloaded packages after each install, and with them those in a mounted cache.
rm -f /etc/apt/apt.conf.d/docker-clean
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${packages[@]}" >/dev/null
# Do not empty a mounted cache: it is not part of the image.
mountpoint -q /var/cache/apt || rm -rf /var/cache/apt/*
mountpoint -q /var/lib/apt || rm -rf /var/lib/apt/lists/*
# Remove logs and caches that contain times and so differ between builds.
rm -rf /var/log/apt /var/log/*.log /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig/aux-cache
