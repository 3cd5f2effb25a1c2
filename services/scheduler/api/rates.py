"""Requests a second of each caller: a bucket of tokens that fills at the caller's rate and holds a second's worth.

Kept by each scheduler for itself: callers of several schedulers have the rate at each.
"""

import time
from collections.abc import Callable

from services.scheduler.callers import Caller
from synerdiff.errors import QueueFull


class Rates:
    """The buckets: one for each caller with a rate, which their file bounds."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, as of when

    def take(self, caller: Caller) -> None:
        """Count a request. Raises QueueFull, which says when the next one may come."""
        rate = caller.quota.requests_per_s
        if not rate:
            return
        now_s, most = self._now_s(), max(1.0, rate)
        tokens, as_of_s = self._buckets.get(caller.name, (most, now_s))
        tokens = min(most, tokens + (now_s - as_of_s) * rate)
        self._buckets[caller.name] = (tokens - 1 if tokens >= 1 else tokens), now_s
        if tokens < 1:
            message = f"caller {caller.name!r} has sent its requests_per_s={rate:g}"
            raise QueueFull(message, retry_after_s=(1 - tokens) / rate)
