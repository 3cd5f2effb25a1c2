"""Rendered manifests as checks read them (objects, pods, containers), and the parts of a check."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from deploy.kustomize import Manifest, at

# The placeholder for values that only a cluster knows.
POD_IP = "10.0.0.1"
_OF_THE_POD = {"status.podIP": POD_IP, "status.hostIP": "10.0.0.2"}
_REFERENCE = re.compile(r"\$\((\w+)\)")


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels and matchExpressions) selects these labels; an empty one selects all."""
    if any(labels.get(key) != value for key, value in at(selector, "matchLabels", {}).items()):
        return False
    return all(_expression_holds(expression, labels) for expression in at(selector, "matchExpressions", ()))


def _expression_holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[expression["operator"]]


class Manifests:
    """One set of manifests. Workloads are parsed on first use: their schemas are checked first."""

    def __init__(self, items: Sequence[Manifest]) -> None:
        self.objects = [Object(item, self) for item in items]

    def of_kind(self, *kinds: str) -> list["Object"]:
        """Those of these kinds."""
        return [item for item in self.objects if item.kind in kinds]

    @cached_property
    def pods(self) -> list["Pod"]:
        """The pods that the workloads make, one of each workload."""
        return [Pod(made.item, self) for made in self.of_kind("Deployment", "StatefulSet", "DaemonSet", "Job")]

    @cached_property
    def containers(self) -> list["Container"]:
        """Those of all pods."""
        return [container for pod in self.pods for container in pod.containers]

    @cached_property
    def services(self) -> list["Container"]:
        """The containers that run a service of SynerDiff."""
        return [container for container in self.containers if container.service]

    @cached_property
    def config_maps(self) -> dict[str, dict[str, str]]:
        """Their data by name."""
        return {item.name: dict(item.item.get("data") or {}) for item in self.of_kind("ConfigMap")}


class Object:
    """A manifest among others. `title`: as "Deployment/unet-worker"."""

    def __init__(self, item: Manifest, given: Manifests) -> None:
        self.item, self.given = item, given
        self.kind, self.name = str(item.get("kind")), str(at(item, "metadata.name"))
        self.title = f"{self.kind}/{self.name}"
        self.labels: Mapping[str, str] = at(item, "metadata.labels", {})
        self.spec: Mapping[str, Any] = at(item, "spec", {})


class Pod(Object):
    """A workload, looked at as the pod that it makes: `labels` and `spec` are the pod's. `ports`: as declared."""

    def __init__(self, workload: Manifest, given: Manifests) -> None:
        super().__init__(workload, given)
        template = workload["spec"]["template"]
        self.labels, self.spec = at(template, "metadata.labels", {}), template["spec"]
        every = (*(self.spec.get("initContainers") or ()), *self.spec["containers"])
        self.containers = [Container(self, item) for item in every]
        self.ports = [port for container in self.containers for port in container.at("ports", ())]


class Container:
    """A container of a pod. `title`: as "Deployment/gpu-worker vae". `service`: the service of SynerDiff that it runs,
    as "unet_worker", or empty. `security`: its security context, with its pod's where it has none of its own.
    """

    def __init__(self, pod: Pod, item: Mapping[str, Any]) -> None:
        self.pod, self.item = pod, item
        self.title = f"{pod.title} {item['name']}"
        words = [*self.at("command", ()), *self.at("args", ())]
        runs_service = words[:2] == ["python", "-m"] and len(words) > 2 and words[2].startswith("services.")
        self.service = str(words[2]).removeprefix("services.") if runs_service else ""
        self.is_worker = self.service in ("unet_worker", "vae_worker")
        self.limits: Mapping[str, Any] = self.at("resources.limits", {})
        self.security = {**(pod.spec.get("securityContext") or {}), **self.at("securityContext", {})}

    def at(self, path: str, default: Any = None) -> Any:
        """See `at`."""
        return at(self.item, path, default)

    @cached_property
    def environment(self) -> dict[str, str]:
        """Its variables as the process sees them; secrets and other unknowns as "unknown".

        A reference to a variable that is not set before stays as it is written, as Kubernetes leaves it.
        """
        found: dict[str, str] = {}
        for source in self.at("envFrom", ()):
            found |= self.pod.given.config_maps.get(at(source, "configMapRef.name", ""), {})
        for variable in self.at("env", ()):
            value = self._value_of(variable)
            found[variable["name"]] = _REFERENCE.sub(lambda match: found.get(match[1], match[0]), value)
        return found

    def _value_of(self, variable: Mapping[str, Any]) -> str:
        source = variable.get("valueFrom") or {}
        if "fieldRef" in source:
            return _OF_THE_POD.get(source["fieldRef"]["fieldPath"], "unknown")
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            return self.pod.given.config_maps.get(reference["name"], {}).get(reference["key"], "unknown")
        return "unknown" if source else str(variable.get("value", ""))

    def volume_at(self, path: str) -> Mapping[str, Any] | None:
        """The volume that holds `path`, or None where it is the image's own."""
        mounts = ((mount["mountPath"], mount["name"]) for mount in self.at("volumeMounts", ()))
        holding = (mount for mount in mounts if Path(path).is_relative_to(mount[0]))
        best = max(holding, key=lambda mount: len(mount[0]), default=None)
        volumes = {volume["name"]: volume for volume in self.pod.spec.get("volumes") or ()}
        return volumes.get(best[1], {"name": best[1]}) if best else None

    def port_of(self, variable: str) -> int:
        """The port in a HOST:PORT variable, or of one that is a port; 0: not set or none."""
        port = self.environment.get(variable, "").rpartition(":")[2]
        return int(port) if port.isdigit() else 0


# ---- checks


@dataclass(frozen=True, order=True)
class Finding:
    """Something wrong. `check`: its name; `where`: as "Deployment/unet-worker unet"."""

    check: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.where}: {self.message}"


Of = Callable[[Manifests], Iterable[Any]]
OBJECTS, PODS = attrgetter("objects"), attrgetter("pods")
CONTAINERS, SERVICES = attrgetter("containers"), attrgetter("services")


def kinds(*names: str) -> Of:
    """The objects of these kinds."""
    return lambda given: given.of_kind(*names)


def whole(given: Manifests) -> Iterable[Manifests]:
    """The set itself."""
    return (given,)


@dataclass(frozen=True)
class Rule:
    """A part of a check: its findings for each item. `where`: for items without a title."""

    check: str
    of: Of
    messages: Callable[[Any], Iterator[str]]
    where: str = ""

    def findings(self, given: Manifests) -> Iterator[Finding]:
        """Those in a set of manifests."""
        for item in self.of(given):
            for message in self.messages(item):
                yield Finding(self.check, self.where or item.title, message)
