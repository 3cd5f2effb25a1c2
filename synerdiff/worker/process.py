"""The life of a worker process: load, probe the device, serve, announce, drain on SIGTERM, stop."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial

from synerdiff.errors import SynerDiffError, Unavailable
from synerdiff.models.compiled.background import BackgroundCompiler
from synerdiff.models.compiled.rehearsal import start_at_lowest_priority
from synerdiff.models.device import DeviceFailed
from synerdiff.models.layout import ModelLoadError
from synerdiff.models.threads import limit_torch_threads
from synerdiff.mps import device_share
from synerdiff.redis_client import connect
from synerdiff.registry import WorkerRecord, WorkerRegistry, keep_announced
from synerdiff.rpc import ServiceHost
from synerdiff.settings import EXIT_BAD_SETTINGS
from synerdiff.stopping import StoppedWhileLoading, cancel_and_wait, first_of, load_unless_stopped, stop_signal
from synerdiff.telemetry import get_logger, serve_metrics
from synerdiff.worker.fail_stop import FailStop
from synerdiff.worker.job_thread import Heartbeat
from synerdiff.worker.loading import S, Stage, load
from synerdiff.worker.stage_worker import StageWorker
from synerdiff.worker_settings import WorkerSettings

log = get_logger("process")

# Far above first calls, captures and the items of a machine slowed tenfold. A CPU may take minutes for a batch of a
# large model, and hangs only by a bug of ours.
_GPU_LIMIT_S, _CPU_LIMIT_S = 600.0, 3600.0
_LOOKS, _LOOK_EVERY_S = 20, 5.0
# For streams that were ended and for threads at work; both fit into the margin that manifests leave after the drain.
_STREAMS_END_S, _THREADS_END_S = 1.0, 10.0

_FAILED = Unavailable("the worker has failed")


class Liveness:
    """Checks heartbeats: a thread whose present job takes longer than `hang_limit_s` is stuck."""

    def __init__(self, heartbeats: Sequence[Heartbeat], settings: WorkerSettings) -> None:
        self._heartbeats = heartbeats
        self._limit_s = settings.hang_limit_s or (_CPU_LIMIT_S if settings.device == "cpu" else _GPU_LIMIT_S)

    @property
    def stuck(self) -> Heartbeat | None:
        """A thread that is stuck just now."""
        return next((one for one in self._heartbeats if one.busy_s() > self._limit_s), None)

    async def follow(self, host: ServiceHost) -> None:
        """Report to `host`, until cancelled: not alive while a thread is stuck."""
        alive = True
        while True:
            await asyncio.sleep(min(_LOOK_EVERY_S, self._limit_s / _LOOKS))
            stuck = self.stuck
            if alive and stuck:
                log.critical("a thread is stuck: not alive", thread=stuck.name, limit_s=self._limit_s)
            elif not alive and not stuck:
                log.warning("the thread goes on: alive again")
            if alive == bool(stuck):
                alive = not stuck
                await host.set_alive(alive)


async def run(stage: Stage[S]) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Returns the exit status (EXIT_BAD_SETTINGS: the model is refused)."""
    settings, stop = stage.settings, stop_signal()
    if settings.threads:
        limit_torch_threads(settings.threads)
    host = ServiceHost(tls=settings.server_tls())
    compiler = BackgroundCompiler(settings)
    try:
        serve_metrics(f"{stage.kind}-worker", settings.metrics_port)
        await host.start_health(settings.health_listen)
        share = await asyncio.to_thread(
            device_share, settings.device, settings.memory_limit_bytes, settings.require_mps
        )
        worker_id = settings.worker_id or f"{stage.kind}-{uuid.uuid4().hex[:12]}"
        record = await load_unless_stopped(partial(load, stage, worker_id, share, compiler), stop)
        return await _serve(stage, stage.open(worker_id, host), record, host, stop)
    except StoppedWhileLoading:
        log.info("stopped while loading")
        return 0
    except (ModelLoadError, SynerDiffError, DeviceFailed) as error:
        log.critical("cannot start", reason=str(error))
        return EXIT_BAD_SETTINGS if isinstance(error, ModelLoadError) else 1
    except Exception as error:
        log.critical("ended by an error that nobody expected", exc_info=error)
        return 1
    finally:
        await host.drain(0)
        await asyncio.to_thread(compiler.close)


async def _serve(
    stage: Stage[S], worker: StageWorker, record: WorkerRecord, host: ServiceHost, stop: asyncio.Event
) -> int:
    settings, compiled, failure = stage.settings, stage.compiled, worker.failure
    liveness = Liveness(worker.heartbeats, settings)
    worker.start()
    bound = await host.start(settings.listen)
    worker.address = settings.advertise or bound

    def current() -> WorkerRecord:
        return replace(record, address=worker.address, execution=compiled.execution, draining=worker.draining)

    start_at_lowest_priority("rehearsal", compiled.rehearse, settings.threads)
    watching = asyncio.create_task(liveness.follow(host))
    failure.watch(watching, "the liveness probe")
    async with _announced(current, settings, failure):
        await host.set_ready(True)
        model, domain = record.model_card.name, record.domain
        log.info("serving", worker_id=worker.worker_id, address=worker.address, model=model, domain=domain)
        await first_of(stop.wait(), failure.wait())
        worker.draining = True
        if failure.error is not None:
            worker.end_streams(_FAILED)  # before the withdrawal, as for a lost worker
    await host.withdraw()
    if failure.error is None and not liveness.stuck:
        log.info("draining", held=worker.held, grace_s=settings.drain_grace_s)
        # Still announced, so that under a new leader the tasks in hand end here.
        async with _announced(current, settings, failure):
            await first_of(worker.until_done(), failure.wait(), asyncio.sleep(settings.drain_grace_s))
    stuck = liveness.stuck is not None
    failed = stuck or failure.error is not None
    worker.end_streams(_FAILED if failed else None)
    await host.drain(_STREAMS_END_S)
    log.info("stopped", worker_id=worker.worker_id, held=worker.held)
    compiled.close()
    await cancel_and_wait(watching)
    if not stuck:
        await _close(worker)
    return int(failed)


@contextlib.asynccontextmanager
async def _announced(
    record: Callable[[], WorkerRecord], settings: WorkerSettings, failure: FailStop
) -> AsyncIterator[None]:
    async with connect(settings.redis_url) as redis:
        announcing = asyncio.create_task(keep_announced(WorkerRegistry(redis), record, settings.registry_ttl_s))
        failure.watch(announcing, "the announcer")
        try:
            yield
        finally:
            await cancel_and_wait(announcing)


async def _close(worker: StageWorker) -> None:
    try:
        async with asyncio.timeout(_THREADS_END_S):
            await worker.close()
    except TimeoutError:
        log.warning("leaving threads that do not end", seconds=_THREADS_END_S)
