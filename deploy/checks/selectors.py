"""Selectors: each finds the pods it is meant for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploy.checks.findings import Finding
from deploy.checks.workloads import Pod, matches, of_kind, pods, title
from deploy.kustomize import Manifest

CHECK = "selectors"


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """Workloads that do not own their pods, selectors that find none, pods without a disruption budget or with two."""
    every_pod = pods(manifests)
    for pod in every_pod:
        yield from (Finding(CHECK, pod.title, message) for message in _of_pod(pod, every_pod))
    for item in of_kind(manifests, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        if not any(matches(_selector(item), pod.labels) for pod in every_pod):
            yield Finding(CHECK, title(item), "selects no pod")
    for pod in every_pod:
        budgets = [item for item in of_kind(manifests, "PodDisruptionBudget") if matches(_selector(item), pod.labels)]
        if len(budgets) != (pod.workload["kind"] not in ("DaemonSet", "Job")):
            yield Finding(CHECK, pod.title, f"has {len(budgets)} PodDisruptionBudgets")


def _selector(item: Mapping[str, Any]) -> Mapping[str, Any]:
    spec = item["spec"]
    if item["kind"] == "Service":
        return {"matchLabels": spec.get("selector") or {}}
    selector: Mapping[str, Any] = spec.get("podSelector" if item["kind"] == "NetworkPolicy" else "selector") or {}
    return selector


def _of_pod(pod: Pod, every_pod: Sequence[Pod]) -> Iterator[str]:
    if pod.workload["kind"] == "Job":
        return  # it selects its pods by itself
    selector = pod.workload["spec"]["selector"]
    if not matches(selector, pod.labels):
        yield "its selector does not match its own pods"
    for other in every_pod:
        if other is not pod and matches(selector, other.labels):
            yield f"its selector also matches the pods of {other.title}"
    for spread in pod.spec.get("topologySpreadConstraints") or ():
        if not matches(spread["labelSelector"], pod.labels):
            yield f"spreads others than its own pods over {spread['topologyKey']}"
    for term in _affinity_terms(pod):
        if not any(matches(term["labelSelector"], other.labels) for other in every_pod):
            yield "wants to be near pods that there are none of"


def _affinity_terms(pod: Pod) -> Iterator[Mapping[str, Any]]:
    affinity = (pod.spec.get("affinity") or {}).get("podAffinity") or {}
    yield from affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or ()
    for preferred in affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ():
        yield preferred["podAffinityTerm"]
