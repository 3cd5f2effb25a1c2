"""The moves of a task: a table has every one of them, the holdings alone make them, and every one is made."""

import random
import re
from itertools import product
from pathlib import Path

import pytest

from services.scheduler.engine.tasks import MAY_BECOME, IllegalMove, Phase, Task
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.requests import task_spec
from tests.services.scheduler.world import World, job

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
        world = World(max_deaths=1000)
        records = [job(f"j{n}", steps=3) for n in range(6)]
        for record in records:
            world.arrive(record)
        world.attach_all()
        for worker in chance.choices(["u0", "u0", "u0", "v0"], k=chance.randrange(40)):
            world.act(worker)
        lost = chance.choice([["u0"], ["v0"], ["u0", "v0"], []])
        if not lost:  # but the leader
            world.new_leader()
            for record in records:
                if not world.ended[record.job_id]:
                    world.arrive(record)
            world.attach_all()
        for worker in lost:
            world.lose(worker)
        for worker in lost:
            world.attach(worker)
        world.settle()
    assert made == ALL
