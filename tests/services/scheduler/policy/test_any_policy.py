"""Every policy against any snapshot: what its answers never do."""

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.policy.policy_spec import POLICIES, PolicySpec
from services.scheduler.policy.snapshots import BatchKey, DomainSnapshot, PoolSnapshot, SkipState, UnetLane, VaeLane
from synerdiff.profiles import Profile
from synerdiff.skip_cfg import SkipCfgBudget
from tests.services.scheduler.policy.test_policies import CHUNKED, HALF, PROFILE, policy, stepped
from tests.services.scheduler.snapshot_values import decode, running, unet_lane, waiting

SPECS = st.sampled_from(
    (
        *POLICIES.values(),
        replace(POLICIES["synerdiff"], order="sharing"),
        replace(POLICIES["synerdiff"], planning="decodes_first", knee=False),
        replace(POLICIES["synerdiff"], planning="none"),
        replace(POLICIES["static"], knee=True, planning="programme"),
    )
)
MODELS = st.sampled_from(("a", "b"))
KEYS = st.builds(BatchKey, MODELS, st.sampled_from((128, 256)), st.just(128))
SKIPS = st.builds(
    SkipState,
    st.sampled_from((None, None, True, False)),
    st.just(1.0),
    st.integers(0, 2),
    st.integers(0, 1),
    st.just(0.0),
)
PROFILES: st.SearchStrategy[Mapping[BatchKey, Profile]] = st.dictionaries(
    KEYS, st.sampled_from((PROFILE, CHUNKED)), max_size=4
)
BUDGETS = st.sampled_from(({}, {"a": HALF, "b": HALF}))


@st.composite
def unet_lanes(draw: st.DrawFn) -> tuple[UnetLane, ...]:
    lanes = []
    for number in range(draw(st.integers(0, 3))):
        model = draw(MODELS)
        sizes = draw(st.lists(st.sampled_from((128, 256)), max_size=6))
        tasks = tuple(
            running(
                f"{number}.{k}",
                key=BatchKey(model, size, 128),
                rows=draw(st.integers(1, 2)),
                at=draw(st.integers(0, 8)),
                of=9,
                skip=draw(SKIPS),
                accepted_ms=draw(st.integers(0, 3)),
            )
            for k, size in enumerate(sizes)
        )
        lane = unet_lane(*tasks, worker_id=f"u{number}", slots=draw(st.integers(0, 8)), wants_plan=draw(st.booleans()))
        lanes.append(replace(lane, model=model))
    return tuple(lanes)


@given(SPECS, unet_lanes(), st.lists(KEYS, max_size=12), PROFILES, BUDGETS)
def test_admission_never_exceeds_a_lane(
    spec: PolicySpec,
    lanes: tuple[UnetLane, ...],
    keys: list[BatchKey],
    profiles: Mapping[BatchKey, Profile],
    budgets: Mapping[str, SkipCfgBudget],
) -> None:
    tasks = tuple(waiting(f"w{k // 2}", key=keys[k - k % 2], image=k % 2) for k in range(len(keys)))
    pool = PoolSnapshot(0, tasks, lanes, {("d", key): profile for key, profile in profiles.items()}, budgets)
    admissions = policy(spec).admit(pool)
    assert admissions == policy(spec).admit(pool)
    model_of = {lane.worker_id: lane.model for lane in lanes}
    by_id = {task.task_id: task for task in tasks}
    assert len({admission.task_id for admission in admissions}) == len(admissions)
    assert all(by_id[a.task_id].key.model == model_of[a.worker_id] for a in admissions)
    for lane in lanes:
        new = sum(a.worker_id == lane.worker_id for a in admissions)
        assert new == 0 or lane.resident + new <= lane.slots


@given(
    SPECS,
    unet_lanes(),
    st.lists(KEYS, max_size=8),
    st.lists(st.booleans(), max_size=3),
    PROFILES,
    BUDGETS,
    st.integers(0, 2),
)
def test_a_plan_names_each_task_once_within_its_batch_key_and_serves_decodes_whole(
    spec: PolicySpec,
    lanes: tuple[UnetLane, ...],
    keys: list[BatchKey],
    wants: list[bool],
    profiles: Mapping[BatchKey, Profile],
    budgets: Mapping[str, SkipCfgBudget],
    others: int,
) -> None:
    decodes = tuple(decode(f"d{k}", key=key) for k, key in enumerate(keys))
    vae = tuple(VaeLane(f"v{k}", "d", "ab"[k % 2], 0, want) for k, want in enumerate(wants))
    seen = DomainSnapshot(0, "d", lanes, vae, decodes, others, 0.9, profiles, budgets)
    plan = policy(spec).plan(seen)
    assert plan == policy(spec).plan(seen)
    tasks = {task.task_id: task for lane in lanes for task in lane.running}
    key_of = {task_id: task.key for task_id, task in tasks.items()} | {d.task_id: d.key for d in decodes}
    wanting = {u.worker_id for u in lanes if u.wants_plan} | {v.worker_id for v in vae if v.wants_plan}
    done: dict[str, tuple[int, int, str]] = {}
    for item in plan.items:
        assert item.unet or item.vae
        if item.unet:
            assert item.unet.worker_id in wanting
            assert len({key_of[task_id] for task_id in item.unet.task_ids}) == 1
            assert item.unet.skipping <= set(item.unet.task_ids)
        if item.vae:
            assert item.vae.worker_id in wanting
            assert len({key_of[part.task_id] for part in item.vae.parts}) == 1
            for part in item.vae.parts:
                chunks, end, worker_id = done.get(part.task_id, (part.chunks, 0, item.vae.worker_id))
                assert (chunks, end, worker_id) == (part.chunks, part.first, item.vae.worker_id)
                done[part.task_id] = (chunks, part.end, worker_id)
    assert all(end == chunks for chunks, end, _ in done.values())
    assert len(set(stepped(plan))) == len(stepped(plan))
    for lane in lanes:
        named = [task for task in lane.running if task.task_id in stepped(plan)]
        assert bool(named) == lane.wants_plan, "a worker that wants a plan gets one, with at least a task"
    skipping = {task_id for item in plan.items if item.unet for task_id in item.unet.skipping}
    for task_id in stepped(plan):
        task = tasks[task_id]
        assert task.skip.must is None or (task_id in skipping) == (task.skip.must and task.rows > 1)
        assert task_id not in skipping or task.skip.must or (spec.skip_cfg and budgets and task.rows > 1)
