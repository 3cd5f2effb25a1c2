"""The safety checker that a model directory may carry, run as the diffusers pipeline runs it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from synerdiff.models.layout import ModelLayout
from synerdiff.models.weights import load_transformers_model


@dataclass(frozen=True)
class SafetyChecker:
    """diffusers' StableDiffusionSafetyChecker with the CLIPImageProcessor that prepares its input."""

    model: Any
    feature_extractor: Any

    @torch.no_grad()
    def __call__(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], list[bool]]:
        """Check pictures [n, H, W, 3]; returns them with flagged ones black, and which were flagged."""
        features = self.feature_extractor([Image.fromarray(image) for image in images], return_tensors="pt")
        pixel_values = features.pixel_values.to(self.model.device, self.model.dtype)
        # The checker blackens its input in place, so it gets a copy.
        checked, flagged = self.model(images=images.copy(), clip_input=pixel_values)
        return checked, [bool(flag) for flag in flagged]


def load_safety_checker(layout: ModelLayout, dtype: torch.dtype, variant: str, device: torch.device) -> SafetyChecker:
    """Load the checker of a directory that has one; raises ModelLoadError."""
    # Only here, since this import costs seconds and few models need it.
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    layout.require("safety_checker", "StableDiffusionSafetyChecker")
    layout.require("feature_extractor", "CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
    try:
        extractor = CLIPImageProcessor.from_pretrained(
            str(layout.path), subfolder="feature_extractor", local_files_only=True
        )
    except (OSError, ValueError, TypeError) as error:
        raise layout.refuse(f"feature_extractor does not load: {error}") from error
    model = load_transformers_model(StableDiffusionSafetyChecker, layout, "safety_checker", dtype, variant, device)
    return SafetyChecker(model, extractor)
