"""What each of the five policies does."""

from dataclasses import replace

import pytest

from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.planner.planned_round import MOST_COUNT, PlannedRound, PlanQuery, check
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds, PolicySpec
from services.scheduler.policy.snapshots import (
    Admission,
    BatchKey,
    BatchSize,
    DecodePart,
    DomainSnapshot,
    PoolSnapshot,
    ReadyDecode,
    RunningTask,
    TickPlan,
    UnetLane,
    VaeLane,
    WaitingTask,
)
from synerdiff.profiles import ItemCaps, Mechanisms, Profile
from synerdiff.skip_cfg import SkipCfgBudget
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.snapshot_values import KEY, OTHER_KEY, decode, running, unet_lane, waiting

# Eight rows have the best throughput, four are within a twentieth of it.
STRAIGHT = straight_line_profile(step_ms=1.5, row_ms=5.0, caps=ItemCaps(4, 2))
# Four rows have the best: two tasks at once.
PROFILE = STRAIGHT.with_cells(replace(c, median_ms=1.1 * c.median_ms) if c.rows > 4 else c for c in STRAIGHT.cells)
CHUNKED = replace(
    straight_line_profile(step_ms=1.5, row_ms=5.0, caps=ItemCaps(4, 2), chunks=(1, 3)),
    mechanisms=Mechanisms(chunking=True, plan_ahead=1),
)
ROUNDS = PlanBook(solve_now=True)
BOUNDS = PolicyBounds(unet_batch=3, vae_batch=2, prepare_ahead=1)
HALF = SkipCfgBudget("reuse", share=0.5, longest_run=1)


def policy(spec: PolicySpec | str, bounds: PolicyBounds = BOUNDS) -> ConfiguredPolicy:
    return ConfiguredPolicy(POLICIES[spec] if isinstance(spec, str) else spec, bounds, ROUNDS)


def snapshot(
    *lanes: UnetLane,
    decodes: tuple[ReadyDecode, ...] = (),
    vae: tuple[VaeLane, ...] = (VaeLane("v", "d", "a", 0, True),),
    profile: Profile | None = PROFILE,
    waiting: int = 0,
    budget: SkipCfgBudget | None = None,
) -> DomainSnapshot:
    profiles = {KEY: profile, OTHER_KEY: profile} if profile else {}
    budgets = {"a": budget} if budget else {}
    return DomainSnapshot(0, "d", lanes, vae, decodes, waiting, 1.0, profiles, budgets)


def stepped(plan: TickPlan) -> list[str]:
    return [task_id for item in plan.items if item.unet for task_id in item.unet.task_ids]


def parts(plan: TickPlan) -> list[DecodePart]:
    return [part for item in plan.items if item.vae for part in item.vae.parts]


def test_a_static_policy_serves_one_request_after_the_other() -> None:
    tasks = (*(waiting("a", image=k) for k in range(2)), waiting("b", accepted_ms=1))
    empty = unet_lane(worker_id="u")
    admitted = policy("static").admit(PoolSnapshot(0, tasks, (empty,)))
    assert admitted == (Admission("a/0", "u"), Admission("a/1", "u"))
    assert not policy("static").admit(PoolSnapshot(0, tasks[2:], (replace(empty, resident=1),)))


def test_a_cohort_is_of_whole_requests_of_one_batch_key_up_to_the_cap() -> None:
    tasks = (
        waiting("a"),
        waiting("odd", key=OTHER_KEY, accepted_ms=1),
        *(waiting("three", image=k, accepted_ms=2) for k in range(3)),
        *(waiting("two", image=k, accepted_ms=3) for k in range(2)),
    )
    admitted = policy("dynamic").admit(PoolSnapshot(0, tasks, (unet_lane(),)))
    assert [admission.task_id for admission in admitted] == ["a/0", "two/0", "two/1"]


@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_whole_requests_are_decoded_once_all_of_them_are_denoised(name: str) -> None:
    still = unet_lane(running("a", at=3, image=1))
    assert not parts(policy(name).plan(snapshot(still, decodes=(decode("a"),))))
    assert parts(policy(name).plan(snapshot(unet_lane(), decodes=(decode("a"),))))
    assert parts(policy("continuous").plan(snapshot(still, decodes=(decode("a"),))))


def test_vae_first_decodes_alone_before_the_steps() -> None:
    plan = policy("vae-first").plan(snapshot(unet_lane(running("a")), decodes=tuple(decode(n) for n in "xyz")))
    assert plan.in_step
    assert [(bool(item.unet), len(item.vae.parts) if item.vae else 0) for item in plan.items] == [
        (False, 2),
        (False, 1),
        (True, 0),
    ]


def test_synerdiff_runs_no_more_rows_than_the_knee_and_sets_the_others_aside() -> None:
    lane = unet_lane(running("long", of=50, at=1), running("short", of=8), running("mid", of=20))
    plan = policy("synerdiff").plan(snapshot(lane))
    assert sorted(stepped(plan)) == ["mid/0", "short/0"]
    assert stepped(policy("continuous").plan(snapshot(lane))) == ["long/0", "mid/0", "short/0"]
    assert len(stepped(policy(replace(POLICIES["synerdiff"], order="sharing")).plan(snapshot(lane)))) == 3


def test_the_lower_the_threshold_the_fewer_tasks_run_at_once() -> None:
    lane = unet_lane(*(running(name) for name in "abcde"))
    assert len(stepped(policy("synerdiff").plan(replace(snapshot(lane, profile=STRAIGHT), threshold=1.0)))) == 4
    assert len(stepped(policy("synerdiff").plan(replace(snapshot(lane, profile=STRAIGHT), threshold=0.5)))) == 2


def test_skipping_guidance_lets_more_tasks_in_while_others_wait_and_nobody_skips_at_ease() -> None:
    tasks = [running(name, at=5) for name in "abcd"]
    busy = policy("synerdiff").plan(snapshot(unet_lane(*tasks), budget=HALF))
    assert len(stepped(busy)) == 2 + 1
    assert sum(len(item.unet.skipping) for item in busy.items if item.unet) == 2
    at_ease = policy("synerdiff").plan(snapshot(unet_lane(*tasks[:2]), budget=HALF))
    assert len(stepped(at_ease)) == 2
    assert not any(item.unet.skipping for item in at_ease.items if item.unet)
    without = replace(POLICIES["synerdiff"], skip_cfg=False)
    assert len(stepped(policy(without).plan(snapshot(unet_lane(*tasks), budget=HALF)))) == 2


def test_synerdiff_without_a_profile_is_continuous() -> None:
    seen = snapshot(unet_lane(running("b"), running("a", at=2)), decodes=(decode("x"),), profile=None)
    assert policy("synerdiff").plan(seen) == replace(policy("continuous").plan(seen), why="")
    pool = PoolSnapshot(0, tuple(waiting(name) for name in "abcdef"), (unet_lane(),))
    assert policy("synerdiff").admit(pool) == policy("continuous").admit(pool)


def test_without_a_profile_workers_that_share_cores_take_turns() -> None:
    lane = replace(unet_lane(running("a")), shares_cores=True)
    seen = snapshot(lane, decodes=(decode("x"),), profile=None)
    plan = policy("synerdiff").plan(seen)
    assert plan.in_step
    assert [(bool(item.unet), bool(item.vae)) for item in plan.items] == [(False, True), (True, False)]
    assert not policy("synerdiff").plan(replace(seen, unet=(unet_lane(running("a")),))).in_step
    assert not policy("continuous").plan(seen).in_step


def test_without_a_profile_batches_are_as_large_as_they_have_grown() -> None:
    tasks = [running(name) for name in "abcdefgh"]
    lane = replace(unet_lane(*tasks), sizes={KEY: BatchSize(5, 6)})
    assert len(stepped(policy("synerdiff").plan(snapshot(lane, profile=None)))) == 5
    with_profile = policy("synerdiff").plan(replace(snapshot(lane), threshold=1.0))
    assert len(stepped(with_profile)) == len(stepped(policy("synerdiff").plan(snapshot(unet_lane(*tasks)))))

    def admitted(sizes: dict[BatchKey, BatchSize]) -> int:
        pool = PoolSnapshot(0, tuple(waiting(f"w{k}") for k in range(30)), (replace(unet_lane(), sizes=sizes),))
        return len(policy("synerdiff", PolicyBounds(unet_batch=2, prepare_ahead=1)).admit(pool))

    assert admitted({}) == 2 + 1
    assert admitted({KEY: BatchSize(5, 10)}) == 10 + 1


def test_decodes_wait_for_the_tick_that_is_planned_with_the_steps() -> None:
    full = unet_lane(running("a"), wants_plan=False)
    assert not policy("synerdiff").plan(snapshot(full, decodes=(decode("x"),))).items
    assert parts(policy("synerdiff").plan(snapshot(unet_lane(), decodes=(decode("x"),))))
    assert parts(policy("continuous").plan(snapshot(full, decodes=(decode("x"),))))


def test_a_planned_round_is_as_the_profile_says_it_pays() -> None:
    seen = snapshot(unet_lane(running("a")), decodes=(decode("x"),))
    assert policy("synerdiff").plan(seen).in_step
    free = replace(PROFILE, mechanisms=Mechanisms(in_step=False))
    assert not policy("synerdiff").plan(replace(seen, profiles={KEY: free})).in_step
    told = replace(POLICIES["synerdiff"], in_step=True, plan_ahead=3)
    assert policy(told).plan(replace(seen, profiles={KEY: free})).in_step
    assert (policy("synerdiff").plan_ahead(CHUNKED), policy(told).plan_ahead(CHUNKED)) == (1, 3)
    assert all(item.predicted_ms > 0 for item in policy("synerdiff").plan(seen).items)


def test_decodes_are_cut_only_where_the_profile_says_that_it_pays() -> None:
    """Whatever its cells say of bands: those are of items alone, and what pays was measured of whole rounds."""
    fast_bands = CHUNKED.with_cells(
        replace(cell, median_ms=cell.median_ms / 2) if cell.setting.chunks > 1 else cell for cell in CHUNKED.cells
    )

    def cuts(profile: Profile | None) -> set[int]:
        seen = snapshot(unet_lane(running("a"), running("b")), decodes=(decode("x"),), profile=profile)
        return {part.chunks for part in parts(policy("synerdiff").plan(seen))}

    assert cuts(fast_bands) == {3}
    assert cuts(replace(fast_bands, mechanisms=Mechanisms(chunking=False))) == {1}
    assert cuts(None) == {1}


def test_until_a_round_is_planned_decodes_go_first() -> None:
    cold = ConfiguredPolicy(POLICIES["synerdiff"], BOUNDS, PlanBook())
    plan = cold.plan(snapshot(unet_lane(running("a")), decodes=(decode("x"),)))
    assert [(bool(item.unet), bool(item.vae)) for item in plan.items] == [(False, True), (True, False)]
    assert [item.predicted_ms for item in plan.items] == [PROFILE.latency_ms(0, 1), PROFILE.latency_ms(2, 0)]


def test_vae_workers_that_are_left_over_decode_plainly() -> None:
    vae = tuple(VaeLane(f"v{k}", "d", "a", 0, True) for k in range(2))
    plan = policy("synerdiff").plan(
        snapshot(unet_lane(running("a")), vae=vae, decodes=tuple(decode(n) for n in "wxyz"))
    )
    by_worker = {w: sum(len(i.vae.parts) for i in plan.items if i.vae and i.vae.worker_id == w) for w in ("v0", "v1")}
    assert by_worker == {"v0": 2, "v1": 2}


def test_a_more_urgent_task_is_let_in_beside_a_full_batch() -> None:
    residents = [running(f"r{k}", of=50, at=1) for k in range(3)]
    short, long = waiting("short", of=8), waiting("long", of=60)

    def admitted(name: str) -> list[str]:
        pool = PoolSnapshot(0, (long, short), (unet_lane(*residents),), {("d", KEY): PROFILE})
        return [a.task_id for a in policy(name, PolicyBounds(unet_batch=2, prepare_ahead=1)).admit(pool)]

    assert admitted("synerdiff") == ["short/0"]
    assert admitted("continuous") == []


def test_tasks_spread_over_the_workers_of_their_model() -> None:
    lanes = (unet_lane(running("a"), worker_id="u1"), unet_lane(worker_id="u2"), unet_lane(worker_id="u3"))
    tasks: tuple[WaitingTask, ...] = tuple(waiting(name) for name in "wxyz")
    for name in ("continuous", "synerdiff"):
        pool = PoolSnapshot(0, tasks, lanes, {("d", KEY): PROFILE})
        assert [a.worker_id for a in policy(name).admit(pool)] == ["u2", "u3", "u1", "u2"]


def test_the_most_urgent_batch_key_comes_first_and_keys_never_share_an_item() -> None:
    tasks: list[RunningTask] = [running("odd", key=OTHER_KEY, of=4), running("even", of=8)]
    plan = policy("synerdiff").plan(snapshot(unet_lane(*tasks), decodes=(decode("x"),)))
    assert stepped(plan) == ["odd/0", "even/0"]


def test_no_round_is_planned_past_the_last_call_of_a_task_so_that_its_decode_is_in_the_next_one() -> None:
    ending = replace(unet_lane(running("a")), undecoded=2)
    assert not policy("synerdiff").plan(snapshot(ending)).items
    assert stepped(policy("synerdiff").plan(snapshot(replace(ending, preparing=1)))) == ["a/0"]
    assert stepped(policy("continuous").plan(snapshot(ending))) == ["a/0"]


class NothingKnown(PlanBook):
    """Where planned rounds come from that were never planned; what cannot be planned is refused here already."""

    def lookup(self, profile: Profile, query: PlanQuery) -> PlannedRound | None:
        check(query)
        return None


@pytest.mark.parametrize(("tasks", "stepped_now"), [(MOST_COUNT, MOST_COUNT), (MOST_COUNT + 1, MOST_COUNT)])
def test_what_is_beyond_the_most_that_a_round_is_planned_for_waits_for_the_next(tasks: int, stepped_now: int) -> None:
    spec = replace(POLICIES["synerdiff"], knee=False)
    lane = unet_lane(*(running(f"{k}") for k in range(tasks)), slots=2 * MOST_COUNT)
    plan = ConfiguredPolicy(spec, PolicyBounds(unet_batch=2 * MOST_COUNT), NothingKnown()).plan(
        snapshot(lane, budget=HALF)
    )
    assert len(stepped(plan)) == stepped_now
