"""Batched decoding: latents as they lie in the arena in, pictures out, and every failure laid at the right door."""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.vae_worker import metrics
from synerdiff.latents.client import Latents
from synerdiff.models.dtypes import dtype_from_name
from synerdiff.models.family import VaeSide
from synerdiff.telemetry import get_logger

log = get_logger("decoder")

_INTERNAL = grpc.StatusCode.INTERNAL.value[0]
_RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@dataclass(frozen=True)
class Picture:
    """Pixels [H, W, 3]. A flagged picture is black."""

    pixels: npt.NDArray[np.uint8]
    flagged: bool


@dataclass(frozen=True)
class DecodeFailure:
    """Latents that cannot become a picture on this worker; `code` is a google.rpc.Code."""

    code: int
    message: str


class DeviceFailed(Exception):
    """The device decodes nothing any more: the input is not at fault, and only a new process may help."""


class BatchDecoder:
    """Decodes on the calling thread, always the same one."""

    def __init__(self, side: VaeSide) -> None:
        self._side = side

    def decode(self, batch: Sequence[Latents], width: int, height: int) -> list[Picture | DecodeFailure]:
        """Decode latents of pictures of `width` x `height` pixels in one batch, each to a picture or its own failure.

        A batch that fails, for memory or anything else, is halved until what fails is alone.

        Raises:
            DeviceFailed: not even zeros decode any more.
        """
        outcomes = [self._tensor(latents, width, height) for latents in batch]
        sound = [outcome for outcome in outcomes if isinstance(outcome, Tensor)]
        decoded = iter(self._decode_halving(torch.stack(sound)) if sound else ())
        return [next(decoded) if isinstance(outcome, Tensor) else outcome for outcome in outcomes]

    def warm_up(self) -> None:
        """Decode zeros of the smallest size once. Raises DeviceFailed."""
        side = self._side.scale_factor * 8
        try:
            self._side.decode(torch.zeros(1, *self._side.latent_shape(side, side)))
        except Exception as error:
            raise DeviceFailed(f"the VAE decodes nothing on {self._side.device}: {error}") from error

    def _tensor(self, latents: Latents, width: int, height: int) -> Tensor | DecodeFailure:
        shape = self._side.latent_shape(width, height)
        dtype = dtype_from_name(latents.dtype)
        wanted = int(np.prod(shape)) * dtype.itemsize
        if len(latents.data) != wanted:
            size = f"a picture of {width} x {height} pixels has {wanted} bytes of {latents.dtype} latents"
            return DecodeFailure(_INTERNAL, f"{size}; its slot holds {len(latents.data)}")
        tensor = torch.frombuffer(latents.data, dtype=dtype).reshape(shape).to(self._side.dtype)
        if not tensor.isfinite().all():
            return DecodeFailure(_INTERNAL, "the latents hold values that are not finite; try a lower guidance_scale")
        return tensor

    def _decode_halving(self, latents: Tensor) -> list[Picture | DecodeFailure]:
        try:
            return self._pictures(latents)
        except Exception as error:  # whatever torch raises: what to do depends on who is at fault, not on its type
            failure = error
        if _is_out_of_memory(failure) and latents.is_cuda:
            torch.cuda.empty_cache()
        if len(latents) > 1:
            metrics.HALVED_BATCHES.inc()
            log.warning("decode failed, trying halves", images=len(latents), reason=str(failure))
            middle = len(latents) // 2
            return self._decode_halving(latents[:middle]) + self._decode_halving(latents[middle:])
        if _is_out_of_memory(failure):
            return [DecodeFailure(_RESOURCE_EXHAUSTED, f"no memory to decode even one such picture: {failure}")]
        self.warm_up()
        return [DecodeFailure(_INTERNAL, f"decode failed: {failure}")]

    def _pictures(self, latents: Tensor) -> list[Picture | DecodeFailure]:
        images, flagged = self._side.check(self._side.decode(latents))
        return [Picture(pixels, flag) for pixels, flag in zip(images, flagged, strict=True)]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
