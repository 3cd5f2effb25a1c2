from dataclasses import replace
from pathlib import Path

import pytest
import torch

from synerdiff.models.family import UnetSide
from synerdiff.models.serving import PreviewProjection
from tests.parity import unet_side


@pytest.fixture(scope="session")
def tiny_path(tiny_models: dict[str, Path]) -> Path:
    """A tiny model."""
    return tiny_models["sd1"]


@pytest.fixture(scope="session")
def tiny_side(tiny_path: Path) -> UnetSide:
    """The UNet side of the tiny model, with a preview projection."""
    side = unet_side(tiny_path)
    projection = PreviewProjection(torch.full((3, 4), 0.1), torch.full((3,), 0.5))
    return replace(side, preview=projection)
