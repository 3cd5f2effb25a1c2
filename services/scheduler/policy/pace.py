"""How fast a device is, as its profile says: tasks of a batch key on one worker, and the device at best."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from services.scheduler.policy.snapshots import BatchKey
from synerdiff.profiles import Profile


class Costs(NamedTuple):
    """Device time of the least unit of each kind of work, when the device is run at its best.

    `row_ms`: one UNet row in an item of as many rows as give the highest throughput. `decode_ms`: what one more decode
    adds, beside such an item or alone, whichever is less.
    """

    row_ms: float
    decode_ms: float

    def task_ms(self, rows: float, decodes: float) -> float:
        """Device time of `rows` UNet rows, summed over calls, and `decodes` decodes."""
        return rows * self.row_ms + decodes * self.decode_ms


def best_costs(profile: Profile) -> Costs:
    """The least device time per row and per decode within the profile's caps."""
    rows = max(range(1, 2 * profile.caps.unet + 1), key=lambda r: r / profile.latency_ms(r, 0))
    alone_ms = profile.latency_ms(rows, 0)
    decodes = []
    for v in range(1, profile.caps.vae + 1):
        decodes.append(profile.latency_ms(0, v) / v)
        beside = profile.choice(rows, v)
        if beside is not None:
            decodes.append(max(0.0, beside.ms - alone_ms) / v)
    return Costs(alone_ms / rows, min(decodes))


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
