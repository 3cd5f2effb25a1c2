"""Who skips guidance: within what budget and request allow, spread evenly over calls and over tasks."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.policy.skip_policy import Stance, Standing, even_skips, rows, standing
from services.scheduler.policy.snapshots import RunningTask, SkipState
from synerdiff.skip_cfg import SkipCfgBudget
from tests.services.scheduler.snapshot_values import running

GATE = 0.5
HALF = SkipCfgBudget("reuse", share=0.5, longest_run=1)


def state(
    must: bool | None = None, max_share: float = 1.0, skipped: int = 0, run: int = 0, drift: float = 0.0
) -> SkipState:
    return SkipState(must, max_share, skipped, run, drift)


def after(task: RunningTask, skips: bool) -> RunningTask:
    """The task after one more call."""
    skip = task.skip._replace(skipped=task.skip.skipped + skips, run=task.skip.run + 1 if skips else 0)
    return task._replace(next_call=task.next_call + 1, skip=skip)


def skipped_calls(task: RunningTask, budget: SkipCfgBudget) -> list[int]:
    """The calls that skip when the task skips whenever it may."""
    calls = []
    while task.next_call < task.num_calls:
        skips = standing(task, budget, GATE).stance is Stance.CHOICE
        calls += [task.next_call] * skips
        task = after(task, skips)
    return calls


@given(
    calls=st.integers(1, 60),
    share=st.floats(0.0, 1.0),
    longest_run=st.integers(1, 4),
    head=st.integers(0, 4),
    tail=st.integers(0, 3),
    max_share=st.floats(0.0, 1.0),
)
def test_a_task_keeps_to_its_budget(
    calls: int, share: float, longest_run: int, head: int, tail: int, max_share: float
) -> None:
    budget = SkipCfgBudget("reuse", share, longest_run, head, tail)
    skipped = skipped_calls(running("j", of=calls, skip=state(max_share=max_share)), budget)
    assert len(skipped) <= min(share, max_share) * calls + 1e-6
    assert all(head <= call < calls - tail for call in skipped)
    assert not any(set(range(call, call + longest_run + 1)) <= set(skipped) for call in skipped)


def test_tasks_of_fewer_calls_than_were_measured_never_skip() -> None:
    budget = replace(HALF, least_calls=20)
    assert skipped_calls(running("j", of=19), budget) == []
    assert skipped_calls(running("j", of=20), budget) == skipped_calls(running("j", of=20), HALF)


def test_half_of_twenty_calls_is_every_other_one() -> None:
    skipped = skipped_calls(running("j", of=20), HALF)
    assert skipped == list(range(skipped[0], skipped[0] + 2 * len(skipped), 2))
    assert len(skipped) >= 8


@pytest.mark.parametrize(("share", "longest_run", "least"), [(0.65, 2, 11), (0.3, 1, 6), (0.75, 3, 13)])
def test_nearly_the_whole_budget_can_be_spent(share: float, longest_run: int, least: int) -> None:
    assert len(skipped_calls(running("j", of=20), SkipCfgBudget("reuse", share, longest_run))) >= least


def test_a_task_that_could_not_skip_for_long_does_not_make_up_for_it_in_a_row() -> None:
    budget = SkipCfgBudget("reuse", share=0.3, longest_run=4)
    calls = skipped_calls(running("j", of=40, at=30), budget)
    assert len(calls) >= 3
    assert all(later - earlier > 1 for earlier, later in pairwise(calls))


def test_what_has_to_be_is_obeyed_with_and_without_a_budget() -> None:
    for budget in (None, HALF):
        assert standing(running("j", at=5, skip=state(must=True)), budget, GATE).stance is Stance.ONE_ROW
        assert standing(running("j", at=5, skip=state(must=False)), budget, GATE).stance is Stance.GUIDED
        assert standing(running("j", at=5, rows=1, skip=state(must=False)), budget, GATE).stance is Stance.ONE_ROW
    assert standing(running("j", at=5), None, GATE).stance is Stance.GUIDED
    assert standing(running("j", at=5), HALF, GATE).stance is Stance.CHOICE


def test_a_task_whose_guidance_drifts_waits_longer_but_not_for_ever() -> None:
    def first_skip(drift: float) -> int:
        return skipped_calls(running("j", of=40, skip=state(drift=drift)), HALF)[0]

    assert first_skip(0.1) == first_skip(GATE) < first_skip(2 * GATE) < first_skip(4 * GATE) < 40


def test_rows_stay_even_for_tasks_that_began_together() -> None:
    tasks = [running(f"j{k}", of=20) for k in range(8)]
    counted = []
    for _ in range(20):
        standings = [standing(task, HALF, GATE) for task in tasks]
        skips = even_skips(standings)
        choices = [k for k, one in enumerate(standings) if one.stance is Stance.CHOICE]
        chosen = set(sorted(choices, key=lambda k: -standings[k].credit)[:skips])
        counted.append(rows(standings, skips))
        tasks = [after(task, k in chosen) for k, task in enumerate(tasks)]
    steady = counted[3:18]
    assert max(steady) - min(steady) <= 4, "all at once would swing by eight"
    assert sum(task.skip.skipped for task in tasks) >= 0.8 * 0.5 * 20 * 8


def test_rows_count_one_for_each_that_takes_one_and_for_each_skip() -> None:
    standings = [Standing(Stance.ONE_ROW), Standing(Stance.GUIDED), Standing(Stance.CHOICE, 0.5, 1.0)]
    assert [rows(standings, skips) for skips in (0, 1)] == [5, 4]
    assert even_skips(standings) == 1
    assert even_skips(standings[:2]) == 0
