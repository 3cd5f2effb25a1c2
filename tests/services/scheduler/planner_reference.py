"""The planner once more, by trying every sequence of items: slow, short, and true by inspection."""

from collections.abc import Iterator
from typing import NamedTuple

from services.scheduler.planner.planned_round import PlanQuery
from synerdiff.profiles import Profile


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
