"""UNet calls replayed from captures, where a device supports it: thousands of kernel launches become one.

A capture is of one batch size and latent shape, and reads and writes buffers of its own. So that few sizes serve all,
a batch is padded with unused rows. Rows never affect each other in a UNet, so padding changes a picture only
as any other batch does: by the rounding of kernels for another batch size.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from synerdiff.models.device import Capture, DeviceFailed, Fault, fault_of
from synerdiff.models.family import Conditioning, UnetSide
from synerdiff.telemetry import get_logger

log = get_logger("graphed_unet")

# Padding wastes at most a quarter of a batch (3 rows run as 4). A skipping task that is alone is not doubled.
_EVERY_EVEN_TO, _THEN_EVERY = 32, 8

# Larger batches are seldom, and gain least.
_MOST_AHEAD = 64

# The most of this process's device memory that captures may hold.
_SHARE = 1 / 4

# A size that memory did not suffice for is computed without a capture for so long: trying costs all other captures.
_TRY_AGAIN_S = 600.0

_Key = tuple[int, tuple[int, ...]]


def padded_rows(rows: int) -> int:
    """The batch size that a call of `rows` rows is padded to: 1, 2, 4, 6, ... 30, 32, 40, 48, ..."""
    step = _THEN_EVERY if rows > _EVERY_EVEN_TO else 2 if rows > 1 else 1
    return -(-rows // step) * step


def common_sizes(most_rows: int) -> tuple[int, ...]:
    """The batch sizes of calls of up to `most_rows` rows, the largest first, none above 64."""
    return tuple(sorted({padded_rows(rows) for rows in range(1, min(most_rows, _MOST_AHEAD) + 1)}, reverse=True))


@dataclass(frozen=True)
class _Buffers:
    """The inputs of a capture: the same tensors at every replay."""

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

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        conditioning = self.conditioning
        tensors = [self.latents, self.timesteps, conditioning.hidden, *(conditioning.added or {}).values()]
        return sum(tensor.nbytes for tensor in tensors)

    def fill(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> None:
        """Put a call's rows first; the other rows keep their old content, which no result depends on."""
        rows = len(latents)
        self.latents[:rows].copy_(latents)
        self.timesteps[:rows].copy_(timesteps)
        self.conditioning.hidden[:rows].copy_(conditioning.hidden)
        for name, of_rows in (conditioning.added or {}).items():
            assert self.conditioning.added is not None
            self.conditioning.added[name][:rows].copy_(of_rows)


class GraphedUnet:
    """`UnetSide.predict`, replayed where that works. One thread at a time.

    Captures hold at most `most_bytes` (0: a quarter of this process's device memory): those used last stay.
    A size whose capture failed, or holds more alone, is computed without one from then on; a size whose capture lacks
    memory, even without all other captures, is tried again after ten minutes.
    """

    def __init__(self, side: UnetSide, most_bytes: int = 0) -> None:
        self._side = side
        self._most_bytes = most_bytes or int(side.compute.memory_limit_bytes() * _SHARE)
        self._captures: OrderedDict[_Key, tuple[_Buffers, Capture]] = OrderedDict()
        self._refused: set[_Key] = set()
        self._not_before_s: dict[_Key, float] = {}

    @property
    def captures(self) -> int:
        """How many are kept now."""
        return len(self._captures)

    @property
    def refused(self) -> int:
        """How many sizes are computed without a capture, since theirs failed."""
        return len(self._refused)

    def prepared(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Callable[[], Tensor]:
        """`UnetSide.predict` with its preparation done; the caller owns the answer. Make the returned call before any
        other call. Raises DeviceFailed, as that call does beside its other errors.
        """
        key = padded_rows(len(latents)), tuple(latents.shape[1:])
        if not self._has_capture(key, latents, timesteps, conditioning):
            return partial(self._side.predict, latents, timesteps, conditioning)
        self._captures.move_to_end(key)
        buffers, capture = self._captures[key]
        buffers.fill(latents, timesteps, conditioning)
        return partial(_replayed, capture, len(latents))

    def capture(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> bool:
        """Capture calls like this one ahead of the first. Returns whether there is a capture. Raises DeviceFailed."""
        key = padded_rows(len(latents)), tuple(latents.shape[1:])
        return self._has_capture(key, latents, timesteps, conditioning)

    def free(self) -> None:
        """Drop all captures, with the memory they hold."""
        self._captures.clear()

    def _has_capture(self, key: _Key, *inputs: Any) -> bool:
        """Whether there is a capture of `key`, made now if need be."""
        if key in self._captures:
            return True
        if not self._side.compute.captures or key in self._refused:
            return False
        if time.monotonic() < self._not_before_s.get(key, 0.0):
            return False
        failed = self._attempt(key, *inputs)
        if failed is not None and failed.fault is Fault.OUT_OF_MEMORY:
            log.warning("no memory for a CUDA graph: trying again without all others", **_said(key, failed))
            self.free()
            self._side.compute.free_caches()
            failed = self._attempt(key, *inputs)
        if failed is not None:
            self._do_without(key, failed)
        return failed is None

    def _attempt(self, key: _Key, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> "_Failed | None":
        """Make a capture. Raises DeviceFailed. Nothing of a failed one lives on: the next attempt needs its memory."""
        try:
            buffers = _Buffers.like(key[0], latents, timesteps, conditioning, self._side.dtype)
            buffers.fill(latents, timesteps, conditioning)
            capture = self._side.compute.capture(
                lambda: self._side.predict(buffers.latents, buffers.timesteps, buffers.conditioning)
            )
        except Exception as error:
            failed = _Failed.of(error)
            if failed.fault is Fault.FATAL:
                raise DeviceFailed(f"capturing a UNet call: {failed.reason}") from error
            return failed
        others = len(self._captures)
        self._captures[key] = buffers, capture
        while (held_bytes := self._held_bytes()) > self._most_bytes and len(self._captures) > 1:
            self._captures.popitem(last=False)
        if held_bytes <= self._most_bytes:
            return None
        # In a pool that the others have made large it may be the only one that is left, and small.
        del self._captures[key]
        reason = f"captures would hold {held_bytes} bytes, more than {self._most_bytes}"
        return _Failed(Fault.OUT_OF_MEMORY if others else Fault.OTHER, reason)

    def _held_bytes(self) -> int:
        return self._side.compute.captured_bytes() + sum(buffers.nbytes for buffers, _ in self._captures.values())

    def _do_without(self, key: _Key, failed: "_Failed") -> None:
        log.warning("no CUDA graph for this batch: it runs without", **_said(key, failed))
        if failed.fault is Fault.OUT_OF_MEMORY:
            self._not_before_s[key] = time.monotonic() + _TRY_AGAIN_S
        else:
            self._refused.add(key)


@dataclass(frozen=True)
class _Failed:
    fault: Fault
    reason: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Of all errors raised: the failing end of a capture hides the error that broke it."""
        raised = list(_with_those_before(error))
        faults = {fault_of(one) for one in raised}
        worst = next((fault for fault in (Fault.FATAL, Fault.OUT_OF_MEMORY) if fault in faults), Fault.OTHER)
        return cls(worst, "; before it: ".join(map(str, raised)))


def _with_those_before(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def _said(key: _Key, failed: _Failed) -> dict[str, object]:
    return {"rows": key[0], "latents": key[1], "reason": failed.reason}


def _replayed(capture: Capture, rows: int) -> Tensor:
    capture.replay()
    return capture.output[:rows].clone()


def _zeros(rows: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros((rows, *like.shape[1:]), dtype=dtype, device=like.device)
