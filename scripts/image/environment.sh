# shellcheck shell=sh
# Sourced before any command of the image, by Docker's entry point and by Apptainer: it works for any user, also for
# one without a name or a home, and where only the temporary folder can be written to.
export PYTHONNOUSERSITE=1 # packages in the user's home are not the image's
# Nor are the modules that the host's environment names, which Apptainer hands in.
if [ -n "${APPTAINER_CONTAINER:-}${SINGULARITY_CONTAINER:-}" ]; then
  unset PYTHONPATH PYTHONHOME
  [ -z "${NEUSCALE_PYTHONPATH:-}" ] || export PYTHONPATH="$NEUSCALE_PYTHONPATH"
fi
case :$PATH: in *:/opt/neuscale/bin:*) ;; *) export PATH="/usr/local/bin:/opt/neuscale/bin:$PATH" ;; esac

# Caches of compilers and plots: on the node's own disk, a folder for each user. What lies there is run and unpickled,
# and anybody may make a folder of this name: one that is a link, another user's, or writable by others is not used.
neuscale_is_own() {
  [ ! -L "$1" ] && [ -d "$1" ] && [ "$(stat -c %u "$1")" = "$(id -u)" ] || return 1
  case $(stat -c %A "$1") in ?????w* | ????????w*) return 1 ;; esac
  [ -w "$1" ] && chmod 700 "$1"
}
neuscale_new_cache() { mktemp -d "${TMPDIR:-/tmp}/neuscale-cache-$(id -u)-XXXXXXXX"; }
NEUSCALE_CACHE=${NEUSCALE_CACHE:-${TMPDIR:-/tmp}/neuscale-cache-$(id -u)}
(umask 077 && mkdir -p "$NEUSCALE_CACHE") 2>/dev/null || :
if ! neuscale_is_own "$NEUSCALE_CACHE" 2>/dev/null; then
  neuscale_refused=$NEUSCALE_CACHE
  if NEUSCALE_CACHE=$(neuscale_new_cache 2>/dev/null); then
    [ ! -e "$neuscale_refused" ] && [ ! -L "$neuscale_refused" ] ||
      echo "warning: $neuscale_refused is a link, or others own it or may write to it: the caches are in" \
        "$NEUSCALE_CACHE this time; set NEUSCALE_CACHE to a folder of your own to keep them" >&2
  else
    NEUSCALE_CACHE=/dev/null/neuscale-cache # no folder can be there
    echo "warning: $neuscale_refused cannot be written to; set NEUSCALE_CACHE or TMPDIR to a folder that can" \
      "(docker run --tmpfs /tmp:exec, if the container is read-only)" >&2
  fi
  unset neuscale_refused
fi
unset -f neuscale_is_own neuscale_new_cache
export NEUSCALE_CACHE
export XDG_CACHE_HOME="$NEUSCALE_CACHE" MPLCONFIGDIR="$NEUSCALE_CACHE/matplotlib"
export TORCHINDUCTOR_CACHE_DIR="$NEUSCALE_CACHE/inductor" TRITON_CACHE_DIR="$NEUSCALE_CACHE/triton"
export CUDA_CACHE_PATH="$NEUSCALE_CACHE/cuda" TORCH_HOME="${TORCH_HOME:-$NEUSCALE_CACHE/torch}"
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
