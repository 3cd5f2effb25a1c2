"""How weights lie: by a clock that only calls move, so that what is chosen is what the times say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from synerdiff.models import memory_format
from synerdiff.models.device.contract import Mark, Timeline
from synerdiff.models.device.cpu import CpuDevice
from synerdiff.models.memory_format import FormatChoice, settle_memory_format
from tests.synerdiff.models.fake_gpu import FakeGpu
from tests.waiting import VirtualTime

TYPICAL = 16
BUDGET_S = 2.0

Seconds = Callable[[int], float]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    clock = VirtualTime()
    monkeypatch.setattr(memory_format, "time", clock)
    return clock


class Model:
    """A convolution whose calls take as long as they are told, and which formats and batches they had."""

    def __init__(self, clock: VirtualTime, contiguous: Seconds, channels_last: Seconds) -> None:
        self.module: Any = nn.Conv2d(4, 4, 3)
        self.calls: list[tuple[str, int]] = []
        self._clock = clock
        self._seconds = {"contiguous": contiguous, "channels_last": channels_last}

    @property
    def format(self) -> str:
        lies: Callable[..., bool] = self.module.weight.is_contiguous
        return "channels_last" if lies(memory_format=torch.channels_last) else "contiguous"

    def __call__(self, rows: int) -> None:
        self.calls.append((self.format, rows))
        self._clock.sleep(self._seconds[self.format](rows))

    def settle(self) -> FormatChoice:
        return settle_memory_format(self.module, self, CpuDevice(), TYPICAL)


def a_row(seconds: float) -> Seconds:
    return lambda rows: rows * seconds


def in_turn(*seconds: float) -> Seconds:
    left = iter(seconds)
    return lambda _: next(left)


def test_weights_lie_as_they_are_faster(clock: VirtualTime) -> None:
    model = Model(clock, a_row(0.005), a_row(0.004))
    assert model.settle() == FormatChoice("channels_last", 0.8, 6)
    assert model.format == "channels_last"
    one, other = ("channels_last", TYPICAL), ("contiguous", TYPICAL)
    assert model.calls == [("contiguous", 1), ("contiguous", 1), one, other, *(other, one, one, other) * 3]


@pytest.mark.parametrize(("ratio", "chosen"), [(0.98, "contiguous"), (0.96, "channels_last"), (1.2, "contiguous")])
def test_channels_last_has_to_be_faster_by_three_percent(clock: VirtualTime, ratio: float, chosen: str) -> None:
    model = Model(clock, a_row(0.005), a_row(0.005 * ratio))
    assert model.settle() == FormatChoice(chosen, ratio, 6)
    assert model.format == chosen


def test_channels_last_has_to_be_faster_every_time(clock: VirtualTime) -> None:
    model = Model(clock, a_row(0.005), in_turn(0.04, 0.04, 0.04, 0.081, 0.04, 0.04, 0.04))
    assert model.settle() == FormatChoice("contiguous", 0.5, 6)
    assert model.format == "contiguous"


def test_weights_that_lay_otherwise_are_put_back(clock: VirtualTime) -> None:
    model = Model(clock, a_row(0.010), a_row(0.020))
    model.module.to(memory_format=torch.channels_last)
    model.settle()
    assert model.format == "contiguous"


@pytest.mark.parametrize("row_s", [0.001, 0.015, 0.02, 0.03, 0.06, 0.0624, 0.07, 0.5, 1.9, 30.0])
def test_it_takes_no_longer_than_its_budget_beside_the_first_calls(clock: VirtualTime, row_s: float) -> None:
    model = Model(clock, a_row(row_s), a_row(row_s))
    choice = model.settle()
    first_calls_s = row_s * sum(rows == 1 for _, rows in model.calls)
    # One pair is always made, of calls that by the smallest one's time fit into the budget.
    assert clock.now_s - first_calls_s <= max(BUDGET_S * 1.0001, 2 * TYPICAL * row_s if model.calls[2:] else 0)
    assert TYPICAL * row_s <= BUDGET_S or not model.calls[2:]
    assert choice.pairs <= 6


def test_a_model_that_is_too_slow_to_compare_keeps_contiguous_weights(clock: VirtualTime) -> None:
    model = Model(clock, a_row(0.1), a_row(0.01))
    model.module.to(memory_format=torch.channels_last)
    assert model.settle() == FormatChoice("contiguous", 1.0, 0)
    assert model.format == "contiguous"


def test_a_slow_first_call_says_nothing_of_the_others(clock: VirtualTime) -> None:
    first = in_turn(1.9)
    later = a_row(0.01)
    model = Model(clock, lambda rows: first(rows) if not model.calls[1:] else later(rows), a_row(0.008))
    assert model.settle() == FormatChoice("channels_last", 0.8, 5)


def test_the_first_pair_does_not_count(clock: VirtualTime) -> None:
    model = Model(clock, in_turn(0.005, 0.005, 0.9, *[0.05] * 6), in_turn(0.01, *[0.06] * 6))
    assert model.settle() == FormatChoice("contiguous", 1.2, 6)


def test_few_pairs_decide_nothing(clock: VirtualTime) -> None:
    assert Model(clock, a_row(0.02), a_row(0.01)).settle().name == "channels_last"
    assert Model(clock, a_row(0.04), a_row(0.02)).settle() == FormatChoice("contiguous", 1.0, 1)


@dataclass(frozen=True)
class QueuedTime:
    """The timeline of a `QueuedGpu`: a moment is the ns at which all work queued so far will be done."""

    gpu: "QueuedGpu"

    def mark(self) -> Mark:
        return round(self.gpu.busy_until_s * 1e9)

    def wait(self, mark: Mark) -> None:
        self.gpu.clock.now_s = max(self.gpu.clock.now_s, mark / 1e9)

    def unix_ns(self, mark: Mark) -> int:
        self.wait(mark)
        return int(mark)


class QueuedGpu(FakeGpu):
    """A fake of a GPU that is a clock alone: work is queued and takes time there, and none on the host but to wait."""

    torch_device = torch.device("cuda")

    def __init__(self, clock: VirtualTime) -> None:
        super().__init__()
        self.clock = clock
        self.busy_until_s = 0.0

    def sleep(self, seconds: float) -> None:
        """Queue work of so many seconds."""
        self.busy_until_s = max(self.busy_until_s, self.clock.now_s) + seconds

    def timeline(self) -> Timeline:
        return QueuedTime(self)


class Reordered(nn.Conv2d):
    """A convolution whose weights take the GPU time to reorder."""

    def __init__(self, gpu: QueuedGpu, seconds: float) -> None:
        super().__init__(4, 4, 3)
        self._gpu, self._seconds = gpu, seconds

    def to(self, *_: Any, memory_format: torch.memory_format) -> Any:  # type: ignore[override]
        if not self.weight.is_contiguous(memory_format=memory_format):
            self._gpu.sleep(self._seconds)
        return super().to(memory_format=memory_format)  # type: ignore[call-overload]


@pytest.mark.parametrize("reordering_s", [0.0, 0.03, 0.12])
@pytest.mark.parametrize(("ratio", "chosen"), [(0.8, "channels_last"), (1.25, "contiguous")])
def test_a_gpus_own_clock_decides_by_calls_alone(
    clock: VirtualTime, reordering_s: float, ratio: float, chosen: str
) -> None:
    """Its calls return at once; reordering the weights, which may take it longer than a call, is no part of them."""
    gpu = QueuedGpu(clock)
    model = Model(gpu, a_row(0.005), a_row(0.005 * ratio))  # type: ignore[arg-type]
    model.module = Reordered(gpu, reordering_s)
    choice = settle_memory_format(model.module, model, gpu, TYPICAL)
    assert (choice.name, choice.ratio) == (chosen, ratio)
    assert choice.pairs >= 3
    assert model.format == chosen


@pytest.mark.parametrize(("fits", "compared"), [(TYPICAL - 1, TYPICAL // 2), (1, 1)])
def test_where_memory_does_not_suffice_smaller_batches_are_compared(
    clock: VirtualTime, fits: int, compared: int
) -> None:
    device = FakeGpu()
    model = Model(clock, a_row(0.005), a_row(0.004))

    def call(rows: int) -> None:
        if rows > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        model(rows)

    assert settle_memory_format(model.module, call, device, TYPICAL) == FormatChoice("channels_last", 0.8, 6)
    assert {rows for _, rows in model.calls} == {1, compared}
    assert set(device.asked) == {"free"}


def test_a_model_that_nothing_fits_of_keeps_contiguous_weights(clock: VirtualTime) -> None:
    def call(rows: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert settle_memory_format(nn.Conv2d(4, 4, 3), call, FakeGpu(), TYPICAL) == FormatChoice("contiguous", 1.0, 0)
    with pytest.raises(ValueError, match="ours"):
        settle_memory_format(nn.Conv2d(4, 4, 3), fails, FakeGpu(), TYPICAL)


def fails(rows: int) -> None:
    raise ValueError("ours")
