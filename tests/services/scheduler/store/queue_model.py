"""What the queue promises, in plain Python: jobs, their states, owners and order."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis.stateful import RuleBasedStateMachine

from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease
from synerdiff.jobs import ENDED, JobState
from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess
from synerdiff.requests import Priority

T = TypeVar("T")


@dataclass
class Job:
    """What the model knows of a job. `owner`: the pool that it was delivered to."""

    job_id: str
    request_id: str
    model: str
    priority: Priority
    timeout_ms: int
    abandonable: bool
    accepted_at_ms: int
    state: JobState = JobState.QUEUED
    owner: str | None = None
    images: set[int] = field(default_factory=set)
    was_abandoned: bool = False

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class QueueModel(RuleBasedStateMachine):
    """The jobs as they should be, and a store on `server` whose jobs they are."""

    server: RedisProcess

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis: Any = connect(self.server.url)  # its stubs cannot tell bytes from text
        self.store = JobStore(self.redis)
        self.jobs: list[Job] = []  # in order of arrival
        self.leases: dict[str, Lease] = {}
        self.old_leases: list[Lease] = []
        self.restarted = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def job(self, number: int) -> Job:
        return self.jobs[number % len(self.jobs)]

    def waiting_in_order(self) -> list[Job]:
        """Not yet delivered, in reading order."""
        order = sorted(range(len(self.jobs)), key=lambda i: (self.jobs[i].priority, self.jobs[i].model, i))
        return [self.jobs[i] for i in order if self.jobs[i].owner is None and not self.jobs[i].ended]

    def held_by(self, pool: str) -> set[str]:
        return {job.job_id for job in self.jobs if job.owner == pool and not job.ended}
