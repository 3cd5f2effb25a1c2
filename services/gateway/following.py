"""A job for as long as its HTTP client listens: one that hangs up frees its slot."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from services.gateway import metrics
from services.gateway.errors import ApiError
from synerdiff.client import AsyncClient, Event, Finished, GenerateOptions
from synerdiff.errors import SynerDiffError
from synerdiff.stopping import cancel_and_wait
from synerdiff.telemetry import get_logger

# A caller's identity, and the W3C context of its trace, go on as they came.
_PASSED_ON = ("authorization", "traceparent", "tracestate")
_MAX_VALUE_BYTES = 4096


@dataclass(frozen=True)
class Caller:
    """Sender of one HTTP request. `request_id`: its Idempotency-Key, or drawn; `returns`: it may ask under it again."""

    client: AsyncClient
    request_id: str
    returns: bool


def caller(client: AsyncClient, headers: Mapping[str, str], request_id: str) -> Caller:
    """The sender of a request with these headers. Raises ApiError for a header that gRPC cannot carry."""
    metadata = tuple((name, _metadata_value(name, headers[name])) for name in _PASSED_ON if headers.get(name))
    returns = bool(headers.get("idempotency-key"))
    return Caller(client.with_metadata(metadata) if metadata else client, request_id, returns)


def _metadata_value(name: str, value: str) -> str:
    if value.isascii() and value.isprintable() and len(value) <= _MAX_VALUE_BYTES:
        return value
    if name == "authorization":
        raise ApiError(
            401, "the Authorization header is no bearer key", "authentication_error", None, "invalid_api_key"
        )
    raise ApiError(400, f"{name}: has characters that are not printable ASCII", param=name)


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
        stream = caller.client.stream(prompt, **options)
        # Never cut: it alone tells the id of a job that may have been made already.
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
                self._cancel(_Left(caller.client, first, stream))
            else:
                await cancel_and_wait(first)
                await stream.aclose()
            self._open -= 1
            if not self._open:
                self._nobody.set()

    async def close(self) -> None:
        """Wait until nobody is followed any more and all are cancelled who left, which has to come soon."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nobody.wait(), _END_S)
        if self._cancelling:
            await asyncio.wait(self._cancelling, timeout=_END_S)
        await cancel_and_wait(*self._cancelling)

    def _cancel(self, left: "_Left") -> None:
        task = asyncio.create_task(left.cancel(), name="cancelling")
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)


@dataclass(frozen=True)
class _Left:
    """A job whose client has gone, by the stream of its events, of which `first` may be on its way still."""

    client: AsyncClient
    first: "asyncio.Future[Event]"
    stream: AsyncGenerator[Event, None]

    async def cancel(self) -> None:
        """Cancel the job as soon as its id is known."""
        try:
            job_id = (await self.first).job_id
            await self.client.cancel(job_id)
        except Exception as error:  # it was refused, or cannot be read; what there is of it is abandoned
            log.warning("nothing cancelled of a client that hung up", reason=str(error))
        else:
            metrics.HANG_UPS.inc()
            log.info("cancelled: its client hung up", job_id=job_id)
        finally:
            await cancel_and_wait(self.first)
            await self.stream.aclose()


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
