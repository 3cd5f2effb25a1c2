"""The life of a UNet worker process: load, warm up, serve, announce, and drain on SIGTERM."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from services.unet_worker.model import load_model, warm_up
from services.unet_worker.service import UnetStageServicer
from services.unet_worker.settings import UnetWorkerSettings
from services.unet_worker.worker import UnetWorker
from synerdiff.cancellation import cancel_and_wait, first_of
from synerdiff.cards import ModelCard
from synerdiff.errors import SynerDiffError
from synerdiff.latents.arena import Arena, create_arena
from synerdiff.latents.service import LatentsArenaServicer
from synerdiff.models.announcement import compile_subject, worker_record
from synerdiff.models.compiled import BackgroundCompiler, CompiledUnet, CompilerOptions, no_request
from synerdiff.models.compiled.exported import conditioning_of, unet_inputs
from synerdiff.models.compiled.rehearsal import start_at_lowest_priority
from synerdiff.models.device import DeviceOptions, open_device
from synerdiff.models.digest import component_digest, weights_digest
from synerdiff.models.dtypes import dtype_from_name, dtype_name
from synerdiff.models.errors import ModelLoadError
from synerdiff.models.family import UnetSide
from synerdiff.models.loading import refusing
from synerdiff.models.memory_format import FormatChoice, settle_memory_format
from synerdiff.models.threads import limit_torch_threads
from synerdiff.mps import DeviceShare, device_share
from synerdiff.redis_client import connect
from synerdiff.registry import WorkerRecord, WorkerRegistry, keep_announced
from synerdiff.rpc import ServiceHost
from synerdiff.settings import EXIT_BAD_SETTINGS, load
from synerdiff.stopping import StoppedWhileLoading, leave_now, load_unless_stopped, stop_signal
from synerdiff.telemetry import configure_logging, get_logger, serve_metrics
from synerdiff.v1 import stages_pb2_grpc

UNET_STAGE = "synerdiff.v1.UnetStage"
LATENTS_ARENA = "synerdiff.v1.LatentsArena"

# Rows of the call by which the weights' memory format is chosen.
_TYPICAL_ROWS = 16

log = get_logger("process")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a worker until SIGTERM or SIGINT, and leave with the exit status.

    1 when it could not start or its loop died, EXIT_BAD_SETTINGS when the model directory is refused.
    """
    settings = load(UnetWorkerSettings, argv)
    configure_logging("unet_worker", settings.log_level)
    try:
        status = asyncio.run(serve(settings))
    except StoppedWhileLoading:
        log.info("stopped while loading")
        status = 0
    except (ModelLoadError, SynerDiffError) as error:
        log.critical("cannot start", reason=str(error))
        status = EXIT_BAD_SETTINGS if isinstance(error, ModelLoadError) else 1
    leave_now(status)


async def serve(settings: UnetWorkerSettings) -> int:
    """Load the model, serve until told to stop, drain. Returns the exit status.

    Raises:
        ModelLoadError: the model directory is refused.
        SynerDiffError: the address to listen on cannot be had.
        StoppedWhileLoading: told to stop before the model was loaded.
    """
    stop = stop_signal()
    if settings.threads:
        limit_torch_threads(settings.threads)
    host = ServiceHost(tls=settings.server_tls())
    await host.start_health(settings.health_listen)
    share = await asyncio.to_thread(device_share, settings.device, settings.memory_limit_bytes, settings.require_mps)
    compiler = BackgroundCompiler(CompilerOptions.of(settings))
    try:
        loaded = await load_unless_stopped(partial(_load, settings, share, compiler), stop)
    except BaseException:
        compiler.close()
        await host.drain(0)
        raise
    unet_side, card = loaded.unet_side, loaded.card
    arena = create_arena(
        settings.slots,
        slot_bytes(unet_side, card.max_side),
        dtype_name(unet_side.dtype),
        choice=settings.transport_choice(),
    )
    worker = UnetWorker(
        unet_side,
        arena,
        card=card,
        threads=settings.threads,
        exact_threads=settings.exact_threads,
        embedding_cache_bytes=settings.embedding_cache_bytes,
        unet=loaded.unet,
    )
    worker_id = settings.worker_id or f"unet-{uuid.uuid4().hex[:12]}"
    try:
        serve_metrics(settings.metrics_port)
        address = await start_services(host, worker, arena, worker_id, settings)
        record = worker_record("unet", worker_id, address, card, unet_side, share, settings)
        record = replace(
            record, memory_format=loaded.memory_format, weights=loaded.weights, loaded_at_ms=loaded.loaded_at_ms
        )
        start_at_lowest_priority("rehearsal", loaded.unet.rehearse, settings.threads)
        await _serve_announced(host, worker, lambda: replace(record, execution=loaded.unet.execution), settings, stop)
        return 1 if worker.crashed.is_set() else 0
    finally:
        loaded.unet.close()
        await worker.close()
        await asyncio.to_thread(compiler.close)
        arena.close()


async def start_services(
    host: ServiceHost, worker: UnetWorker, arena: Arena, worker_id: str, settings: UnetWorkerSettings
) -> str:
    """Serve the worker and its arena. Returns the address at which others reach them."""
    servicer = UnetStageServicer(worker, worker_id)
    host.add(UNET_STAGE, stages_pb2_grpc.add_UnetStageServicer_to_server, servicer)
    host.add(LATENTS_ARENA, stages_pb2_grpc.add_LatentsArenaServicer_to_server, LatentsArenaServicer(arena))
    worker.start()
    bound = await host.start(settings.listen)
    servicer.arena_address = settings.advertise or bound
    return servicer.arena_address


def slot_bytes(unet_side: UnetSide, max_side: int) -> int:
    """Bytes of the largest latents that may have to go into a slot."""
    channels, rows, columns = unet_side.latent_shape(max_side, max_side)
    return channels * rows * columns * unet_side.dtype.itemsize


@dataclass(frozen=True)
class _Loaded:
    """What a worker serves with. `memory_format`: how the UNet's weights lie. `weights`, `loaded_at_ms`: recorded."""

    unet_side: UnetSide
    unet: CompiledUnet
    card: ModelCard
    memory_format: str
    weights: str
    loaded_at_ms: int


def _load(settings: UnetWorkerSettings, share: DeviceShare, compiler: BackgroundCompiler) -> _Loaded:
    started = time.perf_counter()
    options = DeviceOptions(
        settings.cuda_graphs, share.memory_limit_bytes, settings.memory_share, settings.cudnn_benchmark
    )
    device = open_device(settings.device, options)
    dtype = dtype_from_name(settings.dtype, device)
    unet_side, card = load_model(
        settings.model,
        dtype,
        name=settings.model_name,
        variant=settings.variant,
        device=device,
        max_side=settings.max_side or None,
        replacement=settings.replacement(),
    )
    component = component_digest(unet_side)
    digest, loaded_at_ms = weights_digest(unet_side, component), time.time_ns() // 1_000_000
    subject_of = partial(compile_subject, "unet", settings.model, unet_side, settings.variant, component)
    request = compiler.requests_like(subject_of) if device.compiles else no_request
    unet = CompiledUnet(unet_side, request, 2 * settings.slots if settings.rehearse and device.compiles else 0)
    # Before any graph is captured, which would go on with the weights where they lay.
    with refusing(settings.model):
        weights = _settled_format(unet_side)
        unet.capture_ahead(2 * settings.slots)
        warm_up(unet_side, unet, card)
    compiler.wait()
    seconds = round(time.perf_counter() - started, 2)
    log.info(
        "model loaded",
        model=card.name,
        family=card.family,
        dtype=dtype_name(dtype),
        memory_format=weights.name,
        channels_last_ratio=weights.ratio,
        execution=unet.execution,
        weights=digest,
        seconds=seconds,
    )
    return _Loaded(unet_side, unet, card, weights.name, digest, loaded_at_ms)


def _settled_format(unet_side: UnetSide) -> FormatChoice:
    """The weights as they are faster with a typical batch."""
    shape = unet_side.latent_shape(*unet_side.native_size)
    inputs = unet_inputs(unet_side, shape, _TYPICAL_ROWS)

    def call(rows: int) -> None:
        latents, timesteps, *conditioning = (one[:rows] for one in inputs)
        unet_side.predict(latents, timesteps, conditioning_of(*conditioning))

    return settle_memory_format(unet_side.unet, call, unet_side.compute, _TYPICAL_ROWS)


async def _serve_announced(
    host: ServiceHost,
    worker: UnetWorker,
    record: Callable[[], WorkerRecord],
    settings: UnetWorkerSettings,
    stop: asyncio.Event,
) -> None:
    """Be found by schedulers until told to stop, then let the tasks in hand end."""
    async with connect(settings.redis_url) as redis:
        registry = WorkerRegistry(redis)
        announcing = asyncio.create_task(keep_announced(registry, record, settings.registry_ttl_s))
        await host.set_ready(True)
        log.info("serving", worker_id=record().worker_id, address=record().address, domain=record().domain)
        await first_of(stop.wait(), worker.crashed.wait())
        worker.draining = True
        await cancel_and_wait(announcing)
        await host.withdraw()
        if not worker.crashed.is_set():
            # Still to be found: a leader that is new meanwhile has these tasks end here.
            leaving = asyncio.create_task(
                keep_announced(registry, lambda: replace(record(), draining=True), settings.registry_ttl_s)
            )
            await _until_empty(worker, settings.drain_grace_s)
            await cancel_and_wait(leaving)
        await host.drain(grace_s=1.0)
    log.info("stopped", worker_id=record().worker_id, residents_left=len(worker.residents))


async def _until_empty(worker: UnetWorker, grace_s: float) -> None:
    log.info("draining", residents=len(worker.residents), grace_s=grace_s)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(worker.until_empty(), grace_s)
