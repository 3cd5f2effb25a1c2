"""Ends what nobody else would end. Any scheduler may run these, at any time, as often as it likes."""

from collections.abc import Awaitable, Callable, Iterable

from services.scheduler.store.records import DEADLINE_EXCEEDED, JobEnd, cancelled_event, end_from_entry, failed_event
from services.scheduler.store.store_base import StoreBase
from synerdiff.telemetry import get_logger

BATCH = 100
TELL_WITHIN_S = 60.0  # of taking an end; after that its taker is gone
DEADLINE_MESSAGE = "the request's timeout ran out before its last image"
ABANDONED_REASON = "nobody followed the job any more"

log = get_logger("sweeps")


class Sweeps(StoreBase):
    """Deadlines, abandoned jobs and finished stream entries. `now_ms` is Unix time; without it, Redis's clock."""

    async def sweep_expired(self, now_ms: int | None = None) -> int:
        """Fail the jobs whose deadline has passed, waiting or running; returns how many."""
        event = failed_event(DEADLINE_EXCEEDED, DEADLINE_MESSAGE)
        args = (_or_empty(now_ms), event, self._retention_ms, DEADLINE_EXCEEDED, DEADLINE_MESSAGE, BATCH)
        return await _until_done(lambda: self._api("sweep_expired", *args))

    async def sweep_abandoned(self, now_ms: int | None = None) -> int:
        """Cancel the abandonable jobs that nobody follows any more; returns how many. Run it every second or so.

        After a gap of half a follower lease between sweeps, whoever ran them, all run-out leases are extended instead:
        Redis or all schedulers were away, so nobody could renew.
        """
        args = (
            _or_empty(now_ms),
            self._follower_lease_ms,
            cancelled_event(ABANDONED_REASON),
            self._retention_ms,
            BATCH,
            ABANDONED_REASON,
        )
        return await _until_done(lambda: self._api("sweep_abandoned", *args))

    async def restore(self) -> None:
        """Make the queue's keys again that Redis has lost, from those it still has."""
        await self._api("restore", self._follower_lease_ms)

    async def take_ended(self) -> dict[str, JobEnd]:
        """How jobs have ended that nobody has told of yet, at most BATCH, by entry; each is given to one caller.

        The caller tells of them and then calls `ended_told`. Others get what it does not tell within TELL_WITHIN_S.
        """
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

    async def trim(self) -> int:
        """Drop from the streams what every pool is done with; returns how many entries went."""
        return int(await self._api("trim"))


def _or_empty(now_ms: int | None) -> int | str:
    return "" if now_ms is None else now_ms


async def _until_done(sweep_batch: Callable[[], Awaitable[int]]) -> int:
    total = swept = await sweep_batch()
    while swept == BATCH:
        swept = await sweep_batch()
        total += swept
    return total
