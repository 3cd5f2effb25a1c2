"""Pictures with guidance skipped on given calls, and how far they are from those of the same seeds without."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from synerdiff.cards import Sampler
from synerdiff.models.family import Images, UnetSide, VaeSide
from synerdiff.requests import TaskSpec

_AT_ONCE = 16
_DECODED_AT_ONCE = 8
_LEAST_SQUARED_ERROR = 1e-4  # of levels of 255: pictures that are equal count as 88 dB apart

Score = Callable[[Images, Sequence[str]], float]


@dataclass(frozen=True)
class Loss:
    """What skipping costs: PSNR of the pictures in dB, mean and worst; |x - x_full| / |x_full| of the latents, mean."""

    mean_db: float
    worst_db: float
    latent_error: float


@dataclass(frozen=True)
class Pictures:
    """Finished latents [n, C, h, w] fp32 on the CPU and the pictures [n, H, W, 3] of them."""

    latents: Tensor
    images: Images


@dataclass(frozen=True)
class Task:
    """What is asked of the model: picture k is of prompt k, from seed k."""

    prompts: tuple[str, ...]
    sampler: Sampler
    num_inference_steps: int
    guidance_scale: float


class Studio:
    """Makes pictures with the worker's own denoiser and decoder, at the model's native size."""

    def __init__(self, unet_side: UnetSide, vae_side: VaeSide, denoiser: Denoiser | None = None) -> None:
        self._unet_side = unet_side
        self._vae_side = vae_side
        self._denoiser = denoiser or Denoiser(unet_side)
        self._preparer = TaskPreparer(unet_side)
        self.full = cache(self._full)

    def num_calls(self, task: Task) -> int:
        """UNet calls of each picture."""
        return self._preparer.prepare(self._specs(task, "")[:1])[0].task.num_calls

    def skipping(self, task: Task, predictor: str, calls: Collection[int]) -> Pictures:
        """The pictures with guidance skipped on `calls`, predicted as `SkipPredictor.parse` reads `predictor`."""
        specs = self._specs(task, predictor)
        latents = [
            latent
            for first in range(0, len(specs), _AT_ONCE)
            for latent in self._latents(specs[first : first + _AT_ONCE], frozenset(calls))
        ]
        finished = torch.stack(latents)
        decoded = [
            torch.from_numpy(self._vae_side.decode(part.to(self._vae_side.dtype)))
            for part in torch.split(finished, _DECODED_AT_ONCE)
        ]
        return Pictures(finished, torch.cat(decoded).numpy())

    def loss(self, task: Task, pictures: Pictures) -> Loss:
        """How far pictures of a task are from those with full guidance, which are made once and kept."""
        return loss(pictures, self.full(task))

    def _full(self, task: Task) -> Pictures:
        return self.skipping(task, "", ())

    def _latents(self, specs: Sequence[TaskSpec], calls: frozenset[int]) -> list[Tensor]:
        tasks = [prepared.task for prepared in self._preparer.prepare(specs)]
        while not tasks[0].done:
            self._denoiser.step(tasks, [tasks[0].next_call in calls] * len(tasks))
        return [task.sample.cpu() for task in tasks]

    def _specs(self, task: Task, predictor: str) -> list[TaskSpec]:
        width, height = self._unet_side.native_size
        return [
            TaskSpec(
                task_id=f"fidelity/{seed}",
                prompt=prompt,
                negative_prompt="",
                width=width,
                height=height,
                num_inference_steps=task.num_inference_steps,
                guidance_scale=task.guidance_scale,
                seed=seed,
                sampler=task.sampler,
                preview_every=0,
                skip_predictor=predictor,
            )
            for seed, prompt in enumerate(task.prompts)
        ]


def loss(pictures: Pictures, full: Pictures) -> Loss:
    """How far pictures are from those with full guidance."""
    off = torch.from_numpy(pictures.images).float() - torch.from_numpy(full.images).float()
    psnr = 10 * torch.log10(255**2 / off.square().flatten(1).mean(1).clamp_min(_LEAST_SQUARED_ERROR))
    error = (pictures.latents - full.latents).flatten(1).norm(dim=1) / full.latents.flatten(1).norm(dim=1)
    return Loss(psnr.mean().item(), psnr.min().item(), error.mean().item())
