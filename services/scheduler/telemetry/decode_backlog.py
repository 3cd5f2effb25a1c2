"""The decodes that a pool still has to make, in seconds of one VAE worker: VAE workers are scaled by this value.

Ready decodes count, and decodes under way: a pool that still decodes has to keep its last VAE worker.
"""

from collections import Counter
from collections.abc import Iterable

from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Phase
from services.scheduler.engine.ticks import PlannedPart
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.plans import VaeTickDone
from synerdiff.profiles import Profile

# Of an unmeasured decode: the first VAE worker is started because of it, and then there is a measurement.
UNMEASURED_DECODE_MS = 1000.0
_GAIN = 0.1
_PENDING = (Phase.READY_TO_DECODE, Phase.DECODING)


class DecodeTimes:
    """Mean time of a decode by batch key, smoothed over this leader's reports: for pools without a profile."""

    def __init__(self) -> None:
        self._mean_ms: dict[BatchKey, float] = {}

    def reported(self, done: VaeTickDone, planned: PlannedPart | None) -> None:
        """A VAE worker's part of a tick has run."""
        if planned is None or planned.key is None:
            return
        decodes = sum(item.decodes for item in planned.items)
        if decodes > 0 and not done.skipped:
            ms = sum(item.ms for item in done.items) / decodes
            mean = self._mean_ms.get(planned.key, ms)
            self._mean_ms[planned.key] = mean + _GAIN * (ms - mean)

    def mean_ms(self, key: BatchKey) -> float:
        """The mean so far, or a guess."""
        return self._mean_ms.get(key, UNMEASURED_DECODE_MS)


def decode_backlog_s(holdings: Holdings, times: DecodeTimes, models: Iterable[str]) -> dict[str, float]:
    """By model, 0 for each of `models` that has nothing to decode. VAE workers need not be there for it."""
    backlog_s = dict.fromkeys(models, 0.0)
    homes = {worker_id: lane.domain for worker_id, lane in holdings.unet.items()}
    tasks = (task for task in holdings.tasks.values() if task.phase in _PENDING)
    for (domain, key), count in Counter((homes.get(task.unet_worker, ""), task.key) for task in tasks).items():
        elsewhere = (profile for (_, other), profile in holdings.profiles.items() if other == key.ordinary)
        profile = holdings.profiles.get((domain, key.ordinary)) or next(elsewhere, None)
        ms = best_decode_ms(profile) if profile else times.mean_ms(key)
        backlog_s[key.model] = backlog_s.get(key.model, 0.0) + count * ms / 1000
    return backlog_s


def best_decode_ms(profile: Profile) -> float:
    """Time of a decode in the batch that decodes fastest, with nothing beside it."""
    return min(profile.latency_ms(0, decodes) / decodes for decodes in range(1, profile.caps.vae + 1))
