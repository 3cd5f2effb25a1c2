"""The runs of a profile's items, and how long items take by them, on a machine whose speed swings. Pure.

A machine's own speed comes in phases of seconds, so only runs that are neighbours in time can be compared.
Each pair of neighbours gives one ratio; the times are those that agree best with all ratios. A change of phase, or a
run that something else held up, spoils the ratios beside it and no others: those count for less, or for nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.scheduler.profiles.measuring.rounds import Footprint, Probe, Run
from synerdiff.profiles import Cell

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

QUIET = 0.1  # the share of runs that had the machine at its fastest: times are those of such a phase
_DRAWS = 400
_ROUNDS = 12
_BOUNDED, _LEFT_OUT = 1.345, 4.685  # spreads off from where a ratio pulls no harder (Huber), and not at all (Tukey)
_MAD_TO_DEVIATION = 1.4826
_LEAST_SPREAD = 0.002  # clocks are no better


def rising(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The rising sequences that are nearest to `values` [..., n] by least squares with `weights` [n]. By the formula of
    minima and maxima: each value is the largest over its starts of the least mean over its ends."""
    n = values.shape[-1]
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values * weights, axis=-1)], axis=-1)
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    starts, ends = np.arange(n)[:, None], np.arange(1, n + 1)[None, :]
    size = np.where(ends > starts, mass[ends] - mass[starts], 1.0)
    means = (sums[..., ends] - sums[..., starts]) / size  # [..., start, end]
    means = np.where(ends > starts, means, np.inf)
    least = np.flip(np.minimum.accumulate(np.flip(means, -1), axis=-1), -1)  # over ends from each on
    largest = np.maximum.accumulate(np.where(ends > starts, least, -np.inf), axis=-2)  # over starts up to each
    return np.asarray(largest[..., np.arange(n), np.arange(n)])


class Knee(NamedTuple):
    """The fewest rows whose throughput is within some share of the best, between `low` and `high` at 95 %. `error`:
    half of the interval, at 95 %, of that throughput relative to the best."""

    rows: int
    low: int
    high: int
    error: float


@dataclass(frozen=True)
class Curve:
    """Times over batch sizes: logarithms `log_ms` [n] at ascending `sizes` [n], errors with `covariance` [n, n].

    The constant of the logarithms may be any. Between sizes, times are interpolated linearly; knees are multiples of
    `step`.
    """

    sizes: FloatArray
    log_ms: FloatArray
    covariance: FloatArray
    step: int = 2

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """The batch sizes that a knee may be at."""
        counts = np.arange(self.step, int(self.sizes[-1]) + 1, self.step)
        return counts if len(counts) else self.sizes.astype(np.int64)

    @cached_property
    def throughput(self) -> FloatArray:
        """At `counts`, relative to the best."""
        throughput: FloatArray = self._throughput(self.log_ms[None, :])[0]
        return throughput / float(throughput.max())

    @cached_property
    def drawn(self) -> FloatArray:
        """As `throughput`, drawn from its errors: [draws, counts]."""
        values, vectors = np.linalg.eigh(self.covariance)
        source = np.random.default_rng(1).standard_normal((_DRAWS, len(self.sizes)))
        log_ms = self.log_ms + source * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
        throughput = self._throughput(log_ms)
        return np.asarray(throughput / throughput.max(axis=1, keepdims=True))

    def knee(self, within: float = 0.05) -> Knee:
        """Where throughput is within that share of the best."""
        rows, knees = self._fewest(self.throughput[None, :], within)[0], self._fewest(self.drawn, within)
        low, high = np.quantile(knees, (0.025, 0.975), method="closest_observation")
        off = self.drawn[:, np.searchsorted(self.counts, rows)] - self.throughput[np.searchsorted(self.counts, rows)]
        return Knee(int(rows), int(low), int(high), float(1.96 * np.sqrt(np.mean(off**2))))

    def near_best(self, within: float) -> FloatArray:
        """How likely the throughput of each of `counts` is within that share of the best."""
        return np.asarray(np.mean(self.drawn >= 1 - within, axis=0, dtype=np.float64))

    def _fewest(self, throughput: FloatArray, within: float) -> NDArray[np.int64]:
        return np.asarray(self.counts[np.argmax(throughput >= 1 - within, axis=1)])

    def _throughput(self, log_ms: FloatArray) -> FloatArray:
        weights = 1 / np.maximum(np.diag(self.covariance), 1e-12)
        ms = np.exp(rising(log_ms, weights))
        interpolated: FloatArray = np.array([np.interp(self.counts, self.sizes, each) for each in ms])
        return self.counts / interpolated


class RelativeTimes(NamedTuple):
    """Logarithms of times [items] up to a constant that all share, and the covariance [items, items] of their errors.
    An item without a ratio has an infinite variance."""

    log_ms: FloatArray
    covariance: FloatArray

    def error(self, one: int, other: int) -> float:
        """Standard error of the difference of two logarithms."""
        variance = self.covariance[one, one] + self.covariance[other, other] - 2 * self.covariance[one, other]
        return float(np.sqrt(max(0.0, variance)))


def relative_times(items: int, pairs: Sequence[tuple[int, int]], log_ratios: Sequence[float]) -> RelativeTimes:
    """Times of `items` items by ratios of neighbours: of pair (a, b) the logarithm of b's time over a's. Errors count
    each ratio half, since a run has two neighbours and is in two ratios."""
    if not pairs:
        return RelativeTimes(np.zeros(items), np.diag(np.full(items, np.inf)))
    ends, ratios = np.array(pairs, dtype=np.int64), np.array(log_ratios, dtype=np.float64)
    weights = np.ones(len(ratios))
    # Fixes the constant that is free, too weakly to move anything else.
    anchor = np.full((items, items), 1e-6 / items) + np.diag(np.full(items, 1e-9))
    for number in range(_ROUNDS):
        anchored = _laplacian(items, ends, weights) + anchor
        log_ms = np.linalg.solve(anchored, _pull(items, ends, ratios * weights))
        off = np.abs(ratios - log_ms[ends[:, 1]] + log_ms[ends[:, 0]])
        spread = _spread(off, items)
        weights = _weights(off / spread, bounded=number < _ROUNDS // 2)
    return RelativeTimes(np.array(log_ms, dtype=np.float64), _covariance(_laplacian(items, ends, weights), spread))


def _weights(off: FloatArray, bounded: bool) -> FloatArray:
    """Of ratios so many spreads off. A bounded pull leads to the one best solution, from which to leave out."""
    if bounded:
        return np.array(np.minimum(1.0, _BOUNDED / np.maximum(off, 1e-9)))
    return np.asarray(np.maximum(1e-6, np.maximum(0.0, 1 - (off / _LEFT_OUT) ** 2) ** 2))


def _spread(off: FloatArray, items: int) -> float:
    """The deviation of one ratio, corrected for the degrees of freedom that the fit of the items takes."""
    free = max(1, len(off) - items + 1) / len(off)
    return max(_LEAST_SPREAD, _MAD_TO_DEVIATION * float(np.median(off)) / float(np.sqrt(free)))


def _laplacian(items: int, ends: IntArray, weights: FloatArray) -> FloatArray:
    matrix = np.zeros((items, items))
    np.add.at(matrix, (ends[:, 0], ends[:, 1]), -weights)
    matrix += matrix.T
    np.fill_diagonal(matrix, matrix.diagonal() - matrix.sum(axis=1))
    return matrix


def _pull(items: int, ends: IntArray, weighted: FloatArray) -> FloatArray:
    pull = np.zeros(items)
    np.add.at(pull, ends[:, 1], weighted)
    np.add.at(pull, ends[:, 0], -weighted)
    return pull


def _covariance(laplacian: FloatArray, spread: float) -> FloatArray:
    """Of times by ratios that each have this spread."""
    joined = laplacian.diagonal() > 0
    covariance = np.diag(np.where(joined, 0.0, np.inf))
    inner = np.ix_(joined, joined)
    covariance[inner] = 2 * spread**2 * np.linalg.pinv(laplacian[inner], hermitian=True)
    return covariance


class Samples:
    """Runs in the order in which they were made. Times are computed from them on request."""

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
        """Forget such items. The ratios of their runs to others stay."""
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
        """About how long an item takes, in any phase, for plans of the measuring. 0 if it never ran."""
        runs = self._runs.get(probe)
        return median(run.ms for run in runs[-5:]) if runs else 0.0

    def log_ms(self, probes: Sequence[Probe]) -> tuple[FloatArray, FloatArray]:
        """Logarithms of times in a quiet phase [n], and the covariance [n, n] of errors but the one that all share."""
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
