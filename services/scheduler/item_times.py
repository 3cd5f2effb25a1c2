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
    """Nanoseconds by UNet rows and chunk units, int64 [2 * caps.unet + 1, caps.vae * chunks + 1]; NEVER: unmeasured."""
    rows, units = 2 * profile.caps.unet + 1, profile.caps.vae * chunks + 1
    times = np.full((rows, units), NEVER, dtype=np.int64)
    for r in range(rows):
        for v in range(units):
            choice = profile.choice(r, v / chunks, chunks)
            if choice is not None:
                times[r, v] = max(1, round(choice.ms * NS_PER_MS))
    times.flags.writeable = False
    return times
