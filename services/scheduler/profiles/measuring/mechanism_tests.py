"""Which mechanisms pay on a device: each is run with and without in turns, in rounds that are typical of its profile.

A mechanism leaves its default only where the ratios of pairs say so with confidence: one that is on goes off where it
surely costs time, one that is off goes on where it surely saves some. Waiting for each plan keeps plans fresh, so it
goes on where it surely costs next to nothing. Nothing is assumed of how ratios scatter: the interval of their median
follows from signs alone.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from math import comb, exp, log
from statistics import median
from typing import NamedTuple

from services.scheduler.profiles.measuring.prober import Prober
from services.scheduler.profiles.measuring.rounds import ProbeItem
from synerdiff.profiles import Evidence, Mechanisms, Profile

CONFIDENCE = 0.98  # of each look at the ratios
LOOKS = (7, 14, 28)  # pairs after which they are looked at: by chance a way seems slower three times in a hundred
COSTS = 0.01  # of time: a mechanism that costs no more stays on, and goes on where it is of other use
SAVES = 0.02  # of time, that a mechanism off by default has to save
IN_STEP, BESIDE, CHUNKING, PLAN_AHEAD = "items in step", "side by side", "decodes in bands", "one plan at a time"
_ROUND_MS, _MOST_TURNS = 300.0, 3  # rounds that are compared have to be neighbours in time
_PLANS = 4  # one after the other, to see the cost of waiting for each

Timed = Callable[[], Awaitable[float]]


class Paired(NamedTuple):
    """The median of the ratios of `pairs` pairs, and its interval."""

    ratio: float
    low: float
    high: float
    pairs: int


def paired(ratios: Sequence[float]) -> Paired:
    """The median of the ratios and its interval, from 0 to infinity where they are too few for one."""
    ordered, count = sorted(ratios), len(ratios)
    outside, k = 0.0, 0
    while k < count // 2 and outside + 2 * comb(count, k) / 2**count <= 1 - CONFIDENCE:
        outside += 2 * comb(count, k) / 2**count
        k += 1
    low, high = (ordered[k - 1], ordered[-k]) if k else (0.0, float("inf"))
    return Paired(exp(median(map(log, ordered))), low, high, count)


class MechanismTest(NamedTuple):
    """`with_it` and `without` it give ms. `limit`: of their ratio, below which it pays."""

    choice: str
    with_it: Timed
    without: Timed
    default: bool
    limit: float = 1 + COSTS

    def taken(self, found: Paired) -> bool:
        """Whether it is to be on."""
        return found.low <= self.limit if self.default else found.high < self.limit

    def open(self, found: Paired, bound: float) -> bool:
        """Whether more pairs may change that, and it matters by more than `bound`."""
        near = (1 - bound) * self.limit <= found.low and found.high <= (1 + bound) * self.limit
        return found.low <= self.limit <= found.high and not near


async def evidence_of(test: MechanismTest, bound: float, limit_s: float) -> Evidence | None:
    """The result of the test; None where the time was over before the least number of pairs."""
    ratios: list[float] = []
    spent_ms, found = 0.0, None
    for look in LOOKS:
        while len(ratios) < look and spent_ms < 1000 * limit_s:
            with_ms, without_ms = await _pair(test, with_first=len(ratios) % 2 == 0)
            ratios.append(with_ms / without_ms)
            spent_ms += with_ms + without_ms
        if len(ratios) < look:
            break
        found = paired(ratios)
        if not test.open(found, bound):
            break
    if found is None:
        return None
    ratio, low, high = (round(value, 4) for value in found[:3])
    return Evidence(test.choice, ratio, low, high, found.pairs, test.taken(found))


async def _pair(test: MechanismTest, with_first: bool) -> tuple[float, float]:
    if with_first:
        return await test.with_it(), await test.without()
    without_ms = await test.without()
    return await test.with_it(), without_ms


def mechanisms_by(evidence: Iterable[Evidence], in_step_works: bool) -> Mechanisms:
    """The defaults, as changed by the evidence."""
    taken = {each.choice: each.taken for each in evidence}
    default = Mechanisms()
    return Mechanisms(
        in_step=in_step_works and taken.get(IN_STEP, default.in_step),
        beside=taken.get(BESIDE, default.beside),
        chunking=any(on for choice, on in taken.items() if choice.startswith(CHUNKING)) or default.chunking,
        plan_ahead=1 if taken.get(PLAN_AHEAD) else default.plan_ahead,
    )


def mechanism_tests(prober: Prober, profile: Profile) -> Iterator[MechanismTest]:
    """The tests that apply to this profile."""
    measured = [cell.rows for cell in profile.cells if cell.rows and not cell.decodes]
    knee = profile.knee_rows()
    rows = min(knee + knee % 2, max(measured))
    steps, shortest = _item(profile, rows, 0), _item(profile, min(measured), 0)
    yield MechanismTest(PLAN_AHEAD, _plans(prober, shortest, 1), _plans(prober, shortest, 2), False)
    beside = _beside(profile)
    if beside and prober.in_step_works:
        items = _turns([_item(profile, rows, profile.caps.vae), steps], profile.latency_ms(rows, profile.caps.vae))
        yield MechanismTest(IN_STEP, _round(prober, items), _round(prober, items, in_step=False), True)
        best = max(beside, key=lambda at: profile.overlap_gain(*at))
        both, each = [_item(profile, *best)], [_item(profile, 0, best[1]), _item(profile, best[0], 0)]
        together, apart = (_round(prober, _turns(way, profile.latency_ms(*best))) for way in (both, each))
        yield MechanismTest(BESIDE, together, apart, True)
    if beside and profile.latency_ms(0, 1, chunks=1) > profile.latency_ms(rows, 0):
        for count in (count for count in profile.chunk_counts if count > 1):
            part = _item(profile, rows, 1, count)
            parts = [part._replace(first=first, end=first + 1) for first in range(count)]
            at_once = [_item(profile, rows, 1, chunks=1), *[steps] * (count - 1)]
            ways = _round(prober, parts), _round(prober, at_once)
            yield MechanismTest(f"{CHUNKING}, {count}", *ways, default=False, limit=1 - SAVES)


def _beside(profile: Profile) -> list[tuple[int, int]]:
    """The items of both sides that were measured within the caps, or all where none is; rows and decodes."""
    every = {(cell.rows, cell.decodes) for cell in profile.cells if cell.rows and cell.decodes}
    caps = profile.caps
    return sorted(at for at in every if at[0] <= caps.rows and at[1] <= caps.vae) or sorted(every)


def _item(profile: Profile, rows: int, decodes: int, chunks: int | None = None) -> ProbeItem:
    choice = profile.choice(rows, decodes, chunks)
    assert choice, "each side was measured alone, and both beside each other"
    return ProbeItem(rows, decodes, choice.setting, 0, choice.setting.chunks)


def _turns(items: list[ProbeItem], ms: float) -> list[ProbeItem]:
    """The items, of about `ms` in all, again and again for a while: the first of a round is slower than later ones."""
    return items * max(1, min(_MOST_TURNS, round(_ROUND_MS / ms)))


def _round(prober: Prober, items: list[ProbeItem], in_step: bool = True) -> Timed:
    async def timed() -> float:
        return (await prober.run_round(items, in_step)).ms

    return timed


def _plans(prober: Prober, item: ProbeItem, ahead: int) -> Timed:
    """Several plans of one item, `ahead` of them under way at a time."""

    async def timed() -> float:
        times = await prober.run_rounds([[item]] * _PLANS, in_step=False, ahead=ahead)
        return (times[-1].end_unix_ns - times[0].start_unix_ns) / 1e6

    return timed
