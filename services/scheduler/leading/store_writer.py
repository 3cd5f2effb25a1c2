"""Carries out the engine's store effects beside the ticks: in order within a job, side by side across jobs.

A write that Redis or the image store cannot take just now is tried again for as long as this process leads. The
engine's effects stay in memory meanwhile, and running work goes on. The store logs the trouble. A write that Redis
refuses for good ends its job. Progress may be dropped, and is coalesced: only the latest of each image is written,
twice a second.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from services.scheduler.engine import effects
from services.scheduler.engine.events import ImageStored, JobArrived, JobDropped, JobUnwritable
from services.scheduler.leading.worker_stream import Listener
from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease, TransitionRefused
from services.scheduler.telemetry.job_ends import tell_lost
from synerdiff.errors import StaleLeader, Unavailable
from synerdiff.requests import task_id
from synerdiff.stopping import cancel_and_wait
from synerdiff.telemetry import get_logger

PROGRESS_EVERY_S = 0.5
PROGRESS_PER_S = 100  # each wakes its followers, on any scheduler: progress of many images is written less often

_AWAY = (Unavailable, OSError)

log = get_logger("store_writer")


class StoreWriter:
    """Writes the effects of one leadership to Redis."""

    def __init__(self, store: JobStore, lease: Lease, leader: Listener) -> None:
        self._store = store
        self._lease = lease
        self._leader = leader
        self._queues: dict[str, deque[effects.StoreEffect]] = {}
        self._writers: set[asyncio.Task[None]] = set()
        self._progress: dict[tuple[str, int], effects.ReportProgress] = {}

    @property
    def unwritten(self) -> set[str]:
        """The jobs that have effects which are not in Redis."""
        return set(self._queues)

    @property
    def backlog(self) -> int:
        """Effects not yet in Redis."""
        return sum(len(queue) for queue in self._queues.values())

    def submit(self, effect: effects.StoreEffect) -> None:
        """Queue an effect."""
        if isinstance(effect, effects.ReportProgress):
            # The newest, except that one without a preview does not displace one with it.
            held = self._progress.get((effect.job_id, effect.index))
            if held is None or effect.preview or not held.preview:
                self._progress[effect.job_id, effect.index] = effect
            return
        queue = self._queues.get(effect.job_id)
        if queue is not None:
            queue.append(effect)
            return
        self._queues[effect.job_id] = deque([effect])
        writer = asyncio.create_task(self._write_job(effect.job_id))
        self._writers.add(writer)
        writer.add_done_callback(self._writers.discard)

    async def run(self) -> None:
        """Write progress until cancelled."""
        while True:
            latest, self._progress = list(self._progress.values()), {}
            if latest:
                await self._write_progress(latest)
            await asyncio.sleep(max(PROGRESS_EVERY_S, len(latest) / PROGRESS_PER_S))

    async def _write_progress(self, latest: list[effects.ReportProgress]) -> None:
        try:
            with contextlib.suppress(StaleLeader):
                told = [(each.job_id, each.index, each.step, each.total, each.preview) for each in latest]
                await self._persist(partial(self._store.append_progress, self._lease, told))
        except Exception:  # of one job, an unknown one; it must not end the writing of all
            log.exception("progress cannot be written", images=len(latest))

    async def stop(self) -> None:
        """Write nothing more."""
        await cancel_and_wait(*self._writers)

    async def _write_job(self, job_id: str) -> None:
        queue = self._queues[job_id]
        while queue:
            effect = queue[0]
            try:
                await self._persist(partial(self._write, effect))
            except StaleLeader:
                return
            except Exception as error:
                log.exception("an effect cannot be written", job_id=job_id, effect=type(effect).__name__)
                queue.clear()
                del self._queues[job_id]
                if not isinstance(effect, effects.FailJob):
                    reason = f"{type(effect).__name__} could not be written: {error}"
                    self._leader.on(JobUnwritable(job_id, reason))
                return
            queue.popleft()
        del self._queues[job_id]

    async def _persist(self, write: Callable[[], Awaitable[object]]) -> None:
        try:
            try:
                await write()
            except _AWAY:  # only then: making a retrying costs more than the write
                retry, wait = retry_if_exception_type(_AWAY), wait_exponential(0.1, max=2.0)
                await AsyncRetrying(retry=retry, wait=wait)(write)
        except StaleLeader:
            self._leader.superseded()
            raise

    async def _write(self, effect: effects.StoreEffect) -> None:
        store, lease, in_time = self._store, self._lease, True
        match effect:
            case effects.StartJob(job_id):
                in_time = await store.start(lease, job_id)
            case effects.MarkDecoding(job_id):
                in_time = await store.decoding(lease, job_id)
            case effects.StoreImage(job_id, index, seed, image):
                in_time = await store.store_image(lease, job_id, image, index, seed)
                if in_time:
                    self._leader.on(ImageStored(task_id(job_id, index)))
            case effects.FinishJob():
                in_time = await self._finish(effect)
            case effects.FailJob(job_id, _, code, message, workers):
                in_time = await store.fail(lease, job_id, code, message, workers)
        if not in_time:
            lost = bool((await store.gone([effect.job_id])).lost)
            if lost and isinstance(effect, effects.FinishJob | effects.FailJob):  # the holdings have dropped it
                tell_lost(effect.job_id)
            self._leader.on(JobDropped(effect.job_id, lost))

    async def _finish(self, effect: effects.FinishJob) -> bool:
        job_id, told = effect.job_id, (effect.timings, effect.warnings, effect.skipped_steps, effect.workers)
        try:
            return await self._store.finish(self._lease, job_id, *told)
        except TransitionRefused:
            record = await self._store.job(job_id)
            if record is None or len(record.images_done) == record.request.num_images:
                raise
            log.error("redis has lost images of a job", job_id=record.job_id, images_left=list(record.images_done))
            self._leader.on(JobArrived(record))  # they are drawn again
            return True
