"""Calls whose answer depends on its own row alone, to the bit: batches of one size, always computed the same way.

Kernels round by the batch's size, the number of threads, the weights' memory format and how they were compiled. So an
exact call has all of these fixed: `ROWS` rows, padded with copies; `threads` CPU threads, set by the caller;
contiguous weights; eager; on a GPU the kernels that cuDNN takes without its benchmark. Before the first call of a
latent shape, a test on the device shows whether a row's place in its batch or its neighbours still matter.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from synerdiff.models.device import Device
from synerdiff.models.family import Conditioning, UnetSide

# UNet rows of an exact call: two guided tasks, four others.
ROWS = 4

_Inputs = tuple[Tensor, Tensor, Conditioning]


class NotExact(Exception):
    """This device cannot make exact calls: the message has the device and latent shape."""


class ExactUnet:
    """UNet calls of a side, in batches of `ROWS` rows. One thread at a time."""

    def __init__(self, side: UnetSide) -> None:
        self._side = side
        self._plain_side: UnetSide | None = None
        self._shown: set[tuple[int, ...]] = set()

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """As `UnetSide.predict`, of any rows. Raises NotExact where rows of a batch change each other at this shape."""
        inputs = (latents, timesteps, conditioning)
        shape = tuple(latents.shape[1:])
        if shape not in self._shown:
            self._show(inputs)
            self._shown.add(shape)
        answered = [self._batch(inputs, range(first, first + ROWS)) for first in range(0, len(latents), ROWS)]
        return torch.cat(answered)[: len(latents)]

    def _batch(self, inputs: _Inputs, places: Iterable[int]) -> Tensor:
        """The answers to the rows at `places`, of which those past the end are the first row again."""
        latents, timesteps, conditioning = inputs
        found = [place if place < len(latents) else 0 for place in places]
        chosen = torch.tensor(found, device=latents.device)
        told = conditioning.added
        added = {name: rows[chosen] for name, rows in told.items()} if told is not None else None
        self._plain_side = self._plain_side or replace(self._side, unet=plainly_laid(self._side.unet))
        with one_way(self._side.compute):
            side = self._plain_side
            return side.predict(latents[chosen], timesteps[chosen], Conditioning(conditioning.hidden[chosen], added))

    def _show(self, inputs: _Inputs) -> None:
        """Raise NotExact unless the first row's answer is the same in all places, beside copies and other rows."""
        expected = self._batch(inputs, [0] * ROWS)[0]
        crowd, others = _with_strangers(inputs), list(range(1, ROWS))
        for place in range(ROWS):
            if not torch.equal(self._batch(crowd, [*others[:place], 0, *others[place:]])[place], expected):
                size, device = "x".join(map(str, inputs[0].shape[1:])), self._side.compute.name
                raise NotExact(f"exact: not on {device}: a row's answer depends on its place, latents {size}")


def _with_strangers(inputs: _Inputs) -> _Inputs:
    """The first row, followed by rows that differ from it in every input."""
    latents, timesteps, conditioning = inputs
    factors = torch.arange(ROWS, device=latents.device) + 1

    def scaled(row: Tensor) -> Tensor:
        by_row = factors.to(row.dtype).reshape(ROWS, *[1] * (row.dim() - 1))
        return row / by_row

    added = {name: scaled(rows[:1]) for name, rows in conditioning.added.items()} if conditioning.added else None
    return scaled(latents[:1]), scaled(timesteps[:1]), Conditioning(scaled(conditioning.hidden[:1]), added)


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """The conditioning of the rows of several calls, one after the other."""
    hidden = torch.cat([part.hidden for part in parts])
    first = parts[0].added
    if first is None:
        return Conditioning(hidden, None)
    return Conditioning(hidden, {name: torch.cat([(part.added or {})[name] for part in parts]) for name in first})


def plainly_laid(module: Any) -> Any:
    """The module with contiguous weights; weights in another layout are then held twice."""
    tensors = [*module.parameters(), *module.buffers()]
    if all(_lies_plainly(tensor) for tensor in tensors):
        return module
    memo: dict[int, Any] = {id(tensor): _plain(tensor) for tensor in tensors}
    return copy.deepcopy(module, memo)


@contextlib.contextmanager
def one_way(device: Device) -> Iterator[None]:
    """Compute with the kernels that the device always takes for a shape, not those of an earlier benchmark."""
    if device.torch_device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


def _lies_plainly(tensor: Tensor) -> bool:
    """Whether even the strides of dimensions of one, by which torch guesses a memory format, are the usual ones."""
    return tensor.stride() == _strides(tensor)


def _plain(tensor: Tensor) -> Tensor:
    if _lies_plainly(tensor):
        return tensor
    plain = tensor.detach().contiguous().as_strided(tensor.shape, _strides(tensor))
    return nn.Parameter(plain, requires_grad=False) if isinstance(tensor, nn.Parameter) else plain


def _strides(tensor: Tensor) -> tuple[int, ...]:
    strides, step = list[int](), 1
    for size in reversed(tensor.shape):
        strides.insert(0, step)
        step *= max(size, 1)
    return tuple(strides)
