"""NetworkPolicies, evaluated: they allow every flow that the processes need, and no other between pods."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from deploy.checks.manifests import PODS, Container, Manifests, Object, Pod, Rule, kinds, matches, whole
from deploy.checks.services import SETTINGS

# Who calls whom: a gateway the schedulers, the leader both workers, a VAE worker the latents arena of a UNet worker.
_CALLS = {
    ("gateway", "scheduler"),
    ("scheduler", "unet_worker"),
    ("scheduler", "vae_worker"),
    ("vae_worker", "unet_worker"),
}
# Ports that are for clients, kubelets and monitoring: their callers are not among these pods.
_OUTWARD = ("health", "metrics")
_DNS, _OPENSHIFT_DNS, _NODE_LOCAL = 53, 5353, "169.254.20.10/32"
_DENY_ALL = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def _nothing_denied(given: Manifests) -> Iterator[str]:
    if not any(policy.spec == _DENY_ALL for policy in given.of_kind("NetworkPolicy")):
        yield "none denies everything to every pod, for others to allow"


def _other_resolvers(given: Manifests) -> Iterator[str]:
    """DNS servers other than kube-dns that no rule allows pods to reach."""
    rules = [rule for policy in given.of_kind("NetworkPolicy") for rule in policy.spec.get("egress") or ()]
    blocks = [peer["ipBlock"]["cidr"] for rule in rules for peer in rule.get("to") or () if "ipBlock" in peer]
    if _NODE_LOCAL not in blocks:
        yield f"does not reach NodeLocal DNSCache at {_NODE_LOCAL}"
    if not any(_OPENSHIFT_DNS in _ports(rule) for rule in rules):
        yield f"does not reach the DNS of OpenShift, port {_OPENSHIFT_DNS}"


def _too_wide(policy: Object) -> Iterator[str]:
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for rule in policy.spec.get(direction) or ():
            if not rule.get(side) or not rule.get("ports"):
                yield f"its {direction} has a rule for everybody or every port"


def _leads_nowhere(route: Object) -> Iterator[str]:
    """Ingresses for callers from outside that lead nowhere."""
    services = {service.name: service.spec for service in route.given.of_kind("Service")}
    for backend in (backend for rule in route.spec["rules"] for backend in rule["backendRefs"]):
        if backend["port"] not in [port["port"] for port in services.get(backend["name"], {}).get("ports", ())]:
            yield f"leads nowhere: no Service is {backend['name']}:{backend['port']}"


def _cut_off(pod: Pod) -> Iterator[str]:
    out = _rules(pod, "Egress")
    if not any(_lets(rule, "to", {}, _DNS) for rule in out):
        yield "cannot ask for names"
    if pod.kind == "Job" and not any(443 in _ports(rule) for rule in out):
        yield "downloads, and has no way out by port 443"


def _wrong_flows(source: Pod) -> Iterator[str]:
    """Needed flows that are denied, and allowed flows that no process needs."""
    if any(container.service not in SETTINGS for container in source.given.services):
        return  # a finding of `programs`
    for target in source.given.containers:
        for port in target.at("ports", ()):
            number = port["containerPort"]
            if port.get("name", "").endswith(_OUTWARD):
                continue
            needed = any(_needs(caller, target, number) for caller in source.containers)
            out = any(_lets(rule, "to", target.pod.labels, number) for rule in _rules(source, "Egress"))
            into = any(_lets(rule, "from", source.labels, number) for rule in _rules(target.pod, "Ingress"))
            if needed and not (out and into):
                yield f"needs {target.title} port {number}, and is {'not let in' if out else 'not let out'}"
            elif out and into and not needed:
                yield f"may call {target.title} port {number} without needing to"


def _needs(caller: Container, target: Container, port: int) -> bool:
    if target.service:
        return (caller.service, target.service) in _CALLS and port == target.port_of("SYNERDIFF_LISTEN")
    redis = urlsplit(caller.environment.get("SYNERDIFF_REDIS_URL", "")) if caller.service else None
    return bool(redis and redis.hostname == target.pod.name and (redis.port or 6379) == port)


def _rules(pod: Pod, direction: str) -> list[Mapping[str, Any]]:
    """The rules that allow the pod to call ("Egress"), or to be called ("Ingress")."""
    return [
        rule
        for policy in pod.given.of_kind("NetworkPolicy")
        if direction in (policy.spec.get("policyTypes") or ["Ingress"])
        and matches(policy.spec.get("podSelector"), pod.labels)
        for rule in policy.spec.get(direction.lower()) or ()
    ]


def _ports(rule: Mapping[str, Any]) -> set[Any]:
    return {entry.get("port") for entry in rule.get("ports") or ()}


def _lets(rule: Mapping[str, Any], side: str, labels: Mapping[str, str], port: int) -> bool:
    """Whether a rule allows a pod with these labels, of the same namespace. No labels: any DNS server."""
    if rule.get("ports") is not None and port not in _ports(rule):
        return False
    peers = rule.get(side)
    if not peers or port == _DNS:
        return True
    return any("podSelector" in p and "namespaceSelector" not in p and matches(p["podSelector"], labels) for p in peers)


RULES = (
    Rule("network", whole, _nothing_denied, where="NetworkPolicy"),
    Rule("network", whole, _other_resolvers, where="NetworkPolicy/dns"),
    Rule("network", kinds("NetworkPolicy"), _too_wide),
    Rule("network", kinds("GRPCRoute"), _leads_nowhere),
    Rule("network", PODS, _cut_off),
    Rule("network", PODS, _wrong_flows),
)
