"""Stable Diffusion 2.x: the OpenCLIP-H text encoder, saved without its last layer, and linear projections."""

from typing import ClassVar

from synerdiff.models.stable_diffusion import StableDiffusionFamily


class Sd2(StableDiffusionFamily):
    """Stable Diffusion 2.x, base (epsilon) and 768 (v_prediction)."""

    name: ClassVar[str] = "sd2"
    text_activation: ClassVar[str] = "gelu"
