# shellcheck shell=bash
# Sourced: the package index, where it is not the tools' own. It is no part of the image: it comes from the
# environment (PIP_INDEX_URL, UV_DEFAULT_INDEX) or from the build secret `index`, a file that holds its address,
# with credentials if it wants some.
index=/run/secrets/index
if [[ -s $index ]]; then
  PIP_INDEX_URL=$(<"$index") UV_DEFAULT_INDEX=$(<"$index")
  export PIP_INDEX_URL UV_DEFAULT_INDEX
fi
