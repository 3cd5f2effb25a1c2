"""Sweeps end jobs and drop data without an owner. Any scheduler may run them, at any time, any number of times."""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from services.scheduler.store import keys
from services.scheduler.store.records import DEADLINE_EXCEEDED, JobEnd, cancelled_event, end_from_entry, failed_event
from services.scheduler.store.store_base import StoreBase
from synerdiff.redis_client import patiently
from synerdiff.telemetry import get_logger

BATCH = 100
IMAGES_EVERY_S = 60.0
TELL_WITHIN_S = 60.0  # of taking an end; after that its taker is gone
DEADLINE_MESSAGE = "the request's timeout ran out before its last image"
ABANDONED_REASON = "nobody followed the job any more"

log = get_logger("sweeps")


class Sweeps(StoreBase):
    """Deadlines, abandoned jobs, done stream entries, image files. `now_ms`: Unix time; without it, Redis's clock."""

    async def sweep_expired(self, now_ms: int | None = None) -> int:
        """Fail the jobs whose deadline has passed, waiting or running; returns how many."""
        event = failed_event(DEADLINE_EXCEEDED, DEADLINE_MESSAGE)
        args = (_or_empty(now_ms), event, self._retention_ms, DEADLINE_EXCEEDED, DEADLINE_MESSAGE, BATCH)
        return await _until_done(lambda: self._api("sweep_expired", *args))

    async def sweep_abandoned(self, now_ms: int | None = None) -> int:
        """Cancel the abandonable jobs without followers; returns how many. Run it every second or so.

        After a gap of half a follower lease between sweeps by any scheduler, all expired leases are extended instead:
        Redis or all schedulers were away, so no lease could be renewed.
        """
        event, lease_ms, kept_ms = cancelled_event(ABANDONED_REASON), self._follower_lease_ms, self._retention_ms
        args = (_or_empty(now_ms), lease_ms, event, kept_ms, BATCH, ABANDONED_REASON)
        return await _until_done(lambda: self._api("sweep_abandoned", *args))

    async def restore(self) -> None:
        """Make the queue's keys again that Redis has lost, from those it still has."""
        await self._api("restore", self._follower_lease_ms)

    async def take_ended(self) -> dict[str, JobEnd]:
        """The ends of jobs that no scheduler has logged, at most BATCH, by entry; each goes to one caller. The caller
        logs them and then calls `ended_told`. Others get the ends that it does not log within TELL_WITHIN_S."""
        ends = {}
        for entry_id, fields in await self._api("take_ended", BATCH, round(TELL_WITHIN_S * 1000)):
            try:
                ends[entry_id.decode()] = end_from_entry(fields)
            except (LookupError, ValueError) as error:
                log.error("the end of a job cannot be read", entry=repr(fields)[:500], error=repr(error))
                await self.ended_told([entry_id.decode()])
        return ends

    async def ended_told(self, entries: Iterable[str]) -> None:
        """Forget these ends."""
        await self._api("ended_told", *entries)

    async def sweep_images(self, every_s: float = IMAGES_EVERY_S) -> int:
        """Delete the image files of jobs that Redis has no record of; returns of how many. Once in `every_s` for all.

        Their retention has ended, or their leader died before it told Redis. Files younger than the retention stay, for
        an operator to give back a Redis that has lost its data.
        """
        period_ms = round(every_s * 1000)
        patience_s = self._settings.api_patience_s
        if not await patiently(lambda: self._redis.set(keys.IMAGES_SWEPT, "", nx=True, px=period_ms), patience_s):
            return 0
        swept = 0
        async for job_ids in self._images.jobs(self._settings.retention_s):
            unknown = await patiently(partial(self._unknown, sorted(job_ids)), patience_s)
            for job_id in unknown:
                await self._images.delete(job_id)
            swept += len(unknown)
        return swept

    async def _unknown(self, job_ids: list[str]) -> list[str]:
        async with self._redis.pipeline(transaction=False) as asking:
            for job_id in job_ids:
                asking.exists(keys.job(job_id))
            known = await asking.execute()
        return [job_id for job_id, is_known in zip(job_ids, known, strict=True) if not is_known]

    async def trim(self) -> int:
        """Drop the stream entries that every pool is done with; returns how many."""
        return int(await self._api("trim"))


def _or_empty(now_ms: int | None) -> int | str:
    return "" if now_ms is None else now_ms


async def _until_done(sweep_batch: Callable[[], Awaitable[int]]) -> int:
    total = swept = await sweep_batch()
    while swept == BATCH:
        swept = await sweep_batch()
        total += swept
    return total
