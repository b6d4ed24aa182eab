# shellcheck shell=sh
# Sourced before any command of the image, by Docker's entry point and by Apptainer: it works for any user, also for
# one without a name or a home, and where only the temporary folder can be written to.
export PYTHONNOUSERSITE=1 # packages in the user's home are not the image's
case :$PATH: in *:/opt/neuscale/bin:*) ;; *) export PATH="/usr/local/bin:/opt/neuscale/bin:$PATH" ;; esac

# Caches of compilers and plots: on the node's own disk, a folder for each user.
NEUSCALE_CACHE=${NEUSCALE_CACHE:-${TMPDIR:-/tmp}/neuscale-cache-$(id -u)}
export NEUSCALE_CACHE
{ mkdir -p "$NEUSCALE_CACHE" && chmod 700 "$NEUSCALE_CACHE"; } 2>/dev/null || {
  echo "warning: $NEUSCALE_CACHE cannot be written to; set NEUSCALE_CACHE or TMPDIR to a folder that can" \
    "(docker run --tmpfs /tmp, if the container is read-only)" >&2
}
export XDG_CACHE_HOME="$NEUSCALE_CACHE" MPLCONFIGDIR="$NEUSCALE_CACHE/matplotlib"
export TORCHINDUCTOR_CACHE_DIR="$NEUSCALE_CACHE/inductor" TRITON_CACHE_DIR="$NEUSCALE_CACHE/triton"
export CUDA_CACHE_PATH="$NEUSCALE_CACHE/cuda" TORCH_HOME="$NEUSCALE_CACHE/torch"
if [ -z "${HOME:-}" ] || [ "$HOME" = / ] || [ ! -w "$HOME" ]; then
  export HOME="$NEUSCALE_CACHE"
fi
# A number without a name in /etc/passwd is a user, too.
if ! id -un >/dev/null 2>&1; then
  export USER="${USER:-uid$(id -u)}" LOGNAME="${LOGNAME:-uid$(id -u)}"
fi

# Under Apptainer the current folder is the host's: ./data and ./runs, as without a container.
if [ -z "${APPTAINER_CONTAINER:-}${SINGULARITY_CONTAINER:-}" ]; then
  export NEUSCALE_DATA="${NEUSCALE_DATA:-/data}" NEUSCALE_RUNS="${NEUSCALE_RUNS:-/runs}"
fi
