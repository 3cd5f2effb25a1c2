"""The start of a worker: load its side of the model, choose its memory format, make the first calls."""

import os
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from typing import Generic, TypeVar

from synerdiff.cards import ModelCard
from synerdiff.host import boot_id
from synerdiff.models.compiled.background import BackgroundCompiler
from synerdiff.models.compiled.components import CompiledUnet, CompiledVae, Request, compile_subject, no_request
from synerdiff.models.device import Device, DeviceOptions, open_device
from synerdiff.models.device.opening import dtype_name
from synerdiff.models.digest import component_digest, model_digest, weights_digest
from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.models.layout import read_layout
from synerdiff.models.loading import refusing
from synerdiff.models.memory_format import FormatChoice
from synerdiff.mps import DeviceShare
from synerdiff.registry import WorkerKind, WorkerRecord
from synerdiff.rpc import ServiceHost
from synerdiff.telemetry import get_logger
from synerdiff.worker.stage_worker import StageWorker
from synerdiff.worker_settings import WorkerSettings

S = TypeVar("S", bound=WorkerSettings)

log = get_logger("loading")


class Stage(ABC, Generic[S]):
    """One stage, from settings to a worker. The skeleton calls its methods once, in this order.

    `side` and `card` are there once the model is loaded, `compiled` and `memory_format` once it is ready.
    """

    kind: WorkerKind
    side: UnetSide | VaeSide
    card: ModelCard
    compiled: CompiledUnet | CompiledVae
    memory_format: FormatChoice

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @abstractmethod
    def load_model(self, device: Device) -> None:
        """Load its side of the model. Takes long. Raises ModelLoadError."""

    @abstractmethod
    def make_ready(self, request: Request, rehearse: bool) -> None:
        """Settle the memory format and make the first calls: a model that cannot run fails before it is announced.

        `request` requests packages; `rehearse`: whether more first calls are to be made later on. Takes long.
        Raises any error of a call.
        """

    @abstractmethod
    def open(self, worker_id: str, host: ServiceHost) -> StageWorker:
        """A worker that has not started; adds its services to a host that has not started."""


def load(stage: Stage[S], worker_id: str, share: DeviceShare, compiler: BackgroundCompiler) -> WorkerRecord:
    """Make a stage ready to be opened; its record without address. Slow. Raises ModelLoadError, DeviceFailed."""
    started, settings = time.perf_counter(), stage.settings
    limit_bytes, benchmark = share.memory_limit_bytes, settings.cudnn_benchmark
    options = DeviceOptions(settings.cuda_graphs, limit_bytes, settings.memory_share, benchmark)
    device = open_device(settings.device, options)
    stage.load_model(device)
    side, card = stage.side, stage.card
    component = component_digest(side)
    weights, loaded_at_ms = weights_digest(side, component), time.time_ns() // 1_000_000
    subject_of = partial(compile_subject, stage.kind, settings.model, side, settings.variant, component)
    request = compiler.requests_like(subject_of) if device.compiles else no_request
    with refusing(settings.model):
        stage.make_ready(request, settings.rehearse and device.compiles)
    compiler.wait()
    record = worker_record(stage.kind, worker_id, card, side, share, settings)
    log.info(
        "model loaded",
        model=card.name,
        family=card.family,
        dtype=dtype_name(side.dtype),
        computes_in=record.dtype,
        memory_format=stage.memory_format.name,
        channels_last_ratio=stage.memory_format.ratio,
        execution=stage.compiled.execution,
        weights=weights,
        seconds=round(time.perf_counter() - started, 2),
    )
    return replace(record, memory_format=stage.memory_format.name, weights=weights, loaded_at_ms=loaded_at_ms)


def worker_record(
    kind: WorkerKind,
    worker_id: str,
    card: ModelCard,
    side: UnetSide | VaeSide,
    share: DeviceShare,
    settings: WorkerSettings,
) -> WorkerRecord:
    """The record of this process with `side` and `share`, without an address yet."""
    return WorkerRecord(
        worker_id=worker_id,
        kind=kind,
        address="",
        model_card=card,
        pool=settings.pool,
        domain=settings.domain or side.compute.domain,
        boot_id=boot_id(),
        pid=os.getpid(),
        device=side.compute.name,
        dtype=dtype_name(side.vae_dtype if isinstance(side, VaeSide) else side.dtype),
        model_digest=model_digest(read_layout(settings.model)),
        threads=side.compute.cpu_threads(settings.threads),
        mps_thread_percent=share.mps_thread_percent,
        memory_limit_bytes=side.compute.memory_limit_bytes(),
    )
