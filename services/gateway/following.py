"""A job for as long as its HTTP client listens: one that hangs up frees its slot."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from services.gateway import metrics
from services.gateway.callers import Caller
from synerdiff.cancellation import cancel_and_wait
from synerdiff.client import AsyncClient, Event, Finished, GenerateOptions
from synerdiff.errors import SynerDiffError
from synerdiff.telemetry import get_logger

log = get_logger("following")

T = TypeVar("T")
# What was cut has ended long before.
_END_S = 5.0
Receive = Callable[[], Awaitable[Any]]


class HungUp(Exception):
    """The client has gone: nobody is there to be answered."""


class Following:
    """Follows jobs, and cancels those whose client leaves without an Idempotency-Key to come back by.

    With one it may be on its way to another gateway already: its job is left to the scheduler, which ends it once
    nobody has followed it for the abandonment time.
    """

    def __init__(self) -> None:
        self._cancelling: set[asyncio.Task[None]] = set()
        self._open = 0
        self._nobody = asyncio.Event()
        self._nobody.set()

    async def events(self, caller: Caller, prompt: str, options: GenerateOptions) -> AsyncGenerator[Event, None]:
        """The events of a new job to its end. Raises the job's own error."""
        job_id, left = "", True
        self._open += 1
        self._nobody.clear()
        try:
            async with aclosing(caller.client.stream(prompt, **options)) as events:
                async for event in events:
                    job_id, left = event.job_id, not isinstance(event, Finished)
                    yield event
        except SynerDiffError:
            left = False
            raise
        finally:
            if left and job_id and not caller.returns:
                self._cancel(caller.client, job_id)
            self._open -= 1
            if not self._open:
                self._nobody.set()

    async def close(self) -> None:
        """Wait until nobody is followed any more, which has to come soon, and for the cancellations under way."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nobody.wait(), _END_S)
        await asyncio.gather(*self._cancelling, return_exceptions=True)

    def _cancel(self, client: AsyncClient, job_id: str) -> None:
        task = asyncio.create_task(_cancel(client, job_id), name=f"cancelling {job_id}")
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)


async def _cancel(client: AsyncClient, job_id: str) -> None:
    try:
        await client.cancel(job_id)
        metrics.HANG_UPS.inc()
        log.info("cancelled: its client hung up", job_id=job_id)
    except SynerDiffError as error:  # it is abandoned all the same
        log.warning("could not cancel a job whose client hung up", job_id=job_id, reason=str(error))


async def unless_hung_up(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`; cancels it and raises HungUp once the client has gone. The body has to be read before."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HungUp
        return working.result()
    finally:
        await cancel_and_wait(working, leaving)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
