"""What is read from Redis for many requests at once."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Kept(Generic[T]):
    """What `read` gave last: read again once it is older than `for_s` seconds, or no good."""

    def __init__(self, read: Callable[[], Awaitable[T]], for_s: float) -> None:
        self._read = read
        self._for_s = for_s
        self._value: T | None = None
        self._read_at_s = -math.inf

    async def get(self, good: Callable[[T], bool] = lambda value: True) -> T:
        """The value. One that is not `good` is as old as can be. Raises what `read` raises."""
        if time.monotonic() - self._read_at_s > self._for_s or not good(cast(T, self._value)):
            self._value, self._read_at_s = await self._read(), time.monotonic()
        return cast(T, self._value)
