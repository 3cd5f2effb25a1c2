"""NetworkPolicies, played through: every flow that the processes need is let through, and no other between pods."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from deploy.checks.environment import SETTINGS
from deploy.checks.findings import Finding
from deploy.checks.workloads import Container, Pod, matches, of_kind, pods, title
from deploy.kustomize import Manifest

CHECK = "network"
# Who calls whom: a gateway the schedulers, the leader both workers, a VAE worker the latents arena of a UNet worker.
_CALLS = {
    ("gateway", "scheduler"),
    ("scheduler", "unet_worker"),
    ("scheduler", "vae_worker"),
    ("vae_worker", "unet_worker"),
}
# Ports that are for clients, kubelets and monitoring: whom they are open to is not between these pods.
_OUTWARD = ("health", "metrics")
_DNS, _OPENSHIFT_DNS, _NODE_LOCAL = 53, 5353, "169.254.20.10/32"
_DENY_ALL = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """Manifests without a default of nothing, rules too wide, flows that are cut, flows that nobody needs."""
    policies = of_kind(manifests, "NetworkPolicy")
    if not any(policy["spec"] == _DENY_ALL for policy in policies):
        yield Finding(CHECK, "NetworkPolicy", "none denies everything to every pod, for others to allow")
    for policy in policies:
        yield from (Finding(CHECK, title(policy), message) for message in _too_wide(policy["spec"]))
    every_pod = pods(manifests)
    yield from _ways(manifests, policies, every_pod)
    for pod in every_pod:
        if not _allowed_out(policies, pod, {}, _DNS):
            yield Finding(CHECK, pod.title, "cannot ask for names")
    if any(container.service not in SETTINGS for pod in every_pod for container in pod.services):
        return  # a finding of `programs`
    for source in every_pod:
        for target in every_pod:
            for container in target.containers:
                yield from _flows(policies, source, container)


def _ways(manifests: Sequence[Manifest], policies: Sequence[Manifest], every_pod: Sequence[Pod]) -> Iterator[Finding]:
    """To names on clusters that ask others than kube-dns, out for what downloads, in for callers from outside."""
    rules = [rule for policy in policies for rule in policy["spec"].get("egress") or ()]
    blocks = [peer["ipBlock"]["cidr"] for rule in rules for peer in rule.get("to") or () if "ipBlock" in peer]
    if _NODE_LOCAL not in blocks:
        yield Finding(CHECK, "NetworkPolicy/dns", f"does not reach NodeLocal DNSCache at {_NODE_LOCAL}")
    if not any(_OPENSHIFT_DNS in _ports(rule) for rule in rules):
        yield Finding(CHECK, "NetworkPolicy/dns", f"does not reach the DNS of OpenShift, port {_OPENSHIFT_DNS}")
    for pod in every_pod:
        if pod.workload["kind"] == "Job" and not any(
            443 in _ports(rule) for spec in _rules(policies, pod, "Egress") for rule in spec.get("egress") or ()
        ):
            yield Finding(CHECK, pod.title, "downloads, and has no way out by port 443")
    services = {item["metadata"]["name"]: item["spec"] for item in of_kind(manifests, "Service")}
    for route in of_kind(manifests, "GRPCRoute"):
        for backend in (backend for rule in route["spec"]["rules"] for backend in rule["backendRefs"]):
            if backend["port"] not in [port["port"] for port in services.get(backend["name"], {}).get("ports", ())]:
                yield Finding(CHECK, title(route), f"leads nowhere: no Service is {backend['name']}:{backend['port']}")


def _ports(rule: Mapping[str, Any]) -> set[Any]:
    return {entry.get("port") for entry in rule.get("ports") or ()}


def _too_wide(spec: Mapping[str, Any]) -> Iterator[str]:
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for rule in spec.get(direction) or ():
            if not rule.get(side) or not rule.get("ports"):
                yield f"its {direction} has a rule for everybody or every port"


def _flows(policies: Sequence[Manifest], source: Pod, target: Container) -> Iterator[Finding]:
    for port in target.item.get("ports") or ():
        number, name = port["containerPort"], port.get("name", "")
        if name.endswith(_OUTWARD):
            continue
        needed = any(_needs(caller, target, number) for caller in source.containers)
        out = _allowed_out(policies, source, target.pod.labels, number)
        into = _allowed_in(policies, target.pod, source.labels, number)
        if needed and not (out and into):
            side = "not let in" if out else "not let out"
            yield Finding(CHECK, source.title, f"needs {target.title} port {number}, and is {side}")
        elif out and into and not needed:
            yield Finding(CHECK, source.title, f"may call {target.title} port {number} without needing to")


def _needs(caller: Container, target: Container, port: int) -> bool:
    if target.service:
        return (caller.service, target.service) in _CALLS and port == target.port_of("SYNERDIFF_LISTEN")
    redis = urlsplit(caller.environment.get("SYNERDIFF_REDIS_URL", "")) if caller.service else None
    return bool(redis and redis.hostname == target.pod.workload["metadata"]["name"] and (redis.port or 6379) == port)


def _allowed_out(policies: Sequence[Manifest], source: Pod, to: Mapping[str, str], port: int) -> bool:
    return any(
        _lets(rule, "to", to, port)
        for rules in _rules(policies, source, "Egress")
        for rule in rules.get("egress") or ()
    )


def _allowed_in(policies: Sequence[Manifest], target: Pod, source: Mapping[str, str], port: int) -> bool:
    return any(
        _lets(rule, "from", source, port)
        for rules in _rules(policies, target, "Ingress")
        for rule in rules.get("ingress") or ()
    )


def _rules(policies: Sequence[Manifest], pod: Pod, direction: str) -> list[Mapping[str, Any]]:
    return [
        policy["spec"]
        for policy in policies
        if direction in (policy["spec"].get("policyTypes") or ["Ingress"])
        and matches(policy["spec"].get("podSelector"), pod.labels)
    ]


def _lets(rule: Mapping[str, Any], side: str, labels: Mapping[str, str], port: int) -> bool:
    """Whether a rule lets a pod with these labels, of the same namespace, through. No labels: anybody's DNS."""
    ports = rule.get("ports")
    if ports is not None and port not in [entry.get("port") for entry in ports]:
        return False
    peers = rule.get(side)
    if not peers or port == _DNS:
        return True
    return any("podSelector" in p and "namespaceSelector" not in p and matches(p["podSelector"], labels) for p in peers)
