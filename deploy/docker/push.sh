#!/bin/sh
# Pushes the four images that `make images REGISTRY=.. TAG=..` built, then prints them as `images:` of a kustomization, by
# digest: `sh deploy/docker/push.sh REGISTRY TAG`. Log in before, with the same command. By environment:
#
#     DOCKER      the command that pushes: docker, podman or buildah
#     PUSH_FLAGS  further flags of its push
set -eu
if [ $# != 2 ]; then
    echo "usage: push.sh REGISTRY TAG" >&2
    exit 2
fi
registry=$1
tag=$2
docker=${DOCKER:-docker}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

for service in scheduler gateway unet-worker vae-worker; do
    image=$registry/synerdiff/$service
    echo "Pushing $image:$tag ..." >&2
    # shellcheck disable=SC2086
    case ${docker##*/} in
    buildah | podman) "$docker" push ${PUSH_FLAGS:-} --digestfile "$folder/digest" "$image:$tag" >&2 ;;
    *)
        "$docker" push ${PUSH_FLAGS:-} "$image:$tag" >&2
        # One image may have been pushed to many places: the digest of this one.
        "$docker" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$image:$tag" > "$folder/digests"
        sed -n "s|^$image@||p" "$folder/digests" | head -n 1 > "$folder/digest"
        ;;
    esac
    digest=$(cat "$folder/digest")
    case $digest in
    sha256:*) ;;
    *)
        echo "error: '$docker push $image:$tag' left no digest, but '$digest'" >&2
        exit 1
        ;;
    esac
    echo "- {name: registry.invalid/synerdiff/$service, newName: $image, digest: $digest}" >> "$folder/images"
done
echo "images:"
cat "$folder/images"
