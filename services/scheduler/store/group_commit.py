"""Group commit: calls that come during one write to Redis and its disk go there together in the next.

So under load many calls share a round trip, a script's start and an fsync, and a single call waits for no other.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.scheduler.store.scripts import Argument
from synerdiff.errors import Unavailable
from synerdiff.stopping import cancel_and_wait

# Redis serves no other client meanwhile: a group should take it a few milliseconds.
MOST_TOGETHER = 32
# A shorter try would end before the cause of Redis' trouble is known.
SHORTEST_TRY_S = 0.25

# Writes some together, trying for so many seconds; returns the reply to each, in order: an exception to a refused one.
Write = Callable[[Sequence[Sequence[Argument]], float], Awaitable[Sequence[Any]]]


@dataclass(frozen=True, eq=False)
class _Waiter:
    args: Sequence[Argument]
    give_up_at_s: float
    answer: asyncio.Future[Any]


class GroupCommit:
    """Has `write` write in order and in groups, one at a time. Writing has to be safe to repeat."""

    def __init__(self, write: Write, patience_s: float, most: int = MOST_TOGETHER) -> None:
        self._write = write
        self._patience_s = patience_s
        self._most = most
        self._waiting: deque[_Waiter] = deque()
        self._task: asyncio.Task[None] | None = None

    async def run(self, *args: Argument) -> Any:
        """The reply, once the call is written. Raises the reply to a refused call, and the errors of `write`. A caller
        that is cancelled before its group is sent writes nothing; after that its write goes on."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiter(args, time.monotonic() + self._patience_s, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await answer

    async def close(self) -> None:
        """Write no more; those that wait are cancelled."""
        if self._task is not None:
            await cancel_and_wait(self._task)

    async def _run(self) -> None:
        group: list[_Waiter] = []
        try:
            while group := self._next_group():
                await self._answer(group)
        finally:
            self._task = None
            for waiter in (*group, *self._waiting):
                waiter.answer.cancel()

    def _next_group(self) -> list[_Waiter]:
        group: list[_Waiter] = []
        while self._waiting and len(group) < self._most:
            waiter = self._waiting.popleft()
            if not waiter.answer.done():
                group.append(waiter)
        return group

    async def _answer(self, group: Sequence[_Waiter]) -> None:
        patience_s = max(SHORTEST_TRY_S, group[0].give_up_at_s - time.monotonic())
        try:
            replies = await self._write([waiter.args for waiter in group], patience_s)
        except Unavailable as error:
            self._refuse(group, error)
        except Exception as error:
            for waiter in group:
                _settle(waiter.answer, error)
        else:
            for waiter, reply in zip(group, replies, strict=True):
                _settle(waiter.answer, reply)

    def _refuse(self, group: Sequence[_Waiter], error: Unavailable) -> None:
        """Fail the calls whose patience has ended; the others, which came later, go again and first."""
        until_s = max(time.monotonic(), group[0].give_up_at_s)
        for waiter in reversed(group):
            if waiter.give_up_at_s > until_s:
                self._waiting.appendleft(waiter)
            else:
                _settle(waiter.answer, error)


def _settle(answer: asyncio.Future[Any], reply: Any) -> None:
    if answer.done():  # its caller has left
        return
    if isinstance(reply, Exception):
        answer.set_exception(reply)
    else:
        answer.set_result(reply)
