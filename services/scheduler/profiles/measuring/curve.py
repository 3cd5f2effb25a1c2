"""Throughput over batch size: times that rise, the knee, and how sure it is. Pure: it knows of no profile or worker."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_DRAWS = 400


def rising(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The rising sequences that are nearest to `values` [..., n] by least squares with `weights` [n].

    By the formula of minima and maxima: each value is the largest over its starts of the least mean over its ends.
    """
    n = values.shape[-1]
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values * weights, axis=-1)], axis=-1)
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    starts, ends = np.arange(n)[:, None], np.arange(1, n + 1)[None, :]
    size = np.where(ends > starts, mass[ends] - mass[starts], 1.0)
    means = (sums[..., ends] - sums[..., starts]) / size  # [..., start, end]
    means = np.where(ends > starts, means, np.inf)
    least = np.flip(np.minimum.accumulate(np.flip(means, -1), axis=-1), -1)  # over ends from each on
    largest = np.maximum.accumulate(np.where(ends > starts, least, -np.inf), axis=-2)  # over starts up to each
    risen: FloatArray = largest[..., np.arange(n), np.arange(n)]
    return risen


class Knee(NamedTuple):
    """The fewest rows whose throughput is within some share of the best, between `low` and `high` at 95 %.

    `error`: half of the interval, at 95 %, of that throughput relative to the best.
    """

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
        """As `throughput`, as it may be too: [draws, counts]."""
        values, vectors = np.linalg.eigh(self.covariance)
        source = np.random.default_rng(1).standard_normal((_DRAWS, len(self.sizes)))
        log_ms = self.log_ms + source * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
        throughput = self._throughput(log_ms)
        relative: FloatArray = throughput / throughput.max(axis=1, keepdims=True)
        return relative

    def knee(self, within: float = 0.05) -> Knee:
        """Where throughput is within that share of the best."""
        rows, knees = self._fewest(self.throughput[None, :], within)[0], self._fewest(self.drawn, within)
        low, high = np.quantile(knees, (0.025, 0.975), method="closest_observation")
        off = self.drawn[:, np.searchsorted(self.counts, rows)] - self.throughput[np.searchsorted(self.counts, rows)]
        return Knee(int(rows), int(low), int(high), float(1.96 * np.sqrt(np.mean(off**2))))

    def near_best(self, within: float) -> FloatArray:
        """How likely the throughput of each of `counts` is within that share of the best."""
        shares: FloatArray = np.mean(self.drawn >= 1 - within, axis=0, dtype=np.float64)
        return shares

    def _fewest(self, throughput: FloatArray, within: float) -> NDArray[np.int64]:
        knees: NDArray[np.int64] = self.counts[np.argmax(throughput >= 1 - within, axis=1)]
        return knees

    def _throughput(self, log_ms: FloatArray) -> FloatArray:
        weights = 1 / np.maximum(np.diag(self.covariance), 1e-12)
        ms = np.exp(rising(log_ms, weights))
        interpolated: FloatArray = np.array([np.interp(self.counts, self.sizes, each) for each in ms])
        return self.counts / interpolated
