"""Probes: a service answers all three on its plaintext health port, under the names that its code publishes.

A gateway answers them where it serves HTTP.
"""

from collections.abc import Iterator, Sequence

from deploy.checks.findings import Finding
from deploy.checks.workloads import Container, pods
from deploy.kustomize import Manifest
from synerdiff.rpc import LIVENESS, READINESS, STARTUP

CHECK = "probes"
_NAMES = {"startupProbe": STARTUP, "readinessProbe": READINESS, "livenessProbe": LIVENESS}
_PATHS = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """Probes that are missing, ask the wrong port, or a name that nobody publishes."""
    for pod in pods(manifests):
        for container in pod.containers:
            of = {"": _of_another, "gateway": _of_a_gateway}.get(container.service, _of_a_service)
            wrong = of(container)
            yield from (Finding(CHECK, container.title, message) for message in wrong)


def _of_a_service(container: Container) -> Iterator[str]:
    health = container.port_of("SYNERDIFF_HEALTH_LISTEN")
    for probe, name in _NAMES.items():
        asked = (container.item.get(probe) or {}).get("grpc")
        if asked is None:
            yield f"{probe} is no grpc probe"
        elif asked.get("port") != health:
            yield f"{probe} asks port {asked.get('port')}, but health is served on {health}"
        elif asked.get("service") != name:
            yield f"{probe} asks for {asked.get('service')!r}, not {name!r}"


def _of_a_gateway(container: Container) -> Iterator[str]:
    port = container.port_of("SYNERDIFF_LISTEN")
    for probe, path in _PATHS.items():
        asked = (container.item.get(probe) or {}).get("httpGet") or {}
        if (asked.get("path"), asked.get("port")) != (path, port):
            yield f"{probe} does not ask for {path} on port {port}"


def _of_another(container: Container) -> Iterator[str]:
    if container.item in (container.pod.spec.get("initContainers") or ()):
        return
    probe = container.item.get("readinessProbe")
    names = {port.get("name") for port in container.item.get("ports") or ()}
    if probe is None and container.pod.workload["kind"] != "Job":
        yield "has no readinessProbe"
    for kind in _NAMES:
        port = ((container.item.get(kind) or {}).get("tcpSocket") or {}).get("port", 0)
        if isinstance(port, str) and port not in names:
            yield f"{kind} asks port {port!r}, which is not declared"
