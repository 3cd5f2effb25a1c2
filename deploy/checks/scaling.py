"""Autoscalers against the code: the queue's keys, the metrics' names, and workers that may start late or not at all."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.checks.manifests import Manifests, Object, Pod, Rule, kinds
from deploy.checks.metric_names import by_series
from deploy.kustomize import at
from services.scheduler.store import keys
from synerdiff.requests import Priority

_METRIC = re.compile(r"\bsynerdiff_\w+")
_ADDRESS = re.compile(r"(?P<service>[^.:]+)\.(?P<namespace>[^.:]+)\.svc(\.[\w.]+)?:(?P<port>\d+)")
_COUNTS = ("lagCount", "pendingEntriesCount")
_SCALERS = ("ScaledObject", "HorizontalPodAutoscaler")


def _wrong(scaler: Object) -> Iterator[str]:
    """Triggers that would never fire, or start and stop the wrong workers."""
    name = scaler.spec["scaleTargetRef"]["name"]
    if [each.spec["scaleTargetRef"]["name"] for each in scaler.given.of_kind(*_SCALERS)].count(name) > 1:
        yield f"is not the only one that scales {name}"
    for target in (pod for pod in scaler.given.pods if pod.name == name):  # a missing one is a finding of `references`
        if "replicas" in target.item["spec"]:
            yield f"{target.title} has a number of replicas of its own, which every apply would set again"
        services = (container for container in target.containers if container.service)
        model = next((container.environment.get("SYNERDIFF_MODEL_NAME", "") for container in services), "")
        if scaler.kind == "ScaledObject":
            yield from _wrong_triggers(scaler, model)
            yield from _wrong_zero(scaler.spec, target)
        else:
            yield from _wrong_metrics(scaler.spec["metrics"], model, target)


def _wrong_metrics(metrics: list[Mapping[str, Any]], model: str, target: Pod) -> Iterator[str]:
    for metric in metrics:
        if metric["type"] == "Resource":
            yield from _not_requested(metric["resource"]["name"], target)
            continue
        external = metric["external"]["metric"]
        yield from _unknown_metrics(external["name"])
        if at(external, "selector.matchLabels", {}).get("model") != model:
            yield f"goes by {external['name']} of another model than {model!r}"


def _not_requested(resource: str, target: Pod) -> Iterator[str]:
    """An autoscaler scales by a share of the resources requested."""
    for container in target.containers:
        if resource not in container.at("resources.requests", {}):
            yield f"goes by {resource}, of which {container.title} requests none"


def _wrong_triggers(scaler: Object, model: str) -> Iterator[str]:
    triggers = scaler.spec["triggers"]
    streams = [trigger["metadata"] for trigger in triggers if trigger["type"] == "redis-streams"]
    known = {keys.queue(model, priority) for priority in Priority}
    for metadata in streams:
        if metadata.get("stream") not in known:
            yield f"no stream of {model!r} is called {metadata.get('stream')}"
        if metadata.get("consumerGroup") != keys.GROUP:
            yield f"no group of the queue is called {metadata.get('consumerGroup')}"
        if sum(count in metadata for count in _COUNTS) != 1:
            yield f"goes by neither or both of {' and '.join(_COUNTS)} of {metadata.get('stream')}"
        if not _address_is_there(metadata.get("address", ""), scaler.given):
            yield f"no Service of these manifests is at {metadata.get('address')}"
    for count in _COUNTS:
        for missing in sorted(known - {metadata.get("stream") for metadata in streams if count in metadata}):
            yield f"does not go by the {count} of {missing}"
    for query in (trigger["metadata"].get("query", "") for trigger in triggers if trigger["type"] == "prometheus"):
        yield from _unknown_metrics(query)
        if f'model="{model}"' not in query:
            yield f"goes by {query}, which is not of {model!r}"


def _wrong_zero(spec: Mapping[str, Any], target: Pod) -> Iterator[str]:
    """The first worker announces its model to schedulers; so it has to have started once before it may be removed."""
    if "fallback" not in spec:
        yield "has no fallback for when its triggers cannot be read"
    windows_s = [
        probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        for container in target.containers
        if container.service and (probe := container.item.get("startupProbe"))
    ]
    if spec.get("minReplicaCount", 0) == 0 and spec.get("initialCooldownPeriod", 0) < max(windows_s, default=0):
        yield f"may scale to zero before the first worker has had its {max(windows_s)} s to start"


def _address_is_there(address: str, given: Manifests) -> bool:
    """KEDA runs in a namespace of its own: a name without ours does not resolve there."""
    match = _ADDRESS.fullmatch(address)
    return match is not None and any(
        (service.name, service.item["metadata"].get("namespace")) == (match["service"], match["namespace"])
        and int(match["port"]) in [port["port"] for port in service.spec["ports"]]
        for service in given.of_kind("Service")
    )


def _unknown_metrics(expression: str) -> Iterator[str]:
    for name in _METRIC.findall(expression):
        if by_series().get(name) is None:
            yield f"no metric is called {name}"


RULES = (Rule("scaling", kinds(*_SCALERS), _wrong),)
