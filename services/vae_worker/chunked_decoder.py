"""Exact decoding in row bands: a decode can pause between two bands of a layer, and takes a fraction of the memory."""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from services.vae_worker.band_layers import BandLayer, Layer, Run
from services.vae_worker.bands import BandedActivation, Shape
from services.vae_worker.decoder_walk import walk

# Of the largest layer's input and output: smaller ones are not cut.
_SMALL = 1 / 8
# A sum of all units' work may miss that of all layers by this much of it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class _Step:
    """A layer, its input's shape, its bands, and the groups whose moments its output must come with."""

    layer: Layer
    shape: Shape
    bands: int
    next_groups: int | None


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

        The largest layer is cut into `bands` bands (fewer where it has fewer rows), others as `bands_per_layer` says.
        Returns the images, before any clamping.

        Raises:
            ValueError: `bands` is below 1.
        """
        if bands < 1:
            raise ValueError(f"bands: {bands} is below 1")
        shapes = self._shapes(latents)
        work = [layer.work(shape) for layer, shape in zip(self._layers, shapes[:-1], strict=True)]
        activation = BandedActivation(latents.shape[2])
        activation.append(latents)
        done, total = 0.0, sum(work)
        for step in self._steps(shapes, bands_per_layer(self._layers, shapes, bands)):
            running = _run(step, activation)
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

    def _steps(self, shapes: Sequence[Shape], bands: Sequence[int]) -> Iterator[_Step]:
        following = [*zip(self._layers[1:], bands[1:], strict=True), (None, 1)]
        for layer, shape, count, (after, after_count) in zip(self._layers, shapes, bands, following, strict=False):
            in_bands = isinstance(after, BandLayer) and after_count > 1
            yield _Step(layer, shape, count, after.groups if isinstance(after, BandLayer) and in_bands else None)

    def _shapes(self, latents: Tensor) -> list[Shape]:
        """The input shapes of all layers, then the image's."""
        n, channels, height, width = latents.shape
        shapes = [Shape(n, channels, height, width, latents.element_size())]
        for layer in self._layers:
            shapes.append(layer.output(shapes[-1]))
        return shapes


def bands_per_layer(layers: Sequence[Layer], shapes: Sequence[Shape], bands: int) -> list[int]:
    """In how many bands to run each layer, for `bands` in the one with the most work or the largest activations.

    Others are cut into bands of about as much work or size. Layers that are small beside the largest stay whole: there
    is no memory to gain, and rounding differences that arise early in a decoder grow on their way to the image.
    """
    work = [layer.work(shape) for layer, shape in zip(layers, shapes[:-1], strict=True)]
    sizes = [before.values + after.values for before, after in pairwise(shapes)]
    return [
        math.ceil(bands * max(w / max(work), size / max(sizes)))
        if isinstance(layer, BandLayer) and size > _SMALL * max(sizes)
        else 1
        for layer, w, size in zip(layers, work, sizes, strict=True)
    ]


def _run(step: _Step, source: BandedActivation) -> Run:
    if step.bands > 1 and isinstance(step.layer, BandLayer):
        return (yield from step.layer.in_bands(source, step.shape, step.bands, step.next_groups))
    output = step.layer.output(step.shape)
    sink = BandedActivation(output.height, step.next_groups)
    activation = source.whole()
    source.drop_above(source.height)
    sink.append(step.layer.whole(activation))
    yield step.layer.work(step.shape)
    return sink
