"""What is called ahead of time, in which order, and when not."""

import pytest

from synerdiff.models.compiled import rehearsal
from synerdiff.models.compiled.rehearsal import Rehearsal, likely_first
from tests.waiting import VirtualTime


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    clock = VirtualTime()
    monkeypatch.setattr(rehearsal, "time", clock)
    return clock


def test_guided_tasks_are_likelier_than_odd_rows() -> None:
    assert likely_first(5) == (2, 4, 1, 3, 5)
    assert likely_first(0) == ()


def test_every_size_is_called_once() -> None:
    called: list[int] = []
    assert Rehearsal([3, 1, 2]).run(called.append, 10.0) == 3
    assert called == [3, 1, 2]


def test_a_slow_model_is_left_after_one_call(clock: VirtualTime) -> None:
    called: list[int] = []

    def slow(size: int) -> None:
        called.append(size)
        clock.sleep(1.0)

    assert Rehearsal(range(8)).run(slow, 100.0) == 1
    assert called == [0]


def test_the_time_is_bounded(clock: VirtualTime) -> None:
    assert Rehearsal(range(100)).run(lambda _: clock.sleep(0.4), 2.0) == 5


def test_once_closed_nothing_is_called() -> None:
    called: list[int] = []
    closed = Rehearsal(range(4))
    closed.close()
    assert closed.run(called.append, 10.0) == 0
    assert called == []


def test_nothing_is_called_beside_a_computation_or_just_after_one(clock: VirtualTime) -> None:
    busy, called = Rehearsal(range(2)), list[float]()
    with busy.computing():
        clock.sleep(1.0)
    ended_s = clock.monotonic()

    def wait(seconds: float) -> bool:
        clock.sleep(seconds)
        return False

    busy._closing.wait = wait  # type: ignore[method-assign,assignment]
    assert busy.run(lambda _: called.append(clock.monotonic()), 10.0) == 2
    assert min(called) - ended_s >= rehearsal._IDLE_AFTER_S
    with busy.computing():
        assert busy.run(lambda _: called.append(clock.monotonic()), 10.0) == 0
    assert len(called) == 2
