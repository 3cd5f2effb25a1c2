"""A machine that others use too, in virtual time: phases in which all takes longer, and runs held up by something."""

import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from services.scheduler.profiles.measuring.rounds import Probe


@dataclass(frozen=True)
class Noise:
    """`slowest` of phases of `shortest_s` to `longest_s`; `deviation` of a run; `held_up`: share of up to 10 times."""

    slowest: float = 2.0
    shortest_s: float = 1.0
    longest_s: float = 8.0
    deviation: float = 0.03
    held_up: float = 0.01


def noisy(quiet_ms: Callable[[Probe], float], noise: Noise, seed: int) -> Callable[[Probe, float], float]:
    """How long an item takes that begins at a moment (ms), given how long it takes on the quiet machine."""
    source = random.Random(seed)
    begins_ms, factors = [0.0], [source.uniform(1, noise.slowest)]

    def factor(now_ms: float) -> float:
        while begins_ms[-1] < now_ms:
            begins_ms.append(begins_ms[-1] + 1000 * source.uniform(noise.shortest_s, noise.longest_s))
            factors.append(source.uniform(1, noise.slowest))
        return factors[bisect_right(begins_ms, now_ms) - 1]

    def item_ms(probe: Probe, now_ms: float) -> float:
        own = source.lognormvariate(0, noise.deviation)
        held_up = source.uniform(1.5, 10) if source.random() < noise.held_up else 1.0
        return quiet_ms(probe) * factor(now_ms) * own * held_up

    return item_ms
