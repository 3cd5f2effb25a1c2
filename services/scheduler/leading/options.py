"""The options of a leadership: made once from settings, used by one leader after the other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from services.scheduler.engine.engine import EngineBounds
from services.scheduler.engine.events import Event
from services.scheduler.leading.plan_watch import Patience
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.snapshots import Policy, Thresholds
from services.scheduler.profiles.keeper import KeeperOptions
from synerdiff.tls import ClientTls


@dataclass(frozen=True)
class LeaderOptions:
    """The parts that decide, and how workers are called.

    `thresholds` makes what each leadership asks for the thresholds of its ticks. `profiles`: where they come from.
    `plans`: the policy's memory of planned rounds, which a leader has to fill. `worker_tls`: how workers are called.
    `patience`: how long they may take to answer.
    """

    policy: Policy
    bounds: EngineBounds = field(default_factory=EngineBounds)
    thresholds: Callable[[], Thresholds | None] = lambda: None
    profiles: KeeperOptions = field(default_factory=KeeperOptions)
    plans: PlanBook = field(default_factory=PlanBook)
    worker_tls: ClientTls | None = None
    patience: Patience = field(default_factory=Patience)


class Listener(Protocol):
    """A leader, or one that only measures. Called on the event loop; must not block, and does not raise."""

    def on(self, event: Event) -> None:
        """Something has happened."""

    def superseded(self, newest_token: int = 0) -> None:
        """Another leader has taken over; `newest_token`: the newest that a worker has seen, 0 where nobody says."""

    def failed(self, error: BaseException) -> None:
        """A part that reports here cannot go on: the leadership that it is part of ends, and another begins."""
