"""How long items take relative to each other, from runs one after the other on a machine whose speed swings. Pure.

A machine's own speed comes in phases of seconds, so only runs that are neighbours in time say something of each other.
Each pair of neighbours gives one ratio; the times are those that agree best with all ratios. A change of phase, or a
run that something else held up, spoils the ratios beside it and no others: those count for less, or for nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.scheduler.profiles.measuring.curve import FloatArray

IntArray = NDArray[np.int64]

_ROUNDS = 12
_BOUNDED, _LEFT_OUT = 1.345, 4.685  # spreads off from where a ratio pulls no harder (Huber), and not at all (Tukey)
_MAD_TO_DEVIATION = 1.4826
_LEAST_SPREAD = 0.002  # clocks are no better


class RelativeTimes(NamedTuple):
    """Logarithms of times [items] up to a constant that all share, and the covariance [items, items] of their errors.

    An item without a ratio has an infinite variance.
    """

    log_ms: FloatArray
    covariance: FloatArray

    def error(self, one: int, other: int) -> float:
        """Standard error of the difference of two logarithms."""
        variance = self.covariance[one, one] + self.covariance[other, other] - 2 * self.covariance[one, other]
        return float(np.sqrt(max(0.0, variance)))


def relative_times(items: int, pairs: Sequence[tuple[int, int]], log_ratios: Sequence[float]) -> RelativeTimes:
    """Times of `items` items by ratios of neighbours: of pair (a, b) the logarithm of b's time over a's.

    Errors count each ratio half, since a run has two neighbours and is in two ratios.
    """
    if not pairs:
        return RelativeTimes(np.zeros(items), np.diag(np.full(items, np.inf)))
    ends, ratios = np.array(pairs, dtype=np.int64), np.array(log_ratios, dtype=np.float64)
    weights = np.ones(len(ratios))
    for number in range(_ROUNDS):
        anchored = _laplacian(items, ends, weights) + _anchor(items)
        log_ms = np.linalg.solve(anchored, _pull(items, ends, ratios * weights))
        off = np.abs(ratios - log_ms[ends[:, 1]] + log_ms[ends[:, 0]])
        spread = _spread(off, items)
        weights = _weights(off / spread, bounded=number < _ROUNDS // 2)
    return RelativeTimes(np.array(log_ms, dtype=np.float64), _covariance(_laplacian(items, ends, weights), spread))


def _weights(off: FloatArray, bounded: bool) -> FloatArray:
    """Of ratios so many spreads off. A pull that is bounded leads to the one best solution, from which to leave out."""
    if bounded:
        return np.array(np.minimum(1.0, _BOUNDED / np.maximum(off, 1e-9)))
    weights: FloatArray = np.maximum(1e-6, np.maximum(0.0, 1 - (off / _LEFT_OUT) ** 2) ** 2)
    return weights


def _spread(off: FloatArray, items: int) -> float:
    """The deviation of one ratio, given that as many ratios as there are differences to find fit whatever they are."""
    free = max(1, len(off) - items + 1) / len(off)
    return max(_LEAST_SPREAD, _MAD_TO_DEVIATION * float(np.median(off)) / float(np.sqrt(free)))


def _laplacian(items: int, ends: IntArray, weights: FloatArray) -> FloatArray:
    matrix = np.zeros((items, items))
    np.add.at(matrix, (ends[:, 0], ends[:, 1]), -weights)
    matrix += matrix.T
    np.fill_diagonal(matrix, matrix.diagonal() - matrix.sum(axis=1))
    return matrix


def _anchor(items: int) -> FloatArray:
    """Fixes the constant that is free, too weakly to move anything else."""
    return np.full((items, items), 1e-6 / items) + np.diag(np.full(items, 1e-9))


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
