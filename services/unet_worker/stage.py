"""The UNet stage: a worker's model, loaded and tried, and the worker."""

from pathlib import Path

import torch

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.sampler_probe import UnsupportedScheduler
from services.unet_worker.samplers import DefaultSampler, default_sampler, sampler_limits
from services.unet_worker.service import add_services
from services.unet_worker.settings import UnetWorkerSettings
from services.unet_worker.worker import UnetWorker
from synerdiff.cards import ModelCard, Sampler
from synerdiff.latents.arena import create_arena
from synerdiff.models.compiled.components import CompiledUnet, Request
from synerdiff.models.compiled.exported import conditioning_of, unet_inputs
from synerdiff.models.device import Device
from synerdiff.models.device.opening import dtype_from_name, dtype_name
from synerdiff.models.family import UnetSide
from synerdiff.models.layout import ModelLoadError
from synerdiff.models.loading import load_unet_side, read_scheduler_config, refusing
from synerdiff.models.memory_format import settle_memory_format
from synerdiff.requests import TaskSpec
from synerdiff.rpc import ServiceHost
from synerdiff.telemetry import get_logger
from synerdiff.worker.loading import Stage

log = get_logger("process")

# Rows of the call by which the weights' memory format is chosen.
_TYPICAL_ROWS = 16


def load_model(
    path: Path,
    dtype: torch.dtype,
    *,
    name: str = "",
    variant: str = "auto",
    device: Device | None = None,
    max_side: int | None = None,
    replacement: Sampler | None = None,
) -> tuple[UnetSide, ModelCard]:
    """The UNet side of the model in `path`, and its card under `name` (empty: the directory's own).

    `variant`, `device`: as for `load_unet_side`; `max_side`: pixels, None for the model's own; `replacement`: the
    sampler that stands in for a scheduler of the model's own that cannot be served.
    Raises ModelLoadError, before weights are read where the configs show the error.
    """
    default = _default_sampler(path, replacement)
    if default.refused:
        log.warning("scheduler replaced", reason=default.refused, instead=default.sampler.name.lower())
    side = load_unet_side(path, dtype, variant=variant, device=device)
    with refusing(path):
        card = side.describe(
            name or path.resolve().name,
            sampler_limits(side.scheduler_config),
            default.sampler,
            max_side,
            scheduler_refused=default.refused,
        )
    return side, card


def _default_sampler(path: Path, replacement: Sampler | None) -> DefaultSampler:
    config = read_scheduler_config(path)
    try:
        return default_sampler(config, replacement)
    except UnsupportedScheduler as error:
        way_out = "" if replacement else "; --replace-scheduler NAME serves the sampler of that name in its place"
        raise ModelLoadError(path, f"its own scheduler cannot be served: {error}{way_out}") from error


def warm_up(unet_side: UnetSide, unet: CompiledUnet, card: ModelCard) -> None:
    """One guided UNet call at the native size: a model that cannot run fails before it is announced."""
    limits = card.limits(card.default_sampler)
    steps = card.default_num_inference_steps
    spec = TaskSpec(
        task_id="warm-up/0",
        prompt="",
        negative_prompt="",
        width=card.native_width,
        height=card.native_height,
        num_inference_steps=min(steps, limits.max_num_inference_steps) if limits else steps,
        guidance_scale=card.default_guidance_scale,
        seed=0,
        sampler=card.default_sampler,
        preview_every=0,
    )
    prepared = TaskPreparer(unet_side, embedding_cache_bytes=0).prepare([spec])
    Denoiser(unet_side, unet).step([prepared[0].task])


class UnetStage(Stage[UnetWorkerSettings]):
    """The stage of a UNet worker."""

    kind = "unet"
    side: UnetSide
    compiled: CompiledUnet

    def load_model(self, device: Device) -> None:
        """See Stage."""
        settings = self.settings
        self.side, self.card = load_model(
            settings.model,
            dtype_from_name(settings.dtype, device),
            name=settings.model_name,
            variant=settings.variant,
            device=device,
            max_side=settings.max_side or None,
            replacement=settings.replacement(),
        )

    def make_ready(self, request: Request, rehearse: bool) -> None:
        """See Stage. No request pays for a capture: every common batch size is captured here."""
        side, most_rows = self.side, 2 * self.settings.slots
        self.compiled = CompiledUnet(side, request, most_rows if rehearse else 0)
        inputs = unet_inputs(side, side.latent_shape(*side.native_size), _TYPICAL_ROWS)

        def call(rows: int) -> None:
            latents, timesteps, *conditioning = (one[:rows] for one in inputs)
            side.predict(latents, timesteps, conditioning_of(*conditioning))

        # Before any graph is captured: a graph would go on reading the weights at their old addresses.
        self.memory_format = settle_memory_format(side.unet, call, side.compute, _TYPICAL_ROWS)
        self.compiled.capture_ahead(most_rows)
        warm_up(side, self.compiled, self.card)

    def open(self, worker_id: str, host: ServiceHost) -> UnetWorker:
        """See Stage."""
        settings, side = self.settings, self.side
        slot_bytes = largest_slot_bytes(side, self.card.max_side)
        worker = UnetWorker(
            worker_id,
            side,
            create_arena(settings.slots, slot_bytes, dtype_name(side.dtype), choice=settings.transport_choice()),
            threads=settings.threads,
            exact_threads=settings.exact_threads,
            embedding_cache_bytes=settings.embedding_cache_bytes,
            unet=self.compiled,
            card=self.card,
        )
        add_services(host, worker)
        return worker


STAGE = UnetStage


def largest_slot_bytes(side: UnetSide, max_side: int) -> int:
    """Bytes of the largest latents that may have to go into a slot."""
    channels, rows, columns = side.latent_shape(max_side, max_side)
    return channels * rows * columns * side.dtype.itemsize
