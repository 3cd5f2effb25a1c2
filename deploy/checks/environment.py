"""The variables of every service's container against its settings class: names, values, and what they refer to."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

from pydantic import ValidationError

from deploy.checks.findings import Finding
from deploy.checks.workloads import POD_IP, Container, pods
from deploy.kustomize import Manifest
from services.gateway.settings import GatewaySettings
from services.scheduler.settings import SchedulerSettings
from services.unet_worker.settings import UnetWorkerSettings
from services.vae_worker.settings import VaeWorkerSettings
from synerdiff.settings import ProcessSettings, ServiceSettings

CHECK = "environment"
SETTINGS: Mapping[str, type[ProcessSettings]] = {
    "scheduler": SchedulerSettings,
    "gateway": GatewaySettings,
    "unet_worker": UnetWorkerSettings,
    "vae_worker": VaeWorkerSettings,
}
PREFIX = "SYNERDIFF_"
# Variables that others than SynerDiff's settings read, or that further variables are made of.
OTHERS = re.compile(
    r"POD_IP|HOME|REDIS_PASSWORD|AWS_\w+|OMP_\w+|GOMP_\w+|CUDA_MPS_(PIPE_DIRECTORY|ACTIVE_THREAD_PERCENTAGE"
    r"|PINNED_DEVICE_MEM_LIMIT)|NVIDIA_(VISIBLE_DEVICES|DRIVER_CAPABILITIES)|PYTORCH_\w+|OTEL_\w+"
)
# One is of no use without the others; a gateway, which is a client, needs the CA alone.
TLS = frozenset({"SYNERDIFF_TLS_CERTIFICATE", "SYNERDIFF_TLS_KEY", "SYNERDIFF_TLS_CA"})
# Where the images keep what is baked into them.
IN_THE_IMAGE = "/app/"


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """Names that nobody reads, values that a service refuses, files that no volume brings, unknown references."""
    for pod in pods(manifests):
        for container in pod.containers:
            for name, value in container.environment.items():
                if "$(" in value:
                    yield Finding(CHECK, container.title, f"{name}={value} refers to a variable that is not set before")
            if container.service:
                yield from (Finding(CHECK, container.title, message) for message in _wrong(container))


def settings_of(container: Container) -> ProcessSettings:
    """The settings that the container's process would load, but for its files. Raises ValidationError."""
    files = {PREFIX + name.upper() for name in _file_fields(SETTINGS[container.service])}
    variables = {name: value for name, value in container.environment.items() if name not in files}
    if f"{PREFIX}CALLERS_FILE" in container.environment:  # without which the scheduler would start for nobody
        variables[f"{PREFIX}ANONYMOUS"] = "true"
    return _load(container.service, frozenset(variables.items()))


@cache
def _load(service: str, variables: frozenset[tuple[str, str]]) -> ProcessSettings:
    settings_class: Any = SETTINGS[service]
    with patch.dict(os.environ, dict(variables), clear=True):
        settings: ProcessSettings = settings_class()
    return settings


def _wrong(container: Container) -> Iterator[str]:
    settings_class = SETTINGS.get(container.service)
    if settings_class is None:
        return  # a finding of `programs`
    known = {PREFIX + name.upper() for name in settings_class.model_fields}
    for name in container.environment:
        if name not in known and not OTHERS.fullmatch(name):
            yield f"{name} is no setting of services.{container.service}"
    try:
        settings = settings_of(container)
    except ValidationError as error:
        yield from (f"{PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        return
    yield from _missing_files(container, settings_class)
    if settings.listen.startswith(("127.", "localhost")):
        yield f"listens on {settings.listen}, where no other pod reaches it"
    advertised = settings.advertise if isinstance(settings, ServiceSettings) else ""
    if container.is_worker and not advertised.startswith(f"{POD_IP}:"):
        yield f"advertises {advertised!r}, not the address of its pod"


def _missing_files(container: Container, settings_class: type[ProcessSettings]) -> Iterator[str]:
    for field in _file_fields(settings_class):
        name = PREFIX + field.upper()
        path = container.environment.get(name, "")
        if path and not path.startswith(IN_THE_IMAGE) and container.volume_at(path) is None:
            yield f"{name}={path}: no volume brings it"
    directory = container.environment.get("SYNERDIFF_IMAGES_URL", "").removeprefix("file://")
    if directory.startswith("/") and container.volume_at(directory) is None:
        yield f"SYNERDIFF_IMAGES_URL=file://{directory}: no volume brings it"
    alone = {"SYNERDIFF_TLS_CA"} if container.service == "gateway" else set()
    if TLS & container.environment.keys() not in (set(), alone, TLS):
        yield f"sets some of {', '.join(sorted(TLS))}, and not all"
    if container.is_worker and PREFIX + "MODEL" not in container.environment:
        yield f"{PREFIX}MODEL is not set"


def _file_fields(settings_class: type[ProcessSettings]) -> list[str]:
    return [
        name
        for name, field in settings_class.model_fields.items()
        if Path in (field.annotation, *get_args(field.annotation))
    ]
