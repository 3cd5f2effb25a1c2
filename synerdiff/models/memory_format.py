"""How the weights of convolutions lie best on this device: measured when a worker starts, in a fraction of a second."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from synerdiff.models.device import Device

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"

_FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}
_BUDGET_S = 2.0
_MOST_PAIRS = 4
# Channels-last weights have to be faster by this much: less is not worth a choice that noise could make.
_PAYS = 0.97


@dataclass(frozen=True)
class FormatChoice:
    """The format that the weights are in now. `ratio`: time of a call with channels-last weights over that with
    contiguous ones, the median of `pairs` neighbouring calls; 1 where there was no time for any.
    """

    name: str
    ratio: float
    pairs: int


def settle_memory_format(model: Any, call: Callable[[int], object], device: Device, typical: int) -> FormatChoice:
    """Leave the weights of `model` in the format in which `call`, which computes with it, is faster.

    `call` takes a batch size: one of 1 says how long one of `typical` may take, and `typical` is compared. The formats
    take turns, so that what else the machine does meets both. A model whose calls are too slow to be compared in time
    keeps contiguous weights.
    """
    expected_s = typical * _seconds_of_one(model, call, device)
    pairs = min(_MOST_PAIRS, int(_BUDGET_S / (2 * expected_s)))
    ratios: list[float] = []
    for _ in range(pairs):
        contiguous_s = _seconds(model, CONTIGUOUS, lambda: call(typical), device)
        ratios.append(_seconds(model, CHANNELS_LAST, lambda: call(typical), device) / contiguous_s)
    pays = bool(ratios) and max(ratios) < 1 and statistics.median(ratios) < _PAYS
    chosen = CHANNELS_LAST if pays else CONTIGUOUS
    model.to(memory_format=_FORMATS[chosen])
    return FormatChoice(chosen, round(statistics.median(ratios), 3) if ratios else 1.0, len(ratios))


def _seconds_of_one(model: Any, call: Callable[[int], object], device: Device) -> float:
    """Of a second call, if the first has left time for it: the first of a process takes longer than any other."""
    first_s = _seconds(model, CONTIGUOUS, lambda: call(1), device)
    return first_s if first_s > _BUDGET_S else _seconds(model, CONTIGUOUS, lambda: call(1), device)


def _seconds(model: Any, name: str, call: Callable[[], object], device: Device) -> float:
    model.to(memory_format=_FORMATS[name])
    started = time.perf_counter()
    call()
    timeline = device.timeline()
    timeline.wait(timeline.mark())
    return time.perf_counter() - started
