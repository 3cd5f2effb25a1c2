"""The planner's programme: the least cost to go from every state (chunk units done, tasks stepped, one-row steps done).

Two things make it small. An item that decodes nothing never needs to come before one that decodes: put after it, the
round takes as long and no decode ends later. So the path is over decoding items alone and ends in a tail of UNet
steps, tabulated once. And all states of one layer, that is of one count of units done, are computed at once.

Times are whole nanoseconds (ns): sums are exact, so that equal plans are equal and the planner's choice among them
is always the same. A `span` is a time and a number of items in one integer, so that of two rounds that take equally
long the one with fewer items is the shorter. Costs are ns times COST_SCALE.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.scheduler.planner.planned_round import PlanQuery
from synerdiff.profiles import Profile

IntArray = NDArray[np.int64]

NEVER = 1 << 60  # a time that no sum of real ones reaches, and two of which still fit 64 bits
NS_PER_MS = 1_000_000
COST_SCALE = 1000  # weights are rounded to thousandths
SPAN_BITS = 12  # of a span for the number of items


@lru_cache(maxsize=64)
def item_times(profile: Profile, chunks: int) -> IntArray:
    """Nanoseconds by UNet rows and chunk units, int64 [caps.rows + 1, caps.vae * chunks + 1]. NEVER for items
    that were not measured, and for those that no plan needs: two items in their place take less time."""
    rows, units = profile.caps.rows + 1, profile.caps.vae * chunks + 1
    times = np.full((rows, units), NEVER, dtype=np.int64)
    for r in range(rows):
        for v in range(units):
            choice = profile.choice(r, v / chunks, chunks)
            if choice is not None:
                times[r, v] = max(1, round(choice.ms * NS_PER_MS))
    times[0, 0] = 0
    times[_longer_than_in_two(times)] = NEVER
    times.flags.writeable = False
    return times


def _longer_than_in_two(times: IntArray) -> NDArray[np.bool_]:
    """Items that take longer than two, the second with some of the decodes alone: no decode ends later in the two."""
    longer = np.zeros(times.shape, dtype=np.bool_)
    units = times.shape[1]
    for later in range(1, units):
        longer[:, later:] |= times[:, later:] > times[:, : units - later] + times[0, later]
    return longer


class Step(NamedTuple):
    """One item: `tasks` step, `one_row` of them in one row, beside `units` chunk units."""

    units: int
    tasks: int
    one_row: int


class Weights(NamedTuple):
    """The prices of a round: t ns at `done` units cost t * per_ns[done] + per_item, the tail costs `ends`.
    int64: `per_ns` [units], `ends` [tasks stepped, one-row steps so far, one-row steps at the end]."""

    per_ns: IntArray
    per_item: int
    ends: IntArray


class Programme:
    """One query, its decodes cut into `chunks`, on a profile's times. Nothing changes after construction.

    A state is a place in a flat table of layers, each [tasks, one-row steps], padded so that no item leads out of it.
    `kinds` are the items that decode, int64 [kind, (units, tasks, one_row)] by units, with their times, spans and
    offsets of states. `spans_to_go`: least span from every state to the end.
    """

    def __init__(self, profile: Profile, query: PlanQuery, chunks: int, skips: int) -> None:
        times = item_times(profile, chunks)
        self.query = query
        self.most_one_row = min(query.unet, query.one_row + skips)
        self._skip_price = round(query.skip_price_ms * NS_PER_MS) * COST_SCALE
        self._round_weight = round(query.round_weight * COST_SCALE)
        self.units = query.vae * chunks
        self._most_rows = times.shape[0] - 1
        self._most_tasks = min(self._most_rows, query.unet)
        self._alone_spans = np.where(times[:, 0] < NEVER, (times[:, 0] << SPAN_BITS) + 1, NEVER)
        self._tail = self._tail_spans()
        self.ends = self._all_ends()
        self.kinds = self._decoding_items(times)
        self.times = times[2 * self.kinds[:, 1] - self.kinds[:, 2], self.kinds[:, 0]]
        self.spans = (self.times << SPAN_BITS) + 1
        self._lay_out()
        self.unfinished = query.vae - np.arange(self.units) // chunks
        self.extra_skips = np.maximum(np.arange(self.most_one_row + 1) - query.one_row, 0)
        self.as_span = Weights(np.full(self.units, 1 << SPAN_BITS), 1, self.ends)
        self.spans_to_go = self.to_go(self.as_span)

    @property
    def least_span(self) -> int:
        """The span of the fastest round; NEVER if the profile has no such round at all."""
        return int(self.spans_to_go[0])

    def as_cost(self, time_price: int = 0) -> Weights:
        """The planner's objective, plus `time_price` for every ns of the round."""
        weight = self._round_weight + time_price
        priced = (self.ends >> SPAN_BITS) * weight + self.extra_skips * self._skip_price
        return Weights(self.unfinished * COST_SCALE + weight, 0, np.where(self.ends < NEVER, priced, NEVER))

    def to_go(self, weights: Weights) -> IntArray:
        """The least that is left to pay from every state: int64, flat."""
        rows, columns = self.query.unet + 1, self.most_one_row + 1
        table = np.full((self.units + 1, self.layer // self.width, self.width), NEVER, dtype=np.int64)
        table[self.units, :rows, :columns] = weights.ends.min(axis=2)
        flat = table.reshape(-1)
        for done in range(self.units - 1, -1, -1):
            kinds = self.kinds_from(done)
            if kinds:
                ways = flat[done * self.layer :].take(self._targets[:kinds])
                ways += (self.times[:kinds] * weights.per_ns[done] + weights.per_item)[:, None]
                table[done, :rows, :columns] = np.minimum(ways.min(axis=0), NEVER).reshape(rows, columns)
        return flat

    def best_path(self, weights: Weights, to_go: IntArray) -> tuple[int, int]:
        """Cost and ns of the round that is least by `weights`, whose `to_go` is given; of several, the first."""
        cost_of, state, done, cost, time = self.as_cost(), 0, 0, 0, 0
        while done < self.units:
            kinds = self.kinds_from(done)
            ways = to_go.take(state + self.offsets[:kinds]) + self.times[:kinds] * weights.per_ns[done]
            kind = int(ways.argmin())
            time += int(self.times[kind])
            cost += int(self.times[kind]) * int(cost_of.per_ns[done])
            state += int(self.offsets[kind])
            done += int(self.kinds[kind, 0])
        tasks, one_row = divmod(state - done * self.layer, self.width)
        end = int(weights.ends[tasks, one_row].argmin())
        tail = int(self.ends[tasks, one_row, end]) >> SPAN_BITS
        return cost + int(cost_of.ends[tasks, one_row, end]), time + tail

    def kinds_from(self, done: int) -> int:
        """How many kinds of item have no more units than are left; the kinds are sorted by units."""
        left = min(self.units - done, len(self._kinds_within) - 1)
        return int(self._kinds_within[left])

    def tail_steps(self, tasks: int, one_row: int) -> list[Step]:
        """The items of the tail for `tasks`, `one_row` of them in one row."""
        steps: list[Step] = []
        while tasks:
            step = next(
                Step(0, u, s)
                for u, s in self._steps_alone()
                if u <= tasks
                and s <= one_row
                and self._tail[tasks, one_row] == self._tail[tasks - u, one_row - s] + self._alone_spans[2 * u - s]
            )
            steps.append(step)
            tasks, one_row = tasks - step.tasks, one_row - step.one_row
        return steps

    def _steps_alone(self) -> list[tuple[int, int]]:
        most = self.most_one_row
        return [
            (u, s)
            for u in range(self._most_tasks, 0, -1)
            for s in range(min(u, most), -1, -1)
            if 2 * u - s <= self._most_rows
        ]

    def _tail_spans(self) -> IntArray:
        """Least span of so many tasks, exactly so many of them in one row, decoding nothing: [tasks, one-row]."""
        width = self.most_one_row + 1
        tail = np.full((self.query.unet + 1, width), NEVER, dtype=np.int64)
        tail[0, 0] = 0
        for tasks in range(1, self.query.unet + 1):
            for u, s in self._steps_alone():
                if u <= tasks:
                    ways = tail[tasks - u, : width - s] + self._alone_spans[2 * u - s]
                    np.minimum(tail[tasks, s:], ways, out=tail[tasks, s:])
        return tail

    def _all_ends(self) -> IntArray:
        """Spans of the tails from every (tasks, one-row steps) to every final count of one-row steps."""
        counts = np.arange(self.most_one_row + 1)
        more = counts[None, :] - counts[:, None]
        ends = self._tail[::-1][:, np.maximum(more, 0)]
        return np.where((more < 0) | (counts < self.query.one_row), NEVER, ends)

    def _decoding_items(self, times: IntArray) -> IntArray:
        most_tasks = self._most_tasks if self.query.beside else 0
        kinds = [
            (v, u, s)
            for v in range(1, min(times.shape[1] - 1, self.units) + 1)
            for u in range(most_tasks + 1)
            for s in range(min(u, self.most_one_row) + 1)
            if 2 * u - s <= self._most_rows and times[2 * u - s, v] < NEVER
        ]
        return np.array(kinds, dtype=np.int64).reshape(-1, 3)

    def _lay_out(self) -> None:
        self.width = self.most_one_row + 1 + int(self.kinds[:, 2].max(initial=0))
        self.layer = (self.query.unet + 1 + self._most_tasks) * self.width
        self.offsets = self.kinds @ np.array([self.layer, self.width, 1])
        states = np.arange(self.query.unet + 1)[:, None] * self.width + np.arange(self.most_one_row + 1)
        self._targets = self.offsets[:, None] + states.reshape(1, -1)
        most_units = int(self.kinds[:, 0].max(initial=0))
        self._kinds_within = np.searchsorted(self.kinds[:, 0], np.arange(most_units + 1), side="right")
