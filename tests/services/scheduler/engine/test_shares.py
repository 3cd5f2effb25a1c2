"""What the engine remembers of callers: how much of the pool they have, and who was there lately."""

from dataclasses import replace

import pytest

from services.scheduler.engine.events import JobArrived
from services.scheduler.engine.holdings import LATELY_MS
from services.scheduler.engine.planning import domain_snapshot, pool_snapshot
from services.scheduler.policy.snapshots import TurnClass
from synerdiff.jobs import JobRecord
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.world import World, job

SLOTS = 4
SQUARE = TurnClass("emoji", 2)
# 10 ms and 5 ms a row: at eight rows, the most, one takes 6.25 ms.
PROFILE = straight_line_profile()


def of(caller: str, name: str, **fields: object) -> JobRecord:
    return replace(job(name, **fields), caller=caller)  # type: ignore[arg-type]


def attached() -> World:
    world = World()
    world.attach_all()
    return world


def test_a_pool_that_a_flood_has_filled_still_wants_what_another_caller_sends() -> None:
    world = attached()
    room = world.engine.bounds.read_ahead * SLOTS
    assert world.engine.wanted()["emoji"] == (room, SLOTS, {})
    for n in range(room):
        world.arrive(of("flood", f"flood{n}"))
    assert world.engine.wanted()["emoji"] == (0, SLOTS, {"flood": room})
    assert world.engine.wanted_jobs() == {}
    for n in range(2):
        world.arrive(of("few", f"few{n}"))
    assert world.engine.wanted()["emoji"] == (0, SLOTS // 2, {"flood": room, "few": 2})


def test_calls_count_by_their_rows_for_their_callers() -> None:
    world = attached()
    for record in (of("a", "a", images=2), of("b", "b")):
        world.arrive(record)
    held = world.engine.holdings
    call = 2 * 128 * 128
    held.shares.stepped((held.jobs[task.job_id], task, task.job_id == "b") for task in held.tasks.values())
    assert held.shares.ahead() == {SQUARE: {"a": call}}, "b skips guidance: half a call, which a has passed"


def test_every_call_of_a_plan_counts_and_every_decode() -> None:
    world = World(profile=PROFILE)
    world.attach_all()
    world.arrive(of("a", "a", steps=3))
    world.pump()
    world.settle()
    # The last call, and the decode after it: 20 ms, of which a row at the knee takes 6.25.
    assert world.engine.holdings.shares.ahead()[SQUARE]["a"] == pytest.approx((2 + 20 / 6.25) * 128 * 128)


def test_one_caller_alone_is_no_company() -> None:
    world = attached()
    world.arrive(of("a", "a"))
    snapshot = pool_snapshot(world.engine.holdings, 2, 0)
    assert not snapshot.callers
    assert not snapshot.unet[0].held


def test_a_caller_is_there_lately_for_a_minute() -> None:
    world = attached()
    for caller in ("a", "b"):
        world.engine.on(JobArrived(of(caller, caller)), 0)
    world.pump()
    snapshot = pool_snapshot(world.engine.holdings, 2, 0)
    assert snapshot.callers == {"emoji": {"a", "b"}}
    assert snapshot.unet[0].held == {"a": 1, "b": 1}
    world.engine.holdings.drop("b")
    assert pool_snapshot(world.engine.holdings, 2, LATELY_MS).callers == {"emoji": {"a", "b"}}
    assert pool_snapshot(world.engine.holdings, 2, LATELY_MS + 1).callers == {}


def test_what_a_snapshot_says_of_turns_does_not_change() -> None:
    world = attached()
    held = world.engine.holdings
    world.arrive(of("a", "a"))
    seen = domain_snapshot(held, "d0", 2, 0).ahead
    held.shares.stepped([(held.jobs["a"], held.tasks["a/0"], False)])
    assert seen == {}
    assert held.shares.ahead()
