"""The autoencoder: trained on crops first, its decoder polished later with the encoder frozen."""

import copy
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from networks import LATENT_CHANNELS, make_vae, start_as_resampler
from pictures import LATENT_FACTOR, SIZE, compose_all, random_crops
from torch import Tensor
from torch.nn import functional

PatchTarget = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class VaeTraining:
    """Settings of one leg. `latent_noise` makes the decoder tolerant of imperfect diffusion output."""

    minutes: float
    learning_rate: float
    latent_noise: float
    decoder_only: bool
    whole_pictures_from: float  # share of the time; crops of 64 pixels before

    @property
    def name(self) -> str:
        """For the log."""
        return "vae-dec" if self.decoder_only else "vae"


def whole_vae(minutes: float) -> VaeTraining:
    """The first leg: all of it."""
    return VaeTraining(minutes, 1.2e-3, 0.02, decoder_only=False, whole_pictures_from=0.85)


def decoder_polish(minutes: float) -> VaeTraining:
    """The last leg: the decoder alone, so that the cached latents stay valid."""
    return VaeTraining(minutes, 6e-4, 0.05, decoder_only=True, whole_pictures_from=0.5)


def train_vae(work: Path, rgba: Tensor, training: VaeTraining, seed: int) -> None:
    """Train and save WORK/vae.pt, or WORK/vae_dec.pt for the decoder alone."""
    rng = random.Random(seed + 17 * training.decoder_only)
    torch.manual_seed(seed + training.decoder_only)
    vae = make_vae()
    start_as_resampler(vae)
    target = None if training.decoder_only else principal_components(rgba, rng)
    if training.decoder_only:
        vae.load_state_dict(torch.load(work / "vae.pt")["vae"])
        for parameter in [*vae.encoder.parameters(), *vae.quant_conv.parameters()]:
            parameter.requires_grad_(False)
    averaged, steps, seen = _run(vae, rgba, rng, training, target)
    pictures = compose_all(rgba)
    scale = torch.load(work / "vae.pt")["scale"] if training.decoder_only else _scaling_factor(averaged, pictures)
    torch.save(
        {"vae": averaged.state_dict(), "scale": scale, "steps": steps, "seen": seen},
        work / ("vae_dec.pt" if training.decoder_only else "vae.pt"),
    )
    psnr = reconstruction_psnr(averaged, pictures)
    print("saved vae: steps", steps, "samples", seen, "scaling_factor", scale, "PSNR(full, EMA)", psnr, flush=True)


def _run(
    vae: AutoencoderKL, rgba: Tensor, rng: random.Random, training: VaeTraining, target: PatchTarget | None
) -> tuple[AutoencoderKL, int, int]:
    """The training loop; returns the averaged weights, steps and pictures seen."""
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    averaged = copy.deepcopy(vae).requires_grad_(False)
    started, step, seen, errors = time.time(), 0, 0, []
    while (elapsed := (time.time() - started) / 60) < training.minutes:
        progress = elapsed / training.minutes
        learning_rate = training.learning_rate * _schedule(step, progress)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        is_whole = progress > training.whole_pictures_from
        pictures = random_crops(rgba, rng, 6 if is_whole else 8, SIZE if is_whole else 64)
        loss, decoded = _loss(vae, pictures, training, progress, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(0.998, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(vae.parameters()), 1 - decay)
        step, seen = step + 1, seen + len(pictures)
        errors.append(((decoded.detach() - pictures) ** 2).mean().item())
        if step % 100 == 0:
            psnr = 10 * math.log10(4 / np.mean(errors[-100:]))
            print(
                f"{training.name} step {step} min {elapsed:.1f} loss {loss.item():.4f} psnr {psnr:.2f} "
                f"lr {learning_rate:.1e}",
                flush=True,
            )
    return averaged.eval(), step, seen


def _schedule(step: int, progress: float) -> float:
    """Warm-up, flat until 30 % of the time, then a cosine down to 1 %."""
    return min(1, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * max(0, (progress - 0.3) / 0.7))) + 0.01)


def _loss(
    vae: AutoencoderKL, pictures: Tensor, training: VaeTraining, progress: float, target: PatchTarget | None
) -> tuple[Tensor, Tensor]:
    """The loss, and the decoded pictures."""
    with torch.autocast("cpu", torch.bfloat16):
        with torch.set_grad_enabled(not training.decoder_only):
            posterior = vae.encode(pictures).latent_dist
            latents = posterior.mode() if training.decoder_only else posterior.sample()
        latents = latents.float()
        latents = latents + training.latent_noise * torch.randn_like(latents)
        decoded = vae.decode(latents).sample
    decoded = decoded.float()
    loss = reconstruction_loss(decoded, pictures)
    if training.decoder_only or target is None:
        return loss, decoded
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    loss = loss + 3e-4 * 0.5 * (mean * mean + logvar.exp() - 1 - logvar).mean()
    if progress < 0.35:
        loss = loss + 0.5 * (1 - progress / 0.35) * (mean - target(pictures)).pow(2).mean()
    return loss, decoded


def reconstruction_loss(decoded: Tensor, pictures: Tensor) -> Tensor:
    """L1 and MSE, L1 of edges (sharpness), L1 of coarse pictures (colour): all on the cheap."""
    loss = (decoded - pictures).abs().mean() + (decoded - pictures).pow(2).mean()
    for decoded_edges, picture_edges in zip(_edges(decoded), _edges(pictures), strict=True):
        loss = loss + 0.5 * (decoded_edges - picture_edges).abs().mean()
    return loss + 0.5 * (functional.avg_pool2d(decoded, 4) - functional.avg_pool2d(pictures, 4)).abs().mean()


def _edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    return pictures[..., 1:, :] - pictures[..., :-1, :], pictures[..., :, 1:] - pictures[..., :, :-1]


def principal_components(rgba: Tensor, rng: random.Random) -> PatchTarget:
    """A warm-up target for the encoder's mean: the principal components of 8x8 patches, at unit variance."""
    pictures = random_crops(rgba, rng, 300, SIZE)
    unshuffled = functional.pixel_unshuffle(pictures, LATENT_FACTOR).permute(0, 2, 3, 1)
    patches = unshuffled.reshape(-1, unshuffled.shape[-1])
    mean = patches.mean(0)
    variances, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    largest = slice(-LATENT_CHANNELS, None)
    projection = directions[:, largest] / variances[largest].clamp_min(1e-6).sqrt()

    def target(batch: Tensor) -> Tensor:
        centred = functional.pixel_unshuffle(batch, LATENT_FACTOR).permute(0, 2, 3, 1) - mean
        return (centred @ projection).permute(0, 3, 1, 2)

    return target


@torch.no_grad()
def _scaling_factor(vae: AutoencoderKL, pictures: Tensor) -> float:
    """What brings latents to unit variance."""
    latents = torch.cat([vae.encode(batch).latent_dist.mode() for batch in pictures.split(32)])
    return 1 / latents.std().item()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, pictures: Tensor, count: int = 128) -> float:
    """Mean PSNR in dB over about `count` of the pictures."""
    originals = pictures[:: max(1, len(pictures) // count)]
    decoded = torch.cat(
        [vae.decode(vae.encode(batch).latent_dist.mode()).sample.clamp(-1, 1) for batch in originals.split(16)]
    )
    return float((10 * torch.log10(4 / (decoded - originals).pow(2).mean((1, 2, 3)))).mean())
