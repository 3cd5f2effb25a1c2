"""The last jobs that ended, in a bounded ring."""

import time
from collections import deque
from itertools import islice
from typing import NamedTuple

KEPT_JOBS = 2048


class EndedJob(NamedTuple):
    """When a job ended, how, and how long after its acceptance."""

    ended_unix_ms: float
    outcome: str
    latency_ms: float


class EndedJobs:
    """A ring of jobs. `added`: those that it was ever given."""

    def __init__(self, kept: int = KEPT_JOBS) -> None:
        self.added = 0
        self._jobs: deque[EndedJob] = deque(maxlen=kept)

    def add(self, outcome: str, latency_ms: float) -> None:
        """Keep a job that ended just now."""
        self._jobs.append(EndedJob(time.time_ns() / 1e6, outcome, latency_ms))
        self.added += 1

    def since(self, added: int) -> list[EndedJob]:
        """What came after the first `added` jobs, as far as it is kept, in order."""
        new = min(self.added - added, len(self._jobs))
        return list(islice(self._jobs, len(self._jobs) - new, None))
