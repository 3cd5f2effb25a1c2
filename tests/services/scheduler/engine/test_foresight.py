"""What the engine foresees of jobs, how long they would take in order of acceptance, and remembers of callers."""

from dataclasses import replace

import pytest

from services.scheduler.engine.events import JobArrived, JobDropped
from services.scheduler.engine.foresight import Tails, first_come_ms
from services.scheduler.engine.holdings import LATELY_MS
from services.scheduler.engine.planning import domain_snapshot, pool_snapshot
from services.scheduler.engine.tasks import Phase, Task
from services.scheduler.policy.policy_spec import Pace
from services.scheduler.policy.snapshots import TurnClass
from synerdiff.jobs import JobRecord
from synerdiff.requests import Priority
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.world import World, job

PROFILE = straight_line_profile()
PACE = Pace.of(PROFILE)


def world(unets: int = 1) -> World:
    return World(unets=unets, profile=PROFILE).begin()


def tasks_of(world: World, job_id: str) -> list[Task]:
    return [task for task in world.engine.holdings.tasks.values() if task.job_id == job_id]


def in_order_ms(calls: float, decodes: float, unread_ms: float = 0.0) -> object:
    return pytest.approx(unread_ms + calls * PACE.call_ms + decodes * PACE.decode_ms)


def test_as_many_tasks_as_a_batch_has_seats_run_at_once_then_one_after_another() -> None:
    w = world()
    w.arrive(job("many", images=2 * PACE.seats, steps=10))
    assert [task.first_come_ms for task in tasks_of(w, "many")] == [
        in_order_ms(10 if place < PACE.seats else 20, place + 1) for place in range(2 * PACE.seats)
    ]


def test_only_those_of_its_model_and_no_lower_class_go_before_it() -> None:
    w = world()
    w.arrive(
        job("low", images=PACE.seats, steps=40, priority=Priority.LOW),
        job("other", images=PACE.seats, steps=40, model="other"),
        job("first", images=PACE.seats, steps=7),
        job("then", steps=10),
    )
    assert tasks_of(w, "then")[0].first_come_ms == in_order_ms(7 + 10, PACE.seats + 1)
    assert tasks_of(w, "other")[0].first_come_ms == 0, "nothing of it was measured"


def test_every_worker_takes_its_share() -> None:
    w = world(unets=2)
    w.arrive(job("first", images=PACE.seats, steps=7), job("then", steps=10))
    assert tasks_of(w, "then")[0].first_come_ms == in_order_ms(10, (PACE.seats + 1) / 2)


def test_a_task_whose_image_is_made_takes_no_more_time() -> None:
    w = world()
    w.arrive(job("done", images=PACE.seats, steps=7))
    for task in tasks_of(w, "done"):
        task.phase = Phase.STORING
    w.arrive(job("then", steps=10))
    assert tasks_of(w, "then")[0].first_come_ms == in_order_ms(10, 1)


def test_the_time_in_the_queue_counts() -> None:
    w = world()
    w.now_ms = 400
    w.arrive(job("late", steps=10, accepted_at_ms=100))
    assert tasks_of(w, "late")[0].first_come_ms == in_order_ms(10, 1, 300)


def test_tasks_know_the_tail_of_those_before_them() -> None:
    w = world()
    for name in ("long", "as long"):
        w.arrive(job(name, steps=50))
        w.on(JobDropped(name))
    w.arrive(job("short", steps=4))
    assert tasks_of(w, "short")[0].tail_ms == in_order_ms(50, 1)


ROUND_PACE = Pace(rows=4, call_ms=10.0, least_call_ms=6.0, decode_ms=1.0)


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
    assert first_come_ms(ROUND_PACE, ahead, 8, workers) == pytest.approx(expected_ms)


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


# ---- callers: how much of the pool they have, and who was there lately


SLOTS = 4
SQUARE = TurnClass("emoji", 2)


def of(caller: str, name: str, **fields: object) -> JobRecord:
    return replace(job(name, **fields), caller=caller)  # type: ignore[arg-type]


def test_a_pool_that_a_flood_has_filled_still_wants_what_another_caller_sends() -> None:
    world = World().begin()
    room = world.engine.bounds.read_ahead * SLOTS
    assert world.engine.wanted()["emoji"] == (room, SLOTS, {})
    world.arrive(*(of("flood", f"flood{n}") for n in range(room)))
    assert world.engine.wanted()["emoji"] == (0, SLOTS, {"flood": room})
    assert world.engine.wanted_jobs() == {}
    world.arrive(*(of("few", f"few{n}") for n in range(2)))
    assert world.engine.wanted()["emoji"] == (0, SLOTS // 2, {"flood": room, "few": 2})


def test_calls_count_by_their_rows_for_their_callers() -> None:
    world = World().begin(of("a", "a", images=2), of("b", "b"))
    held = world.engine.holdings
    call = 2 * 128 * 128
    held.shares.stepped((held.jobs[task.job_id], task, task.job_id == "b") for task in held.tasks.values())
    assert held.shares.ahead() == {SQUARE: {"a": call}}, "b skips guidance: half a call, which a has passed"


def test_every_call_of_a_plan_counts_and_every_decode() -> None:
    world = World(profile=PROFILE).begin(of("a", "a", steps=3))
    world.settle()
    # The last call, and the decode after it: 20 ms, of which one of the eight rows at the knee takes 6.25.
    assert world.engine.holdings.shares.ahead()[SQUARE]["a"] == pytest.approx((2 + 20 / 6.25) * 128 * 128)


def test_one_caller_alone_is_no_company() -> None:
    world = World().begin(of("a", "a"))
    snapshot = pool_snapshot(world.engine.holdings, 2, 0)
    assert not snapshot.callers
    assert not snapshot.unet[0].held


def test_a_caller_is_there_lately_for_a_minute() -> None:
    world = World()
    for caller in ("a", "b"):
        world.engine.on(JobArrived(of(caller, caller)), 0)
    world.attach_all()
    snapshot = pool_snapshot(world.engine.holdings, 2, 0)
    assert snapshot.callers == {"emoji": {"a", "b"}}
    assert snapshot.unet[0].held == {"a": 1, "b": 1}
    world.engine.holdings.drop("b")
    assert pool_snapshot(world.engine.holdings, 2, LATELY_MS).callers == {"emoji": {"a", "b"}}
    assert pool_snapshot(world.engine.holdings, 2, LATELY_MS + 1).callers == {}


def test_what_a_snapshot_says_of_turns_does_not_change() -> None:
    world = World().begin(of("a", "a"))
    held = world.engine.holdings
    seen = domain_snapshot(held, "d0", 2, 0).ahead
    held.shares.stepped([(held.jobs["a"], held.tasks["a/0"], False)])
    assert seen == {}
    assert held.shares.ahead()
