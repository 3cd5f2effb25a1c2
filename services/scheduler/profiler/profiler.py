"""From the first probe to a profile: the cells, then the comparisons that say which mechanisms pay on the device."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import median

from services.scheduler.profiler.memory_plan import within_memory
from services.scheduler.profiler.probe_rounds import MemoryRanOut, ProbeItem
from services.scheduler.profiler.probing import Prober
from services.scheduler.profiler.profile_findings import subject_of, with_findings
from services.scheduler.profiler.profiling import Extent, ProfileCourse, extent_for
from services.scheduler.profiler.samples import Effort
from synerdiff.profiles import ItemCaps, Mechanisms, Profile, Setting

_LEAST_ROUNDS, _MOST_ROUNDS = 3, 9
_LONGEST_COMPARISON_S = 4.0
_IDLE_SHARE = 0.02  # a worker that waits for its next plan for less than this share of an item may as well wait
_PAYS = 0.98  # of the other way's time: less is not noise


@dataclass(frozen=True)
class ProfilerOptions:
    """What to measure and how closely. `chunks`: the band counts to try. `bound`, `budget_s`: see ProfileCourse.

    `fixed_shares`: on a CPU, measure either side with its own threads alone; else items deal out the cores.
    """

    max_rows: int = 32
    max_decodes: int = 6
    chunks: tuple[int, ...] = (1, 2, 4)
    bound: float = 0.10
    budget_s: float = float("inf")
    effort: Effort = field(default_factory=Effort)
    fixed_shares: bool = False


class Profiler:
    """Measures one pair of workers at one size. What was measured stays over failures: `run` goes on where it was."""

    def __init__(self, options: ProfilerOptions) -> None:
        self.course: ProfileCourse | None = None
        self._options = options
        self._extent: Extent | None = None
        self._samples = 0
        self._outliers = 0
        self._shortages: list[str] = []

    @property
    def measurements(self) -> int:
        """Cells measured so far."""
        return self.course.measurements if self.course else 0

    async def run(self, prober: Prober, told: Callable[[ProfileCourse], None] = lambda course: None) -> Profile:
        """Measure what is left. `told` hears of every cell. Raises ProbeFailed; may be called again then."""
        course = self.course = self.course or self._begin(prober)
        while (probe := course.next()) is not None:
            started = time.monotonic()
            try:
                measured = await prober.measure(probe, self._options.effort)
            except MemoryRanOut as short:
                course = self.course = self._smaller(short)
                continue
            course.measured(measured.cell, time.monotonic() - started)
            self._samples += measured.cell.samples
            self._outliers += measured.outliers
            told(course)
        profile = self._profile(prober, course)
        return replace(profile, mechanisms=await self._compared(prober, profile))

    def _begin(self, prober: Prober) -> ProfileCourse:
        pair, options = prober.pair, self._options
        decodes = min(options.max_decodes, max(1, pair.slots // 2))
        rows = min(options.max_rows, max(1, 2 * (pair.slots - decodes - 1)))
        unet, vae = pair.unet.threads, pair.vae.threads
        cores = 0 if options.fixed_shares else max(unet, vae)
        extent = self._extent = extent_for(rows, decodes, options.chunks, unet, vae, cores)
        return ProfileCourse(extent, bound=options.bound, budget_s=options.budget_s)

    def _smaller(self, short: MemoryRanOut) -> ProfileCourse:
        """Begin anew, with items that stay under what memory did not suffice for. Raises it where none is left."""
        assert self._extent is not None
        fits = short.at_once - 1
        if fits < 1:
            raise short
        rows, decodes = self._extent.max_rows, self._extent.max_decodes
        rows, decodes = (min(rows, fits), decodes) if short.kind == "unet" else (rows, min(decodes, fits))
        self._shortages.append(f"{short}: measured without such items")
        self._extent = replace(self._extent, max_rows=rows, max_decodes=decodes)
        return ProfileCourse(self._extent, bound=self._options.bound, budget_s=self._options.budget_s)

    def _profile(self, prober: Prober, course: ProfileCourse) -> Profile:
        assert self._extent is not None
        pair = prober.pair
        notes = [*self._shortages, f"{self._outliers} of {self._samples} runs took over 1.5 times their item's median"]
        if not prober.in_step_works:
            notes.append("the workers share no pace: items were sent to both at once, not run in step")
        if math.isinf(course.error):
            notes.append(
                "the time was over before interpolation was checked everywhere: taken to be as far off as 100 %"
            )
        profile = Profile(
            subject=subject_of(pair.unet, pair.vae, prober.width, prober.height),
            cells=course.cells(),
            caps=ItemCaps(max(1, self._extent.max_rows // 2), self._extent.max_decodes),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            skip_cfg=pair.unet.model_card.skip_cfg,
            interpolation_error=round(course.error, 4) if math.isfinite(course.error) else 1.0,
            notes=tuple(notes),
        )
        return within_memory(with_findings(profile, pair.slots), pair.unet, pair.vae)

    async def _compared(self, prober: Prober, profile: Profile) -> Mechanisms:
        """The mechanisms, each measured with and without in a round that is typical of this profile."""
        return replace(
            profile.mechanisms,
            in_step=prober.in_step_works and await _in_step_pays(prober, profile),
            chunking=await _chunking_pays(prober, profile),
            plan_ahead=await _plan_ahead(prober, profile),
        )


async def _in_step_pays(prober: Prober, profile: Profile) -> bool:
    """Whether rounds take less time in step than free: items beside decodes, then one of steps alone, three times."""
    rows, decodes = 2 * profile.caps.unet, profile.caps.vae
    beside, alone = profile.choice(rows, decodes), profile.choice(rows, 0)
    if beside is None or alone is None:
        return False
    together = ProbeItem(rows, decodes, beside.setting, 0, beside.setting.chunks)
    items = [together, ProbeItem(rows, 0, alone.setting)] * 3
    free, in_step = await _alternately(prober, items, False, items, True)
    return in_step < free


async def _chunking_pays(prober: Prober, profile: Profile) -> bool:
    """Whether a decode that is longer than the steps beside it is better spread over several items.

    Compared: one item with a whole decode and then steps alone, against as many items with a part of it each.
    """
    rows = 2 * profile.caps.unet
    counts = [count for count in profile.chunk_counts if count > 1]
    whole, steps, decode = profile.choice(rows, 1, chunks=1), profile.choice(rows, 0), profile.choice(0, 1, chunks=1)
    if not counts or whole is None or steps is None or decode is None or decode.ms <= steps.ms:
        return False
    for count in counts:
        in_parts = profile.choice(rows, 1, chunks=count)
        if in_parts is None:
            continue
        at_once = [ProbeItem(rows, 1, whole.setting), *[ProbeItem(rows, 0, steps.setting)] * (count - 1)]
        parts = [ProbeItem(rows, 1, in_parts.setting, first, first + 1) for first in range(count)]
        without, spread = await _alternately(prober, at_once, True, parts, True)
        if spread < _PAYS * without:
            return True
    return False


async def _plan_ahead(prober: Prober, profile: Profile) -> int:
    """1 where a plan is there soon enough after a report that a worker hardly idles, else 2."""
    rows = 2 * profile.caps.unet
    alone = profile.choice(rows, 0)
    setting = alone.setting if alone else Setting()
    rounds = [await prober.run_round([ProbeItem(rows, 0, setting)], in_step=False) for _ in range(_MOST_ROUNDS)]
    gap_ms = median(ran.turnaround_ms - ran.ms for ran in rounds)
    return 1 if gap_ms <= _IDLE_SHARE * median(ran.ms for ran in rounds) else 2


async def _alternately(
    prober: Prober, one: list[ProbeItem], one_in_step: bool, other: list[ProbeItem], other_in_step: bool
) -> tuple[float, float]:
    """Median ms of two rounds, run in turns so that what else the machine does meets both."""
    of_one: list[float] = []
    of_other: list[float] = []
    while len(of_one) < _MOST_ROUNDS and (
        len(of_one) < _LEAST_ROUNDS or sum(of_one + of_other) < 1000 * _LONGEST_COMPARISON_S
    ):
        of_one.append((await prober.run_round(one, one_in_step)).ms)
        of_other.append((await prober.run_round(other, other_in_step)).ms)
    return median(of_one), median(of_other)
