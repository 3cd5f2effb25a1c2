"""The digest of a model and of its components: what changes them, and what does not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from synerdiff.models.digest import component_digest, model_digest
from synerdiff.models.errors import ModelLoadError
from synerdiff.models.layout import read_layout
from tests.tiny_models import tiny_model

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("sd1", tmp_path_factory.mktemp("digest") / "model")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def digest(path: Path) -> str:
    return model_digest(read_layout(path))


def _widen(path: Path) -> None:
    tensors = load_file(path / UNET_WEIGHTS)
    name = sorted(tensors)[0]
    tensors[name] = torch.cat([tensors[name], tensors[name]])
    save_file(tensors, path / UNET_WEIGHTS)


def _halve(path: Path) -> None:
    tensors = load_file(path / UNET_WEIGHTS)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path / UNET_WEIGHTS)


def _train(path: Path) -> None:
    tensors = load_file(path / UNET_WEIGHTS)
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, path / UNET_WEIGHTS, {"format": "pt"})


def _configure(path: Path) -> None:
    config = path / "vae" / "config.json"
    config.write_text(config.read_text().replace('"act_fn"', '"other"'))


def _rename(path: Path) -> None:
    (path / UNET_WEIGHTS).rename(path / "unet" / "diffusion_pytorch_model.fp16.safetensors")


@pytest.mark.parametrize("change", [_widen, _halve, _train, _configure, _rename])
def test_another_model_has_another(original: Path, model: Path, change: Callable[[Path], None]) -> None:
    change(model)
    assert digest(model) != digest(original)


def test_where_it_lies_and_what_is_written_beside_it_do_not_change_it(original: Path, model: Path) -> None:
    (model / "README.md").write_text("a card")
    (model / "unet" / "notes.txt").write_text("notes")
    assert digest(model) == digest(original)
    assert len(digest(model)) == 64


def test_weights_that_cannot_be_read_are_refused_by_name(model: Path) -> None:
    weights = model / UNET_WEIGHTS
    weights.unlink()
    weights.mkdir()
    with pytest.raises(ModelLoadError, match=r"unet/diffusion_pytorch_model.safetensors"):
        digest(model)


def test_a_cut_header_is_no_crash(model: Path, original: Path) -> None:
    (model / UNET_WEIGHTS).write_bytes(b"abc")
    assert digest(model) != digest(original)


def digest_of(path: Path, component: str) -> str:
    return component_digest(read_layout(path), component)


@pytest.mark.parametrize("change", [_widen, _halve, _train, _rename])
def test_another_component_has_another(original: Path, model: Path, change: Callable[[Path], None]) -> None:
    change(model)
    assert digest_of(model, "unet") != digest_of(original, "unet")
    assert digest_of(model, "vae") == digest_of(original, "vae")


def test_a_components_config_is_part_of_it(original: Path, model: Path) -> None:
    _configure(model)
    assert digest_of(model, "vae") != digest_of(original, "vae")
    assert digest_of(model, "unet") == digest_of(original, "unet")


def test_any_byte_of_a_components_weights_is_part_of_it(original: Path, model: Path) -> None:
    weights = model / UNET_WEIGHTS
    whole = weights.read_bytes()
    for place in (len(whole) // 3, len(whole) // 2 + 5000, len(whole) - 1):
        weights.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert digest_of(model, "unet") != digest_of(original, "unet")
    weights.write_bytes(whole)
    assert digest_of(model, "unet") == digest_of(original, "unet")


def test_where_a_component_lies_and_what_is_written_beside_it_do_not_change_it(original: Path, model: Path) -> None:
    (model / "unet" / "notes.txt").write_text("notes")
    assert digest_of(model, "unet") == digest_of(original, "unet")
    assert len(digest_of(model, "unet")) == 64


def test_a_components_weights_that_cannot_be_read_are_refused_by_name(model: Path) -> None:
    (model / UNET_WEIGHTS).unlink()
    (model / UNET_WEIGHTS).mkdir()
    with pytest.raises(ModelLoadError, match=r"unet/diffusion_pytorch_model.safetensors"):
        digest_of(model, "unet")
