"""Workers on one GPU must share the user, the pod's process ids, /dev/shm and the MPS daemon."""

from collections.abc import Iterator

from deploy.checks.manifests import PODS, Container, Manifests, Pod, Rule
from deploy.kustomize import at
from synerdiff.mps import MEMORY_LIMIT, PIPE_DIRECTORY, THREAD_PERCENTAGE, parse_memory_limits, parse_thread_percentage

SHM = "/dev/shm"
SHARED_GPU = "nvidia.com/gpu.shared"
MPS_NODES = "nvidia.com/mps.capable"
REQUIRE_MPS = "SYNERDIFF_REQUIRE_MPS"


def _workers(given: Manifests) -> list[Container]:
    return [container for container in given.services if container.is_worker]


def _wrong_pod(pod: Pod) -> Iterator[str]:
    """Workers that could not hand latents over on one GPU; pods with two ways of sharing, which fit no node."""
    workers = [container for container in pod.containers if container.is_worker]
    if len(workers) > 1 and not pod.spec.get("shareProcessNamespace"):
        yield "its workers do not share process ids: CUDA IPC between equal ids fails"
    by_plugin = MPS_NODES in (pod.spec.get("nodeSelector") or {})
    by_daemon = any(PIPE_DIRECTORY in worker.environment for worker in workers)
    by_claim = bool(pod.spec.get("resourceClaims"))
    if by_plugin + by_daemon + by_claim > 1:
        yield "shares its GPU in more than one way: by the device plugin's MPS, an MPS daemon or a claim, not by two"
    if by_claim and any(SHARED_GPU in worker.limits for worker in workers):
        yield f"takes a GPU by a claim and a share by {SHARED_GPU}: two GPUs, of which no node has both"
    if sum(map(_percentage, workers)) > 100:
        yield "its workers' shares of the GPU are more than 100 %"


def _percentage(worker: Container) -> int:
    try:
        return parse_thread_percentage(worker.environment.get(THREAD_PERCENTAGE, ""))
    except ValueError:
        return 0


def _another_user(worker: Container) -> Iterator[str]:
    first = _workers(worker.pod.given)[0]
    user, first_user = _user(worker), _user(first)
    if not all(isinstance(part, int) for part in user):
        yield "runs as no fixed user and group"
    if user != first_user:
        yield f"runs as {user}, but {first.title} as {first_user}: MPS serves one user"


def _user(container: Container) -> tuple[object, object]:
    return container.security.get("runAsUser"), container.security.get("runAsGroup")


def _wrong_share(worker: Container) -> Iterator[str]:
    if SHARED_GPU in worker.limits and str(worker.limits[SHARED_GPU]) != "1":
        yield f"takes {worker.limits[SHARED_GPU]} shares of a GPU: more than one gives no more of it"
    for name, parse in ((THREAD_PERCENTAGE, parse_thread_percentage), (MEMORY_LIMIT, parse_memory_limits)):
        if name in worker.environment:
            try:
                parse(worker.environment[name])
            except ValueError as error:
                yield f"{name}={worker.environment[name]}: {error}"
    if not (SHARED_GPU in worker.limits or worker.at("resources.claims") or PIPE_DIRECTORY in worker.environment):
        return
    if worker.environment.get(REQUIRE_MPS) != "true":
        yield f"would serve without the MPS daemon that it is promised: {REQUIRE_MPS} is not true"
    if PIPE_DIRECTORY not in worker.environment:
        if worker.volume_at(SHM) is not None:
            yield f"mounts a volume over {SHM}, which whoever shares the GPU mounts itself"
    elif _mps_paths(worker) not in _daemons(worker.pod.given):
        yield f"shares neither its MPS pipe nor {SHM} with an MPS daemon of these manifests"


def _daemons(given: Manifests) -> set[tuple[str, str]]:
    """The paths of containers in pods without a service."""
    others = (pod for pod in given.pods if not any(container.service for container in pod.containers))
    return {paths for pod in others for container in pod.containers if (paths := _mps_paths(container))}


def _mps_paths(container: Container) -> tuple[str, str] | None:
    """The node's folders behind the MPS pipe and /dev/shm, where both are the node's."""
    pipe = container.environment.get(PIPE_DIRECTORY)
    paths = [str(at(container.volume_at(path), "hostPath.path", "")) for path in (pipe or "/", SHM)]
    return (paths[0], paths[1]) if pipe and all(paths) else None


RULES = (
    Rule("sharing", PODS, _wrong_pod),
    Rule("sharing", _workers, _another_user),
    Rule("sharing", _workers, _wrong_share),
)
