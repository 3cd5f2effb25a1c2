"""Exact decoding in row bands: a decode can pause between two bands of a layer, and takes a fraction of the memory."""

import math
from collections.abc import Generator, Sequence
from itertools import pairwise

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from services.vae_worker.band_layers import BandLayer, Layer, Run
from services.vae_worker.bands import BandedActivation, Shape
from services.vae_worker.decoder_walk import walk

# A layer with less input and output than this share of the largest one's is not cut.
SMALL_LAYER = 1 / 8
# Positions in a band: for fewer, libraries take other kernels, which are slower per position and round differently.
SMALLEST_BAND = 512
# A sum of all units' work may miss that of all layers by this much of it.
_ROUNDING = 1e-9


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
