#!/bin/sh
# `make images-test`: builds the images without docker, from a base made here, and makes pictures with them.
# buildah builds in a chroot. Each process then runs as user 10001 with a read-only root, no capabilities and a tmpfs at
# /tmp and /cache; image_check.py looks that it does. Needs root, buildah, mmdebstrap and a redis-server (.venv's will
# do). Exit status 2: one is missing. With docker-registry the images are also pushed to one, and pulled by digest.
#
#     WORK      a folder that keeps base, images, bills of materials and pictures; default: one in /var/tmp, removed at
#               the end
#     PIP_DIRS  folders of this machine that its pip settings name, for the build to see as well
#     TORCH_BUILD, TORCH_INDEX_URL  as in build.sh; default: cpu, from where all else comes from
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
digest=$(buildah inspect --format '{{.FromImageDigest}}' "$base")
DOCKER=buildah BUILD_FLAGS="$flags" PYTHON_IMAGE="$base" PYTHON_DIGEST="$digest" TORCH_BUILD="${TORCH_BUILD:-cpu}" \
    REGISTRY=localhost TAG=test sh deploy/docker/build.sh

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
    root=$(cat "$work/$service.root")
    echo "$service: $(du -sm "$root" | cut -f1) MB"
    (in_image "$service" python - "$(echo "$service" | sed 's/.*worker/worker/')") < deploy/docker/image_check.py
    cp "$root/opt/synerdiff/share/synerdiff/sbom.cdx.json" "$work/out/$service.cdx.json"
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
(in_image gateway SYNERDIFF_SCHEDULER=127.0.0.1:50151 SYNERDIFF_LISTEN=127.0.0.1:18000 SYNERDIFF_METRICS_PORT=0 \
    python -m services.gateway) > "$work/gateway.log" 2>&1 &
started="$started $!"

# `until_it_works COMMAND...`: for two minutes, while all processes live.
until_it_works() {
    for attempt in $(seq 60); do
        if "$@" > "$work/client.log" 2>&1; then return; fi
        for process in $started; do kill -0 "$process" || break 2; done
        sleep 2
    done
    tail -n 5 "$work"/*.log >&2
    exit 1
}
by_grpc() {
    (in_image scheduler synerdiff generate "a slice of pizza" --address 127.0.0.1:50151 --output /out)
}
by_http() {
    (in_image gateway python - /out/by-http.png) << 'END'
import base64, io, json, sys, urllib.request
from PIL import Image
body = json.dumps({"prompt": "a red car"}).encode()
request = urllib.request.Request("http://127.0.0.1:18000/v1/images/generations", body, {"Content-Type": "application/json"})
picture = base64.b64decode(json.load(urllib.request.urlopen(request, timeout=60))["data"][0]["b64_json"])
Image.open(io.BytesIO(picture)).load()
open(sys.argv[1], "wb").write(picture)
END
}
until_it_works by_grpc
until_it_works by_http
ls -l "$work/out"
echo "images-test: pictures from four images, by gRPC and by HTTP"

if ! command -v docker-registry > /dev/null; then
    echo "images-test: not pushed, missing: docker-registry"
    exit
fi
registry=127.0.0.1:15000
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: "%s/registry"}}\nhttp: {addr: "%s"}\nlog: {level: error}\n' \
    "$work" "$registry" > "$work/registry.yml"
docker-registry serve "$work/registry.yml" > "$work/registry.log" 2>&1 &
started="$started $!"
for service in scheduler gateway unet-worker vae-worker; do
    buildah tag "localhost/synerdiff/$service:test" "$registry/synerdiff/$service:test"
done
DOCKER=buildah PUSH_FLAGS="--quiet --tls-verify=false" sh deploy/docker/push.sh "$registry" test > "$work/out/images.yaml"
cat "$work/out/images.yaml"
sed -n 's/.*newName: \(.*\), digest: \(.*\)}/\1@\2/p' "$work/out/images.yaml" > "$work/pushed"
[ "$(wc -l < "$work/pushed")" = 4 ]
while read -r image; do
    buildah pull --quiet --tls-verify=false --policy always "$image" > /dev/null
done < "$work/pushed"
echo "images-test: pushed, and pulled by digest"
