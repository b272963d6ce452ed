#!/usr/bin/env bash
# Is the orchestrator well, what does it hold, and what goes over the bus? One look, then the next announcements.
#
#   eval "$(aegisflux env)"; examples/orchestrator.sh [COUNT]
#
# COUNT is how many announcements to wait for (default 0: none).
set -euo pipefail
url=${AEGISFLUX_URL:-http://localhost:8081}
ask() {
  printf 'header = "Authorization: Bearer %s"\n' "${AEGISFLUX_TOKEN:?eval \"\$(aegisflux env)\" first}" |
    curl --silent --show-error --fail-with-body --config - "$url$1"
  echo
}
curl --silent --show-error --fail "$url/healthz" && echo
curl --silent --show-error "$url/readyz" && echo
ask /seg/maps
ask /api/v1/hosts
count=${1:-0}
if [ "$count" -gt 0 ]; then
  if command -v nats >/dev/null; then
    nats sub actions.seg.maps -s "$NATS_URL" --count "$count" --raw
  else
    aegisflux bus watch --count "$count"
  fi
fi
