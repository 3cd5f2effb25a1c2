"""UNet calls replayed from captures, where a device can do that: launching thousands of kernels becomes one launch.

A capture is of one batch size and latent shape, and reads and writes buffers of its own. So that few sizes serve all,
a batch is padded with rows that nobody reads. Rows never see each other in a UNet, so padding changes a picture only
as any other company does: by the rounding of kernels for another batch size.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from synerdiff.models.device import Capture, DeviceFailed, Fault, fault_of
from synerdiff.models.family import Conditioning, UnetSide
from synerdiff.telemetry import get_logger

log = get_logger("graphed_unet")

MOST_CAPTURES = 16

_Key = tuple[int, tuple[int, ...]]


def padded_rows(rows: int) -> int:
    """The batch size that a call of `rows` rows is padded to: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, ..."""
    power = 1 << max(0, (rows - 1).bit_length())
    three_quarters = power * 3 // 4
    return three_quarters if power >= 4 and rows <= three_quarters else power


@dataclass(frozen=True)
class _Buffers:
    """What a capture reads: the same tensors at every replay."""

    latents: Tensor
    timesteps: Tensor
    conditioning: Conditioning

    @classmethod
    def like(
        cls, rows: int, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> Self:
        """Zeros of so many rows."""
        added = conditioning.added
        return cls(
            _zeros(rows, latents, dtype),
            _zeros(rows, timesteps, timesteps.dtype),
            Conditioning(
                _zeros(rows, conditioning.hidden, conditioning.hidden.dtype),
                {name: _zeros(rows, of_rows, of_rows.dtype) for name, of_rows in added.items()} if added else None,
            ),
        )

    def fill(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> None:
        """Put a call's rows first; what stands in the others stays, and is of no interest."""
        rows = len(latents)
        self.latents[:rows].copy_(latents)
        self.timesteps[:rows].copy_(timesteps)
        self.conditioning.hidden[:rows].copy_(conditioning.hidden)
        for name, of_rows in (conditioning.added or {}).items():
            assert self.conditioning.added is not None
            self.conditioning.added[name][:rows].copy_(of_rows)


class GraphedUnet:
    """`UnetSide.predict`, replayed where that works. One thread at a time.

    At most `most` captures are kept, those used last. One whose capture failed is computed without from then on.
    """

    def __init__(self, side: UnetSide, most: int = MOST_CAPTURES) -> None:
        self._side = side
        self._most = most
        self._captures: OrderedDict[_Key, tuple[_Buffers, Capture]] = OrderedDict()
        self._refused: set[_Key] = set()

    @property
    def captures(self) -> int:
        """How many are kept now."""
        return len(self._captures)

    @property
    def refused(self) -> int:
        """How many sizes are computed without a capture, since theirs failed."""
        return len(self._refused)

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """As `UnetSide.predict`. What it returns is the caller's own.

        Raises DeviceFailed, and whatever a call without a capture raises.
        """
        key = padded_rows(len(latents)), tuple(latents.shape[1:])
        if not self._side.compute.captures or key in self._refused:
            return self._side.predict(latents, timesteps, conditioning)
        if key not in self._captures and not self._capture(key, latents, timesteps, conditioning):
            return self._side.predict(latents, timesteps, conditioning)
        self._captures.move_to_end(key)
        buffers, capture = self._captures[key]
        buffers.fill(latents, timesteps, conditioning)
        capture.replay()
        return capture.output[: len(latents)].clone()

    def free(self) -> None:
        """Drop all captures, with the memory they hold."""
        self._captures.clear()

    def _capture(self, key: _Key, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> bool:
        while len(self._captures) >= self._most:
            self._captures.popitem(last=False)
        try:
            buffers = _Buffers.like(key[0], latents, timesteps, conditioning, self._side.dtype)
            buffers.fill(latents, timesteps, conditioning)
            capture = self._side.compute.capture(
                lambda: self._side.predict(buffers.latents, buffers.timesteps, buffers.conditioning)
            )
        except Exception as error:
            self._refuse(key, error)
            return False
        self._captures[key] = buffers, capture
        return True

    def _refuse(self, key: _Key, error: Exception) -> None:
        if fault_of(error) is Fault.FATAL:
            raise DeviceFailed(f"capturing a UNet call: {error}") from error
        self._refused.add(key)
        log.warning("no CUDA graph for this batch: it runs without", rows=key[0], latents=key[1], reason=str(error))


def _zeros(rows: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros((rows, *like.shape[1:]), dtype=dtype, device=like.device)
