"""Which batch size and which layout of the weights draw the most pictures per second: measured at the start."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.peers.painter import FORMATS, Alike, Asked, Painter

STEPS = 8
TIMES = 2
SIZES = "1,4,8,16,24,32"


def sizes_of(text: str) -> tuple[int, ...]:
    """Sizes by comma, in order; 1 is always among them. Raises ValueError."""
    sizes = {1, *map(int, text.split(","))}
    if min(sizes) < 1:
        raise ValueError(f"{text}: a size below 1")
    return tuple(sorted(sizes))


@dataclass(frozen=True)
class Sweep:
    """Seconds of a call of so many pictures and `steps` steps, by layout and size."""

    steps: int
    seconds: Mapping[str, Mapping[int, float]]

    def best_format(self, size: int) -> str:
        """The layout that draws this many at a time soonest."""
        return min(self.seconds, key=lambda name: self.seconds[name][size])

    def best_size(self) -> int:
        """The size that draws the most pictures per second, in its best layout."""
        sizes = next(iter(self.seconds.values()))
        return max(sizes, key=lambda size: size / self.seconds[self.best_format(size)][size])


def sweep(painter: Painter, sizes: Sequence[int], measured: Alike, *, times: int = TIMES, compiled: bool) -> Sweep:
    """Measure every size, so many times in turns, after a short call that readies (or compiles) it."""
    short = measured._replace(num_inference_steps=2)
    seconds: dict[str, dict[int, float]] = {}
    for name in ("contiguous",) if compiled else FORMATS:
        painter.use_format(name)
        for size in sizes:
            call_s(painter, short, size)
        taken: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(times):
            for size in sizes:
                taken[size].append(call_s(painter, measured, size))
        seconds[name] = {size: statistics.median(each) for size, each in taken.items()}
    return Sweep(measured.num_inference_steps, seconds)


def call_s(painter: Painter, alike: Alike, size: int) -> float:
    """Seconds of one call, its pictures left as a tensor."""
    asked = [Asked(f"a red apple {number}", number, alike) for number in range(size)]
    began = time.perf_counter()
    painter.draw(asked, size, "pt")
    return time.perf_counter() - began
