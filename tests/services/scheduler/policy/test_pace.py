"""The pace that a profile implies, and how the threshold moves it."""

from dataclasses import replace

from services.scheduler.policy.policy_spec import Pace
from synerdiff.profiles import Cell, ItemCaps
from tests.services.scheduler.simulated import PAPER_SERIAL as PROFILE

# From 16 rows on, twice as many bring 4 % more throughput.
STEPS = [Cell(rows, 0, ms, ms) for rows, ms in ((2, 20.0), (8, 50.0), (16, 90.0), (32, 173.0))]
DECODES = [cell for cell in PROFILE.cells if not cell.rows]
FLAT = replace(PROFILE, cells=(*STEPS, *DECODES), caps=ItemCaps(16, PROFILE.caps.vae))


def test_while_throughput_counts_batches_are_those_with_the_best() -> None:
    pace = Pace.of(PROFILE)
    rows = range(1, PROFILE.caps.rows + 1)
    assert pace.rows == max(rows, key=lambda rows: rows / PROFILE.latency_ms(rows, 0))
    assert pace.call_ms == PROFILE.latency_ms(pace.rows, 0)
    assert pace.seats == pace.rows // 2


def test_the_lower_the_threshold_the_smaller_the_batches_within_a_twentieth_of_the_throughput() -> None:
    paces = [Pace.of(FLAT, threshold / 100) for threshold in range(50, 101, 2)]
    assert [pace.rows for pace in paces] == sorted(pace.rows for pace in paces)
    assert paces[0].rows < paces[-1].rows
    assert paces[0].call_ms < paces[-1].call_ms
    best = paces[-1].rows / paces[-1].call_ms
    assert all(pace.rows / pace.call_ms >= 0.95 * best for pace in paces)
