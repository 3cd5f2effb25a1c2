"""Batches that grow while throughput does, on devices of known throughput and a clock that swings."""

import random
from collections.abc import Callable

import pytest

from services.scheduler.engine.item_sizes import BatchGrowth, most_of_slots

ITEMS = 600


def grown(ms_of: Callable[[int], float], offered: int = 64, start: int = 8, most: int = 24, swing: float = 1.0) -> int:
    """The batch after many items of at most `offered` tasks, on a clock that runs up to `swing` times as fast."""
    growth, draw = BatchGrowth(start, most), random.Random(1)
    for place in range(ITEMS):
        tasks = min(growth.size().now, offered)
        # The machine is fast or slow for seconds, some thirty items; within that every item is off by a little.
        fast = swing if place // 30 % 2 else 1.0
        growth.ran(tasks, 2 * tasks, ms_of(tasks) / fast * draw.uniform(0.97, 1.03))
    return growth.tasks


@pytest.mark.parametrize("swing", [1.0, 1.7])
def test_batches_grow_as_long_as_it_pays(swing: float) -> None:
    assert grown(lambda tasks: 50 + 2 * tasks, swing=swing) == 24
    assert grown(lambda tasks: 10 * tasks, swing=swing) == 8
    assert grown(lambda tasks: 10.0 * max(tasks, 16), swing=swing) == 16


def test_the_first_item_of_a_size_says_nothing() -> None:
    seen = set[int]()

    def ms_of(tasks: int) -> float:
        first = tasks not in seen
        seen.add(tasks)
        return 50 + 2 * tasks + 1000 * first

    assert grown(ms_of) == 24


def test_too_few_tasks_say_nothing_of_more() -> None:
    assert grown(lambda tasks: 50 + 2 * tasks, offered=10) == 8


def test_no_batch_is_larger_than_what_the_slots_bear() -> None:
    assert most_of_slots(32) == 24
    assert most_of_slots(1) == 1
    assert grown(lambda tasks: 50.0, start=8, most=most_of_slots(8)) == 8


def test_a_size_that_did_not_pay_is_tried_again_later() -> None:
    growth = BatchGrowth(8, 32)
    while growth.size().most > 8:
        tasks = growth.size().now
        growth.ran(tasks, 2 * tasks, 10.0 * tasks)
    assert growth.size() == (8, 8)
    # Compiled by now, larger batches pay.
    for _ in range(ITEMS):
        tasks = growth.size().now
        growth.ran(tasks, 2 * tasks, 50 + 2 * tasks)
    assert growth.tasks > 8
