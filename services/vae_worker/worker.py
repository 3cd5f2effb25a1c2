"""A VAE worker from its settings to its end: load, serve, announce, drain."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch

from services.vae_worker.decode_loop import DecodeLoop
from services.vae_worker.decoder import BatchDecoder
from services.vae_worker.item_runner import ItemRunner
from services.vae_worker.outbox import Outbox
from services.vae_worker.service import VaeStageServicer
from services.vae_worker.settings import VaeWorkerSettings
from synerdiff.cancellation import cancel_and_wait, first_of
from synerdiff.cards import ModelCard, Sampler
from synerdiff.errors import SynerDiffError, Unavailable
from synerdiff.latents.client import ArenaClient
from synerdiff.models.announcement import compile_subject, worker_record
from synerdiff.models.compiled import BackgroundCompiler, CompiledVae, CompilerOptions, no_request
from synerdiff.models.compiled.exported import vae_inputs
from synerdiff.models.compiled.rehearsal import start_at_lowest_priority
from synerdiff.models.device import DeviceFailed, DeviceOptions, Fault, fault_of, open_device
from synerdiff.models.digest import component_digest, weights_digest
from synerdiff.models.dtypes import dtype_from_name, dtype_name
from synerdiff.models.errors import ModelLoadError
from synerdiff.models.family import VaeSide
from synerdiff.models.loading import load_vae_side, refusing
from synerdiff.models.memory_format import FormatChoice, settle_memory_format
from synerdiff.models.threads import ThreadShare
from synerdiff.mps import DeviceShare, device_share
from synerdiff.pace import Pacer, PaceSide
from synerdiff.redis_client import connect
from synerdiff.registry import WorkerRecord, WorkerRegistry, keep_announced
from synerdiff.rpc import ServiceHost
from synerdiff.settings import EXIT_BAD_SETTINGS
from synerdiff.stopping import load_unless_stopped, stop_signal
from synerdiff.telemetry import get_logger
from synerdiff.v1 import stages_pb2_grpc

# Images of the decode by which the weights' memory format is chosen.
_TYPICAL_IMAGES = 4
_REHEARSED_IMAGES = 8

log = get_logger("vae_worker")

SERVICE_NAME = "synerdiff.v1.VaeStage"

# After the registry has forgotten this worker, plans may still be on their way for about as long.
_SETTLE_S = 1.0
_CLOSE_GRACE_S = 2.0


class VaeWorker:
    """The parts of one worker: `servicer` to put on a server, `loop` to run beside it.

    `threads` CPU threads decode, `exact_threads` what is exact; 0 takes as many as torch uses on the calling thread.
    `arenas`: where latents are read from; none: over every transport, without TLS. `vae`: how whole batches are.
    """

    def __init__(
        self,
        side: VaeSide,
        worker_id: str,
        *,
        encode_threads: int,
        outbox_bytes: int,
        threads: int = 0,
        exact_threads: int = 1,
        arenas: ArenaClient | None = None,
        vae: CompiledVae | None = None,
    ) -> None:
        self._arenas = arenas or ArenaClient()
        self._device = ThreadPoolExecutor(1, thread_name_prefix="vae-device")
        self._encoders = ThreadPoolExecutor(encode_threads, thread_name_prefix="image-files")
        self._runner = ItemRunner(
            BatchDecoder(side, vae.decode if vae else None),
            Pacer(PaceSide.VAE),
            ThreadShare(threads or torch.get_num_threads(), exact_threads),
        )
        self.outbox = Outbox(outbox_bytes)
        self.loop = DecodeLoop(self._runner, self._arenas, self.outbox, self._device, self._encoders)
        self.servicer = VaeStageServicer(worker_id, self.loop, self.outbox)

    async def warm_up(self) -> None:
        """Make the first decode before anybody waits for it. Raises DeviceFailed."""
        await asyncio.get_running_loop().run_in_executor(self._device, self._runner.warm_up)

    async def drain(self, grace_s: float) -> None:
        """Finish the plans in hand and wait until a leader has stored their images, for at most `grace_s` seconds."""
        self.servicer.start_draining()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await first_of(asyncio.sleep(_SETTLE_S), self.servicer.leaderless())
                await self.loop.settled()
                await first_of(self.outbox.emptied(), self.servicer.leaderless())
        if len(self.outbox):
            log.warning("stopping before every image was stored; they will be decoded again", images=len(self.outbox))

    async def close(self) -> None:
        """Let go of arenas and threads."""
        await self._arenas.close()
        self.loop.drop_plans()
        self._device.shutdown(wait=True, cancel_futures=True)
        self._runner.close()
        self._encoders.shutdown(wait=True, cancel_futures=True)


async def serve(settings: VaeWorkerSettings) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Returns the process's exit status.

    Raises StoppedWhileLoading when told to stop before the model was loaded.
    """
    stop = stop_signal()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    host = ServiceHost(tls=settings.server_tls())
    compiler = BackgroundCompiler(CompilerOptions.of(settings))
    try:
        await host.start_health(settings.health_listen)
        share = await asyncio.to_thread(
            device_share, settings.device, settings.memory_limit_bytes, settings.require_mps
        )
        loaded = await load_unless_stopped(partial(_load, settings, share, compiler), stop)
    except (ModelLoadError, SynerDiffError) as error:
        compiler.close()
        await host.drain(0)
        log.error("cannot serve", reason=str(error))
        return EXIT_BAD_SETTINGS if isinstance(error, ModelLoadError) else 1
    worker_id = settings.worker_id or f"vae-{uuid.uuid4().hex[:12]}"
    worker = VaeWorker(
        loaded.side,
        worker_id,
        encode_threads=settings.image_encoders(),
        outbox_bytes=settings.outbox_bytes,
        threads=settings.threads,
        exact_threads=settings.exact_threads,
        arenas=ArenaClient(settings.transport_choice(), tls=settings.worker_tls()),
        vae=loaded.vae,
    )
    host.add(SERVICE_NAME, stages_pb2_grpc.add_VaeStageServicer_to_server, worker.servicer)
    try:
        await worker.warm_up()
        address = await host.start(settings.listen)
        card = _card(settings.model_name or settings.model.resolve().name, loaded.side)
        record = worker_record("vae", worker_id, settings.advertise or address, card, loaded.side, share, settings)
        record = replace(
            record, memory_format=loaded.memory_format, weights=loaded.weights, loaded_at_ms=loaded.loaded_at_ms
        )
        start_at_lowest_priority("rehearsal", loaded.vae.rehearse, settings.threads)
        return await _serve_until(stop, worker, host, lambda: replace(record, execution=loaded.vae.execution), settings)
    except (DeviceFailed, SynerDiffError) as error:
        log.error("cannot serve", reason=str(error))
        return 1
    finally:
        loaded.vae.close()
        await worker.close()
        await asyncio.to_thread(compiler.close)


async def _serve_until(
    stop: asyncio.Event,
    worker: VaeWorker,
    host: ServiceHost,
    record: Callable[[], WorkerRecord],
    settings: VaeWorkerSettings,
) -> int:
    working = asyncio.create_task(worker.loop.run())
    stopping = asyncio.create_task(stop.wait())
    async with _announced(record, settings):
        await host.set_ready(True)
        log.info("serving", worker_id=record().worker_id, address=record().address, model=record().model_card.name)
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        await host.withdraw()
    failure = working.exception() if working.done() else None
    if failure is None:
        log.info("draining", grace_s=settings.drain_grace_s)
        async with _announced(lambda: replace(record(), draining=True), settings):  # for it to be given nothing new
            await worker.drain(settings.drain_grace_s)
    else:
        _tell_of(failure)
    worker.servicer.end_streams(Unavailable("the VAE worker's device failed") if failure else None)
    await host.drain(_CLOSE_GRACE_S)
    working.cancel()
    stopping.cancel()
    return 1 if failure else 0


def _tell_of(failure: BaseException) -> None:
    if fault_of(failure) is Fault.FATAL:
        log.critical("the device failed: this process ends, its decodes run again", reason=str(failure))
    else:
        log.critical("the decode loop died", exc_info=failure)


@contextlib.asynccontextmanager
async def _announced(record: Callable[[], WorkerRecord], settings: VaeWorkerSettings) -> AsyncIterator[None]:
    """Be in the registry for as long as the body runs, whatever becomes of Redis meanwhile."""
    redis = connect(settings.redis_url)
    announcing = asyncio.create_task(keep_announced(WorkerRegistry(redis), record, settings.registry_ttl_s))
    try:
        yield
    finally:
        await cancel_and_wait(announcing)
        await redis.aclose()


@dataclass(frozen=True)
class _Loaded:
    """What a worker serves with. `memory_format`: how the VAE's weights lie. `weights`, `loaded_at_ms`: recorded."""

    side: VaeSide
    vae: CompiledVae
    memory_format: str
    weights: str
    loaded_at_ms: int


def _load(settings: VaeWorkerSettings, share: DeviceShare, compiler: BackgroundCompiler) -> _Loaded:
    options = DeviceOptions(
        memory_limit_bytes=share.memory_limit_bytes,
        memory_share=settings.memory_share,
        cudnn_benchmark=settings.cudnn_benchmark,
    )
    device = open_device(settings.device, options)
    dtype = dtype_from_name(settings.dtype, device)
    vae_dtype = None if settings.vae_dtype == "auto" else dtype_from_name(settings.vae_dtype)
    side = load_vae_side(
        settings.model,
        dtype,
        vae_dtype=vae_dtype,
        variant=settings.variant,
        safety_checker=settings.safety_checker,
        device=device,
    )
    component = component_digest(side)
    digest, loaded_at_ms = weights_digest(side, component), time.time_ns() // 1_000_000
    subject_of = partial(compile_subject, "vae", settings.model, side, settings.variant, component)
    request = compiler.requests_like(subject_of) if device.compiles else no_request
    vae = CompiledVae(side, request, _REHEARSED_IMAGES if settings.rehearse and device.compiles else 0)
    with refusing(settings.model):
        weights = _settled_format(side)
    compiler.wait()
    log.info(
        "model loaded",
        dtype=dtype_name(dtype),
        vae_dtype=dtype_name(side.vae_dtype),
        memory_format=weights.name,
        channels_last_ratio=weights.ratio,
        execution=vae.execution,
        weights=digest,
    )
    return _Loaded(side, vae, weights.name, digest, loaded_at_ms)


def _settled_format(side: VaeSide) -> FormatChoice:
    """The weights as they are faster with a typical batch."""
    shape = side.latent_shape(*side.native_size)
    (latents,) = vae_inputs(side, shape, _TYPICAL_IMAGES)
    with torch.no_grad():
        return settle_memory_format(
            side.vae, lambda images: side.vae.decode(latents[:images]), side.compute, _TYPICAL_IMAGES
        )


def _card(name: str, side: VaeSide) -> ModelCard:
    """What a VAE worker can say of its model: its name and geometry. All else is the UNet workers' to say."""
    return ModelCard(
        name=name,
        family=side.family.name,
        native_width=0,
        native_height=0,
        size_multiple=side.scale_factor,
        max_side=0,
        default_num_inference_steps=0,
        default_guidance_scale=0.0,
        default_sampler=Sampler.DDIM,
        samplers=(),
        max_prompt_tokens=0,
        prediction_type="",
    )
