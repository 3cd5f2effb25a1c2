"""Components as functions of tensors alone, so that they can be exported, and example inputs for that."""

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from synerdiff.models.family import Conditioning, UnetSide, VaeSide

# Names of added conditions, in the order in which a package takes them.
_ADDED = ("text_embeds", "time_ids")


class ExportedUnet(nn.Module):
    """A UNet call: latents [rows, C, h, w], timesteps [rows], hidden [rows, tokens, dim]."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, timesteps: Tensor, hidden: Tensor) -> Tensor:
        """noise_pred [rows, C, h, w]."""
        noise_pred: Tensor = self.unet(latents, timesteps, hidden, return_dict=False)[0]
        return noise_pred


class ExportedUnetWithAdded(nn.Module):
    """As `ExportedUnet`, of a UNet that takes added conditions: text_embeds [rows, dim], time_ids [rows, 6]."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, latents: Tensor, timesteps: Tensor, hidden: Tensor, text_embeds: Tensor, time_ids: Tensor
    ) -> Tensor:
        """noise_pred [rows, C, h, w]."""
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        noise_pred: Tensor = self.unet(latents, timesteps, hidden, added_cond_kwargs=added, return_dict=False)[0]
        return noise_pred


class ExportedVae(nn.Module):
    """`vae.decode`: latents [n, C, h, w] in the VAE's scale."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Images [n, 3, H, W], before any clamping."""
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return images


def exported_unet(unet: UNet2DConditionModel) -> nn.Module:
    """The UNet as a function of the tensors that `unet_inputs` gives."""
    takes_added = unet.config.addition_embed_type == "text_time"
    return (ExportedUnetWithAdded if takes_added else ExportedUnet)(unet).eval()


def in_order(latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> tuple[Tensor, ...]:
    """The tensors of a UNet call, as an exported UNet takes them."""
    added = conditioning.added or {}
    return latents, timesteps.float(), conditioning.hidden, *(added[name] for name in _ADDED if name in added)


def conditioning_of(hidden: Tensor, *added: Tensor) -> Conditioning:
    """The conditioning of a UNet call from the tensors that `in_order` puts after latents and timesteps."""
    return Conditioning(hidden, dict(zip(_ADDED, added, strict=False)) or None)


def unet_inputs(side: UnetSide, latent_shape: tuple[int, int, int], rows: int) -> tuple[Tensor, ...]:
    """Inputs of an `ExportedUnet` of a side, the same for the same arguments."""
    draw = torch.Generator().manual_seed(rows)
    _, height, width = latent_shape
    scale = side.vae_scale_factor
    conditioning = side.conditioning(side.encode(["a"]) * rows, width * scale, height * scale)
    latents = side.compute.upload(torch.randn(rows, *latent_shape, generator=draw).to(side.dtype))
    timesteps = side.compute.upload(torch.linspace(1, 999, rows))
    return in_order(latents, timesteps, conditioning)


def vae_inputs(side: VaeSide, latent_shape: tuple[int, int, int], rows: int) -> tuple[Tensor, ...]:
    """Inputs of an `ExportedVae` of a side, the same for the same arguments."""
    latents: Any = torch.randn(rows, *latent_shape, generator=torch.Generator().manual_seed(rows))
    return (side.unscaled(latents),)
