"""A job for as long as its HTTP client listens: one that hangs up frees its slot."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from services.gateway import metrics
from services.gateway.errors import ApiError
from synerdiff.client import AsyncClient, Event, Finished, GenerateOptions
from synerdiff.errors import SynerDiffError
from synerdiff.stopping import cancel_and_wait
from synerdiff.telemetry import get_logger

# A caller's identity, and the W3C context of its trace, are passed on unchanged.
PASSED_ON = ("authorization", "traceparent", "tracestate")
_MAX_VALUE_BYTES = 4096
# A cancelled job ends long before this.
_END_S = 5.0

T = TypeVar("T")
Receive = Callable[[], Awaitable[Any]]

log = get_logger("following")


@dataclass(frozen=True)
class Caller:
    """Sender of one HTTP request. `request_id`: its Idempotency-Key, or drawn; `returns`: it may ask under it again."""

    client: AsyncClient
    request_id: str
    returns: bool


def metadata_value(name: str, value: str) -> str:
    """A header's value, to be passed on. Raises ApiError for one that gRPC cannot carry."""
    if value.isascii() and value.isprintable() and len(value) <= _MAX_VALUE_BYTES:
        return value
    if name == "authorization":
        message = "the Authorization header is no bearer key"
        raise ApiError(401, message, "authentication_error", code="invalid_api_key")
    raise ApiError(400, f"{name}: has characters that are not printable ASCII", param=name)


class HungUp(Exception):
    """The client has disconnected: nobody waits for an answer."""


class Following:
    """Follows jobs, and cancels those whose client leaves without an Idempotency-Key to come back by.

    With one the client may already be on its way to another gateway: its job is left to the scheduler, which ends it
    once no client has followed it for the abandonment time.
    """

    def __init__(self) -> None:
        self._cancelling: set[asyncio.Task[None]] = set()
        self._open = 0
        self._nobody = asyncio.Event()
        self._nobody.set()

    async def events(self, caller: Caller, prompt: str, options: GenerateOptions) -> AsyncGenerator[Event, None]:
        """The events of a new job to its end. Raises the job's own error."""
        stream = caller.client.stream(prompt, **options)
        # Never cancelled: it alone has the id of a job that may have been made already.
        first = asyncio.ensure_future(anext(stream))
        left = True
        self._open += 1
        self._nobody.clear()
        try:
            yield await asyncio.shield(first)
            async for event in stream:
                left = not isinstance(event, Finished)
                yield event
        except SynerDiffError:
            left = False
            raise
        finally:
            if left and not caller.returns:
                task = asyncio.create_task(_cancel(caller.client, first, stream), name="cancelling")
                self._cancelling.add(task)
                task.add_done_callback(self._cancelling.discard)
            else:
                await cancel_and_wait(first)
                await stream.aclose()
            self._open -= 1
            if not self._open:
                self._nobody.set()

    async def close(self) -> None:
        """Wait until no job is followed and the jobs of all gone clients are cancelled, which has to happen soon."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nobody.wait(), _END_S)
        if self._cancelling:
            await asyncio.wait(self._cancelling, timeout=_END_S)
        await cancel_and_wait(*self._cancelling)


async def _cancel(client: AsyncClient, first: asyncio.Future[Event], stream: AsyncGenerator[Event, None]) -> None:
    """Cancel a job whose client has gone once its id is known: `first` of its `stream` may still be on its way."""
    try:
        job_id = (await first).job_id
        await client.cancel(job_id)
    except Exception as error:  # the job was refused, or its answer cannot be read; a job that exists is abandoned
        log.warning("nothing cancelled of a client that hung up", reason=str(error))
    else:
        metrics.HANG_UPS.inc()
        log.info("cancelled: its client hung up", job_id=job_id)
    finally:
        await cancel_and_wait(first)
        await stream.aclose()


async def unless_hung_up(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`; cancels it and raises HungUp once the client has gone. The body has to be read before."""

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(until_gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HungUp
        return working.result()
    finally:
        await cancel_and_wait(working, leaving)
