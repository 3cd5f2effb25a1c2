"""Watches that had nothing to tell: of an ended job whose last event the client had seen.

The first ends at once. A client that takes its end for a broken connection watches again without a pause, and would
take a core; so the same again within AGAIN_AFTER_S waits for the rest of it.
"""

import asyncio
import math
import time

AGAIN_AFTER_S = 1.0


class EmptyWatches:
    """When the last empty watch of each job ended, for as long as it matters."""

    def __init__(self) -> None:
        self._ended_at_s: dict[str, float] = {}

    async def ended(self, job_id: str) -> None:
        """Return when another empty watch of the job may end."""
        now_s = time.monotonic()
        last_s = self._ended_at_s.pop(job_id, -math.inf)
        ends_at_s = max(now_s, last_s + AGAIN_AFTER_S) if last_s <= now_s else last_s
        self._ended_at_s[job_id] = ends_at_s
        while (oldest := next(iter(self._ended_at_s))) != job_id and self._ended_at_s[oldest] + AGAIN_AFTER_S < now_s:
            del self._ended_at_s[oldest]
        await asyncio.sleep(ends_at_s - now_s)
