#!/usr/bin/env bash
# docker compose with this machine's settings: makes .env where there is none, and asks for no GPU where there is none.
#   compose.sh WORD…
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ ! -e .env ]]; then
  sed -e "s/^NEUSCALE_UID=.*/NEUSCALE_UID=$(id -u)/" -e "s/^NEUSCALE_GID=.*/NEUSCALE_GID=$(id -g)/" .env.example >.env
  echo "made .env from .env.example, for $(id -un) ($(id -u):$(id -g))"
fi
# Docker makes folders that are not there, and as root.
for variable in NEUSCALE_DATA_VOLUME NEUSCALE_RUNS_VOLUME; do
  folder=${!variable:-$(sed -n "s/^$variable=//p" .env | tail -n 1)}
  if [[ $folder == */* ]]; then mkdir -p "$folder"; fi
done
files=(--file docker-compose.yml)
if ! nvidia-smi --list-gpus 2>/dev/null | grep -q .; then
  echo "no NVIDIA GPU on this machine: training on the CPU (docker-compose.cpu.yml)"
  files+=(--file docker-compose.cpu.yml)
fi
exec docker compose "${files[@]}" "$@"
