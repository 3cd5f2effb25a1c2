"""The planner: the paper's numbers, and optimality against every sequence there is."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.scheduler.planner.baseline_rounds import coarse, fine, vae_first
from services.scheduler.planner.planned_round import PlannedRound, PlanQuery, completions_ms
from services.scheduler.planner.planner import plan_round
from synerdiff.profiles import Cell, ItemCaps, Profile, ProfileSubject, Setting
from tests.services.scheduler.simulated import PAPER, PAPER_SERIAL

SUBJECT = ProfileSubject("tiny", "0", "device", "float32", (4, 8, 8), "shared")
BASELINES = (coarse, fine, vae_first)


def shape(planned: PlannedRound) -> list[tuple[int, float]]:
    return [(item.unet, item.decodes) for item in planned.items]


# ---- the paper's table


def test_without_slack_the_fastest_round_is_the_paper_s_own() -> None:
    planned = plan_round(PAPER, PlanQuery(8, 6, threshold=1.0))
    assert shape(planned) == [(2, 2), (3, 2), (3, 2)]
    assert planned.total_ms == pytest.approx(286.2)
    assert planned.mean_decode_ms == pytest.approx(186.8)
    assert planned.fastest_ms == pytest.approx(286.2)


@pytest.mark.parametrize(
    ("threshold", "total_ms", "mean_ms"), [(0.98, 291.4, 146.3), (0.95, 297.88, 131.58), (0.90, 317.32, 106.87)]
)
def test_slack_in_the_round_buys_earlier_decodes(threshold: float, total_ms: float, mean_ms: float) -> None:
    planned = plan_round(PAPER, PlanQuery(8, 6, threshold=threshold))
    assert planned.total_ms == pytest.approx(total_ms, abs=0.01)
    assert planned.mean_decode_ms == pytest.approx(mean_ms, abs=0.01)
    assert planned.total_ms <= planned.fastest_ms / threshold


@pytest.mark.parametrize("threshold", [1.0, 0.98, 0.95])
def test_where_running_side_by_side_gains_nothing_decodes_come_first(threshold: float) -> None:
    planned = plan_round(PAPER_SERIAL, PlanQuery(8, 6, threshold=threshold))
    assert shape(planned) == [(0, 1)] * 6 + [(8, 0)]
    assert planned.total_ms == pytest.approx(262.6)
    assert planned.mean_decode_ms == pytest.approx(75.6)


def test_the_baselines_are_the_paper_s() -> None:
    query = PlanQuery(8, 6)
    assert coarse(PAPER_SERIAL, query).total_ms == pytest.approx(262.6)
    assert coarse(PAPER_SERIAL, query).mean_decode_ms == pytest.approx(262.6)
    assert fine(PAPER, query).total_ms == pytest.approx(6 * 46.3 + 44.2)
    assert fine(PAPER, query).mean_decode_ms == pytest.approx(162.05)
    assert vae_first(PAPER_SERIAL, query).mean_decode_ms == pytest.approx(75.6)
    assert not fine(PAPER, query).feasible
    assert fine(PAPER, query._replace(threshold=0.85)).feasible


def test_skips_make_a_round_possible_that_no_round_without_them_is() -> None:
    faster = PlanQuery(8, 6, skips=4, threshold=1.05)
    assert plan_round(PAPER, faster).feasible
    without = plan_round(PAPER, faster._replace(skips=0))
    assert not without.feasible
    assert without.total_ms == pytest.approx(without.fastest_ms)


def test_a_dear_skip_is_not_used() -> None:
    free = plan_round(PAPER, PlanQuery(8, 6, skips=6))
    dear = plan_round(PAPER, PlanQuery(8, 6, skips=6, skip_price_ms=1e6))
    assert free.skips > 0
    assert dear.skips == 0


def test_nothing_to_do_is_an_empty_round() -> None:
    assert plan_round(PAPER, PlanQuery(0, 0)).items == ()


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (PlanQuery(-1, 0), "unet"),
        (PlanQuery(1, -1), "vae"),
        (PlanQuery(1, 1, skips=-1), "skips"),
        (PlanQuery(1, 1, one_row=2), "one_row"),
        (PlanQuery(1, 1, threshold=0), "threshold"),
        (PlanQuery(1, 1, threshold=float("nan")), "threshold"),
        (PlanQuery(1, 1, skip_price_ms=-1), "skip_price_ms"),
        (PlanQuery(1, 1, round_weight=float("inf")), "round_weight"),
    ],
)
def test_a_query_out_of_bounds_is_refused_by_name(query: PlanQuery, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        plan_round(PAPER, query)


# ---- any profile


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Any latencies at all, of few values so that there are ties; sometimes chunked, sometimes without shared items."""
    caps = ItemCaps(draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    chunks = draw(st.sampled_from([(1,), (1,), (1, 2), (2,)]))
    beside = draw(st.sampled_from([True, True, True, False]))
    places = [(r, 0, 1) for r in range(1, 2 * caps.unet + 1)]
    for c in chunks:
        places += [(0, v, c) for v in range(1, caps.vae + 1)]
        if beside:
            places += [(r, v, c) for r in range(1, 2 * caps.unet + 1) for v in range(1, caps.vae + 1)]
    values = Random(draw(st.integers(0, 1 << 32))).choices(range(1, 13), k=len(places))
    cells = (
        Cell(r, v, float(ms), float(ms), Setting(c), unet_ms=ms / 2)
        for (r, v, c), ms in zip(places, values, strict=True)
    )
    return Profile(SUBJECT, tuple(cells), caps, made_at="today")


@st.composite
def queries(draw: st.DrawFn) -> PlanQuery:
    unet, vae = draw(st.sampled_from([(0, 3), (1, 4), (2, 3), (2, 3), (2, 3), (3, 0), (3, 1), (3, 2)]))
    return PlanQuery(
        unet=unet,
        vae=vae,
        skips=draw(st.integers(0, 2)),
        one_row=draw(st.integers(0, min(unet, 1))),
        threshold=draw(st.sampled_from([1.0, 0.9, 0.8, 0.6, 0.3, 1.2])),
        skip_price_ms=draw(st.sampled_from([0.0, 0.0, 1.5])),
        round_weight=draw(st.sampled_from([0.0, 0.0, 0.25])),
        beside=draw(st.sampled_from([True, True, True, False])),
        chunking=draw(st.booleans()) and unet + vae < 5,
    )


def possible(profile: Profile, query: PlanQuery) -> bool:
    return (query.chunking and query.vae > 0) or query.vae == 0 or 1 in profile.chunk_counts


@settings(max_examples=1000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(profiles(), queries())
def test_no_sequence_of_items_is_better(profile: Profile, query: PlanQuery) -> None:
    if not possible(profile, query):
        with pytest.raises(KeyError):
            plan_round(profile, query)
        return
    best, feasible = reference(profile, query)
    planned = plan_round(profile, query)
    assert planned.feasible == feasible
    found = (round(planned.objective * 1e6), planned.skips, round(planned.total_ms * 1e6), len(planned.items))
    assert found == best


@pytest.mark.parametrize("seed", range(30))
def test_a_round_of_many_items_is_that_of_the_plain_programme(seed: int) -> None:
    random = Random(seed)
    caps = ItemCaps(random.randint(2, 4), random.randint(2, 3))
    once, row, decode = random.uniform(1, 30), random.uniform(1, 10), random.uniform(1, 30)
    together = random.uniform(0.5, 1.0)
    cells = [
        Cell(r, v, ms, ms)
        for r in range(2 * caps.unet + 1)
        for v in range(caps.vae + 1)
        if r + v
        for ms in [((once + row * r) * (r > 0) + decode * v * (together if r else 1)) * random.uniform(0.8, 1.2)]
    ]
    profile = Profile(SUBJECT, tuple(cells), caps, made_at="today")
    query = PlanQuery(
        unet=random.randint(4, 8),
        vae=random.randint(3, 6),
        skips=random.choice([0, 0, 1]),
        threshold=random.choice([0.99, 0.97, 0.95, 0.93, 0.9, 0.86]),
    )
    planned, best = plan_round(profile, query), by_pareto_fronts(profile, query)
    assert (planned.objective, planned.total_ms) == pytest.approx((best.objective / 1e6, best.total / 1e6), abs=1e-4)
    assert (planned.skips, len(planned.items)) == (best.skips, best.items)


@settings(max_examples=150, derandomize=True, suppress_health_check=list(HealthCheck))
@given(profiles(), st.integers(0, 9), st.integers(0, 5), queries())
def test_a_round_does_all_that_was_asked_and_is_never_worse_than_a_baseline(
    profile: Profile, unet: int, vae: int, query: PlanQuery
) -> None:
    query = query._replace(unet=unet, vae=vae, one_row=min(query.one_row, unet))
    if not possible(profile, query):
        return
    planned = plan_round(profile, query)
    assert planned == plan_round(replace(profile), query)
    assert sum(item.unet for item in planned.items) == unet
    assert query.one_row <= planned.skips <= query.one_row + query.skips
    assert [item.first_unit for item in planned.items] == [0, *(item.end_unit for item in planned.items)][:-1]
    assert completions_ms(planned.items, vae) == sorted(completions_ms(planned.items, vae))
    for item in planned.items:
        assert item.rows == 2 * item.unet - item.skips
        assert item.rows <= profile.caps.rows
        assert item.decodes <= profile.caps.vae
        assert query.beside or not (item.unet and item.decodes)
        assert (item.ms, item.setting) == profile.choice(item.rows, item.decodes, item.chunks)
    for baseline in BASELINES:
        if 1 in profile.chunk_counts:
            other = baseline(profile, query)
            assert sum(item.unet for item in other.items) == unet
            assert not other.feasible or (planned.feasible and planned.objective <= other.objective + 1e-3)


# ---- the planner once more, by trying every sequence of items: slow, short, and true by inspection


class Sequence(NamedTuple):
    """What a sequence of items comes to, in ns; sorts as plans are chosen."""

    objective: int
    skips: int
    total: int
    items: int


class Kind(NamedTuple):
    """An item: tasks, one-row steps among them, chunk units, and its time."""

    u: int
    s: int
    v: int
    ns: int


def kinds_of(profile: Profile, query: PlanQuery, chunks: int) -> list[Kind]:
    """Every item that the profile and the query allow."""
    kinds = []
    for u in range(min(profile.caps.rows, query.unet) + 1):
        for s in range(max(0, 2 * u - profile.caps.rows), u + 1):
            for v in range(min(profile.caps.vae, query.vae) * chunks + 1):
                choice = profile.choice(2 * u - s, v / chunks, chunks)
                if u + v > 0 and choice is not None and (query.beside or not u or not v):
                    kinds.append(Kind(u, s, v, round(choice.ms * 1e6)))
    return kinds


def sequences(profile: Profile, query: PlanQuery, skips: int, chunks: int) -> Iterator[Sequence]:
    """Every way to do the round with up to `skips` skips, the decodes cut into `chunks`."""
    kinds = kinds_of(profile, query, chunks)

    def onwards(tasks: int, units: int, one_row: int, objective: int, total: int, items: int) -> Iterator[Sequence]:
        """What follows once so much is left to do."""
        if tasks == units == 0:
            if query.one_row <= one_row:
                price = round(query.skip_price_ms * 1e6) * (one_row - query.one_row)
                yield Sequence(objective + price + round(query.round_weight * total), one_row, total, items)
            return
        unfinished = -(-units // chunks)
        for u, s, v, ns in kinds:
            if u <= tasks and v <= units and one_row + s <= query.one_row + skips:
                yield from onwards(
                    tasks - u, units - v, one_row + s, objective + ns * unfinished, total + ns, items + 1
                )

    return onwards(query.unet, query.vae * chunks, 0, 0, 0, 0)


def reference(profile: Profile, query: PlanQuery) -> tuple[Sequence, bool]:
    """The best sequence and whether it keeps to the threshold; one that cannot is the best of the fastest."""
    counts = profile.chunk_counts if query.chunking and query.vae else (1,)
    fastest = min(found.total for c in counts for found in sequences(profile, query, 0, c))
    every = [found for c in counts for found in sequences(profile, query, query.skips, c)]
    within = [found for found in every if found.total <= int(fastest / query.threshold)]
    if within:
        return min(within), True
    least = min(found.total for found in every)
    return min(found for found in every if found.total == least), False


def by_pareto_fronts(profile: Profile, query: PlanQuery) -> Sequence:
    """The best sequence of whole decodes within the threshold, by a front of (objective, total) per state."""
    return min(found for found in _fronts(profile, query, query.skips) if found.total <= _budget(profile, query))


def _budget(profile: Profile, query: PlanQuery) -> int:
    return int(min(found.total for found in _fronts(profile, query, 0)) / query.threshold)


def _fronts(profile: Profile, query: PlanQuery, skips: int) -> list[Sequence]:
    kinds = kinds_of(profile, query, 1)
    fronts: dict[tuple[int, int], list[Sequence]] = {(0, 0): [Sequence(0, 0, 0, 0)]}
    for tasks in range(query.unet + 1):
        for decodes in range(query.vae + 1):
            labels = fronts[tasks, decodes] = _undominated(fronts.get((tasks, decodes), []))
            for u, s, v, ns in kinds:
                fronts.setdefault((tasks + u, decodes + v), []).extend(
                    Sequence(
                        label.objective + ns * (query.vae - decodes), label.skips + s, label.total + ns, label.items + 1
                    )
                    for label in labels
                    if label.skips + s <= skips
                )
    return fronts[query.unet, query.vae]


def _undominated(labels: list[Sequence]) -> list[Sequence]:
    """Those that no other one with as few skips beats in both objective and total."""
    kept: list[Sequence] = []
    for label in sorted(labels, key=lambda one: (one.total, one.objective, one.skips, one.items)):
        if not any(one.objective <= label.objective and one.skips <= label.skips for one in kept):
            kept.append(label)
    return kept
