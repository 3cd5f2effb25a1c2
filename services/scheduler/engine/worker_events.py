"""How each event of a worker changes the holdings: workers that come, go and drain, and their reports."""

from collections.abc import Sequence

import grpc

from services.scheduler.engine.effects import CancelOnWorker, ForgetImages, ReportProgress
from services.scheduler.engine.events import (
    DomainGone,
    LaneEvent,
    Report,
    UnetAttached,
    VaeAttached,
    WorkerAnnounced,
    WorkerLost,
)
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.item_sizes import BatchGrowth, most_of_slots
from services.scheduler.engine.tasks import Lane, Phase, Task, UnetLaneState
from services.scheduler.engine.ticks import PlannedPart
from synerdiff.plans import (
    DecodedImage,
    ItemTiming,
    Preview,
    ResidentTask,
    SkippedEntry,
    SkipReason,
    TaskFailed,
    TaskReady,
    UnetTickDone,
    VaeTickDone,
)

# A worker that has no room right now answers an admission with this code: the task waits again, nothing failed.
_NO_ROOM = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
_HAS_LATENTS = (Phase.READY_TO_DECODE, Phase.DECODING, Phase.STORING)


def take_report(holdings: Holdings, worker_id: str, report: Report, now_ms: int, grows_from: int) -> PlannedPart | None:
    """Take a report. Returns the plan of a tick that has run, None where this leader did not plan it. `grows_from`:
    tasks of a first batch, where batches grow; 0 where they do not."""
    match report:
        case UnetTickDone():
            return _unet_tick_done(holdings, worker_id, report, now_ms, grows_from)
        case VaeTickDone():
            return _vae_tick_done(holdings, worker_id, report)
        case TaskReady(task_id):
            task = holdings.held_by(worker_id, task_id)
            if task and task.phase is Phase.PREPARING:
                holdings.prepared(task, report)
        case TaskFailed():
            _task_failed(holdings, worker_id, report)
        case DecodedImage(task_id):
            _image_decoded(holdings, worker_id, report, now_ms)
        case Preview(task_id, call, png):
            task = holdings.tasks.get(task_id)
            if task and task.num_calls:
                holdings.effects.append(ReportProgress(task.job_id, task.index, call, task.num_calls, png))
    return None


def _task_failed(holdings: Holdings, worker_id: str, failed: TaskFailed) -> None:
    """A worker cannot do a task. Without room it waits again; anything else fails its job."""
    task = holdings.tasks.get(failed.task_id)
    if task is None or worker_id not in (task.unet_worker, task.vae_worker):
        return
    if failed.code == _NO_ROOM and task.phase is Phase.PREPARING:
        holdings.unet[worker_id].no_room = True  # or it would be asked again at once, for as long as it refuses
        holdings.wait_again(task)
    else:
        holdings.fail(task.job_id, failed.code, failed.message)


def _image_decoded(holdings: Holdings, worker_id: str, image: DecodedImage, now_ms: int) -> None:
    """An image file has come. One that is not awaited any more (cancelled, or decoded twice) is forgotten."""
    task = holdings.tasks.get(image.task_id)
    if task and task.phase in _HAS_LATENTS:
        holdings.decoded(task, worker_id, image, now_ms)
    else:
        holdings.effects.append(ForgetImages(worker_id, (image.task_id,)))


def _unet_tick_done(
    holdings: Holdings, worker_id: str, done: UnetTickDone, now_ms: int, grows_from: int
) -> PlannedPart | None:
    """A UNet plan has run: move its tasks on, and those that are finished to the decodes."""
    lane = holdings.unet.get(worker_id)
    part = _ran(holdings, lane, "unet", done)
    if lane is None:
        return None
    if part and grows_from and not done.skipped:
        _learn_sizes(holdings, lane, done.items, part, grows_from)
    skipped = {entry.task_id: entry for entry in done.skipped}
    for task_id in part.task_ids if part else ():
        task = lane.tasks.get(task_id)
        if task and task.phase is Phase.RUNNING:
            _advance(holdings, task, skipped.get(task_id))
    for measured in done.drifts:
        task = lane.tasks.get(measured.task_id)
        if task:
            task.drift = measured.drift
    for task_id, slot in done.finished:
        task = lane.tasks.get(task_id)
        if task and task.phase is Phase.RUNNING:
            holdings.denoised(task, slot, now_ms)
    return part


def _advance(holdings: Holdings, task: Task, skipped: SkippedEntry | None) -> None:
    if skipped is None:
        task.done_calls += 1
        holdings.effects.append(ReportProgress(task.job_id, task.index, task.done_calls, task.num_calls))
    elif skipped.reason is SkipReason.UNKNOWN_TASK:
        holdings.run_again(task)
    else:
        task.stands_at(skipped.next_call if skipped.reason is SkipReason.OTHER_CALL else task.done_calls)


def _vae_tick_done(holdings: Holdings, worker_id: str, done: VaeTickDone) -> PlannedPart | None:
    """A VAE plan has run. Image files come by themselves; here, latents that could not be read are redone."""
    lane = holdings.vae.get(worker_id)
    part = _ran(holdings, lane, "vae", done)
    if lane is None:
        return None
    for entry in done.skipped:
        task = lane.tasks.get(entry.task_id)
        if task and task.phase is Phase.DECODING:
            holdings.run_again(task)
    return part


def _ran(holdings: Holdings, lane: Lane | None, kind: str, done: UnetTickDone | VaeTickDone) -> PlannedPart | None:
    """A plan has run; the plan. Where memory did not suffice, smaller items are planned from now on."""
    if lane is None:
        return None
    holdings.changed_domains.add(lane.domain)
    part = lane.tick_done(done.tick, done.items)
    for key in holdings.memory.learn(lane.domain, kind, done.items, part) if part else ():
        profile = holdings.profiles.get((lane.domain, key))
        if profile:
            holdings.plan_by(lane.domain, key, profile)
    return part


def _learn_sizes(
    holdings: Holdings, lane: UnetLaneState, items: Sequence[ItemTiming], part: PlannedPart, grows_from: int
) -> None:
    """Count items that ran as planned towards the growth of batches without a profile."""
    for planned, ran in zip(part.items, items, strict=False):
        key = planned.key
        if key and (lane.domain, key) not in holdings.profiles and ran.rows == planned.rows and not ran.halved:
            growth = lane.growth.setdefault(key, BatchGrowth(grows_from, most_of_slots(lane.slots)))
            growth.ran(planned.tasks, ran.rows, (ran.end_unix_ns - ran.start_unix_ns) / 1e6)


def take_lane_event(holdings: Holdings, event: LaneEvent, now_ms: int) -> None:
    """Change the lanes, and the tasks that are on them."""
    match event:
        case UnetAttached(lane, resident):
            _unet_attached(holdings, lane, resident, now_ms)
        case VaeAttached(lane):
            _vae_lost(holdings, lane.worker_id)
            holdings.vae[lane.worker_id] = lane
            holdings.changed_domains.add(lane.domain)
        case WorkerLost(worker_id):
            _unet_lost(holdings, worker_id)
            _vae_lost(holdings, worker_id)
        case WorkerAnnounced():
            _announced(holdings, event)
        case DomainGone(domain):
            holdings.forget_domain(domain)


def _unet_attached(holdings: Holdings, lane: UnetLaneState, resident: tuple[ResidentTask, ...], now_ms: int) -> None:
    """Tasks that the worker still holds and that are still wanted go on where they stand."""
    _unet_lost(holdings, lane.worker_id)
    holdings.unet[lane.worker_id] = lane
    holdings.admission_changed = True
    unwanted = tuple(held.task_id for held in resident if not _taken_up(holdings, lane, held, now_ms))
    if unwanted:
        holdings.effects.append(CancelOnWorker(lane.worker_id, unwanted))
    holdings.changed_domains.add(lane.domain)


def _taken_up(holdings: Holdings, lane: UnetLaneState, held: ResidentTask, now_ms: int) -> bool:
    """Take up a task that a worker holds; False where the task is gone or runs elsewhere by now."""
    task = holdings.tasks.get(held.task_id)
    if task is None:
        return False
    if task.phase is Phase.WAITING:
        holdings.adopt(task, lane.worker_id, held, now_ms)
        return True
    if task.phase in (Phase.DECODING, Phase.STORING) and task.slot == held.slot:
        lane.tasks[held.task_id] = task
        return True
    return False


def _unet_lost(holdings: Holdings, worker_id: str) -> None:
    """The worker's tasks run again elsewhere, or there once it is back. A decode under way is left alone: the VAE
    worker may have read the latents, and says so if it could not."""
    lane = holdings.unet.pop(worker_id, None)
    for task in list(lane.tasks.values()) if lane else ():
        if holdings.holds(task) and task.phase not in (Phase.DECODING, Phase.STORING):
            holdings.run_again(task)


def _vae_lost(holdings: Holdings, worker_id: str) -> None:
    """The latents that the worker was to decode are still in their slots."""
    lane = holdings.vae.pop(worker_id, None)
    for task in list(lane.tasks.values()) if lane else ():
        if holdings.holds(task) and task.phase is Phase.DECODING:
            holdings.decode_again(task)
    holdings.changed_domains.update(other.domain for other in holdings.vae.values())


def _announced(holdings: Holdings, worker: WorkerAnnounced) -> None:
    """A worker that drains, or is suspect, takes nothing new; its tasks go on."""
    lane, stands = holdings.lane(worker.worker_id), (not worker.takes_new, worker.suspect)
    if lane and (lane.draining, lane.suspect) != stands:
        lane.draining, lane.suspect = stands
        holdings.admission_changed = True
        holdings.changed_domains.update(other.domain for other in holdings.vae.values())
