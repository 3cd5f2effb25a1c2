"""Two ways of doing the same, run in turns: how long one takes over the other, and how sure that is. Pure.

Nothing is assumed of how ratios scatter: the interval of their median follows from signs alone.
"""

from collections.abc import Sequence
from math import comb, exp, log
from statistics import median
from typing import NamedTuple

CONFIDENCE = 0.98  # of each look at the ratios
LOOKS = (7, 14, 28)  # pairs after which they are looked at: by chance a way seems slower three times in a hundred


class Paired(NamedTuple):
    """The median of the ratios of `pairs` pairs, and its interval."""

    ratio: float
    low: float
    high: float
    pairs: int


def paired(ratios: Sequence[float], confidence: float = CONFIDENCE) -> Paired:
    """What the ratios say: the interval of their median, from 0 to infinity where they are too few to say anything."""
    ordered, count = sorted(ratios), len(ratios)
    outside, k = 0.0, 0
    while k < count // 2 and outside + 2 * comb(count, k) / 2**count <= 1 - confidence:
        outside += 2 * comb(count, k) / 2**count
        k += 1
    low, high = (ordered[k - 1], ordered[-k]) if k else (0.0, float("inf"))
    return Paired(exp(median(map(log, ordered))), low, high, count)
