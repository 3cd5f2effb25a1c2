"""Leases of followed jobs: while anybody anywhere follows an abandonable job, it is not abandoned."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from services.scheduler.store.scripts import Scripts
from synerdiff.cancellation import cancel_and_wait
from synerdiff.errors import Unavailable


class FollowerLeases:
    """Renews the leases of all jobs followed in this process, in one call every third of the lease time.

    Jobs that have no lease (submitted, or ended) get none by this. A follower that goes just stops renewing, so a
    draining scheduler cancels nothing that is followed again elsewhere in time.
    """

    def __init__(self, scripts: Scripts, lease_ms: int, patience_s: float) -> None:
        self._scripts = scripts
        self._lease_ms = lease_ms
        self._patience_s = patience_s
        self._followed: Counter[str] = Counter()
        self._fresh: set[str] = set()
        self._arrival = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def following(self, job_id: str) -> Iterator[None]:
        """Keep the lease of a job while in the context; the first renewal is at once."""
        self._followed[job_id] += 1
        self._fresh.add(job_id)
        self._arrival.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._followed[job_id] -= 1
            if self._followed[job_id] == 0:
                del self._followed[job_id]

    async def close(self) -> None:
        """Renew no more."""
        task, self._task = self._task, None
        if task is not None:
            await cancel_and_wait(task)

    async def _run(self) -> None:
        period_s = self._lease_ms / 3000
        due = time.monotonic() + period_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._arrival.wait()
            self._arrival.clear()
            job_ids, self._fresh = self._fresh, set()
            if time.monotonic() >= due:
                job_ids = set(self._followed)
                due = time.monotonic() + period_s
            if job_ids:
                await self._renew(job_ids)

    async def _renew(self, job_ids: set[str]) -> None:
        with contextlib.suppress(Unavailable):  # the sweep grants everybody one lease time once Redis is back
            await self._scripts.run("renew_follower_leases", self._lease_ms, *job_ids, patience_s=self._patience_s)
