# shellcheck shell=bash
# Sourced by other scripts: the user and group as which a container writes files that belong to who starts it.
# Without root's rights (rootless Docker, Podman) that is the container's root: its other numbers are foreign ones
# on this machine.
container_user() {
  local info
  info=$(docker info 2>/dev/null) || true
  # Not from a pipe: grep ends at the first match, and pipefail would make a failure of that.
  if grep -qE '^ *rootless(: true)?$' <<<"$info"; then echo 0:0; else echo "$(id -u):$(id -g)"; fi
}
