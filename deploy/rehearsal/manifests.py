"""The part of rendered manifests that the rehearsal runs, as frozen values. What it leaves out it names."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ProbeKind = Literal["grpc", "httpGet", "tcpSocket", "exec"]
VolumeKind = Literal["emptyDir", "configMap", "claim"]

# What the rehearsal knows of a pod and a container. Anything else of them is listed as not rehearsed.
_POD_KEYS = frozenset({"containers", "volumes", "terminationGracePeriodSeconds", "securityContext", "restartPolicy"})
_CONTAINER_KEYS = frozenset(
    {"name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "ports", "workingDir", "volumeMounts"}
    | {"startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "securityContext"}
)
_POD_FIELDS = frozenset(
    {"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "status.podIP", "status.hostIP"}
)


class NotRehearsed(ValueError):
    """The manifests rely on something that the rehearsal cannot stand for; the message names it."""


@dataclass(frozen=True)
class Probe:
    """A probe with Kubernetes' own defaults. `service`: the name asked for by gRPC; `path`: by HTTP; `command`:
    of an exec probe."""

    kind: ProbeKind
    port: int = 0
    service: str = ""
    path: str = ""
    command: tuple[str, ...] = ()
    initial_delay_s: float = 0.0
    period_s: float = 10.0
    timeout_s: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3


@dataclass(frozen=True)
class Variable:
    """An environment variable: a text in which $(NAME) stands for an earlier one, or a `field` of the pod."""

    name: str
    value: str = ""
    field: str = ""


@dataclass(frozen=True)
class Mount:
    """A volume at a path of a container. `sub_path`: the part of the volume that is mounted."""

    volume: str
    path: str
    sub_path: str = ""
    read_only: bool = False


@dataclass(frozen=True)
class Volume:
    """A volume of a pod; `files` are those of a ConfigMap."""

    name: str
    kind: VolumeKind
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Container:
    """How a container runs. `uid`, `gid`: 0 where nothing is said; `pre_stop_s`: seconds slept before SIGTERM."""

    name: str
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...] = ()
    environment: tuple[Variable, ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict)
    startup: Probe | None = None
    readiness: Probe | None = None
    liveness: Probe | None = None
    pre_stop_s: float = 0.0
    working_dir: str = ""
    uid: int = 0
    gid: int = 0
    read_only_root: bool = False
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True)
class PodTemplate:
    """What the pods of a workload are made from. `revision` changes with anything in it, as a rollout's hash does."""

    labels: Mapping[str, str]
    containers: tuple[Container, ...]
    volumes: tuple[Volume, ...]
    grace_s: float
    revision: str


@dataclass(frozen=True)
class Workload:
    """A Deployment or a StatefulSet. `surge`, `unavailable`: as written, a count or a percentage."""

    name: str
    kind: Literal["Deployment", "StatefulSet"]
    replicas: int
    template: PodTemplate
    surge: int | str = "25%"
    unavailable: int | str = "25%"


@dataclass(frozen=True)
class Service:
    """A Service. `ports`: its port -> the target, a number or the name of a container's port."""

    name: str
    selector: Mapping[str, str]
    ports: Mapping[int, int | str]
    headless: bool = False
    publish_not_ready: bool = False


@dataclass(frozen=True)
class Manifests:
    """Everything the rehearsal runs. `not_rehearsed`: what else the manifests hold, each kind or field once."""

    namespace: str
    workloads: Mapping[str, Workload]
    services: Mapping[str, Service]
    not_rehearsed: tuple[str, ...]


def parse(objects: Sequence[Mapping[str, Any]]) -> Manifests:
    """The rendered manifests as values. Raises NotRehearsed for what cannot be run as it is written."""
    left_out: set[str] = set()
    config_maps = {
        item["metadata"]["name"]: dict(item.get("data") or {}) for item in objects if item["kind"] == "ConfigMap"
    }
    workloads, services = {}, {}
    namespaces = set()
    for item in objects:
        kind, name = item["kind"], item["metadata"]["name"]
        if kind in ("Deployment", "StatefulSet"):
            namespaces.add(item["metadata"].get("namespace", "default"))
            workloads[name] = _workload(item, config_maps, left_out)
        elif kind == "Service":
            services[name] = _service(item)
        elif kind not in ("ConfigMap", "Namespace"):
            left_out.add(kind)
    if len(namespaces) > 1:
        raise NotRehearsed(f"workloads in several namespaces: {', '.join(sorted(namespaces))}")
    return Manifests(next(iter(namespaces), "default"), workloads, services, tuple(sorted(left_out)))


def _workload(item: Mapping[str, Any], config_maps: Mapping[str, Mapping[str, str]], left_out: set[str]) -> Workload:
    spec, kind = item["spec"], item["kind"]
    template = spec["template"]
    labels = template["metadata"]["labels"]
    if not _matches(spec["selector"]["matchLabels"], labels):
        raise NotRehearsed(f"{kind} {item['metadata']['name']}: its selector does not match its own pods")
    strategy = spec.get("strategy", {}) if kind == "Deployment" else spec.get("updateStrategy", {})
    rolling = strategy.get("rollingUpdate") or {}
    recreate = strategy.get("type") == "Recreate"
    return Workload(
        item["metadata"]["name"],
        kind,
        spec.get("replicas", 1),
        _template(template, spec.get("volumeClaimTemplates", ()), config_maps, left_out),
        0 if recreate or kind == "StatefulSet" else rolling.get("maxSurge", "25%"),
        "100%" if recreate else 1 if kind == "StatefulSet" else rolling.get("maxUnavailable", "25%"),
    )


def _template(
    template: Mapping[str, Any],
    claims: Iterable[Mapping[str, Any]],
    config_maps: Mapping[str, Mapping[str, str]],
    left_out: set[str],
) -> PodTemplate:
    spec = template["spec"]
    for key in ("initContainers", "hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            raise NotRehearsed(f"{key}: the rehearsal does not know it")
    left_out.update(f"pod.{key}" for key in spec.keys() - _POD_KEYS)
    volumes = [_volume(volume, config_maps) for volume in spec.get("volumes") or ()]
    volumes += [Volume(claim["metadata"]["name"], "claim") for claim in claims]
    security = spec.get("securityContext") or {}
    containers = tuple(_container(item, security, config_maps, left_out) for item in spec["containers"])
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
    grace_s = float(spec.get("terminationGracePeriodSeconds", 30))
    return PodTemplate(dict(template["metadata"]["labels"]), containers, tuple(volumes), grace_s, digest)


def _container(
    item: Mapping[str, Any],
    pod_security: Mapping[str, Any],
    config_maps: Mapping[str, Mapping[str, str]],
    left_out: set[str],
) -> Container:
    left_out.update(f"container.{key}" for key in item.keys() - _CONTAINER_KEYS)
    ports = {port.get("name", str(port["containerPort"])): port["containerPort"] for port in item.get("ports") or ()}
    security = {**pod_security, **(item.get("securityContext") or {})}
    name = item["name"]
    return Container(
        name=name,
        image=item["image"],
        command=tuple(item.get("command") or ()),
        args=tuple(item.get("args") or ()),
        environment=tuple(_environment(item, config_maps)),
        ports=ports,
        startup=_probe(item.get("startupProbe"), ports, f"{name}.startupProbe"),
        readiness=_probe(item.get("readinessProbe"), ports, f"{name}.readinessProbe"),
        liveness=_probe(item.get("livenessProbe"), ports, f"{name}.livenessProbe"),
        pre_stop_s=_pre_stop_s(item.get("lifecycle") or {}, name),
        working_dir=item.get("workingDir", ""),
        uid=security.get("runAsUser", 0),
        gid=security.get("runAsGroup", security.get("runAsUser", 0)),
        read_only_root=security.get("readOnlyRootFilesystem", False),
        mounts=tuple(
            Mount(mount["name"], mount["mountPath"], mount.get("subPath", ""), mount.get("readOnly", False))
            for mount in item.get("volumeMounts") or ()
        ),
    )


def _environment(item: Mapping[str, Any], config_maps: Mapping[str, Mapping[str, str]]) -> Iterable[Variable]:
    for source in item.get("envFrom") or ():
        if "configMapRef" not in source:
            raise NotRehearsed(f"{item['name']}.envFrom: only ConfigMaps are known")
        for key, value in _config_map(config_maps, source["configMapRef"]["name"]).items():
            yield Variable(source.get("prefix", "") + key, value)
    for variable in item.get("env") or ():
        name, source = variable["name"], variable.get("valueFrom")
        if not source:
            yield Variable(name, str(variable.get("value", "")))
        elif "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            yield Variable(name, _config_map(config_maps, reference["name"])[reference["key"]])
        elif source.get("fieldRef", {}).get("fieldPath") in _POD_FIELDS:
            yield Variable(name, field=source["fieldRef"]["fieldPath"])
        else:
            raise NotRehearsed(f"{item['name']}.env.{name}: the rehearsal cannot give it {json.dumps(source)}")


def _config_map(config_maps: Mapping[str, Mapping[str, str]], name: str) -> Mapping[str, str]:
    if name not in config_maps:
        raise NotRehearsed(f"ConfigMap {name}: not among the manifests")
    return config_maps[name]


def _probe(item: Mapping[str, Any] | None, ports: Mapping[str, int], where: str) -> Probe | None:
    if item is None:
        return None
    times: dict[str, Any] = {
        "initial_delay_s": float(item.get("initialDelaySeconds", 0)),
        "period_s": float(item.get("periodSeconds", 10)),
        "timeout_s": float(item.get("timeoutSeconds", 1)),
        "success_threshold": item.get("successThreshold", 1),
        "failure_threshold": item.get("failureThreshold", 3),
    }
    if "grpc" in item:
        port = item["grpc"]["port"]
        if not isinstance(port, int):
            raise NotRehearsed(f"{where}: a grpc probe names its port by number, not {port!r}")
        return Probe("grpc", port, item["grpc"].get("service", ""), **times)
    if "httpGet" in item:
        asked = item["httpGet"]
        return Probe("httpGet", _port(asked["port"], ports, where), path=asked.get("path", "/"), **times)
    if "tcpSocket" in item:
        return Probe("tcpSocket", _port(item["tcpSocket"]["port"], ports, where), **times)
    if "exec" in item:
        return Probe("exec", command=tuple(item["exec"]["command"]), **times)
    raise NotRehearsed(f"{where}: neither grpc, httpGet, tcpSocket nor exec")


def _port(port: int | str, ports: Mapping[str, int], where: str) -> int:
    if isinstance(port, int):
        return port
    if port not in ports:
        raise NotRehearsed(f"{where}: no port of the container is named {port!r}")
    return ports[port]


def _pre_stop_s(lifecycle: Mapping[str, Any], where: str) -> float:
    hook = lifecycle.get("preStop")
    if "postStart" in lifecycle or (hook is not None and "sleep" not in hook):
        raise NotRehearsed(f"{where}.lifecycle: only a preStop sleep is known")
    return float(hook["sleep"]["seconds"]) if hook else 0.0


def _volume(volume: Mapping[str, Any], config_maps: Mapping[str, Mapping[str, str]]) -> Volume:
    name = volume["name"]
    if "emptyDir" in volume:
        return Volume(name, "emptyDir")
    if "configMap" in volume:
        return Volume(name, "configMap", _config_map(config_maps, volume["configMap"]["name"]))
    if "persistentVolumeClaim" in volume:
        return Volume(name, "claim")
    raise NotRehearsed(f"volume {name}: neither emptyDir, configMap nor persistentVolumeClaim")


def _service(item: Mapping[str, Any]) -> Service:
    spec = item["spec"]
    return Service(
        item["metadata"]["name"],
        spec.get("selector") or {},
        {port["port"]: port.get("targetPort", port["port"]) for port in spec["ports"]},
        headless=spec.get("clusterIP") == "None",
        publish_not_ready=spec.get("publishNotReadyAddresses", False),
    )


def _matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())
