"""Ends what nobody else would end. Any scheduler may run these, at any time, as often as it likes."""

from collections.abc import Awaitable, Callable

import grpc

from services.scheduler.store.records import cancelled_event, failed_event
from services.scheduler.store.store_base import StoreBase

BATCH = 100
DEADLINE_EXCEEDED: int = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
DEADLINE_MESSAGE = "the request's timeout ran out before its last image"
ABANDONED_REASON = "nobody followed the job any more"


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
        )
        return await _until_done(lambda: self._api("sweep_abandoned", *args))

    async def restore(self) -> None:
        """Make the queue's keys again that Redis has lost, from those it still has."""
        await self._api("restore", self._follower_lease_ms)

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
