"""Load one side of a model from a local diffusers-layout directory, with diffusers' and transformers' own loaders.

All checks of the configs come before any weights are read, so a wrong directory is refused at once.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor

from synerdiff.models.device import Device, Fault, fault_of, open_device
from synerdiff.models.family import Family, ServingDefaults, UnetSide, VaeSide
from synerdiff.models.layout import ModelLayout, ModelLoadError, in_one_line, read_layout
from synerdiff.models.safety import SafetyChecker, load_safety_checker
from synerdiff.models.schedulers import correct, own_scheduler_config
from synerdiff.models.serving import ServingFile, read_serving_file
from synerdiff.models.stable_diffusion import Sd1, Sd2, Sdxl
from synerdiff.models.weights import load_diffusers_model

FAMILIES: tuple[Family, ...] = (Sd1(), Sd2(), Sdxl())

# A UNet with any of these set wants an input that no family here gives it.
_UNSERVED_UNET_FEATURES = ("time_cond_proj_dim", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


@contextmanager
def refusing(path: Path | str) -> Iterator[None]:
    """Turns errors over a model directory's content, of any type, into ModelLoadError with the reason in a line."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        if fault_of(error) is not Fault.OTHER:
            raise
        raise ModelLoadError(Path(path), in_one_line(error)) from error


def read_scheduler_config(path: Path | str) -> dict[str, Any]:
    """The `UnetSide.scheduler_config` of the model in `path`. Reads no weights. Raises ModelLoadError."""
    with refusing(path):
        _silence_libraries()
        layout, _ = _open(path)
        return own_scheduler_config(layout)


def load_unet_side(
    path: Path | str, dtype: torch.dtype, *, variant: str = "auto", device: Device | None = None
) -> UnetSide:
    """Load tokenizers, text encoders, UNet and scheduler config of the model in `path`.

    `variant` names the weight files: "" the plain ones, "fp16" those of that variant, "auto" the plain ones, else fp16.
    `device`: None is the CPU.
    Raises ModelLoadError naming path and reason.
    """
    with refusing(path):
        _silence_libraries()
        layout, family = _open(path)
        scheduler_config = own_scheduler_config(layout)
        device = device or open_device("cpu")
        unet = load_diffusers_model(UNet2DConditionModel, layout, "unet", dtype, variant, device)
        correct(family.pipeline_class, unet=unet)
        scale_factor = _vae_scale_factor(layout.config("vae"))
        serving = read_serving_file(layout, unet.config.in_channels)
        side = UnetSide(
            family=family,
            unet=unet,
            encoder=family.load_encoder(layout, dtype, variant, device.torch_device),
            scheduler_config=scheduler_config,
            vae_scale_factor=scale_factor,
            defaults=_defaults(family, serving, unet.config.sample_size, scale_factor),
            preview=serving.preview.projection() if serving.preview is not None else None,
            dtype=dtype,
            compute=device,
        )
        if any(pixels < 1 or pixels % side.size_multiple for pixels in side.native_size):
            raise layout.refuse(f"its native size {side.native_size} is no multiple of {side.size_multiple} pixels")
        return side


def load_vae_side(
    path: Path | str,
    dtype: torch.dtype,
    *,
    vae_dtype: torch.dtype | None = None,
    variant: str = "auto",
    safety_checker: bool = True,
    device: Device | None = None,
) -> VaeSide:
    """Load the VAE and, unless switched off, the safety checker that the directory carries.

    `dtype` is the model's, as given to `load_unet_side`; `variant` and `device` as there. `vae_dtype`: the VAE's
    own; None is its family's for `dtype`. Raises ModelLoadError, also for a VAE that would overflow.
    """
    with refusing(path):
        _silence_libraries()
        layout, family = _open(path)
        device = device or open_device("cpu")
        usual, other = _vae_dtypes(layout, family, dtype, vae_dtype)
        vae = load_diffusers_model(AutoencoderKL, layout, "vae", other or dtype, variant, device)
        checker: SafetyChecker | None = None
        if safety_checker and layout.component_class("safety_checker") is not None:
            checker = load_safety_checker(layout, dtype, variant, device.torch_device)
        return VaeSide(
            family=family,
            vae=vae.to(other or usual),
            processor=VaeImageProcessor(vae_scale_factor=_vae_scale_factor(vae.config)),
            checker=checker,
            dtype=dtype,
            compute=device,
        )


def _open(path: Path | str) -> tuple[ModelLayout, Family]:
    """Read the layout, find the family, and check the configs."""
    layout = read_layout(path)
    family = _detect_family(layout)
    layout.require("unet", "UNet2DConditionModel")
    layout.require("vae", "AutoencoderKL")
    _check_sizes(layout)
    _check_latents(layout)
    family.check(layout)
    return layout, family


def _detect_family(layout: ModelLayout) -> Family:
    served = sorted({family.pipeline_class for family in FAMILIES})
    if layout.pipeline_class not in served:
        raise layout.refuse(f"its pipeline is {layout.pipeline_class}; served are {' and '.join(served)}")
    for family in FAMILIES:
        if family.matches(layout):
            return family
    raise layout.refuse("its text encoder is neither CLIP-L (hidden_act quick_gelu) nor OpenCLIP (gelu)")


def _check_sizes(layout: ModelLayout) -> None:
    """Check the numbers that sizes of pictures follow from."""
    sample_size = layout.config("unet").get("sample_size")
    sides = sample_size if isinstance(sample_size, list) and len(sample_size) == 2 else [sample_size]
    blocks, scale = layout.config("vae").get("block_out_channels"), layout.config("vae").get("scaling_factor", 1.0)
    for name, value, fits in (
        ("unet/config.json has sample_size", sample_size, all(type(side) is int for side in sides)),
        ("vae/config.json has block_out_channels", blocks, isinstance(blocks, list) and len(blocks) > 0),
        ("vae/config.json has scaling_factor", scale, type(scale) in (int, float) and scale != 0),
    ):
        if not fits:
            raise layout.refuse(f"{name} {json.dumps(value)}, which says nothing")


def _check_latents(layout: ModelLayout) -> None:
    unet, latent_channels = layout.config("unet"), layout.integer("vae", "latent_channels", 4)
    for feature in _UNSERVED_UNET_FEATURES:
        if unet.get(feature) is not None:
            raise layout.refuse(f"its UNet has {feature} {unet[feature]}, which is not served")
    for end in ("in_channels", "out_channels"):
        if (channels := layout.integer("unet", end, 4)) != latent_channels:
            raise layout.refuse(
                f"its UNet has {end} {channels}, but its latents have {latent_channels} channels "
                "(inpainting, editing and upscaling models are not served)"
            )


def _vae_dtypes(
    layout: ModelLayout, family: Family, dtype: torch.dtype, wanted: torch.dtype | None
) -> tuple[torch.dtype, torch.dtype | None]:
    """The VAE's usual dtype beside a model in `dtype`, which its weights go through first, and any other requested."""
    config = layout.config("vae")
    if wanted == torch.float16 != family.vae_dtype(config, torch.float16):
        raise layout.refuse("vae_dtype: float16 overflows in its VAE (force_upcast); bfloat16 and float32 do not")
    usual = family.vae_dtype(config, dtype)
    return usual, wanted if wanted != usual else None


def _vae_scale_factor(vae_config: Mapping[str, Any]) -> int:
    return int(2 ** (len(vae_config["block_out_channels"]) - 1))


def _defaults(family: Family, serving: ServingFile, sample_size: int | list[int], scale_factor: int) -> ServingDefaults:
    """The defaults of serving.json, else the family's; a picture may be twice as large as the native one."""
    longest_side = sample_size if isinstance(sample_size, int) else max(sample_size)
    steps, guidance_scale = serving.default_num_inference_steps, serving.default_guidance_scale
    return ServingDefaults(
        num_inference_steps=family.default_num_inference_steps if steps is None else steps,
        guidance_scale=family.default_guidance_scale if guidance_scale is None else guidance_scale,
        max_side=2 * longest_side * scale_factor if serving.max_side is None else serving.max_side,
        skip_cfg=serving.skip_cfg.budget() if serving.skip_cfg is not None else None,
    )


def _silence_libraries() -> None:
    """Progress bars and hints of the libraries would garble the workers' structured logs."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
