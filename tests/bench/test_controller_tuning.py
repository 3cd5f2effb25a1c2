"""The threshold controller's simulated numbers, small: the whole of them is `python -m bench.controller_tuning`."""

from bench.command import typed
from bench.controller_tuning import Case, printed, table
from services.scheduler.policy.controller import ControllerSettings
from services.scheduler.simulation.workloads import Mix


def test_no_constant_is_better_by_more_than_a_twentieth_when_the_device_is_nearly_full() -> None:
    mix = Mix(steps=((8, 1.0),))
    cases = [Case("paper-table", 0.95, 0, threshold, 150, mix, ControllerSettings()) for threshold in (0.5, 1.0, None)]
    (row,) = table(cases, processes=1)
    assert row.excess < 0.05
    assert row.constants[0.5] > 1.03 * row.constants[1.0]
    assert 0.5 < row.mean_threshold <= 1.0
    assert row.switches_per_s <= 1
    assert "| paper-table | 0.95 |" in printed([row])


def test_settings_are_read_from_pairs() -> None:
    assert typed(ControllerSettings, ["gain=0.3", "dwell_ms=2000"]) == ControllerSettings(gain=0.3, dwell_ms=2000)
