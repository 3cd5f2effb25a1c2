"""The next moves of a Deployment's controllers: pure, from the present pods to those to make and those to stop.

Follows Kubernetes' own order: a rollout never has more pods than replicas + maxSurge, nor fewer ready ones than
replicas - maxUnavailable; of too many pods those that are not ready go first, then those that became ready last. Pods
that are being stopped count for neither.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from deploy.rehearsal.manifests import Workload


class PodView(Protocol):
    """A pod that is not being stopped. `ready_at`: when it became ready (monotonic, s), None while it is not."""

    name: str
    revision: str
    created_at: float
    ready_at: float | None


@dataclass(frozen=True)
class Moves:
    """Pods to make, all of the wanted revision, and the names of those to stop."""

    create: int = 0
    stop: tuple[str, ...] = ()


def next_moves(wanted: Workload, pods: Sequence[PodView]) -> Moves:
    """One round of the controllers."""
    surge = _count(wanted.surge, wanted.replicas, math.ceil)
    unavailable = _count(wanted.unavailable, wanted.replicas, math.floor)
    unavailable = unavailable if surge or unavailable else 1
    new = [pod for pod in pods if pod.revision == wanted.template.revision]
    old = [pod for pod in pods if pod.revision != wanted.template.revision]
    create = max(0, min(wanted.replicas - len(new), wanted.replicas + surge - len(pods)))
    stop = _last_first(new)[: max(0, len(new) - wanted.replicas)]
    if old:
        stop += _old_to_stop(wanted.replicas, unavailable, new, old)
    return Moves(create, tuple(pod.name for pod in stop))


def is_settled(wanted: Workload, pods: Sequence[PodView]) -> bool:
    """Whether exactly the wanted pods are there, all of them ready."""
    return len(pods) == wanted.replicas and all(
        pod.revision == wanted.template.revision and pod.ready_at is not None for pod in pods
    )


def _old_to_stop(replicas: int, unavailable: int, new: Sequence[PodView], old: Sequence[PodView]) -> list[PodView]:
    """Old pods that may go now: those not ready cost nothing; of the ready ones as many as can be spared."""
    ready = sum(pod.ready_at is not None for pod in (*new, *old))
    idle = [pod for pod in old if pod.ready_at is None]
    spare = max(0, ready - (replicas - unavailable))
    return idle + _last_first([pod for pod in old if pod.ready_at is not None])[:spare]


def _count(value: int | str, replicas: int, rounded: Callable[[float], int]) -> int:
    if isinstance(value, int):
        return value
    return rounded(replicas * int(value.removesuffix("%")) / 100)


def _last_first(pods: Sequence[PodView]) -> list[PodView]:
    """In the order in which they are stopped: not ready ones, then the latest."""
    return sorted(pods, key=lambda pod: (pod.ready_at is not None, -(pod.ready_at or 0.0), -pod.created_at))
