"""The rounds that the planner is compared with: the paper's coarse and fine scheduling, and decodes served first.

All keep to the profile's caps and to the query's mandatory one-row steps, cut no decode and skip no guidance beyond
those. Where the profile or the query has no items of both kinds, each side gets an item of its own. Each raises
ValueError for a query out of bounds and KeyError where the profile has no such item. `feasible` says whether the round
keeps to the threshold. `fastest_ms`: the query's `least_round_ms` where it is known; computed where not.
"""

from collections.abc import Iterable, Iterator
from itertools import zip_longest

from services.scheduler.planner.planned_round import PlannedItem, PlannedRound, PlanQuery, judged
from services.scheduler.planner.planner import least_round_ms
from synerdiff.profiles import Profile

_ROUNDING_MS = 1e-5


def coarse(profile: Profile, query: PlanQuery, fastest_ms: float | None = None) -> PlannedRound:
    """As few items as the caps allow, as large as they allow: best for UNet throughput, decodes wait for all of it."""
    pairs = zip_longest(_batches(query.unet, profile.caps.unet), _batches(query.vae, profile.caps.vae), fillvalue=0)
    return _round(profile, query, pairs, fastest_ms)


def fine(profile: Profile, query: PlanQuery, fastest_ms: float | None = None) -> PlannedRound:
    """One task beside one decode while there are both, then the rest: best for decodes, many small UNet steps."""
    pairs = min(query.unet, query.vae)
    rest = ((unet, 0) for unet in _batches(query.unet - pairs, profile.caps.unet))
    return _round(profile, query, [*([(1, 1)] * pairs), *rest, *([(0, 1)] * (query.vae - pairs))], fastest_ms)


def vae_first(profile: Profile, query: PlanQuery, fastest_ms: float | None = None) -> PlannedRound:
    """Every decode alone, one by one, then UNet steps in batches as large as the cap."""
    steps = ((unet, 0) for unet in _batches(query.unet, profile.caps.unet))
    return _round(profile, query, [*([(0, 1)] * query.vae), *steps], fastest_ms)


def _batches(count: int, cap: int) -> list[int]:
    return [cap] * (count // cap) + [count % cap] * (count % cap > 0)


def _round(
    profile: Profile, query: PlanQuery, pairs: Iterable[tuple[int, int]], fastest_ms: float | None
) -> PlannedRound:
    if fastest_ms is None:
        fastest_ms = least_round_ms(profile, query)
    items: list[PlannedItem] = []
    one_row, unit = query.one_row, 0
    for unet, vae in _apart_where_needed(profile, query, pairs):
        skips = min(unet, one_row)
        rows = 2 * unet - skips
        choice = profile.choice(rows, vae, 1)
        if choice is None:
            raise KeyError(f"the profile has no item of {rows} UNet rows beside {vae} whole decodes")
        items.append(PlannedItem(unet, skips, rows, 1, unit, unit + vae, *choice))
        one_row, unit = one_row - skips, unit + vae
    total_ms = sum(item.ms for item in items)
    return judged(query, tuple(items), fastest_ms, total_ms <= fastest_ms / query.threshold + _ROUNDING_MS)


def _apart_where_needed(
    profile: Profile, query: PlanQuery, pairs: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    for unet, vae in pairs:
        if unet and vae and (not query.beside or profile.choice(2 * unet, vae, 1) is None):
            yield from ((0, vae), (unet, 0))
        else:
            yield unet, vae
