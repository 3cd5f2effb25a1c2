"""Workers that come, go and drain: how each `LaneEvent` changes the holdings."""

from services.scheduler.engine.effects import CancelOnWorker
from services.scheduler.engine.events import (
    DomainGone,
    LaneEvent,
    UnetAttached,
    VaeAttached,
    WorkerAnnounced,
    WorkerLost,
)
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Phase, UnetLaneState, VaeLaneState
from synerdiff.plans import ResidentTask


def take_lane_event(holdings: Holdings, event: LaneEvent, now_ms: int) -> None:
    """Change the lanes, and the tasks that are on them."""
    match event:
        case UnetAttached(lane, resident):
            _unet_attached(holdings, lane, resident, now_ms)
        case VaeAttached(lane):
            _vae_attached(holdings, lane)
        case WorkerLost(worker_id):
            _unet_lost(holdings, worker_id)
            _vae_lost(holdings, worker_id)
        case WorkerAnnounced(worker_id, takes_new):
            _announced(holdings, worker_id, takes_new)
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
    """The worker's tasks run again elsewhere, or there once it is back.

    A decode under way is left alone: the VAE worker may have read the latents, and says so if it could not.
    """
    lane = holdings.unet.pop(worker_id, None)
    for task in list(lane.tasks.values()) if lane else ():
        if holdings.holds(task) and task.phase not in (Phase.DECODING, Phase.STORING):
            holdings.run_again(task)


def _vae_attached(holdings: Holdings, lane: VaeLaneState) -> None:
    _vae_lost(holdings, lane.worker_id)
    holdings.vae[lane.worker_id] = lane
    holdings.changed_domains.add(lane.domain)


def _vae_lost(holdings: Holdings, worker_id: str) -> None:
    """The latents that the worker was to decode are still in their slots."""
    lane = holdings.vae.pop(worker_id, None)
    for task in list(lane.tasks.values()) if lane else ():
        if holdings.holds(task) and task.phase is Phase.DECODING:
            holdings.decode_again(task)
    holdings.changed_domains.update(other.domain for other in holdings.vae.values())


def _announced(holdings: Holdings, worker_id: str, takes_new: bool) -> None:
    """A worker that drains takes nothing new; its tasks go on."""
    lane = holdings.lane(worker_id)
    if lane and lane.draining == takes_new:
        lane.draining = not takes_new
        holdings.admission_changed = True
        holdings.changed_domains.update(other.domain for other in holdings.vae.values())
