"""The table of what a flood costs another caller, small: the whole of it is `python -m bench.fairness`."""

import pytest

from bench.fairness import Case, Outcome, Row, printed, run, slower, table
from tests.services.scheduler.simulated import PAPER


def test_half_of_a_device_takes_twice_as_long_for_everything() -> None:
    half = slower(PAPER, 2.0)
    for rows, decodes in ((2, 0), (6, 2), (0, 1)):
        assert half.latency_ms(rows, decodes) == pytest.approx(2 * PAPER.latency_ms(rows, decodes))


def test_a_row_is_over_the_latencies_of_all_seeds() -> None:
    cases = [Case("paper-table", "equal", "continuous", 0.3, seed, 4) for seed in range(2)]
    (row,) = table(cases, processes=1)
    outcomes: list[Outcome] = [run(case) for case in cases]
    assert all(len(outcome.beside_ms) == len(outcome.alone_ms) == 4 for outcome in outcomes)
    assert row.worst_p99_ratio == max(outcome.p99_ratio for outcome in outcomes)
    beside_ms = sum(sum(outcome.beside_ms) for outcome in outcomes)
    alone_ms = sum(sum(outcome.alone_ms) for outcome in outcomes)
    assert row.mean_ratio == pytest.approx(beside_ms / alone_ms)
    assert 0 < row.quiet_share < row.flood_share


def test_a_row_as_a_line() -> None:
    row = Row("p", "equal", "synerdiff", 0.3, 2.0, 1.1, 1.2, 0.9, 0.14, 0.8)
    assert printed([row]).splitlines()[-1] == (
        "| p | equal | synerdiff | 0.3 | 2.00 | 1.10 | 1.20 | 0.90 | 0.14 + 0.80 |"
    )
