"""The planner once more, by trying every sequence of items: slow, short, and true by inspection."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from services.scheduler.planned_round import PlanQuery
from synerdiff.profiles import Profile


class Sequence(NamedTuple):
    """What a sequence of items comes to, in ns; sorts as plans are chosen."""

    objective: int
    skips: int
    total: int
    items: int


@lru_cache(maxsize=256)
def item_ns(profile: Profile, rows: int, units: int, chunks: int) -> int | None:
    """The time of one item, to the ns."""
    choice = profile.choice(rows, units / chunks, chunks)
    return None if choice is None else round(choice.ms * 1e6)


def sequences(profile: Profile, query: PlanQuery, skips: int, chunks: int) -> Iterator[Sequence]:
    """Every way to do the round with up to `skips` skips, the decodes cut into `chunks`."""

    def onwards(tasks: int, units: int, one_row: int, so_far: Sequence) -> Iterator[Sequence]:
        if tasks == query.unet and units == query.vae * chunks:
            if one_row >= query.one_row:
                price = round(query.skip_price_ms * 1e6) * (one_row - query.one_row)
                weighted = round(query.round_weight * so_far.total)
                yield so_far._replace(objective=so_far.objective + price + weighted, skips=one_row)
            return
        unfinished = query.vae - units // chunks
        for u in range(min(profile.caps.unet, query.unet - tasks) + 1):
            for v in range(min(profile.caps.vae * chunks, query.vae * chunks - units) + 1):
                if u + v == 0 or (u and v and not query.beside):
                    continue
                for s in range(min(u, query.one_row + skips - one_row) + 1):
                    ns = item_ns(profile, 2 * u - s, v, chunks)
                    if ns is not None:
                        longer = Sequence(so_far.objective + ns * unfinished, 0, so_far.total + ns, so_far.items + 1)
                        yield from onwards(tasks + u, units + v, one_row + s, longer)

    return onwards(0, 0, 0, Sequence(0, 0, 0, 0))


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
