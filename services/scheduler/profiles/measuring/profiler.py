"""From the first sweep to a profile: the cells, then the comparisons that say which mechanisms pay on the device."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from services.scheduler.profiles.measuring.course import DEFAULT_BOUND, ProfileCourse
from services.scheduler.profiles.measuring.findings import memory_format_of, subject_of, with_caps, within_memory
from services.scheduler.profiles.measuring.mechanism_tests import evidence_of, mechanism_tests, mechanisms_by
from services.scheduler.profiles.measuring.prober import ProbePair, Prober
from services.scheduler.profiles.measuring.rounds import MemoryRanOut, extent_for
from synerdiff.profiles import KNEE_WITHIN, Evidence, ItemCaps, KneeFound, Profile

MOST_ROWS = 64  # of an item; a worker's slots and memory may allow fewer
_TESTS_SHARE = 0.25  # of the budget, kept for the mechanisms


@dataclass(frozen=True)
class ProfilerOptions:
    """Extent and precision of measuring. `chunks`: the band counts to try. `bound`: see ProfileCourse.

    `budget_s`: time for all of it. `fixed_shares`: on a CPU, measure either side with its own threads alone; else items
    deal out the cores.
    """

    max_rows: int = MOST_ROWS
    max_decodes: int = 6
    chunks: tuple[int, ...] = (1, 2, 4)
    bound: float = DEFAULT_BOUND
    budget_s: float = float("inf")
    fixed_shares: bool = False


class Profiler:
    """Measures one pair of workers at one size. Measurements survive failures: `run` goes on where it was."""

    def __init__(self, options: ProfilerOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self.course: ProfileCourse | None = None
        self._options = options
        self._clock = clock
        self._evidence: dict[str, Evidence] = {}
        self._tests_s = 0.0
        self._shortages: list[str] = []

    @property
    def runs(self) -> int:
        """Items run so far."""
        return self.course.runs if self.course else 0

    def draft(self, prober: Prober) -> Profile | None:
        """A profile of the measurements so far; None before the essential parts are measured."""
        return self._profile(prober, self.course) if self.course and self.course.ready else None

    async def run(self, prober: Prober, told: Callable[[ProfileCourse], None] = lambda course: None) -> Profile:
        """Measure the rest. `told` is called after every sweep. Raises ProbeFailed; may be called again then."""
        course = self.course = self.course or self._begin(prober.pair)
        while (sweep := course.next()) is not None:
            started = self._clock()
            try:
                runs = await prober.sweep(sweep)
            except MemoryRanOut as short:
                self._limit(course, short)
                continue
            course.samples.footprints |= prober.footprints
            course.measured(runs, self._clock() - started)
            told(course)
        await self._test(prober, self._profile(prober, course))
        return self._profile(prober, course)

    def _begin(self, pair: ProbePair) -> ProfileCourse:
        options = self._options
        decodes = min(options.max_decodes, max(1, pair.slots // 4))
        held = max(decodes, pair.slots // 4)  # by tasks that wait for their decode or their turn
        rows = min(options.max_rows - options.max_rows % 2, 2 * max(1, pair.slots - held))
        unet, vae = pair.unet.threads, pair.vae.threads
        cores = 0 if options.fixed_shares else max(unet, vae)
        extent = extent_for(rows, decodes, options.chunks, unet, vae, cores)
        return ProfileCourse(extent, bound=options.bound, budget_s=options.budget_s * (1 - _TESTS_SHARE))

    def _limit(self, course: ProfileCourse, short: MemoryRanOut) -> None:
        """Go on with smaller items than those that ran out of memory. Raises `short` where there are none."""
        if short.at_once <= 1:
            raise short
        self._shortages.append(f"{short}: measured without such items")
        course.limit(short.kind, short.at_once - 1)

    async def _test(self, prober: Prober, profile: Profile) -> None:
        """The mechanisms, each in its part of the time that is left."""
        assert self.course is not None
        tests = [test for test in mechanism_tests(prober, profile) if test.choice not in self._evidence]
        for number, test in enumerate(tests):
            left_s = self._options.budget_s - self.course.spent_s - self._tests_s
            started = self._clock()
            found = await evidence_of(test, self._options.bound, left_s / (len(tests) - number))
            self._tests_s += self._clock() - started
            if found:
                self._evidence[test.choice] = found

    def _profile(self, prober: Prober, course: ProfileCourse) -> Profile:
        pair, extent, curve = prober.pair, course.stages.extent, course.stages.curve()
        knee = KneeFound(*curve.knee(KNEE_WITHIN))
        evidence = (*self._evidence.values(), *course.stages.evidence())
        profile = Profile(
            subject=subject_of(pair.unet, pair.vae, prober.width, prober.height),
            cells=course.stages.cells(),
            caps=ItemCaps(max(1, extent.max_rows // 2), extent.max_decodes),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            skip_cfg=pair.unet.model_card.skip_cfg,
            mechanisms=mechanisms_by(self._evidence.values(), prober.in_step_works),
            knee=replace(knee, error=round(knee.error, 4)),
            evidence=evidence,
            notes=self._notes(prober, course),
            memory_format=memory_format_of(pair.unet, pair.vae),
        )
        return within_memory(with_caps(profile, pair.slots), pair.unet, pair.vae)

    def _notes(self, prober: Prober, course: ProfileCourse) -> tuple[str, ...]:
        fast, slow = course.samples.phases()
        notes = [
            *self._shortages,
            f"the machine's speed swung: runs took {fast:.2f} to {slow:.2f} times their quiet time",
        ]
        if not prober.in_step_works:
            notes.append("the workers share no pace: items were sent to both at once, not run in step")
        if course.spent_s >= course.budget_s:
            notes.append("the time was over before all was sure")
        return tuple(notes)
