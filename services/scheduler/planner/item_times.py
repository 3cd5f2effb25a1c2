"""How long every item of a round may take, as one table of whole nanoseconds.

Whole numbers make sums exact, so that equal plans are equal and the planner's choice among them never wavers.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from synerdiff.profiles import Profile

IntArray = NDArray[np.int64]

NEVER = 1 << 60  # a time that no sum of real ones reaches, and two of which still fit 64 bits
NS_PER_MS = 1_000_000


@lru_cache(maxsize=64)
def item_times(profile: Profile, chunks: int) -> IntArray:
    """Nanoseconds by UNet rows and chunk units, int64 [caps.rows + 1, caps.vae * chunks + 1].

    NEVER for what was not measured, and for what no plan needs: items that take longer than themselves in two.
    """
    rows, units = profile.caps.rows + 1, profile.caps.vae * chunks + 1
    times = np.full((rows, units), NEVER, dtype=np.int64)
    for r in range(rows):
        for v in range(units):
            choice = profile.choice(r, v / chunks, chunks)
            if choice is not None:
                times[r, v] = max(1, round(choice.ms * NS_PER_MS))
    times[0, 0] = 0
    times[_longer_than_in_two(times)] = NEVER
    times.flags.writeable = False
    return times


def _longer_than_in_two(times: IntArray) -> NDArray[np.bool_]:
    """Where some of the decoding saves time in an item of its own right after: nobody waits longer then."""
    longer = np.zeros(times.shape, dtype=np.bool_)
    units = times.shape[1]
    for later in range(1, units):
        longer[:, later:] |= times[:, later:] > times[:, : units - later] + times[0, later]
    return longer
