"""Pictures as the product makes them, in this process: the UNet worker's denoiser, then the VAE worker's decoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.tasks import DenoisingTask
from synerdiff.models.compiled.components import CompiledUnet
from synerdiff.models.compiled.exported import in_order
from synerdiff.models.family import Conditioning, UnetSide, VaeSide
from synerdiff.models.loading import load_unet_side, load_vae_side
from synerdiff.requests import TaskSpec

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Packages:
    """What makes every call in the place of UNet and VAE, as `ExportedUnet` and `ExportedVae` are called."""

    unet: Callable[..., Tensor]
    vae: Callable[..., Tensor]


class PackagedUnet(CompiledUnet):
    """Calls of a package only: workers choose between it and the eager model by the clock."""

    def __init__(self, side: UnetSide, package: Callable[..., Tensor]) -> None:
        super().__init__(side)
        self._package = package

    def prepared(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Callable[[], Tensor]:
        return partial(self._package, *in_order(latents.to(self._side.dtype), timesteps, conditioning))


@lru_cache(maxsize=8)
def unet_side(model_path: Path, dtype: torch.dtype = torch.float32) -> UnetSide:
    """The UNet side of a model, loaded once per test run."""
    return load_unet_side(model_path, dtype)


@lru_cache(maxsize=8)
def vae_side(model_path: Path, dtype: torch.dtype = torch.float32) -> VaeSide:
    """The VAE side of a model, loaded once per test run."""
    return load_vae_side(model_path, dtype)


def served_images(
    model_path: Path,
    requests: Sequence[TaskSpec],
    together: bool,
    dtype: torch.dtype = torch.float32,
    packages: Packages | None = None,
) -> list[Image]:
    """The picture [H, W, 3] of each request, in order.

    `together` steps all of them in one batch that task k joins at its k-th call, so that they stand at different steps,
    and leaves when it is done; otherwise each is made alone. All must be of one size when together.
    """
    side = unet_side(model_path, dtype)
    groups = [list(requests)] if together else [[request] for request in requests]
    latents = [latent for group in groups for latent in served_latents(side, group, packages)]
    decoder = vae_side(model_path, dtype)
    if packages is None:
        return [decoder.decode(latent[None].to(dtype))[0] for latent in latents]
    with torch.inference_mode():
        decoded = [packages.vae(decoder.unscaled(latent[None].to(dtype))) for latent in latents]
    return [decoder.images(one)[0] for one in decoded]


def served_latents(side: UnetSide, requests: Sequence[TaskSpec], packages: Packages | None = None) -> list[Tensor]:
    """The finished latents [C, h, w] fp32 of requests stepped in one batch, which they join one call after another."""
    tasks = [prepared.task for prepared in TaskPreparer(side).prepare(requests)]
    denoiser = Denoiser(side, PackagedUnet(side, packages.unet) if packages else None)
    waiting, running = list(tasks), list[DenoisingTask]()
    while waiting or running:
        running += waiting[:1]
        del waiting[:1]
        denoiser.step(running)
        running = [task for task in running if not task.done]
    return [task.sample.clone() for task in tasks]
