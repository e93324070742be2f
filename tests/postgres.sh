#!/usr/bin/env bash
# A Postgres for tests, on a socket of its own in a folder of its own:
#   tests/postgres.sh start    starts it, unless it runs, and prints the folder of its socket
#   tests/postgres.sh stop     stops it, and takes the folder away
# It stops by itself when no test has used it for three minutes. It does not sync: tests of what survives a crash start their own.
set -euo pipefail
cd "$(dirname "$0")/.."
state="${CARGO_TARGET_DIR:-target}/postgres"
mkdir -p "$state"
exec 9>"$state/lock"
flock 9

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
      (
        exec 9>&- >/dev/null 2>&1 </dev/null
        while sleep 10; do
          [ -n "$(find "$folder/used" -mmin -3 2>/dev/null)" ] && continue
          "${as[@]}" "$bin/pg_ctl" -D "$folder/data" -m immediate -w stop
          rm -rf "$folder"
          exit
        done
      ) &
    fi
    touch "$folder/used"
    echo "$folder"
    ;;
  stop) stop ;;
  *)
    echo "usage: tests/postgres.sh start|stop" >&2
    exit 2
    ;;
esac
