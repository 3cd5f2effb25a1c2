"""From a policy's tick to the plans of both workers: order, skips, chunks, and what a retry repeats."""

import json

from services.scheduler.engine.effects import Admit, FinishJob, SendUnetPlan, SendVaePlan
from services.scheduler.engine.events import BudgetKnown, VaeAttached, WorkerLost
from services.scheduler.engine.planning import dispatch
from services.scheduler.policy.policy_spec import PolicyBounds
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
from synerdiff.plans import DecodeEntry, ItemRef, UnetEntry, UnetPlan, VaePlan
from synerdiff.profiles import Profile
from synerdiff.skip_cfg import SkipCfg, SkipCfgBudget, SkipCfgMode
from tests.services.scheduler.world import World, job

BUDGET = SkipCfgBudget("extrapolate:0.5", share=0.5, longest_run=1)


class Scripted:
    """Places everything on u0 and plans all that is there; skips where a task has to, and on odd calls otherwise."""

    name = "scripted"
    grows_from = 0
    bounds = PolicyBounds()

    def __init__(self, odd: int = 1) -> None:
        self._odd = odd

    def admit(self, snapshot: PoolSnapshot) -> tuple[Admission, ...]:
        return tuple(Admission(task.task_id, "u0") for task in snapshot.waiting)

    def plan_ahead(self, profile: Profile | None) -> int:
        return 1

    def plan(self, snapshot: DomainSnapshot) -> TickPlan:
        unet = None
        running = snapshot.unet[0].running if snapshot.unet else ()
        if running:
            skipping = frozenset(
                task.task_id
                for task in running
                if (task.skip.must if task.skip.must is not None else task.next_call % 2 == self._odd)
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


def ran(made: World) -> tuple[list[int], list[DecodeEntry], tuple[tuple[int, tuple[int, ...]], ...]]:
    """What is sent until nothing more happens: the calls that skip guidance, the decodes; and the skips of the end."""
    sent = [command.plan for _, command in made.commands() if isinstance(command, SendUnetPlan | SendVaePlan)]
    entries = [entry for plan in sent for item in plan.items for entry in item.entries]
    skips = [entry.call for entry in entries if isinstance(entry, UnetEntry) and entry.skip_cfg]
    decodes = [entry for entry in entries if isinstance(entry, DecodeEntry)]
    return skips, decodes, next(effect.skipped_steps for effect in made.store if isinstance(effect, FinishJob))


def test_skipped_steps_are_reported_and_embedded() -> None:
    made = world(Scripted()).begin(job("j", steps=5, seed=3))
    admitted = [c.task for c in made.unets["u0"].commands if isinstance(c, Admit)]
    assert [task.skip_predictor for task in admitted] == ["extrapolate:0.5"]
    _, decodes, finished = ran(made)
    assert finished == ((0, (1, 3)),)
    parameters = json.loads(decodes[0].parameters_json)
    assert (parameters["skip_cfg_steps"], parameters["skip_cfg_predictor"]) == ([1, 3], "extrapolate:0.5")


def test_a_request_can_switch_skipping_off_or_fix_it() -> None:
    for skip_cfg, skips in ((SkipCfg(SkipCfgMode.OFF), ()), (SkipCfg(SkipCfgMode.FIXED, steps=(2, 3)), ((0, (2, 3)),))):
        *_, finished = ran(world(Scripted()).begin(job("j", steps=6, skip_cfg=skip_cfg)))
        assert finished == skips


def test_an_unguided_task_has_nothing_to_skip() -> None:
    skips, *_ = ran(world(Scripted()).begin(job("j", steps=4, guidance_scale=1.0)))
    assert skips == []


def test_a_retry_repeats_the_skips_that_were_made() -> None:
    made = world(Scripted()).begin(job("j", steps=6))
    made.act("u0", times=5)  # admit, then calls 0 to 3
    made.die(["u0"])
    made.on(WorkerLost("u0"))
    # From here on the policy would skip even calls; the retry has to skip 1 and 3 again all the same.
    made.policy = made.engine.policy = Scripted(odd=0)  # type: ignore[assignment]
    made.attach("u0")
    skips, _, finished = ran(made)
    assert skips == [1, 3, 4]
    assert finished == ((0, (1, 3, 4)),)


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
