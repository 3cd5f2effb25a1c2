"""The planner: in which items a round does its UNet steps and decodes, and how many of the steps skip guidance.

It is the threshold-aware scheduler of the paper (SynerDiff, arXiv 2605.08835), reconstructed: over all sequences of
items, the least summed completion time of the decodes, such that the round takes at most the least time there is
without skips, divided by the threshold. An item of latency d delays every unfinished decode by d, which makes the sum
additive. Of equal rounds it takes the one with fewer skips, then the shorter one, then the one with fewer items.

It searches a constrained shortest path after Handler and Zang, "A dual algorithm for the constrained shortest path
problem" (Networks 10, 1980). A price on time turns it into a plain shortest path, which bounds every round that a
label (a span and a cost at a state) can still lead to. The bounds leave few labels to extend. A label that another
beats in both is dropped.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.scheduler.planner.planned_round import PlannedItem, PlannedRound, PlanQuery, check, judged
from services.scheduler.planner.round_programme import (
    NEVER,
    NS_PER_MS,
    SPAN_BITS,
    IntArray,
    Programme,
    Step,
)
from synerdiff.profiles import Profile

_LABELS_AT_ONCE = 1 << 20  # label times kind: bounds memory to some tens of MiB


class Solution(NamedTuple):
    """Sorts as rounds are chosen: least cost, then fewest one-row steps, then the shortest span."""

    cost: int
    one_row: int
    span: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class _Labels:
    """Paths to states of one layer; the last step is from label `parent` of layer `origin` by an item of `kind`."""

    state: IntArray
    span: IntArray
    cost: IntArray
    origin: IntArray
    parent: IntArray
    kind: IntArray

    @classmethod
    def joined(cls, parts: "list[_Labels]") -> "_Labels":
        """All labels of `parts`."""
        return cls(*(np.concatenate(columns) for columns in zip(*(p.columns() for p in parts), strict=True)))

    def columns(self) -> tuple[IntArray, ...]:
        """The fields in order."""
        return self.state, self.span, self.cost, self.origin, self.parent, self.kind

    def at(self, chosen: IntArray) -> "_Labels":
        """Those at the given places."""
        return _Labels(*(column[chosen] for column in self.columns()))

    def undominated(self) -> "_Labels":
        """Those that no other label of their state beats, or equals, in both span and cost."""
        by_span = np.lexsort((self.cost, self.span, self.state))
        state, cost = self.state[by_span], self.cost[by_span]
        group = np.cumsum(np.diff(state, prepend=state[:1]) != 0)
        falling = cost - group * (
            int(cost.max()) + 1
        )  # every group below all before it: one running minimum serves all
        best_before = np.concatenate(([NEVER], np.minimum.accumulate(falling)[:-1]))
        return self.at(by_span[falling < best_before])


class _Bounds:
    """The most that a label may cost while it can lead to a round within the budget and as good as the best known."""

    def __init__(self, programme: Programme, budget_ns: int, at_most: int) -> None:
        self.at_most = at_most
        self._programme = programme
        self._budget_ns = budget_ns
        self._free = programme.to_go(programme.as_cost())
        self._price, self._priced = 0, self._free
        if not self.hopeless:
            self._price, self._priced = self._best_price()

    @property
    def hopeless(self) -> bool:
        """Whether every round within the budget costs more than `at_most`."""
        return int(self._priced[0]) - self._price * self._budget_ns > self.at_most

    def allow(self, states: IntArray, times: IntArray, costs: IntArray) -> NDArray[np.bool_]:
        """Which labels may still lead there."""
        allowed: NDArray[np.bool_] = costs + self._free.take(states) <= self.at_most
        if self._price:
            left = self._price * (self._budget_ns - times)
            allowed &= costs + self._priced.take(states) <= self.at_most + left
        return allowed

    def _best_price(self) -> tuple[int, IntArray]:
        """The price of a ns that bounds best, with its costs to go: where a slow and a fast path cost the same."""
        programme = self._programme
        slow = self._known(programme.best_path(programme.as_cost(), self._free))
        if slow[1] <= self._budget_ns:
            return 0, self._free
        fast = self._known(programme.best_path(programme.as_span, programme.spans_to_go))
        dearest = NEVER // 4 // slow[1]  # any price bounds; this one keeps sums within 64 bits
        while True:
            price = min((fast[0] - slow[0]) // (slow[1] - fast[1]), dearest)
            weights = programme.as_cost(price)
            to_go = programme.to_go(weights)
            path = self._known(programme.best_path(weights, to_go))
            if path[0] + price * path[1] >= min(end[0] + price * end[1] for end in (slow, fast)):
                return price, to_go
            if path[1] <= self._budget_ns:
                fast = path
            else:
                slow = path

    def _known(self, path: tuple[int, int]) -> tuple[int, int]:
        """The path, remembered if it is a round that keeps to the budget."""
        cost, time = path
        if time <= self._budget_ns:
            self.at_most = min(self.at_most, cost)
        return path


def best_round(programme: Programme, budget_ns: int, at_most: int) -> Solution | None:
    """The best round of at most `budget_ns` and of a cost of at most `at_most`; None if there is none."""
    budget = ((budget_ns + 1) << SPAN_BITS) - 1
    if programme.least_span > budget:
        return None
    bounds = _Bounds(programme, budget_ns, at_most)
    if bounds.hopeless:
        return None
    nothing = np.zeros(1, dtype=np.int64)
    waiting: dict[int, list[_Labels]] = {0: [_Labels(nothing, nothing, nothing, nothing, nothing, nothing)]}
    layers: dict[int, _Labels] = {}
    for done in range(programme.units + 1):
        if done in waiting:
            layers[done] = _Labels.joined(waiting.pop(done)).undominated()
            if done < programme.units:
                for units, found in _extended(programme, layers[done], done, budget, bounds):
                    waiting.setdefault(done + units, []).append(found)
    return _finished(programme, layers, budget, bounds.at_most) if programme.units in layers else None


def _extended(
    programme: Programme, labels: _Labels, done: int, budget: int, bounds: _Bounds
) -> list[tuple[int, _Labels]]:
    """The labels that one more item leads to, by its units."""
    kinds = programme.kinds_from(done)
    found = []
    per_ns = int(programme.as_cost().per_ns[done])
    for first in range(0, len(labels.state), max(1, _LABELS_AT_ONCE // max(1, kinds))):
        part = np.arange(first, min(len(labels.state), first + max(1, _LABELS_AT_ONCE // max(1, kinds))))
        states = labels.state[part, None] + programme.offsets[:kinds]
        spans = labels.span[part, None] + programme.spans[:kinds]
        row, kind = np.nonzero(spans + programme.spans_to_go.take(states) <= budget)
        parent, state, span = part[row], states[row, kind], spans[row, kind]
        cost = labels.cost[parent] + programme.times[kind] * per_ns
        origin = np.full(len(kind), done, dtype=np.int64)
        reached = _Labels(state, span, cost, origin, parent, kind)
        reached = reached.at(np.nonzero(bounds.allow(state, span >> SPAN_BITS, cost))[0])
        units = programme.kinds[reached.kind, 0]
        found += [(int(n), reached.at(np.nonzero(units == n)[0])) for n in np.unique(units)]
    return found


def _finished(programme: Programme, layers: dict[int, _Labels], budget: int, at_most: int) -> Solution | None:
    """The best of the last layer's labels, each with the best tail of UNet steps."""
    labels = layers[programme.units]
    tasks, one_row = np.divmod(labels.state - programme.units * programme.layer, programme.width)
    ends = programme.ends[tasks, one_row]
    spans = labels.span[:, None] + ends
    costs = labels.cost[:, None] + programme.as_cost().ends[tasks, one_row]
    label, final = np.nonzero((spans <= budget) & (costs <= at_most))
    if not len(label):
        return None
    best = np.lexsort((spans[label, final], final, costs[label, final]))[0]
    at, end = int(label[best]), int(final[best])
    tail = programme.tail_steps(programme.query.unet - int(tasks[at]), end - int(one_row[at]))
    steps = (*_steps_to(programme, layers, at), *tail)
    return Solution(int(costs[at, end]), end, int(spans[at, end]), steps)


def _steps_to(programme: Programme, layers: dict[int, _Labels], at: int) -> list[Step]:
    steps, done = [], programme.units
    while done:
        labels = layers[done]
        steps.append(Step(*(int(n) for n in programme.kinds[labels.kind[at]])))
        done, at = int(labels.origin[at]), int(labels.parent[at])
    return steps[::-1]


def plan_round(profile: Profile, query: PlanQuery) -> PlannedRound:
    """The best round for `query`. Raises ValueError for one out of bounds, KeyError for a kind without times."""
    check(query)
    counts = chunk_counts(profile, query)
    fastest_ns = _fastest_ns(profile, query, counts)
    programmes = {chunks: Programme(profile, query, chunks, query.skips) for chunks in counts}
    least_ns = min(programme.least_span for programme in programmes.values()) >> SPAN_BITS
    budget_ns = int(fastest_ns / query.threshold)
    feasible = least_ns <= budget_ns
    best: tuple[Solution, int] | None = None
    for chunks, programme in programmes.items():
        at_most = best[0].cost if best else NEVER
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
    least = min(Programme(profile, query, chunks, 0).least_span for chunks in counts)
    if least >= NEVER:
        raise KeyError(f"the profile has no round of {query.unet} UNet steps and {query.vae} decodes")
    return least >> SPAN_BITS


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
