"""Whatever manifests name is among them, or is known to be provided by whoever runs the cluster."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploy.checks.findings import Finding
from deploy.checks.workloads import Container, Pod, of_kind, pods, title
from deploy.kustomize import Manifest

CHECK = "references"
# To be there before: see README.md of deploy/k8s.
PROVIDED = frozenset(
    {
        ("PersistentVolumeClaim", "models"),
        ("PersistentVolumeClaim", "images"),
        ("Secret", "images-s3"),
        ("Secret", "redis"),
        ("Secret", "callers"),
        ("Secret", "redis-tls"),
        ("Secret", "scheduler-tls"),
        ("Secret", "worker-tls"),
    }
)
_IN_VOLUMES = {
    "configMap": ("ConfigMap", "name"),
    "secret": ("Secret", "secretName"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
}
_IN_VARIABLES = {"configMapKeyRef": "ConfigMap", "secretKeyRef": "Secret"}


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """Names that lead nowhere."""
    there = {(item["kind"], item["metadata"]["name"]) for item in manifests} | PROVIDED
    every_pod = pods(manifests)
    named = [(pod.title, reference) for pod in every_pod for reference in _named_by(pod)]
    named += [(title(item), reference) for item in manifests for reference in _named_by_scaler(item)]
    for where, reference in dict.fromkeys(named):
        if reference not in there:
            yield Finding(CHECK, where, f"names {reference[0]} {reference[1]}, which is not there")
    for pod in every_pod:
        yield from (Finding(CHECK, pod.title, message) for message in _loose_ends(pod))
    yield from _missing_keys(manifests, every_pod)
    yield from _missing_containers(manifests, every_pod)


def _named_by(pod: Pod) -> Iterator[tuple[str, str]]:
    for kind, key, spec in (
        ("ServiceAccount", "serviceAccountName", pod.spec),
        ("PriorityClass", "priorityClassName", pod.spec),
        ("Service", "serviceName", pod.workload["spec"]),
    ):
        if key in spec:
            yield kind, spec[key]
    for volume in pod.spec.get("volumes") or ():
        yield from ((kind, volume[source][key]) for source, (kind, key) in _IN_VOLUMES.items() if source in volume)
    for claim in pod.spec.get("resourceClaims") or ():
        template = claim.get("resourceClaimTemplateName")
        yield ("ResourceClaimTemplate", template) if template else ("ResourceClaim", claim["resourceClaimName"])
    for container in pod.containers:
        yield from _named_by_environment(container)


def _named_by_environment(container: Container) -> Iterator[tuple[str, str]]:
    for source in container.item.get("envFrom") or ():
        kind = "ConfigMap" if "configMapRef" in source else "Secret"
        yield kind, (source.get("configMapRef") or source["secretRef"])["name"]
    for variable in container.item.get("env") or ():
        for key, kind in _IN_VARIABLES.items():
            if key in (variable.get("valueFrom") or {}) and not variable["valueFrom"][key].get("optional"):
                yield kind, variable["valueFrom"][key]["name"]


def _named_by_scaler(item: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if item["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"):
        target = item["spec"]["scaleTargetRef"]
        yield target.get("kind", "Deployment"), target["name"]
    for trigger in item["spec"].get("triggers") or () if item["kind"] == "ScaledObject" else ():
        if "authenticationRef" in trigger:
            yield "TriggerAuthentication", trigger["authenticationRef"]["name"]
    for source in item["spec"].get("secretTargetRef") or () if item["kind"] == "TriggerAuthentication" else ():
        yield "Secret", source["name"]


def _loose_ends(pod: Pod) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.spec.get("volumes") or ()}
    volumes |= {claim["metadata"]["name"] for claim in pod.workload["spec"].get("volumeClaimTemplates") or ()}
    mounted = {name for container in pod.containers for _, name in container.mounts}
    for name in sorted(mounted - volumes):
        yield f"mounts the volume {name}, which it does not have"
    for name in sorted(volumes - mounted):
        yield f"has the volume {name}, which nobody mounts"
    claims = {claim["name"] for claim in pod.spec.get("resourceClaims") or ()}
    for container in pod.containers:
        for claim in (container.item.get("resources") or {}).get("claims") or ():
            if claim["name"] not in claims:
                yield f"{container.item['name']} uses the claim {claim['name']}, which the pod does not have"


def _missing_keys(manifests: Sequence[Manifest], every_pod: Sequence[Pod]) -> Iterator[Finding]:
    data = {item["metadata"]["name"]: item.get("data") or {} for item in of_kind(manifests, "ConfigMap")}
    for container in (container for pod in every_pod for container in pod.containers):
        for variable in container.item.get("env") or ():
            reference = (variable.get("valueFrom") or {}).get("configMapKeyRef")
            if reference and reference["name"] in data and reference["key"] not in data[reference["name"]]:
                yield Finding(CHECK, container.title, f"ConfigMap {reference['name']} has no key {reference['key']}")


def _missing_containers(manifests: Sequence[Manifest], every_pod: Sequence[Pod]) -> Iterator[Finding]:
    names = {pod.title: {container.item["name"] for container in pod.containers} for pod in every_pod}
    for item in of_kind(manifests, "ScaledObject"):
        target = item["spec"]["scaleTargetRef"]
        container = target.get("envSourceContainerName")
        there = names.get(f"{target.get('kind', 'Deployment')}/{target['name']}")
        if container and there is not None and container not in there:
            yield Finding(CHECK, title(item), f"names the container {container} of {target['name']}, which has none")
