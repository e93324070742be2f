#!/usr/bin/env bash
# A Postgres for tests, on a socket of its own in a folder of its own:
#   tests/postgres.sh start    starts it, unless it runs, and prints the folder of its socket
#   tests/postgres.sh stop     stops it, and takes the folder away
# It stops by itself when no test has used it for three minutes. It does not sync: tests of what survives a crash start their own.
set -euo pipefail
self="$(realpath "$0")"
cd "$(dirname "$self")/.."
state="${CARGO_TARGET_DIR:-target}/postgres"
mkdir -p "$state"
exec 9>"$state/lock"
# The one that watches waits for nobody.
[ "${1:-}" = watch ] || flock 9

bin="$(pg_config --bindir 2>/dev/null || true)"
[ -x "$bin/initdb" ] || bin="$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)"
if [ ! -x "$bin/initdb" ]; then
  echo "PostgreSQL's server programs are missing; install them with:  sudo apt-get install -y postgresql" >&2
  exit 1
fi
# It refuses to run as root.
as=()
[ "$(id -u)" = 0 ] && as=(setpriv --reuid=postgres --regid=postgres --clear-groups)

folder="$(cat "$state/folder" 2>/dev/null || true)"
runs() { [ -n "$folder" ] && [ -d "$folder" ] && "${as[@]}" "$bin/pg_ctl" -D "$folder/data" status >/dev/null 2>&1; }
stop() {
  if runs; then "${as[@]}" "$bin/pg_ctl" -D "$folder/data" -m immediate -w stop >/dev/null 9>&-; fi
  case "$folder" in */spendgate-postgres.*) rm -rf "$folder" ;; esac
  rm -f "$state/folder"
}

case "${1:-}" in
  start)
    if ! runs; then
      stop
      folder="$(mktemp -d "${TMPDIR:-/tmp}/spendgate-postgres.XXXXXX")"
      [ "$(id -u)" = 0 ] && chown postgres "$folder"
      "${as[@]}" "$bin/initdb" -D "$folder/data" -U postgres -A trust --no-sync --locale=C.UTF-8 >/dev/null
      touch "$folder/used"
      # The commit that a test waits for is as fast as memory; nothing here outlives the machine.
      "${as[@]}" "$bin/pg_ctl" -D "$folder/data" -l "$folder/log" -w start >/dev/null 9>&- \
        -o "-c listen_addresses='' -k $folder -c fsync=off -c full_page_writes=off -c max_connections=300 -c shared_buffers=64MB \
            -c max_wal_size=256MB -c autovacuum=off"
      echo "$folder" >"$state/folder"
      # In a session of its own: who ends the tests does not end it with them.
      setsid "$self" watch "$folder" 9>&- >/dev/null 2>&1 </dev/null &
    fi
    touch "$folder/used"
    echo "$folder"
    ;;
  stop) stop ;;
  watch)
    while sleep 10; do
      [ -n "$(find "$2/used" -mmin -3 2>/dev/null)" ] && continue
      "${as[@]}" "$bin/pg_ctl" -D "$2/data" -m immediate -w stop
      rm -rf "$2"
      exit
    done
    ;;
  *)
    echo "usage: tests/postgres.sh start|stop" >&2
    exit 2
    ;;
esac
