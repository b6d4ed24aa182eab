#!/usr/bin/env bash
# Run a neuscale command in the Docker or Apptainer image, with ./data and ./runs, as the calling user.
#   train_in.sh docker|apptainer IMAGE-OR-SIF ARGUMENT…
set -euo pipefail
cd "$(dirname "$0")/.."
where=${1:?docker or apptainer} image=${2:?the image} && shift 2
data=${NEUSCALE_DATA:-$PWD/data} runs=${NEUSCALE_RUNS:-$PWD/runs}
mkdir -p "$data" "$runs" # Docker would create them as root
data=$(cd "$data" && pwd) runs=$(cd "$runs" && pwd)
# shellcheck source=scripts/container_user.sh
. scripts/container_user.sh
gpus() { [[ -n $(nvidia-smi --list-gpus 2>/dev/null) ]]; }
case $where in
  docker)
    options=(--rm --init --shm-size 2g --stop-timeout 120 --user "$(container_user)")
    options+=(--volume "$data:/data" --volume "$runs:/runs")
    # The run's manifest records the image, which a container cannot find out itself.
    options+=(--env "NEUSCALE_IMAGE=$image")
    if digest=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null); then
      options+=(--env "NEUSCALE_IMAGE_DIGEST=$digest")
    fi
    if gpus; then options+=(--gpus all); fi
    if [[ -t 0 && -t 1 ]]; then options+=(--interactive --tty); fi
    exec docker run "${options[@]}" "$image" "$@"
    ;;
  apptainer)
    options=(--bind "$data" --bind "$runs" --env "NEUSCALE_DATA=$data,NEUSCALE_RUNS=$runs")
    if gpus; then options+=(--nv); fi
    exec apptainer run "${options[@]}" "$image" "$@"
    ;;
  *) sed -n '2,3s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
