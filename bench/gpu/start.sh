#!/bin/sh
# On the GPU machine: unpacks the kit in the folder $1 and runs it. Results go to the folder $2; further arguments go to
# `python -m bench.gpu`, as --sections or --deadline-s. PYTHON: the interpreter that has a CUDA build of torch.
set -eu
began=$(date +%s)
kit=$1 out=$2
shift 2
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$kit"/*.whl
cp "$kit/redis-server" "$site/redis-server" # it may have come without its mode, or on a file system that runs nothing
chmod +x "$site/redis-server"
PYTHONPATH="$site:$PWD" REDIS_SERVER="$site/redis-server" HF_HUB_OFFLINE=1 \
    "$python" -m bench.gpu --out "$out" --deadline-s $((480 - $(date +%s) + began)) "$@"
