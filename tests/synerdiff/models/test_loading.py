"""Which directories are served, and how the others are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synerdiff.models.layout import ModelLoadError
from synerdiff.models.loading import load_unet_side, load_vae_side
from tests.tiny_models import EMOJI_MODEL, FamilyName, edit_json, tiny_model

CopyOf = Callable[[FamilyName], Path]
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


def test_sharded_weights_load(copy_of: CopyOf, tiny_models: dict[str, Path]) -> None:
    path = copy_of("sd1")
    unet = load_unet_side(path, torch.float32).unet
    (path / "unet" / DIFFUSERS_WEIGHTS).unlink()
    unet.save_pretrained(path / "unet", max_shard_size="200KB")
    assert len(list((path / "unet").glob("*.safetensors"))) > 1
    sharded = state(load_unet_side(path, torch.float32).unet)
    assert all(torch.equal(sharded[name], weight) for name, weight in state(unet).items())


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


def test_a_directory_without_model_index(tmp_path: Path) -> None:
    assert_refused(tmp_path, "model_index.json is missing")


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_broken_model_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert_refused(tmp_path, "model_index.json")


@pytest.mark.parametrize("pipeline", ["FluxPipeline", "StableDiffusionInpaintPipeline", None])
def test_another_pipeline(copy_of: CopyOf, pipeline: str | None) -> None:
    path = copy_of("sd1")
    edit_json(path / "model_index.json", _class_name=pipeline)
    assert_refused(path, f"its pipeline is {pipeline}", "StableDiffusionPipeline", "StableDiffusionXLPipeline")
    assert_refused(path, f"its pipeline is {pipeline}", load=load_vae_side)


def test_a_text_encoder_of_no_family(copy_of: CopyOf) -> None:
    path = copy_of("sd1")
    edit_json(path / "text_encoder" / "config.json", hidden_act="relu")
    assert_refused(path, "neither CLIP-L", "nor OpenCLIP")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim 256"),
        ({"class_embed_type": "timestep"}, "class_embed_type timestep"),
        ({"num_class_embeds": 1000}, "num_class_embeds 1000"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type text_proj"),
        ({"in_channels": 9}, "in_channels 9"),
        ({"out_channels": 8}, "out_channels 8"),
        ({"addition_embed_type": "text"}, "wants added conditions (text)"),
        ({"cross_attention_dim": 768}, "attends to 768 features, but the text encoder gives 32"),
    ],
)
def test_a_unet_that_wants_more(copy_of: CopyOf, change: dict[str, Any], words: str) -> None:
    path = copy_of("sd1")
    edit_json(path / "unet" / "config.json", **change)
    assert_refused(path, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"addition_embed_type": None}, "addition_embed_type None, not text_time"),
        ({"cross_attention_dim": 48}, "attends to 48 features, but the text encoders give 80"),
        ({"projection_class_embeddings_input_dim": 88}, "takes 88 added features"),
    ],
)
def test_an_sdxl_unet_of_another_kind(copy_of: CopyOf, change: dict[str, Any], words: str) -> None:
    path = copy_of("sdxl")
    edit_json(path / "unet" / "config.json", **change)
    assert_refused(path, words)


@pytest.mark.parametrize(
    ("family", "component", "found"),
    [
        ("sd1", "unet", ["diffusers", "UNet3DConditionModel"]),
        ("sd1", "vae", ["diffusers", "AutoencoderTiny"]),
        ("sd1", "text_encoder", ["transformers", "T5EncoderModel"]),
        ("sd1", "tokenizer", ["transformers", "T5Tokenizer"]),
        ("sdxl", "text_encoder", [None, None]),
        ("sdxl", "text_encoder_2", ["transformers", "CLIPTextModel"]),
    ],
)
def test_a_component_of_another_class(copy_of: CopyOf, family: FamilyName, component: str, found: list[Any]) -> None:
    path = copy_of(family)
    edit_json(path / "model_index.json", **{component: found})
    assert_refused(path, f"{component} is {found[1] or 'missing'}")


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_pickled_weights(copy_of: CopyOf, component: str) -> None:
    path = copy_of("sd1")
    (weights,) = (path / component).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    assert_refused(path, component, "pickled", f"{weights.stem}.bin", "only safetensors", weights.name)


def test_missing_and_truncated_weights(copy_of: CopyOf) -> None:
    path = copy_of("sd1")
    weights = path / "vae" / DIFFUSERS_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert_refused(path, "vae does not load", load=load_vae_side)
    weights.unlink()
    assert_refused(path, f"vae holds no weights {DIFFUSERS_WEIGHTS}", load=load_vae_side)
    shutil.rmtree(path / "unet")
    assert_refused(path, "unet/config.json is missing")


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


def test_weights_of_another_shape(copy_of: CopyOf) -> None:
    path = copy_of("sd1")
    edit_json(path / "text_encoder" / "config.json", intermediate_size=128)
    assert_refused(path, "text_encoder does not load")


def test_a_tokenizer_that_does_not_fit_its_encoder(copy_of: CopyOf) -> None:
    path = copy_of("sd1")
    edit_json(path / "tokenizer" / "tokenizer_config.json", model_max_length=77)
    assert_refused(path, "model_max_length 77", "takes 32 tokens")
    path = copy_of("sd2")
    edit_json(path / "text_encoder" / "config.json", vocab_size=100)
    assert_refused(path, "more than its text encoder knows")


@pytest.mark.parametrize("scheduler", [None, [None, None], ["diffusers"], "PNDMScheduler"])
def test_a_directory_without_a_scheduler(copy_of: CopyOf, scheduler: Any) -> None:
    path = copy_of("sd1")
    edit_json(path / "model_index.json", scheduler=scheduler)
    assert_refused(path, "scheduler is missing from model_index.json")


def test_a_scheduler_of_another_library(copy_of: CopyOf) -> None:
    path = copy_of("sd1")
    edit_json(path / "model_index.json", scheduler=["k_diffusion", "DPM"])
    assert_refused(path, "its scheduler DPM is not one of diffusers' but of k_diffusion")


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
