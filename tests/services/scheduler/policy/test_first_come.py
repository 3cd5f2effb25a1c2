"""How long tasks would take in order of acceptance, and the tail of that."""

import pytest

from services.scheduler.policy.first_come import Tails, first_come_ms
from services.scheduler.policy.pace import Pace

PACE = Pace(rows=4, call_ms=10.0, least_call_ms=6.0, decode_ms=1.0)


@pytest.mark.parametrize(
    ("ahead", "workers", "expected_ms"),
    [
        ([], 1, 8 * 10 + 1),
        ([5], 1, 8 * 10 + 2),
        ([5, 7], 1, (5 + 8) * 10 + 3),
        ([5, 7, 1], 1, (6 + 8) * 10 + 4),
        ([5, 7, 1], 2, 8 * 10 + 4 / 2),
        ([0, 0, 0], 1, 8 * 10 + 4),
    ],
)
def test_a_task_starts_in_the_first_place_that_falls_free(ahead: list[float], workers: int, expected_ms: float) -> None:
    assert first_come_ms(PACE, ahead, 8, workers) == pytest.approx(expected_ms)


def test_two_in_a_hundred_lie_above_the_tail() -> None:
    tails = Tails()
    seen = [tails.after("a", 2, float(ms)) for ms in range(1, 201)]
    assert seen[0] == 1
    assert sum(ms > seen[199] for ms in range(1, 201)) in (3, 4, 5)


def test_models_and_priority_classes_have_tails_of_their_own() -> None:
    tails = Tails()
    tails.after("a", 2, 1000.0)
    assert tails.after("a", 3, 5.0) == tails.after("b", 2, 5.0) == 5


def test_what_was_long_ago_is_forgotten() -> None:
    tails = Tails()
    for _ in range(20):
        tails.after("a", 2, 1000.0)
    assert [tails.after("a", 2, 5.0) for _ in range(1024)][-1] == 5
