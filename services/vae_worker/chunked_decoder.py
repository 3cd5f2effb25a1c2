"""Exact decoding in row bands: a decode can pause between two bands of a layer, and takes a fraction of the memory."""

import math
from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from services.vae_worker.band_layers import (
    Attention,
    BandLayer,
    Convolution,
    Layer,
    NormConvolution,
    Resnet,
    Run,
    Upsample,
)
from services.vae_worker.bands import BandedActivation, Shape

# A layer with less input and output than this share of the largest one's is not cut.
SMALL_LAYER = 1 / 8
# Positions in a band: for fewer, libraries take other kernels, which are slower per position and round differently.
SMALLEST_BAND = 512
# A sum of all units' work may miss that of all layers by this much of it.
_ROUNDING = 1e-9


class NotChunkable(Exception):
    """A VAE that cannot be decoded in bands exactly: names the module and why."""

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(f"{module}: {reason}")
        self.module = module


def walk(vae: AutoencoderKL) -> list[Layer]:
    """The layers of `vae.decode`, in order. Raises NotChunkable for a module of a type or an option not known here."""
    _expect("vae", vae, AutoencoderKL)
    for option in ("use_tiling", "use_slicing"):
        if getattr(vae, option):
            raise NotChunkable("vae", f"{option} is set")
    layers: list[Layer] = []
    if vae.post_quant_conv is not None:
        layers.append(Convolution(_conv("post_quant_conv", vae.post_quant_conv)))
    layers.extend(_decoder("decoder", vae.decoder))
    return layers


def _decoder(name: str, decoder: Any) -> Iterator[Layer]:
    _expect(name, decoder, Decoder)
    yield Convolution(_conv(f"{name}.conv_in", decoder.conv_in))
    yield from _mid_block(f"{name}.mid_block", decoder.mid_block)
    for i, block in enumerate(decoder.up_blocks):
        yield from _up_block(f"{name}.up_blocks.{i}", block)
    _expect(f"{name}.conv_act", decoder.conv_act, nn.SiLU)
    norm = _norm(f"{name}.conv_norm_out", decoder.conv_norm_out)
    yield NormConvolution(norm, _conv(f"{name}.conv_out", decoder.conv_out))


def _mid_block(name: str, block: Any) -> Iterator[Layer]:
    _expect(name, block, UNetMidBlock2D)
    yield _resnet(f"{name}.resnets.0", block.resnets[0])
    for i, (attention, resnet) in enumerate(zip(block.attentions, block.resnets[1:], strict=True)):
        if attention is not None:
            yield _attention(f"{name}.attentions.{i}", attention)
        yield _resnet(f"{name}.resnets.{i + 1}", resnet)


def _up_block(name: str, block: Any) -> Iterator[Layer]:
    _expect(name, block, UpDecoderBlock2D)
    for i, resnet in enumerate(block.resnets):
        yield _resnet(f"{name}.resnets.{i}", resnet)
    for i, upsampler in enumerate(block.upsamplers or ()):
        yield _upsample(f"{name}.upsamplers.{i}", upsampler)


def _resnet(name: str, block: Any) -> Resnet:
    _expect(name, block, ResnetBlock2D)
    _expect(f"{name}.nonlinearity", block.nonlinearity, nn.SiLU)
    _expect_options(name, block, {"time_emb_proj": None, "upsample": None, "downsample": None})
    if block.time_embedding_norm not in ("default", "group"):  # without an embedding these two are the same
        raise NotChunkable(name, f"time_embedding_norm is {block.time_embedding_norm!r}")
    if block.training and block.dropout.p:
        raise NotChunkable(f"{name}.dropout", "it is in training mode")
    shortcut = block.conv_shortcut
    return Resnet(
        block,
        NormConvolution(_norm(f"{name}.norm1", block.norm1), _conv(f"{name}.conv1", block.conv1)),
        NormConvolution(_norm(f"{name}.norm2", block.norm2), _conv(f"{name}.conv2", block.conv2)),
        None if shortcut is None else _conv(f"{name}.conv_shortcut", shortcut, size=1),
        float(block.output_scale_factor),
    )


def _upsample(name: str, upsampler: Any) -> Upsample:
    _expect(name, upsampler, Upsample2D)
    known = {"norm": None, "use_conv": True, "use_conv_transpose": False, "interpolate": True, "name": "conv"}
    _expect_options(name, upsampler, known)
    return Upsample(upsampler, _conv(f"{name}.conv", upsampler.conv))


def _attention(name: str, attention: Any) -> Attention:
    # It runs whole, so its options do not matter; one with a spatial norm would need the latents, too.
    _expect(name, attention, DiffusersAttention)
    _expect_options(name, attention, {"spatial_norm": None})
    return Attention(attention)


def _norm(name: str, norm: Any) -> nn.GroupNorm:
    _expect(name, norm, nn.GroupNorm)
    if norm.weight is None or norm.bias is None:
        raise NotChunkable(name, "it has no weight and bias")
    return norm  # type: ignore[no-any-return]


def _conv(name: str, conv: Any, size: int | None = None) -> nn.Conv2d:
    _expect(name, conv, nn.Conv2d)
    size = size or conv.kernel_size[0]
    known = {
        "kernel_size": (size, size),
        "padding": (size // 2, size // 2),
        "stride": (1, 1),
        "dilation": (1, 1),
        "padding_mode": "zeros",
    }
    _expect_options(name, conv, known)
    if size not in (1, 3):
        raise NotChunkable(name, f"its kernel is {size}x{size}, neither 1x1 nor 3x3")
    return conv  # type: ignore[no-any-return]


def _expect(name: str, module: Any, wanted: type) -> None:
    found: type = type(module)
    if found is not wanted:  # a subclass may compute something else
        raise NotChunkable(name, f"it is {found.__name__}, not {wanted.__name__}")
    if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
        raise NotChunkable(name, "it has hooks, which a decode in bands would pass by")


def _expect_options(name: str, module: Any, known: dict[str, Any]) -> None:
    for option, value in known.items():
        found = getattr(module, option)
        if found != value:
            raise NotChunkable(name, f"{option} is {found!r}, not {value!r}")


class ChunkedDecoder:
    """Decodes as `vae.decode` does, within rounding, in units of one band of one layer.

    Raises NotChunkable where the decoder of `vae` has a module that is not known to be exact in bands.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        self._layers = walk(vae)

    def decode(self, latents: Tensor, bands: int) -> Tensor:
        """Latents as `vae.decode` takes them, [n, C, h, w] in its dtype, to images [n, 3, H, W] as it gives them."""
        units = self.units(latents, bands)
        while True:
            try:
                next(units)
            except StopIteration as end:
                image: Tensor = end.value
                return image

    @torch.no_grad()
    def units(self, latents: Tensor, bands: int) -> Generator[float, None, Tensor]:
        """Decode in units; yields after each the fraction of the decode's work done so far, at last 1.0.

        The largest layer is cut into `bands` bands (fewer where it has fewer rows), others as `bands_per_layer` says.
        Returns the images, before any clamping. Raises ValueError where `bands` is below 1.
        """
        if bands < 1:
            raise ValueError(f"bands: {bands} is below 1")
        shapes = self._shapes(latents)
        work = [layer.work(shape) for layer, shape in zip(self._layers, shapes[:-1], strict=True)]
        activation = BandedActivation(latents.shape[2])
        activation.append(latents)
        done, total = 0.0, sum(work)
        counts = bands_per_layer(self._layers, shapes, bands)
        for layer, shape, count in zip(self._layers, shapes[:-1], counts, strict=True):
            running = _run(layer, activation, shape, count)
            while True:
                try:
                    done += next(running)
                except StopIteration as end:
                    activation = end.value
                    break
                if done < total * (1 - _ROUNDING):
                    yield done / total
        image = activation.whole()
        yield 1.0
        return image

    def _shapes(self, latents: Tensor) -> list[Shape]:
        """The input shapes of all layers, then the image's."""
        n, channels, height, width = latents.shape
        shapes = [Shape(n, channels, height, width, latents.element_size())]
        for layer in self._layers:
            shapes.append(layer.output(shapes[-1]))
        return shapes


def bands_per_layer(layers: Sequence[Layer], shapes: Sequence[Shape], bands: int) -> list[int]:
    """In how many bands to run each layer, for `bands` in the one with the most work or the largest activations.

    Others are cut into bands of about as much work or size; where there is nothing to gain by that they stay whole.
    """
    work = [layer.work(shape) for layer, shape in zip(layers, shapes[:-1], strict=True)]
    sizes = [before.values + after.values for before, after in pairwise(shapes)]
    shares = [max(w / max(work), size / max(sizes)) for w, size in zip(work, sizes, strict=True)]
    most = [
        shape.positions // SMALLEST_BAND if isinstance(layer, BandLayer) and size > SMALL_LAYER * max(sizes) else 1
        for layer, shape, size in zip(layers, shapes[1:], sizes, strict=True)
    ]
    return [max(1, min(math.ceil(bands * share), count)) for share, count in zip(shares, most, strict=True)]


def _run(layer: Layer, source: BandedActivation, shape: Shape, bands: int) -> Run:
    if bands > 1 and isinstance(layer, BandLayer):
        return (yield from layer.in_bands(source, shape, bands))
    activation = source.whole()
    source.drop_above(source.height)
    sink = BandedActivation(layer.output(shape).height)
    sink.append(layer.whole(activation))
    yield layer.work(shape)
    return sink
