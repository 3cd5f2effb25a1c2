#!/bin/sh
# `make pins`: writes deploy/docker/pins/, the releases of constraints.txt with the hashes of all their files, an image a
# file: what each needs of pyproject.toml, and tools.txt, with which the images are built. Resolved by the index's
# metadata for CPython 3.11 on x86-64.
#
#     TORCH_BUILD, TORCH_INDEX_URL  also worker-TORCH_BUILD.txt (cpu, cu126), with the torch of that index
set -eu
folder=deploy/docker/pins
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
"${PYTHON:-python3}" -m venv "$tool"
"$tool/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
mkdir -p "$folder"

# `pin NAME UV-ARGUMENTS...`: what was pinned before is no reason to pin it again.
pin() {
    name=$1
    shift
    "$tool/bin/uv" pip compile --quiet --no-annotate --no-header --generate-hashes --constraints constraints.txt \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 --output-file "$tool/$name.txt" "$@"
    mv "$tool/$name.txt" "$folder/$name.txt"
}
printf 'cyclonedx-bom\nsetuptools\n' > "$tool/tools.in"
pin tools "$tool/tools.in"
pin scheduler pyproject.toml --extra tracing --extra s3
pin gateway pyproject.toml --extra gateway
pin worker pyproject.toml --extra worker --extra gpu
if [ -n "${TORCH_BUILD:-}" ]; then
    pin "worker-$TORCH_BUILD" pyproject.toml --extra worker --index-strategy unsafe-best-match \
        ${TORCH_INDEX_URL:+--index "$TORCH_INDEX_URL"}
fi
