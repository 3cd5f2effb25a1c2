"""Ports: what the environment says, what the containers declare, what Services lead to."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploy.checks.findings import Finding
from deploy.checks.workloads import Container, Pod, matches, of_kind, pods, title
from deploy.kustomize import Manifest

CHECK = "ports"
_VARIABLES = {"SYNERDIFF_LISTEN": "grpc", "SYNERDIFF_HEALTH_LISTEN": "health", "SYNERDIFF_METRICS_PORT": "metrics"}
_OF_A_GATEWAY = {"SYNERDIFF_LISTEN": "http", "SYNERDIFF_METRICS_PORT": "metrics"}


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """Ports that are served and not declared, or the other way round, or twice; Services that lead nowhere."""
    every_pod = pods(manifests)
    for pod in every_pod:
        yield from (Finding(CHECK, pod.title, message) for message in _twice(pod))
        for container in pod.services:
            yield from (Finding(CHECK, container.title, message) for message in _undeclared(container))
    for service in of_kind(manifests, "Service"):
        yield from (Finding(CHECK, title(service), message) for message in _leads_nowhere(service, every_pod))


def _twice(pod: Pod) -> Iterator[str]:
    ports = [port for container in pod.containers for port in container.item.get("ports") or ()]
    for key in ("containerPort", "name"):
        for value, times in Counter(port[key] for port in ports if key in port).items():
            if times > 1:
                yield f"{key} {value} is declared {times} times"


def _undeclared(container: Container) -> Iterator[str]:
    declared = {port.get("name", ""): port["containerPort"] for port in container.item.get("ports") or ()}
    for variable, name in (_OF_A_GATEWAY if container.service == "gateway" else _VARIABLES).items():
        served = container.port_of(variable)
        named = {port for label, port in declared.items() if label == name or label.endswith(f"-{name}")}
        if named != {served}:
            yield f"{variable} serves {served}, but the ports named {name} are {sorted(named)}"
    advertised = container.port_of("SYNERDIFF_ADVERTISE")
    if advertised not in (0, container.port_of("SYNERDIFF_LISTEN")):
        yield f"advertises port {advertised}, which it does not serve"


def _leads_nowhere(service: Mapping[str, Any], every_pod: Sequence[Pod]) -> Iterator[str]:
    selector = {"matchLabels": service["spec"].get("selector") or {}}
    for pod in every_pod:
        if not selector["matchLabels"] or not matches(selector, pod.labels):
            continue
        ports = [port for container in pod.containers for port in container.item.get("ports") or ()]
        known = {port["containerPort"] for port in ports} | {port.get("name") for port in ports}
        for port in service["spec"]["ports"]:
            if port.get("targetPort", port["port"]) not in known:
                yield f"port {port['port']} leads to {port.get('targetPort', port['port'])}, which {pod.title} lacks"
