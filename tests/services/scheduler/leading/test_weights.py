"""Workers with other weights under one name: a job is drawn with those it was accepted for, or ends in one line."""

from collections.abc import Iterator
from dataclasses import replace

from services.scheduler.engine.effects import Admit, FailJob, SendVaePlan, WorkerEffect
from services.scheduler.engine.tasks import Phase
from synerdiff.jobs import JobRecord
from tests.services.scheduler.world import World, job

A, B = "a" * 64, "b" * 64
WAIT_MS = 60_000


def two_of_each(policy: str = "continuous") -> World:
    world = World(unets=2, vaes=2, policy=policy)
    for number, weights in enumerate((A, B)):
        world.unets[f"u{number}"].weights = world.vaes[f"v{number}"].weights = weights
    return world


def accepted_for(weights: str, *names: str, images: int = 1) -> list[JobRecord]:
    return [job(name, unet_weights=weights, vae_weights=weights, images=images) for name in names]


def drawn_by(world: World) -> dict[str, set[str]]:
    """Which workers were given each job, until nothing more happens."""
    given: dict[str, set[str]] = {}
    for worker_id, command in commands_of(world):
        named = [command.task.task_id] if isinstance(command, Admit) else []
        if isinstance(command, SendVaePlan):
            named = [entry.task_id for item in command.plan.items for entry in item.entries]
        for task_id in named:
            given.setdefault(task_id.split("/")[0], set()).add(worker_id)
    return given


def commands_of(world: World, most: int = 5000) -> Iterator[tuple[str, WorkerEffect]]:
    """Every command with its worker, just before it is carried out, until nothing more happens."""
    for _ in range(most):
        acted = world.write()
        for worker_id, worker in (world.unets | world.vaes).items():
            if worker.commands:
                yield worker_id, worker.commands[0]
                acted = world.act(worker_id) or acted
        if not acted:
            return
    raise AssertionError("never settles")


def test_each_job_is_drawn_by_the_workers_with_its_weights() -> None:
    for policy in ("continuous", "synerdiff", "static", "dynamic", "vae-first"):
        world = two_of_each(policy)
        for record in (*accepted_for(A, "a1", "a2", "a3"), *accepted_for(B, "b1", "b2", "b3", images=2)):
            world.arrive(record)
        world.attach_all()
        given = drawn_by(world)
        assert set(world.ended) == {"a1", "a2", "a3", "b1", "b2", "b3"}, policy
        assert all(given[name] == {"u0", "v0"} for name in ("a1", "a2", "a3")), policy
        assert all(given[name] == {"u1", "v1"} for name in ("b1", "b2", "b3")), policy
        world.assert_empty()


def test_only_other_weights_left_they_wait_and_then_fail_in_one_line() -> None:
    world = World()
    world.unets["u0"].weights = world.vaes["v0"].weights = B
    for record in (*accepted_for(A, "old"), *accepted_for(B, "new")):
        world.arrive(record)
    world.attach_all()
    world.engine.check_deadlines(1000)
    world.settle()
    assert set(world.ended) == {"new"}
    wanted = world.engine.wanted_jobs()["emoji"]
    assert wanted == world.engine.bounds.read_ahead * world.unets["u0"].slots, "those that wait take nobody's room"
    world.engine.check_deadlines(1000 + WAIT_MS - 1)
    world.pump()
    assert "old" not in world.ended
    world.engine.check_deadlines(1000 + WAIT_MS)
    world.pump()
    (failed,) = [effect for effect in world.store if isinstance(effect, FailJob)]
    assert (failed.job_id, failed.code) == ("old", 9)
    assert A[:12] in failed.message
    assert B[:12] in failed.message
    world.assert_empty()


def test_a_worker_that_comes_back_with_its_weights_in_time_is_waited_for() -> None:
    world = two_of_each()
    world.attach("u1")
    world.attach("v1")
    for record in accepted_for(A, "old"):
        world.arrive(record)
    for at_ms in (1000, WAIT_MS, 1000 + WAIT_MS - 1):
        world.engine.check_deadlines(at_ms)
    world.attach("u0")
    world.attach("v0")
    world.engine.check_deadlines(2 * WAIT_MS)
    assert drawn_by(world)["old"] == {"u0", "v0"}
    assert world.ended == {"old": 1}


def test_no_worker_at_all_is_waited_for_as_long_as_the_request_says() -> None:
    world = World()
    for record in accepted_for(A, "old"):
        world.arrive(record)
    world.engine.check_deadlines(1000)
    world.engine.check_deadlines(1000 + 10 * WAIT_MS)
    world.pump()
    assert not world.ended


def test_latents_wait_for_a_vae_worker_with_their_weights() -> None:
    world = World(vaes=2)
    world.unets["u0"].weights = A
    world.vaes["v0"].weights, world.vaes["v1"].weights = B, A
    for record in accepted_for(A, "old"):
        world.arrive(record)
    world.attach("u0")
    world.attach("v0")
    world.settle()
    (task,) = world.engine.holdings.tasks.values()
    assert task.phase in (Phase.WAITING, Phase.READY_TO_DECODE)
    assert not world.ended
    world.attach("v1")
    assert drawn_by(world)["old"] >= {"v1"}
    assert world.ended == {"old": 1}


def test_all_images_of_a_job_accepted_before_there_were_workers_have_the_same_weights() -> None:
    world = two_of_each()
    world.arrive(job("early", images=6))
    world.attach_all()
    given = drawn_by(world)["early"]
    assert given in ({"u0", "v0"}, {"u1", "v1"}, {"u0", "v1"}, {"u1", "v0"})
    assert world.stored == {("early", index): 1 for index in range(6)}


def test_a_worker_that_says_nothing_of_its_weights_draws_for_all() -> None:
    world = World()
    record = replace(job("old"), request=replace(job("old").request, unet_weights=A, vae_weights=A))
    world.arrive(record)
    world.attach_all()
    world.settle()
    assert world.ended == {"old": 1}
