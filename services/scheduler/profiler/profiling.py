"""Which cell of a profile to measure next, and when to stop: pure, without clock or workers.

Each setting has up to three sections: UNet steps alone, decodes alone, and both. A section is a rectangular grid over
rows and decodes (alone: one line of it), as `Profile` interpolates it. It begins with the ends of its axes; then the
interval whose last check was furthest off is halved, and the points measured there are the check of the interpolation
that they replace. Where a check is within the bound its interval is done.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from synerdiff.profiles import Cell, Setting

DEFAULT_BOUND = 0.10
_DECODE_WEIGHT = 4  # the work of measuring a decode, in rows: for the estimate of the time left


class Probe(NamedTuple):
    """An item to be measured."""

    rows: int
    decodes: int
    setting: Setting


@dataclass(frozen=True)
class Extent:
    """What a profile is to cover: items of up to `max_rows` and `max_decodes`, alone and beside, in these settings.

    Settings of items without decodes have `chunks` 1; the threads of a side that has no part are 0.
    """

    max_rows: int
    max_decodes: int
    unet_alone: tuple[Setting, ...]
    vae_alone: tuple[Setting, ...]
    beside: tuple[Setting, ...]


def extent_for(
    max_rows: int, max_decodes: int, chunks: Sequence[int], unet_threads: int, vae_threads: int, cores: int
) -> Extent:
    """What is worth measuring on a device.

    On CPUs (`cores` > 0) each side alone has all its threads or one, and beside each other they split the cores: all of
    them to both is never better (teams of threads then wait for cores that the other's hold). On GPUs, with `cores` 0,
    the shares are fixed per process.
    """
    if not cores:
        every = tuple(Setting(count) for count in sorted(set(chunks) | {1}))
        return Extent(max_rows, max_decodes, (Setting(),), every, every)
    counts = sorted(set(chunks) | {1})
    vae_alone = tuple(Setting(c, 0, n) for c in counts for n in _ends(vae_threads))
    splits = sorted({max(1, round(cores * share)) for share in (1 / 8, 1 / 4, 1 / 2)})
    beside = tuple(
        Setting(c, min(max(1, cores - n), unet_threads), min(n, vae_threads)) for c in counts for n in splits
    )
    unet_alone = tuple(Setting(1, n, 0) for n in _ends(unet_threads))
    return Extent(max_rows, max_decodes, unet_alone, vae_alone, tuple(dict.fromkeys(beside)))


def _ends(threads: int) -> tuple[int, ...]:
    return (threads, 1) if threads > 1 else (1,)


@dataclass
class _Axis:
    """The points of one axis, ascending, and the intervals between them that are still to be checked.

    `open` maps an interval to how far off the check was that its ends come from: infinitely where there was none.
    """

    points: list[int]
    open: dict[tuple[int, int], float] = field(default_factory=dict)
    settled: float = 0.0

    @classmethod
    def up_to(cls, most: int) -> "_Axis":
        """From 1 to `most`; [0] for a side without a part."""
        points = sorted({1, most}) if most else [0]
        return cls(points, {(1, most): math.inf} if most > 2 else {})

    def split(self, interval: tuple[int, int], error: float, bound: float) -> None:
        """Take up the point between the ends of an interval, `error` off what they gave for it."""
        del self.open[interval]
        middle = middle_of(interval)
        self.points = sorted({*self.points, middle})
        halves = ((interval[0], middle), (middle, interval[1]))
        if error <= bound:
            self.settled = max(self.settled, error)
        else:
            self.open |= {(a, b): error for a, b in halves if b - a > 1}


def middle_of(interval: tuple[int, int]) -> int:
    """The point to check an interval at: its geometric mean, since latency bends where batches are small."""
    low, high = interval
    return min(max(round(math.sqrt(low * high)), low + 1), high - 1)


class _Section:
    """One grid of one setting."""

    def __init__(self, setting: Setting, max_rows: int, max_decodes: int, bound: float) -> None:
        self.setting = setting
        self.rows, self.decodes = _Axis.up_to(max_rows), _Axis.up_to(max_decodes)
        self.complete = False
        self._bound = bound
        self._cells: dict[tuple[int, int], Cell] = {}
        self._missing = [(r, v) for r in self.rows.points for v in self.decodes.points]
        self._splitting: tuple[_Axis, tuple[int, int]] | None = None

    @property
    def error(self) -> float:
        """The largest relative error of a check that was not followed by closer ones; infinite before any."""
        return max(self.urgency, self.rows.settled, self.decodes.settled)

    @property
    def urgency(self) -> float:
        """How far off the worst interval is that is still to be checked; 0 where none is."""
        return max([*self.rows.open.values(), *self.decodes.open.values()], default=0.0)

    @property
    def under_way(self) -> bool:
        """Whether cells are missing of what was begun."""
        return bool(self._missing)

    def next(self) -> Probe | None:
        """A cell to measure, or None where the section is done."""
        if not self._missing:
            self._begin_split()
        return Probe(*self._missing[0], self.setting) if self._missing else None

    def measured(self, cell: Cell) -> None:
        """Take a cell that `next` asked for."""
        self._missing.remove((cell.rows, cell.decodes))
        self._cells[cell.rows, cell.decodes] = cell
        if self._missing:
            return
        self.complete = True
        if self._splitting:
            axis, interval = self._splitting
            axis.split(interval, self._error_between(axis, interval), self._bound)
            self._splitting = None

    def cells(self) -> list[Cell]:
        """The grid as far as it is whole."""
        return [self._cells[r, v] for r in self.rows.points for v in self.decodes.points] if self.complete else []

    def left(self) -> list[tuple[int, int]]:
        """The cells still to be measured as far as can be foreseen: each open interval takes one more check."""
        rows = {*self.rows.points, *map(middle_of, self.rows.open)}
        decodes = {*self.decodes.points, *map(middle_of, self.decodes.open)}
        return [(r, v) for r in sorted(rows) for v in sorted(decodes) if (r, v) not in self._cells]

    def _begin_split(self) -> None:
        candidates = [
            (error, interval[1] - interval[0], axis is self.rows, axis, interval)
            for axis in (self.rows, self.decodes)
            for interval, error in axis.open.items()
        ]
        if candidates:
            *_, axis, interval = max(candidates, key=lambda c: c[:3])
            self._splitting = axis, interval
            self._missing = self._cross(axis, middle_of(interval))

    def _cross(self, axis: _Axis, point: int) -> list[tuple[int, int]]:
        if axis is self.rows:
            return [(point, v) for v in self.decodes.points]
        return [(r, point) for r in self.rows.points]

    def _error_between(self, axis: _Axis, interval: tuple[int, int]) -> float:
        low, high = interval
        middle = middle_of(interval)
        weight = (middle - low) / (high - low)
        ends = zip(self._cross(axis, low), self._cross(axis, middle), self._cross(axis, high), strict=True)
        return max(
            abs((1 - weight) * self._ms(at_low) + weight * self._ms(at_high) - self._ms(at)) / self._ms(at)
            for at_low, at, at_high in ends
        )

    def _ms(self, at: tuple[int, int]) -> float:
        return self._cells[at].median_ms


class ProfileCourse:
    """The way through a profile: ask `next`, measure it, tell `measured`; in between it can be left and taken up again.

    `bound`: relative error of interpolation that is good enough. `budget_s`: time for all measurements together; the
    ends of all axes are measured whatever it says, since without them there is no profile.
    """

    def __init__(self, extent: Extent, *, bound: float = DEFAULT_BOUND, budget_s: float = math.inf) -> None:
        self.bound = bound
        self._budget_s = budget_s
        self._spent_s = 0.0
        self._measured_weight = 0.0
        self.measurements = 0
        most, decodes = extent.max_rows, extent.max_decodes
        alone = [_Section(setting, most, 0, bound) for setting in extent.unet_alone]
        alone += [_Section(setting, 0, decodes, bound) for setting in extent.vae_alone]
        self._sections = alone + [_Section(setting, most, decodes, bound) for setting in extent.beside]
        self._current: _Section | None = None

    def next(self) -> Probe | None:
        """The cell to measure next, or None: every interval is within the bound, or the time is spent."""
        if self.out_of_time and all(section.complete for section in self._sections):
            return None
        if self._current is None or not self._current.under_way:
            self._current = self._most_urgent()
        return self._current.next() if self._current else None

    def measured(self, cell: Cell, took_s: float) -> None:
        """Take the cell that `next` asked for. Raises ValueError for any other."""
        probe = self.next()
        if self._current is None or probe != Probe(cell.rows, cell.decodes, cell.setting):
            raise ValueError(f"asked for {probe}, not for {cell.rows} rows beside {cell.decodes} decodes")
        self._current.measured(cell)
        self._spent_s += took_s
        self._measured_weight += _weight(cell.rows, cell.decodes)
        self.measurements += 1

    @property
    def out_of_time(self) -> bool:
        """Whether the budget is spent."""
        return self._spent_s >= self._budget_s

    @property
    def measurements_left(self) -> int:
        """How many cells there are still to measure as far as can be foreseen; more where a check fails."""
        return 0 if self.next() is None else sum(len(section.left()) for section in self._sections)

    @property
    def seconds_left(self) -> float:
        """The time these will take, at the pace so far; never more than the budget has left. NaN before the first."""
        if self.next() is None:
            return 0.0
        if not self._measured_weight:
            return math.nan
        work = sum(_weight(*at) for section in self._sections for at in section.left())
        return min(work * self._spent_s / self._measured_weight, max(0.0, self._budget_s - self._spent_s))

    @property
    def error(self) -> float:
        """The largest relative error of interpolation that a check found and none closer has followed.

        Infinite while a grid that is whole at its corners was never checked in between.
        """
        return max((section.error for section in self._sections if section.complete), default=math.inf)

    def cells(self) -> tuple[Cell, ...]:
        """What was measured, as whole grids."""
        return tuple(cell for section in self._sections for cell in section.cells())

    def _most_urgent(self) -> _Section | None:
        """Corners first, in order; then whatever is furthest off. A section that has begun a step ends it first."""
        unbegun = next((section for section in self._sections if not section.complete), None)
        worst = max(self._sections, key=lambda section: section.urgency)
        return unbegun or (worst if worst.urgency else None)


def _weight(rows: int, decodes: int) -> float:
    return 1 + rows + _DECODE_WEIGHT * decodes
