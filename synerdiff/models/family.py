"""The contract of a model family, and the two sides of a loaded model that the workers hold.

A family (sd1, sd2, sdxl) has the differences between models of one UNet class: the embedding of prompts, the added
conditions of the UNet, and the scale of latents for the VAE. Everything else is read from configs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from synerdiff.cards import ModelCard, Sampler, SamplerLimits
from synerdiff.models.device import Device
from synerdiff.models.layout import ModelLayout
from synerdiff.models.safety import SafetyChecker
from synerdiff.models.serving import PreviewProjection
from synerdiff.skip_cfg import SkipCfgBudget

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PromptEmbeds:
    """One encoded prompt, on the model's device and in its dtype.

    `hidden` is [tokens, dim], `pooled` [dim] or None (only SDXL has it); every prompt of a model has the same shapes.
    `cut_text` is the part of the prompt beyond the encoder's token limit, "" when nothing was cut.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    cut_text: str = ""

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Its tensors."""
        return [self.hidden] if self.pooled is None else [self.hidden, self.pooled]


@dataclass(frozen=True)
class Conditioning:
    """The UNet's inputs besides latents and timesteps: `hidden` [rows, tokens, dim], added conditions per row."""

    hidden: Tensor
    added: dict[str, Tensor] | None


@dataclass(frozen=True)
class ServingDefaults:
    """A model card's defaults. `max_side` in pixels; `skip_cfg`: the measured budget, None if it was not measured."""

    num_inference_steps: int
    guidance_scale: float
    max_side: int
    skip_cfg: SkipCfgBudget | None = None


class PromptEncoder(Protocol):
    """The tokenizer(s) and text encoder(s) of a model. Safe to call from several threads."""

    @property
    def max_tokens(self) -> int:
        """Tokens that fit, the start and end tokens included."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """Encode prompts as the diffusers pipeline of the family does."""
        ...

    def encode_negative(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """Encode negative prompts; "" means none was given."""
        ...


class Family(ABC):
    """The parts that differ between model families. Stateless."""

    name: ClassVar[str]
    pipeline_class: ClassVar[str]
    default_num_inference_steps: ClassVar[int]
    default_guidance_scale: ClassVar[float]

    @abstractmethod
    def matches(self, layout: ModelLayout) -> bool:
        """Whether a directory is of this family."""

    @abstractmethod
    def check(self, layout: ModelLayout) -> None:
        """Raise ModelLoadError when the directory's parts do not fit together."""

    @abstractmethod
    def load_encoder(
        self, layout: ModelLayout, dtype: torch.dtype, variant: str, device: torch.device
    ) -> PromptEncoder:
        """Load tokenizers and text encoders; raises ModelLoadError."""

    @abstractmethod
    def added_conditions(self, embeds: Sequence[PromptEmbeds], width: int, height: int) -> dict[str, Tensor] | None:
        """The UNet's added conditions, one row per prompt; sizes in pixels. Some may still be on the CPU."""

    @abstractmethod
    def unscale(self, latents: Tensor, vae_config: Mapping[str, Any]) -> Tensor:
        """Latents as the UNet leaves them -> latents as the VAE decodes them."""

    @abstractmethod
    def vae_dtype(self, vae_config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
        """The dtype in which the VAE runs when the model's is `dtype`."""


@dataclass(frozen=True)
class UnetSide:
    """Prompt encoders and UNet of one model, for a UNet worker. Made by `loading.load_unet_side`.

    `scheduler_config` is that of the model's own scheduler, as its pipeline would use it (with `_class_name`);
    pass it to `SomeScheduler.from_config`, or, without `_use_default_values`, to that of its own class.
    `preview` is None for a model without a fitted projection.
    """

    family: Family
    unet: UNet2DConditionModel
    encoder: PromptEncoder
    scheduler_config: dict[str, Any]
    vae_scale_factor: int
    defaults: ServingDefaults
    preview: PreviewProjection | None
    dtype: torch.dtype
    compute: Device

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.compute.torch_device

    @property
    def prediction_type(self) -> str:
        """The UNet's prediction: "epsilon", "v_prediction" or "sample"."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def native_size(self) -> tuple[int, int]:
        """The (width, height) in pixels that the model was trained for."""
        sample_size = self.unet.config.sample_size
        rows, columns = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        return columns * self.vae_scale_factor, rows * self.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        """Pixels of which width and height must be multiples: every downsampler of the UNet halves the latents."""
        return int(self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1))

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """[channels, rows, columns] of the latents of a picture of `width` x `height` pixels."""
        return self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor

    def describe(
        self,
        name: str,
        samplers: Sequence[SamplerLimits],
        default_sampler: Sampler,
        max_side: int | None = None,
        *,
        scheduler_refused: str = "",
    ) -> ModelCard:
        """This model's card; `max_side` (pixels) overrides the model's own. `scheduler_refused`: as in ModelCard."""
        width, height = self.native_size
        return ModelCard(
            name=name,
            family=self.family.name,
            native_width=width,
            native_height=height,
            size_multiple=self.size_multiple,
            max_side=max_side if max_side is not None else self.defaults.max_side,
            default_num_inference_steps=self.defaults.num_inference_steps,
            default_guidance_scale=self.defaults.guidance_scale,
            default_sampler=default_sampler,
            samplers=tuple(samplers),
            max_prompt_tokens=self.encoder.max_tokens,
            prediction_type=self.prediction_type,
            skip_cfg=self.defaults.skip_cfg,
            latent_channels=self.unet.config.in_channels,
            scheduler=str(self.scheduler_config.get("_class_name", "")),
            scheduler_refused=scheduler_refused,
        )

    def encode(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """Encode prompts. An embedding depends on its prompt alone, on a GPU within rounding. Thread-safe."""
        return self.encoder.encode(prompts)

    def encode_negative(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """Encode negative prompts; "" means none was given, which some models answer with zeros. Thread-safe."""
        return self.encoder.encode_negative(prompts)

    def conditioning(self, embeds: Sequence[PromptEmbeds], width: int, height: int) -> Conditioning:
        """Stack one prompt per UNet row (a guided task has two rows) for pictures of `width` x `height` pixels."""
        hidden = torch.stack([row.hidden for row in embeds])
        added = self.family.added_conditions(embeds, width, height)
        if added is not None:
            added = {name: self.compute.upload(rows) for name, rows in added.items()}
        return Conditioning(hidden, added)

    @torch.no_grad()
    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One batched UNet call over rows that may stand at different timesteps.

        `latents` is [rows, C, h, w], scaled as the sampler wants its model input, and is cast to the model's dtype;
        `timesteps` is [rows], int64 or float32. Returns noise_pred [rows, C, h, w] in the model's dtype, contiguous.
        """
        noise_pred: Tensor = self.unet(
            latents.to(self.dtype),
            timesteps,
            encoder_hidden_states=conditioning.hidden,
            added_cond_kwargs=conditioning.added,
            return_dict=False,
        )[0]
        return noise_pred.contiguous()


@dataclass(frozen=True)
class VaeSide:
    """VAE and safety checker, made by `loading.load_vae_side`. `dtype`: of latents; the VAE's own: `vae_dtype`."""

    family: Family
    vae: AutoencoderKL
    processor: VaeImageProcessor
    checker: SafetyChecker | None
    dtype: torch.dtype
    compute: Device

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.compute.torch_device

    @property
    def vae_dtype(self) -> torch.dtype:
        """The VAE's dtype; SDXL's is float32 where the model is in float16, unless set otherwise."""
        found: torch.dtype = self.vae.dtype
        return found

    @property
    def native_size(self) -> tuple[int, int]:
        """The (width, height) in pixels that the VAE was trained for."""
        sample_size = self.vae.config.sample_size
        rows, columns = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        return columns, rows

    @property
    def scale_factor(self) -> int:
        """Pixels per latent, along either side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """[channels, rows, columns] of the latents of a picture of `width` x `height` pixels."""
        return self.vae.config.latent_channels, height // self.scale_factor, width // self.scale_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Images:
        """Decode latents [n, C, h, w] as the UNet left them into pictures [n, H, W, 3], uint8, on the CPU."""
        return self.images(self.decoded(self.unscaled(latents)))

    def decoded(self, unscaled: Tensor) -> Tensor:
        """The output of `vae.decode` for latents [n, C, h, w] in its own scale: [n, 3, H, W], before any clamping."""
        images: Tensor = self.vae.decode(unscaled, return_dict=False)[0]
        return images

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents of the UNet -> input of `vae.decode`: on its device, in its dtype and scale."""
        there = self.compute.upload(latents) if latents.device != self.device else latents
        return self.family.unscale(there.to(self.vae.dtype), self.vae.config)

    def images(self, decoded: Tensor) -> Images:
        """Output of `vae.decode` [n, 3, H, W] -> pictures [n, H, W, 3], uint8, on the CPU."""
        unit_range = self.processor.postprocess(decoded, output_type="pt").float()
        pixels = unit_range.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        images: Images = self.compute.download(pixels).numpy()
        return images

    def check(self, images: Images) -> tuple[Images, list[bool]]:
        """Run the safety checker on pictures [n, H, W, 3]: flagged ones come back black. Without one, none is."""
        if self.checker is None:
            return images, [False] * len(images)
        return self.checker(images)
