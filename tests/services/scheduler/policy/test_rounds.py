"""Rounds as items: the planner's counts filled with tasks and decodes, in batches as the pace of a profile has them."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.planner.planned_round import PlannedItem, PlannedRound
from services.scheduler.policy.policy_spec import POLICIES, Pace, PolicyBounds
from services.scheduler.policy.rounds import (
    Rules,
    Seat,
    Stance,
    Standing,
    Work,
    decodes_first,
    even_skips,
    filled,
    rows,
    running_set,
    standing,
)
from services.scheduler.policy.snapshots import DecodePart, Item, RunningTask, SkipState
from synerdiff.profiles import Cell, ItemCaps, Setting
from synerdiff.skip_cfg import SkipCfgBudget
from tests.services.scheduler.simulated import PAPER_SERIAL as PROFILE
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.snapshot_values import KEY, OTHER_KEY, decode, running, unet_lane

WIDE, CHOICE, LATE = Standing(Stance.GUIDED), Standing(Stance.CHOICE, 0.5, 1.0), Standing(Stance.CHOICE, 0.5, 2.0)
UNGUIDED = Seat(running("unguided", rows=1), Standing(Stance.ONE_ROW))
SEATS = (Seat(running("a"), CHOICE), Seat(running("b"), WIDE), UNGUIDED, Seat(running("c"), LATE))
WORK = Work("u", "v", SEATS, (decode("x"), decode("y")), skips=2)


def planned(*items: PlannedItem) -> PlannedRound:
    skips = sum(item.skips for item in items)
    return PlannedRound(items, sum(item.ms for item in items), 0.0, skips, 0.0, 0.0, True)


def stepped(items: list[Item]) -> list[tuple[str, ...]]:
    return [item.unet.task_ids if item.unet else () for item in items]


def test_tasks_fill_the_counts_in_order_and_skip_where_the_items_say() -> None:
    items = filled(
        planned(
            PlannedItem(2, 0, 4, 1, 0, 1, 30.0, Setting(1, 2, 1)), PlannedItem(2, 2, 2, 1, 1, 2, 20.0, Setting(1, 1, 1))
        ),
        WORK,
    )
    assert stepped(items) == [("a/0", "b/0"), ("unguided/0", "c/0")], "of the two with a choice, most credit skips"
    assert [item.unet.skipping for item in items if item.unet] == [frozenset(), {"c/0"}]
    assert [(item.unet.threads, item.vae.threads) for item in items if item.unet and item.vae] == [(2, 1), (1, 1)]
    assert [item.predicted_ms for item in items] == [30.0, 20.0]


def test_units_become_the_bands_of_each_decode() -> None:
    items = filled(
        planned(
            PlannedItem(0, 0, 0, 3, 0, 2, 1.0, Setting(3)),
            PlannedItem(4, 1, 7, 3, 2, 5, 1.0, Setting(3)),
            PlannedItem(0, 0, 0, 3, 5, 6, 1.0, Setting(3)),
        ),
        WORK,
    )
    assert [item.vae.parts for item in items if item.vae] == [
        (DecodePart("x/0", 3, 0, 2),),
        (DecodePart("x/0", 3, 2, 3), DecodePart("y/0", 3, 0, 2)),
        (DecodePart("y/0", 3, 2, 3),),
    ]
    assert stepped(items) == [(), ("unguided/0", "a/0", "b/0", "c/0"), ()]


def test_decodes_first_keeps_to_the_caps_and_says_how_long_it_takes() -> None:
    profile = straight_line_profile(caps=ItemCaps(3, 1))
    items = decodes_first(WORK, profile, profile.caps)
    assert [len(item.vae.parts) for item in items if item.vae] == [1, 1]
    assert stepped(items)[2:] == [("a/0", "b/0", "unguided/0"), ("c/0",)]
    assert [item.unet.skipping for item in items if item.unet] == [{"a/0"}, {"c/0"}]
    assert [item.predicted_ms for item in items] == [20.0, 20.0, 10.0 + 4 * 5.0, 10.0 + 5.0]


RULES = Rules(
    spec=POLICIES["synerdiff"],
    bounds=PolicyBounds(unet_batch=3),
    paces={key: Pace(rows=6, call_ms=10.0, least_call_ms=6.0, decode_ms=0.0) for key in (KEY, OTHER_KEY)},
    budgets={"a": SkipCfgBudget("reuse", share=0.5, longest_run=1)},
)
UNSKIPPED = replace(RULES, budgets={})


def run(*tasks: RunningTask, rules: Rules = UNSKIPPED, waiting: int = 0) -> tuple[list[str], bool, int]:
    chosen = running_set(unet_lane(*tasks), waiting, 0, rules)
    return [seat.task.claim.job_id for seat in chosen.seats], chosen.busy, chosen.set_aside


NARROW = replace(UNSKIPPED, paces={KEY: Pace(1, 10.0, 6.0, 0.0)})
SHARING = replace(UNSKIPPED, spec=replace(POLICIES["synerdiff"], order="sharing"))


def named(names: str, **fields: Any) -> list[RunningTask]:
    return [running(name, **fields) for name in names]


@pytest.mark.parametrize(
    ("tasks", "rules", "waiting", "chosen"),
    [
        pytest.param(named("abcde"), UNSKIPPED, 0, ("abc", True, 2), id="as many rows as the knee"),
        pytest.param(named("abc"), UNSKIPPED, 0, ("abc", False, 0), id="all, nobody waits"),
        pytest.param(named("abc"), UNSKIPPED, 1, ("abc", True, 0), id="all, one waits"),
        pytest.param(named("abcdefg", rows=1), UNSKIPPED, 0, ("abcdef", True, 1), id="without guidance twice as many"),
        pytest.param(named("abcde", at=5), RULES, 0, ("abcd", True, 1), id="skips make room while tasks wait"),
        pytest.param(named("ab"), NARROW, 0, ("a", True, 1), id="a task above the knee alone"),
        pytest.param(named("ab", of=8) + named("xyz", key=OTHER_KEY), UNSKIPPED, 0, ("abx", True, 2), id="batch keys"),
        pytest.param(named("abcde"), SHARING, 0, ("abcde", False, 0), id="under processor sharing everybody"),
    ],
)
def test_who_runs(tasks: list[RunningTask], rules: Rules, waiting: int, chosen: tuple[str, bool, int]) -> None:
    names, busy, set_aside = chosen
    assert run(*tasks, rules=rules, waiting=waiting) == (list(names), busy, set_aside)


def test_without_a_knee_the_cap_counts_tasks() -> None:
    for rules in (replace(UNSKIPPED, paces={}), replace(UNSKIPPED, spec=POLICIES["continuous"])):
        assert run(*named("abcde", rows=1), rules=rules)[0] == ["a", "b", "c"]


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


# ---- the pace


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
