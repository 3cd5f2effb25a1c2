"""Containers against the code that they run: programs, settings, ports, probes, and the times of an orderly end."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

from pydantic import ValidationError

from deploy.checks.manifests import CONTAINERS, POD_IP, PODS, SERVICES, Container, Object, Pod, Rule, kinds, matches
from services.gateway.settings import GatewaySettings
from services.scheduler.settings import SchedulerSettings
from services.unet_worker.settings import UnetWorkerSettings
from services.vae_worker.settings import VaeWorkerSettings
from synerdiff.rpc import LIVENESS, READINESS, STARTUP
from synerdiff.settings import ProcessSettings, ServiceSettings

# ---- programs: each service runs in its own image, by a module that there is

OWN = "synerdiff"
# Third-party images, by the program that they run.
OTHERS = {"redis": "redis-server", "cuda": "sh", "unet-worker": "python"}
# The host of a registry. A name without one is looked up at a public registry, where anybody may own it.
REGISTRY = re.compile(r"localhost(:\d+)?|[\w-]+(\.[\w-]+)+(:\d+)?")


def _wrong_program(container: Container) -> Iterator[str]:
    """Images without a version, images that lack the program that is run, modules that do not exist."""
    image, _, digest = str(container.item.get("image", "")).partition("@")
    path, _, last = image.rpartition("/")
    name, _, tag = last.partition(":")
    if not digest and tag in ("", "latest"):
        yield f"the image {image} names no version"
    if not REGISTRY.fullmatch(path.partition("/")[0]):
        yield f"the image {image} names no registry: a node would ask a public one for it"
    command = list(container.at("command", ()))
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


# ---- environment: the variables against the settings classes: names, values, and references

SETTINGS: Mapping[str, type[ProcessSettings]] = {
    "scheduler": SchedulerSettings,
    "gateway": GatewaySettings,
    "unet_worker": UnetWorkerSettings,
    "vae_worker": VaeWorkerSettings,
}
PREFIX = "SYNERDIFF_"
# Variables that others than SynerDiff's settings read, or that further variables are made of.
OTHER_VARIABLES = re.compile(
    r"POD_IP|HOME|REDIS_PASSWORD|AWS_\w+|OMP_\w+|GOMP_\w+|CUDA_MPS_(PIPE_DIRECTORY|ACTIVE_THREAD_PERCENTAGE"
    r"|PINNED_DEVICE_MEM_LIMIT)|NVIDIA_(VISIBLE_DEVICES|DRIVER_CAPABILITIES)|PYTORCH_\w+|OTEL_\w+"
)
# Each needs the others; a gateway, which is a client, needs only the CA.
TLS = frozenset({"SYNERDIFF_TLS_CERTIFICATE", "SYNERDIFF_TLS_KEY", "SYNERDIFF_TLS_CA"})
# Folders of the files that are baked into the images.
IN_THE_IMAGE = "/app/"


def settings_of(container: Container) -> ProcessSettings:
    """The settings that the container's process would load, but for its files. Raises KeyError, ValidationError."""
    files = {PREFIX + name.upper() for name in _file_fields(SETTINGS[container.service])}
    variables = {name: value for name, value in container.environment.items() if name not in files}
    if f"{PREFIX}CALLERS_FILE" in container.environment:  # the scheduler would refuse every caller without it
        variables[f"{PREFIX}ANONYMOUS"] = "true"
    return _load(container.service, frozenset(variables.items()))


@cache
def _load(service: str, variables: frozenset[tuple[str, str]]) -> ProcessSettings:
    settings_class: Any = SETTINGS[service]
    with patch.dict(os.environ, dict(variables), clear=True):
        settings: ProcessSettings = settings_class()
    return settings


def _file_fields(settings_class: type[ProcessSettings]) -> list[str]:
    fields = settings_class.model_fields.items()
    return [name for name, field in fields if Path in (field.annotation, *get_args(field.annotation))]


def _loose_references(container: Container) -> Iterator[str]:
    for name, value in container.environment.items():
        if "$(" in value:
            yield f"{name}={value} refers to a variable that is not set before"


def _wrong_environment(container: Container) -> Iterator[str]:
    """Variables that nobody reads, values that a service refuses, files that no volume brings."""
    settings_class = SETTINGS.get(container.service)
    if settings_class is None:
        return  # a finding of `programs`
    known = {PREFIX + name.upper() for name in settings_class.model_fields}
    for name in container.environment:
        if name not in known and not OTHER_VARIABLES.fullmatch(name):
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
    for name in (PREFIX + field.upper() for field in _file_fields(settings_class)):
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


# ---- ports: of the environment, of the containers' declarations, and the targets of Services

_PORTS = {"SYNERDIFF_LISTEN": "grpc", "SYNERDIFF_HEALTH_LISTEN": "health", "SYNERDIFF_METRICS_PORT": "metrics"}
_PORTS_OF_A_GATEWAY = {"SYNERDIFF_LISTEN": "http", "SYNERDIFF_METRICS_PORT": "metrics"}


def _declared_twice(pod: Pod) -> Iterator[str]:
    for key in ("containerPort", "name"):
        for value, times in Counter(port[key] for port in pod.ports if key in port).items():
            if times > 1:
                yield f"{key} {value} is declared {times} times"


def _undeclared_ports(container: Container) -> Iterator[str]:
    declared = {port.get("name", ""): port["containerPort"] for port in container.at("ports", ())}
    for variable, name in (_PORTS_OF_A_GATEWAY if container.service == "gateway" else _PORTS).items():
        served = container.port_of(variable)
        named = {port for label, port in declared.items() if label == name or label.endswith(f"-{name}")}
        if named != {served}:
            yield f"{variable} serves {served}, but the ports named {name} are {sorted(named)}"
    advertised = container.port_of("SYNERDIFF_ADVERTISE")
    if advertised not in (0, container.port_of("SYNERDIFF_LISTEN")):
        yield f"advertises port {advertised}, which it does not serve"


def _leads_nowhere(service: Object) -> Iterator[str]:
    selector = service.spec.get("selector")
    for pod in service.given.pods:
        if not selector or not matches({"matchLabels": selector}, pod.labels):
            continue
        known = {port["containerPort"] for port in pod.ports} | {port.get("name") for port in pod.ports}
        for port in service.spec["ports"]:
            target = port.get("targetPort", port["port"])
            if target not in known:
                yield f"port {port['port']} leads to {target}, which {pod.title} lacks"


# ---- probes: a service answers all three on its plaintext health port, under the names that its code publishes; a
# gateway answers them where it serves HTTP

_NAMES = {"startupProbe": STARTUP, "readinessProbe": READINESS, "livenessProbe": LIVENESS}
_PATHS = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}


def _wrong_probes(container: Container) -> Iterator[str]:
    """Probes that are missing, ask the wrong port, or a name that nobody publishes."""
    if not container.service:
        yield from _wrong_probes_of_another(container)
    elif container.service == "gateway":
        port = container.port_of("SYNERDIFF_LISTEN")
        for probe, path in _PATHS.items():
            asked = container.at(f"{probe}.httpGet", {})
            if (asked.get("path"), asked.get("port")) != (path, port):
                yield f"{probe} does not ask for {path} on port {port}"
    else:
        health = container.port_of("SYNERDIFF_HEALTH_LISTEN")
        for probe, name in _NAMES.items():
            asked = container.at(probe, {}).get("grpc")
            if asked is None:
                yield f"{probe} is no grpc probe"
            elif asked.get("port") != health:
                yield f"{probe} asks port {asked.get('port')}, but health is served on {health}"
            elif asked.get("service") != name:
                yield f"{probe} asks for {asked.get('service')!r}, not {name!r}"


def _wrong_probes_of_another(container: Container) -> Iterator[str]:
    if container.item in (container.pod.spec.get("initContainers") or ()):
        return
    names = {port.get("name") for port in container.at("ports", ())}
    if container.item.get("readinessProbe") is None and container.pod.kind != "Job":
        yield "has no readinessProbe"
    for probe in _NAMES:
        port = container.at(f"{probe}.tcpSocket.port")
        if isinstance(port, str) and port not in names:
            yield f"{probe} asks port {port!r}, which is not declared"


# ---- grace: no job outlives its timeout, so a worker, or a gateway, that drains for the longest timeout cuts none; and
# a pod gets the time of its slowest container: the sleep before SIGTERM, its drain, and a margin in which the process
# closes its ports and ends

MARGIN_S = 15.0
_DEFAULT_S = 30


def _cut_short(container: Container) -> Iterator[str]:
    """Pods that would be killed while they drain, and workers that would cut a job."""
    settings = _known_settings(container)
    if settings is None:
        return
    every = map(_known_settings, container.pod.given.services)
    longest_s = max((each.max_timeout_s for each in every if isinstance(each, SchedulerSettings)), default=0.0)
    # An exec hook waits for a neighbour's drain, which is checked with that container.
    drain_s, pre_stop_s = settings.drain_grace_s, float(container.at("lifecycle.preStop.sleep.seconds", 0))
    grace_s = container.pod.spec.get("terminationGracePeriodSeconds", _DEFAULT_S)
    if grace_s < pre_stop_s + drain_s + MARGIN_S:
        needs = f"{pre_stop_s:g} s of preStop, {drain_s:g} s of drain and {MARGIN_S:g} s"
        yield f"is killed after {grace_s} s: less than {needs}"
    if (container.is_worker or container.service == "gateway") and drain_s < longest_s:
        yield f"drains for {drain_s:g} s, but jobs may take {longest_s:g} s"


def _known_settings(container: Container) -> ProcessSettings | None:
    """None where `environment` or `programs` has findings."""
    try:
        return settings_of(container)
    except (KeyError, ValidationError):
        return None


RULES = (
    Rule("programs", CONTAINERS, _wrong_program),
    Rule("environment", CONTAINERS, _loose_references),
    Rule("environment", SERVICES, _wrong_environment),
    Rule("ports", PODS, _declared_twice),
    Rule("ports", SERVICES, _undeclared_ports),
    Rule("ports", kinds("Service"), _leads_nowhere),
    Rule("probes", CONTAINERS, _wrong_probes),
    Rule("grace", SERVICES, _cut_short),
)
