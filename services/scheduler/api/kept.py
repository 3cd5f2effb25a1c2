"""What is read from Redis for many requests at once."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Kept(Generic[T]):
    """What `read` gave last: read again once it is older than `for_s` seconds, or no good. Those that want it at the
    same time share one reading.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], for_s: float) -> None:
        self._read = read
        self._for_s = for_s
        self._value: T | None = None
        self._read_at_s = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def get(self, good: Callable[[T], bool] = lambda value: True) -> T:
        """The value. One that is not `good` is as old as can be. Raises what `read` raises."""
        # A reading under way may have begun too early to find what is wanted: the one after it has not.
        for _ in range(2):
            if time.monotonic() - self._read_at_s <= self._for_s and good(cast(T, self._value)):
                break
            under_way = self._reading is not None
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_again())
            await asyncio.shield(self._reading)
            if not under_way:
                break
        return cast(T, self._value)

    async def _read_again(self) -> None:
        try:
            self._value, self._read_at_s = await self._read(), time.monotonic()
        finally:
            self._reading = None
