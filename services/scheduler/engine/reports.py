"""Reports of workers: how each `Report` changes the holdings."""

from collections.abc import Sequence

import grpc

from services.scheduler.engine.batch_growth import BatchGrowth, most_of_slots
from services.scheduler.engine.effects import ForgetImages, ReportProgress
from services.scheduler.engine.events import Report
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Phase, PlannedPart, Task, UnetLaneState
from synerdiff.plans import (
    DecodedImage,
    ItemTiming,
    Preview,
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
    """Take a report. Returns the plan of a tick that has run, None where this leader did not plan it.

    `grows_from`: tasks of a first batch, where batches grow; 0 where they do not.
    """
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
    """An image file has come. One that nobody waits for any more (cancelled, or decoded twice) is forgotten."""
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
    if lane is None:
        return None
    holdings.changed_domains.add(lane.domain)
    part = lane.tick_done(done.tick, done.items)
    _learn_memory(holdings, lane.domain, "unet", done.items, part)
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
    if lane is None:
        return None
    holdings.changed_domains.add(lane.domain)
    part = lane.tick_done(done.tick, done.items)
    _learn_memory(holdings, lane.domain, "vae", done.items, part)
    for entry in done.skipped:
        task = lane.tasks.get(entry.task_id)
        if task and task.phase is Phase.DECODING:
            holdings.run_again(task)
    return part


def _learn_memory(
    holdings: Holdings, domain: str, kind: str, items: tuple[ItemTiming, ...], part: PlannedPart | None
) -> None:
    """Where memory did not suffice, smaller items are planned from now on."""
    for key in holdings.memory.learn(domain, kind, items, part) if part else ():
        profile = holdings.profiles.get((domain, key))
        if profile:
            holdings.plan_by(domain, key, profile)


def _learn_sizes(
    holdings: Holdings, lane: UnetLaneState, items: Sequence[ItemTiming], part: PlannedPart, grows_from: int
) -> None:
    """Take items that ran as planned into the growth of batches of whose times no profile speaks."""
    for planned, ran in zip(part.items, items, strict=False):
        key = planned.key
        if key and (lane.domain, key) not in holdings.profiles and ran.rows == planned.rows and not ran.halved:
            growth = lane.growth.setdefault(key, BatchGrowth(grows_from, most_of_slots(lane.slots)))
            growth.ran(planned.tasks, ran.rows, (ran.end_unix_ns - ran.start_unix_ns) / 1e6)
