"""Server-sent events: how they are written, and how a quiet stream is kept open."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from synerdiff.stopping import cancel_and_wait

# Proxies commonly end a connection that is quiet for a minute.
QUIET_S = 15.0
_STILL_HERE = b": still here\n\n"
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def event(name: str, data: Any) -> bytes:
    """One event. Its data is always ASCII on one line."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode("ascii")


class EventStream(StreamingResponse):
    """An answer of `events` as they come, which are closed with it, however it ends.

    A slow reader makes only `events` wait.
    """

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self._events = _never_quiet(events)
        super().__init__(self._events, media_type="text/event-stream", headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _never_quiet(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """`events`, with a comment wherever none comes for a while."""
    coming: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(_next(events))
            done, _ = await asyncio.wait({coming}, timeout=QUIET_S)
            if not done:
                yield _STILL_HERE
                continue
            one, coming = coming.result(), None
            if one is None:
                return
            yield one
    finally:
        if coming is not None:
            await cancel_and_wait(coming)
        await events.aclose()


async def _next(events: AsyncIterator[bytes]) -> bytes | None:
    return await anext(events, None)
