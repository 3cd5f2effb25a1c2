"""One tiny model of each family for all tests here, and copies of them to spoil."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.models.loading import load_unet_side, load_vae_side
from tests.tiny_models import FamilyName, tiny_model

FAMILIES: tuple[FamilyName, ...] = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny_models")
    return {family: tiny_model(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="session", params=FAMILIES)
def model_path(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Path:
    return tiny_models[request.param]


@pytest.fixture(scope="session")
def unet_side(model_path: Path) -> UnetSide:
    return load_unet_side(model_path, torch.float32)


@pytest.fixture(scope="session")
def vae_side(model_path: Path) -> VaeSide:
    return load_vae_side(model_path, torch.float32)


@pytest.fixture
def copy_of(tiny_models: dict[str, Path], tmp_path: Path) -> Callable[[FamilyName], Path]:
    def copy(family: FamilyName) -> Path:
        return Path(shutil.copytree(tiny_models[family], tmp_path / family))

    return copy
