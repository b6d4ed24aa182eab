# shellcheck shell=bash
# Sourced by other scripts: sets a package index other than the tools' default. It is not stored in the image:
# it comes from the environment (PIP_INDEX_URL, UV_DEFAULT_INDEX) or from the build secret `index`, a file
# with its URL, including credentials if it needs them.
index=/run/secrets/index
if [[ -s $index ]]; then
  PIP_INDEX_URL=$(<"$index") UV_DEFAULT_INDEX=$(<"$index")
  export PIP_INDEX_URL UV_DEFAULT_INDEX
fi
