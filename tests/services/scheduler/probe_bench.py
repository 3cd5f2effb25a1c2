"""A prober with a pair of workers whose times are known."""

import itertools
from collections.abc import Callable

from services.scheduler.profiles.measuring.prober import Prober
from services.scheduler.profiles.measuring.profiler import Profiler, ProfilerOptions
from services.scheduler.profiles.measuring.rounds import Probe
from synerdiff.plans import TaskFailed, TaskReady, UnetTickDone
from synerdiff.profiles import Profile
from tests.services.scheduler.measured_profiles import two_cores
from tests.services.scheduler.timed_pair import Report, TimedPair, pair


class Bench:
    """A prober with its pair; `item_ms` and `plan_ms` as `TimedPair` takes them. `threads`: of each; 0: on a GPU."""

    def __init__(
        self,
        slots: int = 32,
        item_ms: Callable[[Probe, float], float] = lambda probe, now_ms: two_cores(probe),
        plan_ms: float = 0.001,
        threads: int = 2,
    ) -> None:
        self.pair = TimedPair(self._told, slots, item_ms, plan_ms)
        ticks = itertools.count(1)
        self.prober = Prober(pair(slots, threads=threads), (256, 256), 7, self.pair.send, lambda: next(ticks))

    def _told(self, worker_id: str, report: Report) -> None:
        match report:
            case TaskReady():
                self.prober.task_ready(report)
            case TaskFailed():
                self.prober.task_failed(report)
            case UnetTickDone():
                self.prober.unet_tick_done(report)
            case _:
                self.prober.vae_tick_done(report)

    async def profile(self, **options: object) -> Profile:
        """What measuring the pair gives, by the pair's own time."""
        made = await Profiler(ProfilerOptions(**options), lambda: self.pair.now_s).run(self.prober)  # type: ignore[arg-type]
        self.prober.close()
        return made
