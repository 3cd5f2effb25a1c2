"""Batched decoding: latents as they lie in the arena in, pictures out, and every failure attributed to its cause."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import grpc
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.vae_worker import metrics
from services.vae_worker.chunked_decoder import ChunkedDecoder, NotChunkable
from synerdiff.latents.client import Latents
from synerdiff.latents.cuda_driver import CudaClone
from synerdiff.models.device import Device, DeviceFailed, Fault
from synerdiff.models.device.opening import dtype_from_name
from synerdiff.models.exact import one_way, plainly_laid
from synerdiff.models.family import Images, VaeSide
from synerdiff.telemetry import get_logger
from synerdiff.worker.halving import Halves

log = get_logger("decoder")

Decode = Callable[[Tensor], Images]

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


_NOT_FINITE = DecodeFailure(_INTERNAL, "the latents hold values that are not finite; try a lower guidance_scale")


class BatchDecoder:
    """Decodes on the calling thread, always the same one. `decode`: how whole batches are decoded, if not by `side`."""

    def __init__(self, side: VaeSide, decode: Decode | None = None) -> None:
        self._side = side
        self._decode = decode or side.decode

    @property
    def compute(self) -> Device:
        """The device it runs on."""
        return self._side.compute

    def decode(self, batch: Sequence[Latents], width: int, height: int) -> list[Picture | DecodeFailure]:
        """Decode latents of `width` x `height` pixels, halving a failed part down to one image. Raises DeviceFailed."""
        decoding = self.begin(batch, width, height, bands=1)
        decoding.advance(1.0)
        return decoding.outcomes()

    def begin(
        self, batch: Sequence[Latents], width: int, height: int, bands: int, exact: bool = False
    ) -> "DecodeInProgress":
        """Begin a decode that is carried on piece by piece: `bands` as ChunkedDecoder takes them.

        With one band, or a VAE that is not known to be exact in bands, the decode is one piece. `exact`: so it is, and
        computed as `synerdiff.models.exact` says; the batch is of one image then.
        """
        if exact and len(batch) != 1:
            raise ValueError(f"{len(batch)} images: an exact decode is of one")
        views = dict(enumerate(self._view(latents, width, height) for latents in batch))
        failures = {place: view for place, view in views.items() if isinstance(view, DecodeFailure)}
        part = self._part({place: view for place, view in views.items() if isinstance(view, Tensor)})
        if part is not None:
            part, not_finite = part.finite(self.compute)
            failures |= dict.fromkeys(not_finite, _NOT_FINITE)
        chunked = self._chunked if bands > 1 and not exact else None
        decode = self._decode_exactly if exact else self._decode
        return DecodeInProgress(self._side, decode, chunked, bands, failures, part)

    def _decode_exactly(self, latents: Tensor) -> Images:
        with one_way(self.compute):
            return self._plain_side.decode(latents)

    @cached_property
    def _plain_side(self) -> VaeSide:
        return replace(self._side, vae=plainly_laid(self._side.vae))

    @cached_property
    def _chunked(self) -> ChunkedDecoder | None:
        try:
            return ChunkedDecoder(self._side.vae)
        except NotChunkable as refusal:
            log.warning("this VAE is decoded in one piece", reason=str(refusal))
            return None

    def _view(self, latents: Latents, width: int, height: int) -> Tensor | DecodeFailure:
        """The latents [C, h, w] where they lie."""
        shape = self._side.latent_shape(width, height)
        dtype = dtype_from_name(latents.dtype)
        wanted = int(np.prod(shape)) * dtype.itemsize
        if len(latents.data) != wanted:
            size = f"a picture of {width} x {height} pixels has {wanted} bytes of {latents.dtype} latents"
            return DecodeFailure(_INTERNAL, f"{size}; its slot holds {len(latents.data)}")
        return elements(latents, dtype, self._side.device).reshape(shape)

    def _part(self, views: Mapping[int, Tensor]) -> "_Part | None":
        """A copy of latents on the device in the model's dtype, by their places: those of host memory in one upload."""
        dtype, device = self._side.dtype, self._side.device
        if not views:
            return None
        if all(view.device.type == "cpu" for view in views.values()):
            latents = self.compute.upload(torch.stack([view.to(dtype) for view in views.values()]))
        else:
            latents = torch.stack([view.to(device, dtype) for view in views.values()])
        return _Part(tuple(views), latents)


@dataclass(frozen=True)
class _Part:
    """Images decoded together: their places in the batch, and their latents [n, C, h, w]."""

    places: tuple[int, ...]
    latents: Tensor

    def finite(self, compute: Device) -> "tuple[_Part | None, tuple[int, ...]]":
        """Those of finite latents, and the others' places. Waits once; their memory may be used again then."""
        finite = compute.download(self.latents.isfinite().flatten(1).all(dim=1)).tolist()
        if all(finite):
            return self, ()
        kept = [row for row, ok in enumerate(finite) if ok]
        others = tuple(place for place, ok in zip(self.places, finite, strict=True) if not ok)
        return _Part(tuple(self.places[row] for row in kept), self.latents[kept]) if kept else None, others

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, places: slice, /) -> "_Part":
        return _Part(self.places[places], self.latents[places])


class DecodeInProgress:
    """A decode of one batch that can pause. Made by `BatchDecoder.begin`; dropping it frees all that it holds."""

    def __init__(
        self,
        side: VaeSide,
        decode: Decode,
        chunked: ChunkedDecoder | None,
        bands: int,
        failures: Mapping[int, DecodeFailure],
        part: _Part | None,
    ) -> None:
        self._side = side
        self._decode = decode
        self._chunked = chunked
        self._bands = bands
        self._outcomes: dict[int, Picture | DecodeFailure] = dict(failures)
        self._halves = Halves(part, side.compute.free_caches)
        self._units: Generator[float, None, list[Picture]] | None = None
        self._part_fraction = 0.0

    def advance(self, until: float) -> bool:
        """Work until the fraction `until` of the decode is done, or a little more; whether all of it is.

        A part that fails is begun again, so that its earlier work counts no more. Raises DeviceFailed where the
        device decodes nothing any more.
        """
        while self._halves and (until >= 1 or self._fraction() < until):
            self._run_unit()
        return not self._halves

    def take_halved(self) -> int:
        """The fewest images that memory did not suffice for at once since this was last asked; 0: it did."""
        return self._halves.take_halved()

    def outcomes(self) -> list[Picture | DecodeFailure]:
        """Of each image of the batch, in its order. Raises RuntimeError before all of the decode is done."""
        if self._halves:
            raise RuntimeError("outcomes: the decode is not finished")
        return [self._outcomes[place] for place in range(len(self._outcomes))]

    def _fraction(self) -> float:
        waiting = sum(len(part) for part in self._halves.parts)
        images = waiting + len(self._outcomes)
        return (len(self._outcomes) + self._part_fraction * len(self._halves.parts[0])) / images

    def _run_unit(self) -> None:
        part = self._halves.parts[0]
        try:
            if self._units is None:
                self._units = self._pictures(part.latents)
            self._part_fraction = next(self._units)
        except StopIteration as end:
            self._end_part()
            self._outcomes |= zip(part.places, end.value, strict=True)
            self._halves.done()
        except Exception as error:  # any error of torch: the recovery depends on its cause, not on its type
            self._end_part()
            self._recover(part, error.with_traceback(None))

    def _pictures(self, latents: Tensor) -> Generator[float, None, list[Picture]]:
        if self._chunked is None:
            images = self._decode(latents)
        else:
            decoded = yield from self._chunked.units(self._side.unscaled(latents), self._bands)
            images = self._side.images(decoded)
        images, flagged = self._side.check(images)
        return [Picture(pixels, flag) for pixels, flag in zip(images, flagged, strict=True)]

    def _end_part(self) -> None:
        self._units, self._part_fraction = None, 0.0

    def _recover(self, part: _Part, failure: Exception) -> None:
        """Go on with the halves of a part that failed; of one image, say why it did."""
        fault = self._halves.failed(failure)
        if fault is None:
            metrics.HALVED_BATCHES.inc()
        elif fault is Fault.OUT_OF_MEMORY:
            reason = f"no memory to decode even one such picture: {failure}"
            self._outcomes[part.places[0]] = DecodeFailure(_RESOURCE_EXHAUSTED, reason)
        else:
            _check_device(self._side)
            self._outcomes[part.places[0]] = DecodeFailure(_INTERNAL, f"decode failed: {failure}")


def elements(latents: Latents, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The latents where they are: of those on the GPU, this is a view that must not outlive them."""
    if isinstance(latents.data, CudaClone) and device.type == "cuda":
        return torch.as_tensor(latents.data, device=device).view(dtype)
    return torch.frombuffer(latents.host(), dtype=dtype)


def decode_zeros(side: VaeSide) -> None:
    """Decode zeros of the smallest size once. Raises any error of it."""
    pixels = side.scale_factor * 8
    side.decode(torch.zeros(1, *side.latent_shape(pixels, pixels)))


def _check_device(side: VaeSide) -> None:
    """Raises DeviceFailed where not even zeros can be decoded."""
    try:
        decode_zeros(side)
    except Exception as error:
        raise DeviceFailed(f"the VAE decodes nothing on {side.device}: {error}") from error
