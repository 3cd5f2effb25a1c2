"""The engine against virtual workers: whatever dies or is cancelled, every job ends once and nothing leaks."""

import random
import re
from itertools import product
from pathlib import Path

import pytest

from services.scheduler.engine.effects import Admit, FailJob, FinishJob, MarkDecoding, StartJob
from services.scheduler.engine.events import JobDropped, WorkerAnnounced, WorkerLost
from services.scheduler.engine.tasks import MAY_BECOME, IllegalMove, Phase, Task
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.jobs import JobState
from synerdiff.requests import Priority, task_spec
from tests.services.scheduler.world import World, job


def test_a_job_goes_from_waiting_to_finished_in_order() -> None:
    world = World().begin(job("j", images=2))
    world.settle_empty()
    kinds = [type(effect) for effect in world.store if not hasattr(effect, "step")]
    assert kinds == [StartJob, MarkDecoding, FinishJob]
    assert world.stored == {("j", 0): 1, ("j", 1): 1}


def test_plans_run_ahead_by_two_and_no_further() -> None:
    world = World().begin(job("j", steps=10))
    world.act("u0")  # admit
    plans = world.plans()
    assert [[e.call for e in plan.items[0].entries] for plan in plans] == [[0], [1]]
    assert [plan.tick for plan in plans] == [1, 2]


def test_a_waiting_task_joins_at_the_next_step_and_a_full_batch_is_never_exceeded() -> None:
    world = World().begin(job("a", steps=20))
    world.act("u0")
    world.arrive(*(job(name, steps=20) for name in "bcde"))
    world.pump()
    batches = []
    for _ in range(10):
        batches += [len(plan.items[0].entries) for plan in world.plans()]
        world.act("u0")
    assert max(batches) == 3
    assert len(world.unets["u0"].residents) == 4  # three run, one is prepared ahead


def test_sizes_share_a_tick_but_not_a_batch() -> None:
    world = World().begin(job("a", steps=9), job("b", steps=9, width=256))
    world.act("u0", times=5)
    assert [[e.task_id for e in item.entries] for item in world.plans()[-1].items] == [["a/0"], ["b/0"]]


def test_priority_goes_first() -> None:
    low = [job(name, priority=Priority.LOW, accepted_at_ms=1) for name in "abcd"]
    world = World().begin(*low, job("urgent", priority=Priority.HIGH, accepted_at_ms=2))
    assert next(iter(world.engine.holdings.unet["u0"].tasks)) == "urgent/0"


def test_work_spreads_over_workers() -> None:
    world = World(unets=2, domains=2).begin(*map(job, "abcd"))
    world.arrive(*map(job, "efgh"))
    world.pump()
    assert sorted(len(unet.commands) for unet in world.unets.values()) == [4, 4]


def test_a_domain_without_a_vae_worker_is_decoded_elsewhere() -> None:
    world = World(unets=2, vaes=1, domains=2).begin(*map(job, "abcdef"))
    world.settle_empty()
    assert len(world.ended) == 6


def test_a_cancelled_job_frees_its_slots_at_once() -> None:
    world = World().begin(job("j", images=3, steps=50))
    world.act("u0", times=8)
    world.on(JobDropped("j"))
    world.pump()
    world.act("u0", times=5)  # the two plans under way, and a cancellation each
    assert not world.unets["u0"].residents
    world.settle_empty()
    assert not world.ended


def test_a_deadline_fails_the_job_and_frees_its_slots() -> None:
    world = World().begin(job("j", steps=50, deadline_ms=500, timeout_ms=500))
    world.act("u0")
    world.engine.check_deadlines(501)
    world.pump()
    world.settle_empty()
    failed = world.failed()
    assert (failed.code, failed.message) == (4, "timeout: the request's 0.5 s ran out")


def test_a_worker_without_room_is_no_failure() -> None:
    world = World()
    world.unets["u0"].slots = 1
    world.attach_all()
    world.engine.holdings.unet["u0"].slots = 4  # the engine believes in more room than there is
    world.arrive(*map(job, "abc"))
    world.pump()
    admissions = 0
    for _ in range(30):
        admissions += isinstance(next(iter(world.unets["u0"].commands), None), Admit)
        world.act("u0")
    assert admissions == 3, "a worker that refuses is not asked again at once"
    world.unets["u0"].slots = 4
    world.engine.check_deadlines(world.now_ms)
    world.pump()
    world.settle()
    assert set(world.ended) == {"a", "b", "c"}
    assert not [effect for effect in world.store if isinstance(effect, FailJob)]


@pytest.mark.parametrize("not_now", [{"takes_new": False}, {"takes_new": True, "suspect": True}])
def test_a_worker_that_drains_or_is_suspect_gets_nothing_new_until_it_is_not(not_now: dict[str, bool]) -> None:
    world = World().begin(job("a", steps=3))
    for worker in ("u0", "v0"):
        world.on(WorkerAnnounced(worker, **not_now))
    world.arrive(job("b", steps=3))
    world.pump()
    world.settle()
    assert set(world.engine.holdings.unet["u0"].tasks) == {"a/0"}, "what it held went on; b waits"
    for worker in ("u0", "v0"):
        world.on(WorkerAnnounced(worker, takes_new=True))
    world.pump()
    world.settle_empty()
    assert set(world.ended) == {"a", "b"}


def test_a_task_that_kills_every_worker_is_given_up() -> None:
    world = World(max_deaths=2)
    world.arrive(job("poison", steps=50))
    for _ in range(3):
        world.attach("u0")
        world.act("u0")
        world.die(["u0"])
        world.lose("u0")
    assert "lost 3 times" in world.failed().message


def test_a_new_leader_goes_on_where_the_tasks_stand() -> None:
    records = [job("a", steps=20), job("b", steps=20)]
    world = World().begin(*records)
    world.act("u0", times=12)
    stands = {task_id: r.next_call for task_id, r in world.unets["u0"].residents.items()}
    assert min(stands.values()) > 2
    world.new_leader()
    world.store.clear()
    world.begin(records[0])  # b has been cancelled meanwhile
    assert StartJob("a") in world.store, "its record says that the leader before could not write it"
    assert world.engine.holdings.tasks["a/0"].done_calls == stands["a/0"]
    world.act("u0")
    assert set(world.unets["u0"].residents) == {"a/0"}
    world.settle_empty()
    assert world.ended == {"a": 1}


def test_a_job_whose_images_are_all_stored_needs_only_its_end() -> None:
    world = World()
    world.arrive(job("j", images=2, images_done=(0, 1), state=JobState.DECODING))
    world.pump()
    assert world.ended == {"j": 1}


@pytest.mark.parametrize("worker", ["u0", "v0"])
def test_a_stream_that_breaks_does_not_lose_what_the_worker_holds(worker: str) -> None:
    world = World().begin(job("j", steps=6))
    world.act("u0", times=5)
    before = world.unets["u0"].residents["j/0"].next_call
    world.on(WorkerLost(worker))
    world.attach(worker)
    assert world.engine.holdings.tasks["j/0"].done_calls >= before > 0 or worker == "v0"
    world.settle_empty()
    assert world.ended == {"j": 1}


@pytest.mark.parametrize("heard", [("u0", "v0"), ("v0", "u0")])
@pytest.mark.parametrize("back", [("u0", "v0"), ("v0", "u0")])
def test_both_workers_of_a_domain_may_die_at_once_whatever_its_tasks_are_at(
    heard: tuple[str, str], back: tuple[str, str]
) -> None:
    """As clients of CUDA MPS do when one of them has a fatal fault. The leader hears of both before they are back."""
    met: set[Phase] = set()
    script = (["u0"] * 9 + ["v0"]) * 4
    for moment in range(0, len(script), 2):
        world = World()
        world.unets["u0"].slots = 12
        jobs = [job(f"j{n}", steps=1 + n % 3) for n in range(16)]
        world.begin(*jobs)
        for worker in script[:moment]:
            world.act(worker)
        met |= phases(world)
        world.die(heard)
        for worker in heard:
            world.lose(worker)
        assert phases(world) <= {Phase.WAITING, Phase.STORING}, "what has reached the leader is kept, the rest is anew"
        for worker in back:
            world.attach(worker)
            world.act(worker)
        world.settle_empty()
        assert world.ended == {record.job_id: 1 for record in jobs}
        assert set(world.stored.values()) == {1}
    assert met == set(Phase) - {Phase.DONE}


def phases(world: World) -> set[Phase]:
    return {task.phase for task in world.engine.holdings.tasks.values()}


def test_latents_of_a_workers_earlier_life_are_not_decoded_again() -> None:
    """Its UNet worker died and came back while a task was being decoded; then the VAE worker died."""
    world = World().begin(job("a", steps=1))
    tasks = world.engine.holdings.tasks
    while tasks["a/0"].phase is not Phase.DECODING:
        assert world.act("u0")
    for worker in ("u0", "v0"):
        world.die([worker])
        world.lose(worker)
        if worker == "u0":
            world.attach(worker)
    (task,) = tasks.values()
    assert task.phase is Phase.PREPARING
    world.lose("u0")
    for worker in ("u0", "v0"):
        world.attach(worker)
    world.settle()
    assert world.ended["a"] == 1


ALL = {(before, after) for before, all_after in MAY_BECOME.items() for after in all_after}


def test_a_move_that_the_table_does_not_have_raises_and_moves_nothing() -> None:
    for before, after in set(product(Phase, Phase)) - ALL:
        task = Task(task_spec("j", job("j").request, 0), "j", 0, BatchKey("emoji", 128, 128), before)
        with pytest.raises(IllegalMove, match=f"j/0: {before.name} cannot become {after.name}"):
            task.become(after)
        assert task.phase is before


def test_the_holdings_alone_move_tasks() -> None:
    moving = re.compile(r"\.become\(|\.phase = |back_to_waiting\(")
    files = {path.name for path in Path("services/scheduler").rglob("*.py") if moving.search(path.read_text())}
    assert files == {"holdings.py", "tasks.py"}


def test_every_move_of_the_table_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made, become, chance = set[tuple[Phase, Phase]](), Task.become, random.Random(7)

    def noting(task: Task, phase: Phase) -> None:
        made.add((task.phase, phase))
        become(task, phase)

    monkeypatch.setattr(Task, "become", noting)
    for _ in range(100):
        records = [job(f"j{n}", steps=3) for n in range(6)]
        world = World(max_deaths=1000).begin(*records)
        for worker in chance.choices(["u0", "u0", "u0", "v0"], k=chance.randrange(40)):
            world.act(worker)
        lost = chance.choice([["u0"], ["v0"], ["u0", "v0"], []])
        if not lost:  # but the leader
            world.new_leader()
            world.begin(*(record for record in records if not world.ended[record.job_id]))
        for worker in lost:
            world.lose(worker)
        for worker in lost:
            world.attach(worker)
        world.settle()
    assert made == ALL
