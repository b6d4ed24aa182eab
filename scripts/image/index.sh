# shellcheck shell=bash
# Sourced by other scripts: sets a package index other than the tools' default, and trusts another authority's
# certificates, such as those of a proxy. Neither is stored in the image. The index comes from the environment
# (PIP_INDEX_URL, UV_DEFAULT_INDEX) or from the build secret `index`, a file with its URL, including
# credentials if it needs them; the authority's certificate (PEM) is the build secret `ca`.
index=/run/secrets/index
if [[ -s $index ]]; then
  PIP_INDEX_URL=$(<"$index") UV_DEFAULT_INDEX=$(<"$index")
  export PIP_INDEX_URL UV_DEFAULT_INDEX
fi
ca=/run/secrets/ca
if [[ -s $ca ]]; then
  SSL_CERT_FILE=/dev/shm/ca-certificates.pem # in memory: no layer has it
  cat /etc/ssl/certs/ca-certificates.crt "$ca" >"$SSL_CERT_FILE"
  PIP_CERT=$SSL_CERT_FILE
  export SSL_CERT_FILE PIP_CERT
fi
