"""The memo of plans: what it finds, misses and forgets; and plans from another process, which survive its death."""

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
from services.scheduler.planner.plan_book import ANSWERS, QUESTIONS, ColdPlans, PlanBook, Question, serve, snapped
from services.scheduler.planner.planned_round import PlannedRound, PlanQuery
from services.scheduler.planner.planner import plan_round
from synerdiff.profiles import dump
from synerdiff.stopping import cancel_and_wait
from tests.services.scheduler.simulated import PAPER, PAPER_SERIAL
from tests.waiting import until


@pytest.mark.parametrize(
    ("threshold", "cell"), [(1.0, 1.0), (0.98, 0.98), (0.97, 0.98), (0.981, 1.0), (0.9800000001, 0.98), (0.011, 0.02)]
)
def test_a_threshold_is_snapped_to_the_next_cell_up(threshold: float, cell: float) -> None:
    assert snapped(threshold) == cell


def test_a_plan_is_missing_until_it_is_added() -> None:
    book = PlanBook()
    asked, missing = PlanQuery(3, 2, threshold=0.95), PlanQuery(3, 2, threshold=0.96)
    assert book.lookup(PAPER, asked) is None
    assert book.lookup(PAPER, asked._replace(threshold=0.957)) is None
    assert book.take_missing() == [(PAPER, missing)]
    assert book.take_missing() == []
    planned = plan_round(PAPER, missing)
    book.add(PAPER.digest, missing, planned)
    assert book.lookup(PAPER, asked) is planned
    assert book.take_missing() == []


def test_a_plan_that_came_meanwhile_is_missing_no_more() -> None:
    book, query = PlanBook(), PlanQuery(1, 1)
    book.lookup(PAPER, query)
    book.add(PAPER.digest, query, plan_round(PAPER, query))
    assert book.take_missing() == []


def test_a_plan_holds_for_its_profile_alone() -> None:
    book = PlanBook(solve_now=True)
    book.lookup(PAPER, PlanQuery(3, 2))
    other = PAPER_SERIAL
    assert book.lookup(other, PlanQuery(3, 2)) == plan_round(other, PlanQuery(3, 2))
    assert len(book) == 2


def test_solving_now_misses_nothing_and_keeps_to_the_threshold_asked_for() -> None:
    book = PlanBook(solve_now=True)
    planned = book.lookup(PAPER, PlanQuery(8, 6, threshold=0.949))
    assert planned is not None
    assert planned.total_ms <= planned.fastest_ms / 0.949
    assert book.take_missing() == []


def test_the_least_used_go_first() -> None:
    book = PlanBook(capacity=2)
    planned = plan_round(PAPER, PlanQuery(1, 0))
    for unet in (1, 2):
        book.add(PAPER.digest, PlanQuery(unet, 0), planned)
    book.lookup(PAPER, PlanQuery(1, 0))
    book.add(PAPER.digest, PlanQuery(3, 0), planned)
    assert [book.lookup(PAPER, PlanQuery(unet, 0)) is None for unet in (1, 2, 3)] == [False, True, False]
    for unet in (5, 6, 7):
        book.lookup(PAPER, PlanQuery(unet, 0))
    assert [query.unet for _, query in book.take_missing()] == [6, 7]


# ---- another process


IN_A_SCRIPT = (sys.executable, "-c")


class Plans(dict[tuple[str, PlanQuery], PlannedRound]):
    """Those that came back."""

    def add(self, digest: str, query: PlanQuery, planned: PlannedRound) -> None:
        self[digest, query] = planned


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


async def test_plans_come_from_a_process_of_low_priority_that_can_die() -> None:
    plans = Plans()
    async with running(plans) as cold:
        before = PlanQuery(8, 6, skips=2, threshold=0.96)
        cold.submit(PAPER, [before])
        await until(lambda: len(plans) == 1)
        assert plans[PAPER.digest, before] == plan_round(PAPER, before)
        (solver,) = solvers()
        assert solver.nice() >= 10
        os.kill(solver.pid, signal.SIGKILL)
        after = PlanQuery(5, 3)
        cold.submit(PAPER, [after])
        await until(lambda: len(plans) == 2)
        assert plans[PAPER.digest, after] == plan_round(PAPER, after)
    await until(lambda: not solvers())


async def test_a_process_that_always_dies_costs_a_query_two_tries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan_book, "_RESTART_PAUSE_S", 0)
    tally = tmp_path / "tally"
    plans = Plans()
    async with running(plans, *IN_A_SCRIPT, f"open({str(tally)!r}, 'a').write('x')") as cold:
        cold.submit(PAPER, [PlanQuery(1, 1)])
        await until(lambda: tally.exists() and tally.read_text() == "xx")
        await until(lambda: bool(cold._unsolvable))
        cold.submit(PAPER, [PlanQuery(1, 1)])
        await asyncio.sleep(0.1)
    assert tally.read_text() == "xx"
    assert plans == {}


async def test_a_process_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_book, "_RESTART_PAUSE_S", 0)
    monkeypatch.setattr(plan_book, "TIMEOUT_S", 0.1)
    async with running(Plans(), *IN_A_SCRIPT, "import time; time.sleep(60)") as cold:
        cold.submit(PAPER, [PlanQuery(1, 1)])
        await until(lambda: bool(cold._unsolvable))


async def test_the_newest_question_goes_first_and_the_oldest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_book, "MOST_WAITING", 2)
    plans = Plans()
    cold = ColdPlans(plans.add)
    cold.submit(PAPER, [PlanQuery(unet, 0) for unet in (1, 2, 3)])
    task = asyncio.create_task(cold.run())
    await until(lambda: len(plans) == 2)
    await cancel_and_wait(task)
    assert [query.unet for _, query in plans] == [3, 2]


def test_the_solver_answers_every_line() -> None:
    text = dump(PAPER)
    asked = [PlanQuery(3, 2), PlanQuery(2, 2, threshold=-1), PlanQuery(2, 2, skip_price_ms=math.inf)]
    lines = [
        *(QUESTIONS.dump(Question(query, text)) for query in asked),
        QUESTIONS.dump(Question(asked[0], "{}")),
        b"3",
    ]
    answers = BytesIO()
    serve(BytesIO(b"\n".join(lines)), answers)
    first, *others = [ANSWERS.parse(line) for line in answers.getvalue().splitlines()]
    assert first.planned == plan_round(PAPER, asked[0])
    assert [(answer.planned, answer.problem.split(":")[0]) for answer in others] == [
        (None, "ValueError"),
        *[(None, "InvalidRequest")] * 3,
    ]
