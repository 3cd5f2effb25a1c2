"""One leader's stream as its worker sees it: messages that wait, reports first, in order, then previews."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from synerdiff.errors import StaleLeader, SynerDiffError
from synerdiff.plans import Preview, ResidentTask, TaskFailed, TaskReady, UnetTickDone, VaeTickDone

Report = UnetTickDone | VaeTickDone | TaskReady | TaskFailed


class Leader:
    """Belongs to the event loop. `residents` it found; `error` that ends it. Only a task's newest preview waits."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.residents: tuple[ResidentTask, ...] = ()
        self.ended = False
        self.error: SynerDiffError | None = None
        self._reports: deque[Report] = deque()
        self._previews: dict[str, Preview] = {}
        self._changed = asyncio.Event()

    def tell(self, message: Report | Preview) -> None:
        """Send a message; nothing happens once the stream is ended."""
        if self.ended:
            return
        if isinstance(message, Preview):
            self._previews.pop(message.task_id, None)
            self._previews[message.task_id] = message
        else:
            self._reports.append(message)
        self._changed.set()

    def end(self, error: SynerDiffError | None = None) -> None:
        """End the stream after the messages that wait, well or with an error. The first end counts."""
        if not self.ended:
            self.ended, self.error = True, error
            self._changed.set()

    async def messages(self) -> AsyncIterator[Report | Preview]:
        """Every message, until the stream is ended and none waits. Raises the stream's error."""
        while True:
            while self._reports or self._previews:
                yield self._reports.popleft() if self._reports else self._previews.pop(next(iter(self._previews)))
            if self.ended:
                break
            self._changed.clear()
            await self._changed.wait()
        if self.error is not None:
            raise self.error


class LeaderGuard:
    """Judges attaches and plans by leader token and tick. Not thread-safe: belongs to the worker's event loop.

    `token`: the highest one seen; -1 before the first attach.
    """

    def __init__(self) -> None:
        self.token = -1
        self._leader_id = ""
        self._tick = -1

    def attach(self, token: int, leader_id: str = "") -> None:
        """Attach `token`'s leader. Raises StaleLeader for a lower token, or one held by another."""
        if token < self.token or (token == self.token and leader_id != self._leader_id):
            raise self.stale(token)
        if token > self.token:
            self.token, self._leader_id = token, leader_id
            self._tick = -1

    def stale(self, token: int) -> StaleLeader:
        """The refusal of a leader with `token`; it has the bound that the next token must exceed."""
        message = f"leader token {token} is not above {self.token}, which holds this worker"
        return StaleLeader(message, newest_token=self.token)

    def accepts(self, token: int, tick: int) -> bool:
        """Whether a plan is the attached leader's and newer than all before it; if so it counts as seen."""
        if token != self.token or tick <= self._tick:
            return False
        self._tick = tick
        return True
