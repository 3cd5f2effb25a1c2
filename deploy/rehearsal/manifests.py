"""The part of rendered manifests that the rehearsal runs, as frozen values. It names the parts that it leaves out."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from deploy.kustomize import Manifest, at

ProbeKind = Literal["grpc", "httpGet", "tcpSocket", "exec"]
VolumeKind = Literal["emptyDir", "configMap", "claim"]

# The fields of a pod and a container that the rehearsal knows. All others are listed as not rehearsed.
_POD_KEYS = frozenset({"containers", "volumes", "terminationGracePeriodSeconds", "securityContext", "restartPolicy"})
_CONTAINER_KEYS = frozenset(
    {"name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "ports", "workingDir", "volumeMounts"}
    | {"startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "securityContext"}
)
# Fields of the downward API by their names in the pod's `Identity`.
POD_FIELDS = {
    "metadata.name": "name",
    "metadata.namespace": "namespace",
    "metadata.uid": "uid",
    "spec.nodeName": "node",
    "status.podIP": "ip",
    "status.hostIP": "node_ip",
}


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
    """The template of a workload's pods. `revision` changes with anything in it, as a rollout's hash does."""

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
    """Everything the rehearsal runs. `not_rehearsed`: the rest of the manifests, each kind or field once."""

    namespace: str
    workloads: Mapping[str, Workload]
    services: Mapping[str, Service]
    not_rehearsed: tuple[str, ...]


def parse(objects: Sequence[Manifest]) -> Manifests:
    """The rendered manifests as values. Raises NotRehearsed for a part that cannot be run as written."""
    reader = _Reader(objects)
    workloads = [item for item in objects if item["kind"] in ("Deployment", "StatefulSet")]
    services = [_service(item) for item in objects if item["kind"] == "Service"]
    known = ("Deployment", "StatefulSet", "Service", "ConfigMap", "Namespace")
    reader.left_out.update(item["kind"] for item in objects if item["kind"] not in known)
    namespaces = sorted({item["metadata"].get("namespace", "default") for item in workloads})
    if len(namespaces) > 1:
        raise NotRehearsed(f"workloads in several namespaces: {', '.join(namespaces)}")
    return Manifests(
        next(iter(namespaces), "default"),
        {item["metadata"]["name"]: reader.workload(item) for item in workloads},
        {service.name: service for service in services},
        tuple(sorted(reader.left_out)),
    )


class _Reader:
    """Reads objects into values. `left_out`: their parts that are not rehearsed."""

    def __init__(self, objects: Sequence[Manifest]) -> None:
        self.left_out: set[str] = set()
        self._config_maps = {
            item["metadata"]["name"]: dict(item.get("data") or {}) for item in objects if item["kind"] == "ConfigMap"
        }

    def workload(self, item: Manifest) -> Workload:
        spec, kind, name = item["spec"], item["kind"], item["metadata"]["name"]
        if not spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items():
            raise NotRehearsed(f"{kind} {name}: its selector does not match its own pods")
        template = self._template(spec["template"], spec.get("volumeClaimTemplates", ()))
        if kind == "StatefulSet":
            return Workload(name, kind, spec.get("replicas", 1), template, 0, 1)
        if at(spec, "strategy.type") == "Recreate":
            return Workload(name, kind, spec.get("replicas", 1), template, 0, "100%")
        rolling = {"maxSurge": "25%", "maxUnavailable": "25%"} | at(spec, "strategy.rollingUpdate", {})
        return Workload(name, kind, spec.get("replicas", 1), template, rolling["maxSurge"], rolling["maxUnavailable"])

    def _template(self, template: Mapping[str, Any], claims: Iterable[Mapping[str, Any]]) -> PodTemplate:
        spec = template["spec"]
        for key in ("initContainers", "hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                raise NotRehearsed(f"{key}: the rehearsal does not know it")
        self.left_out.update(f"pod.{key}" for key in spec.keys() - _POD_KEYS)
        volumes = [self._volume(volume) for volume in spec.get("volumes") or ()]
        volumes += [Volume(claim["metadata"]["name"], "claim") for claim in claims]
        containers = tuple(self._container(item, spec.get("securityContext") or {}) for item in spec["containers"])
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
        grace_s = float(spec.get("terminationGracePeriodSeconds", 30))
        return PodTemplate(dict(template["metadata"]["labels"]), containers, tuple(volumes), grace_s, digest)

    def _container(self, item: Mapping[str, Any], pod_security: Mapping[str, Any]) -> Container:
        self.left_out.update(f"container.{key}" for key in item.keys() - _CONTAINER_KEYS)
        ports = {each.get("name", str(each["containerPort"])): each["containerPort"] for each in at(item, "ports", ())}
        security = {**pod_security, **at(item, "securityContext", {})}
        name, lifecycle = item["name"], item.get("lifecycle") or {}
        if "postStart" in lifecycle or "sleep" not in lifecycle.get("preStop", {"sleep": None}):
            raise NotRehearsed(f"{name}.lifecycle: only a preStop sleep is known")
        return Container(
            name=name,
            image=item["image"],
            command=tuple(item.get("command") or ()),
            args=tuple(item.get("args") or ()),
            environment=tuple(self._environment(item)),
            ports=ports,
            startup=_probe(item.get("startupProbe"), ports, f"{name}.startupProbe"),
            readiness=_probe(item.get("readinessProbe"), ports, f"{name}.readinessProbe"),
            liveness=_probe(item.get("livenessProbe"), ports, f"{name}.livenessProbe"),
            pre_stop_s=float(at(lifecycle, "preStop.sleep.seconds", 0)),
            working_dir=item.get("workingDir", ""),
            uid=security.get("runAsUser", 0),
            gid=security.get("runAsGroup", security.get("runAsUser", 0)),
            read_only_root=security.get("readOnlyRootFilesystem", False),
            mounts=tuple(
                Mount(mount["name"], mount["mountPath"], mount.get("subPath", ""), mount.get("readOnly", False))
                for mount in item.get("volumeMounts") or ()
            ),
        )

    def _environment(self, item: Mapping[str, Any]) -> Iterable[Variable]:
        for source in item.get("envFrom") or ():
            if "configMapRef" not in source:
                raise NotRehearsed(f"{item['name']}.envFrom: only ConfigMaps are known")
            for key, value in self._config_map(source["configMapRef"]["name"]).items():
                yield Variable(source.get("prefix", "") + key, value)
        for variable in item.get("env") or ():
            name, source = variable["name"], variable.get("valueFrom")
            if not source:
                yield Variable(name, str(variable.get("value", "")))
            elif "configMapKeyRef" in source:
                reference = source["configMapKeyRef"]
                yield Variable(name, self._config_map(reference["name"])[reference["key"]])
            elif at(source, "fieldRef.fieldPath") in POD_FIELDS:
                yield Variable(name, field=source["fieldRef"]["fieldPath"])
            else:
                raise NotRehearsed(f"{item['name']}.env.{name}: the rehearsal cannot give it {json.dumps(source)}")

    def _volume(self, volume: Mapping[str, Any]) -> Volume:
        name = volume["name"]
        if "emptyDir" in volume:
            return Volume(name, "emptyDir")
        if "configMap" in volume:
            return Volume(name, "configMap", self._config_map(volume["configMap"]["name"]))
        if "persistentVolumeClaim" in volume:
            return Volume(name, "claim")
        raise NotRehearsed(f"volume {name}: neither emptyDir, configMap nor persistentVolumeClaim")

    def _config_map(self, name: str) -> Mapping[str, str]:
        if name not in self._config_maps:
            raise NotRehearsed(f"ConfigMap {name}: not among the manifests")
        return self._config_maps[name]


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
    kind = next((kind for kind in get_args(ProbeKind) if kind in item), None)
    if kind is None:
        raise NotRehearsed(f"{where}: neither {', '.join(get_args(ProbeKind))}")
    if kind == "exec":
        return Probe(kind, command=tuple(item["exec"]["command"]), **times)
    asked, port = item[kind], item[kind]["port"]
    if kind == "grpc" and not isinstance(port, int):
        raise NotRehearsed(f"{where}: a grpc probe names its port by number, not {port!r}")
    if not isinstance(port, int) and port not in ports:
        raise NotRehearsed(f"{where}: no port of the container is named {port!r}")
    path = asked.get("path", "/") if kind == "httpGet" else ""
    return Probe(kind, port if isinstance(port, int) else ports[port], asked.get("service", ""), path, **times)


def _service(item: Manifest) -> Service:
    spec = item["spec"]
    return Service(
        item["metadata"]["name"],
        spec.get("selector") or {},
        {port["port"]: port.get("targetPort", port["port"]) for port in spec["ports"]},
        headless=spec.get("clusterIP") == "None",
        publish_not_ready=spec.get("publishNotReadyAddresses", False),
    )
