"""What waits to be sent to one leader: reports first, in order, then previews."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from synerdiff.plans import Preview, TaskFailed, TaskReady, UnetTickDone

Report = UnetTickDone | TaskReady | TaskFailed


class Outbox:
    """Belongs to the event loop. Of each task only the newest preview waits, so a slow reader costs no memory."""

    def __init__(self) -> None:
        self._reports: deque[Report] = deque()
        self._previews: dict[str, Preview] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, message: Report | Preview) -> None:
        """Queue a message; nothing happens once the outbox is closed."""
        if self._closed:
            return
        if isinstance(message, Preview):
            self._previews.pop(message.task_id, None)
            self._previews[message.task_id] = message
        else:
            self._reports.append(message)
        self._changed.set()

    def close(self) -> None:
        """Take nothing more; what waits is still sent."""
        self._closed = True
        self._changed.set()

    async def messages(self) -> AsyncIterator[Report | Preview]:
        """Everything, as it comes, until the outbox is closed and empty."""
        while True:
            while self._reports or self._previews:
                yield self._reports.popleft() if self._reports else self._previews.pop(next(iter(self._previews)))
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()
