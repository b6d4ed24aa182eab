#!/usr/bin/env bash
# docker compose with this machine's settings: makes .env where there is none, and asks for no GPU where there is none.
#   compose.sh WORD…
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ ! -e .env ]]; then
  sed -e "s/^NEUSCALE_UID=.*/NEUSCALE_UID=$(id -u)/" -e "s/^NEUSCALE_GID=.*/NEUSCALE_GID=$(id -g)/" .env.example >.env
  echo "made .env from .env.example, for $(id -un) ($(id -u):$(id -g))"
fi
files=(--file docker-compose.yml)
if ! nvidia-smi --list-gpus 2>/dev/null | grep -q .; then
  echo "no NVIDIA GPU on this machine: training on the CPU (docker-compose.cpu.yml)"
  files+=(--file docker-compose.cpu.yml)
fi
# Docker makes folders that are not there, and as root. Which they are says Compose itself: it has rules of its own for
# quotes, comments, variables and ~ in .env.
settings=$(docker compose "${files[@]}" config --format json)
awk '/"type": "bind"/ { bind = 1 } bind && /"source": / { source = $0 }
  bind && /"target": / { if ($0 ~ /"\/(data|runs)"/) print source; bind = 0 }' <<<"$settings" |
  sed -e 's/^ *"source": "//' -e 's/",*$//' -e 's/\\\(["\\]\)/\1/g' -e 's/\$\$/$/g' | sort -u |
  while IFS= read -r folder; do mkdir -p -- "$folder"; done
exec docker compose "${files[@]}" "$@"
