"""Corrects a profile as it runs: measured over profiled time, smoothed per region of its grid. Pure.

A region is a grid cell of one setting and one kind (rows alone, decodes alone, both); an item counts for the one that
is nearest to it. A region's own mean weighs by the number of its items, and until then leans on the mean of its
kind: a machine that is a tenth slower is so for cells too that no item has visited yet.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from services.scheduler.engine.ticks import MeasuredItem
from synerdiff.profiles import Cell, Profile, Setting

_REMEMBERED_ITEMS = 4096


# Weight of one item in its region's average; the most times that an item counts as slower or faster than its region.
GAIN, CLIP = 0.03, 1.25
LIMIT = 5.0  # no cell is scaled beyond it, or below its inverse
LEAN = 5.0  # items after which a region's own mean weighs as much as its kind's
LEAST_ITEMS = 8  # seen before a region may ask for a change
# Drift that is worth a new profile EVERY_S after the last one; it falls with the time since then down to LEAST_BAND, so
# that small errors are mended too, only seldom.
DEAD_BAND, LEAST_BAND, EVERY_S = 0.10, 0.05, 5.0


class Region(NamedTuple):
    """A place in the grid of a profile. Of the setting only the fields of its kind; the others are 0 or 1."""

    setting: Setting
    rows: int
    decodes: int

    @property
    def kind(self) -> str:
        """Alone or beside, as MeasuredItem.kind."""
        return "beside" if self.rows and self.decodes else "unet" if self.rows else "vae"


@dataclass
class _Average:
    """A clipped, exponentially weighted mean of log ratios; the first items weigh more."""

    log: float = 0.0
    items: int = 0

    def add(self, log_ratio: float) -> None:
        step = log_ratio - self.log
        if self.items:
            step = min(max(step, -math.log(CLIP)), math.log(CLIP))
        self.items += 1
        self.log += step * max(GAIN, 1 / (self.items + 1))


@dataclass
class ProfileCorrection:
    """One profile under correction. `original` stays as it was measured, plans use `current`."""

    original: Profile

    def __post_init__(self) -> None:
        self.current = self.original
        self._changed_at_s = -math.inf
        self._averages: dict[Region, _Average] = {region_of(cell): _Average() for cell in self.original.cells}
        self._kinds = {kind: _Average() for kind in ("unet", "vae", "beside")}
        self._applied: dict[Region, float] = dict.fromkeys(self._averages, 0.0)
        self._of_setting = lru_cache(self._cells_of)
        self._known = lru_cache(_REMEMBERED_ITEMS)(self._look_up)

    def observe(self, item: MeasuredItem) -> None:
        """Learn from an item of this profile's domain and batch key; one without a profiled time is ignored."""
        planned = item.planned
        if item.ratio is None:
            return
        known = self._known(planned.setting, planned.rows, planned.decodes)
        if known:
            nearest, profiled_ms = known
            log_ratio = math.log(item.ms / profiled_ms)
            self._averages[nearest].add(log_ratio)
            self._kinds[nearest.kind].add(log_ratio)

    def scale(self, region: Region) -> float:
        """How many times its original value a region's time is by now."""
        return math.exp(self._log_scale(region))

    @property
    def drift(self) -> float:
        """Largest relative distance of any cell's time, as seen by now, from its original value."""
        return max((abs(self.scale(region) - 1) for region in self._averages), default=0.0)

    def due(self, now_s: float) -> bool:
        """Whether some region has drifted far enough from the current profile, for the time since the last change."""
        since_s = now_s - self._changed_at_s
        if since_s < EVERY_S:
            return False
        band = max(LEAST_BAND, DEAD_BAND * EVERY_S / since_s)
        return any(
            average.items >= LEAST_ITEMS and abs(math.expm1(self._log_scale(region) - self._applied[region])) > band
            for region, average in self._averages.items()
        )

    def log_scales(self) -> dict[Region, float]:
        """The logarithm of every region's scale as seen by now."""
        return {region: self._log_scale(region) for region in self._averages}

    def corrected(self, log_scales: Mapping[Region, float]) -> Profile:
        """The original with these scales. Takes a few ms and changes nothing: it may run on another thread."""
        profile = self.original.with_cells(
            _scaled(cell, math.exp(log_scales[region_of(cell)])) for cell in self.original.cells
        )
        _ = profile.digest  # computed here and not where a plan first asks for it
        return profile

    def adopt(self, profile: Profile, log_scales: Mapping[Region, float], now_s: float) -> None:
        """Make `profile` the current one; it was made with these scales."""
        self.current, self._applied, self._changed_at_s = profile, dict(log_scales), now_s

    def revert(self, original: Profile) -> None:
        """Make the original the current one again; the means stay."""
        self.adopt(original, dict.fromkeys(self._averages, 0.0), self._changed_at_s)

    def _log_scale(self, region: Region) -> float:
        own, kind, limit = self._averages[region], self._kinds[region.kind], math.log(LIMIT)
        log = (own.items * own.log + LEAN * kind.log) / (own.items + LEAN)
        return min(max(log, -limit), limit)

    def _look_up(self, setting: Setting, rows: int, decodes: float) -> tuple[Region, float] | None:
        """The region an item counts for and its time by the original; None where it has no such items."""
        setting = _relevant(setting, rows, decodes)
        kind = Region(setting, rows, math.ceil(decodes)).kind
        near = [region for region in self._averages if region.setting == setting and region.kind == kind]
        profiled = self._of_setting(setting).choice(rows, decodes) if near else None
        if not profiled or not profiled.ms:
            return None
        return min(near, key=lambda region: (_distance(region, rows, decodes), region)), profiled.ms

    def _cells_of(self, setting: Setting) -> Profile:
        """The original's cells of one setting."""
        return self.original.with_cells(cell for cell in self.original.cells if region_of(cell).setting == setting)


def region_of(cell: Cell) -> Region:
    """Where a cell is in the grid."""
    return Region(_relevant(cell.setting, cell.rows, cell.decodes), cell.rows, cell.decodes)


def _relevant(setting: Setting, rows: int, decodes: float) -> Setting:
    """The setting without the fields of a side that is absent."""
    return Setting(
        chunks=setting.chunks if decodes else 1,
        unet_threads=setting.unet_threads if rows else 0,
        vae_threads=setting.vae_threads if decodes else 0,
    )


def _distance(region: Region, rows: int, decodes: float) -> float:
    """How many times over or under an item is, in rows and in decodes, as a sum of logarithms."""
    far = abs(math.log(rows / region.rows)) if rows else 0.0
    return far + (abs(math.log(decodes / region.decodes)) if decodes else 0.0)


def _scaled(cell: Cell, scale: float) -> Cell:
    times = ("median_ms", "p90_ms", "unet_ms", "vae_ms")
    return replace(cell, **{name: getattr(cell, name) * scale for name in times})
