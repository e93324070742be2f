#!/usr/bin/env bash
# Thousands of requests that the description at /openapi.json allows, and as many that it does not, made by schemathesis from PyPI
# against a service of its own on an empty database: no answer may be a 5xx, have a status, a type or a shape that is not described, or
# take what the description refuses. The seed is fixed, so that a run can be repeated.
#   tests/schemathesis.sh [MAX_EXAMPLES]
set -euo pipefail
cd "$(dirname "$0")/.."
examples="${1:-25}"
target="$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")"
binary="$target/debug/spendgate"
venv="$target/schemathesis"
if [ ! -x "$binary" ]; then
  echo "$binary is missing; build it with:  cargo build --locked" >&2
  exit 1
fi

if ! cmp -s tests/schemathesis.txt "$venv/installed.txt"; then
  rm -rf "$venv"
  if ! python3 -m venv "$venv" 2>/dev/null; then
    rm -rf "$venv"
    echo "Python's venv is missing (schemathesis is installed into one); install it with:  sudo apt-get install -y python3-venv" >&2
    exit 1
  fi
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement tests/schemathesis.txt
  cp tests/schemathesis.txt "$venv/installed.txt"
fi

folder="$(mktemp -d)"
service=
ended() {
  [ -z "$service" ] || { kill "$service" 2>/dev/null && wait "$service"; } || true
  rm -rf "$folder"
}
trap ended EXIT
# Made here, for this run; only this service knows it.
key="sg_$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
env -i PATH="$PATH" DATA_DIR="$folder/data" LISTEN_ADDR=127.0.0.1:0 ADMIN_API_KEY="$key" STRIPE_WEBHOOK_SECRETS=whsec_of_this_run \
  RUST_LOG=info "$binary" serve >"$folder/log" 2>&1 &
service=$!
url=
for _ in $(seq 100); do
  url="$(grep -o 'http://127\.0\.0\.1:[0-9]*' "$folder/log" | head -1 || true)"
  [ -z "$url" ] || break
  kill -0 "$service" 2>/dev/null || break
  sleep 0.1
done
if [ -z "$url" ]; then
  cat "$folder/log" >&2
  exit 1
fi

# What the description allows may still be refused for what it means: a tier that there is not, tokens that do not add up. So
# `positive_data_acceptance` says nothing here.
# The gate takes the call on its way by whatever method it has, so `unsupported_method` is left to tests/it/auth.rs, which knows each path's.
# It leaves a folder where it stands.
done=0
cd "$folder"
"$venv/bin/schemathesis" run "$url/openapi.json" --header "Authorization: Bearer $key" --seed 7 --max-examples "$examples" \
  --checks all --exclude-checks positive_data_acceptance,unsupported_method --continue-on-failure --warnings off --generation-database none --no-color || done=$?
# With a key that the run itself had revoked, all the rest would be refused, and prove nothing.
"$venv/bin/python" - "$url/v1/tiers" "$key" <<'PYTHON'
import sys, urllib.request
url, key = sys.argv[1:]
urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"}), timeout=5)
PYTHON
# A handler that panics is a connection that ends, and a line in the log.
if grep -n 'panicked' "$folder/log"; then
  echo "the service panicked" >&2
  exit 1
fi
exit "$done"
