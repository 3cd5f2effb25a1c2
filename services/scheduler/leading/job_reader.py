"""Brings a leader the jobs in Redis, as the engine wants more, and the word of jobs that others ended."""

import asyncio
from collections.abc import Callable, Iterable

from services.scheduler.engine.engine import Engine
from services.scheduler.engine.events import JobArrived, JobDropped, JobEvent
from services.scheduler.store.notifications import Subscription
from services.scheduler.store.queue import JobStore, Lease
from synerdiff.jobs import JobRecord

CLAIM_ABSENCE_S = 60.0  # a pool without a leader for this long is not coming back soon: others take its jobs
WANT_IDLE_S = 0.02
READ_AGAIN_S = 0.5  # the safety net under pub/sub


class JobReader:
    """One per leadership. Methods but `follow_controls` are steps, to be repeated; they raise the store's errors."""

    def __init__(self, store: JobStore, lease: Lease, engine: Engine, on: Callable[[JobEvent], None]) -> None:
        self._store = store
        self._lease = lease
        self._engine = engine
        self._on = on
        self._accepted: set[str] = set()  # models whose jobs were accepted of late

    async def read_pending(self) -> None:
        """Read the jobs that an earlier leader of the pool left."""
        self._arrived(await self._store.read_pending(self._lease))

    async def read_new(self, accepted: Subscription) -> None:
        """Read once, then wait for as long as reading again would find nothing.

        A pool that is full reads on only as jobs are accepted: one may be of a caller that has few here.
        """
        room = more = False
        for model, wanted in self._engine.wanted().items():
            if wanted.jobs > 0 or model in self._accepted:
                records = await self._store.read_new(self._lease, [model], *wanted)
                self._arrived(records)
                room = room or wanted.jobs > 0
                more = more or len(records) >= wanted.jobs > 0
        if not more:
            if not room:
                await asyncio.sleep(WANT_IDLE_S)
            self._accepted = {model.decode() for model in await accepted.wait(READ_AGAIN_S if room else 0.0)}

    async def claim_stale(self) -> None:
        """Take over the jobs of pools that have had no leader for long."""
        for model, count in self._engine.wanted_jobs().items():
            self._arrived(await self._store.claim_stale(self._lease, [model], count, CLAIM_ABSENCE_S))

    async def drop_ended(self) -> None:
        """Let go of jobs that were ended, or lost, without this leader having heard of it."""
        held = list(self._engine.holdings.jobs)
        if not held:
            return
        gone = await self._store.gone(held, self._lease.pool)
        for job_id in gone.ended | gone.lost:
            self._on(JobDropped(job_id, lost=job_id in gone.lost))

    async def follow_controls(self) -> None:
        """Let go of jobs as they are cancelled."""
        async for job_id in self._store.controls(self._lease.pool):
            self._on(JobDropped(job_id))

    def _arrived(self, records: Iterable[JobRecord]) -> None:
        for record in records:
            self._on(JobArrived(record))
