#!/bin/sh
# Makes the virtual environment $1 with the first Python from 3.11 on, unless a working one is there already.
# PYTHON names the interpreter to use instead.
set -eu
venv=$1

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if [ -x "$venv/bin/python" ] && recent "$venv/bin/python"; then
    exit 0
fi

for python in ${PYTHON:-python3.11 python3 python3.12 python3.13 python3.14}; do
    if recent "$python"; then
        echo "Making $venv with $("$python" --version) ..."
        "$python" -m venv --clear "$venv" || {
            echo "error: '$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2
            exit 1
        }
        exit 0
    fi
done
found=$(python3 --version 2>/dev/null || echo "no python3")
echo "error: SynerDiff needs Python 3.11 or later, found ${PYTHON:-$found}; name one with: make PYTHON=/path/to/python3.11" >&2
exit 1
