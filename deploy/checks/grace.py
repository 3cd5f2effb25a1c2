"""The times of an orderly end. The rule: no job outlives its timeout, so a worker that drains for the longest timeout
cuts none; and a pod gets the time of its slowest container: the sleep before SIGTERM, its drain, and a margin in which
the process closes its ports and ends.
"""

from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from deploy.checks.environment import settings_of
from deploy.checks.findings import Finding
from deploy.checks.workloads import Container, pods
from deploy.kustomize import Manifest
from services.scheduler.settings import SchedulerSettings

CHECK = "grace"
MARGIN_S = 15.0
_DEFAULT_S = 30


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """Pods that would be killed while they drain, and workers that would cut a job."""
    services = [container for pod in pods(manifests) for container in pod.services]
    drains = {container.title: drain for container in services if (drain := _drain_s(container)) is not None}
    longest_s = max((_max_timeout_s(container) for container in services), default=0.0)
    for container in services:
        if container.title not in drains:
            continue
        drain_s, pre_stop_s = drains[container.title], _pre_stop_s(container)
        grace_s = container.pod.spec.get("terminationGracePeriodSeconds", _DEFAULT_S)
        if grace_s < pre_stop_s + drain_s + MARGIN_S:
            yield Finding(
                CHECK,
                container.title,
                f"is killed after {grace_s} s: less than {pre_stop_s:g} s of preStop, {drain_s:g} s of drain and "
                f"{MARGIN_S:g} s",
            )
        if container.is_worker and drain_s < longest_s:
            yield Finding(CHECK, container.title, f"drains for {drain_s:g} s, but jobs may take {longest_s:g} s")


def _pre_stop_s(container: Container) -> float:
    """An exec hook waits for a neighbour's drain, which that one is measured by."""
    hook = (container.item.get("lifecycle") or {}).get("preStop") or {}
    return float((hook.get("sleep") or {}).get("seconds", 0))


def _drain_s(container: Container) -> float | None:
    try:
        return settings_of(container).drain_grace_s
    except (KeyError, ValidationError):
        return None


def _max_timeout_s(container: Container) -> float:
    try:
        settings = settings_of(container)
    except (KeyError, ValidationError):
        return 0.0
    return settings.max_timeout_s if isinstance(settings, SchedulerSettings) else 0.0
