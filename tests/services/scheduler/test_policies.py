"""The continuous policy on snapshots of any shape: what its answers never do."""

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.policies import ContinuousPolicy, PolicyBounds
from services.scheduler.snapshots import (
    BatchKey,
    DomainSnapshot,
    PoolSnapshot,
    ReadyDecode,
    RunningTask,
    UnetLane,
    VaeLane,
    WaitingTask,
)

MODELS = st.sampled_from(("a", "b"))
KEYS = st.builds(BatchKey, MODELS, st.sampled_from((128, 256)), st.just(128))
BOUNDS = st.builds(PolicyBounds, st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))


@st.composite
def unet_lanes(draw: st.DrawFn) -> tuple[UnetLane, ...]:
    lanes = []
    for number in range(draw(st.integers(0, 3))):
        model = draw(MODELS)
        sizes = draw(st.lists(st.sampled_from((128, 256)), max_size=6))
        running = tuple(
            RunningTask(f"{number}/{k}", BatchKey(model, size, 128), 2, draw(st.integers(0, 3)), 9, 2, 10**9)
            for k, size in enumerate(sizes)
        )
        slots = draw(st.integers(0, 8))
        lanes.append(
            UnetLane(f"u{number}", "d", model, slots, len(running), len(running), running, draw(st.booleans()))
        )
    return tuple(lanes)


@given(BOUNDS, unet_lanes(), st.lists(KEYS, max_size=12))
def test_admission_never_exceeds_a_lane(
    bounds: PolicyBounds, lanes: tuple[UnetLane, ...], keys: list[BatchKey]
) -> None:
    waiting = tuple(WaitingTask(f"w{k}", key, 2, 2, 10**9) for k, key in enumerate(keys))
    admissions = ContinuousPolicy(bounds).admit(PoolSnapshot(0, waiting, lanes))
    model_of = {lane.worker_id: lane.model for lane in lanes}
    by_id = {task.task_id: task for task in waiting}
    assert len({admission.task_id for admission in admissions}) == len(admissions)
    assert all(by_id[a.task_id].key.model == model_of[a.worker_id] for a in admissions)
    for lane in lanes:
        new = sum(a.worker_id == lane.worker_id for a in admissions)
        assert new == 0 or lane.resident + new <= lane.slots
        assert new == 0 or lane.undecoded + new <= bounds.unet_batch + bounds.prepare_ahead


@given(BOUNDS, unet_lanes(), st.lists(KEYS, max_size=8), st.lists(st.booleans(), max_size=3))
def test_a_plan_names_each_task_once_within_its_batch_key_and_bounds(
    bounds: PolicyBounds, lanes: tuple[UnetLane, ...], keys: list[BatchKey], wants: list[bool]
) -> None:
    decodes = tuple(ReadyDecode(f"d{k}", key, "d") for k, key in enumerate(keys))
    vae = tuple(VaeLane(f"v{k}", "d", "ab"[k % 2], 0, want) for k, want in enumerate(wants))
    plan = ContinuousPolicy(bounds).plan(DomainSnapshot(0, "d", lanes, vae, decodes))
    key_of = {task.task_id: task.key for lane in lanes for task in lane.running} | {d.task_id: d.key for d in decodes}
    wanting = {u.worker_id for u in lanes if u.wants_plan} | {v.worker_id for v in vae if v.wants_plan}
    batches = [batch for item in plan.items for batch in (item.unet, item.vae) if batch]
    named = [task_id for batch in batches for task_id in batch.task_ids]
    assert len(set(named)) == len(named)
    for batch in batches:
        assert batch.worker_id in wanting
        assert batch.task_ids
        assert len({key_of[task_id] for task_id in batch.task_ids}) == 1
    for item in plan.items:
        assert item.vae is None or len(item.vae.task_ids) <= bounds.vae_batch
    for lane in lanes:
        planned = sum(len(b.task_ids) for b in batches if b.worker_id == lane.worker_id)
        assert planned == (min(len(lane.running), bounds.unet_batch) if lane.wants_plan else 0)
