"""Which items of a profile to run next, and when to stop: pure, without clock or workers.

The course goes from the items needed most to those needed least, so that it can stop at any time: first, roughly,
how throughput grows with the batch, and the cost of decodes and of both beside each other; then the knee, until it is
sure; then the rest. It asks for sweeps: some items, once each, in an order drawn by lot, to be run one right after the
other, since only runs that are neighbours can be compared (see `samples`).
"""

import math
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from services.scheduler.profiles.measuring.rounds import Extent, Probe, Run
from services.scheduler.profiles.measuring.samples import Samples
from services.scheduler.profiles.measuring.stages import Stages

DEFAULT_BOUND = 0.02
_SWEEP_MS, _SWEEP_ITEMS = 800.0, 10  # most of one plan: neighbours are to be near, and tasks make so many calls only
_KNEE_SHARE = 0.5  # of the budget, for the knee while other things are open


class _Part(NamedTuple):
    """A part of the course. `wanted`: the items to run once more, none where it is done. `essential`: it is done
    whatever the budget. `share`: of the budget; past it, the others go first."""

    name: str
    wanted: Callable[[Stages], list[Probe]]
    essential: bool = False
    share: float = 1.0


_PARTS = (
    _Part("throughput", Stages.throughput, essential=True),
    _Part("decodes", Stages.rough_decodes, essential=True),
    _Part("side by side", Stages.rough_beside, essential=True),
    _Part("the knee", Stages.knee, share=_KNEE_SHARE),
    _Part("decodes", Stages.fair_decodes),
    _Part("side by side", Stages.fair_beside),
    _Part("threads", Stages.other_settings),
    _Part("bands", Stages.cut_decodes),
)


class ProfileCourse:
    """The way through a profile: ask `next`, run it, tell `measured`; in between it can stop and go on.

    `bound`: the greatest error of throughput, at 95 %, in decisions from the profile. `budget_s`: time for all of it;
    the essential parts are measured even beyond it, since without them there is no profile.
    """

    def __init__(self, extent: Extent, *, bound: float = DEFAULT_BOUND, budget_s: float = math.inf) -> None:
        self.samples = Samples()
        self.stages = Stages(extent, bound, self.samples)
        self.bound = bound
        self.budget_s = budget_s
        self.runs = 0
        self.spent_s = 0.0
        self._part = _PARTS[0]
        self.ready = False
        self._draw = random.Random(1)
        self._sweeps: deque[tuple[Probe, ...]] = deque()
        self._spent_on: defaultdict[str, float] = defaultdict(float)
        self._last: Run | None = None

    def next(self) -> tuple[Probe, ...] | None:
        """The items to run next, in order; or None: all is sure, or the time is spent."""
        if not (self._part.essential or self.seconds_left):
            self._sweeps.clear()
        if not self._sweeps and not self._plan(within_share=True):
            self._plan(within_share=False)
        return self._sweeps[0] if self._sweeps else None

    def measured(self, runs: Sequence[Run], took_s: float) -> None:
        """Take the runs of the sweep that `next` asked for. Raises ValueError for others."""
        if not self._sweeps or tuple(run.probe for run in runs) != self._sweeps[0]:
            asked = self._sweeps[0] if self._sweeps else "nothing"
            raise ValueError(f"asked for {asked}, not for {[run.probe for run in runs]}")
        self._sweeps.popleft()
        self._last = self.samples.add(runs, self._last)
        self.runs += len(runs)
        self.spent_s += took_s
        self._spent_on[self._part.name] += took_s

    def limit(self, kind: str, fits: int) -> None:
        """A worker, "unet" or "vae", has no memory for more than `fits` rows or decodes: go on without such items."""
        rows, decodes = self.stages.extent.max_rows, self.stages.extent.max_decodes
        rows, decodes = (min(rows, fits - fits % 2 or 1), decodes) if kind == "unet" else (rows, min(decodes, fits))
        self._sweeps.clear()
        self.ready = False
        self.stages = self.stages.limited(rows, decodes)

    @property
    def part(self) -> str:
        """The name of the part that is being measured."""
        return self._part.name

    @property
    def seconds_left(self) -> float:
        """Of the budget; the course may end before it, and does the essential parts after it too."""
        return max(0.0, self.budget_s - self.spent_s)

    def _plan(self, within_share: bool) -> bool:
        for part in _PARTS:
            self.ready = self.ready or not part.essential
            past = within_share and self._spent_on[part.name] > part.share * self.budget_s
            wanted = part.wanted(self.stages) if part.essential or (self.seconds_left and not past) else []
            if wanted:
                self._part = part
                self._sweeps.extend(self._swept(wanted))
                return True
        return False

    def _swept(self, wanted: list[Probe]) -> Iterator[tuple[Probe, ...]]:
        """The items in a drawn order, as plans of about a second."""
        self._draw.shuffle(wanted)
        sweep: list[Probe] = []
        for probe in wanted:
            if sweep and (len(sweep) + 1 >= _SWEEP_ITEMS or sum(map(self._about_ms, [*sweep, probe])) > _SWEEP_MS):
                yield self._joined(sweep)
                sweep = []
            sweep.append(probe)
        yield self._joined(sweep)

    def _joined(self, sweep: list[Probe]) -> tuple[Probe, ...]:
        """The items, with one more of the curve where it has none or there is one item: the curve links all times."""
        curve = self.stages.unet.probes
        others = [probe for probe in curve if probe not in sweep and self.samples.count(probe)]
        if others and (len(sweep) == 1 or not any(probe in curve for probe in sweep)):
            middle_ms = float(np.median([self._about_ms(probe) for probe in sweep]))
            nearest = min(others, key=lambda probe: abs(self.samples.ms(probe) - middle_ms))
            sweep.insert(self._draw.randint(0, len(sweep)), nearest)
        return tuple(sweep)

    def _about_ms(self, probe: Probe) -> float:
        """About how long an item takes; of one that never ran, the sum of its sides by the nearest that did."""
        return self.samples.ms(probe) or sum(
            self._side_ms([(known, getattr(known, side)) for known in grid.probes], getattr(probe, side))
            for side, grid in (("rows", self.stages.unet), ("decodes", self.stages.vae))
        )

    def _side_ms(self, known: list[tuple[Probe, int]], count: int) -> float:
        ran = [(self.samples.ms(probe), at) for probe, at in known if self.samples.count(probe)]
        if not ran or not count:
            return 0.0
        ms, at = min(ran, key=lambda each: abs(math.log(each[1] / count)))
        return ms * max(1.0, count / at)
