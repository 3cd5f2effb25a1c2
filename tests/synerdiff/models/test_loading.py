"""Which directories are served, and how the others are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synerdiff.models.layout import ModelLoadError
from synerdiff.models.loading import load_unet_side, load_vae_side
from tests.tiny_models import EMOJI_MODEL, FamilyName, edit_json, tiny_model

CopyOf = Callable[[str], Path]
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


def assert_refused(path: Path, *words: str, load: Callable[..., Any] = load_unet_side) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load(path, torch.float32)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message, message


def state(module: Any) -> dict[str, torch.Tensor]:
    return dict(module.state_dict())


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_family_is_detected(tiny_models: dict[str, Path], family: str) -> None:
    assert load_unet_side(tiny_models[family], torch.float32).family.name == family
    assert load_vae_side(tiny_models[family], torch.float32).family.name == family


def test_the_bundled_model_loads() -> None:
    assert load_unet_side(EMOJI_MODEL, torch.float32).family.name == "sd1"
    assert load_vae_side(str(EMOJI_MODEL), torch.float32).checker is None


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_fp16_files_are_found(tmp_path: Path, tiny_models: dict[str, Path], family: FamilyName) -> None:
    path = tiny_model(family, tmp_path / "half", variant="fp16")
    assert not list(path.rglob(DIFFUSERS_WEIGHTS))
    half, full = load_unet_side(path, torch.float32), load_unet_side(tiny_models[family], torch.float32)
    for name, weight in state(full.unet).items():
        assert torch.equal(state(half.unet)[name], weight.half().float())
    assert half.encode(["a dog"])[0].hidden.dtype == torch.float32
    assert load_vae_side(path, torch.float32, variant="fp16").vae.dtype == torch.float32


def test_plain_files_are_preferred_and_a_variant_can_be_asked_for(copy_of: CopyOf) -> None:
    path = copy_of("sd1")
    weights = load_file(path / "vae" / DIFFUSERS_WEIGHTS)
    save_file(
        {name: torch.zeros_like(weight) for name, weight in weights.items()},
        path / "vae" / "diffusion_pytorch_model.fp16.safetensors",
        metadata={"format": "pt"},
    )
    assert load_vae_side(path, torch.float32).vae.post_quant_conv.weight.any()
    assert load_vae_side(path, torch.float32, variant="").vae.post_quant_conv.weight.any()
    assert not load_vae_side(path, torch.float32, variant="fp16").vae.post_quant_conv.weight.any()


def test_a_variant_that_is_not_there_is_refused(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(ModelLoadError, match=r"diffusion_pytorch_model\.fp16\.safetensors"):
        load_vae_side(tiny_models["sd1"], torch.float32, variant="fp16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_everything_is_in_the_asked_dtype(tiny_models: dict[str, Path], dtype: torch.dtype) -> None:
    side = load_unet_side(tiny_models["sdxl"], dtype)
    assert side.dtype == dtype
    assert {parameter.dtype for parameter in side.unet.parameters()} == {dtype}
    (embeds,) = side.encode(["a dog"])
    assert embeds.pooled is not None
    assert {embeds.hidden.dtype, embeds.pooled.dtype} == {dtype}
    assert load_vae_side(tiny_models["sd1"], dtype).vae.dtype == dtype


def test_no_such_directory(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "no such directory")
    assert_refused(tmp_path / "nowhere", "no such directory", load=load_vae_side)


def test_a_single_file_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    assert_refused(path, "it is a file")


@pytest.mark.parametrize(
    ("component", "file_name", "load"),
    [
        ("unet", DIFFUSERS_WEIGHTS, load_unet_side),
        ("text_encoder", "model.safetensors", load_unet_side),
        ("vae", DIFFUSERS_WEIGHTS, load_vae_side),
    ],
)
def test_incomplete_weights_are_never_filled_with_random_ones(
    copy_of: CopyOf, component: str, file_name: str, load: Callable[..., Any]
) -> None:
    path = copy_of("sd1")
    weights = load_file(path / component / file_name)
    del weights[max(weights)]
    save_file(weights, path / component / file_name, metadata={"format": "pt"})
    assert_refused(path, component, load=load)


def test_an_unknown_safety_checker(copy_of: CopyOf) -> None:
    path = copy_of("sd1")
    edit_json(path / "model_index.json", safety_checker=["some_package", "OtherChecker"])
    assert_refused(path, "safety_checker is OtherChecker", load=load_vae_side)
    assert load_vae_side(path, torch.float32, safety_checker=False).checker is None


def test_configs_are_checked_before_weights_are_read(copy_of: CopyOf) -> None:
    path = copy_of("sd1")
    (path / "unet" / DIFFUSERS_WEIGHTS).write_bytes(b"not weights")
    config = json.loads((path / "unet" / "config.json").read_text())
    edit_json(path / "unet" / "config.json", in_channels=config["in_channels"] + 5)
    assert_refused(path, "in_channels 9")
