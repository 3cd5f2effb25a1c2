"""The model that a UNet worker serves: loaded, with the card that says what may be asked of it."""

from pathlib import Path

import torch

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.samplers import DefaultSampler, UnsupportedScheduler, default_sampler, sampler_limits
from synerdiff.cards import ModelCard, Sampler
from synerdiff.models.compiled import CompiledUnet
from synerdiff.models.device import Device
from synerdiff.models.errors import ModelLoadError
from synerdiff.models.family import UnetSide
from synerdiff.models.loading import load_unet_side, read_scheduler_config, refusing
from synerdiff.requests import TaskSpec
from synerdiff.telemetry import get_logger

log = get_logger("process")


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
    Raises ModelLoadError, before weights are read where the configs tell.
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
    """One guided UNet call at the native size: a model that cannot run shows before it is announced."""
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
