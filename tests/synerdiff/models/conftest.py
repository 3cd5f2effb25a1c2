"""Tests here go over the families."""

from pathlib import Path

import pytest
import torch

from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.models.loading import load_unet_side, load_vae_side
from tests.tiny_models import FamilyName

FAMILIES: tuple[FamilyName, ...] = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="session", params=FAMILIES)
def model_path(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Path:
    return tiny_models[request.param]


@pytest.fixture(scope="session")
def unet_side(model_path: Path) -> UnetSide:
    return load_unet_side(model_path, torch.float32)


@pytest.fixture(scope="session")
def vae_side(model_path: Path) -> VaeSide:
    return load_vae_side(model_path, torch.float32)
