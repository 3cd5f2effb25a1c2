"""From a policy's tick to the plans of both workers: order, skips, chunks, and what a retry repeats."""

import json
from collections.abc import Callable

from services.scheduler.engine.effects import Admit, Effect, FinishJob, SendUnetPlan, SendVaePlan
from services.scheduler.engine.events import BudgetKnown, VaeAttached, WorkerLost
from services.scheduler.engine.planning import dispatch
from services.scheduler.policy.policies import PolicyBounds
from services.scheduler.policy.snapshots import (
    Admission,
    DecodePart,
    DomainSnapshot,
    Item,
    PoolSnapshot,
    TickPlan,
    UnetBatch,
    VaeBatch,
)
from synerdiff.plans import DecodeEntry, ItemRef, UnetPlan, VaePlan
from synerdiff.profiles import Profile
from synerdiff.skip_cfg import SkipCfg, SkipCfgBudget, SkipCfgMode
from tests.services.scheduler.world import World, job

BUDGET = SkipCfgBudget("extrapolate:0.5", share=0.5, longest_run=1)


class Scripted:
    """Places everything on u0 and plans as it is told; skips where a task has to, and on odd calls otherwise."""

    name = "scripted"
    grows_from = 0
    bounds = PolicyBounds()

    def __init__(self, plan: Callable[[DomainSnapshot], TickPlan] | None = None) -> None:
        self._plan = plan

    def admit(self, snapshot: PoolSnapshot) -> tuple[Admission, ...]:
        return tuple(Admission(task.task_id, "u0") for task in snapshot.waiting)

    def plan_ahead(self, profile: Profile | None) -> int:
        return 1

    def plan(self, snapshot: DomainSnapshot) -> TickPlan:
        if self._plan:
            return self._plan(snapshot)
        unet = None
        running = snapshot.unet[0].running if snapshot.unet else ()
        if running:
            skipping = frozenset(
                task.task_id
                for task in running
                if (task.skip.must if task.skip.must is not None else task.next_call % 2 == 1)
            )
            unet = UnetBatch("u0", tuple(task.task_id for task in running), skipping)
        parts = tuple(DecodePart(decode.task_id) for decode in snapshot.decodes)
        return TickPlan((Item(unet, VaeBatch("v0", parts) if parts else None),)) if unet or parts else TickPlan(())


def world(policy: Scripted, unets: int = 1, vaes: int = 1, domains: int = 1) -> World:
    made = World(unets, vaes, domains)
    made.policy = policy  # type: ignore[assignment]
    made.new_leader()
    made.on(BudgetKnown("emoji", BUDGET))
    return made


class Sent:
    """Every plan that an engine sends from now on."""

    def __init__(self, made: World) -> None:
        self.effects: list[Effect] = []
        take = made.engine.take_effects

        def take_and_note() -> list[Effect]:
            taken = take()
            self.effects += taken
            return taken

        made.engine.take_effects = take_and_note  # type: ignore[method-assign]

    def skips(self) -> list[int]:
        """The calls that skip guidance, in the order they were sent."""
        plans = [effect.plan for effect in self.effects if isinstance(effect, SendUnetPlan)]
        return [e.call for plan in plans for item in plan.items for e in item.entries if e.skip_cfg]

    def decodes(self) -> list[DecodeEntry]:
        """The decodes, in the order they were sent."""
        plans = [effect.plan for effect in self.effects if isinstance(effect, SendVaePlan)]
        return [e for plan in plans for item in plan.items for e in item.entries]


def finished_skips(made: World) -> tuple[tuple[int, tuple[int, ...]], ...]:
    return next(effect.skipped_steps for effect in made.store if isinstance(effect, FinishJob))


def test_skipped_steps_are_reported_and_embedded() -> None:
    made = world(Scripted())
    made.arrive(job("j", steps=5, seed=3))
    made.attach_all()
    admitted = [c.task for c in made.unets["u0"].commands if isinstance(c, Admit)]
    assert [task.skip_predictor for task in admitted] == ["extrapolate:0.5"]
    sent = Sent(made)
    made.settle()
    assert finished_skips(made) == ((0, (1, 3)),)
    assert json.loads(sent.decodes()[0].parameters_json)["skip_cfg_steps"] == [1, 3]
    assert json.loads(sent.decodes()[0].parameters_json)["skip_cfg_predictor"] == "extrapolate:0.5"


def test_a_request_can_switch_skipping_off_or_fix_it() -> None:
    made = world(Scripted())
    made.arrive(job("off", steps=5, skip_cfg=SkipCfg(SkipCfgMode.OFF)))
    made.attach_all()
    made.settle()
    assert finished_skips(made) == ()
    made = world(Scripted())
    made.arrive(job("fixed", steps=6, skip_cfg=SkipCfg(SkipCfgMode.FIXED, steps=(2, 3))))
    made.attach_all()
    made.settle()
    assert finished_skips(made) == ((0, (2, 3)),)


def test_an_unguided_task_has_nothing_to_skip() -> None:
    made = world(Scripted())
    made.arrive(job("j", steps=4, guidance_scale=1.0))
    sent = Sent(made)
    made.attach_all()
    made.settle()
    assert sent.skips() == []


def test_a_retry_repeats_the_skips_that_were_made() -> None:
    made = world(Scripted())
    made.arrive(job("j", steps=6))
    made.attach_all()
    for _ in range(5):  # admit, then calls 0 to 3
        made.act("u0")
    made.unets["u0"].die()
    made.on(WorkerLost("u0"))
    # From here on the policy would skip even calls; the retry has to skip 1 and 3 again all the same.
    made.policy = made.engine.policy = Scripted(_skipping_even)  # type: ignore[assignment]
    sent = Sent(made)
    made.attach("u0")
    made.settle()
    assert sent.skips() == [1, 3, 4]
    assert finished_skips(made) == ((0, (1, 3, 4)),)


def _skipping_even(snapshot: DomainSnapshot) -> TickPlan:
    parts = tuple(DecodePart(decode.task_id) for decode in snapshot.decodes)
    if parts:
        return TickPlan((Item(None, VaeBatch("v0", parts)),))
    running = snapshot.unet[0].running
    if not running:
        return TickPlan(())
    task = running[0]
    skip = task.skip.must if task.skip.must is not None else task.next_call % 2 == 0
    return TickPlan((Item(UnetBatch("u0", (task.task_id,), frozenset({task.task_id} if skip else ())), None),))


def test_items_in_step_wait_for_the_other_workers_last_one() -> None:
    made = World()
    made.attach("u0")
    made.arrive(job("j", images=2, steps=1))
    made.pump()
    made.settle()
    assert set(made.engine.holdings.ready) == {"j/0", "j/1"}
    made.on(VaeAttached(made.vaes["v0"].lane()))
    unet, vae = in_step_plans(made)
    assert [(item.execution.place, item.execution.after) for item in unet.items] == [(1, None), (3, ItemRef(9, 2))]
    assert [(item.execution.place, item.execution.after) for item in vae.items] == [
        (1, None),
        (2, ItemRef(9, 1)),
        (4, ItemRef(9, 3)),
    ]
    assert len({item.execution.pace for item in unet.items} | {item.execution.pace for item in vae.items}) == 1
    assert [item.execution.patience_ms for item in vae.items] == [0, 300, 50]
    assert [(e.task_id, e.first_chunk, e.end_chunk) for item in vae.items for e in item.entries] == [
        ("j/0", 0, 1),
        ("j/0", 1, 2),
        ("j/1", 0, 2),
    ]


def in_step_plans(made: World) -> tuple[UnetPlan, VaePlan]:
    """A tick of four items with parts for both, dispatched by hand."""
    holdings = made.engine.holdings
    more = job("k", images=2, steps=3)
    made.arrive(more)
    for task in list(holdings.waiting.values()):
        holdings.unet["u0"].tasks[task.spec.task_id] = task
    step = UnetBatch("u0", ("k/0",), threads=1)
    items = (
        Item(step, VaeBatch("v0", (DecodePart("j/0", 2, 0, 1),), threads=1), predicted_ms=100),
        Item(None, VaeBatch("v0", (DecodePart("j/0", 2, 1, 2),)), predicted_ms=10),
        Item(UnetBatch("u0", ("k/1",)), None, predicted_ms=5),
        Item(None, VaeBatch("v0", (DecodePart("j/1", 2, 0, 2),))),
    )
    made.engine.take_effects()
    dispatch(holdings, "d0", TickPlan(items, in_step=True), tick=9, leader_token=1)
    sent = made.engine.take_effects()
    unet = next(effect.plan for effect in sent if isinstance(effect, SendUnetPlan))
    vae = next(effect.plan for effect in sent if isinstance(effect, SendVaePlan))
    planned = holdings.vae["v0"].plans[9].items
    assert [(item.rows, item.decodes) for item in planned] == [(2, 0.5), (0, 0.5), (0, 1.0)]
    return unet, vae
