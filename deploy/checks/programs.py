"""Images and commands: each service runs in its own image, by a module that there is."""

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from deploy.checks.findings import Finding
from deploy.checks.workloads import Container, pods
from deploy.kustomize import Manifest

CHECK = "programs"
OWN = "synerdiff"
# Images of others, by what they run.
OTHERS = {"redis": "redis-server", "cuda": "sh", "unet-worker": "python"}
# The host of a registry. A name without one is looked up at a public registry, where anybody may hold it.
REGISTRY = re.compile(r"localhost(:\d+)?|[\w-]+(\.[\w-]+)+(:\d+)?")


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """Images without a version, images that do not hold what is run, modules that there are none of."""
    for pod in pods(manifests):
        for container in pod.containers:
            yield from (Finding(CHECK, container.title, message) for message in _wrong(container))


def _wrong(container: Container) -> Iterator[str]:
    image, _, digest = str(container.item.get("image", "")).partition("@")
    path, _, last = image.rpartition("/")
    name, _, tag = last.partition(":")
    if not digest and tag in ("", "latest"):
        yield f"the image {image} names no version"
    if not REGISTRY.fullmatch(path.partition("/")[0]):
        yield f"the image {image} names no registry: a node would ask a public one for it"
    command = list(container.item.get("command") or ())
    if not container.service:
        if OTHERS.get(name) not in command[:1]:
            yield f"runs {command[:1]} in the image {name}"
        return
    if name != container.service.replace("_", "-") or path.rpartition("/")[2] != OWN:
        yield f"runs services.{container.service} in the image {image}"
    if not _module_exists(f"services.{container.service}.__main__"):
        yield f"runs services.{container.service}, which is no module that runs"


def _module_exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
