"""How a pool is led: the parts that decide, made once from settings and used by one leadership after the other."""

from collections.abc import Callable
from dataclasses import dataclass, field

from services.scheduler.engine import EngineBounds
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.profiler.profile_keeper import KeeperOptions
from services.scheduler.snapshots import Policy, Thresholds
from synerdiff.tls import ClientTls


def _no_thresholds() -> Thresholds | None:
    return None


@dataclass(frozen=True)
class Conduct:
    """What a leader goes by.

    `thresholds` makes what each leadership asks for the thresholds of its ticks. `profiles`: where they come from.
    `plans`: the policy's memory of planned rounds, which a leader has to fill. `worker_tls`: how workers are called.
    """

    policy: Policy
    bounds: EngineBounds = field(default_factory=EngineBounds)
    thresholds: Callable[[], Thresholds | None] = _no_thresholds
    profiles: KeeperOptions = field(default_factory=KeeperOptions)
    plans: PlanBook = field(default_factory=PlanBook)
    worker_tls: ClientTls | None = None
