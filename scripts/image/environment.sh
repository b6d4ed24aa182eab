# shellcheck shell=sh
# Sourced before every command of the image, under Docker and Apptainer. It works for any user, also without a
# name or a home directory, and if only the temporary folder is writable.
export PYTHONNOUSERSITE=1 # ignore packages in the user's home directory
# Ignore PYTHONPATH and PYTHONHOME of the host, which Apptainer passes on.
if [ -n "${APPTAINER_CONTAINER:-}${SINGULARITY_CONTAINER:-}" ]; then
  unset PYTHONPATH PYTHONHOME
  [ -z "${NEUSCALE_PYTHONPATH:-}" ] || export PYTHONPATH="$NEUSCALE_PYTHONPATH"
fi
case :$PATH: in *:/opt/neuscale/bin:*) ;; *) export PATH="/usr/local/bin:/opt/neuscale/bin:$PATH" ;; esac

# Caches of compilers and plots, in one folder per user on the node's local disk. Cached files are executed
# and unpickled, and any user can create a folder of this name: a symlink, a folder of another user, or one
# that others can write to is not used.
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
    NEUSCALE_CACHE=/dev/null/neuscale-cache # a path that cannot exist
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
# A user id may have no name in /etc/passwd.
if ! id -un >/dev/null 2>&1; then
  export USER="${USER:-uid$(id -u)}" LOGNAME="${LOGNAME:-uid$(id -u)}"
fi

# Under Apptainer the current folder is the host's: the defaults are ./data and ./runs, as on the host.
if [ -z "${APPTAINER_CONTAINER:-}${SINGULARITY_CONTAINER:-}" ]; then
  export NEUSCALE_DATA="${NEUSCALE_DATA:-/data}" NEUSCALE_RUNS="${NEUSCALE_RUNS:-/runs}"
fi
