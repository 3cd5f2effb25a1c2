"""Equal shares between callers: in the queue's virtual time, of UNet calls, of slots and of decodes; and what of it."""

from collections import Counter
from dataclasses import replace

import pytest

from bench.fairness import Case, run
from services.scheduler.policy.fair import CallTurns, FairQueue, call_cost, row_calls
from services.scheduler.policy.ordering import FirstComeOrder, decodes_in_order
from services.scheduler.policy.pace import paces_of
from services.scheduler.policy.policies import POLICIES, ConfiguredPolicy, PolicyBounds
from services.scheduler.policy.running_set import Rules, running_set
from services.scheduler.policy.snapshots import BatchKey, PoolSnapshot, RunningTask, TurnClass
from synerdiff.profiles import ItemCaps
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.snapshot_values import KEY, decode, running, unet_lane, waiting


def read_order(jobs: list[tuple[str, float]], reads_between: int = 0) -> list[str]:
    """Callers in the order in which their jobs, given with their costs, are read."""
    queue, order = FairQueue(), list[str]()
    unread: list[tuple[float, int, str]] = []

    def read() -> None:
        start, number, caller = min(unread)
        unread.remove((start, number, caller))
        queue.began(2, start)
        order.append(caller)

    for number, (caller, cost) in enumerate(jobs):
        unread.append((queue.start(2, caller, cost), number, caller))
        for _ in range(reads_between):
            read()
    while unread:
        read()
    return order


def test_a_flood_leaves_every_other_place_to_another_caller() -> None:
    assert read_order([("a", 1.0)] * 50 + [("b", 1.0)] * 3)[:7] == ["a", "b", "a", "b", "a", "b", "a"]


def test_shares_are_of_work_and_not_of_requests() -> None:
    order = read_order([("a", 1.0)] * 50 + [("b", 4.0)] * 3)
    assert [order[:n].count("b") for n in (2, 7, 12)] == [1, 2, 3]


def test_a_caller_who_was_away_has_saved_nothing_up() -> None:
    """While a's jobs are read b is not there: the virtual time goes on without b."""
    queue = FairQueue()
    for start in [queue.start(2, "a", 1.0) for _ in range(100)][:-1]:
        queue.began(2, start)
    assert queue.start(2, "b", 1.0) == 98.0
    assert queue.start(2, "a", 1.0) == 100.0


def test_once_nobody_waits_all_begin_alike() -> None:
    queue = FairQueue()
    for start in [queue.start(2, "a", 1.0) for _ in range(100)]:
        queue.began(2, start)
    assert [queue.start(2, caller, 1.0) for caller in "ba"] == [100.0, 100.0]


def test_one_caller_alone_is_served_in_order_of_acceptance() -> None:
    queue = FairQueue()
    starts = [queue.start(2, "a", cost) for cost in (5.0, 1.0, 9.0, 0.1)]
    assert starts == sorted(set(starts))


def test_a_request_costs_its_rows_by_their_pixels() -> None:
    assert row_calls(20, rows=2, num_images=2, pixels=64 * 64, native_pixels=64 * 64) == 80
    assert row_calls(20, rows=1, num_images=1, pixels=128 * 64, native_pixels=64 * 64) == 40


SQUARE = TurnClass("a", 2)


def shared(turns: CallTurns, ticks: int, seats: int, tasks: dict[str, int]) -> Counter[str]:
    """Calls of each caller, of so many tasks that never end, where the first `seats` of all step in a tick."""
    calls = Counter[str]()
    listed = [running(f"{caller}{n}", caller=caller) for caller, count in tasks.items() for n in range(count)]
    for _ in range(ticks):
        first = FirstComeOrder(listed, turns.ahead()).sorted(listed)[:seats]
        turns.stepped((SQUARE, task.claim.caller, call_cost(task.key, task.rows)) for task in first)
        calls.update(task.claim.caller for task in first)
    return calls


def test_calls_are_shared_equally_whatever_each_has() -> None:
    calls = shared(CallTurns(), 100, 3, {"flood": 30, "few": 3, "some": 7})
    assert max(calls.values()) - min(calls.values()) <= 1, calls


def test_with_few_tasks_a_caller_has_them_all_in_every_tick() -> None:
    assert shared(CallTurns(), 100, 4, {"flood": 30, "few": 1}) == {"flood": 300, "few": 100}


def test_a_caller_who_comes_has_the_first_call_of_the_next_tick() -> None:
    turns = CallTurns()
    shared(turns, 10, 3, {"flood": 30})
    listed = [*(running(f"flood{n}", at=5, caller="flood") for n in range(5)), running("new", caller="few")]
    assert FirstComeOrder(listed, turns.ahead()).sorted(listed)[0].claim.caller == "few"


def test_a_caller_has_saved_nothing_up_by_having_had_little_to_do() -> None:
    turns = CallTurns()
    shared(turns, 100, 4, {"flood": 30, "few": 1})
    calls = shared(turns, 10, 4, {"flood": 30, "few": 30})
    assert abs(calls["few"] - calls["flood"]) <= 2, calls


def test_a_large_picture_counts_by_its_pixels() -> None:
    turns, calls = CallTurns(), Counter[str]()
    listed = [running("large", key=BatchKey("a", 512, 512), caller="large"), running("small", caller="small")]
    for _ in range(170):
        first = FirstComeOrder(listed, turns.ahead()).sorted(listed)[0]
        turns.stepped([(SQUARE, first.claim.caller, call_cost(first.key, first.rows))])
        calls[first.claim.caller] += 1
    assert calls == {"large": 10, "small": 160}


def test_decodes_are_charged_and_nothing_is_remembered_of_callers_who_are_not_ahead() -> None:
    turns = CallTurns()
    turns.charge(SQUARE, "a", 5.0)
    turns.stepped([(SQUARE, "b", 2.0), (SQUARE, "b", 2.0)])
    assert turns.ahead() == {SQUARE: {"a": 3.0, "b": 2.0}}
    turns.stepped([(SQUARE, "b", 2.0), (SQUARE, "b", 2.0)])
    assert turns.ahead() == {SQUARE: {"b": 2.0}}


def test_a_step_of_several_callers_is_no_longer_than_each_ones_on_its_share() -> None:
    """Of 10 + 5 r ms for r rows: 2 rows alone take 20, so both callers' step may take 40, which are 6 rows."""
    profile = straight_line_profile(caps=ItemCaps(8, 2))
    rules = Rules(POLICIES["continuous"], PolicyBounds(), paces_of([(KEY, profile)]), {}, {KEY: profile})
    flood = [running(f"flood{n}", caller="flood") for n in range(20)]

    def seats(*tasks: RunningTask, rules: Rules = rules) -> list[str]:
        return [seat.task.claim.caller for seat in running_set(unet_lane(*tasks), 0, 0, rules).seats]

    assert seats(*flood) == ["flood"] * 8
    assert sorted(seats(*flood, running("few", caller="few"))) == ["few", "flood", "flood"]
    # Two tasks take 30 ms alone: both callers' may take 60, which are 10 rows.
    assert sorted(seats(*flood, *(running(f"few{n}", caller="few") for n in range(2)))) == ["few"] * 2 + ["flood"] * 3
    unmeasured = replace(rules, profiles={})
    assert len(seats(*flood, running("few", caller="few"), rules=unmeasured)) == 8
    # The class goes first, and one caller alone in it has no company to bear.
    assert len(seats(*flood, running("low", priority=3, caller="few"))) == 8


def test_decodes_take_turns_and_a_callers_own_go_by_its_deadlines() -> None:
    decodes = [
        *(decode(f"flood{n}", caller="flood") for n in range(4)),
        decode("late", caller="few"),
        decode("near", caller="few", timed=True, deadline_ms=1000),
    ]
    assert [d.claim.job_id for d in decodes_in_order(decodes, 0)] == [
        "near", "flood0", "flood1", "late", "flood2", "flood3"
    ]  # fmt: skip
    behind = {SQUARE: {"few": 1.0}}
    assert [d.claim.job_id for d in decodes_in_order(decodes, 0, behind)][:4] == ["flood0", "near", "flood1", "late"]


SLOTS = 8


def admitted(held: dict[str, int], callers: set[str], waits: str) -> int:
    """How many tasks of a caller are let in to a worker that steps all it has."""
    tasks = tuple(waiting(f"{waits}{n}", caller=waits) for n in range(20))
    lane = replace(unet_lane(slots=SLOTS), resident=sum(held.values()), held=held)
    policy = ConfiguredPolicy(POLICIES["continuous"], PolicyBounds(unet_batch=20))
    return len(policy.admit(PoolSnapshot(0, tasks, (lane,), callers={"a": frozenset(callers)} if callers else {})))


def test_a_flood_leaves_a_slot_to_those_who_were_there_lately() -> None:
    assert admitted({}, set(), "flood") == SLOTS
    assert admitted({}, {"flood", "few"}, "flood") == SLOTS - 1
    assert admitted({"flood": 7}, {"flood", "few"}, "few") == 1
    assert admitted({"flood": 6, "few": 1}, {"flood", "few"}, "flood") == 0, "few has less than half"
    assert admitted({"flood": 3, "few": 4}, {"flood", "few"}, "flood") == 1, "few has its share"
    assert admitted({}, {"flood", *map(str, range(30))}, "flood") == SLOTS * 3 // 4


@pytest.mark.parametrize("policy", ["continuous", "synerdiff", "vae-first"])
@pytest.mark.parametrize("load", [0.3, 0.8])
def test_a_flood_costs_another_caller_at_most_the_half_of_the_device(policy: str, load: float) -> None:
    """The whole table, over more requests and seeds, is `python -m bench.fairness`."""
    assert run(Case("paper-table", "equal", policy, load, seed=5, requests=25)).p99_ratio <= 1.5
