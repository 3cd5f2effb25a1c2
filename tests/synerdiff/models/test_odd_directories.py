"""Odd directories, each made from the configs of a good one: served to the right picture, or refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.unet_worker import stage as worker_stage
from services.unet_worker.stage import load_model, warm_up
from synerdiff.cards import ModelCard, Sampler, SamplerLimits
from synerdiff.models.compiled.components import CompiledUnet, no_request
from synerdiff.models.layout import ModelLoadError
from synerdiff.models.loading import load_vae_side
from synerdiff.requests import TaskSpec
from tests.parity import served_latents
from tests.reference import reference_pipeline
from tests.tiny_models import FamilyName, edit_json

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy", "ignore::FutureWarning")

CopyOf = Callable[[str], Path]
Change = Callable[[Path], object]
# Of 255: two roundings of one value to whole levels.
A_LEVEL = 1
STEPS = 3


@pytest.fixture(autouse=True)
def only_the_own_sampler() -> Any:
    """The other samplers of a card take seconds to find, and are tested elsewhere."""
    found = lambda config: (SamplerLimits(Sampler.OWN, 1, 50),)  # noqa: E731
    with patch.object(worker_stage, "sampler_limits", found):
        yield


def served(path: Path) -> tuple[np.ndarray[Any, Any], ModelCard]:
    """The picture of a request that names nothing, as the two workers make it."""
    side, card = load_model(path, torch.float32)
    warm_up(side, CompiledUnet(side, no_request, 0), card)
    task = TaskSpec(
        "odd/0", "a red car", "", card.native_width, card.native_height, STEPS, 5.0, 3, card.default_sampler, 0
    )
    (latents,) = served_latents(side, [task])
    return load_vae_side(path, torch.float32).decode(latents[None])[0], card


def by_diffusers(path: Path, **options: Any) -> np.ndarray[Any, Any]:
    pipeline = reference_pipeline.__wrapped__(path, torch.float32, options.pop("variant", None))
    pipeline.safety_checker = None
    generator = torch.Generator().manual_seed(3)
    drawn = pipeline("a red car", num_inference_steps=STEPS, guidance_scale=5.0, generator=generator, **options)
    return np.asarray(drawn.images[0])


def edit(file: str, **changes: Any) -> Change:
    return lambda path: edit_json(path / file, **changes)


def of_class(component: str, name: str) -> Change:
    return edit(INDEX, **{component: ["a library", name]})


def drop(file: str, *keys: str) -> Change:
    def change(path: Path) -> None:
        config = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps({key: value for key, value in config.items() if key not in keys}))

    return change


def remove(name: str) -> Change:
    def change(path: Path) -> None:
        target = path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def write(name: str, content: bytes) -> Change:
    def change(path: Path) -> None:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)

    return change


def rename(name: str, to: str) -> Change:
    return lambda path: (path / name).rename(path / to)


def truncate(name: str, share: float) -> Change:
    def change(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: int(len(content) * share)])

    return change


def reshape(name: str, key_ends: str) -> Change:
    def change(path: Path) -> None:
        weights = load_file(path / name)
        key = next(key for key in sorted(weights) if key.endswith(key_ends))
        weights[key] = torch.cat([weights[key], weights[key]])
        save_file(weights, path / name, metadata={"format": "pt"})

    return change


def shard(component: str, stem: str, index_name: str) -> Change:
    """Two shards and an index in the place of one file."""

    def change(path: Path) -> None:
        folder = path / component
        weights = load_file(folder / f"{stem}.safetensors")
        names = sorted(weights)
        halves = {1: names[: len(names) // 2], 2: names[len(names) // 2 :]}
        for number, half in halves.items():
            save_file(
                {n: weights[n] for n in half}, folder / f"{stem}-0000{number}-of-00002.safetensors", {"format": "pt"}
            )
        (folder / f"{stem}.safetensors").unlink()
        files = {n: f"{stem}-0000{number}-of-00002.safetensors" for number, half in halves.items() for n in half}
        (folder / index_name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))

    return change


def both(*changes: Change) -> Change:
    return lambda path: [change(path) for change in changes]


UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "text_encoder/model.safetensors"
TOKENIZER = "tokenizer/tokenizer_config.json"
STEM = "diffusion_pytorch_model"

SERVED: dict[str, tuple[FamilyName, Change]] = {
    "plain": ("sd1", lambda path: None),
    "sharded-unet": ("sd1", shard("unet", STEM, f"{STEM}.safetensors.index.json")),
    "sharded-vae": ("sd1", shard("vae", STEM, f"{STEM}.safetensors.index.json")),
    "sharded-text-encoder": ("sd2", shard("text_encoder", "model", "model.safetensors.index.json")),
    "unknown-keys-in-configs": (
        "sd1",
        both(edit(UNET, of_a_fork=1), edit(VAE, of_a_fork=[1]), edit(SCHEDULER, mine="x")),
    ),
    "unknown-key-in-the-index": ("sd1", edit(INDEX, _name_or_path="/somewhere/else")),
    "null-optional-component": ("sd1", edit(INDEX, image_encoder=[None, None])),
    "no-diffusers-version": ("sd1", both(drop(UNET, "_diffusers_version"), drop(INDEX, "_diffusers_version"))),
    "no-class-in-the-unet-config": ("sd1", drop(UNET, "_class_name")),
    "no-class-in-the-scheduler-config": ("sd1", drop(SCHEDULER, "_class_name")),
    "no-steps-offset": ("sd1", drop(SCHEDULER, "steps_offset")),
    "no-clip-sample": ("sd2", drop(SCHEDULER, "clip_sample")),
    "no-steps-offset-v-prediction": ("sd2", drop(SCHEDULER, "steps_offset", "clip_sample")),
    "no-set-alpha-to-one": ("sd2", drop(SCHEDULER, "set_alpha_to_one")),
    "no-prediction-type": ("sd2", drop(SCHEDULER, "prediction_type")),
    "no-scaling-factor": ("sd1", drop(VAE, "scaling_factor")),
    "no-force-upcast": ("sdxl", drop(VAE, "force_upcast")),
    "null-latents-mean": ("sdxl", edit(VAE, latents_mean=None, latents_std=None)),
    "latents-mean": ("sdxl", edit(VAE, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.5])),
    "shift-factor": ("sd1", edit(VAE, shift_factor=0.5)),
    "scheduler-of-another-class": ("sdxl", edit(INDEX, scheduler=["diffusers", "UniPCMultistepScheduler"])),
    "config-of-another-scheduler": ("sd1", edit(SCHEDULER, _class_name="HeunDiscreteScheduler")),
    "euler-with-exponential-sigmas": ("sdxl", edit(SCHEDULER, use_exponential_sigmas=True)),
    "euler-with-sigma-min": ("sdxl", edit(SCHEDULER, final_sigmas_type="sigma_min")),
    "trailing": ("sd2", edit(SCHEDULER, timestep_spacing="trailing", rescale_betas_zero_snr=True)),
    "oblong": ("sd1", edit(UNET, sample_size=[8, 16])),
    "plain-and-fp16-files": ("sd1", write("unet/diffusion_pytorch_model.fp16.safetensors", b"not read")),
    "stray-pickled-file": ("sd1", write("unet/diffusion_pytorch_model.bin", b"not read")),
    "stray-folder": ("sd1", write("feature_extractor/preprocessor_config.json", b"not json")),
    "no-zeros-for-empty": ("sdxl", edit(INDEX, force_zeros_for_empty_prompt=False)),
    "zeros-not-said": ("sdxl", drop(INDEX, "force_zeros_for_empty_prompt")),
    "fast-tokenizer": ("sd1", edit(INDEX, tokenizer=["transformers", "CLIPTokenizerFast"])),
    "attention-mask": ("sd1", edit(TEXT, use_attention_mask=True)),
}

REFUSED: dict[str, tuple[FamilyName, Change, str]] = {
    "no-index": ("sd1", remove(INDEX), "model_index.json is missing"),
    "index-truncated": ("sd1", truncate(INDEX, 0.5), "model_index.json cannot be read"),
    "index-not-text": ("sd1", write(INDEX, b"\xff\xfe\x00"), "model_index.json cannot be read"),
    "index-a-list": ("sd1", write(INDEX, b"[]"), "model_index.json is not a JSON object"),
    "index-null": ("sd1", write(INDEX, b"null"), "model_index.json is not a JSON object"),
    "pipeline-null": ("sd1", edit(INDEX, _class_name=None), "its pipeline is None"),
    "pipeline-other": ("sd1", edit(INDEX, _class_name="FluxPipeline"), "its pipeline is FluxPipeline"),
    "pipeline-mine": ("sd1", edit(INDEX, _class_name="Mine"), "its pipeline is Mine; served are StableDiffusionPipel"),
    "pipeline-a-list": ("sd1", edit(INDEX, _class_name=["mine", "Pipeline"]), "its pipeline is ['mine'"),
    "unet-config-truncated": ("sd1", truncate(UNET, 0.5), "unet/config.json cannot be read"),
    "unet-config-empty": ("sd1", write(UNET, b""), "unet/config.json cannot be read"),
    "vae-config-missing": ("sd1", remove(VAE), "vae/config.json is missing"),
    "scheduler-missing": ("sd1", remove("scheduler"), "scheduler/scheduler_config.json is missing"),
    "scheduler-null": ("sd1", edit(INDEX, scheduler=None), "scheduler is missing from model_index.json"),
    "scheduler-a-list-of-nulls": ("sd1", edit(INDEX, scheduler=[None, None]), "scheduler is missing from model_index"),
    "scheduler-of-no-class": ("sd1", edit(INDEX, scheduler=["diffusers"]), "scheduler is missing from model_index"),
    "scheduler-a-text": ("sd1", edit(INDEX, scheduler="PNDMScheduler"), "scheduler is missing from model_index"),
    "scheduler-of-k": (
        "sd1",
        edit(INDEX, scheduler=["k", "DPM"]),
        "DPM is not one of diffusers' but of k",
    ),
    "scheduler-config-a-list": ("sd1", write(SCHEDULER, b"[]"), "scheduler/scheduler_config.json is not a JSON object"),
    "scheduler-class-null": ("sd1", edit(SCHEDULER, _class_name=None), "has a _class_name that is no text"),
    "beta-start-null": ("sd1", edit(SCHEDULER, beta_start=None), "PNDMScheduler cannot be made of its config: TypeE"),
    "beta-schedule-odd": ("sd1", edit(SCHEDULER, beta_schedule="cosy"), "cosy is not implemented"),
    "training-timesteps-null": ("sd1", edit(SCHEDULER, num_train_timesteps=None), "PNDMScheduler cannot be made"),
    "training-timesteps-text": ("sd1", edit(SCHEDULER, num_train_timesteps="1000"), "PNDMScheduler cannot be made"),
    "no-such-scheduler": ("sd2", edit(INDEX, scheduler=["diffusers", "NoScheduler"]), "NoScheduler is not one of"),
    "thresholding": ("sd2", edit(SCHEDULER, thresholding=True), "is not linear"),
    "channels-null": ("sd1", edit(UNET, in_channels=None), "unet/config.json has in_channels null"),
    "latent-channels-null": ("sd1", edit(VAE, latent_channels=None), "vae/config.json has latent_channels null"),
    "latent-channels-text": ("sd1", edit(VAE, latent_channels="4"), 'vae/config.json has latent_channels "4"'),
    "vae-blocks-null": ("sd1", edit(VAE, block_out_channels=None), "vae/config.json has block_out_channels null"),
    "scaling-factor-null": ("sd1", edit(VAE, scaling_factor=None), "has scaling_factor null"),
    "blocks-null": ("sd1", edit(UNET, block_out_channels=None), "unet does not load"),
    "blocks-too-few": ("sd1", edit(UNET, block_out_channels=[32]), "unet does not load"),
    "block-type-unknown": ("sd1", edit(UNET, down_block_types=["DownBlock9D", "DownBlock2D"]), "unet does not load"),
    "sample-size-null": ("sd1", edit(UNET, sample_size=None), "unet/config.json has sample_size null"),
    "sample-size-text": ("sd1", edit(UNET, sample_size="8"), 'unet/config.json has sample_size "8"'),
    "sample-size-odd": ("sd1", edit(UNET, sample_size=7), "is no multiple of"),
    "sample-size-zero": ("sd1", edit(UNET, sample_size=0), "is no multiple of"),
    "inpainting": ("sd1", edit(UNET, in_channels=9), "its UNet has in_channels 9"),
    "more-channels-out": ("sd1", edit(UNET, out_channels=8), "its UNet has out_channels 8"),
    "class-embedding": ("sd1", edit(UNET, class_embed_type="timestep"), "class_embed_type timestep"),
    "classes": ("sd1", edit(UNET, num_class_embeds=1000), "num_class_embeds 1000"),
    "projected-text": ("sd1", edit(UNET, encoder_hid_dim_type="text_proj"), "encoder_hid_dim_type text_proj"),
    "added-conditions": ("sd1", edit(UNET, addition_embed_type="text"), "wants added conditions (text)"),
    "attends-to-more": ("sd1", edit(UNET, cross_attention_dim=768), "to 768 features, but the text encoder gives 32"),
    "sdxl-attends-less": (
        "sdxl",
        edit(UNET, cross_attention_dim=48),
        "to 48 features, but the text encoders give 80",
    ),
    "sdxl-adds-nothing": ("sdxl", edit(UNET, addition_embed_type=None), "addition_embed_type None, not text_time"),
    "refiner": ("sdxl", edit(UNET, projection_class_embeddings_input_dim=88), "takes 88 added features"),
    "unet-of-three-dimensions": ("sd1", of_class("unet", "UNet3DConditionModel"), "unet is UNet3DConditionModel"),
    "vae-tiny": ("sd1", of_class("vae", "AutoencoderTiny"), "vae is AutoencoderTiny"),
    "text-encoder-t5": ("sd1", of_class("text_encoder", "T5EncoderModel"), "text_encoder is T5EncoderModel"),
    "tokenizer-t5": ("sd1", of_class("tokenizer", "T5Tokenizer"), "tokenizer is T5Tokenizer"),
    "sdxl-text-encoder-null": ("sdxl", edit(INDEX, text_encoder=[None, None]), "text_encoder is missing"),
    "sdxl-no-projection": (
        "sdxl",
        of_class("text_encoder_2", "CLIPTextModel"),
        "text_encoder_2 is CLIPTextModel",
    ),
    "guidance-embedding": ("sdxl", edit(UNET, time_cond_proj_dim=256), "time_cond_proj_dim 256"),
    "hidden-size-null": ("sd1", edit(TEXT, hidden_size=None), "text_encoder/config.json has hidden_size null"),
    "activation-null": ("sd1", edit(TEXT, hidden_act=None), "neither CLIP-L"),
    "activation-relu": (
        "sd1",
        edit(TEXT, hidden_act="relu"),
        "neither CLIP-L (hidden_act quick_gelu) nor Open",
    ),
    "time-dim-null": ("sdxl", edit(UNET, addition_time_embed_dim=None), "has addition_time_embed_dim null"),
    "positions-null": ("sd1", edit(TEXT, max_position_embeddings=None), "has max_position_embeddings null"),
    "vocabulary-null": ("sd1", edit(TEXT, vocab_size=None), "text_encoder/config.json has vocab_size null"),
    "unet-truncated": ("sd1", truncate(UNET_WEIGHTS, 0.7), "unet does not load"),
    "unet-empty": ("sd1", write(UNET_WEIGHTS, b""), "unet does not load"),
    "unet-header-cut": ("sd1", write(UNET_WEIGHTS, b"\x08\0\0\0\0\0\0\0{"), "unet does not load"),
    "unet-an-lfs-pointer": ("sd1", write(UNET_WEIGHTS, b"version https://git-lfs.github"), "unet does not load"),
    "vae-truncated": ("sd1", truncate(VAE_WEIGHTS, 0.7), "vae does not load"),
    "text-truncated": ("sd1", truncate(TEXT_WEIGHTS, 0.7), "text_encoder does not load"),
    "unet-pickled": (
        "sd1",
        rename(UNET_WEIGHTS, f"unet/{STEM}.bin"),
        f"unet holds pickled weights ({STEM}.bin); only safetensors are loaded ({STEM}.safetensors",
    ),
    "text-pickled": (
        "sd1",
        rename(TEXT_WEIGHTS, "text_encoder/pytorch_model.bin"),
        "text_encoder holds pickled weights (pytorch_model.bin); only safetensors are loaded (model.safetensors",
    ),
    "unet-missing": ("sd1", remove("unet"), "unet/config.json is missing"),
    "vae-weights-missing": ("sd1", remove(VAE_WEIGHTS), f"vae holds no weights {STEM}.safetensors"),
    "text-wider": ("sd1", edit(TEXT, intermediate_size=128), "text_encoder does not load"),
    "unet-of-another-name": ("sd1", rename(UNET_WEIGHTS, "unet/model.safetensors"), "unet holds no weights"),
    "unet-of-another-variant": ("sd1", rename(UNET_WEIGHTS, f"unet/{STEM}.ema.safetensors"), "unet holds no weights"),
    "unet-shape": ("sd1", reshape(UNET_WEIGHTS, "conv_out.weight"), "unet does not load"),
    "vae-shape": ("sd1", reshape(VAE_WEIGHTS, "decoder.conv_in.weight"), "vae does not load"),
    "text-shape": ("sd1", reshape(TEXT_WEIGHTS, "final_layer_norm.weight"), "text_encoder does not load"),
    "shard-missing": (
        "sd1",
        both(shard("unet", STEM, f"{STEM}.safetensors.index.json"), remove(f"unet/{STEM}-00002-of-00002.safetensors")),
        "unet does not load",
    ),
    "shard-index-truncated": (
        "sd1",
        both(
            shard("unet", STEM, f"{STEM}.safetensors.index.json"), truncate(f"unet/{STEM}.safetensors.index.json", 0.5)
        ),
        "unet does not load",
    ),
    "shard-index-of-another-name": ("sd1", shard("unet", STEM, "weights.index.json"), "unet holds no weights"),
    "tokenizer-missing": ("sd1", remove("tokenizer"), "tokenizer holds neither"),
    "tokenizer-truncated": ("sd1", truncate("tokenizer/tokenizer.json", 0.5), "tokenizer does not load"),
    "tokenizer-without-words": ("sd1", remove("tokenizer/tokenizer.json"), "tokenizer holds neither"),
    "tokenizer-longer": (
        "sd1",
        edit(TOKENIZER, model_max_length=77),
        "length 77, but its text encoder takes 32",
    ),
    "tokenizer-of-more-words": ("sd2", edit(TEXT, vocab_size=100), "more than its text encoder knows"),
    "tokenizer-config-a-list": ("sd1", write(TOKENIZER, b"[]"), "tokenizer does not load"),
    "serving-truncated": ("sd1", write("serving.json", b"{"), "serving.json"),
    "weights-a-folder": ("sd1", both(remove(UNET_WEIGHTS), write(f"{UNET_WEIGHTS}/x", b"")), "unet holds no weights"),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_directory_is_served_to_the_picture_of_diffusers(name: str, copy_of: CopyOf) -> None:
    family, change = SERVED[name]
    path = copy_of(family)
    change(path)
    picture, _ = served(path)
    expected = by_diffusers(path)
    assert picture.shape == expected.shape
    assert int(np.abs(picture.astype(int) - expected).max()) <= A_LEVEL


@pytest.mark.parametrize("name", REFUSED)
def test_a_directory_is_refused_in_one_line(name: str, copy_of: CopyOf) -> None:
    family, change, reason = REFUSED[name]
    path = copy_of(family)
    change(path)
    with pytest.raises(ModelLoadError) as caught:
        served(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"cannot load a model from {path}: ")
    assert reason in message
    assert len(message) < 1200
