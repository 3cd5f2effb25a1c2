"""Exact requests on their way through the scheduler: in items of their own, with guidance as asked for."""

import json

import pytest

from services.scheduler.api.validation import AdmissionLimits, resolve
from services.scheduler.engine.effects import Admit, SendUnetPlan, SendVaePlan
from services.scheduler.engine.events import BudgetKnown
from synerdiff.skip_cfg import SkipCfgBudget, SkipCfgMode
from synerdiff.v1 import images_pb2
from tests.services.scheduler.api.test_validation import CARD, LIMITS, good
from tests.services.scheduler.leading.test_weights import commands_of
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.world import World, job


@pytest.mark.parametrize("policy", ["continuous", "synerdiff", "static", "dynamic", "vae-first"])
@pytest.mark.parametrize("profiled", [False, True])
def test_they_share_items_with_each_other_alone(policy: str, profiled: bool) -> None:
    profile = straight_line_profile() if profiled else None
    world = World(policy=policy, profile=profile)
    exact = {f"e{k}/0" for k in range(3)}
    for k in range(3):
        world.arrive(job(f"e{k}", steps=6, exact=True))
        world.arrive(job(f"o{k}", steps=5))
    world.attach_all()
    batches, decodes, admitted = list[set[str]](), dict[str, bool](), dict[str, bool]()
    for _, command in commands_of(world):
        if isinstance(command, Admit):
            admitted[command.task.task_id] = command.task.exact
        elif isinstance(command, SendUnetPlan):
            batches += [{entry.task_id for entry in item.entries} for item in command.plan.items]
        elif isinstance(command, SendVaePlan):
            decodes |= {e.task_id: e.exact for item in command.plan.items for e in item.entries}
    assert set(world.ended) == {f"{kind}{k}" for kind in "eo" for k in range(3)}
    assert all(batch <= exact or not batch & exact for batch in batches)
    assert admitted == decodes == {f"{kind}{k}/0": kind == "e" for kind in "eo" for k in range(3)}


def test_load_leaves_their_guidance_alone() -> None:
    world = World(policy="synerdiff", profile=straight_line_profile())
    world.on(BudgetKnown("emoji", SkipCfgBudget("reuse", 0.5, 2, head=1, tail=1)))
    pb = good()
    pb.exact = True
    request = resolve(pb, [CARD], LIMITS)
    assert request.skip_cfg.mode is SkipCfgMode.OFF
    for k in range(6):
        world.arrive(job(f"e{k}", steps=30, exact=True, skip_cfg=request.skip_cfg))
    world.attach_all()
    plans = [command.plan for _, command in commands_of(world) if isinstance(command, SendUnetPlan)]
    assert plans
    assert not any(entry.skip_cfg for plan in plans for item in plan.items for entry in item.entries)


def test_steps_that_a_request_lists_are_skipped_in_an_exact_one_too() -> None:
    pb = good()
    pb.exact = True
    pb.skip_cfg.mode = images_pb2.SKIP_CFG_MODE_FIXED
    pb.skip_cfg.steps.append(3)
    assert resolve(pb, [CARD], LIMITS).skip_cfg.steps == (3,)


def test_a_deployment_may_draw_all_exactly_and_a_request_may_say_otherwise() -> None:
    exact = AdmissionLimits(exact=True)
    assert not resolve(good(), [CARD], LIMITS).exact
    assert resolve(good(), [CARD], exact).exact
    pb = good()
    pb.exact = False
    assert not resolve(pb, [CARD], exact).exact


def test_the_file_of_an_exact_picture_says_that_it_is() -> None:
    world = World()
    world.arrive(job("e", steps=1, exact=True))
    world.arrive(job("o", steps=1))
    world.attach_all()
    told: dict[str, bool] = {}
    for _, command in commands_of(world):
        if isinstance(command, SendVaePlan):
            entries = [entry for item in command.plan.items for entry in item.entries]
            told |= {entry.task_id: json.loads(entry.parameters_json).get("exact", False) for entry in entries}
    assert told == {"e/0": True, "o/0": False}
