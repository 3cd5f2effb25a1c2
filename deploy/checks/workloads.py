"""Rendered manifests, as far as several checks look at them: pods, containers, environments, labels."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deploy.kustomize import Manifest

# What stands for values that only a cluster knows.
POD_IP = "10.0.0.1"
_OF_THE_POD = {"status.podIP": POD_IP, "status.hostIP": "10.0.0.2"}
_REFERENCE = re.compile(r"\$\((\w+)\)")
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


def title(manifest: Manifest) -> str:
    """As "Deployment/unet-worker"."""
    return f"{manifest.get('kind')}/{(manifest.get('metadata') or {}).get('name')}"


def of_kind(manifests: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    """Those of these kinds."""
    return [item for item in manifests if item.get("kind") in kinds]


def pods(manifests: Sequence[Manifest]) -> list["Pod"]:
    """The pods that the workloads make, one of each workload."""
    config_maps = {item["metadata"]["name"]: dict(item.get("data") or {}) for item in of_kind(manifests, "ConfigMap")}
    return [Pod(item, config_maps) for item in of_kind(manifests, *_WORKLOADS)]


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels and matchExpressions) selects these labels; an empty one selects all."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_expression_holds(expression, labels) for expression in selector.get("matchExpressions") or ())


def _expression_holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[expression["operator"]]


@dataclass(frozen=True)
class Pod:
    """The pod of a workload."""

    workload: Manifest
    config_maps: Mapping[str, Mapping[str, str]]

    @property
    def title(self) -> str:
        """As "Deployment/unet-worker"."""
        return title(self.workload)

    @property
    def labels(self) -> Mapping[str, str]:
        """Of the pod."""
        labels: Mapping[str, str] = self.workload["spec"]["template"]["metadata"].get("labels") or {}
        return labels

    @property
    def spec(self) -> Mapping[str, Any]:
        """Of the pod."""
        spec: Mapping[str, Any] = self.workload["spec"]["template"]["spec"]
        return spec

    @cached_property
    def containers(self) -> list["Container"]:
        """All of them, those of the start included."""
        return [Container(self, item) for item in (*(self.spec.get("initContainers") or ()), *self.spec["containers"])]

    @property
    def services(self) -> list["Container"]:
        """The containers that run a service of SynerDiff."""
        return [container for container in self.containers if container.service]


@dataclass(frozen=True)
class Container:
    """A container of a pod."""

    pod: Pod
    item: Mapping[str, Any]

    @property
    def title(self) -> str:
        """As "Deployment/gpu-worker vae"."""
        return f"{self.pod.title} {self.item['name']}"

    @property
    def service(self) -> str:
        """The service of SynerDiff that it runs, as "unet_worker"; empty: none."""
        words = [*(self.item.get("command") or ()), *(self.item.get("args") or ())]
        if words[:2] == ["python", "-m"] and len(words) > 2 and words[2].startswith("services."):
            return str(words[2]).removeprefix("services.")
        return ""

    @property
    def is_worker(self) -> bool:
        """Whether it runs a UNet or a VAE worker."""
        return self.service in ("unet_worker", "vae_worker")

    @cached_property
    def environment(self) -> dict[str, str]:
        """Its variables as the process sees them; secrets and other unknowns as "unknown".

        A reference to a variable that is not set before stays as it is written, as Kubernetes leaves it.
        """
        found: dict[str, str] = {}
        for source in self.item.get("envFrom") or ():
            found |= self.pod.config_maps.get((source.get("configMapRef") or {}).get("name", ""), {})
        for variable in self.item.get("env") or ():
            found[variable["name"]] = _REFERENCE.sub(
                lambda match: found.get(match[1], match[0]), self._value_of(variable)
            )
        return found

    def _value_of(self, variable: Mapping[str, Any]) -> str:
        source = variable.get("valueFrom") or {}
        if "fieldRef" in source:
            return _OF_THE_POD.get(source["fieldRef"]["fieldPath"], "unknown")
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            return self.pod.config_maps.get(reference["name"], {}).get(reference["key"], "unknown")
        return "unknown" if source else str(variable.get("value", ""))

    @property
    def mounts(self) -> Iterator[tuple[str, str]]:
        """(path, name of the volume) of each mount."""
        return ((item["mountPath"], item["name"]) for item in self.item.get("volumeMounts") or ())

    def volume_at(self, path: str) -> Mapping[str, Any] | None:
        """The volume that holds `path`, or None where it is the image's own."""
        best = max((mount for mount in self.mounts if _holds(mount[0], path)), key=lambda m: len(m[0]), default=None)
        volumes = {volume["name"]: volume for volume in self.pod.spec.get("volumes") or ()}
        return volumes.get(best[1], {"name": best[1]}) if best else None

    def port_of(self, variable: str) -> int:
        """The port in a HOST:PORT variable, or of one that is a port; 0: not set or none."""
        port = self.environment.get(variable, "").rpartition(":")[2]
        return int(port) if port.isdigit() else 0

    @property
    def limits(self) -> Mapping[str, Any]:
        """Of its resources."""
        limits: Mapping[str, Any] = (self.item.get("resources") or {}).get("limits") or {}
        return limits


def _holds(mount: str, path: str) -> bool:
    return path == mount or path.startswith(mount.rstrip("/") + "/")
