#!/bin/sh
# `make images-test`: builds the images without docker, from a base made here, and makes a picture with them.
# buildah builds in a chroot. Each process then runs as user 10001 with a read-only root, no capabilities and a tmpfs at
# /tmp and /cache. Needs root, buildah, mmdebstrap and a redis-server (.venv's will do). Exit status 2: one is missing.
#
#     WORK      a folder that keeps base, images and picture; default: one in /var/tmp, removed at the end
#     PIP_DIRS  folders of this machine that its pip settings name, for the build to see as well
set -eu
missing=""
for tool in buildah mmdebstrap setpriv unshare; do
    command -v "$tool" > /dev/null || missing="$missing $tool"
done
redis=$(command -v redis-server || .venv/bin/python -c \
    'from synerdiff.redis_process import find_redis_server; print(find_redis_server())') || missing="$missing redis-server"
[ "$(id -u)" = 0 ] || missing="$missing root"
if [ -n "$missing" ]; then
    echo "images-test: not run, missing:$missing (Debian: apt-get install buildah mmdebstrap redis-server)" >&2
    exit 2
fi
work=${WORK:-$(mktemp -d /var/tmp/synerdiff-images.XXXXXX)}
mkdir -p "$work/out"
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$work" "$work" > "$work/storage.conf"
export BUILDAH_ISOLATION=chroot CONTAINERS_STORAGE_CONF="$work/storage.conf" TMPDIR="$work"
started=""
finish() {
    for process in $started; do kill "$process" 2> /dev/null || true; done
    wait
    buildah umount --all > /dev/null 2>&1 || true
    [ -n "${WORK:-}" ] || rm -rf "$work"
}
trap finish EXIT

base=localhost/synerdiff/python:bookworm
if ! buildah inspect "$base" > /dev/null 2>&1; then
    echo "Making the base $base ..."
    mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates \
        --customize-hook='ln -s python3 "$1/usr/bin/python"' bookworm "$work/base.tar"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$work/base.tar" / > /dev/null
    buildah commit --quiet --rm "$container" "$base" > /dev/null
    rm "$work/base.tar"
fi

# pip in the build sees what it sees here: its settings, its certificates, and the folders that they name.
flags=""
for folder in /etc/ssl/certs /etc/pip.conf /etc/xdg/pip ${PIP_DIRS:-}; do
    [ ! -e "$folder" ] || flags="$flags --volume $folder:$folder:ro"
done
DOCKER=buildah BUILD_FLAGS="$flags" PYTHON_IMAGE="$base" REGISTRY=localhost TAG=test sh deploy/docker/build.sh

# `in_image SERVICE [NAME=VALUE...] COMMAND...`: as the manifests have it run, with the image's own variables.
in_image() {
    service=$1
    shift
    variables=$(buildah inspect --format '{{range .OCIv1.Config.Env}}{{.}} {{end}}' "localhost/synerdiff/$service:test")
    exec unshare --mount --pid --fork --kill-child --mount-proc sh -eu -c '
        root=$1; out=$2; shift 2
        mount --bind "$root" "$root"
        mkdir -p "$root/cache" "$root/out"
        for folder in proc dev; do mount --rbind "/$folder" "$root/$folder"; done
        for folder in tmp cache; do mount -t tmpfs -o mode=1777 tmpfs "$root/$folder"; done
        mount --bind "$out" "$root/out"
        mount -o remount,bind,ro "$root"
        cd /
        exec chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups --bounding-set=-all --inh-caps=-all \
            --no-new-privs env -i "$@"' sh "$(cat "$work/$service.root")" "$work/out" $variables "$@"
}
for service in scheduler gateway unet-worker vae-worker; do
    container=$(buildah from "localhost/synerdiff/$service:test")
    buildah mount "$container" > "$work/$service.root"
    echo "$service: $(du -sm "$(cat "$work/$service.root")" | cut -f1) MB"
    if (in_image "$service" python -c 'open("/opt/x", "w")') 2> "$work/refusal"; then
        echo "images-test: $service writes to its root" >&2
        exit 1
    fi
    grep -q "Read-only file system" "$work/refusal"
done
chmod 1777 "$work/out"

common="SYNERDIFF_REDIS_URL=redis://127.0.0.1:16379/0 SYNERDIFF_METRICS_PORT=0"
model="SYNERDIFF_MODEL=/app/models/emoji/model SYNERDIFF_MODEL_NAME=emoji SYNERDIFF_DEVICE=cpu"
"$redis" --port 16379 --bind 127.0.0.1 --save '' --maxmemory-policy noeviction > "$work/redis.log" &
started="$started $!"
serve() {
    service=$1
    port=$2
    shift 2
    (in_image "$service" $common "SYNERDIFF_LISTEN=127.0.0.1:$port" "SYNERDIFF_HEALTH_LISTEN=127.0.0.1:$((port - 40000))" \
        "$@" python -m "services.$(echo "$service" | tr - _)") > "$work/$service.log" 2>&1 &
    started="$started $!"
}
serve scheduler 50151
serve unet-worker 50152 $model SYNERDIFF_ADVERTISE=127.0.0.1:50152
serve vae-worker 50153 $model SYNERDIFF_ADVERTISE=127.0.0.1:50153
for attempt in $(seq 60); do
    if (in_image scheduler synerdiff generate "a slice of pizza" --address 127.0.0.1:50151 --output /out) \
        > "$work/client.log" 2>&1; then
        ls -l "$work/out"
        echo "images-test: a picture from three images, as user 10001, read-only, without capabilities"
        exit 0
    fi
    sleep 2
done
tail -n 5 "$work"/*.log >&2
exit 1
