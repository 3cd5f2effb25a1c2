"""Queries to the planner and its answers, as values."""

from dataclasses import dataclass
from typing import NamedTuple

from synerdiff.profiles import Profile, Setting

MOST_COUNT = 128  # tasks, and decodes, of one round; more wait for the next


class PlanQuery(NamedTuple):
    """One round: each of `unet` tasks advances by one step, `vae` decodes are served.

    `one_row` of the tasks are unguided and always cost one row; up to `skips` of the others may skip guidance, each at
    the price of `skip_price_ms` of summed decode completion time. The round may take the least time that is possible
    without skips, divided by `threshold`. `round_weight`: ms of summed decode completion that a ms of the round is
    worth. `beside`: UNet steps and decodes may share items. `chunking`: decodes may span items.
    """

    unet: int
    vae: int
    skips: int = 0
    one_row: int = 0
    threshold: float = 1.0
    skip_price_ms: float = 0.0
    round_weight: float = 0.0
    beside: bool = True
    chunking: bool = True


class PlannedItem(NamedTuple):
    """`unet` tasks step, `skips` of them in one row (unguided ones included): `rows` rows. Beside them, chunk units.

    Every decode of the round is cut into `chunks` bands (1: whole), its units. Units count through the round's decodes
    in order, so decode d owns [d * chunks, (d + 1) * chunks); this item does [`first_unit`, `end_unit`).
    """

    unet: int
    skips: int
    rows: int
    chunks: int
    first_unit: int
    end_unit: int
    ms: float
    setting: Setting

    @property
    def decodes(self) -> float:
        """Decodes done by this item, in parts of whole ones."""
        return (self.end_unit - self.first_unit) / self.chunks


@dataclass(frozen=True)
class PlannedRound:
    """The items of a round in order, and their totals.

    `mean_decode_ms` of completion, all decodes ready when the round begins; 0 without decodes. `skips`: one-row steps,
    unguided ones included. `objective` in ms: summed completion + priced skips + weighted round. `fastest_ms`: least
    time of a round without skips, on which the threshold works. `feasible`: whether the round keeps to the threshold;
    one that cannot is the fastest there is.
    """

    items: tuple[PlannedItem, ...]
    total_ms: float
    mean_decode_ms: float
    skips: int
    objective: float
    fastest_ms: float
    feasible: bool


class RoundReason(NamedTuple):
    """The reason for a round: the profile, the query, and the answer; None where it was not known yet."""

    profile: Profile
    query: PlanQuery
    planned: PlannedRound | None


def check(query: PlanQuery) -> None:
    """Raises ValueError naming the field, its value and its bound."""
    for name in ("unet", "vae", "skips", "one_row", "skip_price_ms", "round_weight"):
        if not 0 <= getattr(query, name) < float("inf"):
            raise ValueError(f"{name}: {getattr(query, name)}; must be at least 0 and finite")
    for name in ("unet", "vae"):
        if getattr(query, name) > MOST_COUNT:
            raise ValueError(f"{name}: {getattr(query, name)}; at most {MOST_COUNT} in one round")
    if query.one_row > query.unet:
        raise ValueError(f"one_row: {query.one_row}; at most the {query.unet} tasks there are")
    if not 0 < query.threshold < float("inf"):
        raise ValueError(f"threshold: {query.threshold}; must be over 0 and finite")


def completions_ms(items: tuple[PlannedItem, ...], vae: int) -> list[float]:
    """When each of `vae` decodes ends, in ms from the start of the round."""
    ends, elapsed_ms = [], 0.0
    for item in items:
        elapsed_ms += item.ms
        ends += [elapsed_ms] * (item.end_unit // item.chunks - item.first_unit // item.chunks)
    assert len(ends) == vae, "a round serves every decode"
    return ends


def judged(query: PlanQuery, items: tuple[PlannedItem, ...], fastest_ms: float, feasible: bool) -> PlannedRound:
    """The round that these items make."""
    total_ms = sum(item.ms for item in items)
    completion_ms = sum(completions_ms(items, query.vae))
    skips = sum(item.skips for item in items)
    priced_ms = query.skip_price_ms * max(0, skips - query.one_row)
    return PlannedRound(
        items=items,
        total_ms=total_ms,
        mean_decode_ms=completion_ms / query.vae if query.vae else 0.0,
        skips=skips,
        objective=completion_ms + priced_ms + query.round_weight * total_ms,
        fastest_ms=fastest_ms,
        feasible=feasible,
    )
