"""A worker without its network: its leader, its device thread and its end."""

import asyncio
from abc import ABC, abstractmethod
from typing import Protocol

from prometheus_client import Counter, Histogram

from synerdiff.errors import SynerDiffError, Unavailable
from synerdiff.models.device import Device
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer, PaceSide
from synerdiff.plans import Preview, TaskFailed, UnetTickDone, VaeTickDone
from synerdiff.telemetry import get_logger
from synerdiff.worker.device_thread import DeviceThread
from synerdiff.worker.fail_stop import FailStop
from synerdiff.worker.leader import Leader, LeaderGuard, Report

log = get_logger("worker")


class StageMetrics(Protocol):
    """Metrics that both stages have, by names of their own: a stage's module `metrics`."""

    WAIT_SECONDS: Histogram
    SKIPPED_ENTRIES: Counter
    TASKS_FAILED: Counter


class StageWorker(ABC):
    """Serves one leader at a time: the one with the highest token, on its newest stream. Belongs to the event loop.

    `address` is host:port, as others reach it, known once it serves; `draining`: it takes nothing new; `heartbeats` are
    of all threads that wait for the device. `threads` CPU threads compute, `exact_threads` for exact items; 0 takes as
    many as torch uses on the calling thread. `work`: a stage's work in the plural.
    """

    work: str
    side: PaceSide
    metrics: StageMetrics

    def __init__(self, worker_id: str, compute: Device, threads: int, exact_threads: int) -> None:
        self.worker_id = worker_id
        self.address = ""
        self.draining = False
        self.leader: Leader | None = None
        self.guard = LeaderGuard()
        self.failure = FailStop(self.work)
        pacer, share = Pacer(self.side), ThreadShare(threads, exact_threads)
        self.device = DeviceThread(compute, pacer, share, self.failure.of("the device thread"))
        self.heartbeats = [*self.device.heartbeats]
        self._leaderless = asyncio.Event()
        self._leaderless.set()

    # ---- the stage's part

    @property
    @abstractmethod
    def held(self) -> int:
        """The number of tasks or images that another worker would have to make again."""

    @abstractmethod
    async def take_over(self, leader: Leader) -> None:
        """Stop the plans of earlier streams, and note the tasks in hand for the leader."""

    @abstractmethod
    def left(self) -> None:
        """The leader's stream has ended, and no other has taken its place."""

    @abstractmethod
    async def until_done(self) -> None:
        """Wait until no work is in hand, or no leader wants it."""

    def start(self) -> None:
        """Start to work."""
        self.device.start()

    async def close(self) -> None:
        """End the threads, after the device's present work."""
        self.end_streams()
        await asyncio.to_thread(self.device.close)

    # ---- leaders

    async def attach(self, token: int, leader_id: str = "", domain: str = "") -> Leader:
        """Serve `token`'s leader; returns once no earlier plan runs. Raises StaleLeader; Unavailable if failed."""
        if self.failure.error is not None:
            raise Unavailable("the worker has failed")
        self.guard.attach(token, leader_id)
        leader, earlier = Leader(token), self.leader
        if earlier is not None:
            earlier.end(self.guard.stale(earlier.token) if token > earlier.token else None)
        self.leader = leader
        self._leaderless.clear()
        try:
            await self.take_over(leader)
        except BaseException:
            self.detach(leader)
            raise
        log.info("leader attached", leader_token=token, domain=domain, held=self.held)
        return leader

    def detach(self, leader: Leader) -> None:
        """The leader's stream has ended."""
        leader.end()
        log.info("leader left", leader_token=leader.token, held=self.held)
        if self.leader is leader:
            self.leader = None
            self._leaderless.set()
            self.left()

    async def leaderless(self) -> None:
        """Wait until no leader is attached."""
        await self._leaderless.wait()

    def end_streams(self, error: SynerDiffError | None = None) -> None:
        """End the leader's stream after the messages that wait."""
        if self.leader is not None:
            self.leader.end(error)

    def accepts(self, leader_token: int, tick: int) -> bool:
        """Whether a plan is the leader's and newer than all before it; if so it counts as seen."""
        accepted = self.guard.accepts(leader_token, tick)
        if not accepted:
            log.info("plan ignored: repeated, older or another leader's", leader_token=leader_token, tick=tick)
        return accepted

    def tell(self, leader: Leader | None, message: Report | Preview) -> None:
        """Report to a leader, if there is one."""
        if isinstance(message, TaskFailed):
            log.warning("task failed", task_id=message.task_id, code=message.code, reason=message.message)
            self.metrics.TASKS_FAILED.labels(str(message.code)).inc()
        elif isinstance(message, UnetTickDone | VaeTickDone):
            for timing in message.items:
                self.metrics.WAIT_SECONDS.observe(timing.waited_ms / 1000)
            for skipped in message.skipped:
                self.metrics.SKIPPED_ENTRIES.labels(skipped.reason.name.lower()).inc()
        if leader is not None:
            leader.tell(message)
