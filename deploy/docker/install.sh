#!/bin/sh
# Installs SynerDiff, whose source tree is the working directory, into the virtual environment TARGET, step by step:
#
#     install.sh TARGET dependencies PINS        makes TARGET, with what deploy/docker/pins/PINS.txt lists
#     install.sh TARGET slim                     takes out the tests that packages ship
#     install.sh TARGET project                  SynerDiff itself; all that is there in share/synerdiff/sbom.cdx.json
#     install.sh TARGET bytecode [MODULE...]     what `python -m MODULE` imports, or else all there is, into pycache
#
# pip takes no file whose hash is not in the pins, the tools of `project` included.
# Bytecode is kept apart, for PYTHONPYCACHEPREFIX=TARGET/pycache, since images of Python come without that of its own
# library, and a container with a read-only root would compile it at every start. No pip is left in TARGET.
# PYTHON: the interpreter, which needs pip. TORCH_INDEX_URL: a second place that packages come from.
set -eu
target=$1
step=$2
shift 2
python=${PYTHON:-python3}
pins=deploy/docker/pins

install() {
    "$python" -m pip --disable-pip-version-check --python "$target/bin/python" \
        install --quiet --no-cache-dir --no-compile --root-user-action=ignore "$@"
}

case $step in
dependencies)
    "$python" -m venv --without-pip "$target"
    install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} --require-hashes -r "$pins/$1.txt"
    ;;
slim)
    find "$target"/lib/python*/site-packages -type d -name tests -prune -exec rm -rf {} +
    ;;
project)
    tool=$(mktemp -d)
    "$python" -m venv "$tool"
    "$tool/bin/python" -m pip install --quiet --no-cache-dir --require-hashes -r "$pins/tools.txt"
    "$tool/bin/python" -m pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir "$tool/built" .
    install --no-deps --no-index "$tool"/built/*.whl
    mkdir -p "$target/share/synerdiff"
    "$tool/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible \
        --output-file "$target/share/synerdiff/sbom.cdx.json" "$target/bin/python"
    rm -rf "$tool"
    ;;
bytecode)
    unset PYTHONDONTWRITEBYTECODE
    export PYTHONPYCACHEPREFIX="$target/pycache"
    for module in "$@"; do
        "$target/bin/python" -P -m "$module" --help > "$target/share/synerdiff/$module.txt"
    done
    if [ $# -eq 0 ]; then
        library=$("$target/bin/python" -c "import sysconfig; print(sysconfig.get_path('stdlib'))")
        # Python's own library and some packages hold files that are meant not to compile.
        "$target/bin/python" -m compileall -qq -j 0 "$library" "$target/lib" || true
    fi
    ;;
*)
    echo "error: '$step' is no step: dependencies, slim, project or bytecode" >&2
    exit 2
    ;;
esac
