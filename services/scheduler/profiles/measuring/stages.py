"""The parts of a profile's course, and the items that each wants run once more by the runs so far: none, once done."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from services.scheduler.profiles.measuring.findings import LEVEL_WITHIN, LONGEST_ITEM
from services.scheduler.profiles.measuring.rounds import Extent, Probe
from services.scheduler.profiles.measuring.samples import Curve, FloatArray, Samples, rising
from synerdiff.profiles import KNEE_WITHIN, Cell, Evidence, Setting

_LEAST, _MOST_TRIES = 4, 16  # runs of an item before it is compared, and after which nothing more is expected
_DEVIATIONS = 2.33  # of a normal error, that it exceeds one way once in a hundred times
_SMOOTHINGS = 5
LADDER = (2, 4, 8, 16, 32, 48, 64)  # even: a task with guidance takes two rows
_ROUGH, _FAIR, _FULL, _MOST = 3, 6, 12, 40  # runs of an item: for a first profile, for a good one, and at most
_NEAR_ROWS, _NEAR_SHARE = 4, 1 / 6  # a knee that is sure to so many rows, or so much of itself, is sure
_GROWTH = math.log(1.01)  # of throughput, below which rungs of the ladder have brought nothing
_CONTENDS = 0.025  # an item counts for the knee if throughput is near enough to the best in this share of the cases


class SettingTried:
    """A setting that is `better` once it is surely faster by over `bound` on some item; else the default stays."""

    def __init__(self, samples: Samples, setting: Setting, default: Setting, bound: float) -> None:
        self.setting = setting
        self.better = False
        self.settled = False
        self._samples = samples
        self._default = default
        self._bound = bound
        self._items: tuple[tuple[int, int], ...] = ()

    def wanted(self, items: Sequence[tuple[int, int]]) -> list[Probe]:
        """The items to run next, of `items` (rows, decodes); none once it is settled."""
        self._items = self._items or tuple(items)
        if self.settled:
            return []
        probes = [Probe(*item, setting) for item in self._items for setting in (self.setting, self._default)]
        least = min(self._samples.count(probe) for probe in probes[::2])
        if least >= _LEAST:
            compared = [self._compared(item) for item in self._items]
            self.better = any(high < -self._bound for _, _, high in compared)
            self.settled = self.better or least >= _MOST_TRIES or all(low > -self._bound for _, low, _ in compared)
        return [] if self.settled else probes

    def evidence(self) -> Evidence | None:
        """The evidence so far, on the item on which it does best."""
        if not self._items or any(not self._samples.count(Probe(*item, self.setting)) for item in self._items):
            return None
        best = min(self._items, key=self._compared)
        ratio, low, high = map(math.exp, self._compared(best))
        runs = self._samples.count(Probe(*best, self.setting))
        return Evidence(_name(self.setting), ratio, low, high, runs, self.better)

    def _compared(self, item: tuple[int, int]) -> tuple[float, float, float]:
        """The logarithm of an item's time over that by default, and the ends of its interval."""
        log_ratio, error = self._samples.ratio(Probe(*item, self.setting), Probe(*item, self._default))
        return log_ratio, log_ratio - _DEVIATIONS * error, log_ratio + _DEVIATIONS * error


def _name(setting: Setting) -> str:
    sides = (("UNet", setting.unet_threads), ("VAE", setting.vae_threads))
    return "threads: " + " + ".join(f"{side} {count}" for side, count in sides if count)


class Grid:
    """Items of one setting: some row counts, each beside the same decode counts ([0] for a side without a part). It
    covers the axes that were measured whole, and is to get as far as `rows` and `decodes`."""

    def __init__(self, setting: Setting, rows: Iterable[int], decodes: Iterable[int]) -> None:
        self.setting = setting
        self.rows: tuple[int, ...] = tuple(sorted(set(rows)))
        self.decodes: tuple[int, ...] = tuple(sorted(set(decodes)))
        self._covered: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def grow(self, rows: Iterable[int] = (), decodes: Iterable[int] = ()) -> None:
        """Have these on its axes as well."""
        self.rows = tuple(sorted({*self.rows, *rows}))
        self.decodes = tuple(sorted({*self.decodes, *decodes}))

    @property
    def probes(self) -> list[Probe]:
        """Every item it is to have."""
        return [Probe(row, decode, self.setting) for row in self.rows for decode in self.decodes]

    def lacking(self, samples: Samples, runs: int) -> list[Probe]:
        """The items with fewer runs than that."""
        return [probe for probe in self.probes if samples.count(probe) < runs]

    def cells(self, samples: Samples) -> list[Cell]:
        """The cells it covers, with times that never fall from fewer rows or decodes to more."""
        if not self.lacking(samples, 1):
            self._covered = self.rows, self.decodes
        rows, decodes = self._covered
        if not rows or not decodes:
            return []
        probes = [Probe(row, decode, self.setting) for row in rows for decode in decodes]
        log_ms, covariance = samples.log_ms(probes)
        errors = np.sqrt(covariance.diagonal())
        ms = np.exp(_risen(log_ms.reshape(len(rows), len(decodes)))).ravel()
        return [samples.cell(*each) for each in zip(probes, map(float, ms), map(float, errors), strict=True)]


def _risen(log_ms: FloatArray) -> FloatArray:
    """Rising along both axes: the nearest along either in turns, then times that still fall are raised."""
    for _ in range(_SMOOTHINGS):
        log_ms = rising(log_ms.T, np.ones(log_ms.shape[0])).T
        log_ms = rising(log_ms, np.ones(log_ms.shape[1]))
    return np.maximum.accumulate(np.maximum.accumulate(log_ms, axis=0), axis=1)


class Stages:
    """The measuring of an extent. `bound`: see ProfileCourse."""

    def __init__(self, extent: Extent, bound: float, samples: Samples) -> None:
        self.extent = extent
        self.samples = samples
        self._bound = bound
        self._rungs = sorted({min(rung, extent.max_rows) for rung in LADDER}) if extent.max_rows > 1 else [1]
        doubled = sorted({min(2**k, extent.max_decodes) for k in range(extent.max_decodes.bit_length() + 1)})
        self.unet = Grid(extent.unet[0], self._rungs[:2], [0])
        self.vae = Grid(extent.vae[0], [0], doubled)
        self._beside = Grid(extent.beside[0], self._rungs[:1], doubled[:2])
        self._bands: list[Grid] = []
        self._tried = [
            (SettingTried(samples, setting, base.setting, bound), Grid(setting, [], []), base)
            for settings, base in ((extent.unet, self.unet), (extent.vae, self.vae), (extent.beside, self._beside))
            for setting in settings[1:]
        ]

    # ---- a rough profile

    def throughput(self) -> list[Probe]:
        """Climb the ladder of row counts as long as throughput grows."""
        if not self.unet.lacking(self.samples, 2) and self._grows():
            self.unet.grow([next(rung for rung in self._rungs if rung > self.unet.rows[-1])])
        new = self.unet.lacking(self.samples, 2)
        return self._with_neighbours(new) or self.unet.lacking(self.samples, _ROUGH + 1)

    def _with_neighbours(self, new: list[Probe]) -> list[Probe]:
        """Items of the curve, with those next to them to compare them with."""
        line = self.unet.probes
        return [probe for k, probe in enumerate(line) if set(line[max(0, k - 1) : k + 2]) & set(new)]

    def _grows(self) -> bool:
        """Whether there is a further rung, and one of the last two may have more throughput than all before."""
        rows = self.unet.rows
        if rows[-1] >= self._rungs[-1] or len(rows) < 3:
            return rows[-1] < self._rungs[-1]
        log_ms, _ = self.samples.log_ms(self.unet.probes)
        throughput = np.log(rows) - log_ms
        best, last = int(np.argmax(throughput[:-2])), len(rows) - 2 + int(np.argmax(throughput[-2:]))
        _, error = self.samples.ratio(self.unet.probes[last], self.unet.probes[best])
        return bool(throughput[last] - throughput[best] + error > _GROWTH)

    def rough_decodes(self) -> list[Probe]:
        """Decodes alone."""
        return self.vae.lacking(self.samples, _ROUGH)

    def rough_beside(self) -> list[Probe]:
        """One and two decodes beside few rows and beside as many as the knee."""
        self._beside.grow([self._knee_rung()])
        return self._beside.lacking(self.samples, _ROUGH)

    # ---- the knee

    def knee(self) -> list[Probe]:
        """The items that decide where the knee is, until that is sure; more row counts around it."""
        curve = self.curve()
        knee = curve.knee(KNEE_WITHIN)
        sure = knee.error <= self._bound or knee.high - knee.low <= max(_NEAR_ROWS, _NEAR_SHARE * knee.rows)
        best = int(curve.counts[np.argmax(curve.throughput)])
        rows = self.unet.rows
        between = [
            min(max(2 * round(math.sqrt(low * high) / 2), low + 1), high - 1)  # even, near their geometric mean
            for low, high in pairwise(rows)
            if high - low > max(_NEAR_ROWS, _NEAR_SHARE * low) and (low < knee.rows <= high or best in (low, high))
        ]
        if between:
            self.unet.grow(between[:1])
            return self._with_neighbours(self.unet.lacking(self.samples, 1))
        near = curve.near_best(KNEE_WITHIN) >= _CONTENDS
        contend = {int(count) for count, is_near in zip(curve.counts, near, strict=True) if is_near}
        contend |= {low for low, high in pairwise(rows) if high in contend}
        wanted = [probe for probe in self.unet.probes if probe.rows in contend]
        if sure:
            return [probe for probe in wanted if self.samples.count(probe) < _FAIR]
        return [probe for probe in wanted if self.samples.count(probe) < _MOST]

    def curve(self) -> Curve:
        """Time over rows, steps alone, as known by now."""
        probes = [probe for probe in self.unet.probes if self.samples.count(probe)]
        return Curve(np.array([probe.rows for probe in probes], dtype=np.float64), *self.samples.log_ms(probes))

    def _knee_rung(self) -> int:
        """The rung of the ladder that is nearest to the knee."""
        knee = self.curve().knee(KNEE_WITHIN).rows
        return min(set(self.unet.rows) & set(self._rungs), key=lambda rows: (abs(math.log(rows / knee)), rows))

    # ---- the rest

    def fair_decodes(self) -> list[Probe]:
        """Decodes alone, more surely."""
        return self._fair(self.vae)

    def fair_beside(self) -> list[Probe]:
        """Both beside each other, as far as items are to get."""
        most = self.curve().knee(LEVEL_WITHIN).rows
        knee = self._knee_rung()
        at_knee = max(rows for rows in self._beside.rows if rows <= knee)
        self._beside.grow(
            [rows for rows in self.unet.rows if rows in self._rungs and rows <= most] + [min(most, self.unet.rows[-1])],
            self._more_decodes(at_knee),
        )
        return self._fair(self._beside)

    def _more_decodes(self, rows: int) -> list[int]:
        """The next count of decodes, where the most so far do not make an item too long yet."""
        last = Probe(rows, self._beside.decodes[-1], self._beside.setting)
        more = [decodes for decodes in self.vae.decodes if decodes > last.decodes][:1]
        if not more or not self.samples.count(last):
            return []
        log_ratio, _ = self.samples.ratio(last, Probe(rows, 0, self.unet.setting))
        return more if log_ratio < math.log(LONGEST_ITEM) else []

    def other_settings(self) -> list[Probe]:
        """Other threads than by default: first whether they are better anywhere, then where."""
        knee = self._knee_rung()
        few = self.vae.decodes[:2]
        for tried, grid, base in self._tried:
            items = [(base.rows[-1], n) for n in few] if base.decodes[-1] else [(knee, 0), (self._rungs[0], 0)]
            wanted = tried.wanted(items)
            if not wanted and tried.better:
                grid.grow(base.rows, base.decodes)
                wanted = self._fair(grid)
            if wanted:
                return wanted
        return []

    def cut_decodes(self) -> list[Probe]:
        """Decodes in bands, where a decode is longer than the steps it stands beside."""
        steps, decode = Probe(self._knee_rung(), 0, self.unet.setting), Probe(0, 1, self.vae.setting)
        if self.samples.ratio(decode, steps)[0] <= 0:
            return []
        if not self._bands:
            self._bands = [
                Grid(base.setting._replace(chunks=count), [], [])
                for count in self.extent.bands
                for base in (self.vae, self._beside)
            ]
        wanted = []
        for grid, base in zip(self._bands, [self.vae, self._beside] * len(self.extent.bands), strict=True):
            grid.grow(base.rows, base.decodes)
            wanted += grid.lacking(self.samples, _ROUGH + 1)
        return wanted

    def _fair(self, grid: Grid) -> list[Probe]:
        """Those with few runs; of the others those that are not sure, up to a number."""
        few = grid.lacking(self.samples, _FAIR)
        if few:
            return few
        errors = np.sqrt(self.samples.log_ms(grid.probes)[1].diagonal())
        unsure = {probe for probe, error in zip(grid.probes, errors, strict=True) if error > self._bound}
        return [probe for probe in grid.lacking(self.samples, _FULL) if probe in unsure]

    # ---- results

    def cells(self) -> tuple[Cell, ...]:
        """The measurements, as whole grids."""
        grids = [self.unet, self.vae, self._beside, *self._bands]
        grids += [grid for tried, grid, _ in self._tried if tried.better]
        return tuple(cell for grid in grids for cell in grid.cells(self.samples))

    def evidence(self) -> tuple[Evidence, ...]:
        """Why the settings are as they are."""
        return tuple(found for tried, _, _ in self._tried if (found := tried.evidence()))

    def limited(self, rows: int, decodes: int) -> "Stages":
        """The same with smaller items at most. The runs of those stay."""
        self.samples.drop(probe for probe in self.samples.probes if probe.rows > rows or probe.decodes > decodes)
        return Stages(replace(self.extent, max_rows=rows, max_decodes=decodes), self._bound, self.samples)
