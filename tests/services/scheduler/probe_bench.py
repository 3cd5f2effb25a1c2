"""A prober with a pair of workers whose times are known."""

import itertools
from collections.abc import Callable

from services.scheduler.profiles.measuring.prober import Prober
from services.scheduler.profiles.measuring.profiler import Profiler, ProfilerOptions
from services.scheduler.profiles.measuring.rounds import Probe
from synerdiff.profiles import Profile
from tests.services.scheduler.measured_profiles import two_cores
from tests.services.scheduler.timed_pair import TimedPair, pair


class Bench:
    """A prober with its pair; `item_ms` and `plan_ms` as `TimedPair` takes them. `threads`: of each; 0: on a GPU."""

    def __init__(
        self,
        slots: int = 32,
        item_ms: Callable[[Probe, float], float] = lambda probe, now_ms: two_cores(probe),
        plan_ms: float = 0.001,
        threads: int = 2,
    ) -> None:
        self.pair = TimedPair(
            lambda worker_id, report: self.prober.reported(worker_id, report), slots, item_ms, plan_ms
        )
        ticks = itertools.count(1)
        self.prober = Prober(pair(slots, threads=threads), (256, 256), 7, self.pair.send, lambda: next(ticks))

    async def profile(self, **options: object) -> Profile:
        """What measuring the pair gives, by the pair's own time."""
        made = await Profiler(ProfilerOptions(**options), lambda: self.pair.now_s).run(self.prober)  # type: ignore[arg-type]
        self.prober.close()
        return made
