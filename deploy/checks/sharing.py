"""What workers that share a GPU must have in common: the user, the pod's process ids, /dev/shm, the MPS daemon."""

from collections.abc import Iterator, Sequence

from deploy.checks.findings import Finding
from deploy.checks.workloads import Container, Pod, pods
from deploy.kustomize import Manifest
from synerdiff.mps import MEMORY_LIMIT, PIPE_DIRECTORY, THREAD_PERCENTAGE, parse_memory_limits, parse_thread_percentage

CHECK = "sharing"
SHM = "/dev/shm"
SHARED_GPU = "nvidia.com/gpu.shared"
MPS_NODES = "nvidia.com/mps.capable"
REQUIRE_MPS = "SYNERDIFF_REQUIRE_MPS"


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """Workers that could not hand latents over on one GPU, or not use it at all."""
    every_pod = pods(manifests)
    yield from _several_users(every_pod)
    daemons = {volumes for pod in every_pod if not pod.services for c in pod.containers if (volumes := _mps_paths(c))}
    for pod in every_pod:
        workers = [container for container in pod.containers if container.is_worker]
        if len(workers) > 1 and not pod.spec.get("shareProcessNamespace"):
            yield Finding(CHECK, pod.title, "its workers do not share process ids: CUDA IPC between equal ids fails")
        for message in _mixed_ways(pod, workers):
            yield Finding(CHECK, pod.title, message)
        if sum(_percentage(worker) for worker in workers) > 100:
            yield Finding(CHECK, pod.title, "its workers' shares of the GPU are more than 100 %")
        for worker in workers:
            yield from (Finding(CHECK, worker.title, message) for message in _wrong_share(worker, daemons))


def _mixed_ways(pod: Pod, workers: Sequence[Container]) -> Iterator[str]:
    """A pod that asks for two ways of sharing finds no node that has both, and stays Pending."""
    by_plugin = MPS_NODES in (pod.spec.get("nodeSelector") or {})
    by_daemon = any(PIPE_DIRECTORY in worker.environment for worker in workers)
    by_claim = bool(pod.spec.get("resourceClaims"))
    if by_plugin + by_daemon + by_claim > 1:
        yield "shares its GPU in more than one way: by the device plugin's MPS, an MPS daemon or a claim, not by two"
    if by_claim and any(SHARED_GPU in worker.limits for worker in workers):
        yield f"takes a GPU by a claim and a share by {SHARED_GPU}: two GPUs, of which no node has both"


def _several_users(every_pod: Sequence[Pod]) -> Iterator[Finding]:
    first: tuple[str, tuple[object, object]] | None = None
    for worker in (container for pod in every_pod for container in pod.containers if container.is_worker):
        user = _user(worker)
        if not all(isinstance(part, int) for part in user):
            yield Finding(CHECK, worker.title, "runs as no fixed user and group")
        first = first or (worker.title, user)
        if user != first[1]:
            yield Finding(CHECK, worker.title, f"runs as {user}, but {first[0]} as {first[1]}: MPS serves one user")


def _user(container: Container) -> tuple[object, object]:
    merged = {**(container.pod.spec.get("securityContext") or {}), **(container.item.get("securityContext") or {})}
    return merged.get("runAsUser"), merged.get("runAsGroup")


def _wrong_share(worker: Container, daemons: set[tuple[str, str]]) -> Iterator[str]:
    if SHARED_GPU in worker.limits and str(worker.limits[SHARED_GPU]) != "1":
        yield f"takes {worker.limits[SHARED_GPU]} shares of a GPU: more than one gives no more of it"
    yield from _unreadable(worker)
    if not _uses_mps(worker):
        return
    if worker.environment.get(REQUIRE_MPS) != "true":
        yield f"would serve without the MPS daemon that it is promised: {REQUIRE_MPS} is not true"
    if PIPE_DIRECTORY not in worker.environment:
        if worker.volume_at(SHM) is not None:
            yield f"mounts a volume over {SHM}, which whoever shares the GPU mounts itself"
    elif _mps_paths(worker) not in daemons:
        yield f"shares neither its MPS pipe nor {SHM} with an MPS daemon of these manifests"


def _unreadable(worker: Container) -> Iterator[str]:
    for name, parse in ((THREAD_PERCENTAGE, parse_thread_percentage), (MEMORY_LIMIT, parse_memory_limits)):
        if name not in worker.environment:
            continue
        try:
            parse(worker.environment[name])
        except ValueError as error:
            yield f"{name}={worker.environment[name]}: {error}"


def _percentage(worker: Container) -> int:
    try:
        return parse_thread_percentage(worker.environment.get(THREAD_PERCENTAGE, ""))
    except ValueError:
        return 0


def _uses_mps(worker: Container) -> bool:
    claims = (worker.item.get("resources") or {}).get("claims")
    return bool(SHARED_GPU in worker.limits or claims or PIPE_DIRECTORY in worker.environment)


def _mps_paths(container: Container) -> tuple[str, str] | None:
    """The node's folders behind the MPS pipe and /dev/shm, where both are the node's."""
    pipe = container.environment.get(PIPE_DIRECTORY)
    volumes = [container.volume_at(path) or {} for path in (pipe or "/", SHM)]
    paths = [str((volume.get("hostPath") or {}).get("path", "")) for volume in volumes]
    return (paths[0], paths[1]) if pipe and all(paths) else None
