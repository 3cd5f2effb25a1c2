"""Requests for exact pictures or for certain weights: items of their own, the workers with those, or an end."""

import json

import pytest

from services.scheduler.api.validation import AdmissionLimits, resolve
from services.scheduler.engine.effects import Admit, SendUnetPlan, SendVaePlan
from services.scheduler.engine.events import BudgetKnown
from services.scheduler.engine.tasks import Phase
from synerdiff.jobs import JobRecord
from synerdiff.skip_cfg import SkipCfgBudget, SkipCfgMode
from synerdiff.v1 import images_pb2
from tests.services.scheduler.api.test_validation import CARD, LIMITS, good
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.world import World, job


@pytest.mark.parametrize("policy", ["continuous", "synerdiff", "static", "dynamic", "vae-first"])
@pytest.mark.parametrize("profiled", [False, True])
def test_they_share_items_with_each_other_alone(policy: str, profiled: bool) -> None:
    world = World(policy=policy, profile=straight_line_profile() if profiled else None)
    exact = {f"e{k}/0" for k in range(3)}
    world.begin(*(job(f"{kind}{k}", steps=6, exact=kind == "e") for k in range(3) for kind in "eo"))
    batches, decodes, admitted = list[set[str]](), dict[str, bool](), dict[str, bool]()
    for _, command in world.commands():
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
    request = resolve(good(exact=True), [CARD], LIMITS)
    assert request.skip_cfg.mode is SkipCfgMode.OFF
    world.begin(*(job(f"e{k}", steps=30, exact=True, skip_cfg=request.skip_cfg) for k in range(6)))
    plans = [command.plan for _, command in world.commands() if isinstance(command, SendUnetPlan)]
    assert plans
    assert not any(entry.skip_cfg for plan in plans for item in plan.items for entry in item.entries)


def test_steps_that_a_request_lists_are_skipped_in_an_exact_one_too() -> None:
    pb = good(exact=True)
    pb.skip_cfg.mode = images_pb2.SKIP_CFG_MODE_FIXED
    pb.skip_cfg.steps.append(3)
    assert resolve(pb, [CARD], LIMITS).skip_cfg.steps == (3,)


def test_a_deployment_may_draw_all_exactly_and_a_request_may_say_otherwise() -> None:
    exact = AdmissionLimits(exact=True)
    assert not resolve(good(), [CARD], LIMITS).exact
    assert resolve(good(), [CARD], exact).exact
    assert not resolve(good(exact=False), [CARD], exact).exact


def test_the_file_of_an_exact_picture_says_that_it_is() -> None:
    world = World().begin(job("e", steps=1, exact=True), job("o", steps=1))
    told: dict[str, bool] = {}
    for _, command in world.commands():
        if isinstance(command, SendVaePlan):
            entries = [entry for item in command.plan.items for entry in item.entries]
            told |= {entry.task_id: json.loads(entry.parameters_json).get("exact", False) for entry in entries}
    assert told == {"e/0": True, "o/0": False}


# ---- weights


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
    for worker_id, command in world.commands():
        named = [command.task.task_id] if isinstance(command, Admit) else []
        if isinstance(command, SendVaePlan):
            named = [entry.task_id for item in command.plan.items for entry in item.entries]
        for task_id in named:
            given.setdefault(task_id.split("/")[0], set()).add(worker_id)
    return given


def test_each_job_is_drawn_by_the_workers_with_its_weights() -> None:
    for policy in ("continuous", "synerdiff", "static", "dynamic", "vae-first"):
        world = two_of_each(policy)
        world.begin(*accepted_for(A, "a1", "a2", "a3"), *accepted_for(B, "b1", "b2", "b3", images=2))
        given = drawn_by(world)
        assert set(world.ended) == {"a1", "a2", "a3", "b1", "b2", "b3"}, policy
        assert all(given[name] == {"u0", "v0"} for name in ("a1", "a2", "a3")), policy
        assert all(given[name] == {"u1", "v1"} for name in ("b1", "b2", "b3")), policy
        world.settle_empty()


def test_only_other_weights_left_they_wait_and_then_fail_in_one_line() -> None:
    world = World()
    world.unets["u0"].weights = world.vaes["v0"].weights = B
    world.begin(*accepted_for(A, "old"), *accepted_for(B, "new"))
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
    failed = world.failed()
    assert (failed.job_id, failed.code) == ("old", 9)
    assert A[:12] in failed.message
    assert B[:12] in failed.message
    world.settle_empty()


def test_a_worker_that_comes_back_with_its_weights_in_time_is_waited_for() -> None:
    world = two_of_each()
    world.attach("u1")
    world.attach("v1")
    world.arrive(*accepted_for(A, "old"))
    for at_ms in (1000, WAIT_MS, 1000 + WAIT_MS - 1):
        world.engine.check_deadlines(at_ms)
    world.attach("u0")
    world.attach("v0")
    world.engine.check_deadlines(2 * WAIT_MS)
    assert drawn_by(world)["old"] == {"u0", "v0"}
    assert world.ended == {"old": 1}


def test_no_worker_at_all_is_waited_for_as_long_as_the_request_says() -> None:
    world = World()
    world.arrive(*accepted_for(A, "old"))
    world.engine.check_deadlines(1000)
    world.engine.check_deadlines(1000 + 10 * WAIT_MS)
    world.pump()
    assert not world.ended


def test_latents_wait_for_a_vae_worker_with_their_weights() -> None:
    world = World(vaes=2)
    world.unets["u0"].weights = A
    world.vaes["v0"].weights, world.vaes["v1"].weights = B, A
    world.arrive(*accepted_for(A, "old"))
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
    world = two_of_each().begin(job("early", images=6))
    given = drawn_by(world)["early"]
    assert given in ({"u0", "v0"}, {"u1", "v1"}, {"u0", "v1"}, {"u1", "v0"})
    assert world.stored == {("early", index): 1 for index in range(6)}


def test_a_worker_that_says_nothing_of_its_weights_draws_for_all() -> None:
    world = World().begin(*accepted_for(A, "old"))
    world.settle()
    assert world.ended == {"old": 1}
