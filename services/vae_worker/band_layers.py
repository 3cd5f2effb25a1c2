"""The layers of a VAE decoder, each whole by its own module or in row bands with that module's weights.

Exact in bands: a band gets one more row of its input above and below per 3x3 convolution, and a GroupNorm takes its
statistics from the whole activation before it is applied to any band. A layer frees its input's bands as it goes, so
that input and output together take little more memory than the larger of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.vae_worker.bands import Affine, BandedActivation, Shape, affine, split_rows, window

Run = Generator[float, None, BandedActivation]
"""Yields after each band the work it took, in the unit of `Layer.work`; returns the layer's output."""

# FLOPs of a convolution in the time in which memory moves one byte; fitted to a 2-core EPYC in float32.
_FLOPS_PER_BYTE = 16.0
# Passes over an activation: gathering it and taking its statistics; normalising and activating it.
_STATISTICS_PASSES = 4
_NORM_PASSES = 4


@dataclass(frozen=True)
class Layer(ABC):
    """One layer of a decoder: `module` is torch's or diffusers' own."""

    module: Any

    @abstractmethod
    def output(self, shape: Shape) -> Shape:
        """The shape of its output, from that of its input."""

    @abstractmethod
    def work(self, shape: Shape) -> float:
        """An estimate of its time, in FLOPs, from its input's shape."""

    def whole(self, activation: Tensor) -> Tensor:
        """The output in one piece, bit-identical to diffusers'."""
        output: Tensor = self.module(activation)
        return output


class BandLayer(Layer):
    """One that can run in bands."""

    @abstractmethod
    def in_bands(self, source: BandedActivation, shape: Shape, bands: int) -> Run:
        """Run it in `bands` bands. Those of `source` are dropped as they are consumed."""


@dataclass(frozen=True)
class Attention(Layer):
    """Self-attention over all positions: every position needs all others."""

    def output(self, shape: Shape) -> Shape:
        """The same."""
        return shape

    def work(self, shape: Shape) -> float:
        """FLOPs of its projections and of the attention."""
        positions = shape.height * shape.width
        return 4.0 * shape.values * (2 * shape.channels + positions)


@dataclass(frozen=True)
class Convolution(BandLayer):
    """A convolution of 1x1 or 3x3 by itself."""

    def output(self, shape: Shape) -> Shape:
        """Other channels."""
        return replace(shape, channels=self.module.out_channels)

    def work(self, shape: Shape) -> float:
        """FLOPs, and bytes in and out."""
        return _conv_work(self.module, shape)

    def in_bands(self, source: BandedActivation, shape: Shape, bands: int) -> Run:
        """One pass."""
        sink = BandedActivation(shape.height)
        halo = int(self.module.padding[0])
        for start, stop in split_rows(shape.height, bands):
            sink.append(_convolve(self.module, _window(self.module, source, start, stop, halo)))
            source.drop_above(stop - halo)
            yield self.work(shape) * (stop - start) / shape.height
        return sink


@dataclass(frozen=True)
class NormConvolution(BandLayer):
    """GroupNorm (`module`), SiLU and a 3x3 convolution."""

    conv: nn.Conv2d

    def output(self, shape: Shape) -> Shape:
        """Other channels."""
        return replace(shape, channels=self.conv.out_channels)

    def work(self, shape: Shape) -> float:
        """FLOPs, and bytes in and out."""
        return self.statistics_work(shape) + self.bands_work(shape)

    def statistics_work(self, shape: Shape) -> float:
        """That of `affine`."""
        return _pass_work(shape, _STATISTICS_PASSES)

    def bands_work(self, shape: Shape) -> float:
        """That of `bands`."""
        return _pass_work(shape, _NORM_PASSES) + _conv_work(self.conv, shape)

    def whole(self, activation: Tensor) -> Tensor:
        """One module after the other."""
        output: Tensor = self.conv(F.silu(self.module(activation), inplace=True))
        return output

    def affine(self, source: BandedActivation) -> Affine:
        """The norm, given the whole of `source`."""
        return affine(self.module, source.tensors())

    def bands(self, source: BandedActivation, norm: Affine, bands: int) -> Iterator[tuple[int, int, Tensor]]:
        """The output band by band: its rows [start, stop) and the band. Drops nothing of `source`."""
        for start, stop in split_rows(source.height, bands):
            # In place: the window is a copy. SiLU keeps the zeros that the window has outside the picture.
            band = _convolve(self.conv, F.silu(_window(self.conv, source, start, stop, 1, norm), inplace=True))
            yield start, stop, band

    def in_bands(self, source: BandedActivation, shape: Shape, bands: int) -> Run:
        """Statistics, then one pass."""
        sink = BandedActivation(shape.height)
        norm = self.affine(source)
        yield self.statistics_work(shape)
        for start, stop, band in self.bands(source, norm, bands):
            sink.append(band)
            source.drop_above(stop - 1)
            yield self.bands_work(shape) * (stop - start) / shape.height
        return sink


@dataclass(frozen=True)
class Resnet(BandLayer):
    """A ResnetBlock2D: two normalised convolutions beside a shortcut; `shortcut` is None where that is the input."""

    first: NormConvolution
    second: NormConvolution
    shortcut: nn.Conv2d | None
    output_scale_factor: float

    def output(self, shape: Shape) -> Shape:
        """Other channels."""
        return self.second.output(shape)

    def work(self, shape: Shape) -> float:
        """That of both convolutions and the shortcut."""
        return self.first.work(shape) + self._shortcut_work(shape) + self.second.work(self.first.output(shape))

    def whole(self, activation: Tensor) -> Tensor:
        """The module's own answer."""
        output: Tensor = self.module(activation, None)
        return output

    def in_bands(self, source: BandedActivation, shape: Shape, bands: int) -> Run:
        """Two passes, statistics before each: the first up to the second norm's input, the second to the output."""
        hidden = BandedActivation(shape.height)
        residual = source if self.shortcut is None else BandedActivation(shape.height)
        norm = self.first.affine(source)
        yield self.first.statistics_work(shape)
        first_work = self.first.bands_work(shape) + self._shortcut_work(shape)
        for start, stop, band in self.first.bands(source, norm, bands):
            hidden.append(band)
            if self.shortcut is not None:
                # Taken here and not in the second pass: it has fewer channels than the input, which can go then.
                residual.append(_convolve(self.shortcut, _window(self.shortcut, source, start, stop, 0)))
                source.drop_above(stop - 1)
            yield first_work * (stop - start) / shape.height
        return (yield from self._second_pass(hidden, self.first.output(shape), residual, bands))

    def _second_pass(self, hidden: BandedActivation, shape: Shape, residual: BandedActivation, bands: int) -> Run:
        sink = BandedActivation(shape.height)
        norm = self.second.affine(hidden)
        yield self.second.statistics_work(shape)
        for start, stop, band in self.second.bands(hidden, norm, bands):
            sink.append(self._joined(band, start, stop, residual))
            hidden.drop_above(stop - 1)
            residual.drop_above(stop)
            yield self.second.bands_work(shape) * (stop - start) / shape.height
        return sink

    def _shortcut_work(self, shape: Shape) -> float:
        return _conv_work(self.shortcut, shape) if self.shortcut is not None else 0.0

    def _joined(self, band: Tensor, start: int, stop: int, residual: BandedActivation) -> Tensor:
        for row, rows in residual.rows(start, stop):
            band.narrow(2, row - start, rows.shape[2]).add_(rows)
        return band if self.output_scale_factor == 1 else band.div_(self.output_scale_factor)


@dataclass(frozen=True)
class Upsample(BandLayer):
    """An Upsample2D: rows and columns doubled by repetition, then a 3x3 convolution."""

    conv: nn.Conv2d

    def output(self, shape: Shape) -> Shape:
        """Twice the rows and columns, other channels."""
        return replace(self._upsampled(shape), channels=self.conv.out_channels)

    def work(self, shape: Shape) -> float:
        """FLOPs, and bytes in and out."""
        return _conv_work(self.conv, self._upsampled(shape))

    def in_bands(self, source: BandedActivation, shape: Shape, bands: int) -> Run:
        """One pass, in bands of the input's rows."""
        sink = BandedActivation(2 * shape.height)
        for start, stop in split_rows(shape.height, bands):
            upsampled = F.interpolate(_window(self.conv, source, start, stop, 1), scale_factor=2.0, mode="nearest")
            # Of the halo's two upsampled rows the convolution needs the nearer one.
            upsampled = upsampled[:, :, 1:-1].contiguous(memory_format=_lie(self.conv))
            source.drop_above(stop - 1)
            sink.append(_convolve(self.conv, upsampled))
            yield self.work(shape) * (stop - start) / shape.height
        return sink

    def _upsampled(self, shape: Shape) -> Shape:
        return replace(shape, height=2 * shape.height, width=2 * shape.width)


def _convolve(conv: nn.Conv2d, rows: Tensor) -> Tensor:
    """The rows of `conv` on a window that brings its own halo: nothing is padded above and below."""
    return F.conv2d(rows, conv.weight, conv.bias, padding=(0, int(conv.padding[1])), groups=conv.groups)


def _window(
    conv: nn.Conv2d, source: BandedActivation, start: int, stop: int, halo: int, norm: Affine | None = None
) -> Tensor:
    """A window for `conv`. The caller must not hold it longer than the convolution takes."""
    return window(source, start, stop, halo, norm, _lie(conv))


def _lie(conv: nn.Conv2d) -> torch.memory_format:
    """The memory format of its weights [out, in, rows, columns], by their strides as in torch, and so of its input."""
    return torch.channels_last if conv.weight.stride(3) > 1 else torch.contiguous_format


def _conv_work(conv: nn.Conv2d, shape: Shape) -> float:
    positions = shape.images * shape.height * shape.width
    flops = 2.0 * positions * conv.weight.numel()
    return flops + _FLOPS_PER_BYTE * shape.itemsize * positions * (shape.channels + conv.out_channels)


def _pass_work(shape: Shape, passes: int) -> float:
    return _FLOPS_PER_BYTE * shape.itemsize * passes * shape.values
