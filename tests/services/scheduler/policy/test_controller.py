"""The controller's answers to steps: what raises the threshold, what lowers it, and how often it may move."""

from dataclasses import dataclass, field

import pytest

from services.scheduler.policy.controller import (
    ConstantThreshold,
    ControllerSettings,
    ControllerState,
    ThresholdController,
)
from services.scheduler.policy.snapshots import BatchKey, DomainSnapshot, VaeLane
from services.scheduler.simulation.simulation_results import most_within
from tests.services.scheduler.simulated import PAPER
from tests.services.scheduler.snapshot_values import decode, running, unet_lane

KEY = BatchKey("simulated", 512, 512)
TICK_MS = 50
LOWEST = ControllerSettings().lowest


@dataclass
class Loop:
    """A controller that is asked every 50 ms of a domain in a given situation."""

    controller: ThresholdController = field(default_factory=ThresholdController)
    now_ms: int = 0
    arrived_calls: int = 0
    domain: str = "d"
    thresholds: list[tuple[int, float]] = field(default_factory=list)

    def run(
        self, seconds: float, *, waiting: int = 0, decodes: int = 0, calls_per_s: float = 0.0, next_call: int = 5
    ) -> float:
        """Ask for so long; returns the last threshold."""
        for _ in range(round(seconds * 1000 / TICK_MS)):
            self.now_ms += TICK_MS
            self.arrived_calls += round(calls_per_s * TICK_MS / 1000)
            self.ask(waiting, decodes, next_call)
        return self.thresholds[-1][1]

    def ask(self, waiting: int = 0, decodes: int = 0, next_call: int = 5) -> float:
        unet = (unet_lane(running("r", key=KEY, at=next_call)),)
        vae = (VaeLane("v", self.domain, "simulated", 0, True),)
        ready = tuple(decode(f"t{n}", key=KEY, domain=self.domain) for n in range(decodes))
        snapshot = DomainSnapshot(self.now_ms, self.domain, unet, vae, ready, waiting, profiles={KEY: PAPER})
        self.thresholds.append((self.now_ms, self.controller.threshold(snapshot, self.arrived_calls)))
        return self.thresholds[-1][1]

    @property
    def state(self) -> ControllerState:
        state = self.controller.state(self.domain)
        assert state is not None
        return state

    def switches_ms(self) -> list[int]:
        pairs = zip(self.thresholds, self.thresholds[1:], strict=False)
        return [now_ms for (_, before), (now_ms, after) in pairs if after != before]


def test_it_rests_at_its_lowest_while_little_waits() -> None:
    loop = Loop()
    assert loop.run(20) == LOWEST
    assert loop.state.error == pytest.approx(-1.0, abs=0.01)
    assert loop.switches_ms() == []


def test_waiting_unet_work_raises_it_to_the_top_and_it_comes_back() -> None:
    loop = Loop()
    loop.run(5)
    assert loop.run(30, waiting=40) == 1.0
    assert loop.state.backlog_s == pytest.approx(40 * 20 * 56.2 / 3 / 1000, rel=0.01)
    assert loop.run(30) == LOWEST


def test_waiting_decodes_lower_it() -> None:
    settings = ControllerSettings(integral_per_s=0.0, backlog_target_tasks=10.0)
    loop, beside = (Loop(ThresholdController(settings)) for _ in range(2))
    loop.run(30, waiting=16)
    beside.run(30, waiting=16)
    assert loop.run(5, waiting=16) > beside.run(5, waiting=16, decodes=30)
    assert beside.state.backlog_s == pytest.approx(
        loop.state.backlog_s - settings.decode_weight * 30 * 0.0216, rel=0.01
    )


def test_arrivals_raise_its_floor_before_anything_waits() -> None:
    settings = ControllerSettings()
    loop = Loop(ThresholdController(settings))
    loop.run(100, calls_per_s=20.0)
    # Twenty calls a second of 56.2 / 3 ms each, a twentieth of a decode of 21.6 ms with every one.
    load = 20 * (56.2 / 3 + 21.6 / 20) / 1000
    assert loop.state.feed_forward == pytest.approx(settings.headroom * load, rel=0.02)
    assert loop.state.arriving_calls_per_s == pytest.approx(20, rel=0.02)
    assert loop.state.error == pytest.approx(-1.0, abs=0.01)
    assert loop.thresholds[-1][1] == pytest.approx(settings.headroom * load, abs=settings.dead_band)


def test_a_pools_arrivals_are_shared_among_its_domains() -> None:
    controller = ThresholdController()
    loops = [Loop(controller, domain="a"), Loop(controller, domain="b")]
    for _ in range(1600):
        for loop in loops:
            loop.run(TICK_MS / 1000, calls_per_s=40.0)
    assert loops[1].state.arriving_calls_per_s == pytest.approx(40 / 2, rel=0.05)
    assert loops[0].state.arriving_calls_per_s == pytest.approx(loops[1].state.arriving_calls_per_s, rel=0.05)


def test_it_switches_at_most_once_a_dwell_however_the_load_jumps() -> None:
    loop = Loop()
    for _ in range(60):
        loop.run(0.3, waiting=60)
        loop.run(0.3, decodes=20)
        loop.ask(next_call=0)
    assert len(loop.switches_ms()) > 1
    assert most_within([float(at_ms) for at_ms in loop.switches_ms()], 1000.0) == 1


@pytest.mark.parametrize(("dead_band", "moves"), [(0.04, False), (0.0, True)])
def test_it_does_not_move_for_less_than_the_dead_band(dead_band: float, moves: bool) -> None:
    settings = ControllerSettings(integral_per_s=0.0, gain=0.1, backlog_target_tasks=8.0, dead_band=dead_band)
    loop = Loop(ThresholdController(settings))
    loop.run(20, waiting=14)
    settled = len(loop.switches_ms())
    assert settled > 0
    for waiting in (15, 13) * 10:
        loop.run(3, waiting=waiting)
    assert (len(loop.switches_ms()) > settled + 1) is moves


def test_the_output_is_on_the_grid() -> None:
    settings = ControllerSettings(integral_per_s=0.01, backlog_target_tasks=8.0)
    loop = Loop(ThresholdController(settings))
    for waiting in range(0, 40, 3):
        loop.run(3, waiting=waiting, calls_per_s=20.0)
    cells = {threshold / settings.grid for _, threshold in loop.thresholds}
    assert len(cells) > 3
    assert all(abs(cell - round(cell)) < 1e-6 for cell in cells)


def test_a_long_overload_winds_nothing_up() -> None:
    short, long = Loop(), Loop()
    short.run(60, waiting=60)
    long.run(1200, waiting=60)
    assert long.state.integral == pytest.approx(short.state.integral, abs=0.05)

    wound = Loop(ThresholdController(ControllerSettings(tracking_per_s=0.0)))
    wound.run(200, waiting=60)
    assert wound.state.integral > long.state.integral + 10

    def rest(loop: Loop) -> int:
        since_ms = loop.now_ms
        loop.run(60)
        return next(at_ms for at_ms, value in loop.thresholds if at_ms > since_ms and value == LOWEST) - since_ms

    assert rest(long) <= rest(short) + 1000


def test_after_idling_it_begins_anew_and_a_burst_raises_it_at_once() -> None:
    loop = Loop()
    loop.run(30, waiting=60)
    loop.now_ms += 60_000
    assert loop.ask(next_call=0) == LOWEST
    loop.now_ms += 60_000
    loop.ask(waiting=60, next_call=0)
    assert loop.thresholds[-1][1] > LOWEST


def test_without_a_profile_it_is_constant() -> None:
    controller = ThresholdController(ControllerSettings(unprofiled=0.9))
    for now_ms in range(0, 10_000, 100):
        snapshot = DomainSnapshot(now_ms, "d", (), (), (), waiting=100)
        assert controller.threshold(snapshot, now_ms) == 0.9
    assert controller.state("d") is None


def test_a_constant_is_one() -> None:
    assert ConstantThreshold(0.8).threshold(DomainSnapshot(0, "d", (), (), (), waiting=100), 7) == 0.8


@pytest.mark.parametrize(
    ("name", "value"), [("lowest", 0.0), ("lowest", 1.2), ("grid", 0.0), ("gain", -1.0), ("backlog_target_tasks", 0.0)]
)
def test_settings_out_of_bounds_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: {value:g}"):
        ControllerSettings(**{name: value})  # type: ignore[arg-type]
