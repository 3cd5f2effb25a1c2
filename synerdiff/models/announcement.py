"""How a worker with a loaded model introduces itself to schedulers."""

import os
from pathlib import Path

import torch

from synerdiff.cards import ModelCard
from synerdiff.host import boot_id
from synerdiff.models.compiled.store import CompileSubject, Component
from synerdiff.models.device.opening import dtype_name
from synerdiff.models.digest import component_digest, model_digest
from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.models.layout import read_layout
from synerdiff.mps import DeviceShare
from synerdiff.registry import WorkerKind, WorkerRecord
from synerdiff.worker_settings import WorkerSettings


def compile_subject(
    component: Component, model: Path, side: UnetSide | VaeSide, variant: str = "auto", digest: str = ""
) -> CompileSubject:
    """The subject that a worker compiles at the native size: the weights it holds, even if the files have changed.

    `variant`: the one that `side` was loaded with; `digest`: its `component_digest`, where it is known.
    """
    return CompileSubject(
        component=component,
        model=str(model.resolve()),
        component_digest=digest or component_digest(side),
        dtype=dtype_name(_loaded_dtype(side)),
        latent_shape=side.latent_shape(*side.native_size),
        variant=variant,
    )


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
        dtype=dtype_name(computed_dtype(side)),
        model_digest=model_digest(read_layout(settings.model)),
        threads=side.compute.cpu_threads(settings.threads),
        mps_thread_percent=share.mps_thread_percent,
        memory_limit_bytes=side.compute.memory_limit_bytes(),
    )


def computed_dtype(side: UnetSide | VaeSide) -> torch.dtype:
    """What its UNet or VAE computes in."""
    return side.vae_dtype if isinstance(side, VaeSide) else side.dtype


def _loaded_dtype(side: UnetSide | VaeSide) -> torch.dtype:
    """The dtype by which `loading` makes this component again: the model's, but for a VAE that was told another."""
    if isinstance(side, VaeSide) and side.vae_dtype != side.family.vae_dtype(side.vae.config, side.dtype):
        return side.vae_dtype
    return side.dtype
