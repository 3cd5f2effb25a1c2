"""The planner's memory: what was planned once is looked up, what was not is asked for elsewhere.

A round depends on the profile and the query alone, so a leader that comes back to the same counts, as it does at nearly
every tick, finds its plan here. What is missing is solved in another process (`cold_plans`) and added; until then the
leader uses a simpler round. With `solve_now`, for simulations and tests, what is missing is solved on the spot.
"""

from collections import OrderedDict
from math import ceil
from typing import TypeVar

from services.scheduler.planner.planned_round import PlannedRound, PlanQuery
from services.scheduler.planner.planner import plan_round
from synerdiff.profiles import Profile

_CELLS_PER_UNIT = 50  # a threshold cell of 0.02
_ROUNDING = 1e-6

_Key = tuple[str, PlanQuery]
_T = TypeVar("_T")


def snapped(threshold: float) -> float:
    """The threshold's place on the grid of 0.02, the next one up: a plan made for it keeps to `threshold` too."""
    return ceil(threshold * _CELLS_PER_UNIT - _ROUNDING) / _CELLS_PER_UNIT


class PlanBook:
    """Planned rounds by profile digest and query, with the threshold snapped to its grid; the least used go first."""

    def __init__(self, capacity: int = 8192, solve_now: bool = False) -> None:
        self._rounds: OrderedDict[_Key, PlannedRound] = OrderedDict()
        self._missing: OrderedDict[_Key, Profile] = OrderedDict()
        self._capacity = capacity
        self._solve_now = solve_now

    def __len__(self) -> int:
        return len(self._rounds)

    def lookup(self, profile: Profile, query: PlanQuery) -> PlannedRound | None:
        """The plan for `query` if it is known; None, and remembered as missing, if it is not.

        With `solve_now` it is always known. Raises as `plan_round` does, then only.
        """
        query = query._replace(threshold=snapped(query.threshold))
        key = profile.digest, query
        known = self._rounds.get(key)
        if known is not None:
            self._rounds.move_to_end(key)
            return known
        if self._solve_now:
            self.add(profile.digest, query, plan_round(profile, query))
            return self._rounds[key]
        self._remember(self._missing, key, profile)
        return None

    def add(self, digest: str, query: PlanQuery, planned: PlannedRound) -> None:
        """Remember a round that was planned for a missing query, as `take_missing` gave it."""
        self._missing.pop((digest, query), None)
        self._remember(self._rounds, (digest, query), planned)

    def take_missing(self) -> list[tuple[Profile, PlanQuery]]:
        """What was asked for since the last time and is not known, oldest first, thresholds snapped."""
        missing, self._missing = self._missing, OrderedDict()
        return [(profile, query) for (_, query), profile in missing.items()]

    def queries(self, digest: str) -> list[PlanQuery]:
        """What is known of a profile, the least used first."""
        return [query for of, query in self._rounds if of == digest]

    def _remember(self, memory: "OrderedDict[_Key, _T]", key: _Key, value: _T) -> None:
        memory[key] = value
        memory.move_to_end(key)
        if len(memory) > self._capacity:
            memory.popitem(last=False)
