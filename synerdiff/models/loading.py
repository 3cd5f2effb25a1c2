"""Load one side of a model from a local diffusers-layout directory, with diffusers' and transformers' own loaders."""

from pathlib import Path

import torch

from synerdiff.models.dtypes import dtype_from_name
from synerdiff.models.family import UnetSide, VaeSide

__all__ = ["dtype_from_name", "load_unet_side", "load_vae_side"]


def load_unet_side(
    path: Path | str, dtype: torch.dtype, *, variant: str = "auto", device: torch.device | str = "cpu"
) -> UnetSide:
    """Load tokenizers, text encoders, UNet and scheduler config; raises ModelLoadError."""
    raise NotImplementedError


def load_vae_side(
    path: Path | str,
    dtype: torch.dtype,
    *,
    variant: str = "auto",
    safety_checker: bool = True,
    device: torch.device | str = "cpu",
) -> VaeSide:
    """Load the VAE and, unless switched off, the safety checker that the directory carries; raises ModelLoadError."""
    raise NotImplementedError
