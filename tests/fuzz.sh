#!/usr/bin/env bash
# Has libFuzzer look for inputs that break what tests/it/fuzz/targets.rs says of them:
#   tests/fuzz.sh [SECONDS [TARGET…]]    so many seconds for each target; default 60, all targets
# It needs a nightly compiler and cargo-fuzz. What it finds stands in fuzz/artifacts; put it into fuzz/corpus with the fix.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds="${1:-60}"
shift || true
[ $# -gt 0 ] || set -- signature event amount tiers prices rule glob period settings

if ! command -v cargo-fuzz >/dev/null; then
  echo "cargo-fuzz is missing; install it with:  cargo +nightly install cargo-fuzz --locked" >&2
  exit 1
fi
if ! cargo +nightly --version >/dev/null 2>&1; then
  echo "a nightly compiler is missing; install it with:  rustup toolchain install nightly --profile minimal" >&2
  exit 1
fi

# What it learns is kept out of the repository: the saved inputs are few and small, each for a reason.
learnt="${CARGO_TARGET_DIR:-fuzz/target}/corpus"
for target in "$@"; do
  saved=("fuzz/corpus/$target")
  case "$target" in
    event) saved+=(fixtures/demo) ;;
    tiers) saved+=(fixtures/tiers) ;;
  esac
  mkdir -p "$learnt/$target"
  # One input may take five seconds and 2 GiB at most: more is a finding too.
  cargo +nightly fuzz run "$target" "$learnt/$target" "${saved[@]}" -- \
    -max_total_time="$seconds" -timeout=5 -rss_limit_mb=2048 -print_final_stats=1
done
