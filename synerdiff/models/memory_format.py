"""The best layout of convolution weights on this device: measured at a worker's start, in a fraction of a second.

On a GPU channels_last is no safe guess, though tensor cores want it: torch's CUDA GroupNorm answers in NCHW for any
input (ATen's native/group_norm.cpp), so each norm and the convolution behind it pay two transposes. Only a measurement
shows the remaining gain; it has never been measured on a GPU.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from synerdiff.models.device import Device, Fault, fault_of

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"

_FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}
_BUDGET_S = 2.0
_MOST_PAIRS, _LEAST_PAIRS = 6, 3
# Channels-last weights have to be faster by this much: noise could cause a smaller gain.
_PAYS = 0.97


@dataclass(frozen=True)
class FormatChoice:
    """The format that the weights are in now. `ratio`: time of a call with channels-last weights over that with
    contiguous ones, the median of `pairs` neighbouring calls; 1 where there was no time, or memory, for enough.
    """

    name: str
    ratio: float
    pairs: int


def settle_memory_format(model: Any, call: Callable[[int], object], device: Device, typical: int) -> FormatChoice:
    """Leave the weights of `model` in the format in which `call`, which computes with it, is faster.

    `call` takes a batch size; calls of `typical` are compared. The formats take turns at going first, so that other
    load of the machine affects both; the first pair, each format's first call, does not count. A model whose calls
    are too slow to be compared in time keeps contiguous weights. Where memory does not suffice, smaller batches
    are compared. Raises a call's other errors.
    """
    ratios = _compared(model, call, device, typical)
    compared = len(ratios) >= _LEAST_PAIRS
    pays = compared and max(ratios) < 1 and statistics.median(ratios) < _PAYS
    chosen = CHANNELS_LAST if pays else CONTIGUOUS
    model.to(memory_format=_FORMATS[chosen])
    return FormatChoice(chosen, round(statistics.median(ratios), 3) if compared else 1.0, len(ratios))


def _compared(model: Any, call: Callable[[int], object], device: Device, size: int) -> list[float]:
    """`_ratios` at the first of `size`, half of it, ... that memory suffices for; none where a call is too slow."""
    while size:
        try:
            return [] if _is_slow(model, call, device, size) else _ratios(model, partial(call, size), device)
        except Exception as error:
            if fault_of(error) is not Fault.OUT_OF_MEMORY:
                raise
        device.free_caches()  # here the failed call's activations are gone
        size //= 2
    return []


def _is_slow(model: Any, call: Callable[[int], object], device: Device, typical: int) -> bool:
    """Whether a typical call may take the whole budget, by the smallest's time: its second, as the first is slow."""
    one_s = _seconds(model, CONTIGUOUS, lambda: call(1), device)
    if one_s < _BUDGET_S:
        one_s = min(one_s, _seconds(model, CONTIGUOUS, lambda: call(1), device))
    return one_s * typical > _BUDGET_S


def _ratios(model: Any, call: Callable[[], object], device: Device) -> list[float]:
    """Time with channels-last over time with contiguous weights, of as many pairs as the budget has room for."""
    give_up_at, ratios = time.monotonic() + _BUDGET_S, list[float]()
    for place in range(_MOST_PAIRS + 1):
        began = time.monotonic()
        order = (CONTIGUOUS, CHANNELS_LAST) if place % 2 else (CHANNELS_LAST, CONTIGUOUS)
        taken_s = {name: _seconds(model, name, call, device) for name in order}
        if place:
            ratios.append(taken_s[CHANNELS_LAST] / taken_s[CONTIGUOUS])
        if 2 * time.monotonic() - began > give_up_at:
            break
    return ratios


def _seconds(model: Any, name: str, call: Callable[[], object], device: Device) -> float:
    """Seconds of a call: on a CPU this process's CPU time, since another worker may be starting beside it.

    On other devices by the device's own clock, from the end of the reordering of weights. Kernels are launched one by
    one there, as no graph is captured yet.
    """
    model.to(memory_format=_FORMATS[name])
    if device.torch_device.type == "cpu":
        started_s = time.process_time()
        call()
        return time.process_time() - started_s
    timeline = device.timeline()
    start = timeline.mark()
    call()
    end = timeline.mark()
    return (timeline.unix_ns(end) - timeline.unix_ns(start)) / 1e9
