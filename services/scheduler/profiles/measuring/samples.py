"""The runs of a profile's items, and the times that follow from them. Pure."""

from collections.abc import Iterable, Sequence
from math import log
from statistics import median

import numpy as np

from services.scheduler.profiles.measuring.curve import FloatArray
from services.scheduler.profiles.measuring.relative_times import RelativeTimes, relative_times
from services.scheduler.profiles.measuring.rounds import Footprint, Probe, Run
from synerdiff.profiles import Cell

QUIET = 0.1  # the share of runs that had the machine at its fastest: times are those of such a phase


class Samples:
    """Runs in the order in which they were made. What follows from them is worked out once it is asked for."""

    def __init__(self) -> None:
        self._runs: dict[Probe, list[Run]] = {}
        self._places: dict[Probe, int] = {}
        self._pairs: list[tuple[int, int]] = []
        self._log_ratios: list[float] = []
        self.footprints: dict[Probe, Footprint] = {}
        self._fit: RelativeTimes | None = None
        self._quiet = 0.0

    def add(self, runs: Iterable[Run], after: Run | None = None) -> Run | None:
        """Take runs in order. `after`: the one right before the first, if there was one; returns the last."""
        for run in runs:
            self._runs.setdefault(run.probe, []).append(run)
            place = self._places.setdefault(run.probe, len(self._places))
            if after and after.probe != run.probe:
                self._pairs.append((self._places[after.probe], place))
                self._log_ratios.append(log(run.ms / after.ms))
            after, self._fit = run, None
        return after

    def drop(self, probes: Iterable[Probe]) -> None:
        """No such items any more. What their runs say of the others stays."""
        for probe in probes:
            self._runs.pop(probe, None)

    @property
    def probes(self) -> Sequence[Probe]:
        """Items with runs."""
        return list(self._runs)

    def count(self, probe: Probe) -> int:
        """Runs of an item."""
        return len(self._runs.get(probe, ()))

    def ms(self, probe: Probe) -> float:
        """About how long an item takes, whatever the phase: for plans of what to measure. 0 if it was never run."""
        runs = self._runs.get(probe)
        return median(run.ms for run in runs[-5:]) if runs else 0.0

    def log_ms(self, probes: Sequence[Probe]) -> tuple[FloatArray, FloatArray]:
        """Logarithms of times in a quiet phase [n], and the covariance [n, n] of errors, but for what all share."""
        fit, places = self._fitted(), [self._places[probe] for probe in probes]
        return fit.log_ms[places] + self._quiet, fit.covariance[np.ix_(places, places)]

    def ratio(self, one: Probe, other: Probe) -> tuple[float, float]:
        """Logarithm of the time of one item over that of another, and its standard error."""
        log_ms, covariance = self.log_ms((one, other))
        return float(log_ms[0] - log_ms[1]), RelativeTimes(log_ms, covariance).error(0, 1)

    def phases(self) -> tuple[float, float]:
        """The tenth and the ninetieth percentile of how many times longer runs took than in a quiet phase."""
        self._fitted()
        slower = np.exp(self._slower() - self._quiet)
        return float(np.quantile(slower, 0.1)), float(np.quantile(slower, 0.9))

    def cell(self, probe: Probe, quiet_ms: float, error: float) -> Cell:
        """An item as a cell of a profile. Times are rounded to the microsecond."""
        runs = self._runs[probe]
        middle = round(quiet_ms, 3)
        held = self.footprints.get(probe, Footprint())
        return Cell(
            rows=probe.rows,
            decodes=probe.decodes,
            median_ms=middle,
            p90_ms=max(middle, round(float(np.quantile([run.ms for run in runs], 0.9)), 3)),
            setting=probe.setting,
            unet_ms=round(middle * median(run.unet_ms / run.ms for run in runs), 3),
            vae_ms=round(middle * median(run.vae_ms / run.ms for run in runs), 3),
            peak_bytes=held.both_bytes,
            samples=len(runs),
            unet_bytes=held.unet_bytes,
            vae_bytes=held.vae_bytes,
            error=round(error, 4),
        )

    def _fitted(self) -> RelativeTimes:
        if self._fit is None:
            self._fit = relative_times(len(self._places), self._pairs, self._log_ratios)
            self._quiet = float(np.quantile(self._slower(), QUIET))
        return self._fit

    def _slower(self) -> FloatArray:
        """Of every run the logarithm of its time less that of its item."""
        assert self._fit is not None
        return np.array(
            [log(run.ms) - self._fit.log_ms[self._places[probe]] for probe, runs in self._runs.items() for run in runs]
        )
