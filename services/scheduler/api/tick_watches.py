"""Streams of ticks for operators. They read rings that are kept anyway: planning never waits for them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence

from services.scheduler.engine.ticks import Ring, TickLog, TickRecord
from services.scheduler.leading.leader import Leader
from services.scheduler.leading.pool import Pool
from services.scheduler.telemetry.metrics import EndedJob, PoolMetrics
from services.scheduler.telemetry.tick_messages import TickMessages
from synerdiff.errors import NotFound, QueueFull, Unavailable
from synerdiff.v1 import operations_pb2

LOOK_EVERY_S = 0.2
# Each takes the leader some ms a second.
MOST_WATCHES = 16
_RETRY_AFTER_S = 5.0


class TickWatches:
    """The streams of one scheduler. `open`: their number."""

    def __init__(self, pool: Pool) -> None:
        self.open = 0
        self._pool = pool

    async def watch(self, domain: str, last: int) -> AsyncGenerator[operations_pb2.WatchTicksResponse, None]:
        """New parts of ticks and ended jobs as they come, beginning with the `last` ones of each.

        Raises Unavailable as soon as this process does not lead, NotFound for a domain without a worker, and QueueFull
        past MOST_WATCHES streams.
        """
        with self._counted():
            check_domain(leader_of(self._pool), domain)
            watch = Watch(domain, self._pool.ticks, PoolMetrics.of_process().ended, last)
            while True:
                leader_of(self._pool)
                message = await watch.news()
                if message:
                    yield message
                await asyncio.sleep(LOOK_EVERY_S)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        if self.open >= MOST_WATCHES:
            raise QueueFull(f"{MOST_WATCHES} watch this scheduler's ticks already", _RETRY_AFTER_S)
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


class Watch:
    """One stream's position in both rings."""

    def __init__(self, domain: str, ticks: TickLog, ended: Ring[EndedJob], last: int) -> None:
        self._domain = domain
        self._ticks, self._ended = ticks, ended
        self._parts_seen, self._jobs_seen = max(0, ticks.added - last), max(0, ended.added - last)
        self._missed = 0
        self._messages = TickMessages()
        self._begun = False

    async def news(self) -> operations_pb2.WatchTicksResponse | None:
        """The news since the last call; None without any. The first is never None: it shows that the stream is open."""
        records = self._new_records()
        jobs, self._jobs_seen = self._ended.since(self._jobs_seen), self._ended.added
        if not records and not jobs and self._begun:
            return None
        self._begun = True
        return await asyncio.to_thread(self._messages.message, records, jobs, self._missed)

    def _new_records(self) -> Sequence[TickRecord]:
        added = self._ticks.added - self._parts_seen
        records = self._ticks.since(self._parts_seen)
        if self._begun:
            self._missed += added - len(records)
        self._parts_seen = self._ticks.added
        return [record for record in records if self._domain in ("", record.domain)]


def leader_of(pool: Pool) -> Leader:
    """The leader. Raises Unavailable where this process does not."""
    if pool.leader is None:
        raise Unavailable(f"this scheduler does not lead pool {pool.name!r}; ask its leader")
    return pool.leader


def check_domain(leader: Leader, domain: str) -> None:
    """Raises NotFound for a domain without a worker; empty is every domain."""
    known = leader.engine.holdings.domains()
    if domain and domain not in known:
        raise NotFound(f"domain: {domain!r} is unknown; the domains are: {', '.join(sorted(known)) or 'none'}")
