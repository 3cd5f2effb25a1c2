"""Repeated timings of one item: when there are enough of them, and what they say. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from services.scheduler.profiler.profiling import Probe
from synerdiff.profiles import Cell

OUTLIER = 1.5  # times the median: something else had the device


@dataclass(frozen=True)
class Effort:
    """How often an item is measured: `least` times, then until its median is sure to `spread`, or `most`.

    Runs that took `longest_s` together are enough as well, once there are `least`.
    """

    least: int = 5
    most: int = 30
    spread: float = 0.02
    longest_s: float = 3.0


QUICK = Effort(least=3, most=8, spread=0.05, longest_s=1.0)


@dataclass(frozen=True)
class Timing:
    """One run of an item, in ms from its start: when it ended, and when each side did (0 for one without a part).

    `unet_bytes`, `vae_bytes`: most device memory that each held; 0 where it is not counted.
    """

    ms: float
    unet_ms: float
    vae_ms: float
    unet_bytes: int = 0
    vae_bytes: int = 0


def enough(timings: Sequence[Timing], effort: Effort) -> bool:
    """Whether to stop measuring."""
    times = [timing.ms for timing in timings]
    if len(times) < effort.least:
        return False
    too_long = len(times) >= effort.most or sum(times) >= 1000 * effort.longest_s
    return too_long or median_spread(times) <= effort.spread


def median_spread(values: Sequence[float]) -> float:
    """The standard error of the median relative to it, from the median absolute deviation, so that outliers are none.

    1.4826 MAD estimates the deviation of normal values, 1.2533 / sqrt(n) of it is the error of their median.
    """
    middle = median(values)
    deviation = 1.4826 * median(abs(value - middle) for value in values)
    return 1.2533 * deviation / math.sqrt(len(values)) / middle


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed, interpolated between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def cell_of(probe: Probe, timings: Sequence[Timing], peak_bytes: int) -> Cell:
    """What the timings of an item say of it. Times are rounded to the microsecond.

    `peak_bytes`: as seen from outside, for devices that do not count.
    """
    unet_bytes, vae_bytes = (max(getattr(timing, side) for timing in timings) for side in ("unet_bytes", "vae_bytes"))
    whole = [timing.ms for timing in timings]
    middle = round(median(whole), 3)
    return Cell(
        rows=probe.rows,
        decodes=probe.decodes,
        median_ms=middle,
        p90_ms=max(middle, round(percentile(whole, 0.9), 3)),
        setting=probe.setting,
        unet_ms=round(median(timing.unet_ms for timing in timings), 3),
        vae_ms=round(median(timing.vae_ms for timing in timings), 3),
        peak_bytes=unet_bytes + vae_bytes or peak_bytes,
        samples=len(timings),
        unet_bytes=unet_bytes,
        vae_bytes=vae_bytes,
    )


def outliers(timings: Sequence[Timing]) -> int:
    """How many took much longer than the median."""
    middle = median(timing.ms for timing in timings)
    return sum(timing.ms > OUTLIER * middle for timing in timings)
