"""The grids of a profile while it is measured: rectangular at any time, and growing. Pure."""

from collections.abc import Iterable

import numpy as np

from services.scheduler.profiles.measuring.curve import FloatArray, rising
from services.scheduler.profiles.measuring.rounds import Probe
from services.scheduler.profiles.measuring.samples import Samples
from synerdiff.profiles import Cell, Setting

_SMOOTHINGS = 5


class Grid:
    """Items of one setting: some row counts, each beside the same decode counts ([0] for a side without a part).

    It `covers` what was measured whole, and is to get as far as `rows` and `decodes`.
    """

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
        """What it covers, with times that never fall from fewer rows or decodes to more."""
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
    """Rising along both axes: the nearest along either in turns, then what still falls is raised."""
    for _ in range(_SMOOTHINGS):
        log_ms = rising(log_ms.T, np.ones(log_ms.shape[0])).T
        log_ms = rising(log_ms, np.ones(log_ms.shape[1]))
    return np.maximum.accumulate(np.maximum.accumulate(log_ms, axis=0), axis=1)
