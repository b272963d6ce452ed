#!/usr/bin/env bash
# Post a snapshot to the orchestrator, as its sample scripts did: thin, one request.
#
#   examples/post_maps.sh snapshot.json web-1,web-2      only these hosts
#   examples/post_maps.sh snapshot.json                  every host that runs the service
#
# Needs AEGISFLUX_TOKEN (an operator's); AEGISFLUX_URL is http://localhost:8081 unless it says otherwise.
set -euo pipefail
file=${1:?usage: post_maps.sh FILE [HOST,HOST...]}
target=${2:+?target_host=$2}
url=${AEGISFLUX_URL:-http://localhost:8081}
# The token goes over stdin, never over the command line.
printf 'header = "Authorization: Bearer %s"\n' "${AEGISFLUX_TOKEN:?set AEGISFLUX_TOKEN}" |
  curl --silent --show-error --fail-with-body --config - \
    --header 'Content-Type: application/json' --data-binary "@$file" "$url/seg/maps$target"
echo
