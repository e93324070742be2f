#!/usr/bin/env bash
# Makes a Python in the folder given that has the library of Standard Webhooks, by which a test verifies what we sign. What is there stays.
set -euo pipefail
[ -x "$1/bin/python" ] && "$1/bin/python" -c 'import standardwebhooks' 2>/dev/null && exit
# Two tests at once make one.
mkdir -p "$1"
exec 9>"$1.lock"
flock 9
"$1/bin/python" -c 'import standardwebhooks' 2>/dev/null && exit
if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
  echo "Python's venv is missing (a test has signatures verified by a library of PyPI); install it with:  sudo apt-get install -y python3-venv" >&2
  exit 1
fi
python3 -m venv "$1"
"$1/bin/python" -m pip install --quiet --disable-pip-version-check standardwebhooks==1.1.0
