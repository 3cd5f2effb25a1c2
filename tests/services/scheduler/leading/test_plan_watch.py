"""How long is waited for a worker: by the prediction where there is one, and never longer than we were awake."""

import pytest

from services.scheduler.engine.effects import Admit, CancelOnWorker, SendUnetPlan, SendVaePlan
from services.scheduler.leading.worker_stream import LEAST_S, TIMES_PREDICTED, Patience, PlanWatch
from synerdiff.plans import TaskReady, UnetItem, UnetPlan, UnetTickDone, VaePlan
from tests.values import spec

PATIENCE = Patience(100.0)


def plan(tick: int, items: int = 1, predicted_ms: float = 0.0) -> SendUnetPlan:
    return SendUnetPlan("u", UnetPlan(1, tick, tuple(UnetItem(()) for _ in range(items))), predicted_ms)


def done(tick: int) -> UnetTickDone:
    return UnetTickDone(tick, (), (), ())


@pytest.mark.parametrize(
    ("sent", "allowed_s"),
    [
        (plan(1), 100.0),
        (plan(1, items=3), 300.0),
        (plan(1, items=3, predicted_ms=50.0), LEAST_S),
        (plan(1, items=3, predicted_ms=20_000.0), TIMES_PREDICTED * 20.0),
        (SendVaePlan("v", VaePlan(1, 1, ()), 50_000.0), TIMES_PREDICTED * 50.0),
    ],
)
def test_a_plan_may_take_many_times_its_prediction_and_long_without_one(
    sent: SendUnetPlan | SendVaePlan, allowed_s: float
) -> None:
    assert PATIENCE.of(sent, warm=True) == allowed_s


def test_no_bound_is_longer_than_what_was_set_for_what_nobody_predicts() -> None:
    assert Patience(3.0).of(plan(1, predicted_ms=50.0), warm=True) == 3.0


def test_the_first_plan_of_a_life_may_take_as_long_as_one_that_nobody_predicts() -> None:
    first, again = PlanWatch(PATIENCE), PlanWatch(PATIENCE, warm=True)
    for watch in (first, again):
        watch.sent(plan(1, predicted_ms=50.0))
    assert (first.after(50.0), again.after(30.0)) == (0.5, 30.0 / LEAST_S)
    first.reported(done(1))
    first.sent(plan(2, predicted_ms=50.0))
    assert first.after(30.0) == 30.0 / LEAST_S


def test_a_machine_slowed_tenfold_that_waits_for_its_partner_each_time_is_not_even_suspect() -> None:
    slowed, waits_for_partner = 10, 3
    assert slowed + waits_for_partner < TIMES_PREDICTED / 2


def test_plans_sent_ahead_have_their_time_once_the_one_before_has_run() -> None:
    watch = PlanWatch(PATIENCE)
    watch.sent(plan(1))
    watch.sent(plan(2, items=2))
    assert watch.after(90.0) == 0.9
    watch.reported(done(1))
    assert watch.after(20.0) == 0.1
    watch.reported(done(2))
    assert watch.after(1000.0) == 0.0, "nothing is asked for"
    watch.sent(plan(3))
    assert watch.after(1.0) == 0.01


def test_a_prompt_is_waited_for_beside_the_plans_until_nobody_wants_it() -> None:
    watch = PlanWatch(PATIENCE)
    for name in ("a/0", "b/0", "c/0"):
        watch.sent(Admit("u", spec(name)))
    watch.sent(plan(1))
    assert watch.after(50.0) == 0.5
    watch.reported(done(1))
    assert watch.after(10.0) == 0.6
    assert list(watch.awaited()) == ["prompt of task a/0: 60 of 100 s"]
    watch.reported(TaskReady("a/0", 5, 1.0))
    watch.sent(CancelOnWorker("u", ("b/0", "unknown")))
    assert watch.after(10.0) == 0.1
    watch.sent(CancelOnWorker("u", ("c/0",)))
    assert watch.after(1000.0) == 0.0


def test_what_answers_nothing_asked_for_is_no_answer() -> None:
    watch = PlanWatch(PATIENCE, stretch=2.0)
    watch.sent(plan(2))
    watch.reported(done(1))
    watch.reported(TaskReady("of another leader", 5, 1.0))
    assert not watch.answered
    assert watch.after(100.0) == 0.5
    watch.reported(done(2))
    assert watch.answered
