#!/usr/bin/env bash
# Run docker compose with this machine's settings: create .env if needed, and request no GPU without one.
#   compose.sh ARGUMENT…
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/container_user.sh
. scripts/container_user.sh
if [[ ! -e .env ]]; then
  user=$(container_user)
  sed -e "s/^NEUSCALE_UID=.*/NEUSCALE_UID=${user%:*}/" -e "s/^NEUSCALE_GID=.*/NEUSCALE_GID=${user#*:}/" .env.example >.env
  echo "made .env from .env.example, for $(id -un) ($user in the containers)"
fi
files=(--file docker-compose.yml)
if [[ -z $(nvidia-smi --list-gpus 2>/dev/null) ]]; then
  echo "no NVIDIA GPU on this machine: training on the CPU (docker-compose.cpu.yml)"
  files+=(--file docker-compose.cpu.yml)
fi
# Create missing bind-mount folders, which Docker would create as root. Compose itself prints their paths,
# because it has its own rules for quotes, comments, variables and ~ in .env.
settings=$(docker compose "${files[@]}" config --format json)
awk '/"type": "bind"/ { bind = 1 } bind && /"source": / { source = $0 }
  bind && /"target": / { if ($0 ~ /"\/(data|runs)"/) print source; bind = 0 }' <<<"$settings" |
  sed -e 's/^ *"source": "//' -e 's/",*$//' -e 's/\\\(["\\]\)/\1/g' -e 's/\$\$/$/g' | sort -u |
  while IFS= read -r folder; do mkdir -p -- "$folder"; done
exec docker compose "${files[@]}" "$@"
