"""Plans from another process: they come, they survive its death, and what has none is asked once."""

import asyncio
import math
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import psutil
import pytest

from services.scheduler.planner import plan_book
from services.scheduler.planner.plan_book import ANSWERS, QUESTIONS, ColdPlans, Question, serve
from services.scheduler.planner.planned_round import PlannedRound, PlanQuery
from services.scheduler.planner.planner import plan_round
from synerdiff.profiles import Profile, dump, load
from synerdiff.stopping import cancel_and_wait
from tests.waiting import until

PROFILES = Path(__file__).parents[4] / "bench" / "profiles"
IN_A_SCRIPT = (sys.executable, "-c")


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load(PROFILES / "paper-table.json")


class Plans:
    """What came back."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, PlanQuery], PlannedRound] = {}

    def add(self, digest: str, query: PlanQuery, planned: PlannedRound) -> None:
        self.known[digest, query] = planned


@asynccontextmanager
async def running(plans: Plans, *command: str) -> AsyncIterator[ColdPlans]:
    cold = ColdPlans(plans.add, command) if command else ColdPlans(plans.add)
    task = asyncio.create_task(cold.run())
    try:
        yield cold
    finally:
        await cancel_and_wait(task)


def solvers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "services.scheduler.planner.plan_book" in p.cmdline()]


async def test_plans_come_from_a_process_of_low_priority_that_can_die(profile: Profile) -> None:
    plans = Plans()
    async with running(plans) as cold:
        before = PlanQuery(8, 6, skips=2, threshold=0.96)
        cold.submit(profile, [before])
        await until(lambda: len(plans.known) == 1)
        assert plans.known[profile.digest, before] == plan_round(profile, before)
        (solver,) = solvers()
        assert solver.nice() >= 10
        os.kill(solver.pid, signal.SIGKILL)
        after = PlanQuery(5, 3)
        cold.submit(profile, [after])
        await until(lambda: len(plans.known) == 2)
        assert plans.known[profile.digest, after] == plan_round(profile, after)
    await until(lambda: not solvers())


async def test_a_process_that_always_dies_costs_a_query_two_tries(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan_book, "_RESTART_PAUSE_S", 0)
    tally = tmp_path / "tally"
    plans = Plans()
    async with running(plans, *IN_A_SCRIPT, f"open({str(tally)!r}, 'a').write('x')") as cold:
        cold.submit(profile, [PlanQuery(1, 1)])
        await until(lambda: tally.exists() and tally.read_text() == "xx")
        await until(lambda: bool(cold._unsolvable))
        cold.submit(profile, [PlanQuery(1, 1)])
        await asyncio.sleep(0.1)
    assert tally.read_text() == "xx"
    assert plans.known == {}


async def test_a_process_that_hangs_is_given_up(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_book, "_RESTART_PAUSE_S", 0)
    monkeypatch.setattr(plan_book, "TIMEOUT_S", 0.1)
    async with running(Plans(), *IN_A_SCRIPT, "import time; time.sleep(60)") as cold:
        cold.submit(profile, [PlanQuery(1, 1)])
        await until(lambda: bool(cold._unsolvable))


async def test_the_newest_question_goes_first_and_the_oldest_are_dropped(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_book, "MOST_WAITING", 2)
    plans = Plans()
    cold = ColdPlans(plans.add)
    cold.submit(profile, [PlanQuery(unet, 0) for unet in (1, 2, 3)])
    task = asyncio.create_task(cold.run())
    await until(lambda: len(plans.known) == 2)
    await cancel_and_wait(task)
    assert [query.unet for _, query in plans.known] == [3, 2]


def test_the_solver_answers_every_line(profile: Profile) -> None:
    text = dump(profile)
    asked = [PlanQuery(3, 2), PlanQuery(2, 2, threshold=-1), PlanQuery(2, 2, skip_price_ms=math.inf)]
    lines = [
        *(QUESTIONS.dump(Question(query, text)) for query in asked),
        QUESTIONS.dump(Question(asked[0], "{}")),
        b"3",
    ]
    answers = BytesIO()
    serve(BytesIO(b"\n".join(lines)), answers)
    first, *others = [ANSWERS.parse(line) for line in answers.getvalue().splitlines()]
    assert first.planned == plan_round(profile, asked[0])
    assert [(answer.planned, answer.problem.split(":")[0]) for answer in others] == [
        (None, "ValueError"),
        *[(None, "InvalidRequest")] * 3,
    ]
