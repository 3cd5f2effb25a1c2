"""The planner: in which items a round does its UNet steps and decodes, and how many of the steps skip guidance.

It is the threshold-aware scheduler of the paper (SynerDiff, arXiv 2605.08835), reconstructed: over all sequences of
items, the least summed completion time of the decodes, such that the round takes at most the least time there is
without skips, divided by the threshold. An item of latency d delays every unfinished decode by d, which makes the sum
additive. Of equal rounds it takes the one with fewer skips, then the shorter one, then the one with fewer items.
"""

from services.scheduler.planner.item_times import NEVER, NS_PER_MS, item_times
from services.scheduler.planner.planned_round import PlannedItem, PlannedRound, PlanQuery, check, judged
from services.scheduler.planner.round_programme import COST_SCALE, SPAN_BITS, Instance, Programme
from services.scheduler.planner.round_search import Solution, best_round
from synerdiff.profiles import Profile

_ANY_COST = NEVER


def plan_round(profile: Profile, query: PlanQuery) -> PlannedRound:
    """The best round for `query`. Raises ValueError for one out of bounds, KeyError for a kind without times."""
    check(query)
    counts = chunk_counts(profile, query)
    fastest_ns = _fastest_ns(profile, query, counts)
    programmes = {chunks: _programme(profile, query, chunks, query.skips) for chunks in counts}
    least_ns = min(programme.least_span for programme in programmes.values()) >> SPAN_BITS
    budget_ns = int(fastest_ns / query.threshold)
    feasible = least_ns <= budget_ns
    best: tuple[Solution, int] | None = None
    for chunks, programme in programmes.items():
        at_most = best[0].cost if best else _ANY_COST
        found = best_round(programme, budget_ns if feasible else least_ns, at_most)
        if found and (best is None or found[:3] < best[0][:3]):
            best = found, chunks
    assert best is not None, "the fastest round is within the budget"
    items = _items(profile, *best)
    return judged(query, items, fastest_ns / NS_PER_MS, feasible)


def least_round_ms(profile: Profile, query: PlanQuery) -> float:
    """The least time of a round without skips, on which the threshold works. Raises as `plan_round` does."""
    check(query)
    return _fastest_ns(profile, query, chunk_counts(profile, query)) / NS_PER_MS


def chunk_counts(profile: Profile, query: PlanQuery) -> tuple[int, ...]:
    """The band counts that decodes of this round may be cut into."""
    return profile.chunk_counts if query.chunking and query.vae else (1,)


def _fastest_ns(profile: Profile, query: PlanQuery, counts: tuple[int, ...]) -> int:
    least = min(_programme(profile, query, chunks, 0).least_span for chunks in counts)
    if least >= NEVER:
        raise KeyError(f"the profile has no round of {query.unet} UNet steps and {query.vae} decodes")
    return least >> SPAN_BITS


def _programme(profile: Profile, query: PlanQuery, chunks: int, skips: int) -> Programme:
    instance = Instance(
        unet=query.unet,
        vae=query.vae,
        chunks=chunks,
        one_row=query.one_row,
        most_one_row=min(query.unet, query.one_row + skips),
        skip_price=round(query.skip_price_ms * NS_PER_MS) * COST_SCALE,
        round_weight=round(query.round_weight * COST_SCALE),
        beside=query.beside,
    )
    return Programme(item_times(profile, chunks), instance)


def _items(profile: Profile, solution: Solution, chunks: int) -> tuple[PlannedItem, ...]:
    items, unit = [], 0
    for step in solution.steps:
        rows = 2 * step.tasks - step.one_row
        choice = profile.choice(rows, step.units / chunks, chunks)
        assert choice is not None, "the programme uses items that the profile has"
        end = unit + step.units
        items.append(PlannedItem(step.tasks, step.one_row, rows, chunks, unit, end, *choice))
        unit = end
    return tuple(items)
