#!/bin/sh
# Builds the four images from the root of the source tree: `make images`. By environment:
#
#     TAG            their tag; default: what git calls this state
#     REGISTRY       HOST[/PATH] before their names; default: registry.invalid, which is none, as in the manifests
#     PYTHON_IMAGE, PYTHON_DIGEST, PIP_INDEX_URL    build arguments of that name, where set
#     TORCH_BUILD, TORCH_INDEX_URL  workers by pins/worker-TORCH_BUILD.txt, and where that torch comes from, where set
#     DOCKER, BUILD_FLAGS  the command that builds, also buildah, and further flags of its build
set -eu
docker=${DOCKER:-docker}
pins=worker${TORCH_BUILD:+-$TORCH_BUILD}
if [ -n "${TORCH_INDEX_URL:-}" ] && [ -z "${TORCH_BUILD:-}" ]; then
    echo "error: TORCH_INDEX_URL without TORCH_BUILD: worker.txt knows no torch of that index" >&2
    exit 1
fi
if [ ! -e "deploy/docker/pins/$pins.txt" ]; then
    echo "error: no deploy/docker/pins/$pins.txt: write it by TORCH_BUILD=$TORCH_BUILD TORCH_INDEX_URL=... make pins" >&2
    exit 1
fi
if ! "$docker" info > /dev/null 2>&1; then
    echo "error: '$docker info' fails: building images needs a running docker daemon (DOCKER names another command)" >&2
    exit 1
fi
[ -n "${PYTHON_DIGEST:-}" ] || echo "note: no PYTHON_DIGEST: the base is what its name stands for today" >&2
revision=$(git rev-parse HEAD 2> /dev/null || true)
tag=${TAG:-$(git describe --always --dirty 2> /dev/null || echo dev)}

for service in scheduler gateway unet-worker vae-worker; do
    set -- --build-arg "VERSION=$tag" --build-arg "REVISION=$revision"
    set -- "$@" ${PYTHON_IMAGE:+--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE"}
    set -- "$@" ${PYTHON_DIGEST:+--build-arg "PYTHON_DIGEST=$PYTHON_DIGEST"}
    set -- "$@" ${PIP_INDEX_URL:+--build-arg "PIP_INDEX_URL=$PIP_INDEX_URL"}
    case $service in
    *-worker)
        set -- "$@" --build-arg "PINS=$pins"
        set -- "$@" ${TORCH_INDEX_URL:+--build-arg "TORCH_INDEX_URL=$TORCH_INDEX_URL"}
        ;;
    esac
    image=${REGISTRY:-registry.invalid}/synerdiff/$service:$tag
    echo "Building $image ..."
    # shellcheck disable=SC2086
    DOCKER_BUILDKIT=1 "$docker" build ${BUILD_FLAGS:-} --file "deploy/docker/$service.Dockerfile" --tag "$image" "$@" .
done
