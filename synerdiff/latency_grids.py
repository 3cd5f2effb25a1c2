"""Latency of items of one setting, between the cells that were measured and beyond them."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from synerdiff.errors import FieldViolation, InvalidRequest

if TYPE_CHECKING:
    from synerdiff.profiles import Cell


class _Line(NamedTuple):
    """Latency over one axis, at ascending points."""

    points: tuple[int, ...]
    ms: tuple[float, ...]

    def at(self, x: float) -> float:
        return _along(self.points, self.ms.__getitem__, x)

    def part(self, x: float) -> float:
        """As `at`, but a fraction of the smallest measured item takes that fraction of its time."""
        return self.ms[0] * x / self.points[0] if x < self.points[0] else self.at(x)


class _Beside(NamedTuple):
    """Latency of some UNet rows over the decodes beside them; `unet_ms` of it are the steps' own."""

    line: _Line
    unet_ms: float

    def at(self, decodes: float) -> float:
        """The latency; below the fewest decodes measured, at least the steps' own time in that item."""
        return max(self.line.part(decodes), self.unet_ms) if decodes < self.line.points[0] else self.line.at(decodes)


class Grids(NamedTuple):
    """The grids of one setting: UNet alone, decodes alone, and both. Raises InvalidRequest for cells that form none."""

    unet: _Line | None
    vae: _Line | None
    rows: tuple[int, ...]
    beside: tuple[_Beside, ...]

    @classmethod
    def of(cls, cells: "Sequence[Cell]") -> "Grids":
        """The grids of these cells."""
        unet = _line([(c.rows, c.median_ms) for c in cells if not c.decodes])
        vae = _line([(c.decodes, c.median_ms) for c in cells if not c.rows])
        by_rows: dict[int, list[Cell]] = {}
        for cell in sorted(cells, key=lambda c: (c.rows, c.decodes)):
            if cell.rows and cell.decodes:
                by_rows.setdefault(cell.rows, []).append(cell)
        beside = tuple(_beside(of_rows) for of_rows in by_rows.values())
        if len({row.line.points for row in beside}) > 1:
            raise _uneven("an uneven grid; every row count must stand beside the same decode counts")
        return cls(unet, vae, tuple(by_rows), beside)

    def latency_ms(self, rows: int, decodes: float) -> float | None:
        """The time of an item; None where no such item was measured."""
        if decodes <= 0:
            return self.unet.at(max(rows, self.unet.points[0])) if self.unet else None
        if rows <= 0:
            return self.vae.part(decodes) if self.vae else None
        if not self.beside:
            return None
        return _along(self.rows, lambda k: self.beside[k].at(decodes), max(rows, self.rows[0]))


def _beside(of_rows: "Sequence[Cell]") -> _Beside:
    line = _line([(cell.decodes, cell.median_ms) for cell in of_rows])
    assert line is not None
    return _Beside(line, min(of_rows[0].unet_ms or of_rows[0].median_ms, of_rows[0].median_ms))


def _line(places: Iterable[tuple[int, float]]) -> _Line | None:
    ordered = sorted(places)
    if len({x for x, _ in ordered}) < len(ordered):
        raise _uneven("an item that stands there twice")
    return _Line(tuple(x for x, _ in ordered), tuple(ms for _, ms in ordered)) if ordered else None


def _along(points: Sequence[int], ms: Callable[[int], float], x: float) -> float:
    """Latency at x by that at each point's index: interpolated, then by the last slope, level where that falls."""
    if len(points) == 1:
        return ms(0) * max(1.0, x / points[0])
    k = min(max(bisect_right(points, x) - 1, 0), len(points) - 2)
    weight = (x - points[k]) / (points[k + 1] - points[k])
    if weight == 0:
        return ms(k)
    here, there = ms(k), ms(k + 1)
    return (1 - weight) * here + weight * there if weight <= 1 else there + (weight - 1) * max(0.0, there - here)


def _uneven(description: str) -> InvalidRequest:
    return InvalidRequest(FieldViolation("cells", description))
