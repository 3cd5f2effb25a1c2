"""How fast tasks of a batch key advance on one worker, as its profile says."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from services.scheduler.policy.capacity import best_costs
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.profiles import Profile

# Of the throughput that the threshold may give up, a tenth goes to smaller batches: at 0.5 they make 5 % less.
_KNEE_SHARE = 0.1


class Pace(NamedTuple):
    """`rows`: most UNet rows of a batch; a call of so many takes `call_ms`.

    `least_call_ms`: a call of a guided task that has the worker to itself. `decode_ms`: what a decode takes from it.
    """

    rows: int
    call_ms: float
    least_call_ms: float
    decode_ms: float

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, profile: Profile, threshold: float = 1.0) -> "Pace":
        """The pace that the profile implies; the lower the threshold, the smaller and quicker its batches."""
        rows = min(profile.knee_rows(_KNEE_SHARE * (1 - threshold)), profile.caps.rows)
        return cls(rows, profile.latency_ms(rows, 0), profile.latency_ms(2, 0), best_costs(profile).decode_ms)

    @property
    def seats(self) -> int:
        """Tasks with guidance in a batch."""
        return max(1, self.rows // 2)


Paces = Mapping[BatchKey, Pace]


def paces_of(profiles: Iterable[tuple[BatchKey, Profile]], threshold: float = 1.0) -> dict[BatchKey, Pace]:
    """The pace of every batch key, of several profiles of one the first's. Exact tasks are reckoned with as others."""
    paces: dict[BatchKey, Pace] = {}
    for key, profile in profiles:
        for alike in (key, key._replace(exact=True)):
            paces.setdefault(alike, Pace.of(profile, threshold))
    return paces
