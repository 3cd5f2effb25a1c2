"""The times of an orderly end. The rule: no job outlives its timeout, so a worker, or a gateway, that drains for the
longest timeout cuts none; and a pod gets the time of its slowest container: the sleep before SIGTERM, its drain, and a
margin in which the process closes its ports and ends.
"""

from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from deploy.checks.environment import settings_of
from deploy.checks.findings import Finding
from deploy.checks.workloads import Container, pods
from deploy.kustomize import Manifest
from services.scheduler.settings import SchedulerSettings
from synerdiff.settings import ProcessSettings

CHECK = "grace"
MARGIN_S = 15.0
_DEFAULT_S = 30


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """Pods that would be killed while they drain, and workers that would cut a job."""
    services = [(container, settings) for container in _services(manifests) if (settings := _settings_of(container))]
    longest_s = max((s.max_timeout_s for _, s in services if isinstance(s, SchedulerSettings)), default=0.0)
    for container, settings in services:
        drain_s, pre_stop_s = settings.drain_grace_s, _pre_stop_s(container)
        grace_s = container.pod.spec.get("terminationGracePeriodSeconds", _DEFAULT_S)
        if grace_s < pre_stop_s + drain_s + MARGIN_S:
            needs = f"{pre_stop_s:g} s of preStop, {drain_s:g} s of drain and {MARGIN_S:g} s"
            yield Finding(CHECK, container.title, f"is killed after {grace_s} s: less than {needs}")
        if (container.is_worker or container.service == "gateway") and drain_s < longest_s:
            yield Finding(CHECK, container.title, f"drains for {drain_s:g} s, but jobs may take {longest_s:g} s")


def _services(manifests: Sequence[Manifest]) -> list[Container]:
    return [container for pod in pods(manifests) for container in pod.services]


def _settings_of(container: Container) -> ProcessSettings | None:
    """None where `environment` has something to say."""
    try:
        return settings_of(container)
    except (KeyError, ValidationError):
        return None


def _pre_stop_s(container: Container) -> float:
    """An exec hook waits for a neighbour's drain, which that one is measured by."""
    hook = (container.item.get("lifecycle") or {}).get("preStop") or {}
    return float((hook.get("sleep") or {}).get("seconds", 0))
