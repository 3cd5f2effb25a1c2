"""Compiled calls in parts, and the choice between compiled and eager, by a clock that only calls move."""

from collections.abc import Callable

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from synerdiff.models.compiled import calls
from synerdiff.models.compiled.calls import CompiledCall, FastestCall
from synerdiff.models.device import DeviceFailed
from tests.waiting import VirtualTime

BOTH_TRIED = 12  # calls after which a choice has been made: five of either kind, and a first of either


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    clock = VirtualTime()
    monkeypatch.setattr(calls, "time", clock)
    return clock


class Pair:
    """An eager and a compiled call, each of which takes as long as it is told and says that it was made."""

    def __init__(self, clock: VirtualTime) -> None:
        self.made: list[str] = []
        self.seconds: dict[str, Callable[[int], float]] = {"eager": lambda _: 1.0, "compiled": lambda _: 1.0}
        self.fails: BaseException | None = None
        self._clock = clock

    def eager(self, *inputs: Tensor) -> Tensor:
        return self._call("eager", inputs[0])

    def compiled(self, *inputs: Tensor) -> Tensor:
        answer = self._call("compiled", inputs[0])
        if self.fails is not None:
            raise self.fails
        return answer

    def _call(self, name: str, rows: Tensor) -> Tensor:
        self.made.append(name)
        self._clock.sleep(self.seconds[name](len(rows)))
        return rows + 1


@pytest.fixture
def pair(clock: VirtualTime) -> Pair:
    return Pair(clock)


@pytest.fixture
def fastest(pair: Pair) -> FastestCall:
    fastest = FastestCall(pair.eager)
    fastest.offer(pair.compiled)
    return fastest


def settled(fastest: FastestCall, pair: Pair, rows: int) -> set[str]:
    """Which calls are made at a count of rows once the choice was made."""
    for _ in range(BOTH_TRIED):
        fastest(torch.zeros(rows))
    pair.made.clear()
    for _ in range(BOTH_TRIED):
        fastest(torch.zeros(rows))
    return set(pair.made)


@pytest.mark.parametrize(
    ("rows", "parts"), [(1, [1]), (62, [62]), (63, [63]), (64, [32, 32]), (126, [63, 63]), (130, [44, 43, 43])]
)
def test_a_batch_that_is_too_long_goes_in_parts_and_comes_back_whole(rows: int, parts: list[int]) -> None:
    seen: list[int] = []

    def package(one: Tensor, other: Tensor) -> Tensor:
        assert len(one) == len(other)
        seen.append(len(one))
        return one * 2 + other.sum(dim=1, keepdim=True)

    one, other = torch.arange(rows * 3.0).reshape(rows, 3), torch.arange(rows * 2.0).reshape(rows, 2)
    assert torch.equal(CompiledCall(package)(one, other), one * 2 + other.sum(dim=1, keepdim=True))
    assert seen == parts


@pytest.mark.parametrize("rows", [8, 80])
def test_a_package_gets_contiguous_tensors(rows: int) -> None:
    def package(one: Tensor) -> Tensor:
        assert one.is_contiguous()
        return one + 1

    images = torch.arange(rows * 24.0).reshape(rows, 2, 3, 4).to(memory_format=torch.channels_last)
    assert not images.is_contiguous()
    assert torch.equal(CompiledCall(package)(images), images + 1)


def test_without_an_offer_calls_are_eager(pair: Pair) -> None:
    fastest = FastestCall(pair.eager)
    assert not fastest.has_compiled
    assert torch.equal(fastest(torch.zeros(2)), torch.ones(2))
    assert pair.made == ["eager"]
    fastest.offer(pair.compiled)
    assert fastest.has_compiled
    fastest(torch.zeros(2))
    assert pair.made == ["eager", "compiled"]


@pytest.mark.parametrize(("eager_s", "compiled_s", "chosen"), [(2.0, 1.0, "compiled"), (1.0, 2.0, "eager")])
def test_calls_take_turns_and_then_are_the_faster_ones(
    fastest: FastestCall, pair: Pair, eager_s: float, compiled_s: float, chosen: str
) -> None:
    pair.seconds = {"eager": lambda _: eager_s, "compiled": lambda _: compiled_s}
    with capture_logs() as logs:
        for _ in range(3 * BOTH_TRIED):
            assert torch.equal(fastest(torch.zeros(4)), torch.ones(4))
    assert pair.made == ["compiled", "eager"] * (BOTH_TRIED // 2) + [chosen] * 2 * BOTH_TRIED
    (log,) = logs
    assert (log["rows_below"], log["compiled"]) == (8, chosen == "compiled")
    assert log["speedup"] == eager_s / compiled_s


def test_each_size_has_its_own_choice(fastest: FastestCall, pair: Pair) -> None:
    pair.seconds["compiled"] = lambda rows: 0.5 if rows < 8 else 2.0
    for rows, chosen in ((1, "compiled"), (7, "compiled"), (8, "eager"), (16, "eager")):
        assert settled(fastest, pair, rows) == {chosen}
    assert settled(fastest, pair, 1) == {"compiled"}


def test_sizes_of_a_class_are_tried_together(fastest: FastestCall, pair: Pair) -> None:
    pair.seconds["compiled"] = lambda _: 0.5
    for rows in (4, 5, 6, 7) * 4:
        fastest(torch.zeros(rows))
    pair.made.clear()
    for rows in (4, 5, 6, 7):
        fastest(torch.zeros(rows))
    assert pair.made == ["compiled"] * 4


@pytest.mark.parametrize("slow", ["eager", "compiled"])
def test_two_calls_that_something_else_held_up_decide_nothing(fastest: FastestCall, pair: Pair, slow: str) -> None:
    faster = "compiled" if slow == "eager" else "eager"
    calls_made = iter(range(1000))
    pair.seconds = {slow: lambda _: 1.1, faster: lambda _: 100.0 if next(calls_made) in (2, 4) else 1.0}
    assert settled(fastest, pair, 1) == {faster}


@pytest.mark.parametrize("calls_before", [0, 3, BOTH_TRIED])
def test_a_package_that_fails_is_said_once_and_done_without(
    fastest: FastestCall, pair: Pair, calls_before: int
) -> None:
    pair.seconds["compiled"] = lambda _: 0.5
    for _ in range(calls_before):
        fastest(torch.zeros(1))
    pair.fails = RuntimeError("Expected size 8 but got 9")
    pair.made.clear()
    with capture_logs() as logs:
        for _ in range(2 * BOTH_TRIED):
            assert torch.equal(fastest(torch.zeros(1)), torch.ones(1))
    assert pair.made.count("compiled") == 1
    assert not fastest.has_compiled
    (log,) = [log for log in logs if log["event"] != "chose"]
    assert (log["log_level"], log["reason"]) == ("warning", "Expected size 8 but got 9")


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        DeviceFailed("gone"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        KeyboardInterrupt(),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_what_memory_and_device_raise_is_not_the_packages_fault(
    fastest: FastestCall, pair: Pair, fault: BaseException
) -> None:
    pair.fails = fault
    with capture_logs() as logs, pytest.raises(type(fault)):
        fastest(torch.zeros(1))
    assert logs == []
    assert pair.made == ["compiled"]
    pair.fails = None
    assert fastest.has_compiled
    fastest(torch.zeros(1))
    assert pair.made == ["compiled", "eager"]
