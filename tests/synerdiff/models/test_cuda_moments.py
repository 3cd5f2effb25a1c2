"""When a GPU's moments were by this host's clock, over fake events: no GPU is simulated but its clock."""

from dataclasses import dataclass

import pytest

from synerdiff.models.device import cuda

WAKING_NS = 80_000
MS = 1_000_000


@dataclass(frozen=True)
class FakeEvent:
    """Passed at `at_ns` of the GPU's clock."""

    at_ns: float

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: "FakeEvent") -> float:
        assert later.at_ns >= self.at_ns, "CUDA does not say what it would tell"
        return (later.at_ns - self.at_ns) / MS


class Clocks:
    """The host's, and the GPU's that runs `fast` times as fast. Work that a mark is made behind is done at once."""

    def __init__(self, fast: float = 1.0) -> None:
        self.now_ns, self.fast = 10**18, fast

    def time_ns(self) -> int:
        return self.now_ns

    def event(self) -> FakeEvent:
        return FakeEvent((self.now_ns - 10**18) * self.fast)

    def mark_after(self, timeline: "cuda._Events", ms: float) -> tuple[object, int]:
        """A moment that comes so much later, waited for by nobody, and when it is."""
        self.now_ns += round(ms * MS)
        return timeline.mark(), self.now_ns


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(cuda, "time", made)
    return made


def timeline_of(clocks: Clocks) -> "cuda._Events":
    return cuda._Events(clocks.event)  # type: ignore[arg-type]


def test_times_between_moments_are_the_gpus_own_however_late_a_wait_returns(clocks: Clocks) -> None:
    timeline = timeline_of(clocks)
    for _ in range(100):
        start, _ = clocks.mark_after(timeline, 1)
        end, _ = clocks.mark_after(timeline, 15)
        clocks.now_ns += WAKING_NS
        timeline.wait(end)
        assert timeline.unix_ns(end) - timeline.unix_ns(start) == 15 * MS


def test_a_wait_that_returns_late_moves_the_clock_by_no_more_than_drift(clocks: Clocks) -> None:
    timeline = timeline_of(clocks)
    end, at_ns = clocks.mark_after(timeline, 15)
    clocks.now_ns += 5 * MS
    timeline.wait(end)
    assert 0 <= timeline.unix_ns(end) - at_ns <= 15 * MS * 1e-4


@pytest.mark.parametrize("fast", [1 - 3e-5, 1.0, 1 + 3e-5])
def test_clocks_that_drift_apart_are_brought_together_by_waits(clocks: Clocks, fast: float) -> None:
    """Two hours at 30 millionths are 216 ms."""
    clocks.fast = fast
    timeline = timeline_of(clocks)
    for _ in range(7200):
        end, at_ns = clocks.mark_after(timeline, 1000)
        clocks.now_ns += WAKING_NS
        timeline.wait(end)
        clocks.now_ns -= WAKING_NS
    assert abs(timeline.unix_ns(end) - at_ns) <= WAKING_NS + 1000 * MS * 1e-4
