"""Pods of the restricted Pod Security level, and a little more: a read-only root, no token, no service links."""

from collections.abc import Iterator, Sequence

from deploy.checks.findings import Finding
from deploy.checks.workloads import Container, Pod, of_kind, pods, title
from deploy.kustomize import Manifest

CHECK = "security"
# It sets up the node's GPUs.
PRIVILEGED = frozenset({"DaemonSet/mps-daemon"})
LEVEL = "pod-security.kubernetes.io/enforce"


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """What a pod may do without needing to."""
    every_pod = pods(manifests)
    for pod in every_pod:
        yield from (Finding(CHECK, pod.title, message) for message in _of_pod(pod))
        for container in pod.containers:
            yield from (Finding(CHECK, container.title, message) for message in _of_container(container))
    opened = any(_needs_the_node(pod) for pod in every_pod)
    for namespace in of_kind(manifests, "Namespace"):
        level = (namespace["metadata"].get("labels") or {}).get(LEVEL)
        if level != ("privileged" if opened else "restricted"):
            yield Finding(CHECK, title(namespace), f"enforces {level}, which is not what its pods need")


def _needs_the_node(pod: Pod) -> bool:
    return any("hostPath" in volume for volume in pod.spec.get("volumes") or ())


def _of_pod(pod: Pod) -> Iterator[str]:
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "gets a token of the Kubernetes API"
    if pod.spec.get("enableServiceLinks") is not False:
        yield "gets variables named after every Service"
    for key in ("hostNetwork", "hostIPC", "hostPID"):
        if pod.spec.get(key) and pod.title not in PRIVILEGED:
            yield f"{key} is on"


def _of_container(container: Container) -> Iterator[str]:
    security = {**(container.pod.spec.get("securityContext") or {}), **(container.item.get("securityContext") or {})}
    if security.get("readOnlyRootFilesystem") is not True:
        yield "may write to its image's files"
    if not container.limits.get("memory"):
        yield "has no limit to its memory"
    if container.pod.title in PRIVILEGED:
        return
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if (security.get("capabilities") or {}).get("drop") != ["ALL"] or (security.get("capabilities") or {}).get("add"):
        yield "keeps capabilities"
    if (security.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
