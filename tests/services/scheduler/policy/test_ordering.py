"""Orders: who goes first, and that nobody waits for ever."""

from collections import Counter
from dataclasses import replace

import pytest

from bench.fairness import Case, run
from services.scheduler.policy.ordering import (
    CallTurns,
    FairQueue,
    FirstComeOrder,
    UrgencyOrder,
    call_cost,
    decodes_in_order,
    ordered,
    row_calls,
)
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, Pace, PolicyBounds, Urgency, paces_of
from services.scheduler.policy.rounds import Rules, running_set
from services.scheduler.policy.snapshots import BatchKey, PoolSnapshot, RunningTask, TurnClass
from synerdiff.profiles import ItemCaps
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.snapshot_values import KEY, OTHER_KEY, decode, running, unet_lane, waiting

PACE = Pace(rows=4, call_ms=10.0, least_call_ms=6.0, decode_ms=0.0)
PACES = {KEY: PACE}


def by_urgency(*tasks: RunningTask, now_ms: int = 0) -> list[str]:
    return [task.claim.job_id for task in ordered(tasks, "urgency", PACES, now_ms, Urgency())]


def test_fifo_lets_those_under_way_go_on_whatever_comes() -> None:
    tasks = [
        running("late", accepted_ms=9),
        running("high", accepted_ms=9, priority=1),
        running("begun", accepted_ms=5, at=1, priority=3),
        running("early", accepted_ms=3),
    ]
    assert [t.claim.job_id for t in ordered(tasks, "fifo", PACES, 10, Urgency())] == ["begun", "high", "early", "late"]


def test_the_least_work_left_goes_first_within_a_priority_class() -> None:
    assert by_urgency(
        running("long", of=50, at=10),
        running("short", of=8),
        running("nearly", of=50, at=45),
        running("high", priority=1),
    ) == ["high", "nearly", "short", "long"]


def test_all_images_of_a_request_are_its_work() -> None:
    many = [running("many", of=10, image=image) for image in range(3)]
    assert by_urgency(*many, running("one", of=20)) == ["one", "many", "many", "many"]


def test_of_equals_the_one_that_has_begun_goes_on_then_the_oldest() -> None:
    assert by_urgency(
        running("new", of=10, accepted_ms=1), running("old", of=10), running("begun", of=12, at=2, accepted_ms=5)
    ) == ["begun", "old", "new"]


def test_a_task_out_of_slack_goes_before_shorter_ones() -> None:
    # In order of acceptance it would have taken 500 ms; twice that is its bound, and 500 ms it still takes alone.
    long = running("long", of=50, first_come_ms=500, tail_ms=2000)
    short = running("short", of=8, accepted_ms=450, first_come_ms=2000, tail_ms=2000)
    assert by_urgency(long, short, now_ms=300) == ["short", "long"]
    assert by_urgency(long, short, now_ms=490) == ["long", "short"]


def test_nobody_waits_longer_than_the_tail_but_who_would_have_in_order_of_acceptance() -> None:
    short = running("short", of=8, first_come_ms=5000, tail_ms=700)
    for first_come_ms, pressed_at_ms in ((500, 200), (1200, 700)):
        long = running("long", of=50, first_come_ms=first_come_ms, tail_ms=700)
        assert by_urgency(long, short, now_ms=pressed_at_ms - 150) == ["short", "long"]
        assert by_urgency(long, short, now_ms=pressed_at_ms) == ["long", "short"]


def test_those_who_have_to_end_before_a_pressed_one_go_before_it() -> None:
    """Alone, the last of them would keep its bound; behind the others it cannot, so they may not be late either."""
    queue = [running(f"long{k}", of=50, first_come_ms=900 + k, tail_ms=2000) for k in range(6)]
    short = running("short", of=8, first_come_ms=5000, tail_ms=2000)
    assert by_urgency(short, queue[-1], now_ms=300)[0] == "short"
    assert by_urgency(short, *queue, now_ms=300)[-1] == "short"


def test_a_higher_class_leaves_less_time_for_a_lower_one() -> None:
    low = [running(name, of=50, priority=3, first_come_ms=500, tail_ms=1000) for name in ("low",)]
    short = running("short", of=8, priority=3, first_come_ms=5000, tail_ms=1000)
    high = [running(f"high{k}", of=50, priority=1, first_come_ms=500, tail_ms=1000) for k in range(2)]
    assert by_urgency(*low, short, now_ms=250) == ["short", "low"]
    assert by_urgency(*low, short, *high, now_ms=250) == ["high0", "high1", "low", "short"]


def test_work_takes_less_time_on_more_workers() -> None:
    queue = [running(f"long{k}", of=50, first_come_ms=900 + k, tail_ms=2000) for k in range(6)]
    short = running("short", of=8, first_come_ms=5000, tail_ms=2000)
    tasks = [short, *queue]
    assert UrgencyOrder(tasks, PACES, 300, Urgency(), workers=1).sorted(tasks)[-1] is short
    assert UrgencyOrder(tasks, PACES, 300, Urgency(), workers=3).sorted(tasks)[0] is short


def test_a_clients_deadline_presses_while_it_can_be_met() -> None:
    timed = running("timed", of=20, timed=True, deadline_ms=300)
    untimed = running("untimed", of=20, deadline_ms=300)
    short = running("short", of=8)
    assert by_urgency(timed, untimed, short, now_ms=0) == ["short", "timed", "untimed"]
    assert by_urgency(timed, untimed, short, now_ms=150) == ["timed", "short", "untimed"]
    assert by_urgency(timed, untimed, short, now_ms=190) == ["short", "timed", "untimed"], "it is too late for it"


def test_a_stream_of_short_tasks_does_not_starve_a_long_one() -> None:
    """One at a time, every 8 calls a new task of 8 calls: the shortest first alone would never serve the long one."""
    now_ms, long = 0, running("long", of=50, first_come_ms=500, tail_ms=2000)
    shorts: list[RunningTask] = []
    for step in range(1000):
        if step % 8 == 0:
            shorts.append(running(f"short{step}", of=8, accepted_ms=now_ms, first_come_ms=500, tail_ms=2000))
        first = ordered([long, *shorts], "urgency", PACES, now_ms, Urgency())[0]
        now_ms += 10
        advanced = first._replace(next_call=first.next_call + 1)
        if first is long:
            long = advanced
            if long.next_call == long.num_calls:
                break
        else:
            shorts = [s for s in (advanced if s is first else s for s in shorts) if s.next_call < s.num_calls]
    assert now_ms <= 3 * 500, "three times what it takes alone"


def test_without_the_pace_of_a_task_nobody_is_compared_by_work() -> None:
    tasks = [
        running("long", of=50),
        running("short", of=8, accepted_ms=1),
        running("odd", key=OTHER_KEY, accepted_ms=2),
    ]
    assert by_urgency(*tasks) == ["long", "short", "odd"]


def test_decodes_go_by_priority_then_by_a_deadline_close_by_then_by_age() -> None:
    decodes = [
        decode("old"),
        decode("far", timed=True, deadline_ms=9000),
        decode("near", timed=True, deadline_ms=1500),
        decode("default", deadline_ms=1000),
        decode("high", priority=1),
    ]
    assert [d.claim.job_id for d in decodes_in_order(decodes, 0)] == ["high", "near", "old", "far", "default"]


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
