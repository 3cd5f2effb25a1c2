"""How a worker with a loaded model introduces itself to schedulers."""

import os

from synerdiff.cards import ModelCard
from synerdiff.host import boot_id
from synerdiff.models.digest import model_digest
from synerdiff.models.dtypes import dtype_name
from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.models.layout import read_layout
from synerdiff.mps import DeviceShare
from synerdiff.registry import WorkerKind, WorkerRecord
from synerdiff.worker_settings import WorkerSettings


def worker_record(
    kind: WorkerKind,
    worker_id: str,
    address: str,
    card: ModelCard,
    side: UnetSide | VaeSide,
    share: DeviceShare,
    settings: WorkerSettings,
) -> WorkerRecord:
    """The record of this process, reached at `address` (host:port), which holds `side` and may take `share`."""
    return WorkerRecord(
        worker_id=worker_id,
        kind=kind,
        address=address,
        model_card=card,
        pool=settings.pool,
        domain=settings.domain or side.compute.domain,
        boot_id=boot_id(),
        pid=os.getpid(),
        device=side.compute.name,
        dtype=dtype_name(side.dtype),
        model_digest=model_digest(read_layout(settings.model)),
        threads=side.compute.cpu_threads(settings.threads),
        mps_thread_percent=share.mps_thread_percent,
        memory_limit_bytes=share.memory_limit_bytes,
    )
