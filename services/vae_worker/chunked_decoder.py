"""Exact decoding in row bands: a decode can pause between two bands of a layer, and takes a fraction of the memory."""

import math
from collections.abc import Generator, Sequence
from itertools import pairwise

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from services.vae_worker.bands import BandedActivation, Shape
from services.vae_worker.decoder_walk import walk


class ChunkedDecoder:
    """Decodes as `vae.decode` does, within rounding, in units of one band of one layer.

    Raises:
        NotChunkable: the decoder of `vae` has a module that is not known to be exact in bands.
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

        The largest layer is cut into `bands` bands (fewer where it has fewer rows), the others into as many as make
        bands of about that work and size. Returns the images, before any clamping.

        Raises:
            ValueError: `bands` is below 1.
        """
        if bands < 1:
            raise ValueError(f"bands: {bands} is below 1")
        shapes = self._shapes(latents)
        work = [layer.work(shape) for layer, shape in zip(self._layers, shapes[:-1], strict=True)]
        layer_bands = bands_per_layer(work, shapes, bands)
        next_groups = [layer.groups for layer in self._layers[1:]] + [None]
        activation = BandedActivation(latents.shape[2], self._layers[0].groups)
        activation.append(latents)
        done, total = 0.0, sum(work)
        for layer, shape, count, groups in zip(self._layers, shapes, layer_bands, next_groups, strict=False):
            running = layer.run(activation, shape, count, groups)
            while True:
                try:
                    done += next(running)
                except StopIteration as end:
                    activation = end.value
                    break
                last = layer is self._layers[-1] and done > total * (1 - 1e-9)
                yield 1.0 if last else min(done / total, 1.0)
        return activation.whole()

    def _shapes(self, latents: Tensor) -> list[Shape]:
        """The input shapes of all layers, then the image's."""
        n, channels, height, width = latents.shape
        shapes = [Shape(n, channels, height, width, latents.element_size())]
        for layer in self._layers:
            shapes.append(layer.output(shapes[-1]))
        return shapes


def bands_per_layer(work: Sequence[float], shapes: Sequence[Shape], bands: int) -> list[int]:
    """In how many bands to run each layer, for `bands` in the one with the most work or the largest activations."""
    sizes = [before.values + after.values for before, after in pairwise(shapes)]
    most_work, largest = max(work), max(sizes)
    shares = [max(w / most_work, s / largest) for w, s in zip(work, sizes, strict=True)]
    return [math.ceil(bands * share) for share in shares]
